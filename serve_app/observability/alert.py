"""An alert as data: what it means, the first command, and the mend. Prometheus rules of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DOCS = "https://github.com/neuron-serve/neuron-serve/blob/main/docs"


@dataclass(frozen=True)
class When:
    """A value against a threshold. Apart, so that tests can ask for the value alone."""

    value: str
    """PromQL."""
    op: Literal[">", "<"]
    threshold: float

    def __str__(self) -> str:
        return f"{self.value} {self.op} {self.threshold:g}"


@dataclass(frozen=True)
class Rule:
    """One alert: all of `when` at once, for so long."""

    name: str
    when: tuple[When, ...]
    severity: Literal["critical", "warning"]
    """critical: users are hurt now, wake somebody; warning: look at it today."""
    summary: str
    means: str
    command: str
    """The first to run."""
    mend: str
    for_: str = "0m"
    unless: str = ""
    """PromQL: series that are no alert."""
    labels: tuple[tuple[str, str], ...] = ()
    """Beside those of the series and the severity."""

    @property
    def expr(self) -> str:
        together = "\nand\n".join(map(str, self.when))
        return f"{together}\nunless\n{self.unless}" if self.unless else together


def as_prometheus(groups: Mapping[str, Sequence[Rule]]) -> dict[str, Any]:
    """A Prometheus rules file, and the `spec` of a PrometheusRule."""
    return {
        "groups": [
            {"name": name, "rules": [_rule(rule) for rule in rules]}
            for name, rules in groups.items()
        ]
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.for_,
        "labels": {"severity": rule.severity, **dict(rule.labels)},
        "annotations": {
            "summary": rule.summary,
            "description": f"{rule.means} First: `{rule.command}`. {rule.mend}",
            "runbook_url": f"{DOCS}/observability.md#alerts",
        },
    }


def as_table(rules: Iterable[Rule]) -> str:
    """The table of docs/observability.md."""
    head = "| Alert | Means | First command | Mend |\n|---|---|---|---|\n"
    return head + "".join(
        f"| `{rule.name}` ({rule.severity}) | {rule.means} | `{rule.command}` | {rule.mend} |\n"
        for rule in rules
    )
