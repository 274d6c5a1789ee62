"""Several ledgers, as in several replicas, that count in one real Redis server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from serve_app.access.counts import LEASE_S
from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.quota import Decision, Quota
from tests.unit.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """To be done harm."""
    with redis_server(tmp_path) as server:
        yield server


class Clock:
    """One for all replicas; the library limits looks at the machine's."""

    def __init__(self) -> None:
        self.now = 60.0 * (time.time() // 60) + 20

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def replicas(server: RedisServer, clock: Clock) -> AsyncIterator[list[Ledger]]:
    ledgers = [Ledger(server.url, clock) for _ in range(4)]
    yield ledgers
    for ledger in ledgers:
        await ledger.close()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def refused(decision: Decision) -> str | None:
    return decision.refusal and decision.refusal.what


async def test_of_a_thousand_at_once_exactly_the_limit_is_admitted(
    replicas: list[Ledger], key: str
) -> None:
    quota = Quota(requests_per_minute=100)
    # A replica has as many at once as it has places; 4 x 50 here.
    admitted = 0
    for turn in range(5):
        asked = (replicas[i % 4].admit(key, quota, f"{turn} {i}") for i in range(200))
        admitted += [refused(one) for one in await asyncio.gather(*asked)].count(None)
    assert admitted == 100
    standing = await replicas[0].standing(key, quota)
    assert standing.remaining_requests == 0
    assert 0 < (standing.reset_requests_s or 0) < 120  # of the machine's clock


async def test_reservations_never_exceed_the_limit_nor_fall_short_of_it(
    replicas: list[Ledger], key: str, clock: Clock
) -> None:
    quota = Quota(tokens_per_minute=5000)
    dice = random.Random(1)
    sizes = [dice.randint(1, 100) for _ in range(200)]
    given = 0
    highest = 0

    async def one(i: int) -> tuple[int, bool]:
        nonlocal given, highest
        decision = await replicas[i % 4].reserve(key, quota, f"r{i}", sizes[i])
        if decision.refusal is None:
            given += sizes[i]
            highest = max(highest, 5000 - (decision.standing.remaining_tokens or 0))
        return i, decision.refusal is None

    passed = [i for i, ok in await asyncio.gather(*map(one, range(200))) if ok]
    assert highest <= given <= 5000
    # A refused one is not counted for a moment, either: what is left is too little for each.
    assert 5000 - given < min(size for i, size in enumerate(sizes) if i not in passed)
    assert (await replicas[0].standing(key, quota)).remaining_tokens == 5000 - given
    used = {i: dice.randint(0, sizes[i]) for i in passed}
    ends = [replicas[i % 4].settle(key, quota, f"r{i}", used.get(i, 0)) for i in range(200)]
    await asyncio.gather(*ends)
    await asyncio.gather(*(replicas[i % 4].settle(key, quota, f"r{i}", 1) for i in range(200)))
    assert (await replicas[1].standing(key, quota)).remaining_tokens == 5000 - sum(used.values())


async def test_slots_are_shared_and_those_of_a_dead_replica_come_back(
    replicas: list[Ledger], key: str, clock: Clock
) -> None:
    quota = Quota(concurrent_requests=10)
    asked = [replicas[i % 4].admit(key, quota, f"r{i}") for i in range(100)]
    admitted = [i for i, one in enumerate(await asyncio.gather(*asked)) if one.refusal is None]
    assert len(admitted) == 10
    dead, alive, *others = admitted
    for i in others:
        await replicas[i % 4].settle(key, quota, f"r{i}", 0)
    for i in range(8):
        assert refused(await replicas[0].admit(key, quota, f"new{i}")) is None
    for _ in range(3):
        assert refused(await replicas[1].admit(key, quota, "late")) == "concurrency"
        clock.now += LEASE_S / 3
        await replicas[0].keep(f"new{i}" for i in range(8))
        await replicas[alive % 4].keep([f"r{alive}"])
    assert refused(await replicas[1].admit(key, quota, "late")) is None
    assert refused(await replicas[1].admit(key, quota, "later")) == "concurrency"
    # It was only slow, and has lost its slot.
    await replicas[dead % 4]._counts.renew([(key, f"r{dead}")], clock.now + LEASE_S)
    assert await replicas[0]._counts._redis.zcard(f"neuron-serve:slots:{key}") == 10


async def test_refused_takes_nothing(replicas: list[Ledger], key: str) -> None:
    quota = Quota(requests_per_minute=2, concurrent_requests=1)
    one, other, *_ = replicas
    assert refused(await one.admit(key, quota, "1")) is None
    assert refused(await other.admit(key, quota, "busy")) == "concurrency"
    await one.settle(key, quota, "1", 0)
    assert refused(await other.admit(key, quota, "2")) is None
    await other.settle(key, quota, "2", 0)
    assert refused(await one.admit(key, quota, "spent")) == "requests"
    assert await one._counts._redis.zcard(f"neuron-serve:slots:{key}") == 0


async def test_a_refund_goes_to_the_minute_that_was_charged(
    replicas: list[Ledger], key: str, clock: Clock
) -> None:
    quota = Quota(tokens_per_minute=100)
    one, other, *_ = replicas
    await one.reserve(key, quota, "1", 100)
    clock.now += 60
    assert refused(await other.reserve(key, quota, "2", 90)) is None
    await one.settle(key, quota, "1", 10)
    minute = int(clock.now // 60)
    assert await other._counts.used(key, minute - 1) == 10
    assert await other._counts.used(key, minute) == 90
    clock.now += 120
    await other.settle(key, quota, "2", 0)  # over long ago: nothing is written
    assert await other._counts.used(key, minute) == 90


async def test_everything_that_is_written_ends(replicas: list[Ledger], key: str) -> None:
    quota = Quota(5, 100, 5)
    ledger = replicas[0]
    await ledger.admit(key, quota, "1")
    await ledger.reserve(key, quota, "1", 50)
    redis = ledger._counts._redis
    names = [name async for name in redis.scan_iter(match=f"*{key}*")]
    assert len(names) == 3
    for name in names:
        assert name.startswith(b"neuron-serve:")
        assert 50 < await redis.ttl(name) <= 180


async def fails_within(seconds: float, call: Awaitable[object]) -> str:
    begin = time.monotonic()
    with pytest.raises(LedgerUnavailable) as told:
        await call
    assert time.monotonic() - begin < seconds
    return str(told.value)


@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.freeze])
async def test_a_server_that_is_gone_is_told_soon(
    own_server: RedisServer, harm: Callable[[RedisServer], None]
) -> None:
    ledger = Ledger(own_server.url)
    quota = Quota(100, 1000, 100)
    for i in range(3):
        await ledger.admit("a", quota, f"{i}")
        await ledger.reserve("a", quota, f"{i}", 10)
    harm(own_server)
    calls: list[Awaitable[object]] = [
        ledger.admit("a", quota, "new"),
        ledger.reserve("a", quota, "0", 10),
        ledger.settle("a", quota, "1", 5),
        ledger.keep(["0", "1", "2"]),
        ledger.standing("a", quota),
    ]
    calls += [ledger.admit("a", quota, f"more {i}") for i in range(100)]
    for said in await asyncio.gather(*(fails_within(9.0, call) for call in calls)):
        assert f"127.0.0.1:{own_server.port}" in said
        assert "\n" not in said
    await ledger.close()


async def test_a_server_that_comes_back_is_used_again(own_server: RedisServer) -> None:
    ledger = Ledger(own_server.url)
    quota = Quota(100, 1000, 100)
    await ledger.admit("a", quota, "1")
    own_server.freeze()
    await fails_within(9.0, ledger.reserve("a", quota, "1", 10))
    own_server.thaw()
    await ledger.settle("a", quota, "1", 5)
    assert refused(await ledger.admit("a", quota, "2")) is None
    # Connections that the server ended meanwhile are made anew.
    await ledger._counts._redis.client_kill_filter(_type="normal", skipme=False)
    await asyncio.sleep(0.1)  # their end arrives
    assert refused(await ledger.admit("a", quota, "3")) is None
    await ledger.close()


async def test_a_password_is_not_shown(own_server: RedisServer) -> None:
    ledger = Ledger(own_server.url.replace("//", "//user:SECRET@"))
    said = await fails_within(9.0, ledger.admit("a", Quota(1, 1, 1), "1"))
    assert "SECRET" not in said
    assert "password" in said  # what Redis says of it
    await ledger.close()
