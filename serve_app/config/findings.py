"""What a check can say about a configuration: one finding per fault, each with its mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum


class Severity(StrEnum):
    """`error` stops the start, `warning` does not, `note` only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One fault: what is wrong (`message`), how to mend it, and where it stands."""

    rule: str
    severity: Severity
    message: str
    mend: str = ""
    path: str = ""
    line: int | None = None
    source: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        place += f"{self.path}: " if self.path else ""
        return f"{place}{self.message}" + (f" -> {self.mend}" if self.mend else "")

    def under(self, prefix: str) -> Finding:
        """The same finding with its path below `prefix` (`args.model` -> `a.args.model`)."""
        return replace(self, path=".".join(part for part in (prefix, self.path) if part))


class ConfigError(ValueError):
    """The user's input cannot be used. One line, fit to be shown as it is."""

    def __init__(self, findings: Iterable[Finding], file: str = "") -> None:
        self.findings = tuple(findings)
        self.file = file
        lines = [f"{file}: {finding}" if file else str(finding) for finding in self.findings]
        super().__init__("; ".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Finding, ...], str]]:
        # Ray pickles exceptions; the default would hand the message to __init__ as findings.
        return type(self), (self.findings, self.file)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the known word nearest to `word`, or with the list when it is short."""
    choices = sorted(known)
    near = get_close_matches(word.replace("-", "_"), choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(choices)}" if len(choices) <= 12 else "remove it"
