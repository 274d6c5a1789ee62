"""Rules of the native plugin: prefill in segments or in a single shot."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.neuron import native_config as config
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    architecture,
    budget,
    count,
    length,
    pooling,
    segmented,
)

_UTILS = "vllm-neuron 0.24 utils/bucket_utils.py"
_RUNNER = "vllm-neuron 0.24 vllm/worker/neuron_model_runner.py __init__"
_SIZES = ", ".join(map(str, config.SEGMENT_SIZES))
_TOKENS = "engine.max_num_batched_tokens"


@rule(
    "native-segment-size",
    Severity.ERROR,
    "A prefill budget below max_model_len is one of five sizes",
    f"{_UTILS} resolve_segmented_prefill_config (ValueError)",
    NATIVE,
)
def segment_size(case: Case) -> Iterator[Trip]:
    tokens = length(case)
    if tokens is None or _chunking_off(case, tokens):
        return
    if message := segment_fault(case, tokens):
        fits = [n for n in config.SEGMENT_SIZES if n < tokens]
        mend = f"set it to {fits[-1]}" if fits else f"set it to {tokens}"
        if fits and tokens <= config.SINGLE_SHOT_LIMIT:
            mend += f", or to {tokens} with prefix caching off"
        yield Trip(message, mend, _TOKENS)


def segment_fault(case: Case, tokens: int) -> str | None:
    """What the plugin refuses about the prefill budget."""
    if "kv_segment_size_buckets" in case.given:
        return None
    now = budget(case)
    if now < tokens:
        if now in config.SEGMENT_SIZES:
            return None
        return f"max_num_batched_tokens {now} is below max_model_len {tokens} and not {_SIZES}"
    if tokens > config.SINGLE_SHOT_LIMIT:
        limit = config.SINGLE_SHOT_LIMIT
        return f"a single-shot prefill of max_model_len {tokens} exceeds the limit of {limit}"
    return None


@rule(
    "native-chunked-off",
    Severity.ERROR,
    "Without chunked prefill the budget covers max_model_len",
    "vLLM config/scheduler.py verify_max_model_len (ValueError)",
    NATIVE,
)
def chunked_off(case: Case) -> Iterator[Trip]:
    tokens = length(case)
    if tokens is not None and _chunking_off(case, tokens):
        message = f"chunked prefill is off and max_num_batched_tokens {budget(case)} is below"
        mend = f"set max_num_batched_tokens to {tokens}, or leave enable_chunked_prefill out"
        yield Trip(f"{message} max_model_len {tokens}", mend, _TOKENS)


def _chunking_off(case: Case, tokens: int) -> bool:
    off = case.plan.engine_args.get("enable_chunked_prefill") is False
    return off and budget(case) < tokens


@rule(
    "native-budget-seqs",
    Severity.ERROR,
    "max_num_batched_tokens is at least max_num_seqs",
    "vLLM config/scheduler.py verify_max_model_len (ValueError)",
    NATIVE,
)
def budget_seqs(case: Case) -> Iterator[Trip]:
    seqs = count(case, "max_num_seqs", config.DEFAULT_SEQS)
    tokens = count(case, "max_num_batched_tokens", config.DEFAULT_BUDGET)
    if tokens < seqs:
        message = f"max_num_batched_tokens {tokens} is below max_num_seqs {seqs}"
        yield Trip(message, f"lower max_num_seqs to {tokens} or less", "engine.max_num_seqs")


@rule(
    "native-prefix-caching",
    Severity.ERROR,
    "Prefix caching needs segmented prefill",
    f"{_RUNNER}: 'Automatic Prefix Caching (APC) requires segmented prefill' (ValueError)",
    NATIVE,
)
def prefix_caching(case: Case) -> Iterator[Trip]:
    tokens = length(case)
    if tokens is None or segmented(case) or case.engine("enable_prefix_caching") is False:
        return
    if segment_fault(case, tokens) or "kv_segment_size_buckets" in case.given:
        return
    on = "" if case.args.engine.get("enable_prefix_caching") else ", which is on by default,"
    message = f"prefix caching{on} needs segmented prefill, and the prefill budget"
    message += f" {budget(case)} covers max_model_len {tokens} in a single shot"
    fits = [n for n in config.SEGMENT_SIZES if n < tokens]
    mend = "set enable_prefix_caching to false"
    if fits:
        mend += f", or max_num_batched_tokens to {fits[-1]}"
    yield Trip(message, mend, "engine.enable_prefix_caching")


@rule(
    "native-segment-vision",
    Severity.WARNING,
    "Qwen3-VL has no segmented prefill yet",
    "aws-neuron-sdk vllm-neuron/docs/model-recipes/qwen3-vl.md Known limitations",
    NATIVE,
)
def segment_vision(case: Case) -> Iterator[Trip]:
    if segmented(case) and architecture(case).startswith("Qwen3VL"):
        message = f"prompts are prefilled in segments of {budget(case)}, which is not supported"
        mend = "set max_num_batched_tokens to max_model_len and enable_prefix_caching to false"
        yield Trip(f"{message} with Qwen3-VL yet", mend, _TOKENS)


@rule(
    "native-segment-head",
    Severity.ERROR,
    "Segmented prefill takes heads of at most 128",
    "vllm-neuron functional/attention/attention_segmented_cte.py _MAX_HEAD_DIM (ValueError)",
    NATIVE,
)
def segment_head(case: Case) -> Iterator[Trip]:
    if case.model and case.model.head_dim > 128 and segmented(case):
        message = f"the model's head_dim {case.model.head_dim} is above 128"
        yield Trip(message, "set max_num_batched_tokens to max_model_len", _TOKENS)


@rule(
    "native-seqs",
    Severity.WARNING,
    "max_num_seqs is worth setting",
    "vLLM arg_utils.py default_max_num_seqs; each power of two is a decode graph",
    NATIVE,
)
def seqs_default(case: Case) -> Iterator[Trip]:
    if case.args.engine.get("max_num_seqs") is None and not pooling(case):
        message = f"max_num_seqs is not set: vLLM takes {config.DEFAULT_SEQS}, and decode graphs"
        mend = "set it to the concurrency that you need, for example 8"
        yield Trip(f"{message} are compiled up to there", mend, "engine.max_num_seqs")
