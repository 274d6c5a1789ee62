"""Which prefill replica: Ray Serve's router with our order of preference."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.deployments.prefill_pool import Replicas
from serve_app.ingress.prefill import Leg


class PrefillRouter(RequestRouter):  # type: ignore[misc]
    """Orders the replicas by the prompt tokens that this decode replica has under way there.

    A session has an order of its own, the same in every decode replica (rendezvous hashing). A
    replica that has not sent a KV cache here yet gets no user's request. Ray holds each replica
    to its `max_ongoing_requests` and goes on to the next.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray after the constructor."""
        self._tokens: dict[ReplicaID, int] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas have come or gone."""
        super().update_replicas(replicas)
        Replicas.running = frozenset(replica.unique_id for replica in self.curr_replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A leg found its replica dead, before Serve has told so."""
        super().on_replica_actor_died(replica_id)
        Replicas.running -= {replica_id.unique_id}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each, the preferred one first."""
        leg = pending_request.args[0] if pending_request and pending_request.args else None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if not isinstance(leg, Leg):
            return [candidate_replicas]
        if leg.replica is not None:
            return [[r] for r in candidate_replicas if r.replica_id.unique_id == leg.replica]
        warm = [r for r in candidate_replicas if r.replica_id.unique_id in Replicas.warm]
        if leg.session is not None:
            session = leg.session
            warm.sort(key=lambda r: _weight(session, r.replica_id.unique_id))
        else:
            random.shuffle(warm)
            warm.sort(key=lambda r: self._tokens.get(r.replica_id, 0))
        return [[replica] for replica in warm]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Count the prompt until its result is there.

        `on_request_completed` would not do: it also comes, with the same id and maybe later, for
        replicas that have rejected the request.
        """
        leg = pending_request.args[0]
        if not isinstance(leg, Leg):
            return
        Replicas.taken.add(id(leg))
        self._tokens[replica_id] = self._tokens.get(replica_id, 0) + leg.tokens
        loop = asyncio.get_running_loop()
        # Ray calls back from a thread of its own.
        result.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done, replica_id, leg))

    def _done(self, replica_id: ReplicaID, leg: Leg) -> None:
        Replicas.taken.discard(id(leg))
        left = self._tokens.pop(replica_id, 0) - leg.tokens
        if left > 0:
            self._tokens[replica_id] = left


def _weight(session: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{session}\0{replica}".encode(), digest_size=8).digest()
