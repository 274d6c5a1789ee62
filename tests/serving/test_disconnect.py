from __future__ import annotations

import time

import httpx
import pytest

from tests.serving.conftest import HTTP, MODEL, Stack

BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a long story about neuron-serve."}],
    "max_tokens": 900,
    "ignore_eos": True,
}


def running(stack: Stack) -> float:
    return stack.metric("vllm:num_requests_running")


def wait_until_idle(stack: Stack) -> float:
    begin = time.monotonic()
    while running(stack):
        assert time.monotonic() - begin < 30
    return time.monotonic() - begin


def test_the_story_takes_longer_than_the_limit(stack: Stack) -> None:
    """Else the tests below could not fail."""
    begin = time.monotonic()
    HTTP.post(f"{stack.url}/v1/chat/completions", json=BODY).raise_for_status()
    assert time.monotonic() - begin > 2.0


def test_a_client_that_leaves_a_stream_frees_the_engine(stack: Stack) -> None:
    body = {**BODY, "stream": True}
    with HTTP.stream("POST", f"{stack.url}/v1/chat/completions", json=body) as answer:
        # The iterator is kept: httpx closes the stream when it is dropped.
        lines = answer.iter_lines()
        for _ in range(20):
            next(lines)
        assert running(stack) == 1
    assert wait_until_idle(stack) < 1.0


def test_a_client_that_leaves_a_whole_answer_frees_the_engine(stack: Stack) -> None:
    """Idle within a second of the client's leaving, and before all 900 tokens are made; always.

    The client sends head and body in two packets, as most do.
    """
    seen = []
    for _ in range(5):
        before = stack.metric("vllm:generation_tokens_total")
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(f"{stack.url}/v1/chat/completions", json=BODY, timeout=0.5)
        seconds = wait_until_idle(stack)
        seen.append((round(seconds, 1), stack.metric("vllm:generation_tokens_total") - before))
    assert all(seconds < 1.0 and 1 < made < 800 for seconds, made in seen), seen
