"""Start-up phases, as lines of the replica's own Serve log that people and `status` read."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

# Ray Serve writes this logger into the replica's log file, which the dashboard serves.
logger = logging.getLogger("ray.serve")

DOWNLOAD = "download"
ENGINE = "engine"
WEIGHTS = "weights"
WARM_UP = "warm-up"
READY = "ready"
PREFILL = "prefill"
"""The engine runs, and waits for the first KV cache of each prefill replica."""
TRANSFER_PERIOD_S = 2.0

_LINE = re.compile(
    r'startup phase=(?P<name>\S+) elapsed=(?P<elapsed>[\d.]+)s(?: (?P<detail>[^"\n]+))?'
)


@dataclass(frozen=True)
class Phase:
    """One phase: its name, seconds since the start of the replica, and a detail in words."""

    name: str
    elapsed: float
    detail: str = ""

    def __str__(self) -> str:
        return f"startup phase={self.name} elapsed={self.elapsed:.1f}s {self.detail}".rstrip()

    @staticmethod
    def last(log: str) -> Phase | None:
        """The last phase that a replica's log tells of."""
        for match in reversed(list(_LINE.finditer(log))):
            detail = (match["detail"] or "").strip()
            return Phase(match["name"], float(match["elapsed"]), detail)
        return None


class Phases:
    """Reports the phases of one start."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self.current = Phase("start", 0.0)
        self._spent: dict[str, float] = {}
        self.verdicts: set[str] = set()
        """On the compiled models that this start looked at."""
        self.compile_seconds: float | None = None
        """0: it loaded; None: not known, or not yet."""

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the replica."""
        return time.monotonic() - self._begin

    def report(self, name: str, detail: str = "") -> None:
        last, now = self.current, self.elapsed
        self._spent[last.name] = self._spent.get(last.name, 0.0) + now - last.elapsed
        self.current = Phase(name, now, detail)
        logger.info(str(self.current))

    def spent(self) -> tuple[str, dict[str, float]]:
        """The phase now, and the seconds in each so far."""
        spent, last = dict(self._spent), self.current
        spent[last.name] = spent.get(last.name, 0.0) + self.elapsed - last.elapsed
        return last.name, spent

    def transfer(self, name: str, what: str) -> Callable[[int, int, str], None]:
        """Reports bytes done of bytes in all, now and then."""
        last = time.monotonic()

        def report(done: int, total: int, path: str) -> None:
            nonlocal last
            if time.monotonic() - last > TRANSFER_PERIOD_S:
                last = time.monotonic()
                self.report(name, f"{what} {done / 2**30:.2f} of {total / 2**30:.2f} GiB")

        return report
