"""What vLLM's app leaves to the framework is answered in OpenAI's form."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, model_validator

from serve_app.ingress.errors import answer_in_openai_form


class Request(BaseModel):
    """As in vLLM 0.13 to 0.24."""

    model: str = ""

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        assert data.get("model") != "another"
        return data


async def create(request: Request) -> str:
    raise AttributeError(f"secret of {request.model}")


def answer(body: str) -> httpx.Response:
    app = FastAPI()
    app.post("/v1/completions")(create)
    answer_in_openai_form(app)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/completions", content=body, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("body", ["[]", '"x"', "7"])
def test_a_body_that_is_no_object_is_the_clients_fault(body: str) -> None:
    got = answer(body)
    assert got.status_code == 400, got.text
    assert got.json()["error"]["message"] == "The request body must be a JSON object."


def test_a_failure_tells_clients_nothing_of_itself() -> None:
    got = answer('{"model": "m"}')
    assert got.status_code == 500
    assert got.json()["error"]["type"] == "InternalServerError"
    assert "secret" not in got.text


def test_a_handler_of_vllms_own_stays() -> None:
    app = FastAPI()

    async def own(request: Any, error: Exception) -> Any:
        raise NotImplementedError

    app.add_exception_handler(Exception, own)
    answer_in_openai_form(app)
    assert app.exception_handlers[Exception] is own
