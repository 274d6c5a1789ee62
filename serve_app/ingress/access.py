"""Who may ask, how much, and what it came to: keys and quotas, enforced in every replica.

A replica listens on a port of its own, so what stands in front of it may be gone around.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access.account import ACCOUNT, Account
from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import Key, Refused, bearer
from serve_app.access.ledger import LedgerUnavailable
from serve_app.access.quota import Decision, Quota, Refusal, Standing
from serve_app.access.usage import REFUSALS, UsageLog, Use, count
from serve_app.ingress.asked_model import BadBody, asked_model
from serve_app.ingress.body import read, replay
from serve_app.ingress.errors import refusal
from serve_app.ingress.in_process import OURS
from serve_app.telemetry.traces import KEY

logger = logging.getLogger("ray.serve")

OPEN = frozenset({"/health", "/ping"})
"""Routes of probes: they tell whether the engine lives, and nothing else."""
_FOR_ALL = ("/v1/", "/v2/", "/cohere/", "/inference/")
_FOR_ALL_EXACT = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/invocations",
        "/version",
        "/generative_scoring",
        "/load",
        "/metrics",
    }
)
_FOR_ADMINS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_ADAPTER = "x-amzn-sagemaker-adapter-identifier"
_NOBODY = Key.model_construct(id="", name="", sha256="")
"""Whoever asks where there are no keys."""
_PATIENCE_S = 30.0
"""How long the engine may take to notice that a request was left."""


class Quotas(Protocol):
    """The ledger (access/ledger.py), in this process or in another."""

    async def admit(self, key: str, quota: Quota, request: str) -> Decision: ...
    async def reserve(self, key: str, quota: Quota, request: str, tokens: int) -> Decision: ...
    async def settle(self, key: str, quota: Quota, request: str, used: int) -> None: ...
    async def keep(self, requests: Iterable[str]) -> None: ...
    async def close(self) -> None: ...


@dataclass
class Access:
    """What the replicas of an application know of keys and quotas."""

    application: str
    models: Callable[[], Iterable[str]]
    """Names that this application serves now."""
    keys: KeyFile | None = None
    ledger: Quotas | None = None
    usage: UsageLog | None = None
    open: set[str] = field(default_factory=set)
    """Requests under way that the ledger knows; renewed by their owner."""
    settling: set[asyncio.Future[Any]] = field(default_factory=set)


class AccessMiddleware:
    """Lets a request through to the engine with an account of its own, or answers it itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")) or "/"
        if scope["type"] not in ("http", "websocket") or path in OPEN or OURS in scope:
            return await self.app(scope, receive, send)
        key = self._key(scope["headers"])
        if isinstance(key, Refused):
            return await _refuse(not_let_in(key), scope, receive, send)
        scope[KEY] = key.name
        if not _may(key, path):
            message = f"{path} is for keys with `admin`, which {key.name!r} is not."
            return await _refuse(refusal(403, message), scope, receive, send)
        names = list(self._access.models())
        restricted = key.models is not None and not all(map(key.allows, names))
        if scope["type"] == "websocket":
            # Its messages name the model.
            if restricted and _for_all(path):
                return await _refuse(refusal(403, ""), scope, receive, send)
            return await self.app(scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if restricted and _for_all(path):
            body = await read(receive)
            if body is None:
                return None  # the client is gone
            try:
                # vLLM serves what names no model by its own.
                model = _asked(path, scope, body) or names[0]
            except BadBody as error:
                answer = refusal(400, str(error), error.param)
                return await _refuse(answer, scope, receive, send)
            if not key.allows(model):
                message = f"The model `{model}` does not exist."
                return await _refuse(refusal(404, message, "model"), scope, receive, send)
            receive = replay(body, receive)
        return await self._serve(key, path, scope, receive, send)

    def _key(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | Refused:
        if self._access.keys is None:
            return _NOBODY
        return self._access.keys.keyring.find(bearer(headers), datetime.now(UTC))

    async def _serve(self, key: Key, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        access, quota = self._access, key.quota
        request = uuid.uuid4().hex
        ledger = None if quota.unlimited else access.ledger
        decision = Decision(None, Standing())
        if ledger is not None:
            decision = await self._admit(ledger, key, quota, request)
        standing = decision.standing
        if decision.refusal is not None:
            REFUSALS.labels(key.name, decision.refusal.what).inc()
            return await _refuse(_too_many(decision.refusal, standing), scope, receive, send)

        async def reserve(tokens: int) -> Refusal | None:
            nonlocal standing
            assert ledger is not None
            decision: Decision = await _counted(ledger.reserve(key.name, quota, request, tokens))
            standing = decision.standing
            return decision.refusal

        account = Account(
            max_tokens=key.max_tokens,
            priority=key.priority if access.keys is not None else None,
            reserve=reserve if ledger is not None and quota.tokens_per_minute else None,
        )
        status, begun, ended = 499, False, False
        begin = time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status, begun, ended
            if account.refusal is not None and not begun:
                return  # what vLLM makes of it is not what we say
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message = {**message, "headers": [*message["headers"], *standing.headers()]}
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        token = ACCOUNT.set(account)
        if ledger is not None:
            access.open.add(request)
        try:
            await self.app(scope, receive, watched)
            if account.refusal is not None:
                status, ended = 429, True
                REFUSALS.labels(key.name, account.refusal.what).inc()
                if not begun:  # else a stream, and FirstByteMiddleware has ended it with the error
                    await _too_many(account.refusal, standing)(scope, receive, send)
        finally:
            ACCOUNT.reset(token)
            access.open.discard(request)
            seconds = time.monotonic() - begin
            self._later(
                self._settle(key, quota, request, account, path, status, not ended, seconds)
            )

    async def _admit(self, ledger: Quotas, key: Key, quota: Quota, request: str) -> Decision:
        """Count the request. Where no token is left, it is refused before it costs anything."""
        try:
            decision: Decision = await _counted(ledger.admit(key.name, quota, request))
            if decision.refusal is None and decision.standing.remaining_tokens == 0:
                # Not even prefilled elsewhere, where its KV cache would stay for nothing.
                decision = await _counted(ledger.reserve(key.name, quota, request, 1))
                if decision.refusal is not None:
                    self._later(_counted(ledger.settle(key.name, quota, request, 0)))
        except asyncio.CancelledError:
            self._later(_counted(ledger.settle(key.name, quota, request, 0)))
            raise
        return decision

    async def _settle(
        self,
        key: Key,
        quota: Quota,
        request: str,
        account: Account,
        path: str,
        status: int,
        aborted: bool,
        seconds: float,
    ) -> None:
        """Once the engine has let go of the request, count what it took."""
        deadline = time.monotonic() + _PATIENCE_S
        while any(one.running for one in account.prompts) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        used = (account.prompt_tokens(), account.completion_tokens())
        access = self._access
        if access.ledger is not None and not quota.unlimited:
            await _counted(access.ledger.settle(key.name, quota, request, sum(used)))
        model = account.adapter or next(iter(access.models()), "")
        name = key.name or None
        use = Use(name, access.application, model, path, status, *used, aborted, seconds)
        count(use)
        if access.usage is not None:
            access.usage.record(use)

    def _later(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._access.settling.add(task)
        task.add_done_callback(self._access.settling.discard)


def _may(key: Key, path: str) -> bool:
    return key.admin or key is _NOBODY or _for_all(path)


def _for_all(path: str) -> bool:
    return path not in _FOR_ADMINS and (path.startswith(_FOR_ALL) or path in _FOR_ALL_EXACT)


async def _counted(decision: Awaitable[Any]) -> Any:
    """The ledger's answer; while it is away, requests are served and not counted."""
    try:
        return await decision
    except LedgerUnavailable as error:
        _LOST(str(error))
        return Decision(None, Standing())


class _Lost:
    """Logs an outage of the ledger once a minute, not once a request."""

    def __init__(self) -> None:
        self._said = -60.0

    def __call__(self, message: str) -> None:
        if time.monotonic() - self._said >= 60.0:
            self._said = time.monotonic()
            logger.error(f"quotas are not counted: {message}")


_LOST = _Lost()


def _asked(path: str, scope: Scope, body: bytes) -> str | None:
    headers = Headers(scope=scope)
    # What vLLM's route for SageMaker puts into the body's `model`.
    adapter = headers.get(_ADAPTER) if path == "/invocations" else None
    return adapter or asked_model(body, headers.get("content-type"))


def _too_many(refused: Refusal, standing: Standing) -> Response:
    answer = refusal(429, refused.message, code="rate_limit_exceeded")
    answer.raw_headers += standing.headers()
    if refused.retry_after_s:
        answer.headers["retry-after"] = str(math.ceil(refused.retry_after_s))
    return answer


def not_let_in(refused: Refused) -> Response:
    """The answer to a key that the keyring does not take."""
    headers = {"www-authenticate": "Bearer"}
    return refusal(refused.status, refused.message, headers=headers, code=refused.code)


async def _refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await answer(scope, receive, send)
