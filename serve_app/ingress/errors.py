"""OpenAI error bodies, for what is refused here and for what vLLM's app leaves to the framework.

vLLM answers the errors of its own routes in OpenAI's form; FastAPI raises two before a route is
found (unknown route, wrong method), as Starlette's exception, and would answer `{"detail": ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

RETRY_AFTER_S = 2

_NO_OBJECT = (list, str, int, float, bool)
"""What JSON has beside objects and null."""
_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "TimeoutError",
    429: "RateLimitError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}


def error_body(
    status: int, message: str, param: str | None = None, code: str | int | None = None
) -> bytes:
    """ASCII, so that a name which is no valid Unicode can be named, too."""
    kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    error = {"message": message, "type": kind, "param": param, "code": code or status}
    return json.dumps({"error": error}).encode()


def refusal(
    status: int,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    code: str | int | None = None,
) -> Response:
    """The answer with that body; where it is worth trying again, it says when."""
    headers = dict(headers or {})
    if status in (502, 503, 504):
        headers.setdefault("retry-after", str(RETRY_AFTER_S))
    body = error_body(status, message, param, code)
    return Response(body, status, headers, "application/json")


def answer_in_openai_form(app: FastAPI) -> None:
    """Add the handlers to vLLM's app. vLLM's own handlers stay where they are more specific."""
    app.add_exception_handler(HTTPException, _openai_error)
    app.add_exception_handler(AttributeError, _body_of_another_kind)
    if Exception not in app.exception_handlers:  # before 0.24 vLLM has none
        app.add_exception_handler(Exception, _failed)


async def _body_of_another_kind(request: Request, error: Exception) -> Response:
    """vLLM 0.13 to 0.24 call `get` on a body before they look whether it is an object: `[]` was
    a failure of the server. The body itself cannot be read here a second time."""
    assert isinstance(error, AttributeError)
    if error.name == "get" and isinstance(error.obj, _NO_OBJECT):
        return refusal(400, "The request body must be a JSON object.")
    raise error


async def _failed(request: Request, error: Exception) -> Response:
    """What went wrong is for the log alone."""
    return refusal(500, "The server failed at this request; its log says why.")


async def _openai_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.status_code
    if code == HTTPStatus.NOT_FOUND:
        message = f"There is no route {request.method} {request.url.path}."
    elif code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = error.detail
    return refusal(code, message, headers=error.headers)
