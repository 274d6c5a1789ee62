"""A decode replica's view of the prefill replicas: sends them legs, and warms each up."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
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


class PrefillPool:
    """Callable as `serve_app.ingress.prefill.Prefills`."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float, model: str) -> None:
        self._legs = handle.options(method_name="prefill")  # which starts the router
        self._timeout_s = timeout_s
        self._model = model
        self._failed: set[str] = set()

    async def __call__(self, leg: Leg) -> Answer:
        """Send a leg to the replica that the router chooses.

        Raises:
            Unavailable: none has sent a KV cache here yet, all are full, the one chosen died, or
                the time is up.
        """
        if leg.replica is None and not Replicas.warm & Replicas.running:
            raise Unavailable("none")
        timeout = self._timeout_s if leg.replica is None else _WARM_TIMEOUT_S
        response = self._legs.remote(leg)
        try:
            async with asyncio.timeout(timeout):
                answer: Answer = await response
                return answer
        except TimeoutError:
            response.cancel()
            raise Unavailable("timeout") from None
        except BackPressureError:
            raise Unavailable("full") from None
        except (RayError, RayServeException):
            raise Unavailable("dead") from None
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def warm_up(self, decode: Decode) -> int:
        """Have every running replica that has not yet done so send a KV cache; how many have.

        The first transfer between two engines takes a handshake, which no user shall wait for.
        """
        Replicas.warm &= Replicas.running
        for replica in sorted(Replicas.running - Replicas.warm):
            try:
                await self._transfer(replica, decode)
            except (Unavailable, RuntimeError) as error:
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
        async with asyncio.timeout(_WARM_TIMEOUT_S):
            status, _ = await decode(json.dumps(decode_request(request, params)).encode())
        if status != 200:
            raise RuntimeError(f"status {status} from the decode engine")
