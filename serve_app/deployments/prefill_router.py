"""Which prefill replica: Ray Serve's router with our order of preference."""

from __future__ import annotations

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
        self._legs: dict[str, tuple[ReplicaID, int]] = {}

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
        """Count the prompt."""
        leg = pending_request.args[0]
        if isinstance(leg, Leg):
            self._legs[pending_request.metadata.internal_request_id] = (replica_id, leg.tokens)
            self._tokens[replica_id] = self._tokens.get(replica_id, 0) + leg.tokens

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The prompt is done, or its replica."""
        replica, tokens = self._legs.pop(internal_request_id, (replica_id, 0))
        self._tokens[replica] = self._tokens.get(replica, 0) - tokens
        if self._tokens[replica] <= 0:
            del self._tokens[replica]


def _weight(session: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{session}\0{replica}".encode(), digest_size=8).digest()
