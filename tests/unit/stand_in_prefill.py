"""Stand-ins for what is around PrefillMiddleware: the prefill replicas, vLLM's app, a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY

from serve_app.config import Prefill
from serve_app.ingress.prefill import Answer, Leg, PrefillMiddleware, Unavailable

CHAT = "/v1/chat/completions"
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "8 bytes."}], "max_tokens": 9}
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_host": "10.0.0.1"}
GOOD = Answer(200, json.dumps({"choices": [], "kv_transfer_params": PARAMS}).encode(), 0.25)

Headers = list[tuple[bytes, bytes]]


class StandInPrefills:
    """Prefill replicas that all answer the same; `hold`: only when it is set."""

    def __init__(self, outcome: Answer | Unavailable = GOOD, hold: bool = False) -> None:
        self.legs: list[Leg] = []
        self.outcome = outcome
        self.asked, self.release = asyncio.Event(), asyncio.Event()
        self.cancelled = False
        if not hold:
            self.release.set()

    async def __call__(self, leg: Leg) -> Answer:
        self.legs.append(leg)
        self.asked.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.outcome, Unavailable):
            raise self.outcome
        return self.outcome


class App:
    """The decode engine's app: keeps what it is asked, answers `hello` or the given chunks."""

    def __init__(self, stream: list[bytes] | None = None) -> None:
        self.stream = stream
        self.called = False
        self.body = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: bytes) -> bytes | None:
        return dict(self.scope["headers"]).get(name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.called, self.scope, self.body = True, scope, b""
        while True:
            message = await receive()
            self.body += message["body"]
            if not message.get("more_body"):
                break
        chunks = [b'{"text": "hello"}'] if self.stream is None else [*self.stream, b""]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for i, chunk in enumerate(chunks):
            more = i < len(chunks) - 1
            await send({"type": "http.response.body", "body": chunk, "more_body": more})


@dataclass
class Got:
    """What the client got."""

    status: int | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.chunks.append(message.get("body", b""))


class Client:
    """Sends the chunks of a body, and leaves when told."""

    def __init__(self, chunks: list[bytes], leaves_before_the_end: bool = False) -> None:
        self.left = asyncio.Event()
        last = len(chunks) - 1 if not leaves_before_the_end else -1
        self._messages = [
            {"type": "http.request", "body": chunk, "more_body": i != last}
            for i, chunk in enumerate(chunks)
        ]
        if leaves_before_the_end:
            self.left.set()

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}


def scope_of(
    path: str = CHAT, method: str = "POST", headers: Headers = (), root_path: str = ""
) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": root_path,
        "query_string": b"",
        "headers": list(headers),
    }


async def ask(
    app: App,
    prefills: StandInPrefills,
    body: dict[str, Any] | bytes | list[bytes],
    *,
    path: str = CHAT,
    method: str = "POST",
    headers: Headers = (),
    policy: Prefill | None = None,
    root_path: str = "",
) -> Got:
    """One request through the middleware."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    chunks = raw if isinstance(raw, list) else [raw]
    got = Got()
    length = (b"content-length", str(sum(map(len, chunks))).encode())
    scope = scope_of(path, method, [length, *headers], root_path)
    middleware = PrefillMiddleware(app, prefills, policy or Prefill())
    await middleware(scope, Client(chunks).receive, got.send)
    return got


@contextmanager
def change(sample: str) -> Iterator[Callable[[], float]]:
    """How much a metric has grown since; `name` or `name{label="value"}`."""
    name, _, label = sample.partition("{")
    labels = dict([label.rstrip('"}').split('="')]) if label else {}

    def value() -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = value()
    yield lambda: value() - before
