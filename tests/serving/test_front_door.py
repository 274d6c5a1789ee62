"""Many models behind one /v1, with keys and quotas: two models and a pair, behind HAProxy."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import psutil
import pytest

from serve_app.access.keyring import dump, issue
from tests.serving.conftest import HTTP
from tests.serving.disaggregated import engine_of
from tests.serving.door import Door, chat, completion


@pytest.mark.timeout(400)
def test_the_openai_client_lists_and_talks_to_each(door: Door) -> None:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key=door.texts["alice"]) as client:
        names = [model.id for model in client.models.list()]
        assert sorted(names) == ["demo", "demo-blue", "demo-green", "demo-pair"]
        assert client.models.retrieve("demo-pair").max_model_len == 1024  # type: ignore[attr-defined]
        answers = set()
        for name in names:
            made = client.chat.completions.create(**chat(name))
            assert made.model in ("demo-blue", "demo-green", "demo-pair")
            chunks = list(
                client.chat.completions.create(
                    **chat(name), stream=True, stream_options={"include_usage": True}
                )
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == made.choices[0].message.content
            assert chunks[-1].usage == made.usage
            answers.add(text)
        assert len(answers) == 1  # the same weights
    served = Counter(entry["application"] for entry in _settled(door, 8))
    assert served["pair"] >= 2


def test_a_canary_gets_its_share(door: Door) -> None:
    answered = Counter(
        door.post("/v1/completions", completion("demo", 3, i, max_tokens=1)).json()["model"]
        for i in range(60)
    )
    assert set(answered) == {"demo-blue", "demo-green"}
    assert 2 <= answered["demo-green"] <= 28  # 0.2 of 60, out of 1e-4 of the cases


def test_a_trace_through_what_the_front_door_relays(door: Door) -> None:
    trace, parent = uuid.uuid4().hex, "b" * 16
    late = {"user": "x" * 300_000, "prompt": "a", "max_tokens": 1, "model": "demo-green"}
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    assert door.post("/v1/completions", late, headers=headers).status_code == 200
    spans = door.collector.wait_for(lambda all_: sum(span.trace == trace for span in all_) == 3)
    below = {span.parent: span for span in spans if span.trace == trace}
    relay = below[parent]
    engine = below[relay.id]
    assert (relay.name, engine.name) == ("POST /v1/completions",) * 2
    assert below[engine.id].name == "llm_request"
    named = [span.resource["neuron_serve.deployment"] for span in (relay, engine)]
    assert named == ["front-door", "engine"]
    assert engine.attributes["neuron_serve.key"] == "alice"
    secret = door.texts["alice"].encode()
    assert not [body for body in door.collector.bodies if secret in body]


def test_bodies_larger_than_haproxys_buffer(door: Door) -> None:
    padding = {"user": "x" * 300_000}
    early = {"model": "demo-green", **padding, "prompt": "a", "max_tokens": 1}
    late = {**padding, "prompt": "a", "max_tokens": 1, "model": "demo-green"}
    for body in (early, late):
        reply = door.post("/v1/completions", body)
        assert (reply.status_code, reply.json()["model"]) == (200, "demo-green")
    reply = door.post("/v1/completions", {**early, "user": "x" * (3 << 20)})
    assert reply.status_code == 413
    assert "2 MiB" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "JSON object"),
        (b'{"model": "nobody"}', 404, "demo-blue, demo-green, demo-pair"),
        (b'{"model": "../blue/v1"}', 404, "does not exist"),
        (b'{"model": 7}', 400, "model"),
        (b'{"prompt": "a"}', 400, "`model` is missing"),
        (b'{"model": "demo-blue", "prompt": "a", "max_tokens": -1}', 400, "max_tokens"),
    ],
)
def test_what_is_no_request(door: Door, body: bytes, status: int, said: str) -> None:
    headers = {**door.headers(), "content-type": "application/json"}
    reply = HTTP.post(f"{door.url}/v1/completions", content=body, headers=headers)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert said in error["message"]
    assert error["type"]


def test_a_model_named_twice_is_the_one_that_vllm_reads(door: Door) -> None:
    body = b'{"model": "demo-green", "prompt": "a", "max_tokens": 1, "model": "demo-blue"}'
    headers = {**door.headers("only-blue"), "content-type": "application/json"}
    reply = HTTP.post(f"{door.url}/v1/completions", content=body, headers=headers)
    # HAProxy goes by the first and vLLM by the last: refused, never served by another's right.
    assert reply.status_code == 404 or reply.json()["model"] == "demo-blue"


def test_a_slow_and_a_huge_client_harm_nobody(door: Door) -> None:
    import socket

    port = door.stack.port
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        with socket.create_connection(("127.0.0.1", port)) as huge:
            huge.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000 + b"\r\n")
            huge.settimeout(10)
            assert huge.recv(100).startswith(b"HTTP/1.1 400")
        assert door.post("/v1/completions", chat("demo-blue") | {"prompt": "a"}).status_code == 200


def test_keys(door: Door) -> None:
    def refused(headers: dict[str, str], path: str = "/v1/completions") -> tuple[int, str]:
        reply = HTTP.post(f"{door.url}{path}", json=completion("demo-blue", 1, 1), headers=headers)
        return reply.status_code, reply.json()["error"]["message"]

    for path in ("/v1/completions", "/blue/v1/completions"):
        assert refused({}, path)[0] == 401
        assert refused({"authorization": "Bearer nonsense"}, path)[0] == 401
        assert "expired" in refused(door.headers("old"), path)[1]
    wrong = door.texts["alice"][:-3] + "abc"
    status, message = refused({"authorization": f"Bearer {wrong}"})
    assert status == 401
    assert wrong not in message
    assert HTTP.get(f"{door.url}/v1/models").status_code == 401
    mine = HTTP.get(f"{door.url}/v1/models", headers=door.headers("only-blue")).json()["data"]
    assert [card["id"] for card in mine] == ["demo-blue"]
    for path in ("/v1/completions", "/green/v1/completions", "/blue/v1/completions"):
        reply = door.post(path, completion("demo-green", 1, 1), "only-blue")
        assert reply.status_code == 404
    reply = door.post("/blue/v1/completions", completion("demo", 1, 1), "only-blue")
    assert reply.status_code == 404  # an alias is a name of its own
    assert door.post("/v1/completions", completion("demo-blue", 1, 1), "only-blue").is_success
    with_other_header = {"x-api-key": door.texts["alice"]}
    assert HTTP.get(f"{door.url}/v1/models", headers=with_other_header).is_success


def test_no_way_around_by_the_replicas_own_port(door: Door) -> None:
    replica = door.replica("blue")
    ports = {
        c.laddr.port
        for c in replica.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and 30000 <= c.laddr.port < 40000
    }
    reached = 0
    for port in ports:
        root = f"http://127.0.0.1:{port}/blue"
        try:
            if HTTP.get(f"{root}/health", timeout=5).status_code != 200:
                continue
        except httpx.HTTPError:
            continue  # a port of another protocol
        reached += 1
        schema = HTTP.get(f"{root}/openapi.json", headers=door.headers("root")).json()
        assert len(schema["paths"]) > 20
        for path, methods in schema["paths"].items():
            for method in methods:
                reply = HTTP.request(method.upper(), f"{root}{path}", json={})
                wanted = 200 if path in ("/health", "/ping") else 401
                assert reply.status_code == wanted, (method, path, reply.text)
        for path in ("/metrics", "/docs", "/openapi.json", "/nothing"):
            assert HTTP.get(f"{root}{path}").status_code == 401, path
        assert HTTP.get(f"{root}/openapi.json", headers=door.headers()).status_code == 403
    assert reached == 1


def test_no_key_is_in_a_log(door: Door) -> None:
    session = Path("/tmp/ray/session_latest/logs").resolve()
    secrets = [text[-20:] for text in door.texts.values()]
    for file in [door.stack.log, *session.rglob("*.log"), *session.rglob("*.out")]:
        text = file.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), file


def test_keys_are_read_anew(door: Door) -> None:
    before = door.keys.read_text()
    key, text = issue({"name": "new"})
    headers = {"authorization": f"Bearer {text}"}
    try:
        door.keys.write_text(before + dump([key]).removeprefix("keys:\n"))
        assert _within(5, lambda: HTTP.get(f"{door.url}/v1/models", headers=headers).is_success)
        assert _within(
            5, lambda: HTTP.get(f"{door.url}/blue/v1/models", headers=headers).is_success
        )
        door.keys.write_text(before + "  - nonsense: true\n")
        time.sleep(2.5)
        assert HTTP.get(f"{door.url}/v1/models", headers=headers).is_success
        assert HTTP.get(f"{door.url}/blue/v1/models", headers=headers).is_success
    finally:
        door.keys.write_text(before)
    assert _within(
        5, lambda: HTTP.get(f"{door.url}/blue/v1/models", headers=headers).status_code == 401
    )


def test_a_hundred_of_a_thousand(door: Door) -> None:
    """Over three applications at once: one count for all of them."""
    names = ["demo-blue", "demo-green", "demo-pair"]

    async def run() -> list[tuple[int, Any, Any]]:
        # Not httpx: its pool takes a second per 20 requests when 1,000 wait.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as client:

            async def one(i: int) -> tuple[int, Any, Any]:
                body = completion(names[i % 3], 2, i, max_tokens=1)
                url = f"{door.url}/v1/completions"
                headers = door.headers("hundred")
                async with client.post(url, json=body, headers=headers) as reply:
                    return reply.status, reply.headers, await reply.json()

            return await asyncio.gather(*(one(i) for i in range(1000)))

    begin = time.monotonic()
    replies = asyncio.run(run())
    assert time.monotonic() - begin < 60, "the window may have moved on"
    assert Counter(status for status, _, _ in replies) == {200: 100, 429: 900}
    headers, body = next((h, b) for status, h, b in replies if status == 429)
    assert int(headers["retry-after"]) >= 1
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert body["error"]["code"] == "rate_limit_exceeded"


def test_two_at_a_time(door: Door) -> None:
    async def run() -> list[int]:
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            body = completion("demo-green", 2, 1, max_tokens=60)
            asked = [
                client.post(f"{door.url}/v1/completions", json=body, headers=door.headers("two"))
                for _ in range(8)
            ]
            return [reply.status_code for reply in await asyncio.gather(*asked)]

    assert Counter(asyncio.run(run())) == {200: 2, 429: 6}
    assert door.post("/v1/completions", completion("demo-green", 2, 1), "two").is_success


def test_tokens_are_reserved_and_the_ceiling_holds(door: Door) -> None:
    reply = door.post("/v1/completions", completion("demo-blue", 5, 1, max_tokens=400), "tokens")
    assert reply.json()["usage"]["completion_tokens"] == 200
    remaining = int(reply.headers["x-ratelimit-remaining-tokens"])
    assert remaining <= 200_000 - 205
    for stream in (False, True):
        body = completion("demo-blue", 5, 1, max_tokens=600, stream=stream)
        reply = door.post("/v1/completions", body, "few-tokens")
        assert reply.status_code == 429
        assert "605 tokens" in reply.json()["error"]["message"]
    body = completion("demo-blue", 5, 1, max_tokens=20)
    assert door.post("/v1/completions", body, "few-tokens").is_success


@pytest.mark.timeout(200)
def test_the_ledger_is_the_sum_of_vllms_usage(door: Door) -> None:
    """Also when clients leave at any moment, streamed or not."""
    names = ["demo-blue", "demo-green", "demo-pair", "demo"]
    time.sleep((75 - time.time()) % 60)  # within one minute of the clock: second 15 to 60
    _settled(door)
    before = door.counted()

    async def run() -> Counter[str]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=60, verify=False) as client:

            async def one(i: int) -> str:
                draw = random.Random(i)
                body = completion(
                    draw.choice(names),
                    draw.randrange(1, 200),
                    i,
                    max_tokens=draw.randrange(1, 100),
                    stream=draw.random() < 0.5,
                )
                headers = door.headers("counted")
                try:
                    async with asyncio.timeout(draw.choice([0.1, 0.4, 0.8, 1.6, 40])):
                        url = f"{door.url}/v1/completions"
                        reply = await client.post(url, json=body, headers=headers)
                        return str(reply.status_code)
                except TimeoutError:
                    return "left"

            return Counter(await asyncio.gather(*(one(i) for i in range(100))))

    outcome = asyncio.run(run())
    assert outcome["left"] >= 10, outcome
    assert outcome["200"] >= 10, outcome
    assert outcome["left"] + outcome["200"] == 100, outcome
    entries = [entry for entry in _settled(door) if entry["key"] == "counted"]
    after = door.counted()
    assert any(entry["aborted"] for entry in entries)
    used = [
        sum(entry[kind] for entry in entries) for kind in ("prompt_tokens", "completion_tokens")
    ]
    assert used == [after[0] - before[0], after[1] - before[1]]
    # And what is left of this minute: all but that, and what this last request reserves.
    reply = door.post("/v1/completions", completion("demo-blue", 7, 0, max_tokens=1), "counted")
    remaining = int(reply.headers["x-ratelimit-remaining-tokens"])
    assert 200_000 - remaining == sum(used) + 8


def test_each_of_them_is_in_rays_scrape(door: Door) -> None:
    scrape = door.stack.scrape
    front_door = {"application": "front-door", "deployment": "front-door"}
    counted = "ray_neuron_serve_front_door_requests_total"
    outcomes = {"models", "unknown", "refused"}  # of the tests before
    door.stack.wait_until(
        lambda: outcomes <= {labels["outcome"] for labels, _ in scrape(counted, **front_door)}, 60
    )
    models = scrape("ray_neuron_serve_front_door_models", **front_door)
    assert {labels["state"]: n for labels, n in models} == {"ready": 4, "loading": 0}
    ready = scrape("ray_neuron_serve_startup_phase", phase="ready")
    assert {(one["application"], one["deployment"], one["model_name"]) for one, _ in ready} == {
        ("blue", "engine", "demo-blue"),
        ("green", "engine", "demo-green"),
        ("pair", "decode", "demo-pair"),
        ("pair", "prefill", "demo-pair"),
    }
    asked = scrape("ray_neuron_serve_requests_total", key="alice", status="200")
    assert {one["application"] for one, _ in asked} == {"blue", "green", "pair"}
    split = scrape("ray_neuron_serve_pd_requests_total", deployment="decode")
    assert [count > 0 for _, count in split] == [True]


def test_a_deadline_frees_the_engine(door: Door) -> None:
    for stream in (False, True):
        body = completion("demo-green", 5, 3, max_tokens=1000, stream=stream)
        headers = {"x-request-timeout": "0.4"}
        reply = door.post("/v1/completions", body, headers=headers)
        if stream:
            assert "x-request-timeout" in reply.text.splitlines()[-2]
            assert "[DONE]" not in reply.text
        else:
            assert reply.status_code == 504
        assert _within(2, lambda: door.running("green") == 0)
    reply = door.post("/v1/completions", chat("demo-green"), headers={"x-request-timeout": "soon"})
    assert reply.status_code == 400


def test_one_application_dies_and_the_others_go_on(door: Door) -> None:
    """Last: what it kills comes back slowly."""

    url = f"{door.url}/v1/completions"

    async def try_blue(client: httpx.AsyncClient) -> tuple[int, str]:
        try:
            reply = await client.post(
                url, json=completion("demo-blue", 2, 1), headers=door.headers()
            )
        except httpx.RemoteProtocolError:
            return 0, ""  # HAProxy, where a connection that it used before ends under a request
        return reply.status_code, reply.text

    async def run() -> tuple[str, set[int], bool, int]:
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            body = completion("demo-green", 5, 3, max_tokens=900, stream=True)
            async with client.stream("POST", url, json=body, headers=door.headers()) as reply:
                lines = reply.aiter_lines()
                assert (await anext(lines)).startswith("data: ")
                blue = door.replica("blue")
                engine_of(blue).kill()
                blue.kill()
                statuses, told = set(), False
                for _ in range(100):
                    status, text = await try_blue(client)
                    statuses.add(status)
                    if told := "The model demo-blue is" in text:
                        break
                    await asyncio.sleep(0.2)
                # Its own prefix is Ray's matter, which holds the request.
                held = await client.post(
                    url.replace("/v1", "/blue/v1"),
                    json=completion("demo-blue", 2, 1),
                    headers=door.headers(),
                    timeout=150,
                )
                text = "\n".join([line async for line in lines])
                return text, statuses, told, held.status_code

    text, statuses, told, held = asyncio.run(run())
    assert text.rstrip().endswith("data: [DONE]")
    assert statuses <= {0, 500, 502, 503}, statuses
    assert told, "no 503 with the phase"
    assert held == 200
    for _ in range(10):  # the name that both serve goes to the one that lives
        assert door.post("/v1/completions", completion("demo", 2, 1)).is_success
    assert _within(120, lambda: "demo-blue" in door.names())
    assert door.post("/v1/completions", completion("demo-blue", 2, 1)).is_success


def _within(seconds: float, true: Any) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.1)
    return False


def _settled(door: Door, at_least: int = 0) -> list[dict[str, Any]]:
    """The record of use, once nothing is added to it any more."""
    last = -1
    for _ in range(20):
        time.sleep(1.5)
        now = len(door.recorded())
        if now == last and now >= at_least:
            break
        last = now
    return door.recorded()
