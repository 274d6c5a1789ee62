"""A client that leaves is not computed for: while it sends, while its prompt is prefilled."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from serve_app.config import Prefill
from serve_app.ingress.disconnect import DisconnectMiddleware
from serve_app.ingress.prefill import PrefillMiddleware
from tests.unit.stand_in_prefill import REQUEST, App, Client, Got, StandInPrefills, scope_of

pytestmark = pytest.mark.anyio

BODY = [json.dumps(REQUEST).encode()]


async def test_while_it_sends_its_request() -> None:
    app, prefills, got = App(), StandInPrefills(), Got()
    client = Client([BODY[0][:10]], leaves_before_the_end=True)
    await PrefillMiddleware(app, prefills, Prefill())(scope_of(), client.receive, got.send)
    assert not prefills.legs
    assert not app.called
    assert got.status is None


@pytest.mark.parametrize("fallback", ["decode", "error"])
async def test_while_its_prompt_is_computed(fallback: str) -> None:
    app, prefills, got, client = App(), StandInPrefills(hold=True), Got(), Client(list(BODY))
    middleware = PrefillMiddleware(app, prefills, Prefill(fallback=fallback))
    task = asyncio.ensure_future(middleware(scope_of(), client.receive, got.send))
    await prefills.asked.wait()
    client.left.set()
    await asyncio.wait_for(task, 5)
    await asyncio.sleep(0)
    assert prefills.cancelled
    assert not app.called
    assert got.status is None


async def test_when_serve_cancels_the_task() -> None:
    app, prefills, got, client = App(), StandInPrefills(hold=True), Got(), Client(list(BODY))
    middleware = PrefillMiddleware(app, prefills, Prefill())
    task = asyncio.ensure_future(middleware(scope_of(), client.receive, got.send))
    await prefills.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert prefills.cancelled
    assert not app.called


async def test_when_serve_cancels_it_below_the_disconnect_middleware_at_once() -> None:
    """Not after the second that DisconnectMiddleware gives the app to end by itself."""
    app, prefills, got, client = App(), StandInPrefills(hold=True), Got(), Client(list(BODY))
    middleware = DisconnectMiddleware(PrefillMiddleware(app, prefills, Prefill()))
    task = asyncio.ensure_future(middleware(scope_of(), client.receive, got.send))
    await prefills.asked.wait()
    begin = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert prefills.cancelled
    assert not app.called
    assert time.monotonic() - begin < 0.9


async def test_the_app_hears_of_it_afterwards() -> None:
    """Nothing of what the client says is lost to the listening during the prefill."""

    class Listening(App):
        async def __call__(self, scope, receive, send) -> None:
            await super().__call__(scope, receive, send)
            self.heard = await receive()

    app, prefills, client = Listening(), StandInPrefills(hold=True), Client(list(BODY))
    middleware = PrefillMiddleware(app, prefills, Prefill())
    task = asyncio.ensure_future(middleware(scope_of(), client.receive, Got().send))
    await prefills.asked.wait()
    await asyncio.sleep(0.01)
    prefills.release.set()
    await asyncio.sleep(0.01)
    assert not task.done()
    client.left.set()
    await asyncio.wait_for(task, 5)
    assert app.heard == {"type": "http.disconnect"}


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_protocols_pass(kind: str) -> None:
    seen = []

    async def app(*call: object) -> None:
        seen.append(call)

    call = ({"type": kind}, object(), object())
    await PrefillMiddleware(app, StandInPrefills(), Prefill())(*call)
    assert seen == [call]
