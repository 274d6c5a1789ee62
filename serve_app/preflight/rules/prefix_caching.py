"""Rules about prefix caching, the block KV layout and chunked prefill on NxDI."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log2

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import (
    cached,
    flag,
    integer,
    integers,
    length,
    sequences,
)
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.kernels import ALIASES, BLOCK
from serve_app.preflight.rules.keys import LOADER, at, given, image, model_type, since

BUCKETING = "neuronx-distributed-inference modules/autobucketing.py"
BLOCK_CACHE = "neuronx-distributed-inference modules/kvcache/block_kv_cache_manager.py"
CACHING, SIZE = "engine.enable_prefix_caching", "engine.block_size"
COUNT = "engine.num_gpu_blocks_override"
_OFF = "set engine.enable_prefix_caching: false"
_LAYOUT = ("is_prefix_caching", "is_block_kv_layout")


def _shape(case: Case) -> tuple[int, int, int] | None:
    """max_model_len, block_size and max_num_seqs under the block layout; None when unknown."""
    tokens, block = (
        length(case.engine("max_model_len")),
        integer(case.plan.engine_args, "block_size"),
    )
    if not cached(case.plan.engine_args) or not tokens or not block or block < 1:
        return None
    return tokens, block, sequences(case.plan.engine_args)


def _count(case: Case) -> int | None:
    return integer(case.plan.engine_args, "num_gpu_blocks_override")


@rule(
    "block-size",
    Severity.ERROR,
    "Prefix caching needs a block size",
    "vllm-neuron platform.py check_and_update_config",
    NXDI,
)
def block_size(case: Case) -> Iterator[Trip]:
    if not cached(case.plan.engine_args):
        return
    block = case.engine("block_size")
    if block is None:
        message = "prefix caching is on and block_size not given"
        yield Trip(message, f"set engine.block_size: 32, or {_OFF}", SIZE)
    elif (number := integer(case.plan.engine_args, "block_size")) and number not in (16, 32):
        message = f"block_size is {number}; AWS recommends 32 or 16"
        yield Trip(message, "set engine.block_size: 32", SIZE, Severity.NOTE)


@rule(
    "block-count",
    Severity.ERROR,
    "There are blocks for every sequence",
    f"{LOADER} _validate_neuron_config (the needed number is rounded up, the default down)",
    NXDI,
)
def block_count(case: Case) -> Iterator[Trip]:
    shape = _shape(case)
    if shape is None:
        return
    tokens, block, seqs = shape
    needed, given_count = ceil(tokens / block) * seqs, _count(case)
    if given_count is not None and given_count < needed:
        message = f"num_gpu_blocks_override is {given_count}; {seqs} sequences of {tokens} tokens "
        message += f"in blocks of {block} need {needed}"
        yield Trip(message, f"set engine.num_gpu_blocks_override: {needed}", COUNT)
    elif given_count is None and tokens % block:
        message = f"block_size {block} does not divide max_model_len {tokens}: the plugin makes "
        message += f"{tokens // block * seqs} blocks and asks for {needed}"
        yield Trip(message, f"set engine.num_gpu_blocks_override: {needed}", COUNT)


@rule(
    "block-count-given",
    Severity.WARNING,
    "vLLM and NxDI have the same number of blocks",
    "aws-neuron-sdk vllm-user-guide-v1.rst, known issue 2; vllm-neuron neuron_worker.py "
    "determine_available_memory (vLLM counts blocks by free memory)",
    NXDI,
)
def block_count_given(case: Case) -> Iterator[Trip]:
    shape = _shape(case)
    if shape and _count(case) is None and "pa_num_blocks" not in given(case):
        tokens, block, seqs = shape
        message = "without num_gpu_blocks_override vLLM may count more blocks than NxDI compiled"
        mend = f"set engine.num_gpu_blocks_override: {ceil(tokens / block) * seqs}, or more"
        yield Trip(message, mend, COUNT)


@rule(
    "block-count-contiguous",
    Severity.WARNING,
    "Without prefix caching there is a block per sequence",
    "aws-neuron-sdk vllm-user-guide-v1.rst, known issue 2; the worker of plugin 0.4.1 and later "
    "counts by itself",
    NXDI,
)
def block_count_contiguous(case: Case) -> Iterator[Trip]:
    count, seqs = _count(case), sequences(case.plan.engine_args)
    if not cached(case.plan.engine_args) and count is not None and count != seqs:
        message = f"num_gpu_blocks_override is {count} and max_num_seqs {seqs}"
        yield Trip(message, f"remove it, or set {seqs}", COUNT)


@rule(
    "block-count-override",
    Severity.ERROR,
    "pa_num_blocks says what num_gpu_blocks_override says",
    f"{LOADER} _handle_pa_num_blocks",
    NXDI,
)
def block_count_override(case: Case) -> Iterator[Trip]:
    own, count = integer(given(case), "pa_num_blocks"), _count(case)
    if own is None or not flag(case.effective, "is_block_kv_layout"):
        return
    if count is None:
        message = f"pa_num_blocks is {own} and num_gpu_blocks_override not given"
        mend = f"set engine.num_gpu_blocks_override: {own}"
        yield Trip(message, mend, at(case, "pa_num_blocks"))
    elif own != count:
        message = f"pa_num_blocks is {own} and num_gpu_blocks_override {count}"
        yield Trip(message, "make them equal, or remove pa_num_blocks", at(case, "pa_num_blocks"))


@rule(
    "block-size-override",
    Severity.ERROR,
    "pa_block_size is block_size",
    "vllm-neuron worker/neuronx_distributed_model_runner.py (slots are counted in vLLM's blocks)",
    NXDI,
)
def block_size_override(case: Case) -> Iterator[Trip]:
    own = integer(given(case), "pa_block_size")
    block = integer(case.plan.engine_args, "block_size")
    if not cached(case.plan.engine_args) or own is None or block is None or own == block:
        return
    message = f"pa_block_size is {own} and block_size {block}"
    yield Trip(message, "make them equal, or remove pa_block_size", at(case, "pa_block_size"))


@rule(
    "block-layout",
    Severity.ERROR,
    "NxDI and vLLM have the same cache layout",
    f"{LOADER} _validate_neuron_config; {BLOCK_CACHE} get_kv_by_layer_id; "
    "neuronx_distributed_model_runner.py:167-169 (the runner goes by vLLM's setting)",
    NXDI,
)
def block_layout(case: Case) -> Iterator[Trip]:
    on = cached(case.plan.engine_args)
    # Of image models another rule speaks.
    wrong = [name for name in _LAYOUT if flag(case.effective, name) != on]
    if not wrong or flag(case.effective, "chunked_prefill_config"):
        return
    words = "on" if on else "off"
    message = f"enable_prefix_caching is {words} and {' and '.join(wrong)} {'off' if on else 'on'}"
    mend = f"remove {' and '.join(wrong)}" + (f", or {_OFF}" if on else "")
    mend += "" if on else ", or set engine.enable_prefix_caching: true"
    yield Trip(message, mend, at(case, wrong[0]))


@rule(
    "block-tiling",
    Severity.ERROR,
    "Short sequences can be tiled",
    f"{BLOCK_CACHE}:49-77: below 128 blocks per sequence each block is cut into tiles",
    NXDI,
)
def block_tiling(case: Case) -> Iterator[Trip]:
    shape = _shape(case)
    if shape is None or not flag(case.effective, "is_prefix_caching") or _no_tiling(case):
        return
    tokens, block = integer(case.effective, "max_length") or shape[0], shape[1]
    blocks = ceil(tokens / block)
    if blocks < 1 or blocks >= 128:
        return
    tiles = 2 ** ceil(log2(128 / blocks))
    if block % tiles:
        message = f"{tokens} tokens are {blocks} blocks of {block}, which NxDI cuts into {tiles} "
        yield Trip(
            f"{message}tiles each", "set max_model_len to 128 or more, or a larger block_size", SIZE
        )


def _no_tiling(case: Case) -> bool:
    names = (BLOCK, ALIASES[0])
    return any(flag(given(case), name) for name in names) or (
        since(case, "0.9") and flag(case.effective, BLOCK)
    )


@rule(
    "prefix-buckets",
    Severity.ERROR,
    "Context buckets come with prefix buckets",
    f"{BUCKETING}:56 (None cannot be added to a list)",
    NXDI,
)
def prefix_buckets(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "is_prefix_caching") or image(case):
        return
    own = given(case)
    context, prefix = own.get("context_encoding_buckets"), own.get("prefix_buckets")
    if not flag(case.effective, "enable_bucketing"):
        return
    if context is not None and prefix is None:
        message = "context_encoding_buckets without prefix_buckets while prefix caching is on"
        mend = f"give prefix_buckets, or {_OFF}"
        yield Trip(message, mend, at(case, "context_encoding_buckets"))
    elif prefix is not None and context is None:
        message = "prefix_buckets is ignored without context_encoding_buckets"
        mend = "give both, or neither"
        yield Trip(message, mend, at(case, "prefix_buckets"), Severity.WARNING)


@rule(
    "prefix-buckets-idle",
    Severity.WARNING,
    "Prefix buckets are for prefix caching",
    f"{BUCKETING} generate_buckets_for_cte",
    NXDI,
)
def prefix_buckets_idle(case: Case) -> Iterator[Trip]:
    if given(case).get("prefix_buckets") is not None and not flag(
        case.effective, "is_prefix_caching"
    ):
        message = "prefix_buckets is ignored without prefix caching"
        yield Trip(message, "remove it", at(case, "prefix_buckets"))


@rule(
    "prefix-bucket-reach",
    Severity.WARNING,
    "The largest prefix bucket takes every prefix",
    "models/model_wrapper.py get_target_2d_bucket_for_prefix_caching (asserts in the running "
    "engine); feature-guide.rst, bucketing with prefix caching, last example",
    NXDI,
)
def prefix_bucket_reach(case: Case) -> Iterator[Trip]:
    context = integers(given(case), "context_encoding_buckets")
    prefix = integers(given(case), "prefix_buckets")
    most = integer(case.effective, "max_context_length")
    if not (context and prefix and most) or not flag(case.effective, "is_prefix_caching"):
        return
    needed = most - context[0]
    if prefix[-1] < needed:
        message = f"prefix_buckets ends at {prefix[-1]}; a prompt of {most} tokens with a short "
        message += f"new part needs {needed} and ends the engine"
        yield Trip(message, f"add {needed} or more", at(case, "prefix_buckets"))


@rule(
    "prefix-bucket-least",
    Severity.WARNING,
    "Buckets reach the kernels' least size",
    f"{BUCKETING} (with prefix caching automatic buckets start at 512 and 256: kernel limits)",
    NXDI,
)
def prefix_bucket_least(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "is_prefix_caching"):
        return
    least = {
        "context_encoding_buckets": 512,
        "prefix_buckets": 512,
        "token_generation_buckets": 256,
    }
    for name, limit in least.items():
        buckets = integers(given(case), name)
        if buckets and 0 < buckets[0] < limit:
            message = f"{name} starts at {buckets[0]}, under the kernels' {limit}"
            yield Trip(message, f"start it at {limit}", at(case, name))


@rule(
    "prefix-bucket-blocks",
    Severity.WARNING,
    "Buckets are whole blocks",
    "models/model_wrapper.py _pad_prefix_caching_inputs (bucket // pa_block_size blocks)",
    NXDI,
)
def prefix_bucket_blocks(case: Case) -> Iterator[Trip]:
    shape = _shape(case)
    if shape is None:
        return
    tokens, block, _ = shape
    for name in ("prefix_buckets", "token_generation_buckets"):
        odd = [bucket for bucket in integers(given(case), name) or [] if bucket % block]
        if odd:
            message = f"{name}: block_size {block} does not divide {odd[0]}"
            yield Trip(message, f"use multiples of {block}", at(case, name))
    if tokens % block:
        message = f"block_size {block} does not divide max_model_len {tokens}"
        yield Trip(message, f"set a multiple of {block}", "engine.max_model_len")


@rule(
    "prefix-image",
    Severity.ERROR,
    "Image models have no prefix caching",
    "models/image_to_text_model_base.py:169; models/llama4/modeling_llama4.py:95-97; "
    "models/qwen3_vl/modeling_qwen3_vl.py:91-93; Qwen2-VL switches it off while vLLM goes on",
    NXDI,
)
def prefix_image(case: Case) -> Iterator[Trip]:
    if image(case) and cached(case.plan.engine_args):
        yield Trip(f"{model_type(case)} has no prefix caching on NxDI", _OFF, CACHING)
