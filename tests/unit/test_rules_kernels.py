"""Rules about kernels on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import kernels, kernels_attention
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
QWEN, LLAMA, MOE = "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-235B-A22B"
QKV = {"fused_qkv": True, "qkv_kernel_enabled": True}
BLOCK = {**QKV, "attn_block_tkg_nki_kernel_enabled": True}
UPDATE = "attn_block_tkg_nki_kernel_cache_update"
CASCADED = "attn_block_tkg_nki_kernel_cascaded_attention"
ALIAS = "attn_tkg_nki_kernel_enabled"
CTE = "attn_block_cte_nki_kernel_enabled"
ALL_CTE = {**QKV, "qkv_nki_kernel_enabled": True, "out_proj_kernel_enabled": True, CTE: True}
STRIDED = {"strided_context_parallel_kernel_enabled": True, "cp_degree": 4}
CACHE = {"enable_prefix_caching": True, "block_size": 32}
EAGLE = {"speculative_config": {"method": "eagle", "model": "/d", "num_speculative_tokens": 5}}


def llama(sdk: str | None = None, **neuron: Any) -> dict[str, Any]:
    return {"model": LLAMA, "neuron": neuron, "sdk": sdk}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("kernel-needs", llama(qkv_cte_nki_kernel_fuse_rope=True, **QKV), [E]),
    ("kernel-needs", llama(qkv_cte_nki_kernel_fuse_rope=True), [E, E]),
    ("kernel-needs", llama(attn_block_tkg_nki_kernel_enabled=True), [E]),
    ("kernel-needs", llama(**{UPDATE: True}), [E]),
    ("kernel-needs", llama(**{CASCADED: True, ALIAS: True}, sdk="2.28"), [E]),
    ("kernel-needs", llama(rmsnorm_quantize_kernel_enabled=True), [E]),
    ("kernel-needs", llama(qkv_kernel_fuse_residual_add=True), [E]),
    ("kernel-fused-qkv", llama(qkv_kernel_enabled=True), [E]),
    ("kernel-fused-qkv", llama(**QKV, activation_quantization_type="dynamic"), [E]),
    ("kernel-model-fused", {"model": QWEN, "neuron": {"fused_qkv": True}, "sdk": "2.28"}, [E]),
    ("kernel-model-fused", {"model": QWEN, "neuron": QKV, "sdk": "2.27"}, [E]),
    (
        "kernel-model-fused",
        {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "neuron": {"fused_qkv": True}},
        [E],
    ),
    (
        "kernel-model-qwen3",
        {"neuron": {"mlp_kernel_enabled": True, "attn_kernel_enabled": True}, "sdk": "2.28"},
        [W, W],
    ),
    ("kernel-chip", {"instance": "inf2.8xlarge", **llama(**QKV), "sdk": "2.28"}, [W]),
    ("kernel-chip", {"instance": "trn1.32xlarge", **llama(**QKV), "sdk": "2.29"}, [E]),
    ("kernel-block-cte", llama(**{CTE: True}), [E]),
    ("kernel-block-cte", llama(**{**ALL_CTE, "attn_kernel_enabled": False}), [E]),
    ("kernel-block-cte", llama(**{CTE: True, **QKV}, sdk="2.28"), [E]),
    ("kernel-one-decode", llama(**BLOCK, **{ALIAS: True}, sdk="2.28"), [E]),
    ("kernel-deprecated", llama(**{ALIAS: True, "mlp_tkg_nki_kernel_enabled": True}), [W, W]),
    ("kernel-decode-excludes", llama(**BLOCK, flash_decoding_enabled=True), [E]),
    ("kernel-decode-excludes", llama(**{ALIAS: True}, flash_decoding_enabled=True), [E]),
    ("kernel-k-transposed", {"neuron": {"k_cache_transposed": True}, "engine": CACHE}, [E]),
    ("kernel-k-transposed", llama(k_cache_transposed=True, flash_decoding_enabled=True), [E]),
    ("kernel-k-transposed", llama(k_cache_transposed=True, padding_side="left"), [E]),
    (
        "kernel-residual",
        llama(**QKV, qkv_kernel_fuse_residual_add=True, sequence_parallel_enabled=True),
        [E],
    ),
    (
        "kernel-residual",
        llama(
            mlp_kernel_enabled=True,
            mlp_kernel_fuse_residual_add=True,
            sequence_parallel_enabled=True,
        ),
        [E],
    ),
    ("kernel-residual-idle", llama(mlp_kernel_fuse_residual_add=True), [W]),
    (
        "kernel-residual-idle",
        {"neuron": {"qkv_kernel_fuse_residual_add": True, "sequence_parallel_enabled": True}},
        [W],
    ),
    ("kernel-qwen3-moe", {"model": MOE, "neuron": BLOCK}, [E]),
    ("kernel-strided", llama(strided_context_parallel_kernel_enabled=True), [E]),
    ("kernel-strided", llama(**STRIDED), [E]),
    (
        "kernel-strided",
        {**llama(**STRIDED, context_encoding_buckets=[4096]), "facts": {"sliding_window": 128}},
        [E],
    ),
    (
        "kernel-strided",
        {
            **llama(**STRIDED, context_encoding_buckets=[4096]),
            "resources": {"logical_nc_config": 1},
        },
        [E],
    ),
    ("kernel-window", {"engine": EAGLE, "facts": {"sliding_window": 128}}, [E]),
    ("kernel-attention-idle", llama(attn_kernel_enabled=True), [W]),
    ("kernel-small-buckets", llama(**QKV), [N]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    (
        "kernel-needs",
        llama(**QKV, qkv_nki_kernel_enabled=True, qkv_cte_nki_kernel_fuse_rope=True),
    ),
    ("kernel-needs", llama(**BLOCK, **{UPDATE: True, CASCADED: True})),
    ("kernel-needs", llama(**{CASCADED: True, ALIAS: True})),
    ("kernel-needs", llama(qkv_cte_nki_kernel_fuse_rope=False)),
    # AWS's own recipe for Qwen3-MoE fuses RoPE.
    (
        "kernel-needs",
        {
            "model": MOE,
            "neuron": {
                **QKV,
                "qkv_nki_kernel_enabled": True,
                "qkv_cte_nki_kernel_fuse_rope": True,
            },
        },
    ),
    ("kernel-fused-qkv", llama(**QKV)),
    ("kernel-fused-qkv", {"neuron": {"qkv_kernel_enabled": True}, "sdk": "2.28"}),
    ("kernel-fused-qkv", llama(**QKV, activation_quantization_type="dynamic", sdk="2.27")),
    ("kernel-model-fused", {"model": QWEN, "neuron": QKV, "sdk": "2.29"}),
    ("kernel-model-fused", {"model": MOE, "neuron": QKV, "sdk": "2.27"}),
    ("kernel-model-fused", llama(**QKV, sdk="2.27")),
    ("kernel-model-qwen3", {"neuron": {"mlp_kernel_enabled": True}, "sdk": "2.29"}),
    ("kernel-model-qwen3", llama(mlp_kernel_enabled=True, sdk="2.28")),
    ("kernel-chip", {"instance": "inf2.8xlarge", **llama(fused_qkv=True), "sdk": "2.28"}),
    ("kernel-chip", llama(**QKV)),
    ("kernel-block-cte", llama(**ALL_CTE)),
    ("kernel-block-cte", llama(**BLOCK, **{CTE: True}, sdk="2.28")),
    ("kernel-one-decode", llama(**BLOCK, **{ALIAS: True})),
    ("kernel-one-decode", llama(**BLOCK, sdk="2.28")),
    ("kernel-deprecated", llama(**BLOCK)),
    ("kernel-decode-excludes", llama(**BLOCK)),
    ("kernel-k-transposed", llama(k_cache_transposed=True)),
    ("kernel-residual", llama(**QKV, qkv_kernel_fuse_residual_add=True)),
    (
        "kernel-residual",
        {"neuron": {"qkv_kernel_fuse_residual_add": True, "sequence_parallel_enabled": True}},
    ),
    ("kernel-needs", {"neuron": {"qkv_kernel_fuse_residual_add": True}}),
    ("kernel-residual", llama(mlp_kernel_fuse_residual_add=True, sequence_parallel_enabled=True)),
    ("kernel-residual-idle", llama(mlp_kernel_fuse_residual_add=True, mlp_kernel_enabled=True)),
    ("kernel-qwen3-moe", {"model": MOE, "neuron": {**BLOCK, CASCADED: True}}),
    ("kernel-strided", llama(**STRIDED, context_encoding_buckets=[1024, 4096])),
    ("kernel-strided", llama(**STRIDED, attn_kernel_enabled=False)),
    (
        "kernel-window",
        {
            "engine": EAGLE,
            "facts": {"sliding_window": 128},
            "neuron": {**BLOCK, CASCADED: True},
        },
    ),
    ("kernel-window", {"engine": EAGLE}),
    (
        "kernel-attention-idle",
        llama(attn_kernel_enabled=True, context_encoding_buckets=[256, 4096]),
    ),
    ("kernel-attention-idle", llama()),
    ("kernel-small-buckets", llama(**QKV, context_encoding_buckets=[2048, 4096])),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(
    (kernels, kernels_attention), TRIP, CLEAN
)
