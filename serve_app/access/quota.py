"""What a key may use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quota:
    """Limits of one key; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether nothing has to be counted."""
        return self == Quota()


@dataclass(frozen=True)
class Standing:
    """What is left of a key's limits per minute; None: no such limit, or not asked for.

    `reset_requests_s`: until the oldest counted request leaves the window, so that one more may
    come. `reset_tokens_s`: until the minute of the clock is over, when all tokens come back.
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As OpenAI names and writes them."""
        values = (
            ("limit-requests", self.limit_requests),
            ("remaining-requests", self.remaining_requests),
            ("reset-requests", _duration(self.reset_requests_s)),
            ("limit-tokens", self.limit_tokens),
            ("remaining-tokens", self.remaining_tokens),
            ("reset-tokens", _duration(self.reset_tokens_s)),
        )
        return [
            (f"x-ratelimit-{name}".encode(), str(value).encode())
            for name, value in values
            if value is not None
        ]


@dataclass(frozen=True)
class Refusal:
    """What a 429 says. `retry_after_s` is 0.0 where no wait helps."""

    what: Literal["requests", "tokens", "concurrency"]
    message: str
    retry_after_s: float


@dataclass(frozen=True)
class Decision:
    """Whether a request may go on: `refusal` is None."""

    refusal: Refusal | None
    standing: Standing


def _duration(seconds: float | None) -> str | None:
    """As Go writes it: 120ms, 1s, 59.7s, 6m0s. Rounded up, so that nobody comes too early."""
    if seconds is None:
        return None
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
