"""Follows a file of API keys on disk: a change comes into force, a mistake does not."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

from serve_app.access.keyring import Keyring, digest, parse
from serve_app.config.findings import ConfigError, Finding, Severity

logger = logging.getLogger("ray.serve")


class KeyFile:
    """The keys of a file as it was when last it was right; none before `load`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keyring = Keyring()
        self._read_at: tuple[int, ...] | None = None
        self._content = ""
        self._logged: tuple[str, str] | None = None

    def load(self) -> Keyring:
        """Reads the file, changed or not.

        Raises:
            ConfigError: it is missing, not readable or wrong. The keys stay as they were.
        """
        self._read_at, self._content = None, ""
        reason = ""
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise OSError(0, "it is not a file")  # opening a pipe would wait for its writer
            with self.path.open("rb") as file:
                # Before the content: what is written meanwhile differs from it next time.
                self._read_at = _stamp(os.fstat(file.fileno()))
                text = file.read().decode()
        except UnicodeDecodeError:
            reason = "it is not UTF-8 text"
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "that is no path"
        if reason:
            finding = Finding("file", Severity.ERROR, f"cannot read it: {reason}")
            raise ConfigError([finding], str(self.path))
        self._content = digest(text)
        self.keyring = parse(text, str(self.path))
        return self.keyring

    def refresh(self) -> bool:
        """Whether other keys came into force. Costs one `stat` while the file does not change.

        A file that is gone or wrong changes nothing, and is logged once.
        """
        if self._read_at is not None and self._read_at == self._on_disk():
            return False
        before = self.keyring
        try:
            self.load()
        except ConfigError as error:
            # By the content, too: a second mistake may have the first one's words.
            wrong = (str(error), self._content)
            if wrong != self._logged:
                logger.error("API keys: %s; those read before stay in force", error)
            self._logged = wrong
            return False
        if self.keyring == before and self._logged is None:
            return False
        self._logged = None
        logger.info("API keys: %s read, keys: %d", self.path, len(self.keyring.keys))
        return self.keyring != before

    async def follow(self, period_s: float = 1.0) -> None:
        """Refreshes for ever, in a thread: the disk may be a slow one."""
        while True:
            await asyncio.sleep(period_s)
            await asyncio.to_thread(self.refresh)

    def _on_disk(self) -> tuple[int, ...] | None:
        try:
            return _stamp(self.path.stat())  # through symlinks: Kubernetes swaps one
        except (OSError, ValueError):
            return None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev
