"""Kubernetes objects as plain data: read from YAML, named, looked into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import yaml

Object = dict[str, Any]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadInput(ValueError):
    """What was given holds no Kubernetes objects. One line, fit to be shown as it is."""


def read(paths: Sequence[str], stdin: BinaryIO) -> list[Object]:
    """The objects in YAML files, directories of them (at any depth), or `-` = `stdin`.

    What has no apiVersion or kind (helm values) and kustomize's own files are passed over.

    Raises:
        BadInput: nothing is there, it cannot be read, or it is no YAML.
    """
    found: list[Object] = []
    for path in paths:
        for name, text in _texts(path, stdin):
            found += _objects(name, text)
    if not found:
        raise BadInput(f"no Kubernetes object in {', '.join(paths)}")
    return found


def _texts(path: str, stdin: BinaryIO) -> Iterator[tuple[str, str]]:
    try:
        if path == "-":
            yield "stdin", stdin.read().decode("utf-8")
            return
        place = Path(path)
        files = [place]
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix in (".yaml", ".yml"))
        for file in files:
            yield str(file), file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: it is not UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from None


def _objects(name: str, text: str) -> Iterator[Object]:
    try:
        for thing in yaml.load_all(text, _LOADER):
            yield from _unpacked(thing)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-13-45
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or (str(error).splitlines() or ["too deep"])[0]
        raise BadInput(f"{place}: it is not valid YAML: {problem}") from None


def _unpacked(thing: Any) -> Iterator[Object]:
    if not isinstance(thing, dict) or not thing.get("apiVersion") or not thing.get("kind"):
        return
    if str(thing["apiVersion"]).startswith("kustomize.config.k8s.io/"):
        return
    if thing["kind"] == "List" and isinstance(thing.get("items"), list):
        for item in thing["items"]:
            yield from _unpacked(item)
        return
    yield thing


def at(thing: Any, *path: str | int) -> Any:
    """The value at a path, or None where the path ends early."""
    for part in path:
        if isinstance(thing, dict):
            thing = thing.get(part)
        elif isinstance(thing, list) and isinstance(part, int) and part < len(thing):
            thing = thing[part]
        else:
            return None
    return thing


def mapping(thing: Any, *path: str | int) -> dict[str, Any]:
    """The mapping at a path, empty where there is none."""
    found = at(thing, *path)
    return found if isinstance(found, dict) else {}


def each(thing: Any, *path: str | int) -> list[Any]:
    """The list at a path, empty where there is none."""
    found = at(thing, *path)
    return found if isinstance(found, list) else []


def name_of(thing: Object) -> str:
    return str(at(thing, "metadata", "name") or "")


def namespace_of(thing: Object) -> str:
    return str(at(thing, "metadata", "namespace") or "")


def notes_of(thing: Object) -> dict[str, Any]:
    return mapping(thing, "metadata", "annotations")


def named(thing: Object) -> str:
    """ "RayService/neuron-serve/llama3-8b-inf2"."""
    kind = str(thing.get("kind") or "object")
    parts = (kind, namespace_of(thing), name_of(thing) or "(no name)")
    return "/".join(part for part in parts if part)


def group_of(thing: Object) -> str:
    """The API group: "" for core, "ray.io" of "ray.io/v1"."""
    return str(thing.get("apiVersion")).rpartition("/")[0]
