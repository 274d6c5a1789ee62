"""What a terminal shows of a sweep: a bar while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from serve_app.bench.load import Load, Run
from serve_app.bench.sweep import Point, Tell

BUSY = 0.8
"""Of a core: a load generator that uses more may be the limit itself."""
LATE_S = 0.02


@contextmanager
def bar(loads: Sequence[Load], console: Console) -> Iterator[Tell]:
    """A line per point. It is drawn when told, in no thread of its own: that would take time
    from the load."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        tasks = {
            load: progress.add_task(title(load), total=load.requests, start=False, more="")
            for load in loads
        }

        def tell(load: Load, run: Run) -> None:
            task = tasks[load]
            progress.start_task(task)
            failed = sum(record.answer.error is not None for record in run.records)
            more = f"{failed} failed" if failed else ""
            progress.update(task, completed=len(run.records), more=more, refresh=True)

        yield tell


def title(load: Load) -> str:
    if load.rate is not None:
        return f"{load.rate:g} requests/s"
    return f"{load.concurrency} user" + ("s" if load.concurrency != 1 else "")


def table(points: Sequence[Point]) -> Table:
    """A row per point; latencies in ms as p50 / p99."""
    made = Table(
        box=None,
        pad_edge=False,
        caption="latencies: p50 / p99, ms; CPU: the load generator's, of one core",
    )
    for column in ("load", "req/s", "tok/s", "TTFT", "TPOT", "E2E", "failed"):
        made.add_column(column, justify="left" if column == "load" else "right", no_wrap=True)
    made.add_column("CPU", justify="right", no_wrap=True)
    for point in points:
        found = point.summary
        made.add_row(
            point.load.label,
            f"{found['results_num_completed_requests'] / found['duration_s']:.2f}",
            f"{found['results_mean_output_throughput_token_per_s']:.1f}",
            _ms(found, "ttft_s"),
            _ms(found, "time_per_output_token_s"),
            _ms(found, "end_to_end_latency_s"),
            str(found["results_number_errors"]),
            f"{found['client_cpu_share']:.0%}",
        )
    return made


def remarks(points: Sequence[Point]) -> Iterator[str]:
    """What a reader must know before the figures."""
    for point in points:
        found, name = point.summary, title(point.load)
        errors: dict[str | int, str] = {}
        for record in point.run.records:
            if record.answer.error:
                errors.setdefault(*record.answer.error)
        if errors:
            yield f"{name}: failed: {found['results_error_code_frequency']}"
            yield from (f"{name}: {code}: {message}" for code, message in errors.items())
        if point.run.interrupted:
            yield f"{name}: interrupted; requests under way are left out"
        elif len(point.run.records) < point.load.requests:
            yield (
                f"{name}: {len(point.run.records)} of {point.load.requests} requests within "
                f"{point.load.timeout_s:g} s -> --timeout"
            )
        if found["client_cpu_share"] >= BUSY:
            yield (
                f"{name}: the load generator used {found['client_cpu_share']:.0%} of a core: it "
                "may be the limit, not the server -> start several, each with a part of the load"
            )
        elif found["client_lag_s_p99"] >= LATE_S:
            yield (
                f"{name}: the load generator was up to {found['client_lag_s_p99'] * 1e3:.0f} ms "
                "late (p99) -> give it a core of its own"
            )


def _ms(found: dict[str, Any], key: str) -> str:
    both = (found[f"results_{key}_quantiles_p{q}"] for q in (50, 99))
    return " / ".join("-" if value is None else f"{value * 1e3:.4g}" for value in both)
