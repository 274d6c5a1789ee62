"""How much a request may say, and until when it wants its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress import deadline
from serve_app.ingress.body import BodyLimitMiddleware, read
from serve_app.ingress.deadline import DeadlineMiddleware

pytestmark = pytest.mark.anyio

LIMIT = 1024
MIB = LIMIT / (1 << 20)


def scope(method: str = "POST", **headers: str) -> Scope:
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {"type": "http", "method": method, "path": "/v1/x", "headers": named}


class Client:
    """Sends the parts of a body, and keeps what it is told."""

    def __init__(self, *parts: bytes, leaves: bool = False) -> None:
        self._parts = list(parts)
        self._leaves = leaves
        self.taken = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.taken < len(self._parts):
            part = self._parts[self.taken]
            self.taken += 1
            more = self.taken < len(self._parts) or self._leaves
            return {"type": "http.request", "body": part, "more_body": more}
        if not self._leaves:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        assert self.sent[0]["type"] == "http.response.start"
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert found["code"] == self.status
        return found


class App:
    """Reads the body."""

    body: bytes | None = None
    called = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called = True
        self.body = await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


async def limited(client: Client, **headers: str) -> App:
    app = App()
    await BodyLimitMiddleware(app, MIB)(scope(**headers), client.receive, client.send)
    return app


@pytest.mark.parametrize("length", [0, LIMIT - 1, LIMIT])
async def test_up_to_the_limit_passes(length: int) -> None:
    for parts in ([b"x" * length], [b"x"] * length or [b""]):
        for headers in ({}, {"content_length": str(length)}):
            client = Client(*parts)
            app = await limited(client, **headers)
            assert (client.status, app.body) == (200, b"x" * length)


async def test_a_length_beyond_it_is_refused_unread() -> None:
    client = Client(b"x" * (LIMIT + 1))
    app = await limited(client, content_length=str(LIMIT + 1))
    assert (client.status, client.taken, app.called) == (413, 0, False)
    assert client.headers[b"connection"] == b"close"
    assert "0.000976562 MiB" in client.error()["message"]


async def test_chunks_beyond_it_are_refused_when_they_come() -> None:
    client = Client(*[b"x" * 100] * 1000)
    app = await limited(client)
    assert (client.status, client.taken, app.called) == (413, 11, False)


async def test_one_byte_too_many() -> None:
    client = Client(b"x" * LIMIT, b"x")
    assert not (await limited(client)).called
    assert client.status == 413


async def test_a_client_that_leaves_is_no_request() -> None:
    client = Client(b"x", leaves=True)
    assert not (await limited(client)).called
    assert client.sent == []


async def test_the_app_hears_who_leaves_after_the_body() -> None:
    heard = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    messages = iter(
        [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.request", "body": b"b", "more_body": False},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Message:
        return next(messages)

    await BodyLimitMiddleware(app, MIB)(scope(), receive, Client().send)
    assert heard == [
        {"type": "http.request", "body": b"ab", "more_body": False},
        {"type": "http.disconnect"},
    ]


async def test_other_requests_pass() -> None:
    for asked in ({**scope("GET", content_length="9999")}, {"type": "websocket", "headers": []}):
        app = App()
        await BodyLimitMiddleware(app, MIB)(asked, Client(b"").receive, Client().send)
        assert app.called


class Slow:
    """Sends `first`, then nothing any more until it is told that the client left."""

    def __init__(self, first: Iterable[Message] = (), deaf: bool = False) -> None:
        self._first = first
        self._deaf = deaf
        self.heard: Message | None = None
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert await read(receive) == b"{}"
        for message in self._first:
            await send(message)
        try:
            if not self._deaf:
                self.heard = await receive()
                # What vLLM's handlers say after that is nobody's business.
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"late"})
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def start(kind: bytes) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_GRACE_S", 0.05)


async def timed(app: ASGIApp, given: str = "0.05") -> Client:
    client = Client(b"{}")
    await asyncio.wait_for(
        DeadlineMiddleware(app)(scope(x_request_timeout=given), client.receive, client.send), 5
    )
    await asyncio.sleep(0)
    return client


@pytest.mark.parametrize("deaf", [False, True])
async def test_nothing_yet_is_504(deaf: bool) -> None:
    app = Slow(deaf=deaf)
    client = await timed(app)
    assert client.status == 504
    assert "0.05 s" in client.error()["message"]
    assert client.headers[b"retry-after"]
    assert app.heard == (None if deaf else {"type": "http.disconnect"})
    assert app.cancelled


async def test_a_stream_ends_with_an_error() -> None:
    app = Slow([start(b"text/event-stream; charset=utf-8"), part(b"data: {}\n\n")])
    client = await timed(app)
    events = client.body.decode().split("\n\n")
    assert events[0] == "data: {}"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 504
    assert events[2:] == [""]
    assert not client.sent[-1].get("more_body")  # the answer is over
    assert [m["type"] for m in client.sent].count("http.response.start") == 1
    assert app.cancelled
    assert "[DONE]" not in client.body.decode()


async def test_any_other_answer_is_cut() -> None:
    app = Slow([start(b"application/json"), part(b'{"half": ')])
    client = Client(b"{}")
    with pytest.raises(TimeoutError, match="x-request-timeout"):
        await DeadlineMiddleware(app)(scope(x_request_timeout="0.05"), client.receive, client.send)
    assert client.sent[-1]["more_body"] is True


async def test_in_time_nothing_changes() -> None:
    app = App()
    client = await timed(app, "60")
    assert (client.status, client.body, app.body) == (200, b"ok", b"{}")


async def test_the_apps_own_fault_stays_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await timed(app)


async def test_a_client_that_leaves_first() -> None:
    heard = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await read(receive))

    client = Client(b"x", leaves=True)
    await DeadlineMiddleware(app)(scope(x_request_timeout="60"), client.receive, client.send)
    assert heard == [None]


async def test_whoever_ends_the_request_ends_the_app() -> None:
    app = Slow(deaf=True)
    task = asyncio.ensure_future(timed(app, "60"))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert app.cancelled


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e999", "1s", "1,5"])
async def test_what_is_no_time(given: str) -> None:
    app = App()
    client = await timed(app, given)
    assert (client.status, app.called) == (400, False)
    assert "x-request-timeout" in client.error()["message"]


async def test_without_the_header_nothing_is_between() -> None:
    client, app = Client(b"{}"), App()
    await DeadlineMiddleware(app)(scope(), client.receive, client.send)
    assert client.status == 200
