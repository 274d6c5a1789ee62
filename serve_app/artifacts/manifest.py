"""`neuron-serve.json`: the manifest beside a compiled model, written last and atomically.

NxDI writes `neuron_config.json` before it traces, and `model.pt` when it is done; neither says
which SDK, chip or model it was. The manifest does, and its presence says that all files are there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serve_app.artifacts.recipe import ARCHITECTURE, RUNTIME, Model, Recipe
from serve_app.version import VERSION

MANIFEST = "neuron-serve.json"
NEURON_CONFIG = "neuron_config.json"
GRAPHS = "model.pt"
_FORMAT = 1
_CHUNK = 1 << 20


class ArtifactError(ValueError):
    """A directory is no whole artifact. One line with what is wrong and the mend."""


@dataclass(frozen=True)
class File:
    """Size in bytes, and SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was compiled, with what, and which files it is."""

    recipe: Recipe
    key: str
    """Of the recipe as the configuration wanted it; a store keeps the artifact under it."""
    files: Mapping[str, File]
    weights_in_artifact: bool
    """True: pre-sharded under weights/. False: the model's own files are read at each load."""
    dropped: tuple[str, ...] = ()
    """Kernel flags that the recipe wanted and the compiler could not do; they are off."""
    unknown: tuple[str, ...] = ()
    """What an adopted artifact does not tell of itself."""
    created: str = ""
    """UTC, ISO 8601."""
    neuron_serve: str = VERSION
    format: int = field(default=_FORMAT)

    def write(self, directory: Path) -> None:
        """Beside the artifact's files; either whole or not at all."""
        draft = directory / f".{MANIFEST}.{os.getpid()}"
        try:
            with draft.open("w") as file:
                json.dump(asdict(self), file, indent=1, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(directory / MANIFEST)
        finally:
            draft.unlink(missing_ok=True)


_MANIFEST = TypeAdapter(Manifest)


def parse(text: str | bytes, where: str) -> Manifest:
    """Raises: ArtifactError when it is cut off or not ours."""
    try:
        return _MANIFEST.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise ArtifactError(
            f"{where} is no manifest of a compiled model ({what}) -> write it anew with "
            "`neuron-serve artifact adopt`, or compile again"
        ) from None


def read(directory: Path) -> Manifest | None:
    """The manifest of a directory; None when there is none.

    Raises:
        ArtifactError: it cannot be read.
    """
    file = directory / MANIFEST
    try:
        return parse(file.read_bytes(), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"cannot read {file}: {error.strerror}") from None


def library_config(directory: Path) -> dict[str, Any]:
    """NxDI's own record, neuron_config.json.

    Raises:
        ArtifactError: it is missing, or not what NxDI writes.
    """
    file = directory / NEURON_CONFIG
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise ArtifactError(
            f"{directory} holds no compiled model: {NEURON_CONFIG}: {error.strerror}"
        ) from None
    except ValueError:
        raise ArtifactError(f"{file} is cut off -> compile again") from None
    if not isinstance(config, dict) or not isinstance(config.get("neuron_config"), dict):
        raise ArtifactError(f"{file} has no neuron_config -> compile again")
    return config


def completeness(directory: Path) -> str | None:
    """What is missing by NxDI's own measure; None when it would load.

    Source: neuronx-distributed-inference models/application_base.py, is_compiled and
    load_weights.
    """
    graphs = directory / GRAPHS
    if not graphs.is_file() or graphs.stat().st_size == 0:
        return f"{GRAPHS} is not there: the compile did not end"
    neuron = library_config(directory)["neuron_config"]
    if neuron.get("save_sharded_checkpoint"):
        first = neuron.get("start_rank_id") or 0
        ranks = neuron.get("local_ranks_size") or neuron.get("tp_degree") or 1
        for rank in range(first, first + ranks):
            name = f"weights/tp{rank}_sharded_checkpoint.safetensors"
            if not (directory / name).is_file():
                return f"{name} is not there, of {ranks} shards"
    return None


def verify(
    directory: Path,
    manifest: Manifest,
    deep: bool = False,
    report: Callable[[int], None] | None = None,
) -> list[str]:
    """What is wrong with the files: missing, of another size, and if `deep` of other content.

    `report` is told the bytes that were read.
    """
    faults = []
    for name, file in manifest.files.items():
        path = directory / name
        if not path.is_file():
            faults.append(f"{name} is not there")
        elif path.stat().st_size != file.size:
            faults.append(f"{name} has {path.stat().st_size} bytes, not {file.size}")
        elif deep and digest(path, report) != file.sha256:
            faults.append(f"{name} has other content than when it was compiled")
    if not faults and manifest.recipe.backend == "nxdi" and (gap := completeness(directory)):
        faults.append(gap)
    return faults


def digest(path: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, hexadecimal. `report` is told the bytes as they are read."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            if report is not None:
                report(len(chunk))
    return sha.hexdigest()


def seal(
    directory: Path,
    recipe: Recipe,
    dropped: Iterable[str] = (),
    unknown: Iterable[str] = (),
    report: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the manifest of a compiled model. What NxDI recorded goes before what was wanted.

    Raises:
        ArtifactError: the directory is not complete.
        OSError: it cannot be written.
    """
    key = recipe.key
    if recipe.backend == "nxdi":
        if gap := completeness(directory):
            raise ArtifactError(f"{directory}: {gap}")
        config = library_config(directory)
        sharded = bool(config["neuron_config"].get("save_sharded_checkpoint"))
        recorded = {k: plain(v) for k, v in config["neuron_config"].items() if k not in RUNTIME}
        neuron = {**recipe.neuron, **recorded}
        shape = {name: config[name] for name in ARCHITECTURE if name in config}
        recipe = replace(recipe, neuron=neuron, architecture=shape or recipe.architecture)
    else:
        sharded = False
    files = {
        str(path.relative_to(directory)): File(path.stat().st_size, digest(path, report))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(f".{MANIFEST}") and path.name != MANIFEST
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(recipe, key, files, sharded, tuple(dropped), tuple(unknown), created)
    manifest.write(directory)
    return manifest


def adopted(
    directory: Path,
    model: Model = Model(),  # noqa: B008  (frozen)
    sdk: str | None = None,
    platform: str | None = None,
) -> tuple[Recipe, tuple[str, ...]]:
    """What NxDI's record tells of a model compiled elsewhere, and the names of what it does not.

    Raises:
        ArtifactError: there is no record.
    """
    config = library_config(directory)
    recipe = Recipe(
        backend="nxdi",
        model=model,
        architecture={name: config[name] for name in ARCHITECTURE if name in config},
        neuron={k: plain(v) for k, v in config["neuron_config"].items() if k not in RUNTIME},
        platform=platform,
        sdk=sdk,
    )
    facts = {"model.id": model.id, "model.config_sha256": model.config_sha256}
    facts |= {"sdk": sdk, "platform": platform}
    return recipe, tuple(name for name, value in facts.items() if value is None)


def plain(value: Any) -> Any:
    """A value of neuron_config.json as one of a configuration: enums and classes by name."""
    if isinstance(value, dict):
        for name in ("_value_", "__name__"):
            if name in value:
                return value[name]
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
