"""What a terminal shows: the warnings that a reader needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from serve_app.bench import llmperf
from serve_app.bench.load import Load, Run
from serve_app.bench.sweep import Point
from serve_app.bench.view import remarks, table
from tests.unit.test_bench_llmperf import GOOD, TOKENIZER, record


def point(load: Load, **more: object) -> Point:
    run = Run([record(GOOD)], begin=10.0, end=20.0, cpu_s=1.0, lags=[0.001] * 100)
    for name, value in more.items():
        setattr(run, name, value)
    requests = llmperf.individual(run, TOKENIZER)
    return Point(load, run, llmperf.summary("name", run, requests, {}), Path("file"))


ONE = Load(1, None, 1, 90.0)


@pytest.mark.parametrize(
    ("load", "more", "said"),
    [
        (ONE, {}, None),
        (ONE, {"cpu_s": 8.5}, "1 user: the load generator used 85% of a core"),
        (ONE, {"lags": [0.03] * 10}, "1 user: the load generator was up to 30 ms late (p99)"),
        (ONE, {"interrupted": True}, "1 user: interrupted"),
        (Load(4, None, 5, 90.0), {}, "4 users: 1 of 5 requests within 90 s -> --timeout"),
        (Load(None, 2.5, 5, 90.0), {}, "2.5 requests/s: 1 of 5 requests within 90 s"),
    ],
)
def test_remarks(load: Load, more: dict[str, object], said: str | None) -> None:
    told = list(remarks([point(load, **more)]))
    assert len(told) == (said is not None)
    assert said is None or told[0].startswith(said)


def test_the_table_fits_a_narrow_terminal() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table([point(ONE), point(Load(None, 1.0, 1, 9))]))
    lines = shown.get().splitlines()
    assert lines[0].split() == ["load", "req/s", "tok/s", "TTFT", "TPOT", "E2E", "failed", "CPU"]
    # Due at 10, first token at 11, last of three at 12.5, over at 13; 10 s in all.
    words = "c1 0.10 0.3 1000 / 1000 750 / 750 3000 / 3000 0 10%"
    assert lines[1].split() == words.split()
    assert lines[2].startswith("r1 ")
