"""Ray hands NeuronCores to replicas: disjoint, side by side, as many replicas as fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def deploy(
    config: str, cores: int | str, replicas: int, *free: int, before: tuple[str, ...] = ()
) -> dict[str, Any]:
    words = [f"configs/{config}", *map(str, (cores, replicas, *free))]
    done = subprocess.run(
        [*before, sys.executable, "tests/serving/stand_in.py", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray, too, writes to the standard output.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    answer: dict[str, Any] = json.loads(line)
    return answer


@pytest.mark.parametrize(
    ("config", "cores", "variable", "ranges"),
    [
        ("llama3-8b-inf2-48xlarge.yaml", 24, "NEURON_RT_VISIBLE_CORES", ["0-7", "16-23", "8-15"]),
        (
            "llama3.3-70b-fp8-trn2.yaml",
            64,
            "NEURON_VISIBLE_DEVICES",
            ["0-15", "16-31", "32-47", "48-63"],
        ),
    ],
)
def test_replicas_have_cores_of_their_own(config, cores, variable, ranges) -> None:
    answer = deploy(config, cores, len(ranges))
    assert sorted(map(str, answer["environments"])) == [str({variable: cores}) for cores in ranges]


def test_a_replica_too_many_waits_and_says_for_what() -> None:
    answer = deploy("llama3-8b-inf2-48xlarge.yaml", 16, 3)
    assert sorted(e["NEURON_RT_VISIBLE_CORES"] for e in answer["environments"]) == ["0-7", "8-15"]
    assert "neuron_cores" in answer["message"]


def test_cores_that_do_not_lie_side_by_side_are_refused() -> None:
    """After churn Ray hands out what is free; a replica on cores 0 and 3 must not start."""
    answer = deploy("llama3-8b-inf2.yaml", 6, 1, 0, 3)
    assert answer["environments"] == []
    assert "NeuronCores 0,3, which do not lie side by side" in answer["message"]
    answer = deploy("llama3-8b-inf2.yaml", 6, 1, 2, 3)
    assert answer["environments"] == [{"NEURON_RT_VISIBLE_CORES": "2-3"}]


def test_ray_finds_the_cores_by_neuron_ls() -> None:
    """Ray looks in AWS's tools folder alone: in a mount namespace of its own, a fake stands there.

    The fake tells of the 12 devices of an inf2.48xlarge.
    """
    if any(place.startswith("/opt/") for place in (str(ROOT), sys.base_prefix, sys.prefix)):
        pytest.skip("what the fake hides, /opt, holds this Python or this clone")
    stage = ("unshare", "--mount", "--", "bash", str(ROOT / "tests/serving/with_fake_neuron_ls.sh"))
    if subprocess.run([*stage, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace")
    answer = deploy("llama3-8b-inf2-48xlarge.yaml", "detect", 3, before=stage)
    assert answer["cores"] == 24
    ranges = sorted(e["NEURON_RT_VISIBLE_CORES"] for e in answer["environments"])
    assert ranges == ["0-7", "16-23", "8-15"]
