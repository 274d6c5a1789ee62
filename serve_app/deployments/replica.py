"""The replicas: Ray actors with one engine each."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.backends import engines, make_plan, side_channels
from serve_app.config import AppArgs, ConfigError, Severity, parse_args
from serve_app.config.data_plane import data_plane
from serve_app.config.serve_file import DECODE, ENGINE, PREFILL
from serve_app.deployments.access import keep_house, open_access
from serve_app.deployments.prefill_pool import PrefillPool
from serve_app.deployments.presence import Presence
from serve_app.engine.engine import Engine, start_engine
from serve_app.engine.metrics import show
from serve_app.engine.phases import PREFILL as PREFILL_PHASE
from serve_app.engine.phases import READY, Phases
from serve_app.engine.side_channel import claim_side_channel
from serve_app.ingress import add_ingress
from serve_app.ingress.in_process import post
from serve_app.ingress.kv_transfer import COMPLETIONS
from serve_app.ingress.prefill import Answer, Leg
from serve_app.preflight import check_application
from serve_app.telemetry.replica import ReplicaMetrics

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("ray.serve")

_POLL_S = 0.5
_PATIENCE_S = 30.0
"""How long a decode replica waits for prefill replicas that should be there."""


@serve.ingress()
class EngineReplica:
    """Starts vLLM's AsyncLLM and serves vLLM's own ASGI app; of the tokens our code sees that they
    are no error, and nothing else.

    With prefill replicas behind it, it is the decode engine: it has each prompt prefilled there,
    fetches the KV cache and generates.
    """

    def __init__(self, args: dict[str, Any], prefill: DeploymentHandle | None = None) -> None:
        self._args = parse_args(args)
        self._handle = prefill
        self._engine: Engine | None = None
        self._presence: Presence | None = None
        self._work: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> FastAPI:
        logger.info(data_plane(os.environ))
        if self._args.access.keys is None:
            logger.warning("access: no API keys, so whoever reaches this port may use the model")
        phases = Phases()
        name = ENGINE if self._handle is None else DECODE
        self._presence = Presence(tuple(self._args.model.names), phases)
        engine = self._engine = await _start(self._args, name, phases)
        access = open_access(
            self._args.access, engine.names, self._args.engine.get("scheduling_policy")
        )
        if access is not None:
            engine.keep_accounts()
            self._work.append(asyncio.create_task(keep_house(access)))
        pool, policy = None, self._args.prefill
        if self._handle is not None and policy is not None:
            pool = PrefillPool(self._handle, policy.timeout_s, self._args.model.id)
            await self._meet(pool, engine.app, phases)
        add_ingress(engine.app, self._args.limits, access, pool, policy, engine.attributes)
        self._presence.serves(engine.cards)
        phases.report(READY)
        return engine.app

    async def _meet(self, pool: PrefillPool, app: FastAPI, phases: Phases) -> None:
        """Wait for a KV cache from each prefill replica, while these start for the first time."""

        async def decode(body: bytes) -> tuple[int, bytes]:
            return await post(app, COMPLETIONS, body)

        assert self._args.prefill is not None
        scaling = self._args.prefill.scaling
        wanted = scaling.num_replicas or scaling.min_replicas or 1
        shown = -1
        begin = time.monotonic()
        while (warm := await pool.warm_up(decode)) < wanted:
            if warm != shown:
                shown = warm
                phases.report(PREFILL_PHASE, f"KV caches of {warm} of {wanted} replicas")
            if await _starts_up():
                begin = time.monotonic()
            elif self._args.prefill.fallback == "decode" and time.monotonic() - begin > _PATIENCE_S:
                logger.warning("prefill replicas are missing: this one prefills by itself")
                break
            await asyncio.sleep(_POLL_S)
        self._work.append(asyncio.create_task(pool.keep_warm(decode)))

    async def check_health(self) -> None:
        """Called by Serve; raises when the replica must be replaced."""
        if self._engine is not None:
            await self._engine.check_health()

    async def __del__(self) -> None:
        """Called by Serve after the replica's streams have drained."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._presence is not None:
            await self._presence.leave()
        if self._engine is not None:
            await self._engine.shutdown()


class PrefillReplica:
    """An engine for prompts: answers decode replicas only, and keeps the KV cache for them."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        phases = Phases()
        self._engine = await _start(parse_args(args), PREFILL, phases)
        phases.report(READY)

    async def prefill(self, leg: Leg) -> Answer:
        """Compute the prompt. Cancelled when the decode replica no longer wants it."""
        begin = time.monotonic()
        status, body = await post(self._engine.app, leg.path, leg.body, leg.headers)
        return Answer(status, body, time.monotonic() - begin)

    async def check_health(self) -> None:
        """Called by Serve; raises when the replica must be replaced."""
        await self._engine.check_health()

    async def __del__(self) -> None:
        """Called by Serve after the replica's requests have ended."""
        if hasattr(self, "_engine"):
            await self._engine.shutdown()


async def _start(application: AppArgs, name: str, phases: Phases) -> Engine:
    """Start the engine of one of the application's deployments."""
    errors = [f for f in check_application(application) if f.severity is Severity.ERROR]
    if errors:
        raise ConfigError(finding.under("args") for finding in errors)
    parts = engines(application)
    args = parts[name]
    plan = make_plan(args)
    for reason in plan.reasons:
        logger.info(reason)
    if application.prefill is not None:
        first, slots, ports = side_channels(application.prefill.transfer.port, parts.values())
        before = 0 if name == PREFILL else parts[PREFILL].scaling.most
        slot = before + serve.get_replica_context().rank.rank
        host = ray.util.get_node_ip_address()
        claim_side_channel(os.environ, host, first, slot, slots, ports)
    metrics = ReplicaMetrics(args.model.id, plan, phases)
    show(metrics, args.model.id)
    context = serve.get_replica_context()
    who = (context.app_name, name, context.replica_tag)
    engine = await start_engine(args, plan, phases, who)
    metrics.engine = engine
    return engine


async def _starts_up() -> bool:
    """Whether the prefill deployment is still being deployed, so that waiting makes sense."""
    name = serve.get_replica_context().app_name
    status = (await asyncio.to_thread(serve.status)).applications.get(name)
    prefill = status.deployments.get(PREFILL) if status else None
    return prefill is not None and prefill.status in ("UPDATING", "UPSCALING")
