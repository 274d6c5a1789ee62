"""Engines that die or freeze, while the application runs. Last: they replace the replica."""

from __future__ import annotations

import signal
import time

import pytest

from tests.serving.conftest import HTTP, MODEL, Stack

pytestmark = pytest.mark.timeout(300)


def wait_for_other_engines(stack: Stack, old: list[int], seconds: float) -> float:
    """Seconds until the old engine's processes are gone and a new engine answers."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        pids = [process.pid for process in stack.engines()]
        if pids and not set(pids) & set(old):
            stack.wait_until_ready(seconds)
            return time.monotonic() - begin
        time.sleep(0.5)
    raise AssertionError(f"still {stack.engines()}\n{stack.log.read_text()[-2000:]}")


def answers(stack: Stack) -> bool:
    body = {"model": MODEL, "prompt": "neuron-serve", "max_tokens": 3}
    answer = HTTP.post(f"{stack.url}/v1/completions", json=body)
    return answer.status_code == 200 and len(answer.json()["choices"]) == 1


def test_a_killed_engine_is_replaced(stack: Stack) -> None:
    engines = stack.engines()
    assert engines
    body = {"model": MODEL, "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}
    with HTTP.stream("POST", f"{stack.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        engines[0].send_signal(signal.SIGKILL)
        rest = list(lines)
    assert "data: [DONE]" not in rest or any("error" in line for line in rest)
    wait_for_other_engines(stack, [process.pid for process in engines], 150)
    assert answers(stack)


def test_a_frozen_engine_is_found_and_replaced(stack: Stack) -> None:
    engines = stack.engines()
    for process in engines:
        process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    while "the engine is frozen: no token in" not in stack.log.read_text():
        assert time.monotonic() - begin < 60
        time.sleep(0.5)
    wait_for_other_engines(stack, [process.pid for process in engines], 200)
    assert answers(stack)


def test_a_killed_replica_takes_its_engine_along(stack: Stack) -> None:
    engines = stack.engines()
    (replica,) = [p for p in stack.tree() if p.name().startswith("ray::ServeRepli")]
    replica.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(process.is_running() for process in engines):
        assert time.monotonic() < deadline, "EngineCore outlived its replica"
        time.sleep(0.1)
    wait_for_other_engines(stack, [process.pid for process in engines], 150)
    assert answers(stack)
