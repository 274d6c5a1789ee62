"""Artifacts by key, in a directory or an object store: publish, find, fetch, lock.

    store = open_store("s3://bucket/prefix")          # or "/efs/artifacts"
    with store.claim(key) as mine:                    # waits while another machine compiles
        if mine:
            compile_into(directory)                   # its neuron-serve.json written last
            store.publish(key, directory)
    model = store.fetch(key, Path("/var/cache/neuron-serve"), limit_bytes=200 * 2**30)

Readers see a whole artifact or none, and the first to publish under a key wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from serve_app.artifacts.store import cache, lock
from serve_app.artifacts.store.directory import DirectoryShelf
from serve_app.artifacts.store.errors import StoreError, explained
from serve_app.artifacts.store.listing import to_publish, wrong_size
from serve_app.artifacts.store.objects import ObjectShelf
from serve_app.artifacts.store.shelf import Shelf
from serve_app.artifacts.store.transfer import Report, Transfer

__all__ = ["Report", "Store", "StoreError", "open_store"]

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,127}")


def open_store(url: str) -> Store:
    """The store at a url (`s3://bucket/prefix`, any of fsspec's) or in a directory.

    Nothing is read or written yet: the directory or the prefix need not exist.

    Raises:
        StoreError: the url is of no known kind, or a package for it is missing.
    """
    scheme, separator, path = url.partition("://")
    if separator and scheme not in ("file", "local"):
        return Store(ObjectShelf(url))
    if not (path if separator else url):
        raise StoreError("the store has no name -> write a directory or s3://bucket/prefix")
    return Store(DirectoryShelf(Path(path if separator else url).expanduser()))


class Store:
    """Artifacts by key. Every method may raise a StoreError."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    @property
    def name(self) -> str:
        """The url or the directory, fit to be shown."""
        return self._shelf.name

    def find(self, key: str) -> Mapping[str, Any] | None:
        """The manifest of a whole artifact; None where there is none."""
        manifest = self._shelf.manifest(_sound(key))
        return manifest.content if manifest else None

    def publish(self, key: str, directory: Path, report: Report | None = None) -> bool:
        """Makes the artifact in `directory` visible to all; False: another was first and stays.

        Raises:
            StoreError: the directory is not what its manifest says, or the store cannot be
                written. Nothing is visible then.
        """
        manifest = to_publish(directory)
        if self._shelf.manifest(_sound(key)) is not None:
            return False
        return self._shelf.publish(key, directory, manifest, Transfer(manifest.total, report))

    def fetch(
        self,
        key: str,
        cache_directory: Path | None = None,
        limit_bytes: int | None = None,
        report: Report | None = None,
    ) -> Path:
        """A local directory with the artifact, which stays while this process lives.

        Without `cache_directory` a store in a directory is used in place. `limit_bytes` is what
        the cache may hold in all: what was used longest ago goes first. See `cache.release`.

        Raises:
            StoreError: no such artifact, no room, a wrong checksum, or the store cannot be read.
        """
        if cache_directory is not None:
            return cache.fetch(self._shelf, _sound(key), cache_directory, limit_bytes, report)
        directory, manifest = self._shelf.directory(key), self._shelf.manifest(_sound(key))
        if directory is None:
            raise StoreError(f"{self.name} cannot be used in place -> name a cache directory")
        if manifest is None:
            raise StoreError(f"{self.name} has no artifact {key} -> compile and publish it")
        with explained(f"read {directory}"):
            wrong = wrong_size(directory, manifest)
        if wrong:
            raise StoreError(f"{directory} is damaged: {wrong} -> remove it and publish it again")
        return directory

    def claim(
        self,
        key: str,
        ttl_s: float = 120.0,
        wait: bool = True,
        report: lock.Waiting | None = None,
    ) -> AbstractContextManager[bool]:
        """`with` gives True: compile and publish; False: it is published, or (`wait=False`) held.

        It only saves a second compile: publishing is atomic and the first wins, lock or not. A
        dead holder's lock is taken over after its `ttl_s`.
        """
        return lock.claim(self._shelf, _sound(key), ttl_s, wait, report)

    def keys(self) -> list[str]:
        """The keys of all whole artifacts, sorted."""
        return self._shelf.keys()

    def remove(self, key: str) -> None:
        """Takes an artifact away, whole or damaged; one that is not there is no error."""
        self._shelf.remove(_sound(key))


def _sound(key: str) -> str:
    """The key, if it can be a name in every store."""
    if not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is no key -> use letters, digits, - and _")
    return key
