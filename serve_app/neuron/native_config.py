"""The configuration of vLLM's native Neuron plugin: its keys, and what it derives by itself.

Source: vllm-neuron 0.21.0.1.0.0 and 0.24.0.1.1.0, model/neuron_config.py (NeuronConfig,
VisionNeuronConfig, OnDeviceSamplingConfig) and utils/bucket_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeGuard

BOTH_VERSIONS = ("0.21", "0.24")


class Key(NamedTuple):
    """A key: `kind` is count, bool, buckets, text, list, mapping or number."""

    kind: str
    default: Any = None
    vllm: tuple[str, ...] = BOTH_VERSIONS
    """The vLLM families whose plugin reads it."""


KEYS: dict[str, Key] = {
    "num_batched_tokens_buckets": Key("buckets"),
    "num_seqs_buckets": Key("buckets"),
    "kv_segment_size_buckets": Key("buckets"),
    "decode_context_length_buckets": Key("buckets"),
    "on_device_sampling_config": Key("mapping", {}),
    "quantization": Key("text"),
    "ep_degree": Key("count", 1),
    "attention_dp_size": Key("count", 1),
    "embedding_dp_size": Key("count", 1),
    "lm_head_dp_size": Key("count", 1),
    "mlp_dp_size": Key("count", 1),
    "enable_structured_outputs": Key("bool", False),
    "fp8_packed_kv": Key("bool", False),
    "max_logprobs": Key("number"),
    "debug_logits_dir": Key("text"),
    "tensor_capture": Key("mapping"),
    "tensor_replacement": Key("mapping"),
    "apply_prefill_dcp": Key("bool", False, ("0.21",)),
    "prefill_sequence_buckets": Key("buckets", None, ("0.21",)),
    "decode_batch_buckets": Key("buckets", None, ("0.21",)),
    "all2all_backend": Key("text", None, ("0.24",)),
    "modules_to_not_convert": Key("list", None, ("0.24",)),
}
"""Keys of `additional_config.neuron_config`. The plugin drops every other one silently."""

VISION_KEYS: dict[str, Key] = {
    "num_vision_tokens_buckets": Key("buckets"),
    "vision_attention_block_size": Key("count", 2048),
    "max_vision_seq_len": Key("count"),
    "tp_size": Key("count", 1),
    "dp_size": Key("count", 1),
    "encoder_cache_num_blocks": Key("count"),
    "encoder_cache_min_hold_time_ms": Key("number"),
}
"""Keys of `additional_config.vision_neuron_config`."""

SAMPLING_KEYS = {
    "all_greedy": False,
    "max_top_k": 256,
    "deterministic": False,
    "sampling_dp_degree": 1,
    "capture_topk": False,
}
"""Keys of `on_device_sampling_config`. AWS's documents also show temperature, top_k and top_p,
which no version reads: they are per request."""

TOP_LEVEL = (
    "neuron_config",
    "vision_neuron_config",
    "mm_language_model_only",
    "neuron_profiler",
)
"""Keys of `additional_config` itself."""

COMPONENT_SIZES = ("attention_dp_size", "embedding_dp_size", "mlp_dp_size", "lm_head_dp_size")

FROM_NXDI = {
    "context_encoding_buckets": "num_batched_tokens_buckets",
    "token_generation_buckets": "decode_context_length_buckets",
    "token_generation_batches": "num_seqs_buckets",
    "tp_degree": "engine.tensor_parallel_size",
    "batch_size": "engine.max_num_seqs",
    "max_batch_size": "engine.max_num_seqs",
    "tkg_batch_size": "engine.max_num_seqs",
    "seq_len": "engine.max_model_len",
    "max_context_length": "engine.max_num_batched_tokens",
    "pa_block_size": "engine.block_size",
    "pa_num_blocks": "engine.num_gpu_blocks_override",
    "is_prefix_caching": "engine.enable_prefix_caching",
    "kv_cache_quant": "engine.kv_cache_dtype",
    "moe_ep_degree": "ep_degree",
    "attention_dp_degree": "attention_dp_size",
    "speculation_length": "engine.speculative_config",
    "enable_eagle_speculation": "engine.speculative_config",
}
"""Keys of NxDI's NeuronConfig, and what says the same here."""

ONLY_NXDI = (
    "ctx_batch_size",
    "enable_bucketing",
    "fused_qkv",
    "sequence_parallel_enabled",
    "is_continuous_batching",
    "is_block_kv_layout",
    "qkv_kernel_enabled",
    "qkv_nki_kernel_enabled",
    "mlp_kernel_enabled",
    "attn_kernel_enabled",
    "attn_block_tkg_nki_kernel_enabled",
    "k_cache_transposed",
    "async_mode",
    "logical_nc_config",
    "cp_degree",
    "cc_pipeline_tiling_factor",
    "flash_decoding_enabled",
    "torch_dtype",
    "quantized_checkpoints_path",
    "save_sharded_checkpoint",
    "prefix_buckets",
    "weights_to_skip_layout_optimization",
)
"""Keys of NxDI's NeuronConfig that the native plugin has no counterpart for."""

SEGMENT_SIZES = (512, 1024, 2048, 4096, 8192)
"""Segment sizes that the attention kernel of segmented prefill takes."""

SINGLE_SHOT_LIMIT = 16384
"""Greatest max_model_len that a single graph may prefill."""

DEFAULT_BUDGET = 2048
"""vLLM's max_num_batched_tokens behind the API server (LLM(): 8192)."""

DEFAULT_SEQS = 256
DEFAULT_BLOCK_SIZE = 32


def whole(value: Any) -> int | None:
    """`value` when it is a positive whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def is_buckets(value: Any) -> TypeGuard[list[int]]:
    """A list of positive whole numbers, strictly ascending, not empty."""
    if not isinstance(value, list) or not value or any(whole(item) is None for item in value):
        return False
    return all(low < high for low, high in pairwise(value))


def powers_of_two(first: int, last: int) -> list[int]:
    """`first`, twice that, ... below `last`, and `last`."""
    buckets = []
    while first < last:
        buckets.append(first)
        first *= 2
    return [*buckets, last]


def budget(engine: Mapping[str, Any], max_model_len: int | None) -> int:
    """Tokens of one prefill step: vLLM's max_num_batched_tokens, at most max_model_len."""
    tokens = whole(engine.get("max_num_batched_tokens"))
    if tokens is None:
        chunked = engine.get("enable_chunked_prefill") is not False
        tokens = DEFAULT_BUDGET if chunked else max(DEFAULT_BUDGET, max_model_len or 0)
    return tokens if max_model_len is None else min(tokens, max_model_len)


def segmented(engine: Mapping[str, Any], given: Mapping[str, Any], max_model_len: int) -> bool:
    """Whether prompts are prefilled in segments over the cached KV, or in a single shot."""
    if "kv_segment_size_buckets" in given:
        return bool(given["kv_segment_size_buckets"])
    return budget(engine, max_model_len) < max_model_len


def effective(
    engine: Mapping[str, Any], given: Mapping[str, Any], tp: int, generation: int
) -> dict[str, Any]:
    """What the plugin works with: `given` over what it derives from vLLM's arguments.

    `segmented_prefill` is no key of the plugin: it says how prompts are prefilled. Nothing
    here depends on `tp` and `generation` up to 0.24; NxDI's counterpart has the same parameters.
    """
    made = {name: key.default for name, key in KEYS.items() if key.default is not None}
    made["on_device_sampling_config"] = dict(SAMPLING_KEYS)
    made["num_seqs_buckets"] = powers_of_two(1, whole(engine.get("max_num_seqs")) or DEFAULT_SEQS)
    length = whole(engine.get("max_model_len"))
    if length is None:
        # The model decides. Its default budget of 2048 is below every served model's length.
        made["segmented_prefill"] = budget(engine, None) in SEGMENT_SIZES
    else:
        made["segmented_prefill"] = segmented(engine, given, length)
        tokens = budget(engine, length)
        sizes = given.get("kv_segment_size_buckets")
        if is_buckets(sizes):
            made["num_batched_tokens_buckets"] = sizes
        elif made["segmented_prefill"]:
            made["num_batched_tokens_buckets"] = [tokens]
            made["kv_segment_size_buckets"] = [tokens]
        else:
            made["num_batched_tokens_buckets"] = powers_of_two(128, tokens)
    sampling = given.get("on_device_sampling_config", {})
    if isinstance(sampling, Mapping):
        given = {**given, "on_device_sampling_config": {**SAMPLING_KEYS, **sampling}}
    return {**made, **given}
