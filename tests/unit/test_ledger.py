"""The ledger in memory: no limit is ever exceeded, and what was not used comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.access.counts import KEPT_MINUTES, LEASE_S, open_counts
from serve_app.access.ledger import Ledger
from serve_app.access.quota import Decision, Quota, Standing

pytestmark = pytest.mark.anyio


class Clock:
    """The ledger's, and that of the library limits."""

    def __init__(self) -> None:
        self.now = 1_000_000_020.0  # a minute of the clock begins

    def __call__(self) -> float:
        return self.now

    time = __call__


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("limits.aio.storage.memory.time", clock)
    return clock


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger("memory", clock)


def refused(decision: Decision) -> str | None:
    return decision.refusal and decision.refusal.what


async def test_of_any_number_at_once_exactly_the_limit_is_admitted(
    ledger: Ledger, clock: Clock
) -> None:
    quota = Quota(requests_per_minute=100)
    for _ in range(3):  # the second and third time, limits sweeps the old ones off meanwhile
        asked = (ledger.admit("a", quota, f"{clock.now} {i}") for i in range(1000))
        assert [refused(one) for one in await asyncio.gather(*asked)].count(None) == 100
        clock.now += 60.5


async def test_no_request_is_lost_while_old_ones_are_swept_off(clock: Clock) -> None:
    """limits' storage alone fails here for some 5 in 100 orders."""
    quota = Quota(requests_per_minute=5)
    for seed in range(150):
        dice = random.Random(seed)
        ledger = Ledger("memory", clock)

        async def one(name: str, ledger: Ledger = ledger, wait: random.Random = dice) -> bool:
            for _ in range(wait.randint(0, 6)):
                await asyncio.sleep(0)
            return (await ledger.admit("a", quota, name)).refusal is None

        assert await one("old")
        clock.now += 61
        admitted = 0
        for turn, several in enumerate((4, 20, 20)):
            admitted += sum(await asyncio.gather(*(one(f"{turn} {i}") for i in range(several))))
            await asyncio.sleep(0.001)  # a thread of limits comes to its end
        assert admitted == 5


async def test_the_window_of_requests_moves(ledger: Ledger, clock: Clock) -> None:
    quota = Quota(requests_per_minute=2)
    clock.now += 59  # a window by the clock would end, and let two more in
    assert refused(await ledger.admit("a", quota, "1")) is None
    clock.now += 2
    assert refused(await ledger.admit("a", quota, "2")) is None
    decision = await ledger.admit("a", quota, "3")
    assert decision.refusal is not None
    assert decision.refusal.what == "requests"
    assert decision.refusal.retry_after_s == pytest.approx(58)
    assert "limit 2, used 2, requested 1" in decision.refusal.message
    clock.now += 58.1
    assert refused(await ledger.admit("a", quota, "3")) is None
    assert refused(await ledger.admit("b", quota, "4")) is None


async def test_what_is_refused_takes_nothing(ledger: Ledger) -> None:
    quota = Quota(requests_per_minute=2, concurrent_requests=1)
    assert refused(await ledger.admit("a", quota, "1")) is None
    for i in range(3):
        assert refused(await ledger.admit("a", quota, f"busy {i}")) == "concurrency"
    await ledger.settle("a", quota, "1", 0)
    assert refused(await ledger.admit("a", quota, "2")) is None  # the refused were not counted
    await ledger.settle("a", quota, "2", 0)
    for i in range(3):  # and these hold no slot
        assert refused(await ledger.admit("a", quota, f"spent {i}")) == "requests"


async def test_reservations_add_up_and_give_back(ledger: Ledger, clock: Clock) -> None:
    quota = Quota(tokens_per_minute=100)
    await ledger.admit("a", quota, "1")
    assert refused(await ledger.reserve("a", quota, "1", 30)) is None
    decision = await ledger.reserve("a", quota, "1", 40)
    assert decision.standing.remaining_tokens == 30
    clock.now += 18
    await ledger.admit("a", quota, "2")
    decision = await ledger.reserve("a", quota, "2", 31)
    assert decision.refusal is not None
    assert (decision.refusal.what, decision.refusal.retry_after_s) == ("tokens", 42)
    assert "limit 100, used 70, requested 31" in decision.refusal.message
    await ledger.settle("a", quota, "2", 0)
    await ledger.settle("a", quota, "1", 50)
    await ledger.settle("a", quota, "1", 50)  # does nothing
    assert (await ledger.standing("a", quota)).remaining_tokens == 50


async def test_more_than_was_reserved_is_a_debt(ledger: Ledger) -> None:
    quota = Quota(tokens_per_minute=100)
    await ledger.reserve("a", quota, "1", 60)
    await ledger.settle("a", quota, "1", 130)
    assert (await ledger.standing("a", quota)).remaining_tokens == 0
    assert refused(await ledger.reserve("a", quota, "2", 1)) == "tokens"


async def test_what_can_never_pass_is_told_so(ledger: Ledger) -> None:
    quota = Quota(tokens_per_minute=100)
    assert refused(await ledger.reserve("a", quota, "1", 60)) is None
    decision = await ledger.reserve("a", quota, "1", 60)
    assert decision.refusal is not None
    assert decision.refusal.retry_after_s == 0
    assert "never pass: it asks for 120 tokens" in decision.refusal.message
    assert decision.standing.remaining_tokens == 40


async def test_a_refund_goes_to_the_minute_that_was_charged(ledger: Ledger, clock: Clock) -> None:
    quota = Quota(tokens_per_minute=100)
    await ledger.reserve("a", quota, "1", 100)
    clock.now += 60
    assert refused(await ledger.reserve("a", quota, "2", 100)) is None
    await ledger.settle("a", quota, "1", 10)
    assert refused(await ledger.reserve("a", quota, "3", 1)) == "tokens"
    minute = int(clock.now // 60)
    assert await ledger._counts.used("a", minute - 1) == 10
    assert await ledger._counts.used("a", minute) == 100


async def test_of_two_minutes_the_newer_gets_the_refund(ledger: Ledger, clock: Clock) -> None:
    quota = Quota(tokens_per_minute=100)
    await ledger.reserve("a", quota, "1", 40)
    clock.now += 60
    await ledger.reserve("a", quota, "1", 50)
    await ledger.settle("a", quota, "1", 45)
    minute = int(clock.now // 60)
    assert await ledger._counts.used("a", minute - 1) == 40
    assert await ledger._counts.used("a", minute) == 5


async def test_slots_of_a_dead_replica_come_back_and_those_kept_do_not(
    ledger: Ledger, clock: Clock
) -> None:
    quota = Quota(concurrent_requests=2)
    await ledger.admit("a", quota, "dead")
    await ledger.admit("a", quota, "alive")
    for _ in range(3):
        assert refused(await ledger.admit("a", quota, "new")) == "concurrency"
        clock.now += LEASE_S / 3
        await ledger.keep(["alive", "never heard of"])
    assert refused(await ledger.admit("a", quota, "new")) is None
    assert refused(await ledger.admit("a", quota, "newer")) == "concurrency"
    await ledger.settle("a", quota, "dead", 0)  # it comes back to life: not its slot any more
    assert refused(await ledger.admit("a", quota, "newer")) == "concurrency"
    assert set(ledger._open) == {"alive", "new"}


async def test_a_late_heartbeat_takes_no_slot_back(ledger: Ledger, clock: Clock) -> None:
    quota = Quota(concurrent_requests=1)
    await ledger.admit("a", quota, "1")
    clock.now += LEASE_S - 8
    await ledger.keep([])  # sweeps, and then not for 10 s
    clock.now += 9
    await ledger.admit("a", quota, "2")
    await ledger.keep(["1", "2"])
    await ledger.settle("a", quota, "2", 0)
    assert refused(await ledger.admit("a", quota, "3")) is None


async def test_a_cancelled_admission_gives_its_slot_back(ledger: Ledger) -> None:
    quota = Quota(requests_per_minute=5, concurrent_requests=1)
    waiting = asyncio.ensure_future(ledger.admit("a", quota, "1"))
    await ledger._counts._hit.acquire()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    ledger._counts._hit.release()  # type: ignore[attr-defined]
    assert refused(await ledger.admit("a", quota, "2")) == "concurrency"
    await ledger.settle("a", quota, "1", 0)
    assert refused(await ledger.admit("a", quota, "2")) is None


async def test_an_id_that_is_open_is_not_admitted_again(ledger: Ledger) -> None:
    quota = Quota(concurrent_requests=2)
    await ledger.admit("a", quota, "1")
    with pytest.raises(ValueError, match="open already"):
        await ledger.admit("a", quota, "1")


async def test_no_limit_costs_no_operation(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Watched:
        timeout_s = None
        unreachable = ()
        counts = ledger._counts

        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(self.counts, name)

    async def all_of(quota: Quota) -> set[str]:
        called.clear()
        await ledger.admit("a", quota, "1")
        await ledger.reserve("a", quota, "1", 10)
        await ledger.keep(["1"])
        await ledger.standing("a", quota)
        await ledger.settle("a", quota, "1", 5)
        return set(called)

    monkeypatch.setattr(ledger, "_counts", Watched())
    assert await all_of(Quota()) == set()
    assert await all_of(Quota(requests_per_minute=5)) == {"hit", "window"}
    assert await all_of(Quota(tokens_per_minute=50)) == {"reserve", "used", "settle"}
    assert await all_of(Quota(concurrent_requests=5)) == {"take", "renew", "settle"}


def test_headers_are_openais() -> None:
    standing = Standing(100, 99, 360.0, 5000, 4000, 0.1195)
    assert dict(standing.headers()) == {
        b"x-ratelimit-limit-requests": b"100",
        b"x-ratelimit-remaining-requests": b"99",
        b"x-ratelimit-reset-requests": b"6m0s",
        b"x-ratelimit-limit-tokens": b"5000",
        b"x-ratelimit-remaining-tokens": b"4000",
        b"x-ratelimit-reset-tokens": b"120ms",
    }
    assert Standing().headers() == []
    durations = {1.0: b"1s", 0.0: b"0s", 59.7: b"59.7s", 60.0: b"1m0s", 0.0001: b"1ms"}
    for seconds, text in durations.items():
        assert Standing(1, 1, seconds).headers()[2][1] == text


@pytest.mark.parametrize("url", ["http://u:SECRET@host", "redis://u:SEC/RET@host", "redis"])
def test_a_wrong_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL of a Redis server") as told:
        open_counts(url)
    assert "SEC" not in str(told.value)


class Machine(RuleBasedStateMachine):
    """Requests of two keys, against a model that remembers all that ever happened."""

    quota = Quota(requests_per_minute=4, tokens_per_minute=100, concurrent_requests=3)

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("limits.aio.storage.memory.time", self.clock)
        self.ledger = Ledger("memory", self.clock)
        self.names = 0
        self.admitted: list[tuple[str, float]] = []
        self.open: dict[str, str] = {}
        """Key by request."""
        self.lease: dict[str, float] = {}
        self.charged: dict[str, dict[int, int]] = {}
        """By request and minute."""
        self.lost: dict[str, dict[int, int]] = {}
        """Charged for good, by key and minute."""

    def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self.runner.run(call(*arguments))

    def minute(self) -> int:
        return int(self.clock.now // 60)

    def forget_the_dead(self) -> None:
        for name in [name for name in self.open if self.lease[name] <= self.clock.now]:
            self.end(name)

    def end(self, name: str) -> None:
        lost = self.lost.setdefault(self.open.pop(name), {})
        for minute, tokens in self.charged.pop(name).items():
            lost[minute] = lost.get(minute, 0) + tokens

    def sum(self, key: str, minute: int) -> int:
        of_open = (
            self.charged[name].get(minute, 0) for name in self.open if self.open[name] == key
        )
        return self.lost.get(key, {}).get(minute, 0) + sum(of_open)

    @rule(key=st.sampled_from("ab"))
    def admit(self, key: str) -> None:
        name = f"r{self.names}"
        self.names += 1
        self.forget_the_dead()
        held = sum(of == key for of in self.open.values())
        age = [self.clock.now - when for of, when in self.admitted if of == key]
        what = refused(self.run(self.ledger.admit, key, self.quota, name))
        if held >= 3:
            assert what == "concurrency"
        elif sum(one < 60 for one in age) >= 4:
            assert what == "requests"
        elif sum(one <= 60 for one in age) < 4:  # just 60 s: either is right
            assert what is None
        if what is None:
            self.admitted.append((key, self.clock.now))
            self.open[name] = key
            self.lease[name] = self.clock.now + LEASE_S
            self.charged[name] = {}

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(1, 60))
    def reserve(self, data: st.DataObject, tokens: int) -> None:
        name = self.alive(data)
        if name is None:
            return
        key, minute = self.open[name], self.minute()
        decision = self.run(self.ledger.reserve, key, self.quota, name, tokens)
        fits = self.sum(key, minute) + tokens <= 100
        fits &= sum(self.charged[name].values()) + tokens <= 100
        assert (decision.refusal is None) == fits
        if fits:
            self.charged[name][minute] = self.charged[name].get(minute, 0) + tokens
        assert decision.standing.remaining_tokens == max(0, 100 - self.sum(key, minute))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 80))
    def settle(self, data: st.DataObject, used: int) -> None:
        name = self.alive(data)
        if name is None:
            return
        key, charged = self.open[name], self.charged[name]
        for _ in range(2):
            self.run(self.ledger.settle, key, self.quota, name, used)
        surplus = sum(charged.values()) - used
        if surplus < 0:
            newest = max(charged, default=self.minute())
            charged[newest] = charged.get(newest, 0) - surplus
        for minute in sorted(charged, reverse=True):
            refund = min(charged[minute], max(0, surplus))
            charged[minute] -= refund
            surplus -= refund
        self.end(name)

    @rule(
        seconds=st.sampled_from([0.25, 1.0, 9.7, 20.0, 29.9, 45.0, 60.0, 130.0]), kept=st.booleans()
    )
    def advance(self, seconds: float, kept: bool) -> None:
        """Half the time, the replica that holds every second request is dead."""
        self.forget_the_dead()
        alive = list(self.open)[:: 1 if kept else 2]
        while seconds > 0:
            self.clock.now += min(10.0, seconds)
            seconds -= 10.0
            self.run(self.ledger.keep, alive)
            for name in alive:
                self.lease[name] = self.clock.now + LEASE_S
        self.forget_the_dead()
        self.ledger._next_sweep = 0.0  # the ledger, too, now
        self.run(self.ledger.keep, [])

    def alive(self, data: st.DataObject) -> str | None:
        self.forget_the_dead()
        return data.draw(st.sampled_from(sorted(self.open))) if self.open else None

    @invariant()
    def sums_are_right(self) -> None:
        for key in "ab":
            for minute in range(self.minute() - KEPT_MINUTES, self.minute() + 1):
                used = self.run(self.ledger._counts.used, key, minute)
                assert used == self.sum(key, minute)

    @invariant()
    def no_more_is_remembered_than_is_open(self) -> None:
        assert set(self.ledger._open) == set(self.open)

    def teardown(self) -> None:
        self.run(self.ledger.close)
        self.runner.close()
        self.patch.undo()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
