"""What a manifest says of the files: which, how large, with what hash."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from serve_app.artifacts.manifest import MANIFEST, File
from serve_app.artifacts.store.errors import StoreError, explained

CHUNK = 8 * 2**20
"""Bytes read at a time from a disk."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listing:
    """A manifest that was found sound. `content` is all of it, `files` what the store needs."""

    content: Mapping[str, Any]
    files: Mapping[str, File]
    base: str = ""
    """Where in the store the files lie, below its root."""

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def paths(self) -> list[str]:
        """The files, largest first: so workers end at about the same time."""
        return sorted(self.files, key=lambda path: -self.files[path].size)

    def text(self) -> bytes:
        """The manifest as a file."""
        return json.dumps(self.content, indent=2).encode() + b"\n"


def parse(text: bytes, place: str) -> Listing:
    """The manifest in `text`, which was read from `place`.

    Raises:
        StoreError: it is cut off or otherwise not a manifest.
    """
    fault = ""
    try:
        content = json.loads(text)
        entries = content["files"].items()
        files = {path: File(entry["size"], entry["sha256"]) for path, entry in entries}
        fault = next((f for path, file in files.items() if (f := _fault(path, file))), "")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        files, fault = {}, f"it is cut off or no manifest ({type(error).__name__})"
    if fault:
        raise StoreError(
            f"the manifest {place} is corrupt: {fault} -> remove the artifact and publish it again"
        )
    return Listing(content, files)


def _fault(path: str, file: File) -> str:
    """What is wrong with an entry; a path must not lead out of the artifact."""
    plain = PurePosixPath(path)
    if str(plain) != path or plain.is_absolute() or {"..", "."} & {*plain.parts, path}:
        return f"{path!r} is not a relative path"
    if path == MANIFEST or not path.isprintable() or "\\" in path:
        return f"{path!r} cannot be the name of a file here"
    if type(file.size) is not int or file.size < 0:
        return f"the size of {path!r} is {file.size!r}"
    if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
        return f"the sha256 of {path!r} is {file.sha256!r}"
    return ""


def read(directory: Path) -> Listing | None:
    """The manifest of `directory`; None where there is none.

    Raises:
        StoreError: it cannot be read, or is corrupt.
    """
    path = directory / MANIFEST
    with explained(f"read {path}"):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
    return parse(text, str(path))


def wrong_size(directory: Path, manifest: Listing) -> str:
    """The first file that is missing or of another size, as a sentence; "" if there is none."""
    for path, file in manifest.files.items():
        try:
            size = (directory / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is missing"
        if size != file.size:
            return f"{path} has {size} of {file.size} bytes"
    return ""


def to_publish(directory: Path) -> Listing:
    """The manifest of a directory that is fit to be published, but for the hashes.

    Raises:
        StoreError: no manifest, or a file that is missing, of another size, or not named in it.
    """
    manifest = read(directory)
    if manifest is None:
        raise StoreError(
            f"{directory} has no {MANIFEST}: its compile did not finish -> compile it again"
        )
    with explained(f"read {directory}"):
        wrong = wrong_size(directory, manifest)
        extra = set(_files(directory)) - {*manifest.files, MANIFEST}
    if extra and not wrong:
        wrong = f"{min(extra)} is not named in {MANIFEST}"
    if wrong:
        raise StoreError(f"{directory} is not as its manifest says: {wrong} -> compile it again")
    return manifest


def _files(directory: Path) -> Iterator[str]:
    """Every file below, relative; a linked directory counts as a file: it is not followed."""
    for folder, folders, files in os.walk(directory, onerror=_raise):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*files, *links):
            yield str(Path(folder, name).relative_to(directory).as_posix())


def _raise(error: OSError) -> None:
    raise error


def verified(path: Path, file: File) -> Iterator[bytes]:
    """The bytes of `path`, in chunks.

    Raises:
        StoreError: after the last chunk, if they are not those that the manifest names.
    """
    digest, size = sha256(), 0
    with path.open("rb") as source:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    if size != file.size or digest.hexdigest() != file.sha256:
        raise StoreError(
            f"{path} is not what its manifest says: it changed or the disk lies -> compile it again"
        )
