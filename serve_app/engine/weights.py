"""Bring the files of a model onto this machine, with progress a person can follow."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

from serve_app.config.sources import is_directory, resolve
from serve_app.engine.errors import StartupError
from serve_app.engine.phases import DOWNLOAD, TRANSFER_PERIOD_S, Phases


def fetch(source: str, revision: str | None, path: str, phases: Phases) -> str:
    """A local directory with the model's files; downloads from the hub where needed.

    `path` is the field of the configuration that names the source.

    Raises:
        ConfigError: the source refers to an unset variable.
        StartupError: the hub does not give the files; says what to do.
    """
    location = resolve(source, os.environ, path)
    if is_directory(location) or Path(location).is_dir():
        return str(Path(location).expanduser().resolve())
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    phases.report(DOWNLOAD, location)
    ignore = ["original/*", "*.pth", "*.gguf", "*.msgpack", "*.h5", "*.onnx"]
    offline = False
    try:
        files = HfApi().list_repo_files(location, revision=revision)
    except GatedRepoError:
        raise StartupError(
            f"{location} is gated -> accept its licence on the hub and set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise StartupError(f"{location} has no revision {revision!r} -> mend {path}") from None
    except RepositoryNotFoundError:
        raise StartupError(
            f"the hub has no model {location!r}, or it is private -> mend {path} or set HF_TOKEN"
        ) from None
    except Exception:  # the cache may hold it
        offline, files = True, []
    if offline or any(file.endswith(".safetensors") for file in files):
        ignore.append("*.bin")
    progress = _progress(location, phases)
    try:
        return str(
            snapshot_download(
                location,
                revision=revision,
                ignore_patterns=ignore,
                local_files_only=offline,
                tqdm_class=progress,
            )
        )
    except LocalEntryNotFoundError:
        raise StartupError(
            f"cannot reach the hub and {location} is not in the local cache -> check the network, "
            f"or set {path} to a directory"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StartupError(f"cannot download {location}: {reason} -> try again") from None


def _progress(location: str, phases: Phases) -> type[Any]:
    """A tqdm class that reports bytes as a phase instead of drawing a bar."""
    from tqdm.auto import tqdm

    class Progress(tqdm):  # type: ignore[type-arg]
        last_report = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now = time.monotonic()
            if self.unit == "B" and self.total and now - Progress.last_report > TRANSFER_PERIOD_S:
                Progress.last_report = now
                done, total = self.n / 2**30, self.total / 2**30
                phases.report(DOWNLOAD, f"{location} {done:.2f} of {total:.2f} GiB")
            return shown

    return Progress
