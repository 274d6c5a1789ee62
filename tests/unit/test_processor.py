"""Who gets which cores. Affinity is the kernel's: each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from serve_app.backends import BACKENDS, Machine
from serve_app.backends.processor import ENGINE_CPUS, this_machine
from serve_app.config import parse_args

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
