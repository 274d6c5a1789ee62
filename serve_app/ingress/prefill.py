"""Between a client and the decode engine: has the prompt prefilled elsewhere first."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import Prefill
from serve_app.ingress.body import read, replay
from serve_app.ingress.errors import refusal
from serve_app.ingress.in_process import OURS
from serve_app.ingress.kv_transfer import (
    PARAMS,
    ROUTES,
    WHOLE_ROUTES,
    brings_params,
    decode_request,
    prefill_request,
    prompt_tokens,
    why_not_split,
)

_FORWARDED = (b"authorization", b"x-request-id", b"traceparent", b"tracestate")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

SPLIT = Counter("neuron_serve_pd_requests", "Requests whose prompt a prefill replica computed.")
WHOLE = Counter(
    "neuron_serve_pd_whole",
    "Requests that the decode engine served alone, as they cannot or need not be split.",
    ["reason"],
)
FALLBACKS = Counter(
    "neuron_serve_pd_fallbacks",
    "Requests whose prefill failed, by what happened; see the setting prefill.fallback.",
    ["reason"],
)
WAIT = Histogram(
    "neuron_serve_pd_wait_seconds",
    "From the request to the start of its prefill: choice of a replica, queue, network.",
    buckets=_SECONDS,
)
COMPUTE = Histogram(
    "neuron_serve_pd_prefill_seconds",
    "Inside the prefill replica: its engine's queue and the prompt's computation.",
    buckets=_SECONDS,
)
FIRST = Histogram(
    "neuron_serve_pd_first_token_seconds",
    "From the end of the prefill to the first byte: transfer (vllm:nixl_xfer_time_seconds), the "
    "decode engine's queue and its first step.",
    buckets=_SECONDS,
)


@dataclass(frozen=True)
class Leg:
    """A request to a prefill replica."""

    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    tokens: int
    """About how many the prompt has; replicas are chosen by it."""
    session: str | None = None
    """Requests of one session go to one replica."""
    replica: str | None = None
    """This replica and no other: the transfer before the first user's."""


@dataclass(frozen=True)
class Answer:
    """A prefill replica's answer."""

    status: int
    body: bytes
    seconds: float
    """Spent inside the replica."""


class Unavailable(Exception):
    """No prefill replica answered; the reason is a word for metrics: full, timeout, dead, none."""


Prefills = Callable[[Leg], Awaitable[Answer]]
"""Sends a leg to a prefill replica. Raises Unavailable."""


class PrefillMiddleware:
    """Splits requests of completions and chat; lets everything else through.

    It reads each request once. What the decode engine streams passes as it is; its first byte is
    timed.
    """

    def __init__(self, app: ASGIApp, prefills: Prefills, policy: Prefill) -> None:
        self.app = app
        self._prefills = prefills
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or OURS in scope:
            return await self.app(scope, receive, send)
        raw = await read(receive)
        if raw is None:
            return None  # the client is gone
        request = _parse(raw)
        if request is not None and brings_params(request):
            message = f"{PARAMS} is not a client's to set: this server sets it by itself."
            return await refusal(400, message, PARAMS)(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        reason = f"requests to {path}" if path in WHOLE_ROUTES else None
        if request is not None and path in ROUTES:
            reason = why_not_split(path, request)
            if reason is None and prompt_tokens(request) < self._policy.min_prompt_tokens:
                reason = "short prompt"
            if reason is None:
                return await self._split(scope, receive, send, path, request, raw)
        if reason is not None:
            if self._policy.fallback == "error":
                message = f"This server cannot serve {reason}: prefill and decode are apart."
                return await refusal(400, message)(scope, receive, send)
            WHOLE.labels(reason).inc()
        return await self.app(scope, replay(raw, receive), send)

    async def _split(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        request: dict[str, Any],
        raw: bytes,
    ) -> None:
        scope, headers = _with_request_id(scope)
        leg = Leg(
            path,
            json.dumps(prefill_request(request)).encode(),
            tuple((name, value) for name, value in scope["headers"] if name in _FORWARDED),
            prompt_tokens(request),
            self._session(headers, request),
        )
        begin = time.monotonic()
        try:
            answer = await _unless_gone(receive, self._prefills(leg))
            if answer is None:
                return None  # the client is gone
            params = _params(answer)
        except Unavailable as error:
            FALLBACKS.labels(str(error)).inc()
            if self._policy.fallback == "error":
                message = f"No prefill replica answered ({error}). Try again."
                return await refusal(503, message)(scope, receive, send)
            return await self.app(scope, replay(raw, receive), send)
        if params is None:
            if self._policy.fallback == "error":
                theirs = Response(answer.body, answer.status, media_type="application/json")
                return await theirs(scope, receive, send)
            # The engine that generates says in its own words what is wrong with the request.
            return await self.app(scope, replay(raw, receive), send)
        done = time.monotonic()
        SPLIT.inc()
        WAIT.observe(max(0.0, done - begin - answer.seconds))
        COMPUTE.observe(answer.seconds)
        first = False

        async def timed(message: Message) -> None:
            nonlocal first
            if not first and message["type"] == "http.response.body":
                first = True
                FIRST.observe(time.monotonic() - done)
            await send(message)

        body = json.dumps(decode_request(request, params)).encode()
        # Of an answer that is not streamed the first byte is the last, too.
        watched = timed if request.get("stream") else send
        return await self.app(_with_length(scope, body), replay(body, receive), watched)

    def _session(self, headers: Headers, request: dict[str, Any]) -> str | None:
        if self._policy.routing != "session":
            return None
        session = headers.get("x-session-id") or request.get("prompt_cache_key")
        return session if isinstance(session, str) and session else None


def _params(answer: Answer) -> dict[str, Any] | None:
    """`kv_transfer_params`; None where the prefill engine refuses the request itself (4xx)."""
    if 400 <= answer.status < 500:
        return None
    if answer.status != 200:
        raise Unavailable("failed")
    params = (_parse(answer.body) or {}).get(PARAMS)
    if not isinstance(params, dict):
        raise Unavailable("failed")
    return params


async def _unless_gone(receive: Receive, answer: Awaitable[Answer]) -> Answer | None:
    """The answer; None, and nobody waits for it any longer, when the client leaves before."""
    leg, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((leg, gone), return_when=asyncio.FIRST_COMPLETED)
        return leg.result() if leg.done() else None
    finally:
        leg.cancel()
        gone.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _with_request_id(scope: Scope) -> tuple[Scope, Headers]:
    """One id for both legs: the client's, or a new one."""
    headers = Headers(scope=scope)
    if "x-request-id" in headers:
        return scope, headers
    given = (b"x-request-id", uuid.uuid4().hex.encode())
    scope = {**scope, "headers": [*scope["headers"], given]}
    return scope, Headers(scope=scope)


def _with_length(scope: Scope, body: bytes) -> Scope:
    """The body is another one than the client's."""
    length = str(len(body)).encode()
    headers = [(k, length if k == b"content-length" else v) for k, v in scope["headers"]]
    return {**scope, "headers": headers}


def _parse(raw: bytes) -> dict[str, Any] | None:
    """The JSON object, or None: vLLM's app says what is wrong with anything else."""
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None
