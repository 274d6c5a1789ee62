"""Rules of the native plugin: buckets."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.neuron import native_config as config
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    block_size,
    budget,
    count,
    dcp,
    length,
    pooling,
    prefill_buckets,
    segmented,
    since,
    tp,
)
from serve_app.preflight.rules.native_prefill import segment_fault

_UTILS = "vllm-neuron 0.24 utils/bucket_utils.py"
_RUNNER = "vllm-neuron 0.24 vllm/worker/neuron_model_runner.py __init__"
_SIZES = ", ".join(map(str, config.SEGMENT_SIZES))
_LISTS = tuple(name for name, key in config.KEYS.items() if key.kind == "buckets")
_TOKENS = "engine.max_num_batched_tokens"


@rule(
    "native-bucket-list",
    Severity.ERROR,
    "Buckets are positive whole numbers in strictly ascending order",
    f"{_UTILS} validate_*_buckets (ValueError)",
    NATIVE,
)
def bucket_list(case: Case) -> Iterator[Trip]:
    for name in _LISTS:
        if name in case.given and not config.is_buckets(case.given[name]):
            message = f"{name} is {case.given[name]!r}"
            mend = "list positive whole numbers, each greater than the one before, or leave it out"
            yield Trip(message, mend, case.at(name))


@rule(
    "native-bucket-tokens",
    Severity.ERROR,
    "The last prefill bucket is the prefill budget",
    f"{_UTILS} validate_num_batched_tokens_buckets; get_max_num_batched_tokens",
    NATIVE,
)
def last_token_bucket(case: Case) -> Iterator[Trip]:
    buckets, tokens = case.given.get("num_batched_tokens_buckets"), length(case)
    if tokens is None or not config.is_buckets(buckets) or segment_fault(case, tokens):
        return
    if buckets[-1] == budget(case):
        return
    given = case.args.engine.get("max_num_batched_tokens")
    now = f"{count(case, 'max_num_batched_tokens', config.DEFAULT_BUDGET)}"
    now += "" if given else " (vLLM's default)"
    message = f"num_batched_tokens_buckets ends with {buckets[-1]}, not with {budget(case)}, the"
    message += f" lesser of max_num_batched_tokens {now} and max_model_len {tokens}"
    mend = f"end the list with {budget(case)}"
    if buckets[-1] == tokens or (buckets[-1] < tokens and buckets[-1] in config.SEGMENT_SIZES):
        mend += f", or set max_num_batched_tokens to {buckets[-1]}"
    # AWS's embedding tutorial does this, with a default that no source names.
    severity = Severity.WARNING if pooling(case) and not given else None
    yield Trip(message, mend, case.at("num_batched_tokens_buckets"), severity)


@rule(
    "native-bucket-seqs",
    Severity.ERROR,
    "The last decode bucket is max_num_seqs",
    f"{_UTILS} validate_num_seqs_buckets (ValueError)",
    NATIVE,
)
def last_seqs_bucket(case: Case) -> Iterator[Trip]:
    buckets = case.given.get("num_seqs_buckets")
    seqs = count(case, "max_num_seqs", config.DEFAULT_SEQS)
    if config.is_buckets(buckets) and buckets[-1] != seqs:
        by = "" if case.args.engine.get("max_num_seqs") else ", vLLM's default"
        message = f"the last of num_seqs_buckets is {buckets[-1]}, max_num_seqs is {seqs}{by}"
        yield Trip(message, f"set max_num_seqs to {buckets[-1]}", case.at("num_seqs_buckets"))


@rule(
    "native-bucket-decode",
    Severity.ERROR,
    "Decode context buckets are multiples of 128 below max_model_len",
    f"{_UTILS} validate_decode_context_length_buckets (ValueError)",
    NATIVE,
)
def decode_context(case: Case) -> Iterator[Trip]:
    buckets, tokens = case.given.get("decode_context_length_buckets"), length(case)
    path = case.at("decode_context_length_buckets")
    if not config.is_buckets(buckets):
        return
    if odd := [n for n in buckets if n % 128]:
        yield Trip(f"decode context bucket {odd[0]} is no multiple of 128", "round it", path)
    if tokens and buckets[-1] >= tokens:
        message = f"decode context bucket {buckets[-1]} is not below max_model_len {tokens}"
        yield Trip(message, "remove it, max_model_len is always compiled", path)


@rule(
    "native-bucket-legacy",
    Severity.WARNING,
    "prefill_sequence_buckets and decode_batch_buckets are old names",
    "vllm-neuron 0.21 model/neuron_config.py keeps them; nothing in the 0.21 runner reads them",
    NATIVE,
)
def legacy_names(case: Case) -> Iterator[Trip]:
    names = {
        "prefill_sequence_buckets": "num_batched_tokens_buckets",
        "decode_batch_buckets": "num_seqs_buckets",
    }
    for old, new in names.items():
        if old in case.given and not since(case, "0.24"):
            yield Trip(f"{old} is the old name of {new}", f"use {new}", case.at(old))


@rule(
    "native-segment-bucket",
    Severity.ERROR,
    "kv_segment_size_buckets holds one size, and the prefill buckets are the same list",
    f"{_UTILS} validate_kv_segment_size_buckets (ValueError)",
    NATIVE,
)
def segment_bucket(case: Case) -> Iterator[Trip]:
    sizes = case.given.get("kv_segment_size_buckets")
    path = case.at("kv_segment_size_buckets")
    if not config.is_buckets(sizes):
        return
    if bad := [n for n in sizes if n not in config.SEGMENT_SIZES]:
        message = f"segment size {bad[0]} is not one of {_SIZES}"
        yield Trip(message, "choose one of them", path)
        return
    if len(sizes) != 1:
        message = f"kv_segment_size_buckets has {len(sizes)} sizes; one is supported"
        yield Trip(message, "keep one", path)
        return
    tokens = case.given.get("num_batched_tokens_buckets")
    if config.is_buckets(tokens) and tokens != sizes:
        message = f"num_batched_tokens_buckets {tokens} differs from kv_segment_size_buckets"
        yield Trip(f"{message} {sizes}", f"make both {sizes}", path)


@rule(
    "native-segment-auto",
    Severity.ERROR,
    "Segmented prefill has a single bucket, also when it is switched on by the budget",
    f"{_UTILS} validate_kv_segment_size_buckets, called with the automatic size (ValueError)",
    NATIVE,
)
def segment_auto(case: Case) -> Iterator[Trip]:
    buckets, tokens = case.given.get("num_batched_tokens_buckets"), length(case)
    if "kv_segment_size_buckets" in case.given or not config.is_buckets(buckets):
        return
    if tokens is None or not segmented(case) or segment_fault(case, tokens):
        return
    if buckets[-1] == budget(case) and len(buckets) > 1:
        message = f"max_num_batched_tokens {budget(case)} is below max_model_len {tokens}:"
        message += f" prefill is segmented and takes the bucket {budget(case)} only"
        path = case.at("num_batched_tokens_buckets")
        yield Trip(f"{message}, not {buckets}", f"set it to [{budget(case)}]", path)


@rule(
    "native-segment-budget",
    Severity.WARNING,
    "The segment size and max_num_batched_tokens agree",
    f"{_RUNNER}: the runner adjusts itself to the segment, the scheduler does not",
    NATIVE,
)
def segment_budget(case: Case) -> Iterator[Trip]:
    sizes, tokens = case.given.get("kv_segment_size_buckets"), length(case)
    explicit = "num_batched_tokens_buckets" in case.given  # then the bucket rules speak
    if tokens is None or explicit or not config.is_buckets(sizes) or len(sizes) != 1:
        return
    if sizes[0] in config.SEGMENT_SIZES and sizes[0] != budget(case):
        message = f"kv_segment_size_buckets {sizes} and the prefill budget {budget(case)} differ"
        yield Trip(message, f"set max_num_batched_tokens to {sizes[0]}", _TOKENS)


@rule(
    "native-segment-block",
    Severity.ERROR,
    "The segment size and the sliding window are multiples of block_size",
    "vllm-neuron functional/attention/attention_segmented_cte.py (ValueError)",
    NATIVE,
)
def segment_block(case: Case) -> Iterator[Trip]:
    sizes, block = prefill_buckets(case), block_size(case)
    if segmented(case) and sizes and sizes[0] in config.SEGMENT_SIZES and sizes[0] % block:
        message = f"segment size {sizes[0]} is no multiple of block_size {block}"
        yield Trip(message, "use a block_size that divides it, such as 32", "engine.block_size")
        return
    window = case.model.sliding_window if case.model else None
    if segmented(case) and window and window % block:
        message = f"the model's sliding window {window} is no multiple of block_size {block}"
        yield Trip(message, "use a block_size that divides it, such as 32", "engine.block_size")


@rule(
    "native-bucket-tp",
    Severity.ERROR,
    "A prefill bucket is greater than tensor_parallel_size and divisible by it",
    "vllm-neuron 0.24 model/qwen3/model.py forward (ValueError); tensor_parallelism.md",
    NATIVE,
)
def bucket_tp(case: Case) -> Iterator[Trip]:
    ranks, tokens = tp(case), length(case)
    if ranks == 1 or tokens is None or segment_fault(case, tokens):
        return
    bad = [n for n in prefill_buckets(case) if n <= ranks or n % ranks]
    if bad:
        message = f"prefill bucket {bad[0]} cannot be split over {ranks} ranks"
        given = "num_batched_tokens_buckets" in case.given
        path = case.at("num_batched_tokens_buckets") if given else "engine.max_model_len"
        yield Trip(message, f"use multiples of {ranks} above {ranks}", path)


@rule(
    "native-bucket-dcp",
    Severity.ERROR,
    "With context parallelism prefill buckets are multiples of its stride",
    f"{_UTILS} align_prefill_buckets_for_dcp (ValueError for the last, others are dropped)",
    NATIVE,
)
def bucket_dcp(case: Case) -> Iterator[Trip]:
    buckets, stride = prefill_buckets(case), dcp(case) * block_size(case)
    if dcp(case) == 1 or not buckets:
        return
    bad = [n for n in buckets if n % stride]
    why = f"decode_context_parallel_size {dcp(case)} x block_size {block_size(case)} = {stride}"
    path = case.at("num_batched_tokens_buckets")
    if buckets[-1] in bad:
        message = f"the last prefill bucket {buckets[-1]} is no multiple of {why}"
        yield Trip(message, f"use a multiple of {stride}", _TOKENS)
    elif bad and "num_batched_tokens_buckets" in case.given:
        message = f"prefill bucket {bad[0]} is no multiple of {why}"
        severity = Severity.WARNING if since(case, "0.24") else None
        yield Trip(message, f"use multiples of {stride}", path, severity)
