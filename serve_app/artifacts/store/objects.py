"""A store in an object store (S3 and whatever else fsspec knows).

    <key>/<attempt>/weights/...     the files of one try to publish
    <key>/neuron-serve.json         the manifest; it names the attempt that won
    <key>.lock                      a lock

No rename is needed: what no manifest names is invisible, and one PUT shows all of it.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from serve_app.artifacts.manifest import MANIFEST
from serve_app.artifacts.store.errors import StoreError, explain, explained, s3_code
from serve_app.artifacts.store.listing import Listing, parse, verified
from serve_app.artifacts.store.shelf import attempt_name, is_attempt, is_leftover
from serve_app.artifacts.store.transfer import Transfer

_PART = 32 * 2**20
"""Bytes of one part of an upload; S3 takes 10,000 of them, so a file may have 312 GiB."""
_SMALL = 64 * 2**20
"""More bytes than a manifest or a lock has."""
_RETRIES = 3
"""Of s3fs, nested, each with five of botocore's. Its own five make silence last half an hour."""
_S3 = ("s3", "s3a")


class ObjectShelf:
    """See Shelf."""

    def __init__(self, url: str) -> None:
        self.name = _without_credentials(url)
        self._fs, self._root = _file_system(url, self.name)

    def manifest(self, key: str) -> Listing | None:
        text = self._read(f"{key}/{MANIFEST}")
        if text is None:
            return None
        place = f"{self.name}/{key}/{MANIFEST}"
        manifest = parse(text, place)
        content = dict(manifest.content)
        attempt = content.pop("attempt", "")
        if not is_attempt(attempt):
            raise StoreError(
                f"the manifest {place} names no attempt: it was copied there by hand -> remove the "
                "artifact and publish it"
            )
        return replace(manifest, content=content, base=f"{key}/{attempt}")

    def directory(self, key: str) -> Path | None:
        return None

    def chunk(self, manifest: Listing, path: str, start: int, size: int) -> bytes:
        place = f"{manifest.base}/{path}"
        with self._explained(f"read {place} in"):
            return bytes(self._fs.cat_file(self._path(place), start=start, end=start + size))

    def publish(self, key: str, source: Path, manifest: Listing, transfer: Transfer) -> bool:
        with suppress(StoreError):  # cleaning is a courtesy; what fails here fails below too
            self._remove_leftovers()
        attempt = attempt_name()
        uploaded = replace(manifest, base=f"{key}/{attempt}")
        try:
            self._upload(source, uploaded, transfer)
        except BaseException:
            self._discard(uploaded.base)
            raise
        # From here on an error leaves the files: the manifest may have arrived for all that.
        shown = replace(manifest, content={**manifest.content, "attempt": attempt})
        if self._create(f"{key}/{MANIFEST}", shown.text()):
            return True
        winner = self.manifest(key)
        if winner and winner.base == uploaded.base:
            return True  # our own PUT: its answer was lost, and the client sent it again
        self._discard(uploaded.base)
        return False

    def keys(self) -> list[str]:
        parts = [path.split("/") for path in self._sizes("")]
        return sorted(key for key, *rest in parts if rest == [MANIFEST])

    def remove(self, key: str) -> None:
        with self._explained(f"remove {key} from"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(f"{key}/{MANIFEST}"))  # it vanishes as a whole
        self._remove_all(key)

    def create_note(self, name: str, text: bytes) -> bool:
        return self._create(name, text)

    def read_note(self, name: str) -> bytes | None:
        return self._read(name)

    def replace_note(self, name: str, text: bytes) -> None:
        with self._explained(f"write {name} in"):
            self._fs.pipe_file(self._path(name), text)

    def remove_note(self, name: str) -> None:
        with self._explained(f"remove {name} from"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _explained(self, doing: str) -> AbstractContextManager[None]:
        """Around calls of fsspec alone: it may raise anything."""
        return explained(f"{doing} {self.name}", Exception)

    def _read(self, path: str) -> bytes | None:
        with self._explained(f"read {path} in"):
            try:
                # With a range: without one s3fs asks for the size first, and the server's answer
                # to that says nothing of a missing bucket or an expired token.
                return bytes(self._fs.cat_file(self._path(path), start=0, end=_SMALL))
            except FileNotFoundError as error:
                if s3_code(error) == "NoSuchBucket":
                    raise
                return None
            except OSError as error:
                if s3_code(error) != "InvalidRange":
                    raise
                return b""  # an empty object has no range

    def _create(self, path: str, text: bytes) -> bool:
        """Writes an object unless there is one; False if there is.

        `mode="create"` sends If-None-Match: *, which S3 obeys. For those who ignore or refuse it
        the look beforehand is all there is: of two at the same instant the last one stays.
        """
        if self._read(path) is not None:
            return False
        for _ in range(5):
            with self._explained(f"write {path} in"):
                try:
                    self._fs.pipe_file(self._path(path), text, mode="create")
                except FileExistsError:
                    return False
                except Exception as error:
                    code = s3_code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code in ("NotImplemented", "501"):
                        self._fs.pipe_file(self._path(path), text)
                    elif code not in ("ConditionalRequestConflict", "409"):
                        raise
                    else:  # someone else writes or removes it at this instant
                        time.sleep(0.2)
                        continue
                return True
        raise StoreError(f"cannot write {path} in {self.name}: others write it -> try again")

    def _upload(self, source: Path, manifest: Listing, transfer: Transfer) -> None:
        def upload(path: str) -> None:
            doing = f"publish {path} to"
            with self._explained(doing):
                target = self._path(f"{manifest.base}/{path}")
                file = self._fs.open(target, "wb", block_size=_PART)
            try:
                for chunk in verified(source / path, manifest.files[path]):
                    with self._explained(doing):
                        file.write(chunk)
                    transfer.add(path, len(chunk))
                with self._explained(doing):
                    file.close()
            except BaseException:
                with suppress(Exception):
                    file.discard()  # parts that were sent are billed until they are taken back
                    file.closed = True  # or its __del__ sends the rest
                raise

        with explained(f"publish {source}"):  # which may not be readable
            transfer.run(upload, manifest.paths)
        sizes = self._sizes(manifest.base)
        for path, expected in manifest.files.items():
            if sizes.get(path) != expected.size:
                raise StoreError(f"{path} did not arrive whole in {self.name} -> publish again")

    def _sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object below a folder, by its path from there."""
        base = self._path(folder)
        with self._explained("list"):
            found = self._fs.find(base, detail=True)
        return {name[len(base) + 1 :]: int(entry["size"]) for name, entry in found.items()}

    def _discard(self, base: str) -> None:
        """Removes an attempt as far as possible; the rest is a leftover for the next publisher."""
        with suppress(StoreError):
            self._remove_all(base)

    def _remove_all(self, folder: str) -> None:
        # One by one: fsspec's rm takes "*" and "[" in a name for a pattern.
        for path in self._sizes(folder):
            with self._explained(f"remove {path} from"), suppress(FileNotFoundError):
                self._fs.rm_file(self._path(f"{folder}/{path}"))

    def _remove_leftovers(self) -> None:
        attempts: dict[str, set[str]] = defaultdict(set)
        for path in self._sizes(""):
            key, attempt, *_ = (*path.split("/"), "")
            if is_leftover(attempt):
                attempts[key].add(attempt)
        for key, names in attempts.items():
            with suppress(StoreError):  # of a corrupt manifest
                manifest = self.manifest(key)
                for name in names:
                    if manifest is None or manifest.base != f"{key}/{name}":
                        self._discard(f"{key}/{name}")
        self._abort_old_uploads()

    def _abort_old_uploads(self) -> None:
        """Takes back the parts of files that dead publishers did not finish: S3 bills them."""
        if not hasattr(self._fs, "abort_mpu"):
            return
        bucket = self._root.partition("/")[0]
        with self._explained("clean"):
            for upload in self._fs.list_multipart_uploads(bucket):
                # Those of others in the bucket have another prefix, and no attempt's name there.
                _, here, path = f"{bucket}/{upload['Key']}".partition(f"{self._root}/")
                if here and is_leftover((*path.split("/"), "")[1]):
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])


def _without_credentials(url: str) -> str:
    """The url as it may be shown: no user, no password, no query."""
    return re.sub(r"://[^/]*@", "://", url).partition("?")[0].rstrip("/")


def _file_system(url: str, name: str) -> tuple[Any, str]:
    """fsspec's file system for a url, and the root in its own notation.

    Raises:
        StoreError: a package is missing, or the url is of no known kind.
    """
    scheme = url.partition("://")[0]
    if not name.partition("://")[2]:
        raise StoreError(f"{scheme}:// names no bucket -> write {scheme}://bucket/prefix")
    doing = f"open {name}"
    try:
        # By name: neither has types, and a plain directory must work without them.
        fsspec = import_module("fsspec")
        # No listings cache: other machines publish. No instance cache: credentials change.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if scheme in _S3:
            # The SHA-256 of the manifest says more, and a fetch knows what to do about a wrong one.
            options["config_kwargs"] = {"response_checksum_validation": "when_required"}
        fs, root = fsspec.url_to_fs(url, **options)
    except ImportError:
        package = "neuron-serve[s3]" if scheme in _S3 else f"the fsspec package of {scheme}"
        raise StoreError(f"cannot {doing}: a package is missing -> pip install {package}") from None
    except ValueError:
        raise StoreError(
            f"cannot {doing}: {scheme}:// is unknown -> use s3://bucket/prefix or a directory"
        ) from None
    except Exception as error:
        raise explain(error, doing) from None
    if scheme in _S3:
        fs.retries = _RETRIES
    return fs, str(root).rstrip("/")
