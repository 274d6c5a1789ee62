"""What the rules of the native plugin ask of a case. No value may make these raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.neuron import native_config as config
from serve_app.neuron.native_config import whole
from serve_app.neuron.stacks import release
from serve_app.preflight.case import Case


def count(case: Case, name: str, default: int = 1) -> int:
    """An engine argument that is a positive whole number; `default` when it is anything else."""
    return whole(case.plan.engine_args.get(name)) or default


def size(case: Case, name: str) -> int:
    """A whole-number key of neuron_config that is 1 unless given."""
    return whole(case.given.get(name)) or 1


def tp(case: Case) -> int:
    return count(case, "tensor_parallel_size")


def dp(case: Case) -> int:
    return count(case, "data_parallel_size")


def block_size(case: Case) -> int:
    return count(case, "block_size", config.DEFAULT_BLOCK_SIZE)


def length(case: Case) -> int | None:
    """max_model_len; the model's own when it is not given."""
    given = whole(case.plan.engine_args.get("max_model_len"))
    return given or (whole(case.model.max_positions) if case.model else None)


def budget(case: Case) -> int:
    """Tokens of one prefill step."""
    return config.budget(case.plan.engine_args, length(case))


def segmented(case: Case) -> bool:
    """Whether prompts are prefilled in segments."""
    tokens = length(case)
    if tokens is None:
        return bool(case.effective.get("segmented_prefill"))
    return config.segmented(case.plan.engine_args, case.given, tokens)


def prefill_buckets(case: Case) -> list[int]:
    """The token counts that prefill graphs are compiled for; [] when unknown or not usable."""
    for name in ("num_batched_tokens_buckets", "kv_segment_size_buckets"):
        if name in case.given:
            value = case.given[name]
            return value if config.is_buckets(value) else []
    if length(case) is None:
        return []
    return [budget(case)] if segmented(case) else config.powers_of_two(128, budget(case))


def dcp(case: Case) -> int:
    return count(case, "decode_context_parallel_size")


def mapping(case: Case, name: str) -> Mapping[str, Any] | None:
    """An engine argument that is a mapping; None when it is not given or another type."""
    value = case.plan.engine_args.get(name)
    return value if isinstance(value, Mapping) else None


def transfer(case: Case) -> Mapping[str, Any] | None:
    """kv_transfer_config, when it names a connector."""
    given = mapping(case, "kv_transfer_config")
    return given if given and given.get("kv_connector") else None


def additional(case: Case) -> Mapping[str, Any]:
    """additional_config as the user wrote it."""
    value = case.args.engine.get("additional_config")
    return value if isinstance(value, Mapping) else {}


def pooling(case: Case) -> bool:
    """An embedding model: prompts are prefilled and nothing is generated."""
    return bool(case.engine("runner") == "pooling" or case.engine("convert") == "embed")


def since(case: Case, vllm: str) -> bool:
    """Whether the stack's vLLM is of this family or newer."""
    return release(case.target.stack.vllm) >= release(vllm)


def architecture(case: Case) -> str:
    """The first architecture of config.json; "" when it is not known."""
    return case.model.architectures[0] if case.model and case.model.architectures else ""


def quantization(case: Case) -> Mapping[str, Any]:
    """quantization_config of the checkpoint after hf_overrides; {} without quantization."""
    overrides = mapping(case, "hf_overrides") or {}
    if "quantization_config" in overrides:
        value = overrides["quantization_config"]
    else:
        value = case.model.quantization if case.model else None
    return value if isinstance(value, Mapping) else {}


def on(value: str | None) -> bool:
    """Whether an environment variable is switched on, as most programs read it."""
    return (value or "").strip().lower() in ("1", "true", "yes", "on")
