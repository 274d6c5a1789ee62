"""How states look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is for what draws on a terminal; `check` has half a second
    from rich.table import Table

    from serve_app.cli.dashboard import ApplicationStatus, ReplicaStatus

_STYLES = {"RUNNING": "green", "DEPLOYING": "yellow", "DEPLOY_FAILED": "red", "UNHEALTHY": "red"}


def status_table(applications: list[ApplicationStatus]) -> Table:
    """One row per application and replica."""
    from rich.table import Table
    from rich.text import Text

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


def memory_table(application: str, rank: Mapping[str, Any]) -> str:
    """The sum for one core, GiB, and how each number comes about."""
    rows = [("weights", "weights"), ("KV cache", "kv_cache"), ("workspace", "workspace")]
    lines = [f"{application}: memory of one core, GiB"]
    lines += [f"  {title:10}{rank[key] / 2**30:7.1f}" for title, key in rows]
    total, available = (rank[key] / 2**30 for key in ("total", "available"))
    lines.append(f"  {'sum':10}{total:7.1f}  of {available:.1f}")
    return "\n".join([*lines, *(f"  {sentence}" for sentence in rank["detail"])])
