"""What was measured, on what, and what a reader must know before the figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from serve_app.bench.report_sums import Targets, failed
from serve_app.bench.report_text import percent
from serve_app.bench.results import Point, number, per_token
from serve_app.neuron.instances import instances

_OF_A_POINT = {
    "client_cpu_share",
    "duration_s",
    "name",
    "num_concurrent_requests",
    "request_rate",
    "timestamp",
    "version",
}
_FIRST = ("model", "server_backend", "server_instance_type")
_BUSY = 0.8


def facts(points: Sequence[Point]) -> dict[str, str]:
    """All but results, in words: name -> value, or the values where points differ."""
    keys = dict.fromkeys(key for point in points for key in point.summary)
    rest = [key for key in keys if key not in _OF_A_POINT and not key.startswith("results_")]
    told = {"date": dates(points), "chip": chip(points)}
    for key in sorted(rest, key=lambda key: key not in _FIRST):
        given = (point.summary.get(key) for point in points)
        values = dict.fromkeys(_word(value) for value in given if value not in (None, ""))
        if values:
            told[key.replace("_", " ")] = ", ".join(values)
    return told


def about(points: Sequence[Point]) -> str:
    """`3 Nov 2026 · 6 loads · 3,000 requests`."""
    sent = sum(point.completed + point.errors for point in points)
    loads = f"{len(points)} load" + ("s" if len(points) > 1 else "")
    return " · ".join(part for part in (dates(points), loads, f"{sent:,} requests") if part)


def dates(points: Iterable[Point]) -> str:
    stamps = [number(point.summary.get("timestamp")) for point in points]
    days = sorted(stamp for stamp in stamps if stamp)
    made = [f"{datetime.fromtimestamp(day, UTC):%d %b %Y}".lstrip("0") for day in days]
    return " to ".join(dict.fromkeys([made[0], made[-1]])) if made else ""


def chip(points: Sequence[Point]) -> str:
    """The instance, or that the figures say nothing of Neuron."""
    backends = {str(point.summary.get("server_backend")) for point in points}
    types = {str(point.summary.get("server_instance_type")) for point in points}
    if backends == {"cpu"}:
        return "CPU: these are not Neuron figures"
    if len(types) == 1 and types <= set(instances()):
        (name,) = types
        return name
    return "Unknown chip: do not take these for Neuron figures"


def alerts(points: Sequence[Point], targets: Targets) -> Iterator[tuple[bool, str]]:
    """(whether it spoils figures, what it is)."""
    for point in points:
        if failed(point):
            codes = ", ".join(f"{n} x {code}" for code, n in point.errors_by_code.items())
            of_what = f" ({codes})" if codes else ""
            yield (
                True,
                f"Load {point.label}: {percent(point.error_rate)} of the requests failed{of_what}. "
                "Its figures are of the rest only.",
            )
    if chip(points) not in instances():
        yield False, f"{chip(points)}."
    bare = [point.label for point in points if point.requests is None]
    if bare:
        yield (
            False,
            f"No file of individual responses for load {', '.join(bare)}: distributions"
            f"{' and goodput' if targets else ''} are left out there.",
        )
    shares = [number(point.summary.get("client_cpu_share")) for point in points]
    busy = [p.label for p, share in zip(points, shares, strict=True) if share and share >= _BUSY]
    if busy:
        yield (
            False,
            f"The load generator was busy for {percent(_BUSY)} of the time or more at load "
            f"{', '.join(busy)}: it may have been the limit, not the server.",
        )
    if per_token(points) == "itl_s":
        yield False, "The files have no TPOT; LLMPerf's ITL is shown, which has TTFT in it."


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
