"""The list of rules, in three forms."""

from __future__ import annotations

import json
from collections.abc import Callable

from serve_app.preflight.rules import RULES

_HEAD = """# Pre-flight rules

What `neuron-serve check` looks at before a configuration starts; the replica runs the same rules.
Most are about one engine on Neuron; those that start with `pd-` are about a prefill and a decode
engine together. Written by `neuron-serve rules --format markdown > docs/rules.md`.

| Rule | Severity | Back end | What it asks | Source |
|---|---|---|---|---|
"""


def as_table() -> str:
    width = max(map(len, RULES), default=0)
    return "".join(
        f"{rule.id:{width}}  {rule.severity:7}  {','.join(sorted(rule.backends)):15}  "
        f"{rule.title}  [{rule.source}]\n"
        for rule in RULES.values()
    )


def as_json() -> str:
    rows = [
        {
            "rule": rule.id,
            "severity": str(rule.severity),
            "backends": sorted(rule.backends),
            "title": rule.title,
            "source": rule.source,
        }
        for rule in RULES.values()
    ]
    return json.dumps(rows, indent=1) + "\n"


def as_markdown() -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    return _HEAD + "".join(
        f"| `{rule.id}` | {rule.severity} | {', '.join(sorted(rule.backends))} | "
        f"{cell(rule.title)} | {cell(rule.source)} |\n"
        for rule in RULES.values()
    )


RENDERERS: dict[str, Callable[[], str]] = {
    "table": as_table,
    "json": as_json,
    "markdown": as_markdown,
}
