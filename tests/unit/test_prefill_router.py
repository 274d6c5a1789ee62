"""Which prefill replica, without a cluster: Ray's router is real, the replicas are stand-ins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from serve_app.deployments.prefill_pool import Replicas
from serve_app.deployments.prefill_router import PrefillRouter
from serve_app.ingress.prefill import Leg

pytestmark = pytest.mark.anyio

PREFILL = DeploymentID("prefill", "app")


class StandInReplica:
    """As much of a RunningReplica as the router asks for."""

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, PREFILL)
        self.multiplexed_model_ids: set[str] = set()
        self.max_ongoing_requests = 100

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


@dataclass
class Result:
    """As much of a ReplicaResult as the router asks for."""

    callbacks: list[Callable[[Any], None]] = field(default_factory=list)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    async def done(self) -> None:
        for callback in self.callbacks:
            await asyncio.to_thread(callback, None)  # Ray calls from a thread
        await asyncio.sleep(0)


class Router:
    """The router with words for what Serve does with it."""

    def __init__(self) -> None:
        self.real = PrefillRouter(PREFILL, DeploymentHandleSource.REPLICA)
        self.real.initialize_state()

    def running(self, *names: str, warm: str | None = None) -> None:
        """Serve tells of these replicas; the warm ones, by default all, have sent a KV cache."""
        self.real.update_replicas([StandInReplica(name) for name in names])
        Replicas.warm = frozenset(names if warm is None else warm)

    async def order(self, leg: Any) -> list[str]:
        pending = request_of(leg)
        ranks = await self.real.choose_replicas(list(self.real.curr_replicas.values()), pending)
        assert pending.routing_context.should_backoff
        assert all(len(rank) == 1 for rank in ranks)
        return [rank[0].replica_id.unique_id for rank in ranks]

    def route(self, name: str, tokens: int, request_id: str = "r") -> Result:
        result = Result()
        pending = request_of(leg(tokens), request_id)
        self.real.on_request_routed(pending, ReplicaID(name, PREFILL), result)
        return result

    def completed(self, name: str, request_id: str = "r") -> None:
        self.real.on_request_completed(ReplicaID(name, PREFILL), request_id)

    def tokens(self) -> dict[str, int]:
        return {replica.unique_id: n for replica, n in self.real._tokens.items()}


def request_of(leg: Any, request_id: str = "r") -> PendingRequest:
    return PendingRequest([leg], {}, RequestMetadata(request_id, request_id))


def leg(tokens: int = 1, session: str | None = None, replica: str | None = None) -> Leg:
    return Leg("/v1/completions", b"{}", (), tokens, session, replica)


@pytest.fixture
async def router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Router]:
    monkeypatch.setattr(Replicas, "running", frozenset())
    monkeypatch.setattr(Replicas, "warm", frozenset())
    monkeypatch.setattr(Replicas, "taken", set())
    yield Router()
    await asyncio.sleep(0.01)  # the router's first look at each replica's queue


async def test_the_fewest_tokens_first(router: Router) -> None:
    router.running("a", "b", "c")
    router.route("a", 500)
    router.route("b", 30)
    router.route("b", 30)
    assert await router.order(leg()) == ["c", "b", "a"]


async def test_those_with_as_many_take_turns(router: Router) -> None:
    router.running("a", "b", "c")
    assert {(await router.order(leg()))[0] for _ in range(60)} == {"a", "b", "c"}


async def test_cold_ones_get_no_users_request(router: Router) -> None:
    router.running("a", "b", "c", warm="b")
    assert await router.order(leg()) == ["b"]
    assert await router.order(leg(session="s")) == ["b"]
    router.running("a", "b", "c", warm="")
    assert await router.order(leg()) == []


async def test_a_leg_for_one_replica_goes_there_warm_or_not(router: Router) -> None:
    router.running("a", "b", "c", warm="b")
    assert await router.order(leg(replica="c")) == ["c"]
    assert await router.order(leg(replica="gone")) == []


async def test_what_is_no_leg_goes_anywhere(router: Router) -> None:
    router.running("a", "b", warm="")
    replicas = list(router.real.curr_replicas.values())
    assert await router.real.choose_replicas(replicas, request_of("x")) == [replicas]
    assert await router.real.choose_replicas(replicas, None) == [replicas]


async def test_a_session_has_an_order_of_its_own(router: Router) -> None:
    router.running(*"abcde")
    orders = [tuple(await router.order(leg(session=f"s{i}"))) for i in range(100)]
    for name in "abcde":
        assert 5 < sum(order[0] == name for order in orders) < 40
    router.route("a", 10_000)
    assert [tuple(await router.order(leg(session=f"s{i}"))) for i in range(100)] == orders
    names = list("abcde")
    random.shuffle(names)
    router.running(*names)
    assert [tuple(await router.order(leg(session=f"s{i}"))) for i in range(100)] == orders


async def test_only_sessions_of_the_replica_that_leaves_move(router: Router) -> None:
    sessions = [leg(session=f"s{i}") for i in range(200)]

    async def homes() -> list[str]:
        return [(await router.order(session))[0] for session in sessions]

    router.running(*"abcd")
    before = await homes()
    router.running(*"abd")
    after = await homes()
    assert "c" in before
    for old, new in zip(before, after, strict=True):
        assert new != "c" if old == "c" else new == old
    router.running(*"abcd")
    assert await homes() == before
    router.running(*"abcde")
    for old, new in zip(before, await homes(), strict=True):
        assert new in (old, "e")


async def test_who_is_running(router: Router) -> None:
    router.running("a", "b")
    assert Replicas.running == {"a", "b"}
    router.real.on_replica_actor_died(ReplicaID("a", PREFILL))
    assert Replicas.running == {"b"}
    router.running("b", "c")
    assert Replicas.running == {"b", "c"}
    router.running()
    assert Replicas.running == frozenset()


async def test_tokens_are_counted_until_the_result(router: Router) -> None:
    router.running("a", "b")
    one, two = router.route("a", 100, "r1"), router.route("a", 20, "r2")
    assert router.tokens() == {"a": 120}
    await one.done()
    assert router.tokens() == {"a": 20}
    await two.done()
    assert router.tokens() == {}


async def test_a_rejection_told_late_does_not_count_for_the_next_replica(router: Router) -> None:
    """Serve says `completed`, under the same id, of each replica that has refused the request."""
    router.running("a", "b")
    result = router.route("b", 100)
    router.completed("a")
    router.completed("b")
    assert router.tokens() == {"b": 100}
    await result.done()
    assert router.tokens() == {}


async def test_completed_before_it_is_told_to_be_routed(router: Router) -> None:
    router.running("a")
    router.completed("a")
    await router.route("a", 100).done()
    assert router.tokens() == {}


async def test_any_order_comes_back_to_zero(router: Router) -> None:
    rng = random.Random(0)
    router.running(*"abc")
    open_: list[Result] = []
    for i in range(300):
        if open_ and rng.random() < 0.5:
            await open_.pop(rng.randrange(len(open_))).done()
        else:
            open_.append(router.route(rng.choice("abcx"), rng.choice([0, 1, 500]), f"r{i}"))
        assert all(n > 0 or open_ for n in router.tokens().values())
        assert all(n >= 0 for n in router.tokens().values())
    for result in open_:
        await result.done()
    assert router.tokens() == {}


async def test_what_is_no_leg_is_not_counted(router: Router) -> None:
    router.real.on_request_routed(request_of("x"), ReplicaID("a", PREFILL), Result())
    assert router.tokens() == {}


async def test_serve_routes_by_this_order(router: Router) -> None:
    """Through Ray's own loop: the request waits while nobody is warm, then has the emptiest."""
    router.running("a", "b", warm="")
    pending = request_of(leg())
    chosen = asyncio.ensure_future(router.real._choose_replica_for_request(pending))
    await asyncio.sleep(0.1)
    assert not chosen.done()
    router.route("a", 10)
    Replicas.warm = frozenset("ab")
    replica = await asyncio.wait_for(chosen, 10)
    assert replica.replica_id.unique_id == "b"
