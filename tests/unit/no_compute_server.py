"""An OpenAI endpoint that computes nothing: events at known times, or misbehaviour on demand.

`python -m tests.unit.no_compute_server` runs it by itself and prints its port. A request's body
says in `do` (JSON object) what shall happen; without it `max_tokens` events come at once.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvloop

_ROOT = Path(__file__).parents[2]
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
MODEL = {"id": "neuron-serve/demo", "object": "model", "max_model_len": 1024}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """About the size of vLLM's."""
    data = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "neuron-serve/demo",
        "choices": choices,
    }
    return b"data: " + json.dumps(data | more, ensure_ascii=False).encode() + b"\n\n"


def delta(reason: str | None = None, **content: str) -> bytes:
    return event([{"index": 0, "delta": content, "logprobs": None, "finish_reason": reason}])


def usage(prompt: int, completion: int) -> bytes:
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event([], usage=tokens | {"total_tokens": prompt + completion})


FIRST = delta(role="assistant", content="")
TOKEN = delta(content=" token")
LAST = delta(reason="length", content=" token")
DONE = b"data: [DONE]\n\n"
_FIRST, _TOKEN, _LAST, _DONE = chunk(FIRST), chunk(TOKEN), chunk(LAST), chunk(DONE)
_WHOLE = {
    "broken-event": b"data: {not json\n\n" + DONE,
    "error-event": FIRST + TOKEN + b'data: {"error": {"message": "engine died", "code": 500}}\n\n',
    "zero": FIRST + delta(reason="stop") + DONE,
    "no-finish": FIRST + TOKEN,
    "not-ours": b"data: [1, 2]\n\n" + DONE,
}


class Server(asyncio.Protocol):
    """One connection."""

    free_at = 0.0
    """When the next request can be served, of those with `serial_s`: one at a time."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.models: list[dict[str, Any]] = options.get("models", [MODEL])
        self.version: str | None = options.get("version", "0.29.0")
        self.keys = [f"Bearer {key}".encode() for key in options.get("keys", [])]
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self.buffer = body[length:]
        self.asked(head.split(b" ")[1].decode(), head, body[:length])

    def asked(self, path: str, head: bytes, body: bytes) -> None:
        if self.keys and not any(key in head for key in self.keys):
            self.answer(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})
        elif path == "/v1/models":
            self.answer(200, {"object": "list", "data": self.models})
        elif path == "/version" and self.version:
            self.answer(200, {"version": self.version})
        elif path == "/metrics":
            text = 'neuron_serve_info{backend="cpu",version="0.1"} 1.0\nother_info{a="b"} 1.0\n'
            self.answer(200, text)
        elif path == "/v1/chat/completions":
            self.complete(json.loads(body), head)
        else:
            self.answer(404, {"error": {"message": f"no route {path}", "code": 404}})

    def complete(self, body: dict[str, Any], head: bytes) -> None:
        do = body.get("do", {})
        if body["model"] not in {model["id"] for model in self.models}:
            error = {"message": f"The model `{body['model']}` does not exist.", "code": 404}
            self.answer(404, {"error": error})
        elif "key" in do and f"Bearer {do['key']}".encode() not in head:
            self.answer(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})
        elif "status" in do:
            self.answer(do["status"], do.get("text", "upset"))
        elif "whole" in do:
            self.whole(_WHOLE[do["whole"]])
        elif "hex" in do:
            self.drip(bytes.fromhex(do["hex"]), do.get("bytes", 1))
        elif do.get("garbage"):
            self.transport.write(b"\x00\xffnot http at all\r\n\r\n")
        elif do.get("gone"):
            self.transport.abort()
        elif "serial_s" in do:
            Server.free_at = max(Server.free_at, self.loop.time()) + do["serial_s"]
            self.loop.call_at(Server.free_at, self.stream, body, {})
        elif not do.get("hang"):
            self.stream(body, do)

    def stream(self, body: dict[str, Any], do: dict[str, Any]) -> None:
        """First event after `first_s`, then one each `gap_s`; `packed`: all in one packet."""
        self.left, self.gap = body["max_tokens"], do.get("gap_s", 0.0)
        self.dies_at = self.left - do["dies_after"] if "dies_after" in do else -1
        words = sum(len(str(message["content"]).split()) for message in body["messages"])
        self.usage = chunk(usage(words, self.left)) if "stream_options" in body else b""
        if do.get("packed") or not (do.get("first_s") or self.gap or "dies_after" in do):
            tokens = _TOKEN * (self.left - 1) + _LAST
            self.transport.write(HEAD + _FIRST + tokens + self.usage + _DONE + b"0\r\n\r\n")
            return
        self.transport.write(HEAD)
        self.next_at = self.loop.time() + do.get("first_s", 0.0)
        self.loop.call_at(self.next_at, self.start)

    def start(self) -> None:
        self.transport.write(_FIRST)
        self.token()

    def token(self) -> None:
        if self.transport.is_closing():
            return
        if self.left == self.dies_at:
            self.transport.abort()
            return
        self.left -= 1
        if self.left > 0:
            self.transport.write(_TOKEN)
            self.next_at += self.gap
            self.loop.call_at(self.next_at, self.token)
        else:
            self.transport.write(_LAST + self.usage + _DONE + b"0\r\n\r\n")

    def drip(self, data: bytes, size: int) -> None:
        """An answer in pieces of `size` bytes, each a packet and a chunk of its own."""

        async def write() -> None:
            self.transport.write(HEAD)
            for at in range(0, len(data), size):
                self.transport.write(chunk(data[at : at + size]))
                await asyncio.sleep(0)
            self.transport.write(b"0\r\n\r\n")

        self.task = self.loop.create_task(write())

    def whole(self, data: bytes) -> None:
        self.transport.write(HEAD + chunk(data) + b"0\r\n\r\n")

    def answer(self, status: int, what: object) -> None:
        data = what.encode() if isinstance(what, str) else json.dumps(what).encode()
        self.transport.write(
            b"HTTP/1.1 %d Some\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(data), data)
        )


async def _serve(options: dict[str, Any]) -> None:
    def connection() -> Server:
        return Server(options)

    loop = asyncio.get_running_loop()
    port = options.get("port", 0)
    server = await loop.create_server(connection, "127.0.0.1", port, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


@contextmanager
def server_process(**options: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its url and the process, which ends with the block."""
    words = [sys.executable, "-m", "tests.unit.no_compute_server", json.dumps(options)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
        finally:
            process.kill()


@contextmanager
def no_compute_server(**options: Any) -> Iterator[str]:
    """Its url; a process of its own, which ends with the block."""
    with server_process(**options) as (url, _):
        yield url


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))
