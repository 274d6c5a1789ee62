"""The load generator on real sockets: what it measures, what goes wrong, how much it takes."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import uvloop

from serve_app.bench import llmperf
from serve_app.bench.load import Load, Run, Sender, arrivals, measure, warm_up
from serve_app.bench.prompts import Listed, Prompt
from serve_app.bench.tokens import find
from serve_app.bench.wire import Client
from tests.unit import no_compute_server as fake

MODEL = "neuron-serve/demo"
TOKENIZER = find(None, MODEL, None)[0]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake.no_compute_server() as made:
        yield made


def prompts(tokens: int = 5) -> Listed:
    return Listed([Prompt([{"role": "user", "content": "some words"}], tokens)])


def put(
    url: str,
    do: dict[str, Any],
    *,
    users: int | None = 1,
    rate: float | None = None,
    n: int = 1,
    tokens: int = 5,
    model: str = MODEL,
    key: str | None = None,
    silence_s: float = 20.0,
    timeout_s: float = 60.0,
    warm: int = 0,
) -> Run:
    """The load on an endpoint whose requests say in `do` what it shall do."""

    async def load() -> Run:
        client = Client(f"{url}/v1/chat/completions", key, silence_s)
        sender = Sender(client, model, False, {"do": do})
        with closing(client):
            await warm_up(sender, prompts(tokens), warm, users or 1)
            asked = Load(users, rate, n, timeout_s)
            return await measure(sender, asked, prompts(tokens), "seed", lambda run: None)

    return uvloop.run(load())


def requests_of(run: Run) -> list[dict[str, Any]]:
    return llmperf.individual(run, TOKENIZER)


def test_known_delays_are_measured(url: str) -> None:
    run = put(url, {"first_s": 0.2, "gap_s": 0.05}, users=3, n=9, tokens=11, warm=3)
    found = requests_of(run)
    assert [r["error_code"] for r in found] == [None] * 9
    # The machine may be late now and then, the median not.
    assert statistics.median(r["ttft_s"] for r in found) == pytest.approx(0.2, abs=0.02)
    tpot = statistics.median(r["time_per_output_token_s"] for r in found)
    assert tpot == pytest.approx(0.05, rel=0.05)
    e2e = statistics.median(r["end_to_end_latency_s"] for r in found)
    assert e2e == pytest.approx(0.7, rel=0.05)
    gaps = [gap for record in run.records for gap in llmperf.gaps(record)]
    assert len(gaps) == 90
    assert statistics.median(gaps) == pytest.approx(0.05, rel=0.05)
    for r in found:
        assert r["number_output_tokens"] == r["requested_output_tokens"] == 11
        assert r["number_total_tokens"] == 11 + r["number_input_tokens"]
        assert r["inter_token_latency_s"] == pytest.approx(
            (r["ttft_s"] + 10 * r["time_per_output_token_s"]) / 11
        )
        throughput = r["request_output_throughput_token_per_s"]
        assert throughput == pytest.approx(11 / r["end_to_end_latency_s"])
        assert r["finish_reason"] == "length"
    # 3 users x 3 requests of 0.7 s each.
    assert run.duration_s == pytest.approx(2.1, rel=0.1)


def test_a_token_counts_from_its_last_byte_not_from_its_packet(url: str) -> None:
    """Several events in one packet: no time between them, all of them counted."""
    run = put(url, {"packed": True}, tokens=50)
    (record,) = run.records
    assert len(record.answer.times) == 50
    assert record.answer.text == " token" * 50
    assert max(llmperf.gaps(record)) < 0.05


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_cut_anywhere(url: str, size: int, end: str) -> None:
    """In the middle of a character, of an event, of a line end; comments in between."""
    said = [": ping\n\n", *(fake.delta(content=word).decode() for word in ("Größe ", "日本", "🙂"))]
    data = "".join(said) + fake.delta("stop").decode() + fake.usage(3, 4).decode()
    data = (data + fake.DONE.decode()).replace("\n", end)
    run = put(url, {"hex": data.encode().hex(), "bytes": size})
    (record,) = run.records
    assert record.answer.error is None
    assert record.answer.text == "Größe 日本🙂"
    assert (len(record.answer.times), record.answer.completion_tokens) == (3, 4)
    assert record.answer.finish_reason == "stop"


def test_thoughts_and_calls_are_tokens_too(url: str) -> None:
    call = [{"index": 0, "function": {"name": "f", "arguments": '{"a"'}}]
    choices: list[dict[str, Any]] = [
        {"delta": {"reasoning_content": "hm "}},
        {"delta": {"reasoning": "well "}},
        {"delta": {"tool_calls": call}, "finish_reason": "tool_calls"},
    ]
    data = b"".join(fake.event([choice]) for choice in choices) + fake.DONE
    (record,) = put(url, {"hex": data.hex(), "bytes": 1000}).records
    assert record.answer.text == 'hm well f{"a"'
    (made,) = llmperf.individual(Run([record], begin=record.scheduled), TOKENIZER)
    # No usage came, so the tokenizer counts.
    assert made["number_output_tokens"] == made["retokenized_output_tokens"] > 0
    assert made["output_tokens_counted_by"] == "tokenizer"


@pytest.mark.parametrize(
    ("do", "code", "said"),
    [
        ({"status": 500}, 500, "upset"),
        ({"status": 429, "text": '{"error": {"message": "slow down"}}'}, 429, "slow down"),
        ({"status": 503, "text": "\u0000 not json"}, 503, "not json"),
        ({"key": "right"}, 401, "no such key"),
        ({"gone": True}, "cut-off", "before an answer"),
        ({"dies_after": 2, "gap_s": 0.01}, "cut-off", "within it"),
        ({"whole": "no-finish"}, "cut-off", "without finish_reason"),
        ({"whole": "zero"}, "no-tokens", "stop"),
        ({"whole": "error-event"}, 500, "engine died"),
        ({"whole": "broken-event"}, "bad-event", "not json"),
        ({"whole": "not-ours"}, "bad-event", "Expected"),
        ({"garbage": True}, "not-http", ""),
        ({"hang": True}, "silent", "no byte for 0.4 s"),
        ({"first_s": 5}, "silent", "no byte for 0.4 s"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_counted_and_named(
    url: str, do: dict[str, Any], code: str | int, said: str
) -> None:
    run = put(url, do, users=2, n=3, key="wrong", silence_s=0.4 if code == "silent" else 20)
    found = requests_of(run)
    assert [r["error_code"] for r in found] == [code] * 3
    assert all(said in r["error_msg"] for r in found), found[0]["error_msg"]
    summary = llmperf.summary("name", run, found, {})
    assert summary["results_error_code_frequency"] == str({code: 3})
    assert (summary["results_error_rate"], summary["results_number_errors"]) == (1, 3)
    assert summary["results_num_completed_requests"] == 0
    json.dumps([summary, found], allow_nan=False)


def test_a_key_is_sent_and_a_wrong_model_is_named(url: str) -> None:
    (record,) = put(url, {"key": "right"}, key="right").records
    assert record.answer.error is None
    (record,) = put(url, {}, model="none").records
    assert record.answer.error == (404, "The model `none` does not exist.")


def test_an_endpoint_that_ends_in_the_middle() -> None:
    with fake.server_process() as (url, process):
        threading.Timer(0.5, process.kill).start()
        run = put(url, {"gap_s": 0.1}, users=2, n=6, tokens=30)
    codes = [record.answer.error and record.answer.error[0] for record in run.records]
    assert codes[:2] == ["cut-off"] * 2
    # While a process ends, its socket may still take connections.
    assert set(codes[2:]) <= {"unreachable", "cut-off"}
    assert len(codes) == 6
    # What came before is kept.
    assert 2 <= len(run.records[0].answer.times) <= 6


def test_open_loop_counts_the_wait_that_a_slow_server_makes(url: str) -> None:
    """One at a time, 0.1 s each, asked 20 times a second: the queue grows, and so do latencies."""
    run = put(url, {"serial_s": 0.1}, users=None, rate=20, n=20)
    found = requests_of(run)
    assert [r["error_code"] for r in found] == [None] * 20
    assert run.duration_s == pytest.approx(2.0, abs=0.5)
    due = list(arrivals(20, 20, "seed"))
    assert [r["scheduled_s"] for r in found] == pytest.approx(due)
    free = 0.0
    for r, at in zip(found, due, strict=True):
        free = max(free, at) + 0.1
        assert r["end_to_end_latency_s"] == pytest.approx(free - at, abs=0.15)
    # A closed loop asks the same server as fast as it can, and sees no queue.
    closed = put(url, {"serial_s": 0.1}, users=1, n=5)
    assert max(r["ttft_s"] for r in requests_of(closed)) < found[-1]["ttft_s"] / 2


def test_open_loop_counts_what_the_load_generator_is_late_by(url: str) -> None:
    """Coordinated omission: the loop stands still, requests fall due, their clocks run."""

    async def load() -> Run:
        client = Client(f"{url}/v1/chat/completions")
        sender = Sender(client, MODEL, False, {})
        with closing(client):
            asyncio.get_running_loop().call_later(0.1, time.sleep, 0.5)
            asked = Load(None, 50.0, 50, 60)
            return await measure(sender, asked, prompts(), "seed", lambda run: None)

    run = uvloop.run(load())
    found = requests_of(run)
    late = [r for r in found if 0.12 < r["scheduled_s"] < 0.55]
    assert len(late) > 10
    for r in late:
        assert r["ttft_s"] > 0.6 - r["scheduled_s"] - 0.02
        assert r["started_s"] > 0.58
    assert max(run.lags) > 0.3


def test_poisson_arrivals() -> None:
    due = list(arrivals(5.0, 4000, "a"))
    gaps = [b - a for a, b in zip([0.0, *due], due, strict=False)]
    # Mean and stddev of an exponential distribution are the same; 4000 draws: within 5 %.
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08)
    assert due == list(arrivals(5.0, 4000, "a")) != list(arrivals(5.0, 4000, "b"))


def test_a_closed_loop_has_so_many_under_way_and_so_many_in_all(url: str) -> None:
    run = put(url, {"first_s": 0.1}, users=4, n=10)
    moments = [(r.started, 1) for r in run.records] + [(r.ended, -1) for r in run.records]
    under_way, most = 0, 0
    for _, change in sorted(moments):
        under_way += change
        most = max(most, under_way)
    assert (most, len(run.records)) == (4, 10)


def test_no_request_begins_after_the_timeout(url: str) -> None:
    run = put(url, {"first_s": 0.2}, users=2, n=100, timeout_s=0.5)
    assert len(run.records) == 6
    assert all(record.answer.error is None for record in run.records)
    run = put(url, {}, users=None, rate=20, n=100, timeout_s=0.5)
    assert len(run.records) == sum(at < 0.5 for at in arrivals(20, 100, "seed"))


def test_connections_are_used_again() -> None:
    """Also after answers that failed; not after those that broke off."""
    seen: list[Any] = []

    class Watched(Client):
        async def _connection(self) -> Any:
            seen.append(await super()._connection())
            return seen[-1]

    async def load(url: str) -> None:
        client = Watched(f"{url}/v1/chat/completions")
        with closing(client):
            for do in ({}, {"status": 500}, {}, {"dies_after": 1, "gap_s": 0.01}, {}):
                await Sender(client, MODEL, False, {"do": do}).send(next_prompt)

    next_prompt = prompts().take()
    with fake.no_compute_server() as url:
        uvloop.run(load(url))
    assert len(set(seen[:4])) == 1
    assert seen[4] is not seen[3]


def test_the_load_generator_takes_little(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By processor time, so that a busy machine does not fail it. The real figure, of 2,000
    streams and an idle machine, stands in docs/benchmarks.md."""
    run = put(url, {"gap_s": 0.02, "first_s": 0.02}, users=300, n=300, tokens=100)
    tokens = sum(len(record.answer.times) for record in run.records)
    assert tokens == 30_000
    with capsys.disabled():
        print(f"\nload generator: {tokens / run.cpu_s:,.0f} tokens/s per core")
    assert tokens / run.cpu_s > 15_000
