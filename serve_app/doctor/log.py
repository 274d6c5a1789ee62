"""Which known failures a log holds, and where.

A log of gigabytes is mostly the same few lines with other numbers. Digits and the letters of
hexadecimal ids are taken out of a line, and what is left, its shape, is looked at once: a shape
that holds no needle (also without those characters) stays unread for the rest of the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO

from serve_app.doctor.known import Failure, failures, fill
from serve_app.doctor.mask import clean

_BLOCK = 1 << 20
_LONGEST_LINE = 8 << 20
"""Beyond it a line is cut in two: no newline in sight, as in a binary file."""

_NEAR = 2000
"""Bytes on each side of a needle that its words may reach."""

_SHOWN = 240
"""Characters of a line that are shown."""

_VARIES = b"0123456789abcdef\r"
_SHAPES = 100_000
"""Shapes that are kept; with those of less than 500 bytes 50 MB at the most."""

_ERROR = re.compile(
    rb"\b(?:ERROR|CRITICAL|FATAL|ALERT)\b|^\W*(?:\w+\.)*\w*(?:Error|Exception)\b|Traceback \(most"
)
_CODE = re.compile(r"raise [\w.]+\(f?[\"'][^\"']*$")
"""Before the words: a line of source in a traceback. What it raised stands below it."""

_QUIET, _ERRS, _TELLS = 0, 1, 2


@dataclass
class Found:
    """A known failure in a log."""

    failure: Failure
    line: int
    """The first line that holds it, from 1."""
    text: str
    """That line, cut, without secrets."""
    groups: dict[str, str]
    count: int = 1
    """Lines that hold it."""

    @property
    def cause(self) -> str:
        return fill(self.failure.cause, self.groups)

    @property
    def mend(self) -> str:
        return fill(self.failure.mend, self.groups)


@dataclass
class Report:
    """What a log holds."""

    lines: int = 0
    found: dict[str, Found] = field(default_factory=dict)
    """By the failure's id, in the order of the log."""
    last_error: tuple[int, str] | None = None
    """The last line that looks like an error, and its number; no known failure."""

    @property
    def causes(self) -> list[Found]:
        return [found for found in self.found.values() if not found.failure.consequence]

    @property
    def consequences(self) -> list[Found]:
        return [found for found in self.found.values() if found.failure.consequence]


class Reader:
    """Looks through the lines of one log."""

    def __init__(self) -> None:
        self.report = Report()
        self._words = [(words, failure) for failure in failures() for words in failure.words]
        self._needles = _needles()
        self._kinds: dict[bytes, int] = {}

    def read(self, block: bytes) -> None:
        """Take in whole lines, without the last one's newline."""
        number = self.report.lines
        shapes = block.translate(None, _VARIES).split(b"\n")
        for line, shape in zip(block.split(b"\n"), shapes, strict=True):
            number += 1
            kind = self._kinds.get(shape)
            if kind is None:
                kind = self._look(line, shape)
            if kind == _QUIET:
                continue
            if (kind & _TELLS and self._tells(number, line)) or not kind & _ERRS:
                continue
            self.report.last_error = (number, _cut(clean(line[:_NEAR])))
        self.report.lines = number

    def _look(self, line: bytes, shape: bytes) -> int:
        kind = _TELLS if any(needle in shape for needle in self._needles) else _QUIET
        kind |= _ERRS if _ERROR.search(line) else _QUIET
        if len(shape) < 500:
            if len(self._kinds) >= _SHAPES:
                self._kinds.clear()
            self._kinds[shape] = kind
        return kind

    def _tells(self, number: int, line: bytes) -> bool:
        for words, failure in self._words:
            at = line.find(words.needle)
            if at < 0:
                continue
            text = clean(line[max(0, at - _NEAR) : at + _NEAR])
            match = words.pattern.search(text)
            if match and not _CODE.search(text[: match.start()]):
                known = self.report.found.get(failure.id)
                if known:
                    known.count += 1
                else:
                    shown = _cut(text, match.start())
                    groups = {name: _cut(held) for name, held in match.groupdict("?").items()}
                    self.report.found[failure.id] = Found(failure, number, shown, groups)
                return True
        return False


@cache
def _needles() -> list[bytes]:
    """Of all words, as they stand in a shape; one that holds another one is found with it."""
    needles = {
        words.needle.translate(None, _VARIES) for failure in failures() for words in failure.words
    }
    return [one for one in needles if not any(two in one for two in needles if two != one)]


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines of a file, about a MiB at a time, without the last one's newline."""
    rest = b""
    while block := file.read(_BLOCK):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield whole
        elif len(rest) >= _LONGEST_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


def _cut(text: str, at: int = 0) -> str:
    """The text around `at`, in one line of `_SHOWN` characters."""
    text = " ".join(text.split()) if not at else text
    start = 0 if at < _SHOWN // 2 else at - _SHOWN // 4
    cut = " ".join(text[start : start + _SHOWN].split())
    return ("..." if start else "") + cut + ("..." if len(text) > start + _SHOWN else "")
