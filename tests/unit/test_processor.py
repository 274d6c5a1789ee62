"""Who gets which cores. Affinity is the kernel's: each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.backends import BACKENDS, Machine
from serve_app.backends.processor import ENGINE_CPUS, this_machine
from serve_app.cli.run import _threads
from serve_app.config import load, parse_args

ROOT = Path(__file__).parents[2]
CPUS = sorted(os.sched_getaffinity(0))
CORES = this_machine().cores
PROGRAM = """
import json, os, sys
from serve_app.backends.processor import go_to_engine_cpus, set_engines_apart, this_machine
set_engines_apart(int(sys.argv[1]), os.environ)
serving, cores = os.sched_getaffinity(0), this_machine().cores
go_to_engine_cpus(os.environ)
print(json.dumps([sorted(serving), sorted(os.sched_getaffinity(0)), cores]))
"""


def divided(threads: int, **environment: str) -> list[object]:
    """Processors of what serves, processors of an engine, cores that a plan sees."""
    words = [sys.executable, "-c", PROGRAM, str(threads)]
    env = {**os.environ, **environment}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    answer: list[object] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(CORES < 2, reason="one core cannot be divided")
def test_engines_have_cores_of_their_own() -> None:
    serving, engine, cores = divided(CORES - 1)
    assert isinstance(serving, list)
    assert isinstance(engine, list)
    assert sorted(serving + engine) == CPUS
    assert serving
    assert engine
    assert cores == CORES  # a plan made in the replica counts what one made before counted


@pytest.mark.parametrize("threads", [0, CORES, CORES + 5])
def test_what_serves_keeps_at_least_a_core(threads: int) -> None:
    assert divided(threads) == [CPUS, CPUS, CORES]


def test_an_earlier_division_stays() -> None:
    first = str(CPUS[0])
    assert divided(1, **{ENGINE_CPUS: first}) == [CPUS, [CPUS[0]], CORES]


def test_the_plan_says_so() -> None:
    args = parse_args({"model": {"id": "m"}})
    made = BACKENDS["cpu"].plan(args, Machine(4, frozenset(), frozenset({3, 1, 2})))
    assert "engines run on processors 1, 2, 3, all else on the others" in made.reasons


@pytest.mark.parametrize(
    ("old", "new", "threads"),
    [
        ("backend: cpu", "backend: cpu\n      resources: {num_cpus: 3}", 3),
        (
            "backend: cpu",
            "backend: cpu\n      scaling: {num_replicas: 2}\n      resources: {num_cpus: 3}",
            6,
        ),
        ("backend: cpu", "backend: cpu\n      env: {OMP_NUM_THREADS: '${THREADS}'}", 0),
        ("max_model_len: 1024", "tensor_parallel_size: 2", 0),
    ],
)
def test_the_threads_of_a_file(write_config, old: str, new: str, threads: int) -> None:
    assert _threads(load(write_config((old, new)))) == threads


def test_a_model_on_a_chip_leaves_the_processor_as_it_is() -> None:
    assert _threads(load(ROOT / "configs/llama3-8b-inf2.yaml")) == 0
