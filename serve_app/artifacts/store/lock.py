"""The lock that keeps two machines from compiling the same thing.

It only saves the second compile. Publishing is atomic and the first one wins, lock or not: a lock
that two hold (clocks, pauses, stores without conditional writes) costs time, never an artifact.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from uuid import uuid4

from serve_app.artifacts.store.errors import StoreError
from serve_app.artifacts.store.shelf import Shelf

Waiting = Callable[[float, str], None]
"""(seconds waited so far, who holds the lock)."""

_POLL_S = 5.0


@dataclass(frozen=True)
class _Note:
    """What a lock file says; `beat` is the holder's clock at its last sign of life, s."""

    owner: str
    id: str
    ttl_s: float
    beat: float

    def text(self) -> bytes:
        return json.dumps(asdict(replace(self, beat=time.time()))).encode()


def _parse(text: bytes | None, ttl_s: float) -> _Note:
    """What a lock says; a lock that is being written, or was cut off, is somebody's, too."""
    try:
        return _Note(**json.loads(text or b""))
    except (ValueError, TypeError):
        return _Note("somebody", "", ttl_s, time.time())


@contextmanager
def claim(
    shelf: Shelf, key: str, ttl_s: float, wait: bool, waiting: Waiting | None
) -> Iterator[bool]:
    """True: the lock is held, compile and publish. False: published meanwhile, or not waited.

    A holder shows every third of `ttl_s` that it lives; after `ttl_s` without that the next takes
    over.

    Raises:
        StoreError: the store cannot be read or written.
    """
    mine = _Note(f"{socket.gethostname()} pid {os.getpid()}", uuid4().hex, ttl_s, 0.0)
    name = f"{key}.lock"
    if not _acquire(shelf, key, name, mine, wait, waiting):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(shelf, name, mine, stop), daemon=True)
    beat.start()
    try:
        # Between the last look and the lock another may have published and let go.
        yield shelf.manifest(key) is None
    finally:
        stop.set()
        beat.join()
        _release(shelf, name, mine)


def _acquire(
    shelf: Shelf, key: str, name: str, mine: _Note, wait: bool, waiting: Waiting | None
) -> bool:
    poll_s = min(_POLL_S, mine.ttl_s / 4)
    start = seen_at = time.monotonic()
    seen: bytes | None = None
    while shelf.manifest(key) is None:
        if shelf.create_note(name, mine.text()):
            return True
        text = shelf.read_note(name)
        if text != seen:
            seen, seen_at = text, time.monotonic()
        holder = _parse(text, mine.ttl_s)
        # Who waits goes by its own clock: clocks of two machines may differ by more than a ttl.
        silence = time.monotonic() - seen_at if wait else time.time() - holder.beat
        if text is not None and silence > holder.ttl_s and _take_over(shelf, name, mine, poll_s):
            return True
        if not wait:
            return False
        if waiting:
            waiting(time.monotonic() - start, holder.owner)
        time.sleep(poll_s)
    return False


def _take_over(shelf: Shelf, name: str, mine: _Note, pause_s: float) -> bool:
    """Overwrites a dead lock; of several who do so at once the last one to write has it."""
    shelf.replace_note(name, mine.text())
    time.sleep(pause_s)
    return _is(shelf, name, mine)


def _is(shelf: Shelf, name: str, mine: _Note) -> bool:
    return _parse(shelf.read_note(name), mine.ttl_s).id == mine.id


def _beat(shelf: Shelf, name: str, mine: _Note, stop: threading.Event) -> None:
    while not stop.wait(mine.ttl_s / 3):
        with suppress(StoreError):  # the next one may get through
            if not _is(shelf, name, mine):
                return  # taken over while this process slept
            shelf.replace_note(name, mine.text())


def _release(shelf: Shelf, name: str, mine: _Note) -> None:
    with suppress(StoreError):  # it expires by itself
        if _is(shelf, name, mine):
            shelf.remove_note(name)
