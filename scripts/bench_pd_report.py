"""Tables and verdicts of `bench_disaggregation.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench_burst import Trace
from bench_systems import Point, medians
from rich.console import Console
from rich.table import Table

Points = dict[str, dict[str, list[Point]]]

NOISE = 0.05
COUNTS = 0.10


@dataclass(frozen=True)
class Target:
    """What ours shall reach beside the bare engines, of medians."""

    words: str
    met: Callable[[float, float], bool]
    only: str = ""
    """Where it holds: the end of a label; everywhere by default."""


OVERHEAD_ROWS: dict[str, Target | None] = {
    "req/s": Target("ratio >= 0.90", lambda bare, ours: ours >= 0.9 * bare),
    "TTFT p50 ms": Target("+10 ms at most", lambda bare, ours: ours - bare <= 10, " c=1"),
    "ITL p50 ms": None,
    "ITL p99 ms": Target(f"no worse (+{NOISE:.0%})", lambda bare, ours: ours <= (1 + NOISE) * bare),
    "E2E p50 ms": None,
    "CPU: engines": None,
    "CPU: API servers or replicas": None,
    "CPU: proxy or HAProxy": None,
    "CPU: the rest": None,
    "CPU: not an engine": Target("ratio <= 1.5", lambda bare, ours: ours <= 1.5 * bare),
    "CPU: not an engine, less idle": None,
    "before the load: engines, cores": None,
    "before the load: others, cores": None,
    "idle cores": None,
    "failed requests": None,
    "not split": None,
}
WORTH_ROWS = {
    "req/s": 1,
    "TTFT p50 ms": -1,
    "TTFT p99 ms": -1,
    "ITL p50 ms": -1,
    "ITL p99 ms": -1,
}
"""1: more is better; -1: less is."""
BURST_JUDGED = {
    "ITL p99 ms, in bursts": -1,
    "ITL max ms, in bursts": -1,
    "ITL p50 ms, quiet": -1,
    "steady tokens/s in bursts": 1,
    "burst TTFT p50 ms": -1,
    "burst lasts s": -1,
}


def report_overhead(points: Points, console: Console) -> dict[str, Any]:
    """Print one table per load; medians as plain data."""
    bare, ours = points
    summary: dict[str, Any] = {}
    for label in points[bare]:
        middle = {name: medians(points[name][label]) for name in points}
        table = Table(title=f"overhead, {label}: median of {len(points[bare][label])} round(s)")
        table.add_column("")
        for column in (bare, ours, "ratio", "difference", "target", "met"):
            table.add_column(column, justify="right")
        for key, target in OVERHEAD_ROWS.items():
            left, right = middle[bare][key], middle[ours][key]
            ratio = f"{right / left:.2f}" if left > 0 else "-"
            words, met = "", ""
            if target is not None and label.endswith(target.only):
                words, met = target.words, "yes" if target.met(left, right) else "NO"
            unit = ", ms/request" if key.startswith("CPU") else ""
            table.add_row(
                key + unit,
                f"{left:.2f}",
                f"{right:.2f}",
                ratio,
                f"{right - left:+.2f}",
                words,
                met,
                style="bold" if key == "CPU: not an engine" else None,
            )
        console.print(table)
        summary[label] = middle
    _warn(points, console)
    return summary


def report_worth(points: Points, console: Console) -> dict[str, Any]:
    """Print one table, a verdict per load and one of all; medians as plain data."""
    replicas, apart = points
    summary: dict[str, Any] = {}
    table = Table(title=f"worth: {apart} against {replicas}, median (ratio)")
    for column in ("in:out", "system", *WORTH_ROWS, "failed", "not split"):
        table.add_column(column, justify="right")
    verdicts: dict[str, tuple[str, str]] = {}
    for label in points[replicas]:
        middle = {name: medians(points[name][label]) for name in points}
        for name, figures in middle.items():
            cells = []
            for key in WORTH_ROWS:
                base = middle[replicas][key]
                ratio = f" ({figures[key] / base:.2f})" if name == apart and base > 0 else ""
                cells.append(f"{figures[key]:.2f}{ratio}")
            bad = [_total(points[name][label], key) for key in ("failed requests", "not split")]
            table.add_row(
                label if name == replicas else "", name, *cells, *bad, end_section=name == apart
            )
        verdicts[label] = verdict(points[replicas][label], points[apart][label], WORTH_ROWS)
        summary[label] = middle
    console.print(table)
    for label, (word, reasons) in verdicts.items():
        console.print(f"{label}: {word}: {reasons}")
    by_word: dict[str, list[str]] = {}
    for label, (word, _) in verdicts.items():
        by_word.setdefault(word, []).append(label)
    words = "; ".join(f"{word} at {', '.join(labels)}" for word, labels in by_word.items())
    console.print(f"P/D on the same engines and cores: {words}")
    if any(len(rounds) < 3 for rounds in points[apart].values()):
        console.print("fewer than 3 rounds: the verdicts cannot tell a difference from noise")
    _warn(points, console)
    return summary


def report_burst(traces: dict[str, list[Trace]], console: Console) -> dict[str, Any]:
    """Print the steady streams' table and verdict; medians as plain data."""
    replicas, apart = traces
    rounds = {name: [trace.figures() for trace in found] for name, found in traces.items()}
    middle = {name: medians(found) for name, found in rounds.items()}
    table = Table(title=f"bursts: median of {len(rounds[apart])} round(s)")
    table.add_column("")
    for column in (replicas, apart, "ratio"):
        table.add_column(column, justify="right")
    for key, left in middle[replicas].items():
        right = middle[apart][key]
        if key in ("requests", "failed requests"):
            cells = [_total(rounds[name], key) for name in (replicas, apart)]
            table.add_row(f"{key}, all rounds", *cells, "")
            continue
        table.add_row(
            key, f"{left:.2f}", f"{right:.2f}", f"{right / left:.2f}" if left > 0 else "-"
        )
    console.print(table)
    word, reasons = verdict(rounds[replicas], rounds[apart], BURST_JUDGED)
    console.print(f"bursts: {word}: {reasons}")
    for name, found in traces.items():
        if errors := [error for trace in found for error in trace.errors]:
            console.print(
                f"WARNING {name}: {len(errors)} requests failed, the first: {errors[0]}",
                style="red",
            )
    return middle


def verdict(base: list[Point], other: list[Point], judged: dict[str, int]) -> tuple[str, str]:
    """Whether `other` is worth it, and by which figures; rounds are pairs."""
    better: list[str] = []
    worse: list[str] = []
    left, right = medians(base), medians(other)
    for key, direction in judged.items():
        if left[key] <= 0 or right[key] <= 0:
            continue
        ratio = right[key] / left[key]
        agree = all((o[key] - b[key]) * (ratio - 1) > 0 for b, o in zip(base, other, strict=True))
        if abs(ratio - 1) > COUNTS and agree:
            good = (ratio > 1) == (direction > 0)
            (better if good else worse).append(f"{key} x{ratio:.2f}")
    if better and worse:
        return "a trade", f"better {', '.join(better)}; worse {', '.join(worse)}"
    if better:
        return "worth it", ", ".join(better)
    if worse:
        return "not worth it", ", ".join(worse)
    return "no difference", f"within {COUNTS:.0%}, or rounds disagree"


def _total(rounds: list[Point], key: str) -> str:
    return f"{sum(point[key] for point in rounds):.0f}"


def _warn(points: Points, console: Console) -> None:
    """Say what makes a comparison unfair."""
    for name, loads in points.items():
        for label, rounds in loads.items():
            sent = _total(rounds, "requests")
            if sum(point["failed requests"] for point in rounds):
                failed = _total(rounds, "failed requests")
                console.print(
                    f"WARNING {name}, {label}: {failed} of {sent} requests failed, and the "
                    "figures are of the others",
                    style="red",
                )
            if sum(point["not split"] for point in rounds):
                alone = _total(rounds, "not split")
                console.print(
                    f"WARNING {name}, {label}: decode prefilled {alone} of {sent} requests itself",
                    style="red",
                )
