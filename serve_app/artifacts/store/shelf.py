"""What a store needs of the place where it keeps things: a directory or an object store."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from serve_app.artifacts.store.listing import Listing
from serve_app.artifacts.store.transfer import Transfer

_LEFTOVER_S = 24 * 3600
"""No publisher works this long: what is older belongs to a dead one."""
_ATTEMPT = re.compile(r"(\d+)-[0-9a-f]{12}")


def attempt_name() -> str:
    """A name nobody else uses, which says when it was made."""
    return f"{int(time.time())}-{uuid4().hex[:12]}"


def is_attempt(name: object) -> bool:
    """Whether this is the name of an attempt."""
    return isinstance(name, str) and _ATTEMPT.fullmatch(name) is not None


def is_leftover(attempt: str) -> bool:
    """Whether the attempt of this name is so old that its publisher must be dead."""
    match = _ATTEMPT.fullmatch(attempt)
    return match is not None and time.time() - int(match[1]) > _LEFTOVER_S


class Shelf(Protocol):
    """A place for artifacts and small notes (locks). Every method may raise StoreError."""

    name: str
    """Its url without credentials."""

    def manifest(self, key: str) -> Listing | None:
        """The manifest of a whole artifact; None where there is none."""
        ...

    def directory(self, key: str) -> Path | None:
        """Where the artifact can be used in place; None where it must be fetched."""
        ...

    def chunk(self, manifest: Listing, path: str, start: int, size: int) -> bytes:
        """`size` bytes of a file, or fewer (never none) if the place gives no more at once."""
        ...

    def publish(self, key: str, source: Path, manifest: Listing, transfer: Transfer) -> bool:
        """Makes `source` visible as a whole; False: another was first and stays."""
        ...

    def keys(self) -> list[str]:
        """The keys of all whole artifacts, sorted."""
        ...

    def remove(self, key: str) -> None:
        """Takes an artifact away, whole or not; nothing happens where there is none."""
        ...

    def create_note(self, name: str, text: bytes) -> bool:
        """Writes a note; False if there is one of that name."""
        ...

    def read_note(self, name: str) -> bytes | None:
        """The text of a note; None where there is none."""
        ...

    def replace_note(self, name: str, text: bytes) -> None:
        """Writes a note over an older one."""
        ...

    def remove_note(self, name: str) -> None:
        """Takes a note away, if it is there."""
        ...
