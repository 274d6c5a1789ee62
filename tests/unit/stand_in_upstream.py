"""What the front door relays to, over real HTTP: one server that stands in for all applications.

A request says in its header `x-do` (JSON) what shall happen; without it, it is echoed.
`python -m tests.unit.stand_in_upstream` runs it by itself and prints its port.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from aiohttp import web
from starlette.types import ASGIApp

DONE = b"data: [DONE]\n\n"


@dataclass
class Asked:
    """One request, as it arrived."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    left_at: float | None = None
    """time.monotonic() of the moment when the front door hung up."""

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class Upstream:
    """The server; `asked` is what it has been asked so far."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = Asked(request.raw_path, list(request.raw_headers), body)
        self.asked.append(asked)
        do = json.loads(request.headers.get("x-do", "{}"))
        try:
            return await self._do(request, body, do)
        except (asyncio.CancelledError, ConnectionError):
            asked.left_at = time.monotonic()
            raise

    async def _do(
        self, request: web.Request, body: bytes, do: dict[str, Any]
    ) -> web.StreamResponse:
        if do.get("hang"):
            await asyncio.sleep(60)
        if do.get("abort") in ("always", len(self.asked)):
            return self._abort(request)
        if "events" in do:
            return await self._stream(request, do)
        if "half" in do:
            return await self._half(request, do["half"])
        if "text" in do:
            return web.Response(text=do["text"], **do.get("answer", {}))
        headers = {"content-type": "application/x-echo", "x-kept": "kept", "set-cookie": "a=1"}
        return web.Response(body=body, headers=headers | do.get("headers", {}))

    async def _stream(self, request: web.Request, do: dict[str, Any]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await answer.prepare(request)
        for number in range(do["events"]):
            if number == do.get("abort_after"):
                await answer.write(do.get("part", "").encode())
                await asyncio.sleep(0.05)
                return self._abort(request)
            await answer.write(event(number))
            await asyncio.sleep(do.get("pace_s", 0))
        await answer.write(DONE)
        await answer.write_eof()
        return answer

    async def _half(self, request: web.Request, how: str) -> web.StreamResponse:
        """An answer that breaks off after 1000 of its 2000 bytes."""
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        if how == "length":
            answer.content_length = 2000
        await answer.prepare(request)
        await answer.write(b" " * 1000)
        await asyncio.sleep(0.05)
        return self._abort(request)

    def _abort(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, auto_decompress=False
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        return runner


def event(number: int) -> bytes:
    """About the size of a token of a chat."""
    delta = {"index": 0, "delta": {"content": f" {number:>5}"}, "finish_reason": None}
    chunk = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "llama",
        "choices": [delta],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@contextmanager
def upstream() -> Iterator[Upstream]:
    """The server in a thread of its own."""
    server, loop, ready = Upstream(), asyncio.new_event_loop(), threading.Event()
    runners = []

    async def start() -> None:
        runners.append(await server.start())
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield server
    asyncio.run_coroutine_threadsafe(runners[0].cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The url of an ASGI app under uvicorn, in a thread of its own."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


async def _alone() -> None:
    server = Upstream()
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_alone())
