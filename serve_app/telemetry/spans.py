"""Spans of ours: one per request, one per leg, tied together by the header `traceparent`.

Never by OpenTelemetry's current context: vLLM's task that handles outputs inherits that of the
first request, and would count whatever has no header to that request's trace.

Names of attributes: OpenTelemetry semantic conventions, HTTP spans and generative AI. Prompts,
answers, headers and messages of errors are never among them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.telemetry.traces import KEY

Headers = tuple[tuple[bytes, bytes], ...]
Attributes = Mapping[str, str | int | float | bool]

_TRACER = trace.get_tracer("neuron-serve")
"""Of whichever provider this process gets (vLLM's)."""
_TRACE_CONTEXT = TraceContextTextMapPropagator()
_ITS_HEADERS = frozenset([b"traceparent", b"tracestate"])
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
_LOST = 500
"""Starlette's answer to an exception that reaches it."""


def start(
    name: str, kind: SpanKind, headers: Iterable[tuple[bytes, bytes]], attributes: Attributes
) -> tuple[Span, Headers]:
    """A span below the one that `headers` name, or the first of a new trace; and the same headers,
    naming the new span."""
    headers = tuple(headers)
    given = {n.decode(): v.decode("latin-1") for n, v in headers if n in _ITS_HEADERS}
    parent = _TRACE_CONTEXT.extract(given)
    span = _TRACER.start_span(name, parent, kind, {**attributes})
    carrier: dict[str, str] = {}
    _TRACE_CONTEXT.inject(carrier, trace.set_span_in_context(span))
    rest = (each for each in headers if each[0] not in _ITS_HEADERS)
    return span, (*rest, *((n.encode(), v.encode("latin-1")) for n, v in carrier.items()))


def fail(span: Span, kind: str) -> None:
    """The span tells of an error by a word, not by a message, which may quote a prompt."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


class TracingMiddleware:
    """A server span for each POST; what answers it sees a `traceparent` that names the span.

    Outside all other middleware, so that refusals have their spans, too. Of the answer it looks at
    the type of each message, and at the first and the last. `attributes`: of a good answer.
    """

    def __init__(self, app: ASGIApp, attributes: Attributes) -> None:
        self.app = app
        self._attributes = attributes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        name, attributes = _known(scope)
        span, headers = start(name, SpanKind.SERVER, scope["headers"], attributes)
        scope = {**scope, "headers": list(headers), "state": scope.get("state") or {}}
        status, ended, failure = 0, False, ""

        def watched(message: Message) -> Awaitable[None]:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                ended = True
            return send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            failure, status = type(error).__name__, status or _LOST
            raise
        finally:
            if span.is_recording():
                if failure or status >= 500:
                    fail(span, failure or str(status))
                if status < 400:
                    span.set_attributes({**self._attributes})
                span.set_attributes(_learned(scope, status, ended or bool(failure)))
            span.end()
        return None


def _known(scope: Scope) -> tuple[str, dict[str, Any]]:
    """Name and attributes of a request, before it is answered."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    attributes = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
    }
    request = next((v for n, v in scope["headers"] if n == b"x-request-id"), None)
    if request is not None:
        attributes["neuron_serve.request_id"] = request.decode("latin-1")
    operation = _OPERATIONS.get(path)
    if operation is None:
        return "POST", attributes  # a path may be any, a name must be one of few
    return f"POST {path}", attributes | {"gen_ai.operation.name": operation}


def _learned(scope: Scope, status: int, ended: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if status:
        attributes["http.response.status_code"] = status
    if not ended:
        attributes["neuron_serve.client_left"] = True
    if scope.get(KEY):
        attributes[KEY] = scope[KEY]
    # vLLM leaves it there for its own middleware (0.13 to 0.29: RequestResponseMetadata).
    usage = getattr(scope["state"].get("request_metadata"), "final_usage_info", None)
    if usage is not None:
        attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens or 0
    return attributes
