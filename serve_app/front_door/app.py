"""The ASGI app of the front door: finds the model of a request and relays it there."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from serve_app.front_door.directory import NO_REPLICA, NOT_RESPONDING, Directory, Loading, Target
from serve_app.front_door.relay import Relay
from serve_app.ingress.asked_model import BadBody, asked_model
from serve_app.ingress.errors import refusal

MODELS, TABLE = "/v1/models", "/-/front-door/table"
ALIVE = frozenset({"/health", "/ping"})
ROUTES = frozenset(
    {
        "/classify",
        "/cohere/v2/chat",
        "/cohere/v2/chat/render",
        "/detokenize",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
        "/pooling",
        "/rerank",
        "/score",
        "/tokenize",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
        "/v2/embed",
        "/v2/rerank",
    }
)
"""vLLM's routes whose requests name a model, as do all other POSTs below /v1 but one."""
_STORED = "/v1/responses/"
"""What stands below it one replica knows, and requests for it name no model."""
_SHOWN = 200
"""Characters of a name that nobody knows."""


class Pass(Protocol):
    """What a key may do."""

    def allows(self, model: str) -> bool: ...


Decision = Response | Pass
"""The answer to a request that is refused (401, 403, 429), or what the request may use."""
Gate = Callable[[Scope], Decision]


class _Everything:
    def allows(self, model: str) -> bool:
        return True


def everyone(scope: Scope) -> Decision:
    """The gate where there are no keys."""
    return _Everything()


class FrontDoor:
    """One `/v1` for all models.

    `directory` is asked anew for each request. `upstream` is where Ray Serve listens
    (http://host:port). `draw` gives numbers from [0, 1), which choose among the applications of a
    name. The gate guards all but the paths that say whether this process lives, and the table.
    """

    def __init__(
        self,
        directory: Callable[[], Directory],
        upstream: str,
        max_body_bytes: int,
        gate: Gate = everyone,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._directory = directory
        self._relay = Relay(upstream)
        self._max_body_bytes = max_body_bytes
        self._gate = gate
        self._draw = draw

    async def close(self) -> None:
        """Close the connections to the upstream."""
        await self._relay.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        request_id = Headers(scope=scope).get("x-request-id") or uuid.uuid4().hex
        scope = _local(scope, request_id)
        response = await self.answer(scope, receive, send)
        if response is not None:
            await response(scope, receive, send)
        return None

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """What to answer; None where the upstream has answered, or nobody waits any longer."""
        path, method = scope["path"], scope["method"]
        reads = method in ("GET", "HEAD")
        if path in ALIVE and (reads or method == "POST"):
            return Response()
        if path == TABLE and reads:
            return PlainTextResponse(self._directory().table())
        decision = self._gate(scope)
        if isinstance(decision, Response):
            return decision
        directory = self._directory()
        if path == MODELS and reads:
            return JSONResponse({"object": "list", "data": _cards(directory, decision)})
        if path.startswith(f"{MODELS}/") and reads:
            return _card(path.removeprefix(f"{MODELS}/"), directory, decision)
        if path in ALIVE | {TABLE, MODELS} or path.startswith(f"{MODELS}/"):
            return _wrong_method(path, method, "GET")
        if not _is_api(path):
            return refusal(404, f"There is no route {method} {path}.")
        if method == "POST" and not path.startswith(_STORED):
            return await self._pass_on(scope, receive, send, directory, decision)
        if path in ROUTES:
            return _wrong_method(path, method, "POST")
        return _own_prefix(path, directory, decision)

    async def _pass_on(
        self, scope: Scope, receive: Receive, send: Send, directory: Directory, key: Pass
    ) -> Response | None:
        headers = Headers(scope=scope)
        try:
            body = await self._read(headers, receive)
            if body is None:
                return None  # the client is gone
            name = asked_model(body, headers.get("content-type"))
        except _TooLarge:
            limit = self._max_body_bytes
            return refusal(413, f"The request body is larger than {limit} bytes.")
        except BadBody as error:
            return refusal(400, str(error), error.param)
        if name is None:
            name = directory.only()
            if name is None or not key.allows(name):
                return refusal(400, f"`model` is missing. {_known(directory, key)}", "model")
        found = directory.target(name, self._draw()) if key.allows(name) else None
        if isinstance(found, Loading):
            return refusal(503, _progress(name, found), "model")
        if not isinstance(found, Target):
            return _unknown(name, directory, key)
        await self._relay(scope, receive, send, found.prefix, body)
        return None

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None when the client leaves.

        Raises:
            _TooLarge: it is longer than `max_body_bytes`, or says so.
        """
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise _TooLarge
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise _TooLarge
            if not message.get("more_body", False):
                return bytes(body)


class _TooLarge(Exception):
    pass


def _local(scope: Scope, request_id: str) -> Scope:
    """The scope with paths below the app's own root, and one request id."""
    root = scope.get("root_path", "").rstrip("/")
    path = scope["path"].removeprefix(root)
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    headers = [each for each in scope["headers"] if each[0] != b"x-request-id"]
    headers.append((b"x-request-id", request_id.encode("latin-1")))
    raw = raw.removeprefix(quote(root).encode())
    return {**scope, "root_path": "", "path": path, "raw_path": raw, "headers": headers}


def _is_api(path: str) -> bool:
    if not {".", ".."}.isdisjoint(path.split("/")):
        return False  # a server behind might leave the model's prefix by it
    return path.startswith("/v1/") or path in ROUTES


def _cards(directory: Directory, key: Pass) -> list[dict[str, object]]:
    return [card for card in directory.cards() if key.allows(card["id"])]


def _card(name: str, directory: Directory, key: Pass) -> Response:
    for card in _cards(directory, key):
        if card["id"] == name:
            return JSONResponse(card)
    return _unknown(name, directory, key)


def _known(directory: Directory, key: Pass) -> str:
    names = [name for name in directory.names() if key.allows(name)]
    return f"Models: {', '.join(names)}." if names else "There are no models."


def _unknown(name: str, directory: Directory, key: Pass) -> Response:
    """The same for a model that is not there and for one that the key may not use."""
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    message = f"The model `{shown}` does not exist. {_known(directory, key)}"
    return refusal(404, message, "model")


def _progress(name: str, loading: Loading) -> str:
    seconds = f"{loading.elapsed_s:.0f} s"
    if loading.phase == NOT_RESPONDING:
        return f"The model {name} is not responding: its last report is {seconds} old."
    if loading.phase == NO_REPLICA:
        return f"The model {name} has no replica now."
    parts = [f"phase {loading.phase}", seconds, *filter(None, [loading.detail])]
    return f"The model {name} is loading: {', '.join(parts)}."


def _own_prefix(path: str, directory: Directory, key: Pass) -> Response:
    places: dict[str, list[str]] = {}
    for name in filter(key.allows, directory.names()):
        for prefix in directory.prefixes(name):
            places.setdefault(prefix, []).append(name)
    where = ", ".join(f"{prefix}{path} ({', '.join(on)})" for prefix, on in places.items())
    message = f"A request to {path} names no model. Ask the model's own prefix"
    return refusal(404, f"{message}: {where}." if where else f"{message}.")


def _wrong_method(path: str, method: str, allowed: str) -> Response:
    return refusal(405, f"{path} does not take {method}.", headers={"allow": allowed})
