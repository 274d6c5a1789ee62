"""placeholder, replaced by the ledger's branch"""

from __future__ import annotations
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True)
class Refusal:
    what: str
    message: str
    retry_after_s: float
