"""The engine replica: one Ray actor, one engine, and the ingress of its application."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from ray import serve

from serve_app.backends import make_plan
from serve_app.config import ConfigError, Severity, parse_args
from serve_app.engine.engine import Engine, start_engine
from serve_app.engine.phases import Phases
from serve_app.ingress import add_ingress
from serve_app.preflight import check_application

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("ray.serve")


@serve.ingress()
class EngineReplica:
    """Starts vLLM's AsyncLLM and serves vLLM's own ASGI app, so no token passes our code."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = parse_args(args)
        self._engine: Engine | None = None

    async def __serve_build_asgi_app__(self) -> FastAPI:
        logger.info(data_plane(os.environ))
        errors = [f for f in check_application(self._args) if f.severity is Severity.ERROR]
        if errors:
            raise ConfigError(finding.under("args") for finding in errors)
        plan = make_plan(self._args)
        for reason in plan.reasons:
            logger.info(reason)
        self._engine = await start_engine(self._args, plan, Phases())
        add_ingress(self._engine.app)
        return self._engine.app

    async def check_health(self) -> None:
        """Called by Serve; raises when the replica must be replaced."""
        if self._engine is not None:
            await self._engine.check_health()

    async def __del__(self) -> None:
        """Called by Serve after the replica's streams have drained."""
        if self._engine is not None:
            self._engine.shutdown()


def data_plane(environment: Any) -> str:
    """One line: how tokens reach clients, and how to get the fast way."""
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return "data plane: HAProxy to the replica (fast)"
    return (
        "data plane: Ray's Python proxy (slow). For the fast one start with `neuron-serve run`, "
        "or set RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_ENABLE_DIRECT_INGRESS=1 where Ray starts"
    )
