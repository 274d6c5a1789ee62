"""The load of `bench_disaggregation.py --burst`: steady streams, and bursts of long prompts.

Each of a few clients streams one short request after the other. Every few seconds a burst of long
prompts arrives on top. What counts is the time between the tokens of the steady streams.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
from bench_systems import MODEL, Point, random_prompt

QUIET_S = 5.0
REQUEST_S = 300.0


@dataclass(frozen=True)
class Burst:
    """What is sent. Shapes are prompt and output tokens; times are seconds."""

    clients: int
    steady: tuple[int, int]
    size: int
    long: tuple[int, int]
    every_s: float
    bursts: int


@dataclass
class Trace:
    """What came: the gaps between tokens of the steady streams, and when bursts were under way."""

    gaps: list[tuple[float, float]]
    """When a token came, seconds from the start, and seconds since the one before."""
    bursts: list[tuple[float, float]]
    """From a burst's first request to the end of its last."""
    burst_ttfts: list[float]
    steady_ttfts: list[float]
    requests: int
    failed: int
    errors: list[str]

    def figures(self) -> Point:
        """Milliseconds, in quiet times and while a burst is under way."""
        in_burst: list[float] = []
        quiet: list[float] = []
        for end, gap in self.gaps:
            touched = any(end > a and end - gap < b for a, b in self.bursts)
            (in_burst if touched else quiet).append(gap)
        point: Point = {}
        for name, gaps in (("quiet", quiet), ("in bursts", in_burst)):
            point[f"ITL p50 ms, {name}"] = _percentile(gaps, 50)
            point[f"ITL p99 ms, {name}"] = _percentile(gaps, 99)
            point[f"ITL max ms, {name}"] = _percentile(gaps, 100)
        point["steady tokens/s in bursts"] = len(in_burst) / max(
            sum(b - a for a, b in self.bursts), 1e-9
        )
        point["steady TTFT p99 ms"] = _percentile(self.steady_ttfts, 99)
        point["burst TTFT p50 ms"] = _percentile(self.burst_ttfts, 50)
        point["burst TTFT p99 ms"] = _percentile(self.burst_ttfts, 99)
        point["burst lasts s"] = float(numpy.mean([b - a for a, b in self.bursts]))
        point["requests"], point["failed requests"] = self.requests, self.failed
        return point

    def data(self) -> dict[str, Any]:
        return asdict(self)


def _percentile(seconds: list[float], percent: float) -> float:
    return float(numpy.percentile(seconds, percent)) * 1000 if seconds else 0.0


async def burst_load(port: int, plan: Burst, seed: str) -> Trace:
    """Quiet, then `plan.bursts` bursts, each `every_s` after the last began, then quiet."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import (
        RequestFuncInput,
        RequestFuncOutput,
        async_request_openai_completions,
    )

    rng = random.Random(seed)
    trace = Trace([], [], [], [], 0, 0, [])
    begin = time.perf_counter()
    over = asyncio.Event()

    async def ask(shape: tuple[int, int]) -> RequestFuncOutput | None:
        prompt, output = shape
        trace.requests += 1
        answer = await async_request_openai_completions(
            RequestFuncInput(
                prompt=random_prompt(rng, prompt),
                api_url=f"http://127.0.0.1:{port}/v1/completions",
                prompt_len=prompt,
                output_len=output,
                model=MODEL,
                ignore_eos=True,
                extra_body={"temperature": 0.0},
            ),
            session,
        )
        if answer.success and answer.output_tokens == output:
            return answer
        trace.failed += 1
        trace.errors.append(answer.error or f"{answer.output_tokens} of {output} tokens")
        await asyncio.sleep(0.2)  # what refuses at once is not asked without end
        return None

    async def client() -> None:
        while not over.is_set():
            if answer := await ask(plan.steady):
                trace.steady_ttfts.append(answer.ttft)
                at = answer.start_time - begin + answer.ttft
                ends = itertools.accumulate(answer.itl, initial=at)
                trace.gaps += zip(itertools.islice(ends, 1, None), answer.itl, strict=True)

    async def burst() -> None:
        start = time.perf_counter()
        answers = await asyncio.gather(*(ask(plan.long) for _ in range(plan.size)))
        trace.bursts.append((start - begin, time.perf_counter() - begin))
        trace.burst_ttfts += [answer.ttft for answer in answers if answer]

    timeout = aiohttp.ClientTimeout(total=REQUEST_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients = [asyncio.create_task(client()) for _ in range(plan.clients)]
        await asyncio.sleep(QUIET_S)
        for _ in range(plan.bursts):
            again = time.perf_counter() + plan.every_s
            await burst()
            await asyncio.sleep(max(0.0, again - time.perf_counter()))
        over.set()
        await asyncio.gather(*clients)
    trace.gaps.sort()
    return trace


def plot(traces: dict[str, Trace], file: Path) -> None:
    """ITL of the steady streams over time, one panel per system; bursts are shaded.

    Below 0.5 ms nothing is drawn: tokens that arrived together.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(traces), 1, figsize=(10, 3 * len(traces)), sharex=True, sharey=True, squeeze=False
    )
    for axes, (name, trace) in zip(panels[:, 0], traces.items(), strict=True):
        for number, (start, end) in enumerate(trace.bursts):
            label = "burst of long prompts" if number == 0 else None
            axes.axvspan(start, end, color="tab:orange", alpha=0.25, lw=0, label=label)
        times, gaps = zip(*trace.gaps, strict=True) if trace.gaps else ((), ())
        label = "steady streams"
        axes.plot(times, [gap * 1000 for gap in gaps], ".", ms=2, color="tab:blue", label=label)
        failed = f", {trace.failed} of {trace.requests} requests failed" if trace.failed else ""
        axes.set(title=name + failed, ylabel="ITL, ms", yscale="log")
        axes.set_ylim(bottom=0.5)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize="small")
    panels[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
