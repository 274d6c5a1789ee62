"""LoRA adapters behind the front door, from the start and loaded later; middleware of the user."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.conftest import HTTP, free_port, issue_keys, start
from tests.serving.lora_adapter import write_adapter

CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: front-door
    route_prefix: /
    import_path: serve_app:build_front_door
    args:
      upstream: http://127.0.0.1:{port}
      access: {access}
  - name: demo
    route_prefix: /demo
    import_path: serve_app:build_app
    args:
      backend: cpu
      model: {{id: demo-base, source: "builtin:demo"}}
      engine:
        max_model_len: 1024
        max_num_seqs: 8
        enforce_eager: true
        enable_lora: true
        max_loras: 2
        max_lora_rank: 8
        lora_modules:
          - {{name: tuned, path: {tuned}, base_model_name: demo-base}}
          - short={short}
        middleware: [neuron_serve_test_tag.Tag, neuron_serve_test_tag.other]
      env: {{VLLM_ALLOW_RUNTIME_LORA_UPDATING: "True"}}
      resources: {{num_cpus: 0.2}}
      health: {{drain_timeout_s: 5}}
      access: {access}
"""
MIDDLEWARE = """
from pathlib import Path


class Tag:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def tagged(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-tag", b"seen")]
            await send(message)

        if scope["type"] == "http":
            with Path(__file__).with_name("seen").open("a") as file:
                print(dict(scope["headers"]).get(b"x-test", b"").decode(), file=file)
        await self.app(scope, receive, tagged)


async def other(request, call_next):
    answer = await call_next(request)
    answer.headers["x-other"] = "seen"
    return answer
"""
KEYS: list[dict[str, Any]] = [
    {"name": "alice"},
    {"name": "only-base", "models": ["demo-base"]},
    {"name": "only-tuned", "models": ["tuned"]},
    {"name": "root", "admin": True},
]
START_S = 150


class Adapted:
    """The running stack, its keys, and how to ask it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.usage = directory / "usage"
        self.usage.mkdir()
        keys = directory / "keys.yaml"
        self.texts = issue_keys(keys, KEYS)
        modules = directory / "modules"
        modules.mkdir()
        (modules / "neuron_serve_test_tag.py").write_text(MIDDLEWARE)
        self.seen = modules / "seen"
        self.late = write_adapter(directory / "late", 3)
        port = free_port()
        config = directory / "lora.yaml"
        config.write_text(
            CONFIG.format(
                port=port,
                access=f"{{keys: {keys}, usage: {self.usage}}}",
                tuned=write_adapter(directory / "tuned", 1),
                short=write_adapter(directory / "short", 2),
            )
        )
        command = ["neuron-serve", "run", "--address", "local", str(config)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(modules), prepend=":")
            self.stack = start(command, port, directory / "log")

    def wait(self) -> None:
        self.stack.wait_until(lambda: "demo-base" in self.cards(), START_S)

    def headers(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[name]}"}

    def cards(self, key: str = "alice") -> dict[str, dict[str, Any]]:
        """What the front door lists for the key, by name."""
        reply = HTTP.get(f"{self.stack.url}/v1/models", headers=self.headers(key))
        return {card["id"]: card for card in reply.json()["data"]}

    def post(self, path: str, body: Any, key: str = "alice", **headers: str) -> httpx.Response:
        headers = {**self.headers(key), **headers}
        return HTTP.post(f"{self.stack.url}{path}", json=body, headers=headers)

    def ask(self, model: str, key: str = "alice") -> httpx.Response:
        return self.post("/v1/completions", completion(model), key)

    def text(self, model: str) -> str:
        reply = self.ask(model)
        assert reply.status_code == 200, reply.text
        body = reply.json()
        assert body["model"] == model
        return str(body["choices"][0]["text"])

    def recorded(self) -> list[dict[str, Any]]:
        files = sorted(self.usage.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def completion(model: str) -> dict[str, Any]:
    prompt = "<|im_start|>user\nWhat is TTFT?<|im_end|>\n<|im_start|>assistant\n"
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16}


def within(seconds: float, true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    made = Adapted(tmp_path_factory.mktemp("lora"))
    try:
        made.wait()
        yield made
    finally:
        if made.stack.process.poll() is None:
            made.stack.stop()


def test_adapters_are_models_with_a_parent(adapted: Adapted) -> None:
    cards = adapted.cards()
    assert set(cards) == {"demo-base", "tuned", "short"}
    assert [cards[name]["parent"] for name in ("demo-base", "tuned", "short")] == [
        None,
        "demo-base",
        "demo-base",
    ]
    base, tuned, short = (adapted.text(name) for name in cards)
    assert len({base, tuned, short}) == 3
    assert "first token" in base
    assert [adapted.text(name) for name in cards] == [base, tuned, short]


def test_a_key_for_the_adapter_is_none_for_the_model(adapted: Adapted) -> None:
    assert set(adapted.cards("only-tuned")) == {"tuned"}
    assert set(adapted.cards("only-base")) == {"demo-base"}
    for mine, key, other in (
        ("tuned", "only-tuned", "demo-base"),
        ("demo-base", "only-base", "tuned"),
    ):
        assert adapted.ask(mine, key).status_code == 200
        for path in ("/v1/completions", "/demo/v1/completions"):
            reply = adapted.post(path, completion(other), key)
            assert reply.status_code == 404
            assert f"The model `{other}` does not exist" in reply.json()["error"]["message"]


def test_a_request_without_a_model_means_the_base_model(adapted: Adapted) -> None:
    unnamed = {name: value for name, value in completion("").items() if name != "model"}
    for body in (unnamed, {**unnamed, "model": None}):
        reply = adapted.post("/demo/v1/completions", body, "only-base")
        assert reply.json()["model"] == "demo-base"
        assert adapted.post("/demo/v1/completions", body, "only-tuned").status_code == 404
        assert adapted.post("/v1/completions", body, "only-tuned").status_code == 400


def test_sagemakers_header_names_the_adapter(adapted: Adapted) -> None:
    """vLLM's /invocations puts it into the body's `model`."""
    header = {"x-amzn-sagemaker-adapter-identifier": "tuned"}
    for path in ("/invocations", "/demo/invocations"):
        reply = adapted.post(path, completion("demo-base"), **header)
        assert reply.json()["model"] == "tuned"
        reply = adapted.post(path, completion("demo-base"), "only-base", **header)
        assert reply.status_code == 404


def test_usage_is_the_adapters(adapted: Adapted) -> None:
    marks = {"tuned": 11, "short": 12, "demo-base": 13}  # tokens that nobody else asks for
    for name, count in marks.items():
        body = {**completion(name), "max_tokens": count, "ignore_eos": True}
        assert adapted.post("/v1/completions", body).is_success

    def lines() -> dict[str, int]:
        return {
            line["model"]: line["completion_tokens"]
            for line in adapted.recorded()
            if line["completion_tokens"] in marks.values()
            and (line["key"], line["application"]) == ("alice", "demo")
        }

    assert within(5, lambda: lines() == marks), lines()


def test_an_adapter_comes_and_goes(adapted: Adapted) -> None:
    load, unload = "/demo/v1/load_lora_adapter", "/demo/v1/unload_lora_adapter"
    new = {"lora_name": "late", "lora_path": str(adapted.late)}
    assert adapted.ask("late").status_code == 404
    for key in ("alice", "only-tuned"):
        assert adapted.post(load, new, key).status_code == 403
        assert adapted.post("/v1/load_lora_adapter", new, key).status_code in (400, 403)
        assert adapted.post(unload, {"lora_name": "tuned"}, key).status_code == 403
    assert "tuned" in adapted.cards()
    reply = adapted.post(load, new, "root")
    assert reply.status_code == 200, reply.text
    assert within(10, lambda: "late" in adapted.cards() and adapted.ask("late").is_success)
    assert adapted.cards()["late"]["parent"] == "demo-base"
    assert adapted.text("late") == adapted.text("late") != adapted.text("demo-base")
    assert adapted.post(unload, {"lora_name": "late"}, "root").status_code == 200
    assert within(
        10, lambda: "late" not in adapted.cards() and adapted.ask("late").status_code == 404
    )
    assert adapted.text("tuned")


def test_middleware_sees_only_who_may_ask(adapted: Adapted) -> None:
    def seen() -> list[str]:
        return adapted.seen.read_text().split()

    body = completion("tuned")
    reply = adapted.post("/v1/completions", body, **{"x-test": "allowed"})
    assert (reply.headers["x-tag"], reply.headers["x-other"]) == ("seen", "seen")
    assert "allowed" in seen()
    for path in ("/v1/completions", "/demo/v1/completions"):
        for headers in ({}, {"authorization": "Bearer nonsense"}):
            marked = {**headers, "x-test": "refused"}
            reply = HTTP.post(f"{adapted.stack.url}{path}", json=body, headers=marked)
            assert reply.status_code == 401
            assert "x-tag" not in reply.headers
        reply = adapted.post(path, body, "only-base", **{"x-test": "refused"})
        assert reply.status_code == 404
    assert "refused" not in seen()
