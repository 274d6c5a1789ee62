"""What stands between Ray Serve and vLLM's app."""

from __future__ import annotations

from fastapi import FastAPI

from serve_app.ingress.disconnect import DisconnectMiddleware
from serve_app.ingress.errors import answer_in_openai_form

__all__ = ["add_ingress"]


def add_ingress(app: FastAPI) -> None:
    """Add to vLLM's app what serving it from a replica needs."""
    # vLLM's container standards have built the stack already; Starlette builds it anew.
    app.middleware_stack = None
    answer_in_openai_form(app)
    app.add_middleware(DisconnectMiddleware)
