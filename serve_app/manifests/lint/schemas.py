"""Objects against the schemas of their kinds: custom resources, and Kubernetes' own.

jsonschema and kubernetes_validate are an extra, so they are imported where they are used.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, NamedTuple

from serve_app.manifests.lint.objects import Object

KUBERNETES = "1.37"
"""The release whose own types are known."""
_LIST_TYPE = "x-kubernetes-list-type"


class MissingExtra(ModuleNotFoundError):
    """A package of the extra is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"checking manifests needs {package}: pip install 'neuron-serve[k8s]'", name=package
        )


class Misfit(NamedTuple):
    """Where an object breaks its schema."""

    path: tuple[str | int, ...]
    message: str
    mend: str


def extra(module: str) -> Any:
    """A module of the extra `k8s`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or module).partition(".")[0]) from None


@cache
def custom_resources() -> Mapping[str, Mapping[str, Any]]:
    """The vendored definitions by kind: apiVersion, namespaced, schema."""
    folder = files("serve_app.manifests.lint").joinpath("schemas")
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".json.gz"):
            definition = json.loads(gzip.decompress(file.read_bytes()))
            found[definition["kind"]] = definition
    return found


def custom_misfits(thing: Object) -> list[Misfit]:
    """Where a custom resource that is known here breaks its definition."""
    return list(_misfits(_custom_validator(thing["kind"]), thing))


def core_misfits(thing: Object) -> list[Misfit] | None:
    """The same for an object of Kubernetes itself; None if there is no such kind."""
    validator = _core_validator(str(thing["kind"]), str(thing["apiVersion"]))
    return None if validator is None else list(_misfits(validator, thing))


@cache
def _custom_validator(kind: str) -> Any:
    schema = _strict(custom_resources()[kind]["schema"])
    # The API server knows metadata by itself.
    schema["properties"]["metadata"] = {"type": "object"}
    return _validator_class()(schema)


@cache
def _core_validator(kind: str, api_version: str) -> Any:
    validate = extra("kubernetes_validate.utils")
    referencing = extra("referencing")
    group, _, version = api_version.rpartition("/")
    name = f"{kind}-{group.partition('.')[0]}-{version}" if group else f"{kind}-{version}"
    folder = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
    try:
        schema = validate.schema_contents(f"{folder}/{name.lower()}.json", KUBERNETES)
    except FileNotFoundError:
        return None
    registry = referencing.Resource.from_contents(schema) @ _core_definitions(folder)
    return _validator_class()(schema, registry=registry)


@cache
def _core_definitions(folder: str) -> Any:
    validate, referencing = extra("kubernetes_validate.utils"), extra("referencing")
    contents = validate.schema_contents(f"{folder}/_definitions.json", KUBERNETES)
    return referencing.Resource.from_contents(contents) @ referencing.Registry()


@cache
def _validator_class() -> Any:
    jsonschema = extra("jsonschema")
    return jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {_LIST_TYPE: _distinct_entries}
    )


def _distinct_entries(validator: Any, kind: str, given: Any, schema: Any) -> Iterator[Any]:
    """Entries of a `set` or `map` list differ, a map's by its keys."""
    if not isinstance(given, list) or kind not in ("set", "map"):
        return
    error = extra("jsonschema").ValidationError
    keys = schema.get("x-kubernetes-list-map-keys", ())
    seen = set()
    for index, entry in enumerate(given):
        shown = entry
        if kind == "map" and isinstance(entry, dict):
            defaults = {"protocol": "TCP"}
            shown = ", ".join(f"{k} {entry.get(k, defaults.get(k))}" for k in keys)
        if repr(shown) in seen:
            yield error(f"it stands twice: {shown}", path=[index])
        seen.add(repr(shown))


def _strict(schema: Any) -> Any:
    """A structural schema as JSON Schema: unknown fields refused, int-or-string as a type."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(inner) for name, inner in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if key != "default"
    }
    if strict.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    if strict.get("nullable") and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    if "required" in strict:  # what has a default is filled in before it is missed
        known = schema.get("properties", {})
        strict["required"] = [n for n in strict["required"] if "default" not in known.get(n, {})]
    if "properties" in strict and not strict.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


def _misfits(validator: Any, thing: Object) -> Iterator[Misfit]:
    for error in validator.iter_errors(thing):
        path = tuple(error.absolute_path)
        if error.validator == "additionalProperties" and error.schema.get("properties"):
            known = error.schema["properties"]
            for key in [key for key in error.instance if key not in known]:
                near = get_close_matches(str(key), known, n=1)
                mend = f"did you mean {near[0]}?" if near else "remove it"
                yield Misfit((*path, key), f"there is no field {key!r}", mend)
        elif error.validator == "required":
            for key in [key for key in error.validator_value if key not in error.instance]:
                if f"'{key}'" in error.message:
                    yield Misfit(path, f"{key!r} is missing", "add it")
        elif error.validator == "type":
            wanted = error.validator_value
            kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
            yield Misfit(path, f"{_short(error.instance)} is not of type {kinds}", "")
        else:
            yield Misfit(path, error.message[:200], "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
