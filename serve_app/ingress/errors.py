"""OpenAI error bodies for what vLLM's app leaves to the framework: unknown route, wrong method.

vLLM answers the errors of its own routes in OpenAI's form; FastAPI raises these two before a
route is found, as Starlette's exception, and would answer `{"detail": ...}`.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse


def answer_in_openai_form(app: FastAPI) -> None:
    """Add the handler to vLLM's app. vLLM's own handlers are more specific and stay."""
    app.add_exception_handler(HTTPException, _openai_error)


async def _openai_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = error.status_code
    if code == HTTPStatus.NOT_FOUND:
        message = f"There is no route {request.method} {request.url.path}."
    elif code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = error.detail
    kind = "NotFoundError" if code == HTTPStatus.NOT_FOUND else "BadRequestError"
    body = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": body}, status_code=code, headers=error.headers)
