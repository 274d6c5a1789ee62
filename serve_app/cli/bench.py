"""`neuron-serve bench`: its commands."""

from __future__ import annotations

import typer

from serve_app.cli.bench_report import compare, report

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure a server, and read what was measured.",
    rich_markup_mode="rich",
)
bench.command()(report)
bench.command()(compare)
