"""What the front door's own replica counts. HAProxy routes most requests past it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import Counter, Gauge
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

PREFIX = "neuron_serve_front_door_"
REQUESTS = Counter(
    f"{PREFIX}requests",
    "Requests that a replica of the front door answered; outcome is relayed, models (the list or "
    "one of it), unknown (404), loading (503), refused (any other 4xx of its own) or failed (a "
    "relayed one that broke off or got 5xx).",
    ["outcome"],
)
MODELS = Gauge(
    f"{PREFIX}models",
    "Names that clients may put into `model`; state is ready or loading.",
    ["state"],
)

Answer = Callable[[Scope, Receive, Send], Awaitable[Response | None]]
"""Returns the answer; None where it has been relayed, or the client is gone."""


def show_models(ready: int, names: int) -> None:
    """Of `names`, so many are served now."""
    MODELS.labels("ready").set(ready)
    MODELS.labels("loading").set(names - ready)


async def counted(answer: Answer, scope: Scope, receive: Receive, send: Send) -> Response | None:
    """What `answer` returns. Probes and HAProxy's own question do not count."""
    relayed = 0

    async def watched(message: Message) -> None:
        nonlocal relayed
        relayed = message.get("status", relayed)
        await send(message)

    try:
        response = await answer(scope, receive, watched)
    except Exception:
        REQUESTS.labels("failed").inc()
        raise
    if response is None:
        if relayed:
            REQUESTS.labels("relayed" if relayed < 500 else "failed").inc()
    elif response.status_code >= 400:
        own = {404: "unknown", 503: "loading"}
        REQUESTS.labels(own.get(response.status_code, "refused")).inc()
    elif scope["path"].startswith("/v1/models"):
        REQUESTS.labels("models").inc()
    return response
