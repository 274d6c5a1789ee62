"""`${NAME}` in a value: filled from the environment, for secrets and paths only."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serve_app.config.findings import ConfigError, Finding, Severity

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def references(value: str) -> list[str]:
    """Names of the variables that `value` refers to, in order."""
    return _REFERENCE.findall(value)


def expand(value: str, environment: Mapping[str, str], path: str) -> str:
    """`value` with each `${NAME}` replaced.

    Raises:
        ConfigError: a variable is unset or empty; `path` names the field that asked for it.
    """
    missing = [name for name in references(value) if not environment.get(name)]
    if missing:
        raise ConfigError([unset(missing[0], path)])
    return _REFERENCE.sub(lambda match: environment[match[1]], value)


def unset(name: str, path: str) -> Finding:
    """The finding for a variable that `path` needs and the environment lacks."""
    return Finding(
        "environment",
        Severity.ERROR,
        f"the environment variable {name} is not set",
        f"export {name}=... where the replica runs",
        path,
    )
