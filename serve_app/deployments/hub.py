"""The one process that a cluster's replicas share: who serves what, and counts of quotas.

A Ray actor with a name, of no application: it is there as long as the cluster, whichever
application comes and goes. It starts when the first front door or the first keys need it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from serve_app.access.ledger import Ledger, LedgerUnavailable
from serve_app.access.quota import Decision, Quota
from serve_app.front_door.directory import Report

_NAME, _NAMESPACE = "hub", "neuron-serve"
_FORGET_S = 60.0
BEAT_S = 5.0
"""How often a replica says that it is there; three missed, and it counts as gone."""


class Hub:
    """State of the cluster, in memory."""

    def __init__(self) -> None:
        self._ledger = Ledger("memory")
        self._reports: dict[str, tuple[float, Report]] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    async def beat(self, report: Report, names: tuple[str, ...]) -> None:
        """What a replica says of itself, and the names that its application will serve."""
        self._reports[report.replica] = (time.monotonic(), report)
        self._names[report.application] = names

    async def leave(self, replica: str) -> None:
        """The replica ends."""
        self._reports.pop(replica, None)

    async def reports(self) -> tuple[list[Report], dict[str, tuple[str, ...]]]:
        """The last word of each replica that has spoken within a minute; the declared names."""
        now = time.monotonic()
        self._reports = {r: said for r, said in self._reports.items() if now - said[0] < _FORGET_S}
        reports = [replace(report, age_s=now - when) for when, report in self._reports.values()]
        return reports, self._names

    async def ask(self, method: str, *args: Any) -> Any:
        """A method of the ledger."""
        return await getattr(self._ledger, method)(*args)


def hub() -> ActorHandle | None:
    """The cluster's hub, if it has one. Blocks for a round trip."""
    try:
        return ray.get_actor(_NAME, namespace=_NAMESPACE)
    except ValueError:
        return None


def start_hub() -> ActorHandle:
    """The cluster's hub; starts it if there is none."""
    options = {
        "name": _NAME,
        "namespace": _NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": 1000,
    }
    return ray.remote(Hub).options(**options).remote()


class HubLedger:
    """The ledger of the hub, as if it were in this process."""

    def __init__(self) -> None:
        self._hub = start_hub()

    async def admit(self, key: str, quota: Quota, request: str) -> Decision:
        decision: Decision = await self._ask("admit", key, quota, request)
        return decision

    async def reserve(self, key: str, quota: Quota, request: str, tokens: int) -> Decision:
        decision: Decision = await self._ask("reserve", key, quota, request, tokens)
        return decision

    async def settle(self, key: str, quota: Quota, request: str, used: int) -> None:
        await self._ask("settle", key, quota, request, used)

    async def keep(self, requests: Iterable[str]) -> None:
        await self._ask("keep", list(requests))

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            return await self._hub.ask.remote(method, *args)
        except RayError as error:
            raise LedgerUnavailable(f"the hub does not answer: {type(error).__name__}") from None
