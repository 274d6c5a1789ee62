"""Findings of the two engines of a pair: each fault once, and where the user wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from serve_app.config import Finding, Prefill

_TRANSFER = "engine.kv_transfer_config"
_TRANSFER_KEYS = {
    ".kv_connector": ".connector",
    ".kv_connector_extra_config.backends": ".backend",
}
_SECTIONS = ("engine", "env", "instance", "resources", "scaling", "limits")
"""What a prefill engine has of its own, or inherits."""
_OF_THE_PAIR = ("core-idle", "kv-transfer")
"""Rules that look at an engine as if it were alone; pd-plan and pd-backend look at both."""


def merge(
    section: Prefill, decode: Iterable[Finding], prefill: Iterable[Finding]
) -> Iterator[Finding]:
    """What is wrong with an inherited value is said of decode only."""
    messages, places = set(), set()
    for finding in decode:
        if finding.rule in _OF_THE_PAIR:
            continue
        messages.add((finding.rule, finding.message))
        places.add((finding.rule, finding.severity, finding.path))
        yield replace(finding, path=_written(finding.path) or finding.path)
    for finding in prefill:
        if finding.rule in _OF_THE_PAIR or (finding.rule, finding.message) in messages:
            continue
        known = (finding.rule, finding.severity, finding.path) in places
        if known and not _own(section, finding.path):
            continue
        if path := _written(finding.path):
            yield replace(finding, path=path)
        elif finding.path.partition(".")[0] in _SECTIONS:
            yield finding.under("prefill")
        else:
            yield finding


def _written(path: str) -> str:
    """Where the settings of a derived kv_transfer_config stand; "" for another path."""
    if not path.startswith(_TRANSFER):
        return ""
    return "prefill.transfer" + _TRANSFER_KEYS.get(path.removeprefix(_TRANSFER), "")


def _own(section: Prefill, path: str) -> bool:
    """Whether the prefill section itself says what stands at the path."""
    head, _, rest = path.partition(".")
    name = rest.partition(".")[0]
    if head in ("engine", "env"):
        return name in getattr(section, head)
    if head in ("instance", "resources"):
        return getattr(section, head) is not None
    return head in ("scaling", "limits")
