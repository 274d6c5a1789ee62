"""vLLM's tracing, from the standard variables of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from serve_app.backends.plan import EnginePlan
from serve_app.telemetry.traces import ARGUMENT, endpoint


def with_traces(plan: EnginePlan, environment: Mapping[str, str]) -> EnginePlan:
    """The plan with `otlp_traces_endpoint`, where the variables name one and the user does not."""
    url = endpoint(environment)
    if url is None or plan.engine_args.get(ARGUMENT):
        return plan
    reason = f"{ARGUMENT} {url}: the environment's OTEL_EXPORTER_OTLP_..."
    return replace(
        plan,
        engine_args={**plan.engine_args, ARGUMENT: url},
        reasons=(*plan.reasons, reason),
    )
