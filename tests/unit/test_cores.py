from __future__ import annotations

import pytest

from serve_app.engine.cores import claim_cores
from serve_app.engine.errors import StartupError


@pytest.mark.parametrize(
    ("backend", "given", "cores", "wanted"),
    [
        ("nxdi", "3", 1, {"NEURON_RT_VISIBLE_CORES": "3"}),
        ("nxdi", "9,8,10", 3, {"NEURON_RT_VISIBLE_CORES": "8-10"}),
        ("neuron", "0,1", 2, {"NEURON_VISIBLE_DEVICES": "0-1"}),
    ],
)
def test_cores_become_a_range(backend, given, cores, wanted) -> None:
    environment = {"NEURON_RT_VISIBLE_CORES": given}
    claim_cores(backend, cores, environment)
    assert environment == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0,3", "do not lie side by side"),
        ("0", r"needs 2 NeuronCores and Ray gave it 1 \(0\)"),
        ("", r"gave it 0 \(none\)"),
    ],
)
def test_other_cores_are_refused(given: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        claim_cores("nxdi", 2, {"NEURON_RT_VISIBLE_CORES": given})
