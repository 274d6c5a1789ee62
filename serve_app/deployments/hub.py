"""The one process that a cluster's replicas share: who serves what, and counts of quotas.

A Ray actor with a name, of no application: it is there as long as the cluster, whichever
application comes and goes. It starts when the first front door or the first keys need it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from serve_app.access.ledger import Ledger
from serve_app.access.remote import Address, RemoteLedger, serve_ledger
from serve_app.front_door.directory import Report

_NAME, _NAMESPACE = "hub", "neuron-serve"
_FORGET_S = 60.0
BEAT_S = 5.0
"""How often a replica says that it is there; three missed, and it counts as gone."""


class Hub:
    """State of the cluster, in memory."""

    def __init__(self) -> None:
        self._ledger = Ledger("memory")
        self._secret = secrets.token_urlsafe(32)
        self._server: asyncio.Server | None = None
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

    async def ledger(self) -> Address:
        """Where the ledger listens, in this cluster's network, and the secret for it."""
        if self._server is None:
            host = ray.util.get_node_ip_address()
            self._server = await serve_ledger(self._ledger, host, self._secret)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port, self._secret


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


def hub_ledger() -> RemoteLedger:
    """The ledger of the cluster's hub, which starts if there is none."""

    async def find() -> Address:
        try:
            address: Address = await (await asyncio.to_thread(start_hub)).ledger.remote()
        except RayError as error:
            raise ConnectionError(type(error).__name__) from None
        return address

    return RemoteLedger(find)
