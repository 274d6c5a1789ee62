"""Where the ledger keeps its numbers: this process's memory, or a Redis server.

Windows of requests are the library limits'. It has neither slots nor a window that checks before
it adds: those are here, a dict in memory and a short script in Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter
from limits.storage import storage_from_string

LEASE_S = 30.0
"""A slot that nobody renews comes back after it."""
MINUTE_S = 60
KEPT_MINUTES = 1
"""So many past minutes can still be settled; a change to older ones would change nothing."""
_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S = 3.0
_CALL_TIMEOUT_S = 5.0
"""With its place in a burst: what is not counted passes, so that a slow answer is better."""
_CONNECTIONS = 8  # Redis answers one after the other; opening many at once takes long


class Counts(Protocol):
    """`now` and `until` are seconds since 1970, `minute` is the minutes since then."""

    timeout_s: float | None
    """Of one call to the ledger."""
    unreachable: tuple[type[Exception], ...]

    async def hit(self, key: str, limit: int) -> bool:
        """Count a request, unless `limit` came within the last 60 s."""

    async def window(self, key: str, limit: int) -> tuple[int, float]:
        """Requests that may still come, and the time when the oldest is forgotten."""

    async def take(self, key: str, request: str, limit: int, now: float) -> bool:
        """A slot until `now` + LEASE_S, unless `limit` are taken."""

    async def renew(self, held: Sequence[tuple[str, str]], until: float) -> None:
        """Slots (key, request); those that were given back stay so."""

    async def free(self, key: str, request: str) -> None:
        """Give a slot back."""

    async def reserve(self, key: str, minute: int, tokens: int, limit: int) -> tuple[bool, int]:
        """Add, unless the sum would exceed `limit`; the sum as it is now."""

    async def used(self, key: str, minute: int) -> int:
        """The sum."""

    async def settle(self, key: str, slot: str | None, changes: dict[int, int]) -> None:
        """Give the slot back and change the sums of minutes."""

    async def close(self) -> None: ...


def open_counts(url: str) -> Counts:
    """`memory`, redis:// or rediss://. Raises ValueError."""
    if url == "memory":
        return MemoryCounts()
    return RedisCounts(url.removeprefix("async+"))


def without_password(url: str) -> str:
    """To be shown: neither user and password nor options, which may hold them, too."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2].partition("?")[0]


class _Windows:
    """Moving windows of 60 s, in any storage of limits."""

    def __init__(self, storage: Any) -> None:
        self._limiter = MovingWindowRateLimiter(storage)

    async def hit(self, key: str, limit: int) -> bool:
        return await self._limiter.hit(_per_minute(limit), key)

    async def window(self, key: str, limit: int) -> tuple[int, float]:
        stats = await self._limiter.get_window_stats(_per_minute(limit), key)
        return max(0, stats.remaining), stats.reset_time


def _per_minute(limit: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(limit, namespace="requests")


class MemoryCounts(_Windows):
    """Of the callers of one event loop. Nothing below waits between look and change."""

    timeout_s: float | None = None
    unreachable: tuple[type[Exception], ...] = ()

    def __init__(self) -> None:
        super().__init__(storage_from_string("async+memory://"))
        self._hit = asyncio.Lock()
        self._slots: dict[str, dict[str, float]] = {}
        self._tokens: dict[int, dict[str, int]] = {}

    async def hit(self, key: str, limit: int) -> bool:
        # limits 5.8 drops a key's lock when it sweeps, even while others wait for it; a request
        # counted under the old lock can then be swept off. One at a time, nobody waits for it.
        async with self._hit:
            return await super().hit(key, limit)

    async def take(self, key: str, request: str, limit: int, now: float) -> bool:
        held = self._slots.setdefault(key, {})
        if len(held) >= limit:
            for ended in [other for other, until in held.items() if until <= now]:
                del held[ended]
        if len(held) >= limit:
            return False
        held[request] = now + LEASE_S
        return True

    async def renew(self, held: Sequence[tuple[str, str]], until: float) -> None:
        for key, request in held:
            slots = self._slots.get(key, {})
            if request in slots:
                slots[request] = until

    async def free(self, key: str, request: str) -> None:
        if held := self._slots.get(key):
            held.pop(request, None)
        if not held:
            self._slots.pop(key, None)

    async def reserve(self, key: str, minute: int, tokens: int, limit: int) -> tuple[bool, int]:
        if minute not in self._tokens:
            for old in [old for old in self._tokens if old < minute - KEPT_MINUTES]:
                del self._tokens[old]
        sums = self._tokens.setdefault(minute, {})
        used = sums.get(key, 0)
        if used + tokens > limit:
            return False, used
        sums[key] = used + tokens
        return True, used + tokens

    async def used(self, key: str, minute: int) -> int:
        return self._tokens.get(minute, {}).get(key, 0)

    async def settle(self, key: str, slot: str | None, changes: dict[int, int]) -> None:
        if slot is not None:
            await self.free(key, slot)
        for minute, change in changes.items():
            sums = self._tokens.setdefault(minute, {})
            sums[key] = sums.get(key, 0) + change

    async def close(self) -> None:
        pass


_PREFIX = "neuron-serve"
_SLOT_TTL_S = int(2 * LEASE_S)
_TOKENS_TTL_S = (KEPT_MINUTES + 2) * MINUTE_S

# Each runs as a whole: Redis does nothing else meanwhile.
_TAKE = """
redis.call('zremrangebyscore', KEYS[1], '-inf', ARGV[1])
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('zadd', KEYS[1], ARGV[3], ARGV[4])
redis.call('expire', KEYS[1], ARGV[5])
return 1
"""
_RESERVE = """
local used = tonumber(redis.call('get', KEYS[1]) or 0)
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return {0, used} end
used = redis.call('incrby', KEYS[1], ARGV[1])
redis.call('expire', KEYS[1], ARGV[3])
return {1, used}
"""


class RedisCounts(_Windows):
    """Of all processes that share the server. Their clocks should agree within some seconds."""

    timeout_s: float | None = _CALL_TIMEOUT_S

    def __init__(self, url: str) -> None:
        try:
            from redis import asyncio as redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ModuleNotFoundError as error:
            raise ValueError("counts in Redis need: pip install 'neuron-serve[redis]'") from error
        self.unreachable: tuple[type[Exception], ...] = (RedisError, OSError, TimeoutError)
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_CALL_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                # With 3, redis 8 gives out connections that the server has closed.
                protocol=2,
                # A script that ran, but whose answer was lost, must not run again.
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:  # its words may hold a part of the password
            raise ValueError(f"{without_password(url)} is no URL of a Redis server") from None
        self._redis = redis.Redis.from_pool(pool)
        shared: Any = pool
        storage = storage_from_string(
            f"async+{url}", implementation="redispy", key_prefix=_PREFIX, connection_pool=shared
        )
        super().__init__(storage)
        self._take = self._redis.register_script(_TAKE)
        self._reserve = self._redis.register_script(_RESERVE)

    async def take(self, key: str, request: str, limit: int, now: float) -> bool:
        arguments: list[float | str] = [now, limit, now + LEASE_S, request, _SLOT_TTL_S]
        return bool(await self._take([_slots(key)], arguments))

    async def renew(self, held: Sequence[tuple[str, str]], until: float) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, request in held:
                pipeline.zadd(_slots(key), {request: until}, xx=True)
                pipeline.expire(_slots(key), _SLOT_TTL_S)
            await pipeline.execute()

    async def free(self, key: str, request: str) -> None:
        await self._redis.zrem(_slots(key), request)

    async def reserve(self, key: str, minute: int, tokens: int, limit: int) -> tuple[bool, int]:
        done, used = await self._reserve([_tokens(key, minute)], [tokens, limit, _TOKENS_TTL_S])
        return bool(done), int(used)

    async def used(self, key: str, minute: int) -> int:
        return int(await self._redis.get(_tokens(key, minute)) or 0)

    async def settle(self, key: str, slot: str | None, changes: dict[int, int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            if slot is not None:
                pipeline.zrem(_slots(key), slot)
            for minute, change in changes.items():
                pipeline.incrby(_tokens(key, minute), change)
                pipeline.expire(_tokens(key, minute), _TOKENS_TTL_S)
            await pipeline.execute()

    async def close(self) -> None:
        await self._redis.aclose()


def _slots(key: str) -> str:
    return f"{_PREFIX}:slots:{key}"


def _tokens(key: str, minute: int) -> str:
    return f"{_PREFIX}:tokens:{minute}:{key}"
