"""Artifacts on the disk of this machine, shared by its processes.

    <cache>/<key>/            a whole artifact
    <cache>/.<key>.partial/   one that is being fetched; a later fetch goes on from there
    <cache>/.<key>.fetch      flock: held by the process that fetches
    <cache>/.<key>.use        flock: held shared by all users; its time is that of the last use
    <cache>/.room             flock: held while room is made

The kernel frees the locks of a process that dies. Another program can hold an artifact with
`flock --shared <cache>/.<key>.use command`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from serve_app.artifacts.manifest import MANIFEST
from serve_app.artifacts.store.directory import sync_directory, sync_tree
from serve_app.artifacts.store.errors import StoreError, explained
from serve_app.artifacts.store.listing import CHUNK, Listing, read, wrong_size
from serve_app.artifacts.store.shelf import Shelf
from serve_app.artifacts.store.transfer import Report, Transfer

_REQUEST = 16 * 2**20
"""Bytes asked of the store at a time: large beside a round trip, small beside memory."""
_POLL_S = 0.2

_held: dict[Path, int] = {}
"""Artifact -> the open file whose lock keeps it in the cache."""
_one_at_a_time = threading.Lock()
"""flock does not part the threads of a process."""


def fetch(
    shelf: Shelf, key: str, cache: Path, limit_bytes: int | None, report: Report | None
) -> Path:
    """The artifact's directory below `cache`, held there until `release` or the process's end.

    What is whole there is used without asking the store.

    Raises:
        StoreError: no such artifact, no room, a wrong checksum, or the store cannot be read.
    """
    entry = cache.absolute() / key
    with _one_at_a_time, explained(f"use the cache {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
        was_held = entry in _held
        hold(entry)
        try:
            os.utime(_use(entry))
            with _locked(_hidden(entry, "fetch"), lambda: _watch(entry, report)):
                if not _is_whole(entry):
                    _download(shelf, key, entry, limit_bytes, report)
        except BaseException:
            if not was_held:
                release(entry)
            raise
    return entry


def hold(entry: Path) -> None:
    """Keeps a cached artifact from being removed while this process lives."""
    if entry not in _held:
        lock = _open_lock(_use(entry))
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        _held[entry] = lock


def release(entry: Path) -> None:
    """Lets a cached artifact go: it may be removed when room is needed."""
    if (lock := _held.pop(entry, None)) is not None:
        os.close(lock)


def _hidden(entry: Path, kind: str) -> Path:
    return entry.parent / f".{entry.name}.{kind}"


def _use(entry: Path) -> Path:
    return _hidden(entry, "use")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    lock = _open_lock(path)
    try:
        while not _try_lock(lock):
            waiting()
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def _manifest(directory: Path) -> Listing | None:
    """The manifest of a directory in the cache; one that is damaged counts as none."""
    try:
        return read(directory)
    except StoreError:
        return None


def _watch(entry: Path, report: Report | None) -> None:
    """Reports how far the process is that fetches the artifact at this time."""
    partial = _hidden(entry, "partial")
    if report and (manifest := _manifest(partial)):
        report(min(_bytes(partial), manifest.total), manifest.total, MANIFEST)


def _is_whole(entry: Path) -> bool:
    manifest = _manifest(entry)
    return manifest is not None and not wrong_size(entry, manifest)


def _bytes(directory: Path) -> int:
    """Bytes of all files below; some may vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(Path(folder, name)).st_size
    return total


def _download(
    shelf: Shelf, key: str, entry: Path, limit_bytes: int | None, report: Report | None
) -> None:
    manifest = shelf.manifest(key)
    if manifest is None:
        raise StoreError(f"{shelf.name} has no artifact {key} -> compile the model and publish it")
    partial = _hidden(entry, "partial")
    if entry.exists():  # damaged: its good files are kept, the others fetched again
        shutil.rmtree(partial, ignore_errors=True)
        entry.rename(partial)
    with _locked(entry.parent / ".room"):
        if limit_bytes is not None:
            _evict(entry, manifest.total, limit_bytes)
        _check_disk(entry, manifest.total)
        partial.mkdir(exist_ok=True)
        # Before the files, so that others who make room know how large it will be.
        _write(partial / MANIFEST, manifest.text())
    transfer = Transfer(manifest.total, report)

    def bring(path: str) -> None:
        _bring(shelf, manifest, path, partial / path, transfer)

    transfer.run(bring, manifest.paths)
    _remove_strangers(partial, manifest)
    sync_tree(partial)
    partial.rename(entry)
    sync_directory(entry.parent)


def _write(path: Path, text: bytes) -> None:
    """Writes a small file at once and for good."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _bring(shelf: Shelf, manifest: Listing, path: str, target: Path, transfer: Transfer) -> None:
    """Fetches the rest of a file; one whose checksum is wrong then, from its start once more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        if _complete(shelf, manifest, path, target, transfer):
            return
        target.unlink()
        transfer.add(path, -manifest.files[path].size)
    raise StoreError(
        f"{path} of {manifest.base} in {shelf.name} has a wrong checksum -> remove the artifact "
        "from the store and publish it again"
    )


def _complete(shelf: Shelf, manifest: Listing, path: str, target: Path, transfer: Transfer) -> bool:
    expected = manifest.files[path]
    if target.exists() and target.stat().st_size > expected.size:
        target.unlink()
    digest = sha256()
    with target.open("ab+") as file:
        size, there = 0, os.fstat(file.fileno()).st_size
        file.seek(0)
        while size < expected.size:
            if size < there:
                chunk = file.read(min(CHUNK, there - size))
            else:
                chunk = shelf.chunk(manifest, path, size, min(_REQUEST, expected.size - size))
                file.write(chunk)
            if not chunk:
                raise StoreError(
                    f"{path} of {manifest.base} in {shelf.name} ends after {size} of "
                    f"{expected.size} bytes -> remove the artifact and publish it again"
                )
            size += len(chunk)
            digest.update(chunk)
            transfer.add(path, len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest() == expected.sha256


def _remove_strangers(partial: Path, manifest: Listing) -> None:
    """Removes what an earlier fetch brought that the artifact of today does not have."""
    for folder, _, names in os.walk(partial):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(partial).as_posix() not in {*manifest.files, MANIFEST}:
                path.unlink()


def _check_disk(entry: Path, needed: int) -> None:
    """Raises a StoreError now if the disk cannot hold the rest, rather than after an hour."""
    free = shutil.disk_usage(entry.parent).free
    missing = needed - _bytes(_hidden(entry, "partial"))
    if missing > free:
        raise StoreError(
            f"cannot fetch {entry.name}: it needs {_gib(missing)} in {entry.parent}, where "
            f"{_gib(free)} are free -> free space there, or use another cache directory"
        )


def _evict(entry: Path, needed: int, limit: int) -> None:
    """Removes what was used longest ago until `needed` bytes fit, or nothing at all.

    Raises:
        StoreError: they cannot fit; says how large the limit must be.
    """
    # By the lock files: a directory without one was put there by somebody else.
    uses = (path.name[1 : -len(".use")] for path in entry.parent.glob(".*.use"))
    others = [entry.parent / name for name in uses if name != entry.name]
    sizes = {other: _size(other) for other in others}
    excess = needed + sum(sizes.values()) - limit
    victims, locks = [], []
    try:
        for other in sorted(others, key=lambda other: _use(other).stat().st_mtime_ns):
            if excess <= 0 or not sizes[other]:
                continue
            locks.append(_open_lock(_use(other)))
            if _try_lock(locks[-1]):
                victims.append(other)
                excess -= sizes[other]
        if excess > 0:
            raise StoreError(
                f"cannot fetch {entry.name}: it needs {_gib(needed)} and the cache {entry.parent} "
                f"may hold {_gib(limit)}, of which {_gib(limit + excess - needed)} are in use -> "
                f"set the limit to at least {_gib(limit + excess)} ({limit + excess} bytes)"
            )
        for victim in victims:
            for directory in (victim, _hidden(victim, "partial")):
                shutil.rmtree(directory, ignore_errors=True)
    finally:
        for lock in locks:
            os.close(lock)


def _size(entry: Path) -> int:
    """Bytes of an artifact in the cache; of one that is being fetched, what it will have."""
    partial = _hidden(entry, "partial")
    coming = _manifest(partial)
    return _bytes(entry) + max(_bytes(partial), coming.total if coming else 0)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
