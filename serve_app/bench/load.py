"""Load on an endpoint: closed loop or open loop, and what the load generator took itself.

Closed loop: N users, each sends its next request when its last one has ended. A slow server is
asked less often, so the latencies hold no queue that other users would have made: coordinated
omission belongs to the method.

Open loop: requests are due at times drawn before (Poisson), however slow the server is. Latencies
count from the time when a request was due, so what the load generator is late by is in them, too.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter, process_time, time
from typing import Any

from serve_app.bench.answers import Answer, read
from serve_app.bench.prompts import Prompt, Source
from serve_app.bench.wire import Client

_TICK_S = 0.05


@dataclass(frozen=True)
class Load:
    """One point of a sweep: `concurrency` users, or `rate` requests per second."""

    concurrency: int | None
    rate: float | None
    requests: int
    timeout_s: float
    """No request begins later; those under way are waited for."""

    @property
    def label(self) -> str:
        return f"r{self.rate:g}" if self.rate is not None else f"c{self.concurrency}"


@dataclass(slots=True)
class Record:
    """One request; times are those of `time.perf_counter`."""

    prompt: Prompt
    scheduled: float
    """When it was due. In a closed loop: when it was sent."""
    started: float
    ended: float
    answer: Answer


@dataclass
class Run:
    """What came of a load."""

    records: list[Record] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    unix_s: float = 0.0
    cpu_s: float = 0.0
    """Processor time of this process."""
    lags: list[float] = field(default_factory=list)
    """How late the event loop was, each 50 ms."""
    interrupted: bool = False

    @property
    def duration_s(self) -> float:
        return max(self.end - self.begin, 1e-9)

    @property
    def cpu_share(self) -> float:
        """Of one core, which is all that one event loop can use."""
        return self.cpu_s / self.duration_s


@dataclass(frozen=True)
class Sender:
    """Sends prompts to an endpoint, as streamed chat completions."""

    client: Client
    model: str
    exact: bool
    """Whether the server takes vLLM's ignore_eos and min_tokens."""
    extra: dict[str, Any]
    """Further keys of every request."""

    def body(self, prompt: Prompt) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": prompt.messages,
            "max_tokens": prompt.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.exact:
            body |= {"ignore_eos": True, "min_tokens": prompt.output_tokens}
        return json.dumps(body | self.extra).encode()

    async def send(self, prompt: Prompt, scheduled: float | None = None) -> Record:
        body = self.body(prompt)
        exchange = await self.client.post(body)
        due = exchange.started if scheduled is None else scheduled
        return Record(prompt, due, exchange.started, exchange.ended, read(exchange))


def arrivals(rate: float, n: int, seed: str) -> Iterator[float]:
    """When each of `n` requests is due, s: a Poisson process."""
    draw, at = random.Random(seed), 0.0
    for _ in range(n):
        at += draw.expovariate(rate)
        yield at


async def warm_up(sender: Sender, source: Source, n: int, at_once: int) -> None:
    """Requests that are not counted, `at_once` at a time."""
    left = iter(range(n))

    async def user() -> None:
        for _ in left:
            await sender.send(source.take())

    await _with_watch(sender, [user() for _ in range(min(n, at_once))])


async def measure(
    sender: Sender, load: Load, source: Source, seed: str, tell: Callable[[Run], None]
) -> Run:
    """The load, from its first request to the end of its last.

    `tell` gets the run as it grows, twice a second. Cancelled (Ctrl-C), it returns what is done.
    """
    run = Run()

    async def one(prompt: Prompt, due: float | None = None) -> None:
        record = await sender.send(prompt, due)
        run.records.append(record)
        source.answered(prompt, "" if record.answer.error else record.answer.text)

    async def user(left: Iterator[int]) -> None:
        for _ in left:
            if perf_counter() - run.begin >= load.timeout_s:
                return
            await one(source.take())

    async def crowd() -> None:
        sent = []
        for at in arrivals(load.rate or 1.0, load.requests, seed):
            if at >= load.timeout_s:
                break
            await asyncio.sleep(max(0.0, run.begin + at - perf_counter()))
            sent.append(asyncio.create_task(one(source.take(), run.begin + at)))
        await _all(sent)

    left = iter(range(load.requests))
    loads = [crowd()] if load.rate else [user(left) for _ in range(load.concurrency or 1)]
    run.unix_s, run.begin, cpu = time(), perf_counter(), process_time()
    ticker = asyncio.create_task(_tick(run, tell))
    try:
        await _with_watch(sender, loads)
    except asyncio.CancelledError:
        run.interrupted = True
        if task := asyncio.current_task():
            task.uncancel()
    finally:
        run.end, run.cpu_s = perf_counter(), process_time() - cpu
        ticker.cancel()
    if not run.interrupted:
        run.end = max((record.ended for record in run.records), default=run.end)
    tell(run)
    return run


async def _tick(run: Run, tell: Callable[[Run], None]) -> None:
    told = due = perf_counter()
    while True:
        due += _TICK_S
        await asyncio.sleep(max(0.0, due - perf_counter()))
        now = perf_counter()
        run.lags.append(now - due)
        if now - told >= 0.5:
            told = now
            tell(run)
        due = max(due, now - _TICK_S)


async def _with_watch(sender: Sender, loads: list[Any]) -> None:
    watch = asyncio.create_task(sender.client.watch())
    try:
        await _all([asyncio.create_task(each) for each in loads])
    finally:
        watch.cancel()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Waits for the tasks; none outlives it."""
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
