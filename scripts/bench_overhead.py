#!/usr/bin/env python3
"""What Ray Serve costs: the same model and arguments behind bare `vllm serve` and behind ours.

Each round starts every system in turn, warms it, and sends requests with the client of
`vllm bench serve`, streamed, 64 tokens in and 64 out. Wall-clock figures are noisy on a shared
machine; CPU time per request, read from /proc, is not.

    python scripts/bench_overhead.py [--rounds 3] [--concurrency 1,8,32] [--json FILE]
    python scripts/bench_overhead.py --systems bare,ours,ours-x4
    python scripts/bench_overhead.py --systems bare,ours,ray-llm,ray-llm-direct

The last needs what `ray[llm]` adds: pip install pyarrow pandas jsonref async-timeout typer ninja
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from serve_app.backends import BACKENDS, this_machine
from serve_app.cli.run import data_plane_environment
from serve_app.config import load

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/local-cpu.yaml"
MODEL = "neuron-serve/demo"
WEIGHTS = ROOT / "serve_app/demo_model"
TOKENS = 64
START_S = 300
# Ours has ten times bare's processes: sampling often would cost it more.
SAMPLE_S = 0.5
BIN = Path(sys.executable).parent

# The process that speaks HTTP, and what stands before it. Engines cost the same everywhere.
SERVING_LAYER = ("API server", "replica", "router", "HAProxy", "HAProxy manager", "Python proxy")


@dataclass
class System:
    """How to start one way of serving: its command line, environment and port."""

    command: Callable[[Path, int], list[str]]
    env: dict[str, str] = field(default_factory=dict)


def plan_command(port: int) -> tuple[list[str], dict[str, str]]:
    """The `vllm serve` line that our replica runs, and its environment."""
    ((_, app),) = load(CONFIG).applications()
    plan = BACKENDS[app.args.backend].plan(app.args, this_machine())
    command = plan.command(str(WEIGHTS), app.args.model.id)
    return [*command, "--host=127.0.0.1", f"--port={port}"], dict(plan.env)


def bare(directory: Path, port: int) -> list[str]:
    command, env = plan_command(port)
    return ["env", *(f"{name}={value}" for name, value in env.items()), *command]


def ours(replicas: int) -> Callable[[Path, int], list[str]]:
    def command(directory: Path, port: int) -> list[str]:
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"]["port"] = port
        args = config["applications"][0]["args"]
        if replicas > 1:
            args["scaling"] = {"num_replicas": replicas}
            args["resources"] = {"num_cpus": 0.1, "kv_cache_gib": 1}
        file = directory / "ours.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["neuron-serve", "run", str(file)]

    return command


def ray_llm(direct: bool) -> Callable[[Path, int], list[str]]:
    """The same engine arguments for `ray.serve.llm`; its replica wants whole CPUs."""

    def command(directory: Path, port: int) -> list[str]:
        file = directory / "ray-llm.yaml"
        file.write_text(yaml.safe_dump(ray_llm_config(port, direct)))
        return ["serve", "run", str(file)]

    return command


def ray_llm_config(port: int, direct: bool) -> dict[str, Any]:
    ((_, app),) = load(CONFIG).applications()
    plan = BACKENDS[app.args.backend].plan(app.args, this_machine())
    llm = {
        "model_loading_config": {
            "model_id": MODEL,
            "model_source": str(WEIGHTS),
        },
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": {**plan.engine_args},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
        "runtime_env": {"env_vars": dict(plan.env)},
    }
    args: dict[str, Any] = {"llm_configs": [llm]}
    if not direct:  # there the server is the ingress
        args["ingress_deployment_config"] = {
            "ray_actor_options": {"num_cpus": 0.1},
            "num_replicas": 1,
            "max_ongoing_requests": 256,
        }
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "llm",
                "route_prefix": "/",
                "import_path": "ray.serve.llm:build_openai_app",
                "args": args,
            }
        ],
    }


NICENESS = {"RAY_worker_niceness": "0"}
SYSTEMS = {
    "bare": System(bare),
    "ours": System(ours(1)),
    "ours-x4": System(ours(4)),
    "ray-llm": System(ray_llm(direct=False), NICENESS),
    "ray-llm-direct": System(
        ray_llm(direct=True),
        {**data_plane_environment(), "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"},
    ),
}


@contextlib.contextmanager
def running(system: System, directory: Path, port: int) -> Iterator[psutil.Process]:
    """The system, from its start until nothing of it is left."""
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            system.command(directory, port),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **system.env, "PATH": f"{BIN}:{os.environ['PATH']}"},
            start_new_session=True,
        )
    root = psutil.Process(process.pid)
    try:
        wait_until_ready(process, port, log)
        yield root
    finally:
        tree = [root, *root.children(recursive=True)] if root.is_running() else []
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        for left in psutil.wait_procs(tree, timeout=15)[1]:
            left.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if http.post("/v1/completions", json=body).is_success:
                    return
            time.sleep(1.0)
    sys.exit(f"the system did not start; its log ends:\n{log.read_text()[-3000:]}")


def role(process: psutil.Process, root: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    for mark, name in (
        ("VLLM::", "engine"),
        ("ray::ServeReplica", "router" if "Ingress" in words or "Router" in words else "replica"),
        ("ray::HAProxyManager", "HAProxy manager"),
        ("ray::ProxyActor", "Python proxy"),
        ("bin/haproxy", "HAProxy"),
    ):
        if mark in words:
            return name
    return "API server" if process == root and "vllm" in words else "rest of Ray"


class CpuClock(threading.Thread):
    """CPU seconds of the tree by role, every SAMPLE_S, by the client's own clock."""

    def __init__(self, root: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._done = threading.Event()
        self._roles = {p: role(p, root) for p in [root, *root.children(recursive=True)]}

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        total: dict[str, float] = defaultdict(float)
        for process, name in self._roles.items():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total[name] += times.user + times.system
        self.samples.append((time.perf_counter(), dict(total)))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds by role from the last sample before to the first after."""
        self._done.set()
        self.join()
        self.sample()
        before = [s for t, s in self.samples if t <= begin][-1]
        after = next(s for t, s in self.samples if t >= end or s is self.samples[-1][1])
        return {name: after[name] - before.get(name, 0.0) for name in after}


def measure(port: int, root: psutil.Process, concurrency: int, requests: int) -> dict[str, float]:
    """One point: the client's figures and CPU milliseconds per request by role."""
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    args = parser.parse_args(
        [
            "--backend=openai",
            "--endpoint=/v1/completions",
            f"--base-url=http://127.0.0.1:{port}",
            f"--model={MODEL}",
            f"--tokenizer={WEIGHTS}",
            "--dataset-name=random",
            f"--random-input-len={TOKENS}",
            f"--random-output-len={TOKENS}",
            f"--num-prompts={requests}",
            f"--max-concurrency={concurrency}",
            "--temperature=0",
            "--percentile-metrics=ttft,itl,e2el",
            "--metric-percentiles=50,99",
            "--save-detailed",
            "--disable-tqdm",
        ]
    )
    clock = CpuClock(root)
    clock.sample()
    clock.start()
    idle, started = psutil.cpu_times().idle, time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result: dict[str, Any] = asyncio.run(main_async(args))
    begin = min(result["start_times"])
    cpu = clock.between(begin, begin + result["duration"])
    idle_cores = (psutil.cpu_times().idle - idle) / (time.monotonic() - started)
    failed = requests - result["completed"]
    if failed:
        sys.exit(f"{failed} of {requests} requests failed: {next(filter(None, result['errors']))}")
    point = {
        "req/s": result["request_throughput"],
        "TTFT p50 ms": result["p50_ttft_ms"],
        "TTFT p99 ms": result["p99_ttft_ms"],
        "ITL p50 ms": result["p50_itl_ms"],
        "ITL p99 ms": result["p99_itl_ms"],
    }
    # Where next to none is left, req/s says how much CPU everything takes, the client included.
    point["idle cores"] = idle_cores
    for name, seconds in cpu.items():
        point[f"CPU {name}"] = seconds * 1000 / requests
    point["CPU serving layer"] = sum(point.get(f"CPU {name}", 0.0) for name in SERVING_LAYER)
    return point


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


Points = dict[str, dict[int, list[dict[str, float]]]]


def measure_all(options: argparse.Namespace, console: Console) -> Points:
    points: Points = {name: {c: [] for c in options.concurrency} for name in options.systems}
    for number in range(options.rounds):
        # The order turns round, so that a machine that slows down favours nobody.
        for name in options.systems[:: -1 if number % 2 else 1]:
            console.print(f"round {number + 1}: {name}: starting")
            port = free_port()
            with (
                tempfile.TemporaryDirectory() as directory,
                running(SYSTEMS[name], Path(directory), port) as root,
            ):
                measure(port, root, 32, 64)  # warm-up
                for concurrency in options.concurrency:
                    requests = max(options.requests, 20 * concurrency)
                    point = measure(port, root, concurrency, requests)
                    points[name][concurrency].append(point)
                    console.print(
                        f"  c={concurrency}: {point['req/s']:.1f} req/s, serving layer "
                        f"{point['CPU serving layer']:.1f} ms CPU per request"
                    )
    return points


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    keys = list(dict.fromkeys(key for point in rounds for key in point))
    return {key: statistics.median(point.get(key, 0.0) for point in rounds) for key in keys}


def report(points: Points, console: Console) -> dict[str, Any]:
    """Print medians and their ratios to the first system; the same as plain data."""
    summary: dict[str, Any] = {}
    first = next(iter(points))
    for concurrency in points[first]:
        table = Table(title=f"concurrency {concurrency}: median, and ratio to {first}")
        table.add_column("")
        middle = {name: medians(points[name][concurrency]) for name in points}
        for name in middle:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key for figures in middle.values() for key in figures):
            unit = " ms/request" if key.startswith("CPU") else ""
            row = [key + unit]
            base = middle[first].get(key)
            for name, figures in middle.items():
                value = figures.get(key)
                ratio = f" ({value / base:.2f})" if value and base and name != first else ""
                row.append("-" if value is None else f"{value:.2f}{ratio}")
            table.add_row(*row)
        console.print(table)
        summary[str(concurrency)] = middle
    return summary


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(SYSTEMS)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32], metavar="N,N")
    parser.add_argument("--requests", type=int, default=60, help="at least this many per point")
    parser.add_argument("--systems", type=names, default=["bare", "ours"], metavar="NAME,NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    console = Console(highlight=False)
    points = measure_all(options, console)
    summary = report(points, console)
    if options.json:
        machine = {"cpus": os.cpu_count(), "processor": platform.processor()}
        versions = {name: version(name) for name in ("vllm", "ray", "neuron-serve")}
        data = {"machine": machine, "versions": versions, "medians": summary, "rounds": points}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
