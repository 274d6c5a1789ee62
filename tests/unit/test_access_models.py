"""Which model a restricted key's request is for, where the body does not say."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import dump, issue
from serve_app.ingress.access import Access, AccessMiddleware

pytestmark = pytest.mark.anyio
SAGEMAKER = {"X-Amzn-SageMaker-Adapter-Identifier": "tuned"}
RIGHTS = {"admin": "tuned"}
COMPLETIONS, LOAD = "/v1/completions", "/v1/load_lora_adapter"


@pytest.mark.parametrize(
    ("key", "path", "body", "headers", "status"),
    [
        ("base", COMPLETIONS, {}, {}, 200),
        ("tuned", COMPLETIONS, {}, {}, 404),
        ("tuned", COMPLETIONS, {"model": None}, {}, 404),
        ("tuned", COMPLETIONS, {"model": "tuned"}, {}, 200),
        ("tuned", COMPLETIONS, {"model": "base"}, {}, 404),
        ("base", "/invocations", {"model": "base"}, SAGEMAKER, 404),
        ("tuned", "/invocations", {"model": "base"}, SAGEMAKER, 200),
        ("tuned", "/invocations", {}, {}, 404),
        ("tuned", COMPLETIONS, {"model": "base"}, SAGEMAKER, 404),  # vLLM does not read it there
        ("tuned", LOAD, {"lora_name": "x"}, {}, 403),
        ("admin", LOAD, {"lora_name": "x"}, {}, 200),
    ],
)
async def test_a_restricted_key(
    tmp_path: Path, key: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    made, text = issue({"name": "k", "models": [RIGHTS.get(key, key)], "admin": key == "admin"})
    file = tmp_path / "keys.yaml"
    file.write_text(dump([made]))
    keys = KeyFile(file)
    keys.load()
    access = Access("app", lambda: ["base", "tuned"], keys)
    app = AccessMiddleware(PlainTextResponse("served"), access)
    headers = {**headers, "authorization": f"Bearer {text}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        reply = await client.post(path, json=body, headers=headers)
    assert reply.status_code == status
    assert (reply.text == "served") == (status == 200)
    await asyncio.gather(*access.settling)
