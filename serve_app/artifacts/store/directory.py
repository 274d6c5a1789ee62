"""A store in a directory of this machine, or one that is mounted (EFS, FSx).

`<key>/` is a whole artifact, `<key>.lock` a lock; what is hidden is in the making or left over.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

from serve_app.artifacts.manifest import MANIFEST
from serve_app.artifacts.store.errors import StoreError, explained
from serve_app.artifacts.store.listing import Listing, read, verified, wrong_size
from serve_app.artifacts.store.shelf import attempt_name, is_leftover
from serve_app.artifacts.store.transfer import Transfer

_PARTIAL = ".partial"


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """`sync_directory` for a directory and all below it; the files are synced by their writers."""
    for folder, _, _ in os.walk(directory, topdown=False):
        sync_directory(Path(folder))


class DirectoryShelf:
    """See Shelf."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.name = str(self.root)

    def manifest(self, key: str) -> Listing | None:
        manifest = read(self.root / key)
        return manifest and replace(manifest, base=key)

    def directory(self, key: str) -> Path | None:
        return self.root / key

    def chunk(self, manifest: Listing, path: str, start: int, size: int) -> bytes:
        place = self.root / manifest.base / path
        with explained(f"read {place}"):
            try:
                with place.open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError:
                raise StoreError(
                    f"{place} is missing -> remove the artifact and publish it again"
                ) from None

    def publish(self, key: str, source: Path, manifest: Listing, transfer: Transfer) -> bool:
        with explained(f"publish to {self.name}"):
            partial = self._hidden(key)
            partial.mkdir(parents=True)
            self._remove_leftovers()
            try:
                self._copy(source, partial, manifest, transfer)
                return self._show(partial, key)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def keys(self) -> list[str]:
        with explained(f"list {self.name}"):
            try:
                names = [entry.name for entry in os.scandir(self.root) if entry.is_dir()]
            except FileNotFoundError:
                return []
            return sorted(
                name for name in names if name[0] != "." and (self.root / name / MANIFEST).exists()
            )

    def remove(self, key: str) -> None:
        with explained(f"remove {key} from {self.name}"):
            hidden = self._hidden(key)
            try:
                (self.root / key).rename(hidden)  # it vanishes as a whole
            except FileNotFoundError:
                return
            shutil.rmtree(hidden)

    def create_note(self, name: str, text: bytes) -> bool:
        with explained(f"write {name} in {self.name}"):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                with (self.root / name).open("xb") as file:
                    file.write(text)
            except FileExistsError:
                return False
            return True

    def read_note(self, name: str) -> bytes | None:
        with explained(f"read {name} in {self.name}"):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def replace_note(self, name: str, text: bytes) -> None:
        with explained(f"write {name} in {self.name}"):
            hidden = self._hidden(name)
            try:
                hidden.write_bytes(text)
                hidden.replace(self.root / name)
            finally:
                hidden.unlink(missing_ok=True)

    def remove_note(self, name: str) -> None:
        with explained(f"remove {name} from {self.name}"):
            (self.root / name).unlink(missing_ok=True)

    def _hidden(self, name: str) -> Path:
        return self.root / f".{name}.{attempt_name()}{_PARTIAL}"

    def _copy(self, source: Path, partial: Path, manifest: Listing, transfer: Transfer) -> None:
        def copy(path: str) -> None:
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                for chunk in verified(source / path, manifest.files[path]):
                    file.write(chunk)
                    transfer.add(path, len(chunk))
                file.flush()
                os.fsync(file.fileno())

        transfer.run(copy, manifest.paths)
        # A publisher that slept for a day finds its files removed as a dead one's.
        if wrong := wrong_size(partial, manifest):
            raise StoreError(f"cannot publish to {self.name}: {wrong} there -> publish again")
        with (partial / MANIFEST).open("xb") as file:
            file.write(manifest.text())
            file.flush()
            os.fsync(file.fileno())
        sync_tree(partial)

    def _show(self, partial: Path, key: str) -> bool:
        final = self.root / key
        try:
            partial.rename(final)  # fails where a directory that is not empty has the name
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not (final / MANIFEST).exists():
                raise StoreError(
                    f"cannot publish to {self.name}: {key} exists there without {MANIFEST}: it is "
                    f"being copied by hand, or was left half -> remove {final}"
                ) from None
            return False
        sync_directory(self.root)
        return True

    def _remove_leftovers(self) -> None:
        for path in self.root.glob(f".*{_PARTIAL}"):
            if is_leftover(path.name.removesuffix(_PARTIAL).rpartition(".")[2]):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
