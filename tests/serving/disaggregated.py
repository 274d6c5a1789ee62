"""A stack of two prefill and two decode replicas, and what the tests ask of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.serving.conftest import HTTP, MODEL, Stack, command_line

CONFIG = """
proxy_location: HeadOnly
http_options:
  host: 127.0.0.1
  port: {port}
logging_config: {{encoding: JSON}}
applications:
  - name: demo
    route_prefix: /
    import_path: serve_app:build_app
    args:
      backend: cpu
      model: {{id: neuron-serve/demo, source: "builtin:demo"}}
      engine:
        max_model_len: 1024
        max_num_seqs: 32
        dtype: float32        # in bfloat16 two tokens can tie, and the batch decides
        enforce_eager: true   # four engines would compile the same graph for minutes
        enable_auto_tool_choice: true
        tool_call_parser: hermes
      resources: {{num_cpus: 0.2}}
      scaling: {{num_replicas: 2}}
      health: {{drain_timeout_s: 10}}
      prefill:
        scaling: {{num_replicas: 2}}
        timeout_s: 10
        transfer: {{lease_s: 20}}
"""
LIMIT = 1024
SESSION = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/session_latest")


@dataclass
class Answer:
    """What a client saw of one request."""

    status: int
    text: str = ""
    finish: str | None = None
    error: str = ""
    done: bool = False
    """The stream said [DONE], or the body was whole JSON."""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """What a client would take for a whole answer."""
        return self.status == 200 and self.done and not self.error

    @property
    def failed(self) -> bool:
        """An error that a client cannot overlook."""
        return self.status >= 500 or bool(self.error)


def tokens(count: int, seed: int) -> list[int]:
    """A prompt that no other test has, so that no cache knows it."""
    chosen = random.Random(seed)
    return [chosen.randrange(5, 500) for _ in range(count)]


def completion(prompt: list[int], max_tokens: int = 20, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Answer:
    """Send one completion, streamed or not; never raises."""
    begin = time.monotonic()
    answer = Answer(0)
    try:
        if body.get("stream"):
            await _stream(client, url, body, answer)
        else:
            reply = await client.post(f"{url}/v1/completions", json=body)
            answer.status = reply.status_code
            if reply.status_code == 200:
                (choice,) = reply.json()["choices"]
                answer.text, answer.finish = choice["text"], choice["finish_reason"]
                answer.done = True
            else:
                answer.error = reply.text
    except (httpx.HTTPError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.seconds = time.monotonic() - begin
    return answer


async def _stream(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], answer: Answer
) -> None:
    async with client.stream("POST", f"{url}/v1/completions", json=body) as reply:
        answer.status = reply.status_code
        if reply.status_code != 200:
            answer.error = (await reply.aread()).decode()
            return
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                answer.done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = event["error"]["message"]
                else:
                    answer.text += event["choices"][0]["text"]
                    answer.finish = event["choices"][0]["finish_reason"] or answer.finish


def ask_all(
    url: str,
    bodies: list[dict[str, Any]],
    at_a_time: int,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> list[Answer]:
    """Send all, so many at a time, while something else happens. Bounded: 90 s per request."""

    async def run() -> list[Answer]:
        gate = asyncio.Semaphore(at_a_time)
        limits = httpx.Limits(max_connections=at_a_time)
        async with httpx.AsyncClient(limits=limits, timeout=90, verify=False) as client:

            async def one(body: dict[str, Any]) -> Answer:
                async with gate:
                    return await ask(client, url, body)

            asked = [asyncio.create_task(one(body)) for body in bodies]
            if meanwhile is not None:
                await meanwhile()
            return list(await asyncio.gather(*asked))

    return asyncio.run(run())


def alone(url: str, bodies: list[dict[str, Any]]) -> list[str]:
    """The same answers by one engine: what reads the prompt's logits is not split, nor cached."""
    whole = [{**body, "stream": False, "prompt_logprobs": 0} for body in bodies]
    answers = ask_all(url, whole, 32)
    assert all(answer.complete for answer in answers), answers
    return [answer.text for answer in answers]


def replicas(stack: Stack, deployment: str) -> list[psutil.Process]:
    name = f"ray::ServeReplica:demo:{deployment}"
    return [process for process in stack.tree() if command_line(process).startswith(name)]


def engine_of(replica: psutil.Process) -> psutil.Process:
    children = replica.children(recursive=True)
    (engine,) = [child for child in children if command_line(child).startswith("VLLM::EngineCore")]
    return engine


def scrape(name: str) -> dict[str, dict[str, float]]:
    """A metric from Ray's agent, by deployment and replica. Some 20 s old at the most."""
    (port_file,) = SESSION.glob("metrics_export_port_*")
    text = HTTP.get(f"http://127.0.0.1:{port_file.read_text().strip()}/metrics").text
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in text.splitlines():
        if line.startswith(f"{name}{{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found[labels["deployment"]][labels["replica"]] += float(line.rsplit(" ", 1)[1])
    return found


def wait_until(what: Callable[[], bool], seconds: float, told: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.5)
