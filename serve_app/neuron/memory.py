"""Device memory of one rank: what a configuration will need, before it runs."""

from __future__ import annotations

from dataclasses import dataclass


def kv_heads_per_rank(heads: int, kv_heads: int, tp: int) -> int:
    """KV heads that each rank holds, as NxDI shards them (padding, replication, MHA)."""
    raise NotImplementedError


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank (= one logical core), and what there is."""

    weights: int
    """Sharded weights plus what is replicated on every rank (embeddings, norms)."""
    kv_cache: int
    workspace: int
    """Activations and scratch of the largest bucket: an estimate."""
    available: int
    detail: tuple[str, ...]
    """How each number comes about, one sentence each."""

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace
