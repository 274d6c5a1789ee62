"""A process without vLLM (the front door) exports by itself, over both protocols."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.collector import Collector

FRONT_DOOR = """
import asyncio, os
from opentelemetry.trace import SpanKind
from serve_app.telemetry import spans, traces
url = traces.endpoint(os.environ)
traces.prepare(os.environ, "front", "front-door", "x1")
traces.start_exporter(url, os.environ)
span, headers = spans.start("asked", SpanKind.SERVER, [(b"a", b"b")], {})
span.end()
asyncio.run(traces.flush())
os._exit(0)  # as Serve ends a replica
"""


@pytest.fixture(params=["http/protobuf", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[tuple[Collector, dict[str, str]]]:
    made = Collector()
    if request.param == "http/protobuf":
        yield made, made.environment
        made.close()
        return

    class Service(service.TraceServiceServicer):
        def Export(self, asked: object, context: object) -> ExportTraceServiceResponse:  # noqa: N802
            made._take(asked.SerializeToString())  # type: ignore[attr-defined]
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    server.stop(None).wait()
    made.close()


def test_the_last_span_leaves(collector: tuple[Collector, dict[str, str]]) -> None:
    made, environment = collector
    environment = {**os.environ, **environment, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    command = [sys.executable, "-W", "ignore", "-c", FRONT_DOOR]
    subprocess.run(command, env=environment, check=True, timeout=60)
    (span,) = made.spans
    assert (span.name, span.kind) == ("asked", "SERVER")
    assert span.resource["service.name"] == "neuron-serve"
    assert span.resource["neuron_serve.deployment"] == "front-door"
    assert span.resource["service.instance.id"] == "x1"
