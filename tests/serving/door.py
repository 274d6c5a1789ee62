"""The stack of test_front_door.py: two models and a pair behind one /v1, with keys."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.collector import Collector
from tests.serving.conftest import HTTP, command_line, free_port, issue_keys, start

CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: front-door
    route_prefix: /
    import_path: serve_app:build_front_door
    args:
      upstream: http://127.0.0.1:{port}
      access: {access}
      weights: {{demo: {{blue: 0.8, green: 0.2}}}}
"""
MODEL = """
  - name: {name}
    route_prefix: /{name}
    import_path: serve_app:build_app
    args:
      backend: cpu
      model: {{id: demo-{name}, source: "builtin:demo", aliases: {aliases}}}
      engine: {{max_model_len: 1024, max_num_seqs: 32, enforce_eager: true}}
      resources: {{num_cpus: 0.2}}
      # No probes of idle engines: their tokens are in vLLM's counters, and in no record of use.
      health: {{drain_timeout_s: 5, probe_period_s: 3600}}
      access: {access}
      limits: {{max_body_mib: 2, max_ongoing_requests: 1000, max_queued_requests: 1000}}
"""
PAIR = "      prefill: {scaling: {num_replicas: 1}}\n"
KEYS: list[dict[str, Any]] = [
    {"name": "alice"},
    {"name": "only-blue", "models": ["demo-blue"]},
    {"name": "hundred", "requests_per_minute": 100},
    {"name": "two", "concurrent_requests": 2},
    {"name": "tokens", "tokens_per_minute": 200_000, "max_tokens": 200},
    {"name": "counted", "tokens_per_minute": 200_000},
    {"name": "few-tokens", "tokens_per_minute": 500},
    {"name": "old", "expires": "2020-01-01"},
    {"name": "root", "admin": True},
]
START_S = 280


class Door:
    """The running stack, its keys, and how to ask it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys.yaml"
        self.usage = directory / "usage"
        self.usage.mkdir()
        self.texts = issue_keys(self.keys, KEYS)
        port = free_port()
        access = f"{{keys: {self.keys}, usage: {self.usage}}}"
        config = CONFIG.format(port=port, access=access)
        config += MODEL.format(name="blue", aliases="[demo]", access=access)
        config += MODEL.format(name="green", aliases="[demo]", access=access)
        config += MODEL.format(name="pair", aliases="[]", access=access) + PAIR
        file = directory / "models.yaml"
        file.write_text(config)
        command = ["neuron-serve", "run", "--address", "local", str(file)]
        self.collector = Collector()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.collector.environment.items():
                patch.setenv(name, value)
            self.stack = start(command, port, directory / "log")

    @property
    def url(self) -> str:
        return self.stack.url

    def close(self) -> None:
        if self.stack.process.poll() is None:
            self.stack.stop()
            self.collector.close()

    def headers(self, name: str = "alice") -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[name]}"}

    def post(self, path: str, body: Any, key: str = "alice", **more: Any) -> httpx.Response:
        headers = {**self.headers(key), **more.pop("headers", {})}
        return HTTP.post(f"{self.url}{path}", json=body, headers=headers, **more)

    def wait(self) -> None:
        wanted = {"demo-blue", "demo-green", "demo-pair"}
        self.stack.wait_until(lambda: wanted <= self.names(), START_S)

    def names(self) -> set[str]:
        reply = HTTP.get(f"{self.url}/v1/models", headers=self.headers())
        return {card["id"] for card in reply.json()["data"]}

    def replica(self, application: str) -> psutil.Process:
        name = f"ray::ServeReplica:{application}:"
        (found,) = [
            p
            for p in self.stack.tree()
            if command_line(p).startswith(name) and ":prefill" not in command_line(p)
        ]
        return found

    def running(self, application: str) -> float:
        """Requests in the application's engine."""
        reply = HTTP.get(f"{self.url}/{application}/metrics", headers=self.headers())
        lines = reply.text.splitlines()
        named = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in named)

    def counted(self) -> tuple[int, int]:
        """Prompt and generated tokens by vLLM's own counters, of all decode engines."""
        text = ""
        for application in ("blue", "green", "pair"):
            reply = HTTP.get(f"{self.url}/{application}/metrics", headers=self.headers())
            text += reply.text
        return _sum(text, "vllm:prompt_tokens_total"), _sum(text, "vllm:generation_tokens_total")

    def recorded(self) -> list[dict[str, Any]]:
        files = sorted(self.usage.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _sum(text: str, metric: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith(f"{metric}{{")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def chat(model: str, text: str = "What is TTFT?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **more}


def completion(model: str, count: int, seed: int, **more: Any) -> dict[str, Any]:
    draw = random.Random(seed)
    prompt = [draw.randrange(5, 500) for _ in range(count)]
    return {"model": model, "prompt": prompt, "temperature": 0, "ignore_eos": True, **more}
