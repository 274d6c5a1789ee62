"""Where the weights of a model are: a directory, the built-in demo model, or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from serve_app.config.environment import expand
from serve_app.config.findings import ConfigError, Finding, Severity

_BUILTIN = "builtin:"


def resolve(source: str, environment: Mapping[str, str], path: str) -> str:
    """A directory or a hub repository for `source`; `path` is the field that it stands in.

    Raises:
        ConfigError: an unset variable, or an unknown built-in model.
    """
    if source.startswith(_BUILTIN):
        if source != "builtin:demo":
            mend = "the one built-in model is builtin:demo"
            raise ConfigError(
                [Finding("model", Severity.ERROR, f"no model {source!r}", mend, path)]
            )
        return str(files("serve_app").joinpath("demo_model"))
    return expand(source, environment, path)


def is_directory(source: str) -> bool:
    """Whether a resolved source is meant as a path (`/x`, `./x`, `../x`, `~/x`)."""
    return source.startswith(("/", "./", "../", "~")) or source in (".", "..")
