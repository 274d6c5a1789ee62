"""How states look on a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from serve_app.cli.dashboard import ApplicationStatus, ReplicaStatus

_STYLES = {"RUNNING": "green", "DEPLOYING": "yellow", "DEPLOY_FAILED": "red", "UNHEALTHY": "red"}


def status_table(applications: list[ApplicationStatus]) -> Table:
    """One row per application and replica."""
    table = Table(box=None, pad_edge=False)
    for title in ("application", "route", "status", "replicas"):
        table.add_column(title)
    for application in applications:
        style = _STYLES.get(application.status, "")
        replicas = "\n".join(describe(replica) for replica in application.replicas) or "-"
        table.add_row(
            application.name,
            application.route_prefix,
            Text(application.status, style),
            replicas,
        )
        if application.message:
            table.add_row("", "", Text("", style), Text(application.message, style))
    return table


def describe(replica: ReplicaStatus) -> str:
    """`7i8kegqy STARTING weights 12 s`."""
    words = f"{replica.id} {replica.state}"
    if replica.phase:
        words += f" {replica.phase.name} {replica.phase.elapsed:.0f} s {replica.phase.detail}"
    return words.rstrip()
