"""A client that leaves frees the engine, also when its answer is not streamed."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_GRACE_S = 1.0


class DisconnectMiddleware:
    """Tells the app of a disconnect where Ray Serve cancels the request's task.

    Serve does so when the client leaves and at `request_timeout_s`. vLLM generates an answer
    that is not streamed in a task of its own, which such a cancel would leave behind, running
    for nobody. When `receive` says `http.disconnect`, vLLM ends that task itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        gone = asyncio.get_running_loop().create_future()

        async def receive_or_gone() -> Message:
            message = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((message, gone), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()

        task = asyncio.ensure_future(self.app(scope, receive_or_gone, send))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            gone.set_result(None)
            await asyncio.wait((task,), timeout=_GRACE_S)
            task.cancel()
            raise
