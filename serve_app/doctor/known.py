"""The table of known failures: `failures/*.toml`, in the order in which they are tried.

A line belongs to the first failure whose words it holds, so what is specific stands before what
is general, and causes before consequences. Words are literal but for places:

    {}            anything, as little as possible
    {name}        the same, for the texts of cause and mend; at the end of the words: one word
    {name:regex}  what the expression matches
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

_PLACE = re.compile(r"\{(\w*)(?::((?:\\.|[^{}\\])*))?\}")


@dataclass(frozen=True)
class Words:
    """What a line of this failure holds."""

    needle: bytes
    """The longest part without a place: a line without it need not be looked at."""
    expression: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.expression)  # most are never needed, and all take 0.4 s


@dataclass(frozen=True)
class Failure:
    """One known failure."""

    id: str
    area: str
    """The name of its file: compiler, runtime, ..."""
    words: tuple[Words, ...]
    cause: str
    """One sentence; `{name}` stands for what a place of the words held."""
    mend: str
    source: str
    consequence: bool
    """It follows from another failure, which is to be looked for."""


@cache
def failures() -> tuple[Failure, ...]:
    """Every known failure, in the order in which they are tried."""
    found = []
    tables = files("serve_app.doctor").joinpath("failures").iterdir()
    for file in sorted((t for t in tables if t.name.endswith(".toml")), key=lambda t: t.name):
        area = file.name.removesuffix(".toml").split("-", 1)[1]
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["failure"]:
            found.append(_failure(area, **entry))
    return tuple(sorted(found, key=lambda failure: failure.consequence))


def _failure(
    area: str, id: str, words: list[str], cause: str, mend: str, source: str, rank: str = "cause"
) -> Failure:
    if rank not in ("cause", "consequence"):
        raise ValueError(f"{id}: rank is cause or consequence, not {rank!r}")
    compiled = tuple(compile_words(text) for text in words)
    return Failure(id, area, compiled, cause, mend, source, rank == "consequence")


def compile_words(text: str) -> Words:
    """The words of one failure, as they stand in the table.

    Raises:
        ValueError: no part of four characters or more is literal.
    """
    pattern, literals, end = "", [], 0
    for place in _PLACE.finditer(text):
        literals.append(text[end : place.start()])
        end = place.end()
        name, expression = place.groups()
        inner = expression or (".*?" if not name else ".+?" if end < len(text) else r"\S+")
        pattern += re.escape(literals[-1]) + (f"(?P<{name}>{inner})" if name else f"(?:{inner})")
    literals.append(text[end:])
    needle = max(literals, key=len)
    if len(needle) < 4:
        raise ValueError(f"nothing literal to look for in {text!r}")
    return Words(needle.encode(), pattern + re.escape(literals[-1]))


def fill(text: str, groups: Mapping[str, str]) -> str:
    """The text of a cause or mend with what the log said."""
    return text.format_map(_Groups(groups))


class _Groups(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "?"
