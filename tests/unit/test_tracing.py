"""Spans as a real collector gets them: OpenTelemetry's SDK and exporter, OTLP over HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.access.keyring import Keyring, dump, issue, parse
from serve_app.backends import engines, make_plan
from serve_app.backends.traces import with_traces
from serve_app.config import ConfigError, Limits, Prefill, parse_args
from serve_app.front_door import Directory, FrontDoor
from serve_app.ingress import add_ingress
from serve_app.ingress.access import Access
from serve_app.ingress.prefill import Answer, Leg, Unavailable
from serve_app.ingress.tracing import traced
from serve_app.telemetry import spans, traces
from serve_app.telemetry.spans import TracingMiddleware
from serve_app.telemetry.traces import endpoint, flush, prepare
from tests.collector import Collector, Span
from tests.unit.stand_in_prefill import CHAT, GOOD, REQUEST, Client, Got, StandInPrefills, scope_of
from tests.unit.stand_in_upstream import served, upstream
from tests.unit.test_directory import ready

pytestmark = pytest.mark.anyio

SECRET = "my hovercraft is full of eels"
TRACE, PARENT = "a" * 32, "b" * 16
GIVEN = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())
TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    """A process has one provider of traces, as the SDK has it; here each span leaves as it ends."""
    collector = Collector()
    provider = TracerProvider(shutdown_on_exit=False)
    url = endpoint(collector.environment)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=url)))
    trace.set_tracer_provider(provider)
    yield collector
    provider.shutdown()
    collector.close()


@pytest.fixture
def collector(receiver: Collector) -> Collector:
    receiver.spans.clear()
    receiver.bodies.clear()
    return receiver


class App:
    """Answers with a status, leaves what vLLM leaves, and keeps the scope."""

    def __init__(self, status: int = 200, error: Exception | None = None) -> None:
        self.status, self.error = status, error
        self.scope: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        await receive()
        if self.error is not None:
            raise self.error
        usage = SimpleNamespace(prompt_tokens=7, completion_tokens=5)
        scope["state"]["request_metadata"] = SimpleNamespace(final_usage_info=usage)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        for chunk in (b"1", b"2"):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def parent(self) -> tuple[str, str]:
        """Trace and span that the app's `traceparent` names; it has one."""
        ((_, value),) = [each for each in self.scope["headers"] if each[0] == b"traceparent"]
        match = TRACEPARENT.fullmatch(value)
        assert match
        return match[1].decode(), match[2].decode()


async def ask(app: Any, **options: Any) -> Got:
    got = Got()
    middleware = TracingMiddleware(app, {"gen_ai.response.model": "demo"})
    await middleware(scope_of(**options), Client([SECRET.encode()]).receive, got.send)
    return got


async def test_a_request_without_a_trace_starts_one(collector: Collector) -> None:
    app = App()
    got = await ask(app, headers=[(b"x-request-id", b"mine"), (b"authorization", b"Bearer k")])
    assert (got.status, got.chunks) == (200, [b"1", b"2", b""])
    (span,) = collector.spans
    assert (span.name, span.kind, span.parent) == (f"POST {CHAT}", "SERVER", "")
    assert app.parent() == (span.trace, span.id)
    assert span.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": CHAT,
        "url.scheme": "http",
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": "demo",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "neuron_serve.request_id": "mine",
    }
    assert not span.failed


async def test_a_clients_trace_goes_on(collector: Collector) -> None:
    app = App()
    await ask(app, headers=[GIVEN, (b"tracestate", b"a=1"), (b"x-other", b"1")])
    (span,) = collector.spans
    assert (span.trace, span.parent) == (TRACE, PARENT)
    assert app.parent() == (TRACE, span.id)
    assert app.scope["headers"].count((b"tracestate", b"a=1")) == 1
    assert (b"x-other", b"1") in app.scope["headers"]


@pytest.mark.parametrize(
    "broken",
    [b"", b"00-1-2-01", b"\xff\xfe", f"00-{'0' * 32}-{PARENT}-01".encode(), b"x" * 10_000],
)
async def test_a_broken_traceparent_is_none(collector: Collector, broken: bytes) -> None:
    app = App()
    await ask(app, headers=[(b"traceparent", broken), (b"tracestate", b"a=1")])
    (span,) = collector.spans
    assert (span.parent, app.parent()) == ("", (span.trace, span.id))
    assert not [each for each in app.scope["headers"] if each[0] == b"tracestate"]


async def test_what_its_client_does_not_record_is_not_recorded(collector: Collector) -> None:
    app = App()
    await ask(app, headers=[(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
    assert collector.spans == []
    ((_, value),) = app.scope["headers"]
    assert value.startswith(f"00-{TRACE}-".encode())
    assert value.endswith(b"-00")


@pytest.mark.parametrize(("status", "failed"), [(400, False), (429, False), (500, True)])
async def test_statuses(collector: Collector, status: int, failed: bool) -> None:
    await ask(App(status))
    (span,) = collector.spans
    assert span.attributes["http.response.status_code"] == status
    assert (span.failed, span.attributes.get("error.type")) == (failed, "500" if failed else None)


async def test_an_exception_is_named_and_not_quoted(collector: Collector) -> None:
    with pytest.raises(ValueError, match=SECRET):
        await ask(App(error=ValueError(SECRET)))
    (span,) = collector.spans
    assert (span.failed, span.message, span.events) == (True, "", 0)
    assert span.attributes["error.type"] == "ValueError"
    assert span.attributes["http.response.status_code"] == 500
    assert not [body for body in collector.bodies if SECRET.encode() in body]


async def test_a_client_that_leaves(collector: Collector) -> None:
    async def answers_never(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(answers_never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = collector.spans
    assert span.attributes["neuron_serve.client_left"] is True
    assert not span.failed


async def test_what_is_not_asked_of_a_model_has_no_span(collector: Collector) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])

    await ask(app, path="/v1/models", method="GET")
    assert (collector.spans, seen) == ([], [[]])


async def test_a_path_is_no_name(collector: Collector) -> None:
    await ask(App(), path=f"/v1/{SECRET}")
    await ask(App(), path=f"/llama{CHAT}", root_path="/llama")
    assert [span.name for span in collector.spans] == ["POST", f"POST {CHAT}"]


def replica(prefills: Any, access: Access | None = None) -> FastAPI:
    """An app as a decode replica serves it, around a route that answers with its headers."""
    app = FastAPI()

    async def answer(request: Request) -> Response:
        return JSONResponse(dict(request.headers))

    app.router.add_route(CHAT, answer, methods=["POST"])
    add_ingress(app, Limits(), access, prefills, Prefill(), {"gen_ai.response.model": "demo"})
    return app


async def post(app: FastAPI, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        return await client.post(CHAT, json=REQUEST, headers=headers)


def named(collector: Collector) -> dict[str, Span]:
    return {span.name: span for span in collector.spans}


async def test_the_prefill_leg_is_below_its_request(collector: Collector) -> None:
    prefills = StandInPrefills(GOOD)
    answer = await post(replica(prefills), traceparent=GIVEN[1].decode())
    spans = named(collector)
    server, leg = spans[f"POST {CHAT}"], spans["prefill"]
    assert (server.parent, leg.parent, leg.kind) == (PARENT, server.id, "CLIENT")
    assert {server.trace, leg.trace} == {TRACE}
    assert leg.attributes["neuron_serve.prefill.seconds"] == 0.25
    # To the prefill engine the leg is the parent, to the decode engine the request.
    sent = dict(prefills.legs[0].headers)
    assert sent[b"traceparent"].decode() == f"00-{TRACE}-{leg.id}-01"
    assert answer.json()["traceparent"] == f"00-{TRACE}-{server.id}-01"
    assert sent[b"x-request-id"].decode() == answer.json()["x-request-id"]


async def test_a_leg_that_fails(collector: Collector) -> None:
    assert (await post(replica(StandInPrefills(Unavailable("full"))))).status_code == 200
    spans = named(collector)
    assert (spans["prefill"].failed, spans["prefill"].attributes["error.type"]) == (True, "full")
    assert not spans[f"POST {CHAT}"].failed


async def test_a_leg_that_nobody_waits_for(collector: Collector) -> None:
    prefills = StandInPrefills(hold=True)
    task = asyncio.ensure_future(traced(prefills)(Leg(CHAT, b"{}", (GIVEN,), 2)))
    await prefills.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert prefills.cancelled
    assert [(span.name, span.failed) for span in collector.spans] == [("prefill", False)]


async def test_an_answer_of_the_prefill_engine(collector: Collector) -> None:
    await post(replica(StandInPrefills(Answer(400, b"{}", 0.1))))
    assert named(collector)["prefill"].attributes["http.response.status_code"] == 400


async def test_the_keys_name_and_never_its_text(collector: Collector) -> None:
    key, text = issue({"name": "alice"})
    keyring = parse(dump([key]))
    assert isinstance(keyring, Keyring)
    file: Any = SimpleNamespace(keyring=keyring)
    app = replica(None, Access("demo", lambda: ["demo"], file))
    assert (await post(app, authorization=f"Bearer {text}")).status_code == 200
    assert (await post(app, authorization="Bearer sk-of-nobody")).status_code == 401
    let_in, refused = collector.spans
    assert let_in.attributes["neuron_serve.key"] == "alice"
    assert "neuron_serve.key" not in refused.attributes
    assert refused.attributes["http.response.status_code"] == 401
    for body in collector.bodies:
        assert text.encode() not in body
        assert b"sk-of-nobody" not in body
        assert b"8 bytes." not in body


async def test_through_the_front_door(collector: Collector) -> None:
    """Its span is the parent of the replica's, which gets a `traceparent` over real HTTP."""
    with upstream() as behind:
        routes = {"/": "front-door", "/llama": "llama"}
        directory = Directory.build(routes, [ready("llama", "llama")], {}, {})
        door = FrontDoor(lambda: directory, behind.url, 2**20)
        with served(TracingMiddleware(door, {})) as url:
            body = {"model": "llama", "messages": [{"role": "user", "content": SECRET}]}
            answer = await asyncio.to_thread(
                httpx.post, url + CHAT, json=body, headers={"traceparent": GIVEN[1].decode()}
            )
        assert answer.status_code == 200
        (sent,) = behind.asked[0].header(b"traceparent")
    (span,) = collector.wait_for(bool)
    assert (span.trace, span.parent, span.kind) == (TRACE, PARENT, "SERVER")
    assert sent.decode() == f"00-{TRACE}-{span.id}-01"


BASE, OWN = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL, OWN_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({BASE: ""}, None),
        ({BASE: "http://c:4317"}, "http://c:4317"),
        ({BASE: "http://c:4318", PROTOCOL: "http/protobuf"}, "http://c:4318/v1/traces"),
        ({BASE: "http://c:4318/x/", OWN_PROTOCOL: "http/protobuf"}, "http://c:4318/x/v1/traces"),
        ({BASE: "http://c:4317", OWN: "http://d/t", PROTOCOL: "http/protobuf"}, "http://d/t"),
        ({BASE: "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None),
        ({BASE: "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_where_traces_go(environment: dict[str, str], url: str | None) -> None:
    assert endpoint(environment) == url
    args = parse_args({"model": {"id": "m", "source": "builtin:demo"}})
    plan = with_traces(make_plan(args), environment)
    assert plan.engine_args.get("otlp_traces_endpoint") == url
    command = " ".join(plan.command("m", ["m"]))
    assert (f"--otlp-traces-endpoint={url}" in command) == (url is not None)


def test_the_engine_argument_wins() -> None:
    both = {"model": {"id": "m", "source": "builtin:demo"}, "prefill": {}}
    args = parse_args({**both, "engine": {"otlp_traces_endpoint": "http://mine:4317"}})
    for part in engines(args).values():
        plan = with_traces(make_plan(part), {BASE: "http://c:4317"})
        assert plan.engine_args["otlp_traces_endpoint"] == "http://mine:4317"


def test_who_spans_are_of() -> None:
    environment = {PROTOCOL: "http/protobuf", "OTEL_RESOURCE_ATTRIBUTES": "team=red"}
    prepare(environment, "a,b", "decode", "demo#decode#x=1")
    assert environment["OTEL_SERVICE_NAME"] == "neuron-serve"
    assert environment[OWN_PROTOCOL] == "http/protobuf"  # the one that vLLM reads
    given = environment["OTEL_RESOURCE_ATTRIBUTES"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", given)
        patch.setenv("OTEL_SERVICE_NAME", "mine")
        attributes = TracerProvider().resource.attributes
    assert attributes["service.name"] == "mine"
    assert attributes["service.instance.id"] == "demo#decode#x=1"
    assert attributes["neuron_serve.application"] == "a,b"
    assert attributes["neuron_serve.deployment"] == "decode"
    assert attributes["team"] == "red"


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"OTLP over 'http/json'.*set OTEL_EXP"):
        prepare({PROTOCOL: "http/json"}, "a", "engine", "r")
    monkeypatch.setattr(traces, "_PACKAGES", ("opentelemetry.exporter.nowhere.grpc",))
    with pytest.raises(ConfigError, match=r"opentelemetry-exporter-otlp is missing.*otel") as error:
        prepare({}, "a", "engine", "r")
    assert "\n" not in str(error.value)


async def test_a_collector_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request does not wait, the log gets one line, the end waits a bounded time."""
    prepare({}, "a", "engine", "r")
    theirs = logging.getLogger("opentelemetry")
    (handler,) = [one for one in theirs.handlers if isinstance(one, traces._Seldom)]
    monkeypatch.setattr(handler, "_said", -1e9)
    with socket.socket() as never:
        never.bind(("127.0.0.1", 0))  # and does not listen
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{never.getsockname()[1]}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=10))
        monkeypatch.setattr(spans, "_TRACER", provider.get_tracer("test"))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        begin = time.monotonic()
        for _ in range(20):
            assert (await ask(App())).status == 200
        assert time.monotonic() - begin < 4
        begin = time.monotonic()
        await flush(1.5)
        assert 1 < time.monotonic() - begin < 8
        lines = [r.getMessage() for r in caplog.records if r.name == "ray.serve"]
        assert len(lines) == 1, lines
        assert lines[0].startswith("traces: ")
        exporter.shutdown()


OFF = """
import sys
sys.modules["opentelemetry"] = None  # as in an image without it
from fastapi import FastAPI
from serve_app.config import Limits, Prefill
from serve_app.ingress import add_ingress
app = FastAPI()
add_ingress(app, Limits(), None, lambda leg: None, Prefill())
print([middleware.cls.__name__ for middleware in app.user_middleware])
"""


def test_off_means_not_there() -> None:
    command = [sys.executable, "-W", "ignore", "-c", OFF]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "PrefillMiddleware" in done.stdout
    assert "Tracing" not in done.stdout
