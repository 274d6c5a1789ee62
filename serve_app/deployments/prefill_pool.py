"""A decode replica's view of the prefill replicas: sends them legs, and warms each up."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar

from prometheus_client import REGISTRY
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.ingress.kv_transfer import COMPLETIONS, PARAMS, decode_request, prefill_request
from serve_app.ingress.prefill import Answer, Leg, Unavailable

logger = logging.getLogger("ray.serve")

Decode = Callable[[bytes], Awaitable[tuple[int, bytes]]]
"""Answers a completion request with this replica's own engine."""

_LOOK_S = 0.5
_WARM_TIMEOUT_S = 120.0
_PROMPT = [1, 2]


class Replicas:
    """What the router tells the pool, and the pool the router, in this process.

    Attributes of a class, as Ray sends the router's own module by value: a second copy of it.
    """

    running: ClassVar[frozenset[str]] = frozenset()
    """Ids of the replicas that Serve says are up."""
    warm: ClassVar[frozenset[str]] = frozenset()
    """Ids of those whose first KV cache has arrived here; only these get users' requests."""
    taken: ClassVar[set[int]] = set()
    """id() of the legs that a replica has taken; one that Serve stops still answers them."""


def _anyone_for(leg: Leg) -> bool:
    if leg.replica is not None:
        return leg.replica in Replicas.running
    return bool(Replicas.warm & Replicas.running)


async def _answer(response: Awaitable[Answer], leg: Leg) -> Answer:
    """The answer, unless all that could take the leg go while it waits for one of them."""
    answer = asyncio.ensure_future(response)
    # Cancelled, Ray's response raises an error, which nobody is there to look at.
    answer.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        while not (await asyncio.wait((answer,), timeout=_LOOK_S))[0]:
            if id(leg) not in Replicas.taken and not _anyone_for(leg):
                raise Unavailable("none")
        return answer.result()
    finally:
        answer.cancel()


class PrefillPool:
    """Callable as `serve_app.ingress.prefill.Prefills`."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float, model: str) -> None:
        # Over gRPC, not as an actor's task: 8 instead of 10.5 ms of waiting per prompt.
        self._legs = handle.options(method_name="prefill", _by_reference=False)
        self._timeout_s = timeout_s
        self._model = model
        self._failed: set[str] = set()

    async def __call__(self, leg: Leg) -> Answer:
        """Send a leg to the replica that the router chooses.

        Raises:
            Unavailable: none has sent a KV cache here yet, all are full, the one chosen died, or
                the time is up.
        """
        if not _anyone_for(leg):
            raise Unavailable("none")
        timeout = self._timeout_s if leg.replica is None else _WARM_TIMEOUT_S
        response = None
        try:
            response = self._legs.remote(leg)
            async with asyncio.timeout(timeout):
                answer = await _answer(response, leg)
            response = None
            return answer
        except TimeoutError:
            raise Unavailable("timeout") from None
        except BackPressureError:
            raise Unavailable("full") from None
        except Unavailable:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task: the one in the replica was cancelled, and Ray tells it in this way.
            raise Unavailable("dead") from None
        except Exception as error:  # Ray's errors have no common base: over gRPC not even Ray's
            logger.warning("a prefill replica failed: %s", type(error).__name__)
            raise Unavailable("dead") from None
        finally:
            Replicas.taken.discard(id(leg))
            if response is not None:
                with suppress(Exception):  # it raises what the response has failed with
                    response.cancel()

    async def warm_up(self, decode: Decode) -> int:
        """Have every running replica that has not yet done so send a KV cache; how many have.

        The first transfer between two engines takes a handshake, which no user shall wait for.
        """
        Replicas.warm &= Replicas.running
        for replica in sorted(Replicas.running - Replicas.warm):
            try:
                await self._transfer(replica, decode)
            except Exception as error:  # also whatever this replica's own app raises
                if replica not in self._failed:
                    self._failed.add(replica)
                    logger.warning("prefill replica %s sends no KV cache: %s", replica, error)
                continue
            Replicas.warm |= {replica}
            logger.info("prefill replica %s: KV cache transferred", replica)
        return len(Replicas.warm)

    async def keep_warm(self, decode: Decode) -> None:
        """Warm up the replicas that come later, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.warm_up(decode)

    async def _transfer(self, replica: str, decode: Decode) -> None:
        request = {"model": self._model, "prompt": _PROMPT, "max_tokens": 1}
        body = json.dumps(prefill_request(request)).encode()
        answer = await self(Leg(COMPLETIONS, body, (), len(_PROMPT), replica=replica))
        params = json.loads(answer.body).get(PARAMS) if answer.status == 200 else None
        if not isinstance(params, dict):
            raise RuntimeError(f"status {answer.status} from the prefill engine")
        failed = _failed_transfers()
        async with asyncio.timeout(_WARM_TIMEOUT_S):
            status, _ = await decode(json.dumps(decode_request(request, params)).encode())
        if status != 200:
            raise RuntimeError(f"status {status} from the decode engine")
        if _failed_transfers() > failed:  # the engine has computed the prompt by itself
            raise RuntimeError("NIXL's transfer failed; the replica's log says why")


def _failed_transfers() -> float:
    """Of this replica's engine, as vLLM counts them."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "vllm:nixl_num_failed_transfers"
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
