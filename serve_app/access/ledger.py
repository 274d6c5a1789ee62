"""Counts what each key uses against its quota, before a request costs anything and after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from serve_app.access.counts import KEPT_MINUTES, LEASE_S, MINUTE_S, open_counts, without_password
from serve_app.access.quota import Decision, Quota, Refusal, Standing

_SWEEP_S = 10.0


class LedgerUnavailable(Exception):
    """The counts cannot be reached, or do not answer. One line, without passwords."""


@dataclass
class _Open:
    """A request between admit and settle."""

    key: str
    slot: bool
    until: float
    standing: Standing = field(default_factory=Standing)
    """Of requests, as it was at admission: reserve need not ask for it again."""
    charged: dict[int, int] = field(default_factory=dict)
    """Tokens by minute."""


class Ledger:
    """Three limits of a key: requests in any 60 s, tokens in a minute of the clock, open requests.

    `url` is where the numbers live: `memory`, then one process counts for all; or redis://...,
    then each replica has a ledger. A request's id must be no other's: the caller makes it, as a
    client's own could come twice and share a slot.

    What fails costs the key a little of its quota, and gives it nothing. Tokens that a replica
    reserved before it died stay charged until their minute is over, and so do those of a `reserve`
    that was cancelled. Slots come back LEASE_S after the last `keep`; so a request that runs
    longer than that without one, as when Redis is away, is no longer counted as open.

    `url` raises ValueError. Methods raise LedgerUnavailable, within 5 s.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._url = without_password(url)
        self._clock = clock
        self._counts = open_counts(url)
        self._open: dict[str, _Open] = {}
        self._next_sweep = 0.0

    async def admit(self, key: str, quota: Quota, request: str) -> Decision:
        """Count a request and take a slot for it. What is refused does neither.

        Raises ValueError if `request` is open already.
        """
        if quota.unlimited:
            return Decision(None, Standing())
        if request in self._open:
            raise ValueError(f"request {request} is open already")
        now = self._clock()
        self._sweep(now)
        requests, slots = quota.requests_per_minute, quota.concurrent_requests
        # Before the first wait: settle gives back what a cancelled call took.
        opened = self._open[request] = _Open(key, slots is not None, now + LEASE_S)
        full = spent = False
        async with self._reachable():
            # The slot first: a slot can be given back, a counted request cannot.
            full = slots is not None and not await self._counts.take(key, request, slots, now)
            if not full and requests is not None:
                spent = not await self._counts.hit(key, requests)
            if spent and opened.slot:
                await self._counts.free(key, request)
            standing = await self._standing(key, quota)
        opened.standing = standing
        if not full and not spent:
            return Decision(None, standing)
        self._open.pop(request, None)
        refusal = _too_many_open(slots or 0) if full else _too_many_requests(standing)
        return Decision(refusal, standing)

    async def reserve(self, key: str, quota: Quota, request: str, tokens: int) -> Decision:
        """Charge what a request may use at most: its prompt and max_tokens.

        Several calls for one request add up. A refused one charges nothing.
        """
        if quota.unlimited:
            return Decision(None, Standing())
        now = self._clock()
        opened = self._open.setdefault(request, _Open(key, False, now + LEASE_S))
        limit = quota.tokens_per_minute
        if limit is None:
            return Decision(None, opened.standing)
        minute = int(now // MINUTE_S)
        total = sum(opened.charged.values()) + tokens
        async with self._reachable():
            if total > limit:
                done, used = False, await self._counts.used(key, minute)
            else:
                done, used = await self._counts.reserve(key, minute, tokens, limit)
            if done and self._open.get(request) is not opened:  # settled meanwhile
                await self._counts.settle(key, None, {minute: -tokens})
        standing = _with_tokens(opened.standing, limit, used, now)
        if done:
            opened.charged[minute] = opened.charged.get(minute, 0) + tokens
            return Decision(None, standing)
        if total > limit:
            return Decision(_never(limit, total), standing)
        return Decision(_too_many_tokens(standing, used, tokens), standing)

    async def settle(self, key: str, quota: Quota, request: str, used: int) -> None:
        """The request is over and used so many tokens: correct what it was charged, free its slot.

        A refund goes to the minute that was charged, though another may have begun; use beyond
        the reservation is charged to the last of its minutes, over the limit if need be. A second
        call does nothing, nor does one after the lease ran out.
        """
        opened = self._open.pop(request, None)
        if opened is None:
            return
        changes: dict[int, int] = {}
        if quota.tokens_per_minute is not None:
            minute = int(self._clock() // MINUTE_S)
            changes = _changes(opened.charged or {minute: 0}, used)
            changes = {of: by for of, by in changes.items() if by and of >= minute - KEPT_MINUTES}
        if opened.slot or changes:
            async with self._reachable():
                await self._counts.settle(key, request if opened.slot else None, changes)

    async def keep(self, requests: Iterable[str]) -> None:
        """These are still open. To be called every 10 s: a lease is LEASE_S long."""
        now = self._clock()
        held = []
        for request in requests:
            if opened := self._open.get(request):
                opened.until = now + LEASE_S
                if opened.slot:
                    held.append((opened.key, request))
        self._sweep(now)
        if held:
            async with self._reachable():
                await self._counts.renew(held, now + LEASE_S)

    async def standing(self, key: str, quota: Quota) -> Standing:
        """Asks and charges nothing."""
        async with self._reachable():
            return await self._standing(key, quota)

    async def close(self) -> None:
        """End the connections."""
        await self._counts.close()

    async def _standing(self, key: str, quota: Quota) -> Standing:
        now = self._clock()
        standing = Standing()
        if (limit := quota.requests_per_minute) is not None:
            remaining, oldest_ends = await self._counts.window(key, limit)
            reset = max(0.0, oldest_ends - now) if remaining < limit else 0.0
            standing = Standing(limit, remaining, reset)
        if (limit := quota.tokens_per_minute) is not None:
            used = await self._counts.used(key, int(now // MINUTE_S))
            standing = _with_tokens(standing, limit, used, now)
        return standing

    def _sweep(self, now: float) -> None:
        """Forget requests whose replica is gone."""
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._open = {name: one for name, one in self._open.items() if one.until > now}

    @asynccontextmanager
    async def _reachable(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._counts.timeout_s):
                yield
        except self._counts.unreachable as error:
            said = " ".join(str(error).split()) or "no answer"
            raise LedgerUnavailable(f"Quotas are counted at {self._url}: {said}") from error


def _changes(charged: dict[int, int], used: int) -> dict[int, int]:
    """What to add to each minute's charge, so that all sum up to `used`: the newest yield first."""
    changes = {}
    for minute in sorted(charged):
        kept = min(charged[minute], used)
        changes[minute] = kept - charged[minute]
        used -= kept
    changes[max(charged)] += used
    return changes


def _with_tokens(standing: Standing, limit: int, used: int, now: float) -> Standing:
    left = max(0, limit - used)
    reset = MINUTE_S - now % MINUTE_S if left < limit else 0.0
    return replace(standing, limit_tokens=limit, remaining_tokens=left, reset_tokens_s=reset)


def _too_many_open(limit: int) -> Refusal:
    message = (
        f"Too many open requests: limit {limit}, open {limit}, requested 1. "
        "Try again when one has ended."
    )
    return Refusal("concurrency", message, 1.0)


def _too_many_requests(standing: Standing) -> Refusal:
    limit, wait = standing.limit_requests, standing.reset_requests_s or 0.001
    message = (
        f"Rate limit reached on requests per minute: limit {limit}, used {limit}, requested 1. "
        f"Try again in {wait:.1f} s."
    )
    return Refusal("requests", message, wait)


def _too_many_tokens(standing: Standing, used: int, tokens: int) -> Refusal:
    wait = standing.reset_tokens_s or 0.001
    message = (
        f"Rate limit reached on tokens per minute: limit {standing.limit_tokens}, used {used}, "
        f"requested {tokens} (prompt and max_tokens). Try again in {wait:.1f} s, or lower "
        "max_tokens."
    )
    return Refusal("tokens", message, wait)


def _never(limit: int, total: int) -> Refusal:
    message = (
        f"This request can never pass: it asks for {total} tokens (prompt and max_tokens), more "
        f"than the whole limit of {limit} tokens per minute. Lower max_tokens, or shorten the "
        "prompt."
    )
    return Refusal("tokens", message, 0.0)
