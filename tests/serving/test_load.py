"""Many streams at a time, and streams that nobody reads any more."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

MODEL = "neuron-serve/demo"
QUESTIONS = [
    "What is neuron-serve?",
    "Which chips does it support?",
    "What is TTFT?",
    "What is a replica?",
    "How do I check a config?",
]


async def stream(client: openai.AsyncOpenAI, question: str) -> str:
    """The whole answer; a stream that ends without a finish reason is no answer."""
    messages = [{"role": "user", "content": question}]
    chunks = await client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=100, stream=True
    )
    text, finish = "", None
    async for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "stop"
    return text


@pytest.mark.timeout(300)
def test_200_concurrent_streams_are_complete_and_equal(stack) -> None:
    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(limits=limits, timeout=240) as http,
            openai.AsyncOpenAI(
                base_url=f"{stack.url}/v1", api_key="none", max_retries=0, http_client=http
            ) as client,
        ):
            alone = {question: await stream(client, question) for question in QUESTIONS}
            asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(200)]
            answers = await asyncio.gather(*(stream(client, question) for question in asked))
        assert len(set(alone.values())) == len(QUESTIONS)
        assert list(answers) == [alone[question] for question in asked]

    asyncio.run(run())
