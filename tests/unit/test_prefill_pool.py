"""What becomes of a leg: the answer, or a word for why there is none. Ray's response is real."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve._private.common import DeploymentID, RequestMetadata
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentResponse

from serve_app.deployments import prefill_pool
from serve_app.deployments.prefill_pool import PrefillPool, Replicas
from serve_app.ingress.kv_transfer import PARAMS
from serve_app.ingress.prefill import Answer, Leg, Unavailable

pytestmark = pytest.mark.anyio

GOOD = Answer(200, json.dumps({PARAMS: {"remote_host": "h"}}).encode(), 0.1)
LEG = Leg("/v1/completions", b"{}", (), 5)


class StandInResult:
    """A ReplicaResult: what a replica answers, in time or never."""

    def __init__(self, outcome: Answer | BaseException | None) -> None:
        self.outcome = outcome
        self.cancelled = False

    async def get_async(self) -> Answer:
        if self.outcome is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class StandInHandle:
    """A DeploymentHandle: each call gets the next future that a router would set."""

    def __init__(self, *futures: concurrent.futures.Future[Any]) -> None:
        self.futures = list(futures)
        self.legs: list[Leg] = []

    def options(self, *, method_name: str, _by_reference: bool) -> StandInHandle:
        assert (method_name, _by_reference) == ("prefill", False)
        return self

    def remote(self, leg: Leg) -> DeploymentResponse[Answer]:
        self.legs.append(leg)
        return DeploymentResponse(self.futures.pop(0), RequestMetadata("r", "r"))


def routed(result: StandInResult) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(result)
    return future


def refused(error: BaseException) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if isinstance(error, asyncio.CancelledError):
        future.cancel()  # what becomes of the router's task
    else:
        future.set_exception(error)
    return future


def pool_of(*futures: concurrent.futures.Future[Any], timeout_s: float = 20.0) -> PrefillPool:
    return PrefillPool(StandInHandle(*futures), timeout_s, "m")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replicas, "running", frozenset("ab"))
    monkeypatch.setattr(Replicas, "warm", frozenset("ab"))
    monkeypatch.setattr(Replicas, "taken", set())
    monkeypatch.setattr(prefill_pool, "_LOOK_S", 0.01)


async def reason(pool: PrefillPool, leg: Leg = LEG) -> str:
    with pytest.raises(Unavailable) as error:
        await asyncio.wait_for(pool(leg), 10)
    return str(error.value)


async def test_an_answer() -> None:
    result = StandInResult(GOOD)
    assert await pool_of(routed(result))(LEG) == GOOD
    assert not result.cancelled


async def test_nobody_is_warm() -> None:
    pool = pool_of()  # and nothing is sent
    Replicas.warm = frozenset()
    assert await reason(pool) == "none"
    Replicas.warm = frozenset("c")
    assert await reason(pool) == "none"


async def test_the_time_is_up_at_a_replica() -> None:
    result = StandInResult(None)
    assert await reason(pool_of(routed(result), timeout_s=0.05)) == "timeout"
    assert result.cancelled


async def test_the_time_is_up_in_the_queue() -> None:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    assert await reason(pool_of(future, timeout_s=0.05)) == "timeout"
    assert future.cancelled()


async def test_the_queue_is_full() -> None:
    assert await reason(pool_of(refused(BackPressureError(5, 5)))) == "full"


DEATHS: list[Callable[[], BaseException]] = [
    ActorDiedError,
    lambda: ActorUnavailableError("gone", b"0" * 16),
    WorkerCrashedError,
    lambda: RayTaskError("prefill", "traceback", ValueError("in the replica")),
    lambda: RayTaskError("prefill", "traceback", ValueError("x")).as_instanceof_cause(),
    lambda: ValueError("over gRPC the replica's own error comes as it is"),
    lambda: grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, None, None),
    lambda: RuntimeError("Unexpected error (StatusCode.INTERNAL): x."),
    lambda: DeploymentUnavailableError(DeploymentID("prefill")),
    lambda: RayServeException("upstream actor died"),
    RequestCancelledError,
    TaskCancelledError,
    asyncio.CancelledError,
]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death()).__name__)
@pytest.mark.parametrize("where", ["replica", "router"])
async def test_the_replica_fails(death: Callable[[], BaseException], where: str) -> None:
    """Also where Ray tells of a task that was cancelled over there as if this one were."""
    future = routed(StandInResult(death())) if where == "replica" else refused(death())
    assert await reason(pool_of(future)) == "dead"


@pytest.mark.parametrize("stage", ["queue", "replica"])
async def test_cancelling_is_passed_on(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    result = StandInResult(None)
    queued: concurrent.futures.Future[Any] = concurrent.futures.Future()
    pool = pool_of(queued if stage == "queue" else routed(result))
    task = asyncio.ensure_future(pool(LEG))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert (queued.cancelled(), result.cancelled) == (stage == "queue", stage == "replica")
    assert not caplog.records  # asyncio logs errors that nobody has looked at


async def test_one_that_waits_while_all_go_does_not_wait_on() -> None:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    task = asyncio.ensure_future(reason(pool_of(future)))
    await asyncio.sleep(0.05)
    Replicas.running = frozenset("b")
    await asyncio.sleep(0.05)
    assert not task.done()
    Replicas.running = frozenset()
    assert await asyncio.wait_for(task, 5) == "none"
    assert future.cancelled()


async def test_one_that_a_leaving_replica_has_taken_gets_its_answer() -> None:
    result = StandInResult(None)
    answered = asyncio.get_running_loop().create_future()
    result.get_async = lambda: answered  # type: ignore[method-assign,assignment,return-value]
    task = asyncio.ensure_future(pool_of(routed(result))(LEG))
    await asyncio.sleep(0)
    Replicas.taken.add(id(LEG))
    Replicas.running = frozenset()
    await asyncio.sleep(0.1)
    assert not task.done()
    answered.set_result(GOOD)
    assert await task == GOOD
    assert not Replicas.taken


async def decode(body: bytes) -> tuple[int, bytes]:
    assert json.loads(body)[PARAMS] == {"remote_host": "h"}
    return 200, b"{}"


async def test_a_cold_replica_is_warm_once_its_cache_is_here() -> None:
    Replicas.warm = frozenset("ax")
    handle = StandInHandle(routed(StandInResult(GOOD)))
    pool = PrefillPool(handle, 20.0, "m")  # type: ignore[arg-type]
    assert await pool.warm_up(decode) == 2
    assert Replicas.warm == {"a", "b"}  # x has gone
    assert [leg.replica for leg in handle.legs] == ["b"]
    assert await pool.warm_up(decode) == 2
    assert len(handle.legs) == 1


async def _status_500(body: bytes) -> tuple[int, bytes]:
    return 500, b""


async def _too_late(body: bytes) -> tuple[int, bytes]:
    raise TimeoutError


async def _breaks(body: bytes) -> tuple[int, bytes]:
    raise ValueError("any error that the app raises")


@pytest.mark.parametrize("broken", [_status_500, _too_late, _breaks])
async def test_a_replica_whose_cache_does_not_arrive_stays_cold(
    broken: prefill_pool.Decode, caplog: pytest.LogCaptureFixture
) -> None:
    Replicas.warm = frozenset("b")
    pool = pool_of(*(routed(StandInResult(GOOD)) for _ in range(3)))
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    try:
        assert await pool.warm_up(broken) == 1
        assert await pool.warm_up(broken) == 1
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert Replicas.warm == {"b"}
    assert len([r for r in caplog.records if "sends no KV cache" in r.message]) == 1
    assert await pool.warm_up(decode) == 2


@pytest.mark.parametrize(
    "answer", [Answer(500, b"", 0), Answer(200, b"{}", 0), Answer(200, b"no json", 0)], ids=repr
)
async def test_a_replica_without_a_cache_stays_cold_and_the_others_do_not(answer: Answer) -> None:
    Replicas.warm = frozenset()
    pool = pool_of(routed(StandInResult(answer)), routed(StandInResult(GOOD)))
    assert await pool.warm_up(decode) == 1
    assert Replicas.warm == {"b"}


async def test_warming_up_one_that_goes_does_not_hold_up_the_next() -> None:
    """It would, for two minutes."""
    Replicas.warm = frozenset()
    waiting: concurrent.futures.Future[Any] = concurrent.futures.Future()
    task = asyncio.ensure_future(pool_of(waiting, routed(StandInResult(GOOD))).warm_up(decode))
    await asyncio.sleep(0.05)
    Replicas.running = frozenset("b")
    assert await asyncio.wait_for(task, 5) == 1
    assert Replicas.warm == {"b"}


async def test_keeping_warm_goes_on_until_cancelled() -> None:
    Replicas.warm = frozenset("a")
    pool = pool_of(refused(ActorDiedError()), routed(StandInResult(GOOD)))
    task = asyncio.ensure_future(pool.keep_warm(decode))
    while Replicas.warm != {"a", "b"}:
        await asyncio.sleep(0.01)
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
