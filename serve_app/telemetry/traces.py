"""Traces by OpenTelemetry: whether, where to, and under which name.

They are on when an endpoint is set: vLLM's argument `otlp_traces_endpoint`, or else the standard
variables (OpenTelemetry specification, OTLP Exporter Configuration). In a replica vLLM makes the
exporter (vllm/tracing), and our spans go the same way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

from serve_app.config.findings import ConfigError, Finding, Severity
from serve_app.version import VERSION

logger = logging.getLogger("ray.serve")

ARGUMENT = "otlp_traces_endpoint"
"""vLLM's engine argument."""
KEY = "neuron_serve.key"
"""Attribute of a span, and key of the ASGI scope: the name of the request's API key."""
_GRPC, _HTTP = "grpc", "http/protobuf"
_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_PACKAGES = ("opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.exporter.otlp.proto.http")
_QUIET_S = 60.0
FLUSH_S = 2.0
"""How long the end of a replica waits for its last spans to leave."""


def endpoint(environment: Mapping[str, str]) -> str | None:
    """Where the standard variables send traces; None: nowhere."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if given := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return given
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not base:
        return None
    return f"{base.rstrip('/')}/v1/traces" if _protocol(environment) == _HTTP else base


def _protocol(environment: Mapping[str, str]) -> str:
    """vLLM reads the first of these only, and takes gRPC where it is unset."""
    return environment.get(_PROTOCOL) or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _GRPC


def prepare(
    environment: MutableMapping[str, str], application: str, deployment: str, replica: str
) -> None:
    """Set what OpenTelemetry's SDK reads, for this process and those that it starts.

    Raises:
        ConfigError: a protocol that there is no exporter for, or a package is missing.
    """
    protocol = _protocol(environment)
    if protocol not in (_GRPC, _HTTP):
        message = f"OTLP over {protocol!r}: vLLM has no exporter for it"
        raise ConfigError([_error(message, f"set {_PROTOCOL} to {_GRPC} or {_HTTP}")])
    if not all(map(_installed, _PACKAGES)):
        message = "traces have an endpoint, and the package opentelemetry-exporter-otlp is missing"
        mend = "pip install 'neuron-serve[otel]', or unset the endpoint"
        raise ConfigError([_error(message, mend)])
    environment[_PROTOCOL] = protocol
    environment.setdefault("OTEL_SERVICE_NAME", "neuron-serve")
    ours = {
        "service.version": VERSION,
        "service.instance.id": replica,
        "neuron_serve.application": application,
        "neuron_serve.deployment": deployment,
    }
    given = environment.get("OTEL_RESOURCE_ATTRIBUTES")
    pairs = [f"{name}={quote(value, safe='')}" for name, value in ours.items()]
    # Of a name that comes twice the last counts: what the user gives stays.
    environment["OTEL_RESOURCE_ATTRIBUTES"] = ",".join([*pairs, *filter(None, [given])])
    _say_seldom()


def start_exporter(url: str, environment: Mapping[str, str]) -> None:
    """Export the spans of this process, which has no vLLM to do it. After `prepare`."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    over_http = _protocol(environment) == _HTTP
    # As in vLLM: `insecure` yields to https://.
    exporter = Http(endpoint=url) if over_http else Grpc(endpoint=url, insecure=True)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


async def flush(seconds: float = FLUSH_S) -> None:
    """Send what waits. A collector that does not answer costs `seconds`, not its own time-out."""
    import asyncio  # `check --show` needs this module without it

    from opentelemetry import trace

    send: Any = getattr(trace.get_tracer_provider(), "force_flush", None)
    if send is not None:
        thread = threading.Thread(target=send, name="last-spans", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, seconds)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # one of its parents
        return False


def _error(message: str, mend: str) -> Finding:
    return Finding("traces", Severity.ERROR, message, mend, f"engine.{ARGUMENT}")


class _Seldom(logging.Handler):
    """A collector that is away: one line a minute, where the SDK would log each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = -_QUIET_S

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._said >= _QUIET_S:
            self._said = time.monotonic()
            logger.warning("traces: %s", record.getMessage())


def _say_seldom() -> None:
    theirs = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Seldom) for handler in theirs.handlers):
        theirs.addHandler(_Seldom())
    theirs.propagate = False
