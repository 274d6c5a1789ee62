"""Paths and values of manifests, for people: short, and without secrets."""

from __future__ import annotations

import json
import re
from typing import Any


def dotted(path: tuple[str, ...]) -> str:
    """`a.b[name].c`, keys with dots in brackets."""
    text = ""
    for key in filter(None, path):
        if not key.startswith("[") and re.search(r"[./]", key):
            key = f"[{key}]"
        text += key if key.startswith("[") else f".{key}"
    return text.lstrip(".")


_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|(?i:(?:token|secret|password|api[-_]?key)\]?$)")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def shown(path: tuple[str, ...], value: Any) -> Any:
    """The value without secrets: those of variables and keys that are called so."""
    named = path[-1:] if path[-1:] != ("value",) else path[-2:]
    if isinstance(value, dict):
        own = (f"[{value['name']}]",) if isinstance(value.get("name"), str) else named
        return {
            key: shown((*own, key) if key == "value" else (key,), below)
            for key, below in value.items()
        }
    if isinstance(value, list):
        return [shown((), item) for item in value]
    if isinstance(value, str):
        secret = any(_SECRET.search(name) for name in named)
        return "***" if secret else _IN_ADDRESS.sub("***", value)
    return value


def short(value: Any) -> str:
    """On one line, of 80 characters at most."""
    if value is None:
        return "none"
    text = value if value == "the object" else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
