"""What stands between Ray Serve and vLLM's app."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from serve_app.config import Limits, Prefill
from serve_app.ingress.access import Access, AccessMiddleware
from serve_app.ingress.body import BodyLimitMiddleware
from serve_app.ingress.deadline import DeadlineMiddleware
from serve_app.ingress.disconnect import DisconnectMiddleware
from serve_app.ingress.errors import answer_in_openai_form
from serve_app.ingress.first_byte import FirstByteMiddleware
from serve_app.ingress.prefill import PrefillMiddleware, Prefills

__all__ = ["add_ingress"]


def add_ingress(
    app: FastAPI,
    limits: Limits,
    access: Access | None = None,
    prefills: Prefills | None = None,
    policy: Prefill | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Add to vLLM's app what serving it from a replica needs; `prefills`: with a prefill leg;
    `attributes`: with a span of these for each request."""
    # vLLM's container standards have built the stack already; Starlette builds it anew.
    app.middleware_stack = None
    answer_in_openai_form(app)
    if prefills is not None and policy is not None:
        if attributes is not None:
            from serve_app.ingress.tracing import traced  # an image may lack OpenTelemetry

            prefills = traced(prefills)
        app.add_middleware(PrefillMiddleware, prefills=prefills, policy=policy)
    app.add_middleware(FirstByteMiddleware)
    if access is not None:
        app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(BodyLimitMiddleware, max_body_mib=limits.max_body_mib)
    app.add_middleware(DeadlineMiddleware)
    app.add_middleware(DisconnectMiddleware)
    if attributes is not None:
        from serve_app.telemetry.spans import TracingMiddleware

        app.add_middleware(TracingMiddleware, attributes=attributes)
