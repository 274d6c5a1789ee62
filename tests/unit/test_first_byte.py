"""A stream's head waits for its first event, and an error never ends like success."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serve_app.ingress.first_byte import FirstByteMiddleware

pytestmark = pytest.mark.anyio

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
EVENT, DONE = b'data: {"id": "1", "choices": []}\n\n', b"data: [DONE]\n\n"
ABOUT_ERRORS = b'data: {"id": "1", "text": "data: {\\"error\\": 1}"}\n\n'


def error(code: Any = 400) -> bytes:
    """As vLLM's create_streaming_error_response."""
    body = {"message": "no", "type": "BadRequestError", "param": None, "code": code}
    return b"data: " + json.dumps({"error": body}).encode() + b"\n\n"


def start(headers: list[tuple[bytes, bytes]] = STREAM, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(chunk: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


async def pass_through(*messages: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What has gone out after each of the app's messages."""
    sent: list[dict[str, Any]] = []
    after = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
            after.append(list(sent))

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await FirstByteMiddleware(app)({"type": "http"}, None, send)
    return after


async def test_the_head_waits_for_the_first_event() -> None:
    messages = [start(), body(EVENT), body(EVENT), body(DONE), body(b"", more=False)]
    after = await pass_through(*messages)
    assert after[0] == []
    assert after[1] == messages[:2]
    assert after[-1] == messages


async def test_an_empty_chunk_is_not_an_event() -> None:
    messages = [start(), body(b""), body(EVENT), body(b"", more=False)]
    after = await pass_through(*messages)
    assert after[1] == []
    assert after[-1] == [messages[0], *messages[2:]]


async def test_a_stream_of_nothing() -> None:
    messages = [start(), body(b"", more=False)]
    assert (await pass_through(*messages))[-1] == messages


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), (404, 404), (503, 503), (200, 500), (0, 500), (None, 500), ("400", 500)],
)
async def test_an_error_first_is_an_answer_of_its_own(code: Any, status: int) -> None:
    after = await pass_through(start(), body(error(code)), body(DONE), body(b"", more=False))
    head, answer = after[-1]
    assert after[1] == after[-1]
    assert head["status"] == status
    assert json.loads(answer["body"])["error"]["code"] == code
    headers = dict(head["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"%d" % len(answer["body"])
    assert not answer.get("more_body", False)


async def test_its_answer_keeps_the_heads_other_headers() -> None:
    """The request's id; what lets a browser read the answer."""
    kept = [(b"x-request-id", b"1"), (b"access-control-allow-origin", b"*")]
    dropped = [(b"cache-control", b"no-cache"), (b"transfer-encoding", b"chunked")]
    after = await pass_through(start([*STREAM, *kept, *dropped]), body(error()))
    names = [name for name, _ in after[-1][0]["headers"]]
    assert names == [*(name for name, _ in kept), b"content-type", b"content-length"]


@pytest.mark.parametrize(
    "event", [b'data: {"error": {"mess', b'data: {"error": "text"}\n\n', b'data: {"error": []}\n\n']
)
async def test_an_error_in_another_form_is_500(event: bytes) -> None:
    after = await pass_through(start(), body(event), body(DONE), body(b"", more=False))
    assert [message["type"] for message in after[-1]] == [start()["type"], body(b"")["type"]]
    assert after[-1][0]["status"] == 500


async def test_an_error_later_is_the_last_event() -> None:
    messages = [start(), body(EVENT), body(error()), body(DONE), body(b"", more=False)]
    after = await pass_through(*messages)
    assert after[-1] == [*messages[:2], body(error(), more=False)]
    assert after[2] == after[-1]


async def test_an_error_and_the_end_in_one_message() -> None:
    after = await pass_through(start(), body(EVENT), body(error(), more=False))
    assert after[-1][-1] == body(error(), more=False)


async def test_text_about_errors_is_no_error() -> None:
    messages = [start(), body(ABOUT_ERRORS), body(ABOUT_ERRORS), body(DONE), body(b"", False)]
    assert (await pass_through(*messages))[-1] == messages


@pytest.mark.parametrize("chunk", [EVENT + DONE, EVENT + EVENT], ids=["end", "events"])
async def test_several_events_in_a_chunk(chunk: bytes) -> None:
    messages = [start(), body(chunk), body(b"", more=False)]
    assert (await pass_through(*messages))[-1] == messages


async def test_an_event_in_several_chunks() -> None:
    messages = [start(), body(EVENT[:9]), body(EVENT[9:]), body(b"", more=False)]
    after = await pass_through(*messages)
    assert after[1] == messages[:2]
    assert after[-1] == messages


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("headers", [[], [(b"content-type", b"application/json")]], ids=len)
async def test_what_is_no_stream_passes(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    messages = [start(headers, status), body(b""), body(error()), body(DONE, more=False)]
    after = await pass_through(*messages)
    assert after == [messages[: i + 1] for i in range(len(messages))]


async def test_a_stream_that_breaks_before_its_first_event_is_the_servers_to_answer() -> None:
    sent = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        raise RuntimeError("broken")

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="broken"):
        await FirstByteMiddleware(app)({"type": "http"}, None, send)
    assert sent == []


async def test_the_app_hears_of_a_client_that_leaves() -> None:
    heard = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        heard.append(await receive())
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    task = asyncio.ensure_future(FirstByteMiddleware(app)({"type": "http"}, receive, send))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == [{"type": "http.disconnect"}]


async def test_a_client_that_is_gone_ends_the_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(EVENT))

    async def send(message: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await FirstByteMiddleware(app)({"type": "http"}, None, send)


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_other_protocols_pass(kind: str) -> None:
    seen = []

    async def app(*call: object) -> None:
        seen.append(call)

    call = ({"type": kind}, object(), object())
    await FirstByteMiddleware(app)(*call)
    assert seen == [call]
