"""Move the files of an artifact, several at a time, and say how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

Report = Callable[[int, int, str], None]
"""(bytes done, bytes in all, the file just worked on); never called by two threads at once."""

# One stream to S3 carries some 80 MB/s; shards of weights come in such numbers anyway.
_WORKERS = 8


class _Stopped(Exception):
    """Another file failed: this one need not go on."""


class Transfer:
    """The state of one transfer of `total` bytes; its methods are called by many threads."""

    def __init__(self, total: int, report: Report | None = None) -> None:
        self._total = total
        self._report = report
        self._done = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def add(self, path: str, size: int) -> None:
        """Counts bytes of a file as done; a negative size takes them back."""
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._done += size
            if self._report:
                self._report(self._done, self._total, path)

    def run(self, work: Callable[[str], None], paths: Iterable[str]) -> None:
        """Calls `work` with every path, the first ones first, and waits for all.

        Raises:
            Exception: what the first failing call raised, when the others have ended.
        """
        with ThreadPoolExecutor(_WORKERS, "artifact") as pool:
            tasks = [pool.submit(work, path) for path in paths]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
