"""The front door as a Ray Serve deployment: what it knows, it asks the hub and Serve."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
from ray import serve
from ray.exceptions import RayError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import Refused, bearer
from serve_app.config import parse_front_door_args
from serve_app.config.environment import expand
from serve_app.config.serve_file import FRONT_DOOR
from serve_app.deployments.hub import start_hub
from serve_app.engine.metrics import MetricsMirror
from serve_app.front_door import READY, Decision, Directory, FrontDoor, Report
from serve_app.ingress.access import not_let_in
from serve_app.telemetry.front_door import PREFIX, counted, show_models
from serve_app.telemetry.traces import endpoint, flush, prepare, start_exporter

logger = logging.getLogger("ray.serve")

_PERIOD_S = 1.0
_TIMEOUT_S = 5.0
_RESTARTING = "restarting"


class _Counted(FrontDoor):
    async def answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        return await counted(super().answer, scope, receive, send)


@serve.ingress()
class FrontDoorReplica:
    """Answers for all models; of the tokens it only sees what HAProxy could not route."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = parse_front_door_args(args)
        self._directory = Directory()
        self._work: list[asyncio.Task[None]] = []

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        keys = None
        if self._args.access.keys is not None:
            keys = KeyFile(expand(self._args.access.keys, os.environ, "access.keys"))
            keys.load()
            self._work.append(asyncio.create_task(keys.follow()))
        self._hub = start_hub()
        self._work.append(asyncio.create_task(self._follow()))
        bytes_ = int(self._args.limits.max_body_mib * 2**20)
        gate = {} if keys is None else {"gate": _gate(keys)}
        self._work.append(asyncio.create_task(MetricsMirror(None, (PREFIX,)).run()))
        self._app = _Counted(lambda: self._directory, self._args.upstream, bytes_, **gate)
        return self._with_traces(self._app)

    def _with_traces(self, app: ASGIApp) -> ASGIApp:
        url = endpoint(os.environ)
        if url is None:
            return app
        context = serve.get_replica_context()
        prepare(os.environ, context.app_name, FRONT_DOOR, context.replica_tag)
        start_exporter(url, os.environ)
        from serve_app.telemetry.spans import TracingMiddleware

        return TracingMiddleware(app, {})

    async def _follow(self) -> None:
        """Keep the directory as new as a second. What cannot be asked leaves it as it was."""
        said = ""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                try:
                    self._directory = await self._look(session)
                    show_models(len(self._directory.cards()), len(self._directory.names()))
                    said = ""
                except (aiohttp.ClientError, RayError, OSError, ValueError) as error:
                    if str(error) != said:
                        said = str(error)
                        logger.warning(f"the directory of models is as it was: {said}")
                await asyncio.sleep(_PERIOD_S)

    async def _look(self, session: aiohttp.ClientSession) -> Directory:
        async with session.get(f"{self._args.upstream}/-/routes") as answer:
            routes = await answer.json(content_type=None)
        reports, names = await self._hub.reports.remote()
        running = await asyncio.to_thread(_running)
        reports = [_as_serve_sees(report, running) for report in reports]
        return Directory.build(routes, reports, names, self._args.weights)

    async def __del__(self) -> None:
        """Called by Serve after the replica's requests have ended."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._app.close()
        if endpoint(os.environ):
            await flush()


def _running() -> set[str]:
    """Applications of which each deployment has a replica that runs."""
    return {
        name
        for name, application in serve.status().applications.items()
        if all(d.replica_states.get("RUNNING", 0) for d in application.deployments.values())
    }


def _as_serve_sees(report: Report, running: set[str]) -> Report:
    """A replica that has died is ready by its own last word; Serve knows better."""
    if report.phase != READY or report.application in running:
        return report
    return replace(report, phase=_RESTARTING, detail="", elapsed_s=0.0, models=())


def _gate(keys: KeyFile) -> Any:
    def gate(scope: Scope) -> Decision:
        key = keys.keyring.find(bearer(scope["headers"]), datetime.now(UTC))
        return not_let_in(key) if isinstance(key, Refused) else key

    return gate
