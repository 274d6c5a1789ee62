"""The official OpenAI client against the running application, through HAProxy."""

from __future__ import annotations

import json
from importlib.metadata import version

import httpx
import openai
import psutil
import pytest

MODEL = "neuron-serve/demo"
VLLM = version("vllm").partition("+")[0]
QUESTION = [{"role": "user", "content": "What is neuron-serve?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City name"}},
            "required": ["city"],
        },
    },
}
FACTS = {
    "What is neuron-serve?": "Ray Serve",
    "Which chips does it support?": "Inferentia2",
    "What is TTFT?": "first token",
    "How do I run it on a laptop?": "serve run configs/local-cpu.yaml",
    "How do I check a config?": "neuron-serve check",
}


def ask(client: openai.OpenAI, messages: list[dict[str, str]], **kwargs) -> str:
    done = client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=120, **kwargs
    )
    return done.choices[0].message.content


def test_the_port_is_haproxys(stack) -> None:
    names = {
        psutil.Process(connection.pid).name()
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == stack.port
    }
    assert names == {"haproxy"}


def test_models(client) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == (MODEL, "vllm", 1024)
    assert model.created > 0


@pytest.mark.parametrize("question", FACTS)
def test_chat_knows_the_project(client, question: str) -> None:
    assert FACTS[question] in ask(client, [{"role": "user", "content": question}])


def test_streamed_equals_whole(client) -> None:
    whole = ask(client, QUESTION)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_tokens=120,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole
    assert len(chunks) > 10
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 10


def test_two_turns(client) -> None:
    messages = [{"role": "user", "content": "My name is Anna."}]
    messages.append({"role": "assistant", "content": ask(client, messages)})
    messages.append({"role": "user", "content": "What is my name?"})
    assert "Anna" in ask(client, messages)


def test_tool_call(client) -> None:
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    done = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0, max_tokens=100
    )
    (call,) = done.choices[0].message.tool_calls
    assert done.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_completions_and_logprobs(client) -> None:
    done = client.completions.create(
        model=MODEL, prompt="neuron-serve", max_tokens=5, temperature=0, logprobs=2, n=1
    )
    assert done.usage.completion_tokens == 5
    assert len(done.choices[0].logprobs.tokens) == 5


def test_responses(client) -> None:
    done = client.responses.create(
        model=MODEL, input="What is TTFT?", temperature=0, max_output_tokens=120
    )
    assert FACTS["What is TTFT?"] in done.output_text


def test_the_rest_of_vllms_routes(stack) -> None:
    with httpx.Client(base_url=stack.url, timeout=30) as http:
        tokens = http.post("/tokenize", json={"model": MODEL, "prompt": "hello"}).json()["tokens"]
        text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()["prompt"]
        assert text == "hello"
        assert http.get("/health").status_code == 200
        assert http.get("/version").json() == {"version": VLLM}
        assert "vllm:num_requests_running" in http.get("/metrics").text
        assert http.get("/openapi.json").json()["paths"].keys() >= {"/v1/messages", "/v1/responses"}


def test_rays_scrape_has_vllms_metrics_and_ours(stack, client) -> None:
    ask(client, QUESTION)
    labels = {"application": "demo", "deployment": "engine", "model_name": MODEL}
    generated = "ray_vllm_generation_tokens_total"
    stack.wait_until(lambda: sum(v for _, v in stack.scrape(generated, **labels)) > 0, 60)
    assert stack.scrape("ray_vllm_time_to_first_token_seconds_bucket", **labels)
    ((facts, one),) = stack.scrape("ray_neuron_serve_info", **labels)
    assert one == 1
    assert facts["replica"]
    assert (facts["backend"], facts["vllm_version"]) == ("cpu", VLLM)
    assert (facts["max_model_len"], facts["instance_type"]) == ("1024", "none")
    phases = {each["phase"]: on for each, on in stack.scrape("ray_neuron_serve_startup_phase")}
    assert phases == {"start": 0, "engine": 0, "weights": 0, **phases, "ready": 1}
    assert sum(phases.values()) == 1
    ((_, whole),) = stack.scrape("ray_neuron_serve_startup_seconds", **labels)
    spent = stack.scrape("ray_neuron_serve_startup_phase_seconds", **labels)
    assert sum(seconds for _, seconds in spent) == pytest.approx(whole)
    assert [s for _, s in stack.scrape("ray_neuron_serve_compile_seconds", **labels)] == [0]
    assert [up for _, up in stack.scrape("ray_neuron_serve_engine_up", **labels)] == [1]
    assert [n for _, n in stack.scrape("ray_neuron_serve_neuron_cores", **labels)] == [0]
    assert "neuron_serve_engine_up" in httpx.get(f"{stack.url}/metrics").text


def test_a_request_id_comes_back(stack) -> None:
    answer = httpx.get(f"{stack.url}/v1/models", headers={"X-Request-ID": "mine"})
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/chat/completions", "{bad", 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/chat/completions", {"model": "nope", "messages": QUESTION}, 404),
        ("POST", "/v1/chat/completions", {"model": MODEL}, 400),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": -1}, 400),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "x " * 4000}, 400),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "temperature": "hot"}, 400),
        ("GET", "/v1/nope", None, 404),
        ("PUT", "/v1/completions", None, 405),
        ("GET", "/v1/chat/completions", None, 405),
    ],
)
def test_errors_have_openais_form(stack, method, path, body, code) -> None:
    content = body if isinstance(body, str | None) else json.dumps(body)
    answer = httpx.request(
        method,
        stack.url + path,
        content=content,
        headers={"content-type": "application/json"},
        timeout=30,
    )
    assert answer.status_code == code, answer.text
    error = answer.json()["error"]
    assert {"message", "type", "code"} <= error.keys()
    assert error["code"] == code
    assert "Traceback" not in answer.text
    assert stack.metric("vllm:num_requests_running") == 0
