"""OpenAI error bodies, as vLLM words them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

RETRY_AFTER_S = 2

_TYPES = {
    404: "NotFoundError",
    408: "TimeoutError",
    429: "RateLimitError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """ASCII, so that a name which is no valid Unicode can be named, too."""
    kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    error = {"message": message, "type": kind, "param": param, "code": status}
    return json.dumps({"error": error}).encode()


def refusal(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer with that body; where it is worth trying again, it says when."""
    headers = dict(headers or {})
    if status in (502, 503, 504):
        headers.setdefault("retry-after", str(RETRY_AFTER_S))
    return Response(error_body(status, message, param), status, headers, "application/json")
