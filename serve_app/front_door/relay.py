"""Passes a request on, byte by byte, and its answer back.

An answer that fails never looks complete: before its first byte it becomes an error, a stream of
events ends with an event that tells of it, and anything else is cut off.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterable
from contextlib import closing
from types import SimpleNamespace

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from serve_app.edge.haproxy import RELAYED
from serve_app.ingress.errors import error_body, refusal

CONNECT_S = 5.0
_KEEP_ALIVE_S = 4.0
"""Shorter than uvicorn's 5 s, so that a request seldom meets a connection that is being closed."""
_READ_BYTES = 256 * 2**10
_AT_ONCE_BYTES = 64 * 2**10
"""A larger body is written in pieces, so that other streams go on meanwhile."""

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_REPLACED = frozenset([b"host", b"content-length", b"expect", b"x-forwarded-for"])
_OF_THIS_SERVER = frozenset([b"date", b"server", b"x-request-id"])
_AUTOMATIC = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add to a request that has none."""
_FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError)

# Ray Serve writes this logger into the replica's log file.
logger = logging.getLogger("ray.serve")


class Broken(Exception):
    """The upstream died in mid-answer. The server then closes the client's connection."""


class Relay:
    """The connections of one process to the upstream; opened by the first request."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, prefix: str, body: bytes
    ) -> None:
        """Answer a request, whose `body` has been read, with what the upstream says below `prefix`.

        When the client leaves, the upstream's connection is closed, so that the engine stops.

        Raises:
            Broken: the answer had begun and cannot be completed.
        """
        work = asyncio.ensure_future(self._relay(scope, receive, send, prefix, body))
        gone = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()

    async def _relay(
        self, scope: Scope, receive: Receive, send: Send, prefix: str, body: bytes
    ) -> None:
        try:
            answer = await self._ask(scope, prefix, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            message = "This model's server cannot be reached. Try again."
            return await refusal(503, message)(scope, receive, send)
        except _FAILURES:
            return await _no_answer()(scope, receive, send)
        with closing(answer):
            try:
                first = await _next(answer)
            except Broken:
                return await _no_answer()(scope, receive, send)
            kind = answer.headers.get("content-type", "")
            if answer.status >= 400 and kind.startswith("text/"):
                return await _in_openai_form(answer)(scope, receive, send)
            if kind.startswith("text/event-stream"):
                return await _pass_events(answer, first, send)
            return await _pass_bytes(answer, first, send)

    async def _ask(self, scope: Scope, prefix: str, body: bytes) -> aiohttp.ClientResponse:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        path = (scope["raw_path"] + query).decode("latin-1")
        url = URL(f"{self._upstream}{prefix}{path}", encoded=True)
        headers = _request_headers(scope, len(body))
        if self._session is None:
            self._session = _session()
        for last in (False, True):
            connection = SimpleNamespace(reused=False)
            try:
                return await self._session.request(
                    scope["method"],
                    url,
                    headers=headers,
                    data=body if len(body) <= _AT_ONCE_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                    trace_request_ctx=connection,
                )
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                # An idle connection that the upstream closed just now, as HAProxy does when Serve
                # reloads it. One that is new says more.
                if last or not connection.reused:
                    raise
        raise AssertionError


def _session() -> aiohttp.ClientSession:
    async def reused(session: object, context: SimpleNamespace, params: object) -> None:
        context.trace_request_ctx.reused = True

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_AUTOMATIC,
        auto_decompress=False,
        read_bufsize=_READ_BYTES,
        trust_env=False,
        trace_configs=[trace],
    )


async def _pass_bytes(answer: aiohttp.ClientResponse, chunk: bytes, send: Send) -> None:
    await send(_start(answer))
    while chunk:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        chunk = await _next(answer)
    await send({"type": "http.response.body", "body": b""})


async def _pass_events(answer: aiohttp.ClientResponse, chunk: bytes, send: Send) -> None:
    """Whole events only, so that one which tells of an error can follow at any time."""
    start = _start(answer)
    start["headers"] = [each for each in start["headers"] if each[0] != b"content-length"]
    await send(start)
    rest = b""
    try:
        while chunk:
            if rest or not chunk.endswith(b"\n\n"):
                chunk = rest + chunk
                end = _end_of_events(chunk)
                chunk, rest = chunk[:end], chunk[end:]
            if chunk:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await _next(answer)
    except Broken as error:
        logger.warning(str(error))
        body = error_body(502, "This model's server broke off in the middle of its answer.")
        rest = b"data: " + body + b"\n\n"
    await send({"type": "http.response.body", "body": rest})


def _end_of_events(data: bytes) -> int:
    ends = (data.rfind(blank) + len(blank) for blank in (b"\n\n", b"\r\n\r\n") if blank in data)
    return max(ends, default=0)


async def _next(answer: aiohttp.ClientResponse) -> bytes:
    """All that has come since; empty at the end of a whole answer."""
    try:
        return await answer.content.readany()
    except _FAILURES as error:
        raise Broken(f"{answer.url.path} broke off: {type(error).__name__}") from None


def _start(answer: aiohttp.ClientResponse) -> Message:
    dropped = _HOP_BY_HOP | _OF_THIS_SERVER | _named_by_connection(answer.raw_headers)
    headers = [(name.lower(), value) for name, value in answer.raw_headers]
    headers = [(name, value) for name, value in headers if name not in dropped]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


def _in_openai_form(answer: aiohttp.ClientResponse) -> Response:
    """Ray Serve and HAProxy answer in plain text, vLLM never does.

    HAProxy says 500 where it means 502, 503 or 504, and 404 while an application has no replica.
    """
    status = 503 if answer.status in (404, 500) else answer.status
    message = {
        408: "The request took longer than this model's server allows.",
        504: "The request took longer than this model's server allows.",
    }.get(status, "This model's server cannot answer now. Try again.")
    when = answer.headers.get("retry-after")
    return refusal(status, message, headers={"retry-after": when} if when else None)


def _no_answer() -> Response:
    return refusal(502, "This model's server broke off before its answer. Try again.")


def _request_headers(scope: Scope, length: int) -> CIMultiDict[str]:
    given: list[tuple[bytes, bytes]] = scope["headers"]
    dropped = _HOP_BY_HOP | _REPLACED | _named_by_connection(given)
    headers = CIMultiDict(
        (name.decode("latin-1"), _text(value)) for name, value in given if name not in dropped
    )
    headers["content-length"] = str(length)
    headers[RELAYED] = "1"
    hops = [_text(value) for name, value in given if name == b"x-forwarded-for"]
    hops = [hop.strip() for value in hops for hop in value.split(",")]
    # Behind a proxy on the same node, uvicorn has taken the client from this very header.
    if scope.get("client") and hops[-1:] != [scope["client"][0]]:
        hops.append(scope["client"][0])
    if hops:
        headers["x-forwarded-for"] = ", ".join(hops)
    return headers


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that `Connection` says are for one hop only."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(name.strip().lower() for value in values for name in value.split(b","))


def _text(value: bytes) -> str:
    """aiohttp writes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
