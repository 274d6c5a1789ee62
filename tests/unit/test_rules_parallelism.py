"""Rules about parallelism on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import parallelism as MODULE  # noqa: N812
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
LLAMA, MOE = "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-235B-A22B"
UPDATE = "attn_block_tkg_nki_kernel_cache_update"
CASCADED = "attn_block_tkg_nki_kernel_cascaded_attention"
BLOCK = {"fused_qkv": True, "qkv_kernel_enabled": True, "attn_block_tkg_nki_kernel_enabled": True}


def at(tp: int, model: str = LLAMA, seqs: int = 64, **neuron: Any) -> dict[str, Any]:
    engine = {"tensor_parallel_size": tp, "max_num_seqs": seqs}
    return {"engine": engine, "model": model, "neuron": neuron}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("degree-positive", at(8, cp_degree=0), [E]),
    ("tp-override", at(8, tp_degree=16), [E]),
    ("world-size", at(8, ep_degree=2), [E]),
    ("world-size", at(8, pp_degree=2), [E]),
    ("world-size", at(8, world_size=16), [E]),
    ("degree-divides", at(8, cp_degree=3), [E]),
    ("degree-divides", at(8, seqs=6, attention_dp_degree=4), [E]),
    ("degree-divides", at(8, seqs=6, attention_dp_degree=5), [E, E]),
    ("cp-dp", at(64, cp_degree=4, attention_dp_degree=8), [E]),
    ("cp-dp", at(24, seqs=6, cp_degree=3, attention_dp_degree=2), [E]),
    ("dp-batching", at(64, seqs=1, attention_dp_degree=8), [E]),
    ("dp-cache-update", at(64, attention_dp_degree=8, **BLOCK, **{UPDATE: True}), [E]),
    (
        "dp-cache-update",
        {
            **at(32, attention_dp_degree=4, **BLOCK, **{UPDATE: True, CASCADED: True}),
            "instance": "trn1.32xlarge",
            "sdk": "2.28",
        },
        [E],
    ),
    ("ep-dispatch", at(64, MOE, 16, ep_dispatch_cc_option="RS_AG"), [E]),
    ("mlp-cp", at(8, mlp_cp_degree=2), [E]),
    # 8 KV heads at TP 64: AWS serves DP 8, and refuses 16.
    ("dp-heads", at(64, attention_dp_degree=16), [E]),
    ("dp-heads", at(8, attention_dp_degree=2), [E]),
    ("cp-heads", at(4, cp_degree=2), [E]),
    ("cp-heads", at(64, cp_degree=32, attention_dp_degree=16), [E]),
    ("cp-heads", at(24, cp_degree=4), [E]),
    ("cp-heads", at(64, MOE, cp_degree=64, attention_dp_degree=32), [E]),
    ("flash-decoding", at(4, flash_decoding_enabled=True), [E]),
    (
        "flash-decoding",
        {
            "engine": {"enable_prefix_caching": True, "block_size": 32},
            "model": LLAMA,
            "neuron": {"flash_decoding_enabled": True},
        },
        [W],
    ),
    ("moe-degrees", at(64, MOE, moe_ep_degree=8, moe_tp_degree=4), [E]),
    ("moe-degrees", at(24, MOE, moe_ep_degree=24), [E]),
    ("moe-hybrid", at(64, MOE, hybrid_sharding_config={"moe_cte_tp_degree": 64}), [E]),
    (
        "expert-parallel",
        {"engine": {"enable_expert_parallel": True}, "model": LLAMA},
        [E],
    ),
    ("expert-parallel", {"engine": {"enable_expert_parallel": True}, "model": MOE}, [W]),
    ("context-parallel-argument", {"engine": {"decode_context_parallel_size": 2}}, [E]),
    ("kv-transfer", {"engine": {"kv_transfer_config": {"kv_connector": "NixlConnector"}}}, [E]),
    ("runner-generate", {"engine": {"runner": "pooling"}}, [E]),
    ("runner-generate", {"engine": {"convert": "embed"}}, [E]),
    ("runner-generate", {"engine": {"enable_prompt_embeds": True}}, [E]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("degree-positive", at(8, cp_degree=1)),
    ("tp-override", at(8, tp_degree=8)),
    ("world-size", at(8, ep_degree=1, world_size=8)),
    ("degree-divides", at(8, seqs=1, attention_dp_degree=8)),
    ("degree-divides", at(8, seqs=8, cp_degree=4, attention_dp_degree=4)),
    ("cp-dp", at(64, cp_degree=16, attention_dp_degree=8)),
    ("dp-batching", at(64, seqs=8, attention_dp_degree=8)),
    (
        "dp-cache-update",
        at(64, attention_dp_degree=8, **BLOCK, **{UPDATE: True, CASCADED: True}),
    ),
    ("dp-cache-update", at(64, **BLOCK, **{UPDATE: True})),
    ("ep-dispatch", at(64, MOE, 64, ep_dispatch_cc_option="RS_AG")),
    ("ep-dispatch", at(64, MOE, 16, ep_dispatch_cc_option="AG_AR")),
    ("mlp-cp", at(8, mlp_cp_degree=2, sequence_parallel_enabled=True)),
    ("dp-heads", at(64, attention_dp_degree=8)),
    ("dp-heads", at(64, cp_degree=16, attention_dp_degree=16)),
    ("cp-heads", at(8, cp_degree=2)),
    ("cp-heads", at(24, cp_degree=3)),
    ("cp-heads", at(64, cp_degree=16)),
    # AWS's recipe for Qwen3-235B, 4 KV heads.
    ("cp-heads", at(64, MOE, cp_degree=16, attention_dp_degree=8)),
    ("cp-heads", at(4, cp_degree=2, attention_dp_degree=2)),
    ("flash-decoding", at(32, flash_decoding_enabled=True)),
    ("moe-degrees", at(64, MOE, moe_ep_degree=32, moe_tp_degree=2)),
    ("moe-degrees", at(64, moe_ep_degree=8)),
    (
        "moe-hybrid",
        at(
            64,
            MOE,
            hybrid_sharding_config={
                "moe_cte_tp_degree": 64,
                "moe_tkg_tp_degree": 8,
                "moe_tkg_ep_degree": 8,
            },
        ),
    ),
    ("expert-parallel", {"model": LLAMA}),
    ("context-parallel-argument", {"engine": {"decode_context_parallel_size": 1}}),
    ("kv-transfer", {}),
    ("runner-generate", {"engine": {"runner": "generate"}}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(MODULE, TRIP, CLEAN)
