"""The smallest proxy before a prefill and a decode engine, to compare ours with.

    python scripts/bench_pd_proxy.py PORT PREFILL_URL DECODE_URL

A request goes to the prefill engine for one token; with the `kv_transfer_params` of its answer it
goes to the decode engine, whose stream passes through. Nothing else: no limits, no second try.
The shape is that of vLLM's own toy_proxy_server.py (tests/v1/kv_connector/nixl_integration).
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def application(prefill_url: str, decode_url: str) -> Starlette:
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    prefill = httpx.AsyncClient(base_url=prefill_url, timeout=None, limits=unlimited)
    decode = httpx.AsyncClient(base_url=decode_url, timeout=None, limits=unlimited)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with prefill, decode:
            yield

    async def generate(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        headers = {"x-request-id": uuid.uuid4().hex}
        first = {**body, "max_tokens": 1, "stream": False, "kv_transfer_params": ASK}
        first.pop("stream_options", None)
        if "max_completion_tokens" in first:
            first["max_completion_tokens"] = 1
        try:
            answer = await prefill.post(request.url.path, json=first, headers=headers)
        except httpx.ConnectError:
            return Response(status_code=502)  # it is still starting
        if not answer.is_success:
            return Response(answer.content, answer.status_code, media_type="application/json")
        body["kv_transfer_params"] = answer.json()["kv_transfer_params"]
        second = decode.build_request("POST", request.url.path, json=body, headers=headers)
        try:
            stream = await decode.send(second, stream=True)
        except httpx.ConnectError:
            return Response(status_code=502)

        async def tokens() -> AsyncIterator[bytes]:
            try:
                async for chunk in stream.aiter_raw():
                    yield chunk
            finally:
                await stream.aclose()

        kind = stream.headers.get("content-type")
        return StreamingResponse(tokens(), stream.status_code, media_type=kind)

    paths = ("/v1/completions", "/v1/chat/completions")
    return Starlette(
        routes=[Route(path, generate, methods=["POST"]) for path in paths], lifespan=lifespan
    )


if __name__ == "__main__":
    port, *engines = sys.argv[1:]
    app = application(*engines)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
