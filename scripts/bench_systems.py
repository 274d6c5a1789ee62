"""What the benchmarks share: start a system and end it, send it load, read its CPU time.

A system is one or more commands that together serve the demo model at one port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.access.keyring import dump, issue
from serve_app.backends import make_plan
from serve_app.cli.run import data_plane_environment
from serve_app.config import AppArgs

ROOT = Path(__file__).parents[1]
MODEL = "neuron-serve/demo"
WEIGHTS = ROOT / "serve_app/demo_model"
VOCABULARY = range(16, 1536)  # of the demo model, without its special tokens
START_S = 600
LOAD_S = 1800
# Ours has ten times bare's processes: sampling often would cost it more.
SAMPLE_S = 0.5
IDLE_S = 5.0
BIN = Path(sys.executable).parent

KEY, KEY_TEXT = issue(
    {
        "name": "bench",
        "requests_per_minute": 1_000_000,
        "tokens_per_minute": 2_000_000_000,
        "concurrent_requests": 100_000,
    }
)
"""What the client sends; only a system that asks for keys looks at it."""
os.environ["OPENAI_API_KEY"] = KEY_TEXT

Point = dict[str, float]


@dataclass(frozen=True)
class Command:
    """One process of a system."""

    words: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    role: str = "rest of Ray"


Start = Callable[[Path, int], list[Command]]
"""From a directory for files and the port to serve at to the commands."""


def vllm_serve(args: AppArgs, port: int, env: Mapping[str, str] | None = None) -> Command:
    """The `vllm serve` line that our replica runs, and its environment."""
    plan = make_plan(args)
    words = [*plan.command(str(WEIGHTS), args.model.names), "--host=127.0.0.1", f"--port={port}"]
    return Command(words, {**plan.env, **(env or {})}, "API server")


def neuron_serve(config: dict[str, Any], env: Mapping[str, str] | None = None) -> Start:
    """`neuron-serve run`, in a Ray of its own even where another one runs."""

    def start(directory: Path, port: int) -> list[Command]:
        file = directory / "ours.yaml"
        http = {**config["http_options"], "port": port}
        text = yaml.safe_dump({**config, "http_options": http})
        file.write_text(text.replace("PORT", str(port)).replace("DIRECTORY", str(directory)))
        (directory / "keys.yaml").write_text(dump([KEY]))
        given = {**data_plane_environment(), "RAY_ADDRESS": "local", **(env or {})}
        return [Command(["neuron-serve", "run", str(file)], given)]

    return start


class Running:
    """A system's processes, from their start until nothing of them is left."""

    def __init__(self, directory: Path) -> None:
        self._roots: list[tuple[subprocess.Popen[bytes], psutil.Process, str]] = []
        self._seen: set[psutil.Process] = set()
        self.log = directory / "log"

    def start(self, commands: list[Command]) -> None:
        with self.log.open("wb") as file:
            for command in commands:
                process = subprocess.Popen(
                    command.words,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **command.env, "PATH": f"{BIN}:{os.environ['PATH']}"},
                    start_new_session=True,
                )
                self._roots.append((process, psutil.Process(process.pid), command.role))

    def roles(self) -> dict[psutil.Process, str]:
        """Every process there is now, and what it does."""
        found: dict[psutil.Process, str] = {}
        for _, root, name in self._roots:
            found[root] = name
            with contextlib.suppress(psutil.Error):
                found |= {child: role(child) for child in root.children(recursive=True)}
        self._seen |= found.keys()
        return found

    def wait_until_ready(self, port: int) -> None:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
        deadline = time.monotonic() + START_S
        headers = {"authorization": f"Bearer {KEY_TEXT}"}
        base = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=base, headers=headers, timeout=30) as http:
            while time.monotonic() < deadline and not self.dead():
                with contextlib.suppress(httpx.HTTPError):
                    if http.post("/v1/completions", json=body).is_success:
                        return
                self.roles()
                time.sleep(1.0)
        sys.exit(f"the system did not start; its log ends:\n{self.log.read_text()[-3000:]}")

    def dead(self) -> bool:
        return any(process.poll() is not None for process, _, _ in self._roots)

    def stop(self) -> None:
        """Ctrl-C, and what does not end by it is killed. Cannot itself be interrupted."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, signal.SIG_IGN) for number in signals]
        self.roles()
        for process, _, _ in self._roots:
            process.send_signal(signal.SIGINT)
        for process, _, _ in self._roots:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        for left in psutil.wait_procs(self._seen, timeout=15)[1]:
            with contextlib.suppress(psutil.Error):
                left.kill()
        for process, _, _ in self._roots:
            process.wait()
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def running(start: Start, directory: Path, port: int) -> Iterator[Running]:
    """The system, ready for requests."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    system = Running(directory)
    try:
        system.start(start(directory, port))
        system.wait_until_ready(port)
        yield system
    finally:
        system.stop()


def role(process: psutil.Process) -> str:
    """What a child of one of the commands does, by its command line."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        words = ""
    for mark, name in (
        ("VLLM::", "engine"),
        ("ray::ServeReplica", "router" if "Ingress" in words or "Router" in words else "replica"),
        ("ray::HAProxyManager", "HAProxy manager"),
        ("ray::ProxyActor", "Python proxy"),
        ("bin/haproxy", "HAProxy"),
    ):
        if mark in words:
            return name
    return "rest of Ray"


class CpuClock(threading.Thread):
    """CPU seconds of the system by role, every SAMPLE_S, by the client's own clock."""

    def __init__(self, system: Running) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._done = threading.Event()
        self._roles = system.roles()

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


def idle_cores(system: Running) -> dict[str, float]:
    """Cores that the system takes, by role, while nobody asks it anything."""
    clock = CpuClock(system)
    clock.sample()
    time.sleep(IDLE_S)
    clock.sample()
    (begin, before), (end, after) = clock.samples
    return {name: (after[name] - before[name]) / (end - begin) for name in after if name in before}


Client = Coroutine[Any, Any, dict[str, Any]]


def measured(system: Running, requests: int, client: Client) -> tuple[Point, dict[str, Any]]:
    """Run a client of `vllm bench serve`: its figures with CPU ms per request by role, and all."""
    clock = CpuClock(system)
    clock.sample()
    clock.start()
    idle, started = psutil.cpu_times().idle, time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result: dict[str, Any] = asyncio.run(asyncio.wait_for(client, LOAD_S))
    begin = min(result["start_times"])
    cpu = clock.between(begin, begin + result["duration"])
    elapsed = time.monotonic() - started
    point = {"req/s": result["request_throughput"]}
    for key, name in (("ttft", "TTFT"), ("itl", "ITL"), ("e2el", "E2E")):
        for percentile in (50, 99):
            point[f"{name} p{percentile} ms"] = float(result[f"p{percentile}_{key}_ms"])
    # Where next to none is left, req/s says how much CPU everything takes, the client included.
    point["idle cores"] = (psutil.cpu_times().idle - idle) / elapsed
    for name, seconds in cpu.items():
        point[f"CPU {name}"] = seconds * 1000 / requests
    return point, result


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    return rng.choices(VOCABULARY, k=tokens)


async def exact_load(
    port: int, shape: tuple[int, int], concurrency: int, requests: int, seed: str
) -> dict[str, Any]:
    """The client of `vllm bench serve` with prompts of random token ids: exact lengths, nothing
    for a prefix cache, and the same prompts for the same seed."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark
    from vllm.tokenizers import get_tokenizer

    rng, (prompt, output) = random.Random(seed), shape
    base = f"http://127.0.0.1:{port}"
    result: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{base}/v1/completions",
        base_url=base,
        model_id=MODEL,
        model_name=MODEL,
        tokenizer=get_tokenizer(str(WEIGHTS)),
        input_requests=[
            SampleRequest(random_prompt(rng, prompt), prompt, output) for _ in range(requests)
        ],
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=["ttft", "itl", "e2el"],
        selected_percentiles=[50.0, 99.0],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=concurrency,
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0.0},
        ready_check_timeout_sec=0,
    )
    return result


def free_port() -> int:
    """Below those that the kernel gives to Ray as well, before this one is used."""
    while True:
        port = random.randrange(20_000, 29_900)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def medians(rounds: list[Point]) -> Point:
    keys = list(dict.fromkeys(key for point in rounds for key in point))
    return {key: statistics.median(point.get(key, 0.0) for point in rounds) for key in keys}


def numbers(text: str) -> list[int]:
    """An argument type: `1,8` is [1, 8]."""
    chosen = [int(part) for part in text.split(",")]
    if min(chosen) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 on")
    return chosen


def write_json(file: Path, **figures: Any) -> None:
    """The figures, and where they come from."""
    machine = {"cpus": os.cpu_count(), "processor": platform.processor()}
    versions = {name: version(name) for name in ("vllm", "ray", "neuron-serve")}
    data = {"machine": machine, "versions": versions, **figures}
    file.write_text(json.dumps(data, indent=2) + "\n")
