"""The rules that a custom resource's definition carries (x-kubernetes-validations).

They are written in CEL, https://kubernetes.io/docs/reference/using-api/cel; evaluated here by
cel-python with those of Kubernetes' string functions that the vendored definitions use. Rules
about a change (`oldSelf`) say nothing of an object that is new.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

from serve_app.manifests.lint.objects import Object
from serve_app.manifests.lint.schemas import Misfit, custom_resources, extra

_RULES = "x-kubernetes-validations"


def broken_rules(thing: Object) -> Iterator[Misfit]:
    """The rules that an object breaks. Its shape must be right."""
    schema = custom_resources()[thing["kind"]]["schema"]
    spec = thing.get("spec")
    if spec is not None and _has_rules(thing["kind"]):
        yield from _walk(schema["properties"]["spec"], _defaulted(spec, thing), ("spec",))


@cache
def _has_rules(kind: str) -> bool:
    return f'"{_RULES}":' in str(custom_resources()[kind]["schema"]).replace("'", '"')


def _defaulted(spec: Any, thing: Object) -> Any:
    """The spec with the definition's defaults, as the API server fills them in before."""
    schema = custom_resources()[thing["kind"]]["schema"]["properties"]["spec"]
    filled = deepcopy(spec)
    _fill(schema, filled)
    return filled


def _fill(schema: dict[str, Any], value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = deepcopy(inner["default"])
            if name in value:
                _fill(inner, value[name])
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            for name in value:
                _fill(more, value[name])
    elif isinstance(value, list):
        for item in value:
            _fill(schema.get("items", {}), item)


def _walk(schema: dict[str, Any], value: Any, path: tuple[str | int, ...]) -> Iterator[Misfit]:
    for rule in schema.get(_RULES, ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield Misfit(path, rule.get("message") or f"it breaks {rule['rule']}", "")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        more = schema.get("additionalProperties")
        for name, inner in value.items():
            below = known.get(name, more)
            if isinstance(below, dict):
                yield from _walk(below, inner, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(schema.get("items", {}), item, (*path, index))


def _holds(text: str, value: Any) -> bool:
    celpy = extra("celpy")
    try:
        return bool(_program(text).evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:  # as the API server: what cannot be evaluated does not hold
        return False


@cache
def _program(text: str) -> Any:
    environment = _environment()
    return environment.program(
        environment.compile(text), functions={"find": _find, "split": _split}
    )


@cache
def _environment() -> Any:
    celpy = extra("celpy")
    return celpy.Environment(runner_class=celpy.InterpretedRunner)


def _find(text: str, pattern: str) -> Any:
    """The first match of a regular expression, or ""."""
    found = re.search(str(pattern), str(text))
    return extra("celpy.celtypes").StringType(found[0] if found else "")


def _split(text: str, separator: str) -> Any:
    types = extra("celpy.celtypes")
    return types.ListType([types.StringType(part) for part in str(text).split(str(separator))])
