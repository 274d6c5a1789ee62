"""What the checks see of the machine. Tests put something else in place of each field."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    pid: int
    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] | None
    """None: not ours to read."""


def installed(distribution: str) -> str | None:
    """Its version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirements(distribution: str) -> list[str]:
    """What it asks for, as its metadata has it; nothing when it is not installed."""
    try:
        return metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []


def run(command: Sequence[str]) -> str:
    """Standard output of a program.

    Raises:
        OSError: it does not start. RuntimeError: it fails, or takes more than ten seconds.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} takes more than 10 s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.returncode}"]
        raise RuntimeError(f"{command[0]}: {said[-1]}")
    return done.stdout


_OF_RAY = ("raylet", "gcs_server", "haproxy")


def ray_processes() -> list[Process]:
    """Ray's processes of each node, and HAProxy."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        name = process.info["name"] or ""
        if name not in _OF_RAY:
            continue
        try:
            environ: dict[str, str] | None = process.environ()
        except (psutil.Error, OSError):
            environ = None
        command = tuple(process.info["cmdline"] or ())
        found.append(Process(process.info["pid"], name, command, environ))
    return found


def listeners() -> dict[int, int | None]:
    """TCP port -> the process that listens there, as far as it may be known."""
    found: dict[int, int | None] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            found[connection.laddr.port] = connection.pid or found.get(connection.laddr.port)
    return found


def describe(pid: int) -> str:
    """What runs as `pid`, without its arguments: they may hold secrets."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if any("/ray/dashboard/" in word for word in words[1:]):
            return "ray::dashboard"  # else it is a python3 like any other
        return Path(words[0]).name if words else process.name()
    except psutil.Error:
        return "another user's process"


def memory() -> tuple[int, int]:
    """Bytes: available, in all."""
    found = psutil.virtual_memory()
    return found.available, found.total


def soft_limit(which: int) -> int:
    """The limit that holds; -1 is none."""
    return resource.getrlimit(which)[0]


@dataclass(frozen=True)
class Machine:
    """The outside."""

    root: Path = Path("/")
    """Where /proc, /sys, /dev and /opt are."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    python: tuple[int, ...] = sys.version_info[:3]
    installed: Callable[[str], str | None] = installed
    requirements: Callable[[str], list[str]] = requirements
    run: Callable[[Sequence[str]], str] = run
    ray_processes: Callable[[], list[Process]] = ray_processes
    listeners: Callable[[], dict[int, int | None]] = listeners
    describe: Callable[[int], str] = describe
    memory: Callable[[], tuple[int, int]] = memory
    disk: Callable[[Path], tuple[int, int]] = lambda path: shutil.disk_usage(path)[::-2]
    """Bytes: free, in all."""
    soft_limit: Callable[[int], int] = soft_limit
    cpus: Callable[[], int] = lambda: os.cpu_count() or 1

    def read(self, path: str) -> str | None:
        """A small file below the root, stripped; None when it is not there."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    @cached_property
    def processes(self) -> list[Process]:
        return self.ray_processes()

    @property
    def hub_home(self) -> Path:
        """Where the hub's cache is, by the hub's own rules."""
        home = self.environ.get("HF_HOME")
        if home is None:
            user = Path(self.environ.get("HOME", "/root"))
            cache = self.environ.get("XDG_CACHE_HOME", str(user / ".cache"))
            home = str(Path(cache, "huggingface"))
        return Path(home)
