"""Prefill and decode apart, for real: two of each, NIXL between them, and faults of every kind."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.collector import Collector, Span
from tests.serving.conftest import HTTP, MODEL, Stack, free_port, start
from tests.serving.disaggregated import (
    CONFIG,
    LIMIT,
    SESSION,
    Answer,
    alone,
    ask_all,
    completion,
    engine_of,
    replicas,
    scrape,
    tokens,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)
REPLACED_S = 240


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pd(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    """`neuron-serve run` of two prefill and two decode replicas, traced, with logs in JSON."""
    directory = tmp_path_factory.mktemp("pd")
    port = free_port()
    config = directory / "pd.yaml"
    config.write_text(CONFIG.format(port=port))
    command = str(Path(sys.executable).with_name("neuron-serve"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in collector.environment.items():
            patch.setenv(name, value)
        arguments = ["run", "--address", "local", str(config)]
        running = start([command, *arguments], port, directory / "log")
    try:
        running.wait_until_ready(400)
        wait_until(lambda: "ready in" in running.log.read_text(), 400, running.log.read_text)
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def met() -> int:
    """How often a decode replica has had its first KV cache of a prefill replica."""
    logs = (SESSION / "logs/serve").glob("replica_demo_decode_*.log")
    return sum(log.read_text().count("KV cache transferred") for log in logs)


def whole_again(pd: Stack, pairs_met: int) -> None:
    """Two of each, and the new one has had a KV cache of both others, or they of it."""

    def healthy() -> bool:
        there = len(replicas(pd, "prefill")) == len(replicas(pd, "decode")) == 2
        if there:
            time.sleep(3)  # `neuron-serve run` looks every two seconds
        return there and pd.log.read_text().rstrip().endswith("RUNNING")

    wait_until(healthy, REPLACED_S, lambda: pd.log.read_text()[-2000:])
    wait_until(lambda: met() >= pairs_met + 2, 30, met)


def test_200_answers_equal_the_single_engines(pd: Stack) -> None:
    lengths = [1, 2, 3, 17, 127, 128, 129, 255, 256, 400, 700, LIMIT - 20]
    bodies = [
        completion(tokens(lengths[i % len(lengths)], seed=i), stream=i % 2 == 0) for i in range(200)
    ]
    moved, alone_here = transferred(pd), fallbacks(pd)
    answers = ask_all(pd.url, bodies, 32)
    assert [a for a in answers if not a.complete or a.finish != "length"] == []
    moved, alone_here = transferred(pd) - moved, fallbacks(pd) - alone_here
    assert moved + alone_here == 200
    assert moved >= 180  # a loaded machine may miss a deadline
    assert [answer.text for answer in answers] == alone(pd.url, bodies)
    assert failures(pd) == 0


def test_each_prefill_replica_works(pd: Stack) -> None:
    def both() -> bool:
        computed = scrape("ray_vllm_prompt_tokens_total")["prefill"]
        return len(computed) == 2 and min(computed.values()) > 1000

    wait_until(both, 60, lambda: scrape("ray_vllm_prompt_tokens_total"))


def test_the_protocols_corners(pd: Stack) -> None:
    """What is split and what is not answers the same as one engine does."""
    url = f"{pd.url}/v1/completions"
    prompt = tokens(150, seed=1001)
    reference = HTTP.post(url, json=completion(prompt, prompt_logprobs=0)).json()["choices"][0]
    for more in (
        {"n": 2, "temperature": 1, "top_k": 1},
        {"logprobs": 2},
        {"stop": ["zzzz"]},
        {"min_tokens": 5},
        {"echo": True},
        {"response_format": {"type": "text"}},
        {"return_token_ids": True},
    ):
        answer = HTTP.post(url, json=completion(prompt, **more))
        assert answer.status_code == 200, (more, answer.text)
        for choice in answer.json()["choices"]:
            assert choice["text"].endswith(reference["text"]), more
    several = HTTP.post(url, json=completion([prompt, prompt]))  # type: ignore[arg-type]
    assert [c["text"] for c in several.json()["choices"]] == [reference["text"]] * 2


def test_chat_with_tools(pd: Stack) -> None:
    url = f"{pd.url}/v1/chat/completions"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "get_weather", "description": "Weather", "parameters": parameters}
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": function}],
        "temperature": 0,
        "max_completion_tokens": 60,
    }
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("auto", "none", "required", named):
        body = {**chat, "tool_choice": choice}
        answer = HTTP.post(url, json=body)
        single = HTTP.post(url, json={**body, "prompt_logprobs": 0})
        assert answer.status_code == single.status_code == 200, (choice, answer.text)
        messages = [reply.json()["choices"][0]["message"] for reply in (answer, single)]
        for message in messages:
            for call in message.get("tool_calls") or ():
                call["id"] = ""
        assert messages[0] == messages[1], choice


def test_what_is_not_a_clients_to_say(pd: Stack) -> None:
    body = completion([1, 2, 3], kv_transfer_params={"do_remote_prefill": True})
    answer = HTTP.post(f"{pd.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "kv_transfer_params"


def test_bad_requests_are_refused_in_vllms_words(pd: Stack) -> None:
    for body in (
        completion(tokens(LIMIT + 1, seed=1)),
        completion(tokens(500, seed=2), max_tokens=LIMIT),
        {**completion([1]), "model": "unknown"},
        {**completion([1]), "temperature": "warm"},
    ):
        answer = HTTP.post(f"{pd.url}/v1/completions", json=body)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]


SECRET = "my hovercraft is full of eels"


def test_one_trace_through_both_engines(pd: Stack, collector: Collector) -> None:
    trace, parent = uuid.uuid4().hex, "b" * 16
    headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "traced"}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5}
    answer = HTTP.post(f"{pd.url}/v1/chat/completions", json=chat, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "traced")

    def of_it() -> list[Span]:
        return [span for span in collector.spans if span.trace == trace]

    collector.wait_for(lambda _: len(of_it()) == 4)
    (server,) = [span for span in of_it() if span.parent == parent]
    assert (server.name, server.kind) == ("POST /v1/chat/completions", "SERVER")
    assert server.attributes["gen_ai.usage.output_tokens"] == 5
    assert server.attributes["neuron_serve.request_id"] == "traced"
    below = {span.name: span for span in of_it() if span.parent == server.id}
    assert below.keys() == {"prefill", "llm_request"}
    leg, decode = below["prefill"], below["llm_request"]
    (prefill,) = [span for span in of_it() if span.parent == leg.id]
    assert prefill.name == "llm_request"
    for span, name in ((server, "decode"), (leg, "decode"), (decode, "decode")):
        assert span.resource["neuron_serve.deployment"] == name
    assert prefill.resource["neuron_serve.deployment"] == "prefill"
    assert prefill.attributes["gen_ai.usage.completion_tokens"] == 1
    assert {span.resource["service.name"] for span in of_it()} == {"neuron-serve"}
    assert {span.resource["neuron_serve.application"] for span in of_it()} == {"demo"}


def lines(pattern: str) -> Iterator[dict[str, Any]]:
    """The lines of JSON of some of the logs."""
    for file in (SESSION / "logs").glob(pattern):
        yield from (json.loads(line) for line in file.read_text().splitlines() if line[:1] == "{")


def test_what_is_told_of_a_request_and_what_never(pd: Stack, collector: Collector) -> None:
    url = f"{pd.url}/v1/chat/completions"
    chat = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 5}
    schema = {"name": "x", "schema": {"type": SECRET}}
    for more in (
        {},
        {"temperature": SECRET},
        {"messages": SECRET},
        {"messages": [{"role": "user", "content": SECRET * 500}]},
        {"messages": [{"role": "user", "content": [{"type": SECRET, "text": SECRET}]}]},
        {"response_format": {"type": "json_schema", "json_schema": schema}},
        {"tools": [{"type": "function", "function": {"name": SECRET, "parameters": SECRET}}]},
        {"model": "not-there"},
    ):
        HTTP.post(url, json={**chat, **more}, headers={"x-request-id": "told"})
    broken = json.dumps(chat)[:-1]
    headers = {"content-type": "application/json", "x-request-id": "told"}
    assert HTTP.post(url, content=broken, headers=headers).status_code == 400

    def accesses() -> list[dict[str, Any]]:
        told = lines("serve/replica_demo_decode_*.log")
        mine = [each for each in told if each.get("request_id") == "told"]
        return [each for each in mine if each["message"].startswith("POST ")]

    wait_until(lambda: len(accesses()) == 9, 20, accesses)
    good = re.compile(r"POST /v1/chat/completions 200 [\d.]+ms")
    (line,) = [each for each in accesses() if good.fullmatch(each["message"])]
    assert (line["application"], line["deployment"]) == ("demo", "demo_decode")
    assert line["replica"]
    # vLLM's own: in the replica with the request, in EngineCore with the replica.
    for engine in ("decode", "prefill"):
        (theirs,) = [
            each
            for each in lines(f"serve/replica_demo_{engine}_*.log")
            if "`not-there` does not exist" in each["message"]
        ]
        assert (theirs["request_id"], theirs["application"]) == ("told", "demo")
    cores = [each for each in lines("worker-*.out") if "EngineCore" in each.get("component", "")]
    assert {(each["application"], each["deployment"]) for each in cores} == {
        ("demo", "decode"),
        ("demo", "prefill"),
    }
    assert not [body for body in collector.bodies if SECRET.encode() in body]
    for file in (SESSION / "logs").rglob("*"):
        assert not (file.is_file() and SECRET.encode() in file.read_bytes()), file


def burst(
    pd: Stack, count: int, seed: int, meanwhile: Callable[[], Awaitable[None]]
) -> list[Answer]:
    """Requests while something breaks; what looks complete must be right."""
    bodies = [
        completion(tokens(100 + 7 * i, seed=seed + i), 40, stream=i % 2 == 0) for i in range(count)
    ]
    expected = alone(pd.url, bodies)
    answers = ask_all(pd.url, bodies, 16, meanwhile)
    for answer, text in zip(answers, expected, strict=True):
        assert answer.seconds < 60, answer
        assert answer.complete != answer.failed, answer
        if answer.complete:
            assert (answer.text, answer.finish) == (text, "length")
        else:
            assert not answer.done
    return answers


async def after(seconds: float, act: Callable[[], object]) -> None:
    await asyncio.sleep(seconds)
    act()


def test_a_frozen_prefill_engine_costs_a_deadline_and_no_answer(pd: Stack) -> None:
    before = fallbacks(pd)
    engine = engine_of(replicas(pd, "prefill")[0])

    async def freeze() -> None:
        await after(0.3, engine.suspend)
        await after(13, engine.resume)

    answers = burst(pd, 50, 2000, freeze)
    assert all(answer.complete for answer in answers), answers
    assert fallbacks(pd) > before


@pytest.mark.parametrize("victim", ["replica", "engine"])
def test_a_prefill_replica_killed_mid_way_costs_no_answer(pd: Stack, victim: str) -> None:
    replica = replicas(pd, "prefill")[0]
    process = replica if victim == "replica" else engine_of(replica)
    before = met()
    answers = burst(pd, 50, 3000, lambda: after(0.5, process.kill))
    assert all(answer.complete for answer in answers), answers
    whole_again(pd, before)


@pytest.mark.parametrize("victim", ["replica", "engine"])
def test_a_decode_replica_killed_mid_way_shows(pd: Stack, victim: str) -> None:
    """The streams that it had begun fail visibly; all others are answered, elsewhere."""
    replica = replicas(pd, "decode")[0]
    process = replica if victim == "replica" else engine_of(replica)
    before = met()
    answers = burst(pd, 50, 4000, lambda: after(0.7, process.kill))
    failed = [answer for answer in answers if answer.failed]
    assert len(failed) <= 8, failed  # the streamed half of what was under way
    assert all(answer.text for answer in failed), failed
    whole_again(pd, before)


def test_clients_that_leave_free_every_block(pd: Stack) -> None:
    """At every stage: in the prefill, between, in the transfer, in the generation."""

    async def leave() -> None:
        chosen = random.Random(5)
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(limits=limits, timeout=60, verify=False) as client:

            async def one(i: int) -> None:
                body = completion(tokens(600, seed=5000 + i), 200, stream=i % 2 == 0)
                post = client.post(f"{pd.url}/v1/completions", json=body)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(post, chosen.uniform(0.005, 0.6))

            for i in range(0, 64, 8):
                await asyncio.gather(*(one(i + j) for j in range(8)), return_exceptions=True)

    asyncio.run(leave())
    assert all(answer.complete for answer in burst(pd, 20, 6000, nothing))

    def free() -> bool:
        # A small request per engine: vLLM refreshes the figures when it works.
        ask_all(pd.url, [completion(tokens(3, seed=random.randrange(10**9)), 1)] * 8, 8)
        usage = scrape("ray_vllm_kv_cache_usage_perc")
        return {len(usage["prefill"]), len(usage["decode"])} == {2} and all(
            value == 0 for part in usage.values() for value in part.values()
        )

    wait_until(free, 90, lambda: scrape("ray_vllm_kv_cache_usage_perc"))


async def nothing() -> None: ...


def samples(pd: Stack, name: str) -> float:
    """A counter's sum over the decode replicas, asked at their own ports."""
    total = 0.0
    for replica in replicas(pd, "decode"):
        for connection in replica.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and 30000 <= connection.laddr.port < 31000:
                url = f"http://127.0.0.1:{connection.laddr.port}/metrics"
                for line in HTTP.get(url).text.splitlines():
                    if line.startswith((f"{name} ", f"{name}{{")):
                        total += float(line.rsplit(" ", 1)[1])
    return total


def transferred(pd: Stack) -> float:
    return samples(pd, "vllm:nixl_xfer_time_seconds_count")


def failures(pd: Stack) -> float:
    return samples(pd, "vllm:nixl_num_failed_transfers_total")


def fallbacks(pd: Stack) -> float:
    return samples(pd, "neuron_serve_pd_fallbacks_total")
