"""`neuron-serve dashboards`: boards, alerts and scrape configurations as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def dashboards(
    out: Annotated[
        Path, typer.Option(help="Where to write them.", metavar="DIR", file_okay=False)
    ] = Path("dashboards"),
) -> None:
    """Write Grafana boards, Prometheus rules and scrape configurations, for use without Kubernetes.

    Example: [bold]neuron-serve dashboards --out dashboards && cd dashboards && prometheus[/bold]
    """
    try:
        count = 0
        for name, text in files():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            count += 1
    except OSError as error:
        typer.echo(f"neuron-serve: cannot write to {out}: {error.strerror} -> --out DIR", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{count} files in {out}; what to do with them: docs/observability.md")


def files() -> Iterator[tuple[str, str]]:
    """Paths and texts."""
    from serve_app.manifests.tree import dump
    from serve_app.observability import cloudwatch, scrape
    from serve_app.observability.alert import as_prometheus
    from serve_app.observability.board import as_json
    from serve_app.observability.boards import BOARDS
    from serve_app.observability.rules import GROUPS

    for name, board in BOARDS.items():
        yield f"grafana/{name}.json", _json(as_json(board))
    # Prometheus looks for this name in the directory that it is started in.
    yield "prometheus.yml", dump(scrape.prometheus())
    yield "rules.yaml", dump(as_prometheus(GROUPS))
    yield "cloudwatch/agent.json", _json(cloudwatch.agent())
    yield "cloudwatch/prometheus.yaml", dump(cloudwatch.scrape())


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1) + "\n"
