"""Ask an ASGI app in this process, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message

Headers = Sequence[tuple[bytes, bytes]]
OURS = "neuron_serve.ours"
"""Key of the scope of such a request; none that comes from outside has it."""


async def post(app: ASGIApp, path: str, body: bytes, headers: Headers = ()) -> tuple[int, bytes]:
    """The status and the body of the answer to a JSON request."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"replica"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ],
        "client": None,
        "server": None,
        OURS: True,
    }
    sent = False
    status, parts = 500, []

    async def receive() -> Message:
        nonlocal sent
        if sent:
            # Nobody disconnects: whoever called ends the task when he does not want the answer.
            await asyncio.get_running_loop().create_future()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
