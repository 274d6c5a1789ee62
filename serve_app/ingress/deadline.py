"""`x-request-timeout: SECONDS`: a client says until when it wants the answer."""

from __future__ import annotations

import asyncio
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.errors import error_body, refusal
from serve_app.ingress.first_byte import is_stream

HEADER = b"x-request-timeout"
_GRACE_S = 1.0
"""How long the app may take to let go of the engine."""


class DeadlineMiddleware:
    """At the deadline the engine's request is aborted, and the client told.

    An answer that has not begun becomes 504. A stream ends with an error as its last event, any
    other answer by its connection being cut: neither looks complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = next((v for k, v in scope.get("headers", ()) if k == HEADER), None)
        if scope["type"] != "http" or given is None:
            return await self.app(scope, receive, send)
        seconds = _seconds(given)
        if seconds is None:
            answer = refusal(400, "x-request-timeout takes seconds, for example 30 or 2.5.")
            return await answer(scope, receive, send)
        late = asyncio.get_running_loop().create_future()
        begun = stream = False

        async def receive_or_late() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((message, late), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()

        async def in_time(message: Message) -> None:
            nonlocal begun, stream
            if late.done():
                return
            if message["type"] == "http.response.start":
                begun, stream = True, is_stream(message)
            await send(message)

        task = asyncio.ensure_future(self.app(scope, receive_or_late, in_time))
        try:
            done, _ = await asyncio.wait((task,), timeout=seconds)
            if done:
                return task.result()
            late.set_result(None)
            await asyncio.wait((task,), timeout=_GRACE_S)
        finally:
            task.cancel()
        message = f"The answer was not complete within the {seconds:g} s of x-request-timeout."
        if not begun:
            return await refusal(504, message)(scope, receive, send)
        if not stream:
            raise TimeoutError(message)
        event = b"data: " + error_body(504, message) + b"\n\n"
        await send({"type": "http.response.body", "body": event})
        return None


def _seconds(given: bytes) -> float | None:
    try:
        seconds = float(given)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
