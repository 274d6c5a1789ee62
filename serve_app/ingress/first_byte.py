"""An answer that fails never looks complete.

vLLM streams `200 OK` at once, tells an error as an event, and then says `data: [DONE]` as if all
were well. Here an error before the first byte becomes an answer with the error's own status, which
a balancer may try elsewhere, and one in mid-stream is the last event.
"""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ERROR = b'data: {"error"'
_OF_A_STREAM = (b"content-type", b"content-length", b"transfer-encoding", b"cache-control")


class FirstByteMiddleware:
    """Keeps back the head of a stream until its first event is there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        head: Message | None = None
        streams = failed = False

        async def checked(message: Message) -> None:
            nonlocal head, streams, failed
            if failed:
                return
            if message["type"] == "http.response.start":
                streams = is_stream(message)
                if streams:
                    head = message
                    return
            elif streams and message["type"] == "http.response.body":
                body = message.get("body", b"")
                failed = body.startswith(_ERROR)
                if failed and head is not None:
                    await _send_error(head, body, send)
                    return
                if head is not None and (body or not message.get("more_body")):
                    await send(head)
                    head = None
                if head is not None:
                    return
                if failed:
                    message = {**message, "more_body": False}
            await send(message)

        return await self.app(scope, receive, checked)


def is_stream(start: Message) -> bool:
    """Whether the answer that begins so is a stream of events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )


async def _send_error(head: Message, event: bytes, send: Send) -> None:
    body = event.removeprefix(b"data: ").split(b"\n\n", 1)[0]
    try:
        code = json.loads(body)["error"]["code"]
    except (KeyError, TypeError, ValueError):
        code = None
    headers = [
        *((name, value) for name, value in head["headers"] if name.lower() not in _OF_A_STREAM),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
