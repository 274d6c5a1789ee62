"""Process environment of an engine that sends or receives KV caches by NIXL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NIXL_POLL_US = "NEURON_SERVE_NIXL_POLL_US"
"""Microseconds that NIXL's progress thread sleeps at most, set in EngineCore."""


def disaggregated(engine: Mapping[str, Any]) -> bool:
    """Whether another engine's KV cache comes to this one, or goes there."""
    config = engine.get("kv_transfer_config")
    return isinstance(config, Mapping) and "Nixl" in str(config.get("kv_connector"))


def transfer_env(engine: Mapping[str, Any]) -> dict[str, str]:
    """What NIXL's transport needs; nothing for an engine that works alone."""
    if not disaggregated(engine):
        return {}
    extra = engine["kv_transfer_config"].get("kv_connector_extra_config")
    backends = extra.get("backends") if isinstance(extra, Mapping) else None
    if backends == ["LIBFABRIC"]:
        # Without it two engines of one node give wrong text (aws-neuron-sdk,
        # tutorial-di-1p1d-xpyd.md, Prepare your environment); between nodes it changes nothing.
        return {"FI_EFA_ENABLE_SHM_TRANSFER": "0"}
    return {
        NIXL_POLL_US: "1000",
        # vLLM sets it before it loads NIXL, which we load earlier (vllm/distributed/nixl_utils.py).
        "UCX_RCACHE_MAX_UNRELEASED": "1024",
    }
