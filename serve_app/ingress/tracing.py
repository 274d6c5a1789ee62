"""The prefill leg in the trace of its request."""

from __future__ import annotations

from dataclasses import replace

from opentelemetry.trace import SpanKind

from serve_app.ingress.prefill import Answer, Leg, Prefills, Unavailable
from serve_app.telemetry.spans import fail, start


def traced(prefills: Prefills) -> Prefills:
    """`prefills` with a client span per leg, from the choice of a replica to its answer; the span
    of the prefill engine is below it."""

    async def leg_with_span(leg: Leg) -> Answer:
        attributes = {"url.path": leg.path}
        span, headers = start("prefill", SpanKind.CLIENT, leg.headers, attributes)
        try:
            answer = await prefills(replace(leg, headers=headers))
            span.set_attribute("http.response.status_code", answer.status)
            span.set_attribute("neuron_serve.prefill.seconds", answer.seconds)
            return answer
        except Unavailable as error:
            fail(span, str(error))
            raise
        finally:
            span.end()

    return leg_with_span
