"""Read a request's body, and give it on as if nobody had."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.errors import refusal

_MIB = 1 << 20


async def read(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Receives `body`, then what the client says next: that it leaves."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


class BodyLimitMiddleware:
    """Answers 413 to what is larger, by its announced length or once more than that has come."""

    def __init__(self, app: ASGIApp, max_body_mib: float) -> None:
        self.app = app
        self._most = int(max_body_mib * _MIB)
        message = f"The request body is larger than {max_body_mib:g} MiB."
        self._refusal = refusal(413, message, headers={"connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        length = next((v for k, v in scope["headers"] if k == b"content-length"), None)
        if length is not None and length.isdigit():
            if int(length) > self._most:
                return await self._refusal(scope, receive, send)
            return await self.app(scope, receive, send)
        left = self._most
        parts = []
        while True:  # no length: chunked
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            left -= len(message.get("body", b""))
            if left < 0:
                return await self._refusal(scope, receive, send)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return await self.app(scope, replay(b"".join(parts), receive), send)
