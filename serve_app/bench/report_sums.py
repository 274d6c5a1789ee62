"""What a sweep tells beside its figures: the knee, goodput, price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.bench.results import Latency, Point

MOST_ERRORS = 0.01
"""A point with a larger share of failed requests is not taken for a measurement."""
_FEWEST = 3


@dataclass(frozen=True)
class Targets:
    """Seconds; None: no such target."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None


@dataclass(frozen=True)
class Knee:
    """Where more load begins to buy more waiting than throughput; or why it is not marked."""

    point: Point | None
    reason: str


@dataclass(frozen=True)
class Goodput:
    """Requests that meet every target."""

    per_s: float
    share: float
    """Of all requests, failed ones too."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, at the load of this point, all the hour."""

    output: float
    total: float | None
    """Input and output tokens alike; None: the files do not tell input tokens."""


def failed(point: Point) -> bool:
    return point.error_rate > MOST_ERRORS


def knee(points: Sequence[Point]) -> Knee:
    """The point of the greatest power: throughput over mean end-to-end latency.

    That is Kleinrock's definition (L. Kleinrock, Power and deterministic rules of thumb for
    probabilistic problems in computer communications, ICC 1979): the ray from the origin of the
    throughput-latency curve is steepest there. Unlike the largest distance to a chord (Kneedle),
    it does not move when the sweep goes on to higher loads.
    """
    able = [(p, mean) for p in points if not failed(p) and (mean := p.mean("e2e_s"))]
    if len(able) < _FEWEST:
        return Knee(None, f"no knee: it takes {_FEWEST} points without errors")
    powers = [point.tokens_per_s / mean for point, mean in able]
    best = powers.index(max(powers))
    if best == 0:
        return Knee(None, "no knee: it lies below the lowest load")
    if best == len(able) - 1:
        return Knee(None, "no knee: it lies beyond the highest load")
    return Knee(able[best][0], "throughput over mean end-to-end latency is greatest here")


def goodput(point: Point, targets: Targets, per_token: Latency) -> Goodput | None:
    """As `vllm bench serve --goodput` counts it: at the target is within it, and a request of
    one token has no TPOT to miss. None: no target, or no individual responses.
    """
    if not targets or not point.requests or not point.duration_s:
        return None
    ttft_s = math.inf if targets.ttft_s is None else targets.ttft_s
    tpot_s = math.inf if targets.tpot_s is None else targets.tpot_s
    kept = sum(
        request.error is None
        and (math.inf if request.ttft_s is None else request.ttft_s) <= ttft_s
        and (getattr(request, per_token) or 0.0) <= tpot_s
        for request in point.requests
    )
    return Goodput(kept / point.duration_s, kept / len(point.requests))


def price(point: Point, dollars_per_hour: float) -> Price | None:
    """None: the point made no tokens."""
    if not point.tokens_per_s:
        return None
    per_second = dollars_per_hour / 3600 * 1e6
    total = point.total_tokens_per_s
    return Price(per_second / point.tokens_per_s, per_second / total if total else None)
