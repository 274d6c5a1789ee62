#!/usr/bin/env python3
"""Prefill and decode apart (P/D): what our way of it costs, and when it is worth having.

    python scripts/bench_disaggregation.py --question overhead [--rounds 5] [--concurrency 1,8]
    python scripts/bench_disaggregation.py --question worth [--shapes 64:64,512:64,512:16,64:256]
    python scripts/bench_disaggregation.py --question worth --shapes none --burst --plot FILE.png

Needs the extras `pd` and, for --plot, `bench`. Every system is the demo model on the processor,
each engine with the arguments and the environment of our plans (configs/local-cpu-pd.yaml).

overhead: ours against two bare `vllm serve` engines behind the smallest proxy (bench_pd_proxy.py).
Both do the same work in the engines, so read the line "not an engine": CPU per request of all that
is not EngineCore. Ray also works when idle, per second and not per request; at a low rate that
shows in this line, and the line below leaves it out (measured over 5 s before the load). req/s
follows the CPU only as long as no core is idle. The bare engines get our remedy for NIXL's
polling thread, too; --stock-nixl measures them without it.

worth: P/D against two replicas of one engine, both ours: the same engines on the same cores, only
the roles differ. TTFT holds the prefill, the transfer and the first decode step; ITL says what
prompts do to streams under way. A difference counts when the medians differ by more than 10 % and
every round agrees; with --rounds 1 nothing tells a difference from noise. p99 of TTFT is nearly the
slowest request where a point has fewer than some hundred: raise --requests to rely on it. An ITL
p50 near 0 means that tokens arrive several at a time: too little CPU for the server, such as on a
machine that others use, and no fair comparison.

--burst: steady streams of short prompts, and bursts of long ones on top. Read ITL p99 and max in
bursts against those in quiet times: what P/D is for. It pays with TTFT and duration of the burst,
as half the engines prefill. A steady client whose stream ends in a burst waits there for its next
prefill and has no ITL meanwhile: "steady tokens/s in bursts" and "steady TTFT p99" count that, and
--burst-steady 64:900 makes it rare. When a burst lasts longer than --burst-every,
the next follows at once.

A request counts as failed when it has an error or too few tokens; figures are of the others. "Not
split" counts requests of ours that decode prefilled by itself: above 0 the comparison is not P/D.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml
from bench_burst import Burst, Trace, burst_load, plot
from bench_pd_report import report_burst, report_overhead, report_worth
from bench_systems import (
    ROOT,
    Command,
    Point,
    Running,
    Start,
    exact_load,
    free_port,
    idle_cores,
    measured,
    neuron_serve,
    numbers,
    running,
    vllm_serve,
    write_json,
)
from rich.console import Console

from serve_app.backends import engines_of
from serve_app.backends.transfer import NIXL_POLL_US
from serve_app.config import load
from serve_app.config.serve_file import DECODE, PREFILL
from serve_app.engine.child import PARENT_VARIABLE, logging_config
from serve_app.engine.side_channel import HOST, PORT

CONFIG = ROOT / "configs/local-cpu-pd.yaml"
PROXY = ROOT / "scripts/bench_pd_proxy.py"
MAX_MODEL_LEN = 1024
BURST_S = 1800

Shape = tuple[int, int]
SHAPES = {"overhead": "64:64", "worth": "64:64,512:64,512:16,64:256"}

GROUPS = {
    "engines": ("engine",),
    "API servers or replicas": ("API server", "replica", "router"),
    "proxy or HAProxy": ("proxy", "HAProxy", "HAProxy manager", "Python proxy"),
    "the rest": ("rest of Ray",),
}


def bare(stock_nixl: bool) -> Start:
    """A prefill and a decode engine of `vllm serve` behind the smallest proxy."""

    def start(directory: Path, port: int) -> list[Command]:
        # The log handler of our replicas: it lets NIXL sleep in EngineCore, the child of the
        # process that the variable names. It reports to a file that is not there.
        config = directory / "logging.json"
        config.write_text(json.dumps(logging_config(directory / "nowhere/events.jsonl")))
        commands, urls = [], {}
        for engine in engines_of(load(CONFIG)):
            http = free_port()
            env = {HOST: "127.0.0.1", PORT: str(free_port())}
            if not stock_nixl:
                env["VLLM_LOGGING_CONFIG_PATH"] = str(config)
            command = vllm_serve(engine.args, http, env)
            assert NIXL_POLL_US in command.env
            script = f'export {PARENT_VARIABLE}=$$; exec "$@"'
            commands.append(
                Command(["sh", "-c", script, "sh", *command.words], command.env, command.role)
            )
            urls[engine.deployment] = f"http://127.0.0.1:{http}"
        proxy = [sys.executable, str(PROXY), str(port), urls[PREFILL], urls[DECODE]]
        return [*commands, Command(proxy, {}, "proxy")]

    return start


def ours(replicas: int | None = None) -> Start:
    """Our P/D; with `replicas` so many of the same engine that do both instead."""
    config = yaml.safe_load(CONFIG.read_text())
    if replicas is not None:
        args = config["applications"][0]["args"]
        del args["prefill"]
        args["scaling"] = {"num_replicas": replicas}
    return neuron_serve(config)


def systems(options: argparse.Namespace) -> dict[str, Start]:
    """The yardstick first."""
    if options.question == "worth":
        return {"2 replicas": ours(2), "1P1D": ours()}
    return {"bare + proxy": bare(options.stock_nixl), "ours": ours()}


def measure(
    port: int, system: Running, shape: Shape, concurrency: int, requests: int, seed: str
) -> Point:
    """One point: the client's figures, CPU milliseconds per request, what went wrong."""
    client = exact_load(port, shape, concurrency, requests, seed)
    before = not_split(port)
    point, result = measured(system, requests, client)
    for group, roles in GROUPS.items():
        point[f"CPU: {group}"] = sum(point.pop(f"CPU {name}", 0.0) for name in roles)
    point["CPU: not an engine"] = sum(point[f"CPU: {group}"] for group in list(GROUPS)[1:])
    point["duration s"] = result["duration"]
    point["requests"] = requests
    pairs = zip(result["input_lens"], result["output_lens"], strict=True)
    point["failed requests"] = sum(pair != shape for pair in pairs)
    point["not split"] = not_split(port) - before
    return point


def not_split(port: int) -> float:
    """Requests so far that our decode replica served alone; 0 for the other systems."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
    names = ("neuron_serve_pd_whole_total", "neuron_serve_pd_fallbacks_total")
    lines = answer.text.splitlines() if answer.is_success else []
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def measure_system(
    options: argparse.Namespace, port: int, system: Running, round_: int, console: Console
) -> dict[str, Point]:
    """Every shape at every concurrency, with the same prompts for every system of a round."""
    most = max(options.concurrency)
    for shape in options.shapes:
        measure(port, system, shape, most, 2 * most, f"warm-up {round_} {shape}")
    idle = idle_cores(system)
    idle_engines = idle.pop("engine", 0.0)
    idle_others = sum(idle.values())
    points = {}
    for shape in options.shapes:
        for concurrency in options.concurrency:
            label = f"{shape[0]}:{shape[1]} c={concurrency}"
            requests = options.requests or max(60, 20 * concurrency)
            point = measure(port, system, shape, concurrency, requests, f"{round_} {label}")
            idle_ms = idle_others * point["duration s"] * 1000 / requests
            point["CPU: not an engine, less idle"] = point["CPU: not an engine"] - idle_ms
            point["before the load: engines, cores"] = idle_engines
            point["before the load: others, cores"] = idle_others
            points[label] = point
            console.print(
                f"  {label}: {point['req/s']:.2f} req/s, TTFT p50 {point['TTFT p50 ms']:.1f} ms, "
                f"ITL p99 {point['ITL p99 ms']:.1f} ms, "
                f"not an engine {point['CPU: not an engine']:.1f} ms CPU per request, "
                f"{point['failed requests']:.0f} of {requests} failed"
            )
    return points


Points = dict[str, dict[str, list[Point]]]
Traces = dict[str, list[Trace]]


def measure_all(options: argparse.Namespace, console: Console) -> tuple[Points, Traces]:
    chosen = systems(options)
    points: Points = {name: {} for name in chosen}
    traces: Traces = {name: [] for name in chosen}
    for number in range(options.rounds):
        # The order turns round, so that a machine that slows down favours nobody.
        for name in list(chosen)[:: -1 if number % 2 else 1]:
            console.print(f"round {number + 1}: {name}: starting")
            port = free_port()
            with (
                tempfile.TemporaryDirectory() as directory,
                running(chosen[name], Path(directory), port) as system,
            ):
                if options.shapes:
                    found = measure_system(options, port, system, number, console)
                    for label, point in found.items():
                        points[name].setdefault(label, []).append(point)
                if options.burst:
                    load_ = burst_load(port, burst(options), f"burst {number}")
                    trace = asyncio.run(asyncio.wait_for(load_, BURST_S))
                    traces[name].append(trace)
                    console.print(
                        f"  burst: {len(trace.gaps)} gaps, "
                        f"{trace.failed} of {trace.requests} requests failed"
                    )
    return points, traces


def burst(options: argparse.Namespace) -> Burst:
    return Burst(
        clients=options.burst_clients,
        steady=options.burst_steady,
        size=options.burst_size,
        long=options.burst_long,
        every_s=options.burst_every,
        bursts=options.bursts,
    )


def shape(text: str) -> Shape:
    """`512:64` is 512 tokens in and 64 out."""
    prompt, output = (int(part) for part in text.split(":"))
    if prompt < 1 or output < 2 or prompt + output > MAX_MODEL_LEN:
        raise argparse.ArgumentTypeError(f"{text}: 1 in and 2 out at least, {MAX_MODEL_LEN} in all")
    return prompt, output


def shapes(text: str) -> list[Shape]:
    return [] if text == "none" else [shape(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--question", choices=tuple(SHAPES), required=True)
    add("--rounds", type=int, default=3)
    add("--concurrency", type=numbers, default=[1, 8], metavar="N,N")
    add("--requests", type=int, help="per point; default: 20 x concurrency, and 60 at least")
    add("--shapes", metavar="IN:OUT,...", help="tokens; default by question; `none`: only --burst")
    add("--stock-nixl", action="store_true", help="bare engines with NIXL's thread as it is")
    add("--burst", action="store_true", help="worth: also steady streams with bursts on top")
    add("--burst-clients", type=int, default=4, metavar="N")
    add("--burst-steady", type=shape, default=(64, 200), metavar="IN:OUT")
    add("--burst-size", type=int, default=8, metavar="N", help="long prompts at a time")
    add("--burst-long", type=shape, default=(900, 8), metavar="IN:OUT")
    add("--burst-every", type=float, default=6.0, metavar="SECONDS")
    add("--bursts", type=int, default=6, metavar="N")
    add("--plot", type=Path, metavar="FILE.png", help="ITL over time of the first round's bursts")
    add("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    options.shapes = shapes(options.shapes or SHAPES[options.question])
    if options.burst and options.question != "worth":
        parser.error("--burst belongs to --question worth")
    if options.plot and not options.burst:
        parser.error("--plot draws what --burst measures")
    if not options.shapes and not options.burst:
        parser.error("--shapes none leaves nothing to measure without --burst")
    if options.stock_nixl and options.question != "overhead":
        parser.error("--stock-nixl is about the bare engines of --question overhead")
    return options


def main() -> int:
    options = arguments()
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140
    points, traces = measure_all(options, console)
    summary: dict[str, Any] = {}
    if options.shapes:
        report = report_overhead if options.question == "overhead" else report_worth
        summary["medians"] = report(points, console)
    if options.burst:
        summary["burst"] = report_burst(traces, console)
        if options.plot:
            plot({name: rounds[0] for name, rounds in traces.items()}, options.plot)
            console.print(f"plot: {options.plot}")
    if options.json:
        asked = {name: str(value) for name, value in vars(options).items()}
        raw = {name: [trace.data() for trace in rounds] for name, rounds in traces.items()}
        write_json(options.json, options=asked, **summary, rounds=points, burst_rounds=raw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
