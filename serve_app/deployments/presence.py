"""A replica says that it is there: its phase while it starts, its models once it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayError

from serve_app.deployments.hub import BEAT_S, hub
from serve_app.engine.phases import READY, Phases
from serve_app.front_door.directory import Report

logger = logging.getLogger("ray.serve")

_STARTING_BEAT_S = 1.0


class Presence:
    """Beats until the replica ends. Without a hub, nobody asks, and nothing is said."""

    def __init__(self, names: tuple[str, ...], phases: Phases) -> None:
        context = serve.get_replica_context()
        self._application, self._replica = context.app_name, context.replica_tag
        self._names, self._phases = names, phases
        self._cards: Callable[[], Awaitable[list[dict[str, Any]]]] | None = None
        self._task = asyncio.create_task(self._beat())

    def serves(self, cards: Callable[[], Awaitable[list[dict[str, Any]]]]) -> None:
        """From now on with the model cards that vLLM gives."""
        self._cards = cards

    async def _beat(self) -> None:
        while True:
            try:
                there = await asyncio.to_thread(hub)
                if there is not None:
                    await there.beat.remote(await self._report(), self._names)
            except RayError as error:
                logger.info(f"the hub does not answer: {type(error).__name__}")
            ready = self._phases.current.name == READY
            await asyncio.sleep(BEAT_S if ready else _STARTING_BEAT_S)

    async def _report(self) -> Report:
        phase = self._phases.current
        cards = await self._cards() if self._cards is not None else []
        return Report(
            application=self._application,
            replica=self._replica,
            phase=phase.name,
            detail=phase.detail,
            elapsed_s=self._phases.elapsed,
            models=tuple(cards),
        )

    async def leave(self) -> None:
        """The replica takes no more requests."""
        self._task.cancel()
        with suppress(RayError, TimeoutError):
            there = await asyncio.to_thread(hub)
            if there is not None:
                await asyncio.wait_for(there.leave.remote(self._replica), 2.0)
