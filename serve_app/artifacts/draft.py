"""A directory that appears whole: written under a draft's name beside it, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from serve_app.artifacts.manifest import ArtifactError

_ABANDONED = 24 * 3600.0
"""Seconds without a write after which the draft of another machine belongs to nobody."""


def draft_of(directory: Path) -> Path:
    """Where this process may write; does not exist. Drafts of dead processes are removed.

    Raises:
        OSError: the parent cannot be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    # The directory may be shared by machines, and a process is known to its own alone.
    return directory.with_name(f".{directory.name}.draft-{os.getpid()}@{socket.gethostname()}")


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Waits while another process of this machine compiles into `directory`. Ends with its
    holder, however that dies."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def taken(directory: Path) -> str | None:
    """Why a draft cannot be given this name; None when it can."""
    if directory.is_mount():
        return f"{directory} is a mount point -> choose a directory below it"
    if directory.is_dir() and not any(directory.iterdir()):
        return None
    mend = "remove it, or choose another directory"
    return f"there is something in {directory} already -> {mend}" if directory.exists() else None


def reveal(draft: Path, directory: Path) -> None:
    """Give the draft its name.

    Raises:
        ArtifactError: something is there by now; both are kept.
        OSError: it cannot be written.
    """
    try:
        draft.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        kept = directory.with_name(f"{directory.name}.{os.getpid()}")
        draft.rename(kept)
        raise ArtifactError(
            f"{directory} was filled by someone else meanwhile, what is compiled now is in {kept} "
            f"-> keep one of them"
        ) from error


def set_aside(directory: Path) -> None:
    """Move what a compile left that did not end out of the way: NxDI's record without graphs."""
    if directory.is_dir() and any(directory.iterdir()):
        directory.rename(directory.with_name(f".{directory.name}.broken-{time.time_ns()}"))


def _sweep(directory: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(directory.name)}\.draft-(\d+)@(.*)")
    for path in directory.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if match[2] == socket.gethostname():
            # One of our own number is of a process that had it before.
            living = int(match[1]) != os.getpid() and psutil.pid_exists(int(match[1]))
        else:
            living = time.time() - _last_write(path) < _ABANDONED
        if not living:
            shutil.rmtree(path, ignore_errors=True)


def _last_write(directory: Path) -> float:
    times = [directory.stat().st_mtime]
    for path in directory.rglob("*"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
