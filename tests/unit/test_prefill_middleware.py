"""The prefill leg, seen from a client and from the decode engine's app."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.config import Prefill
from serve_app.ingress.in_process import post
from serve_app.ingress.kv_transfer import WHOLE_ROUTES
from serve_app.ingress.prefill import Answer, PrefillMiddleware, Unavailable
from tests.unit.stand_in_prefill import (
    CHAT,
    GOOD,
    PARAMS,
    REQUEST,
    App,
    StandInPrefills,
    ask,
    change,
)

pytestmark = pytest.mark.anyio

ERROR = Prefill(fallback="error")


async def test_a_request_becomes_two() -> None:
    app, prefills = App(), StandInPrefills()
    answer = await ask(app, prefills, REQUEST)
    assert (answer.status, answer.json()) == (200, {"text": "hello"})
    (leg,) = prefills.legs
    assert leg.path == CHAT
    assert leg.tokens == 2
    sent = json.loads(leg.body)
    assert sent["messages"] == REQUEST["messages"]
    assert sent["max_tokens"] == 1
    assert sent["stream"] is False
    assert sent["kv_transfer_params"]["do_remote_decode"] is True
    assert app.json() == {**REQUEST, "kv_transfer_params": PARAMS}
    assert app.header(b"content-length") == b"%d" % len(app.body)


async def test_a_stream_passes_as_it_is() -> None:
    app = App(stream=[b"data: 1\n\n", b"", b"data: 2\n\n"])
    answer = await ask(app, StandInPrefills(), {**REQUEST, "stream": True})
    assert answer.chunks == [b"data: 1\n\n", b"", b"data: 2\n\n", b""]
    assert app.json()["stream"] is True


async def test_who_asks_travels_and_nothing_else() -> None:
    travels = [
        (b"authorization", b"Bearer k\xe9y"),
        (b"x-request-id", b"mine"),
        (b"traceparent", b"00-1-2-01"),
        (b"tracestate", b"a=1"),
        (b"tracestate", b"b=2"),
    ]
    stays = [(b"cookie", b"c"), (b"x-data-parallel-rank", b"1"), (b"content-type", b"text/x")]
    app, prefills = App(), StandInPrefills()
    await ask(app, prefills, REQUEST, headers=[*stays, *travels])
    assert sorted(prefills.legs[0].headers) == sorted(travels)
    assert set(app.scope["headers"]) >= {*stays, *travels}


async def test_both_legs_have_one_request_id() -> None:
    seen = set()
    for _ in range(2):
        app, prefills = App(), StandInPrefills()
        await ask(app, prefills, REQUEST)
        ((name, given),) = prefills.legs[0].headers
        assert name == b"x-request-id"
        assert given == app.header(b"x-request-id")
        seen.add(given)
    assert len(seen) == 2


@pytest.mark.parametrize("policy", [Prefill(), ERROR], ids=["decode", "error"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/inference/v1/x"])
@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"remote_host": "h"}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"sampling_params": {"extra_args": {"kv_transfer_params": {}}}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_client_does_not_name_a_cache(
    path: str, fields: dict[str, Any], policy: Prefill
) -> None:
    app, prefills = App(), StandInPrefills()
    answer = await ask(app, prefills, {**REQUEST, **fields}, path=path, policy=policy)
    assert answer.status == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (400, "BadRequestError")
    assert error["param"] == "kv_transfer_params"
    assert not app.called
    assert not prefills.legs


FAILURES = [
    (Unavailable("full"), "full"),
    (Unavailable("timeout"), "timeout"),
    (Answer(500, b"oh", 0.1), "failed"),
    (Answer(503, b"{}", 0.1), "failed"),
    (Answer(200, b"no json", 0.1), "failed"),
    (Answer(200, b"[1]", 0.1), "failed"),
    (Answer(200, b"{}", 0.1), "failed"),
    (Answer(200, b'{"kv_transfer_params": null}', 0.1), "failed"),
    (Answer(200, b'{"kv_transfer_params": "x"}', 0.1), "failed"),
    (Answer(302, b"", 0.1), "failed"),
]


@pytest.mark.parametrize(("outcome", "reason"), FAILURES, ids=repr)
async def test_decode_takes_over(outcome: Answer | Unavailable, reason: str) -> None:
    app = App()
    raw = b'{ "prompt":  "spaced\\u0020out" }'
    with change(f'neuron_serve_pd_fallbacks_total{{reason="{reason}"}}') as fallbacks:
        answer = await ask(app, StandInPrefills(outcome), raw, path="/v1/completions")
    assert answer.status == 200
    assert app.body == raw
    assert fallbacks() == 1


@pytest.mark.parametrize(("outcome", "reason"), FAILURES, ids=repr)
async def test_or_the_client_is_told(outcome: Answer | Unavailable, reason: str) -> None:
    app = App()
    answer = await ask(app, StandInPrefills(outcome), REQUEST, policy=ERROR)
    assert answer.status == 503
    assert answer.headers[b"retry-after"] == b"2"
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (503, "ServiceUnavailableError", None)
    assert reason in error["message"]
    assert not app.called


@pytest.mark.parametrize("status", [400, 401, 404, 429, 499])
async def test_decode_judges_what_prefill_refuses(status: int) -> None:
    app = App()
    refused = Answer(status, b'{"error": {}}', 0.1)
    failed = 'neuron_serve_pd_fallbacks_total{reason="failed"}'
    with change("neuron_serve_pd_requests_total") as split, change(failed) as fallbacks:
        answer = await ask(app, StandInPrefills(refused), REQUEST)
    assert fallbacks() == 0
    assert answer.status == 200
    assert app.json() == REQUEST
    assert split() == 0


async def test_a_decode_engine_that_cannot_prefill_is_not_asked_to_judge() -> None:
    app = App()
    refused = Answer(400, b'{"error": {"message": "too long"}}', 0.1)
    answer = await ask(app, StandInPrefills(refused), REQUEST, policy=ERROR)
    assert answer.status == 400
    assert answer.json() == {"error": {"message": "too long"}}
    assert answer.headers[b"content-type"] == b"application/json"
    assert not app.called


async def test_the_first_transfer_passes() -> None:
    """It is of this process, brings its parameters, and also comes while users are served."""
    app, prefills = App(), StandInPrefills()
    middleware = PrefillMiddleware(app, prefills, ERROR)
    request = {"prompt": [1, 2], "kv_transfer_params": {"do_remote_prefill": True}}
    status, _ = await post(middleware, "/v1/completions", json.dumps(request).encode())
    assert (status, app.json(), prefills.legs) == (200, request, [])


WHOLE = {**REQUEST, "n": 2}


async def test_what_cannot_be_split_decode_serves_alone() -> None:
    app, prefills = App(), StandInPrefills()
    with change('neuron_serve_pd_whole_total{reason="n > 1"}') as alone:
        await ask(app, prefills, WHOLE)
    assert app.json() == WHOLE
    assert not prefills.legs
    assert alone() == 1


async def test_or_it_is_refused() -> None:
    app = App()
    answer = await ask(app, StandInPrefills(), WHOLE, policy=ERROR)
    assert answer.status == 400
    assert "n > 1" in answer.json()["error"]["message"]
    assert not app.called


@pytest.mark.parametrize("path", sorted(WHOLE_ROUTES))
async def test_routes_that_are_not_split(path: str) -> None:
    app, prefills = App(), StandInPrefills()
    with change(f'neuron_serve_pd_whole_total{{reason="requests to {path}"}}') as alone:
        await ask(app, prefills, REQUEST, path=path)
    assert (app.json(), prefills.legs, alone()) == (REQUEST, [], 1)
    refused = await ask(App(), prefills, REQUEST, path=path, policy=ERROR)
    assert refused.status == 400
    assert path in refused.json()["error"]["message"]


@pytest.mark.parametrize(("tokens", "legs"), [(7, 0), (8, 1), (9, 1)])
async def test_a_short_prompt_stays(tokens: int, legs: int) -> None:
    app, prefills = App(), StandInPrefills()
    policy = Prefill(min_prompt_tokens=8)
    request = {"prompt": list(range(tokens))}
    with change('neuron_serve_pd_whole_total{reason="short prompt"}') as alone:
        await ask(app, prefills, request, path="/v1/completions", policy=policy)
    assert len(prefills.legs) == legs
    assert alone() == 1 - legs
    assert ("kv_transfer_params" in app.json()) == bool(legs)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/tokenize", "POST"),
        ("/v1/embeddings", "POST"),
        ("/v1/completions/render", "POST"),
        (CHAT, "GET"),
        (CHAT, "PUT"),
        ("/health", "GET"),
    ],
)
async def test_other_routes_pass(path: str, method: str) -> None:
    app, prefills = App(), StandInPrefills()
    raw = b'{"prompt" : "p", "messages":[]}'
    answer = await ask(app, prefills, raw, path=path, method=method, policy=ERROR)
    assert (answer.status, app.body, prefills.legs) == (200, raw, [])


@pytest.mark.parametrize(
    "raw",
    [b"", b"no json", b"[1]", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' * 5000],
    ids=["empty", "text", "list", "string", "bytes", "deep", "deep-objects"],
)
async def test_what_is_no_json_object_is_for_the_app_to_refuse(raw: bytes) -> None:
    app, prefills = App(), StandInPrefills()
    await ask(app, prefills, raw, policy=ERROR)
    assert (app.body, prefills.legs) == (raw, [])


async def test_a_body_in_many_chunks() -> None:
    app, prefills = App(), StandInPrefills()
    request = {"prompt": "word " * 400_000}
    raw = json.dumps(request).encode()
    chunks = [raw[i : i + 65_536] for i in range(0, len(raw), 65_536)]
    await ask(app, prefills, chunks, path="/v1/completions")
    assert len(chunks) > 20
    assert app.json() == {**request, "kv_transfer_params": PARAMS}
    await ask(app, prefills, chunks, path="/v1/audio")
    assert app.body == raw


async def test_below_a_route_prefix() -> None:
    app, prefills = App(), StandInPrefills()
    await ask(app, prefills, REQUEST, path=f"/llama{CHAT}", root_path="/llama")
    assert prefills.legs[0].path == CHAT
    assert app.scope["path"] == f"/llama{CHAT}"
    assert app.scope["root_path"] == "/llama"
    prefills.legs.clear()
    await ask(app, prefills, REQUEST, path=f"/other{CHAT}")
    assert not prefills.legs


@pytest.mark.parametrize(
    ("routing", "headers", "field", "session"),
    [
        ("session", [(b"x-session-id", b"s1")], {"prompt_cache_key": "key"}, "s1"),
        ("session", [], {"prompt_cache_key": "key"}, "key"),
        ("session", [], {"prompt_cache_key": ["key"]}, None),
        ("session", [], {"prompt_cache_key": ""}, None),
        ("session", [], {}, None),
        ("tokens", [(b"x-session-id", b"s1")], {"prompt_cache_key": "key"}, None),
    ],
)
async def test_the_session_of_a_leg(
    routing: Any, headers: list[tuple[bytes, bytes]], field: dict[str, Any], session: str | None
) -> None:
    prefills = StandInPrefills()
    policy = Prefill(routing=routing)
    await ask(App(), prefills, {**REQUEST, **field}, headers=headers, policy=policy)
    assert prefills.legs[0].session == session


async def test_metrics_of_a_split_request() -> None:
    with (
        change("neuron_serve_pd_requests_total") as split,
        change("neuron_serve_pd_prefill_seconds_sum") as compute,
        change("neuron_serve_pd_wait_seconds_count") as waits,
        change("neuron_serve_pd_first_token_seconds_count") as firsts,
    ):
        await ask(App(), StandInPrefills(GOOD), REQUEST)
        assert (split(), waits()) == (1, 1)
        assert compute() == pytest.approx(GOOD.seconds)
        assert firsts() == 0  # the first byte of a whole answer tells nothing of the first token
        stream = App(stream=[b"data: 1\n\n", b"data: 2\n\n"])
        await ask(stream, StandInPrefills(), {**REQUEST, "stream": True})
        assert firsts() == 1
        assert split() == 2
