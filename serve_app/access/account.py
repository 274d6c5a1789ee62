"""What one request takes of the engine, counted by the engine itself.

The middleware that knows the key opens an account; the engine, deep inside vLLM's handlers, finds
it in the context of the same request. So no token passes through Python of ours to be counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.access.quota import Refusal


class Sequence(Protocol):
    """vLLM's own state of a sequence (RequestState), as far as it counts."""

    is_prefilling: bool
    stats: Any


@dataclass
class Prompt:
    """A prompt given to the engine, and the sequences that grew from it (`n`)."""

    tokens: int
    sequences: list[Sequence] = field(default_factory=list)
    running: int = 0
    """Those that the engine still counts; what it computes of an aborted one counts no more."""


@dataclass
class Account:
    """One request: what its key allows, and what it used."""

    max_tokens: int | None = None
    """Ceiling of each sequence."""
    priority: int | None = None
    """For vLLM's scheduler, in place of the client's own; lower is earlier."""
    reserve: Callable[[int], Awaitable[Refusal | None]] | None = None
    """Asked before a prompt is given to the engine, with its tokens and all it may generate."""
    refusal: Refusal | None = None
    """Why the engine was not given the request."""
    adapter: str | None = None
    """The LoRA adapter that served it."""
    prompts: list[Prompt] = field(default_factory=list)

    def prompt_tokens(self) -> int:
        """As in vLLM's `usage`: each prompt once; none that was left before it was computed."""
        return sum(
            prompt.tokens
            for prompt in self.prompts
            if any(not sequence.is_prefilling for sequence in prompt.sequences)
        )

    def completion_tokens(self) -> int:
        """As in vLLM's `usage`; also of what was cut off."""
        return sum(
            sequence.stats.num_generation_tokens
            for prompt in self.prompts
            for sequence in prompt.sequences
            if sequence.stats is not None
        )


class Refused(ValueError):
    """The request's account refuses; vLLM passes it on as it does an invalid request."""


ACCOUNT: ContextVar[Account | None] = ContextVar("account", default=None)
