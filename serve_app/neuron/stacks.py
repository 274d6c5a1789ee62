"""The software stacks: which SDK, vLLM, plugin and image go together, and where they run.

The table is `stacks.json`, newest first within a back end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


def release(version: str) -> tuple[int, ...]:
    """ "2.28.0" -> (2, 28, 0), for comparing."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class Stack:
    """One combination that AWS released."""

    backend: str
    """nxdi or neuron."""
    sdk: str
    """Neuron SDK, for example "2.28.0"."""
    vllm: str
    """vLLM version family, for example "0.13"."""
    plugin: str
    """Version of the vLLM plugin, for example "0.4.1"."""
    nxdi: str | None
    """neuronx-distributed-inference, for example "0.8.16251"; None for `neuron`."""
    python: str
    image: str
    """Full reference of AWS's image."""
    families: tuple[str, ...]
    """Instance families that it serves."""
    source: str


@cache
def stacks() -> tuple[Stack, ...]:
    """Every known stack, newest first within a back end."""
    text = files("serve_app.neuron").joinpath("stacks.json").read_text()
    return tuple(
        Stack(**{**fields, "families": tuple(fields["families"])}) for fields in json.loads(text)
    )


def choose(backend: str, family: str, sdk: str | None = None) -> Stack | None:
    """The newest stack of the back end for the family.

    `sdk` ("2.28" or "2.28.0") pins it. A family that the back end does not serve gets the newest
    stack all the same: that it does not fit is for a rule to say. None: no such SDK.
    """
    of_backend = [stack for stack in stacks() if stack.backend == backend]
    if sdk is not None:
        pinned = [s for s in of_backend if f"{s.sdk}.".startswith(f"{sdk}.")]
        return pinned[0] if pinned else None
    return next((s for s in of_backend if family in s.families), of_backend[0])
