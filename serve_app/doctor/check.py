"""Checks of a machine: each looks at one thing and answers in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from serve_app.doctor.machine import Machine


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    """The check itself did not work."""


@dataclass(frozen=True)
class Answer:
    """What a check says."""

    status: Status
    line: str
    mend: str = ""


Look = Callable[[Machine], Answer | None]


@dataclass(frozen=True)
class Check:
    id: str
    title: str
    source: str
    look: Look
    """None: there is nothing to say on this machine."""


CHECKS: dict[str, Check] = {}


def check(id: str, title: str, source: str) -> Callable[[Look], Look]:
    """Put a function into the table."""

    def register(look: Look) -> Look:
        if id in CHECKS:
            raise ValueError(f"two checks are called {id}")
        CHECKS[id] = Check(id, title, source, look)
        return look

    return register


def ok(line: str) -> Answer:
    return Answer(Status.OK, line)


def warn(line: str, mend: str) -> Answer:
    return Answer(Status.WARN, line, mend)


def fail(line: str, mend: str) -> Answer:
    return Answer(Status.FAIL, line, mend)


_ORDER = [Status.FAIL, Status.WARN, Status.UNKNOWN, Status.OK]


def look_at(machine: Machine) -> list[tuple[Check, Answer]]:
    """Every check's answer, problems first."""
    answers = []
    for one in CHECKS.values():
        try:
            answer = one.look(machine)
        except Exception as error:  # a check that breaks must not hide the others
            why = str(error) or type(error).__name__
            answer = Answer(Status.UNKNOWN, f"could not look: {' '.join(why.split())[:200]}")
        if answer:
            answers.append((one, answer))
    return sorted(answers, key=lambda pair: _ORDER.index(pair[1].status))
