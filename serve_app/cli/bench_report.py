"""`neuron-serve bench report` and `bench compare`: from files of results, without a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:  # numpy and matplotlib are for these commands only
    from rich.table import Table

    from serve_app.bench.compare import Row

_MEND = "pip install 'neuron-serve[bench]'"
Results = Annotated[Path, typer.Argument(help="Directory of results.", metavar="DIR")]
_STYLES = {"regression": "bold red", "better": "green", "unknown": "dim"}


def report(
    results: Results,
    out: Annotated[
        Path | None,
        typer.Option(help="Default: report.html in DIR. PNGs go beside it.", metavar="FILE"),
    ] = None,
    ttft_target: Annotated[
        float | None,
        typer.Option(help="Seconds to the first token, for goodput.", min=0, metavar="SECONDS"),
    ] = None,
    tpot_target: Annotated[
        float | None,
        typer.Option(help="Seconds per later token, for goodput.", min=0, metavar="SECONDS"),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(help="Of the instance: adds a million tokens' price.", min=0, metavar="USD"),
    ] = None,
) -> None:
    """Make one HTML page and PNGs of a sweep; LLMPerf's own files are read, too.

    Example: [bold]neuron-serve bench report results --ttft-target 0.5 --tpot-target 0.05[/bold]
    """
    from serve_app.bench.results import ResultsError

    try:
        from serve_app.bench.report import write

        made = write(
            results, out or results / "report.html", ttft_target, tpot_target, price_per_hour
        )
    except ModuleNotFoundError as error:
        _fail(f"no {error.name} here -> {_MEND}", 1)
    except ResultsError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename or out}: {error.strerror or error}", 1)
    typer.echo(f"{made}: {made.stat().st_size / 1000:.0f} kB")


def compare(
    a: Annotated[Path, typer.Argument(help="Results from before.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Results from now.", metavar="B")],
    threshold: Annotated[
        float, typer.Option(help="A change up to this share is none.", min=0, max=1)
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="For CI.")] = False,
) -> None:
    """Say whether B is worse than A, with intervals; each may hold several runs.

    Exit codes: 0 no regression, 1 a regression, 2 not readable or no load in common.

    Example: [bold]neuron-serve bench compare main branch --threshold 0.1[/bold]
    """
    from serve_app.bench.results import ResultsError

    try:
        from serve_app.bench.compare import compare as rows_of
        from serve_app.bench.compare import differences

        rows, other = rows_of(a, b, threshold), list(differences(a, b))
    except ModuleNotFoundError as error:
        _fail(f"no {error.name} here -> {_MEND}", 2)
    except ResultsError as error:
        _fail(str(error), 2)
    worse = [row for row in rows if row.verdict == "regression"]
    if as_json:
        told = {"regression": bool(worse), "threshold": threshold, "differences": other}
        typer.echo(json.dumps({**told, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        from rich.console import Console

        Console().print(table(rows))
        for line in other:
            typer.echo(f"not alike: {line}")
        unknown = sum(row.verdict == "unknown" for row in rows)
        if unknown:
            typer.echo(f"unknown: {unknown} rows have too few requests for an interval")
        names = ", ".join(f"{row.figure} at {row.load}" for row in worse)
        typer.echo(f"regression: {names}" if worse else "no regression")
    raise typer.Exit(1 if worse else 0)


def table(rows: list[Row]) -> Table:
    """One line per load and figure."""
    from rich.table import Table
    from rich.text import Text

    from serve_app.bench.report_text import figure, percent, seconds

    made = Table(box=None, pad_edge=False)
    made.add_column("load")
    made.add_column("figure", no_wrap=True)
    for title in ("A", "B", "B/A", "interval"):
        made.add_column(title, justify="right", no_wrap=True)
    made.add_column("verdict")
    before = ""
    for row in rows:
        say = {"throughput": figure, "error rate": percent}.get(row.figure, seconds)
        interval = (
            "-" if row.low is None or row.high is None else f"{row.low:.2f} to {row.high:.2f}"
        )
        made.add_row(
            row.load if row.load != before else "",
            row.figure.replace("ttft", "TTFT").replace("tpot", "TPOT").replace("e2e", "end to end"),
            say(row.a),
            say(row.b),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            interval,
            Text(row.verdict, _STYLES.get(row.verdict, "")),
        )
        before = row.load
    return made


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(code)
