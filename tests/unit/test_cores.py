from __future__ import annotations

import pytest

from serve_app.engine.cores import core_environment
from serve_app.engine.errors import StartupError


@pytest.mark.parametrize(
    ("backend", "given", "cores", "wanted"),
    [
        ("nxdi", "3", 1, {"NEURON_RT_VISIBLE_CORES": "3"}),
        ("nxdi", "9,8,10", 3, {"NEURON_RT_VISIBLE_CORES": "8-10"}),
        (
            "neuron",
            "0,1",
            2,
            {"NEURON_RT_VISIBLE_CORES": "0-1", "NEURON_VISIBLE_DEVICES": "0-1"},
        ),
    ],
)
def test_cores_become_a_range(backend, given, cores, wanted) -> None:
    assert core_environment(backend, cores, {"NEURON_RT_VISIBLE_CORES": given}) == wanted


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
        core_environment("nxdi", 2, {"NEURON_RT_VISIBLE_CORES": given})
