"""The record of use: counters for Prometheus, and a line of JSON per request."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

from prometheus_client import Counter

logger = logging.getLogger("ray.serve")

_LINES = 10_000

REQUESTS = Counter(
    "neuron_serve_requests",
    "Requests that were answered, by the name of their key (empty: none).",
    ["key", "model", "status"],
)
TOKENS = Counter(
    "neuron_serve_tokens",
    "Tokens that requests used; kind is prompt or completion.",
    ["key", "model", "kind"],
)
REFUSALS = Counter(
    "neuron_serve_refusals",
    "Requests beyond their key's quota; what is requests, tokens or concurrency.",
    ["key", "what"],
)


@dataclass(frozen=True)
class Use:
    """One request. `model` is a name that is served, else empty: it becomes a label."""

    key: str | None
    """Its name."""
    application: str
    model: str
    route: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    aborted: bool
    """The client left before the end."""
    seconds: float


def count(use: Use) -> None:
    """For Prometheus."""
    key = use.key or ""
    REQUESTS.labels(key, use.model, str(use.status)).inc()
    TOKENS.labels(key, use.model, "prompt").inc(use.prompt_tokens)
    TOKENS.labels(key, use.model, "completion").inc(use.completion_tokens)


class UsageLog:
    """Appends to `<directory>/<YYYY-MM-DD>.<replica>.jsonl`; the day is UTC's.

    Each replica has its own files: appends over NFS from several machines are not atomic. The
    owner calls `flush` every second in a thread, and at the end. What cannot be written waits for
    the next flush, up to 10,000 lines; those that come then are dropped, and counted.
    """

    def __init__(
        self, directory: Path, replica: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._replica = re.sub(r"[^\w.-]", "-", replica)
        self._clock = clock
        self._lines: list[tuple[str, str]] = []
        """Day and line, oldest first."""
        self._flushing = threading.Lock()
        self._failing = False
        self.dropped = 0
        """Lines that were lost, as too many waited."""

    def record(self, use: Use) -> None:
        """Its `time` is now, when the request has ended. Never waits for a disk."""
        if len(self._lines) >= _LINES:
            self.dropped += 1
            return
        now = datetime.fromtimestamp(self._clock(), UTC)
        stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": stamp, **asdict(use)}) + "\n"
        self._lines.append((f"{now:%Y-%m-%d}", line))

    def flush(self) -> None:
        """Write what waits. A failure is logged, once until a flush succeeds."""
        with self._flushing:
            try:
                while self._lines:
                    self._write_a_day()
            except OSError as error:
                if not self._failing:
                    logger.error(
                        "The record of use cannot be written: %s. It is tried again each second; "
                        "%d lines can wait.",
                        error,
                        _LINES,
                    )
                self._failing = True
                return
        if self._failing:
            logger.warning("The record of use is written again; %d lines were lost.", self.dropped)
        self._failing = False

    def _write_a_day(self) -> None:
        day = self._lines[0][0]
        lines = [line for _, line in takewhile(lambda one: one[0] == day, self._lines)]
        _append(self._directory / f"{day}.{self._replica}.jsonl", "".join(lines).encode())
        # `record` adds behind these meanwhile.
        del self._lines[: len(lines)]


def _append(path: Path, data: bytes) -> None:
    """All or nothing, on the disk. Raises OSError."""
    # Not made: a directory that is missing may be one that is not mounted.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        end = os.fstat(file).st_size
        try:
            left = data
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)
