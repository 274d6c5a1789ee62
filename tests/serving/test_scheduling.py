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


def deploy(config: str, cores: int, replicas: int) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "tests/serving/stand_in.py",
            f"configs/{config}",
            str(cores),
            str(replicas),
        ],
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
