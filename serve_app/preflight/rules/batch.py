"""Rules about the batch: sequences at a time, its sizes and its buckets."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import (
    MAX_NUM_SEQS,
    flag,
    integer,
    integers,
    sequences,
    whole,
)
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, LOADER, at, given, since
from serve_app.preflight.rules.sequence import CACHE, SEQS


@rule(
    "max-num-seqs",
    Severity.WARNING,
    "max_num_seqs is given",
    "vLLM 0.16 engine/arg_utils.py:1889-1896: 256 behind the API server, before the plugin's 32",
    NXDI,
)
def max_num_seqs(case: Case) -> Iterator[Trip]:
    value = case.args.engine.get("max_num_seqs")
    if value is None:
        message = f"max_num_seqs is not given: {MAX_NUM_SEQS} sequences are compiled"
        yield Trip(message, "set engine.max_num_seqs", SEQS)
    elif (seqs := whole(value)) is not None and seqs < 1:
        yield Trip(f"max_num_seqs is {seqs}", "set at least 1", SEQS, Severity.ERROR)


@rule(
    "batch-size",
    Severity.ERROR,
    "The compiled batch holds max_num_seqs",
    f"{LOADER} _get_default_neuron_config; {CACHE} (a row per sequence id); model_wrapper.py "
    "_forward_with_pad (pads to max_batch_size)",
    NXDI,
)
def batch_size(case: Case) -> Iterator[Trip]:
    seqs, config = sequences(case.plan.engine_args), case.effective
    own = {name: size for name in _BATCHES if (size := integer(given(case), name)) is not None}
    if integer(config, "attention_dp_degree") != 1:
        own.pop("kv_cache_batch_size", None)  # NxDI sets it by itself
    small = [name for name, size in own.items() if size < seqs]
    decode, most = integer(config, "tkg_batch_size"), integer(config, "max_batch_size")
    if small:
        sizes = ", ".join(f"{name} {own[name]}" for name in small)
        mend = "set engine.max_num_seqs to it, or remove it"
        yield Trip(f"{sizes}, and vLLM runs {seqs} sequences", mend, at(case, small[0]))
    elif own and decode != most and decode is not None and most is not None:
        message = f"tkg_batch_size {decode} and max_batch_size {most} differ; inputs are padded to "
        yield Trip(f"{message}the latter", "make them equal", at(case, next(iter(own))))
    elif large := [name for name, size in own.items() if size > seqs]:
        message = f"{large[0]} is {own[large[0]]} and vLLM runs {seqs} sequences"
        mend = "make it and engine.max_num_seqs equal"
        yield Trip(message, mend, at(case, large[0]), Severity.WARNING)


_BATCHES = ("batch_size", "tkg_batch_size", "max_batch_size", "kv_cache_batch_size")


@rule(
    "ctx-batch-size",
    Severity.ERROR,
    "One prompt is encoded at a time",
    f"{CACHE}:484 ('only supports single seq_id'); vllm-neuron core/scheduler.py can_schedule",
    NXDI,
)
def ctx_batch_size(case: Case) -> Iterator[Trip]:
    size = integer(given(case), "ctx_batch_size")
    if size is not None and size != 1:
        message = f"ctx_batch_size is {size}; the plugin encodes one prompt at a time"
        yield Trip(message, "set it to 1, or remove it", at(case, "ctx_batch_size"))


@rule(
    "continuous-batching",
    Severity.ERROR,
    "Several sequences need continuous batching",
    f"{CACHE} (without it the cache is written from its first row on)",
    NXDI,
)
def continuous_batching(case: Case) -> Iterator[Trip]:
    seqs = sequences(case.plan.engine_args)
    block = flag(case.effective, "is_block_kv_layout")
    if seqs > 1 and not block and not flag(case.effective, "is_continuous_batching"):
        message = f"is_continuous_batching is off and vLLM runs {seqs} sequences"
        yield Trip(message, "remove it", at(case, "is_continuous_batching"))


@rule(
    "token-generation-batches",
    Severity.ERROR,
    "Batch buckets fit the batch and exclude block layout and speculation",
    f"{CONFIG} _validate_batch_bucketing_compatibility",
    NXDI,
)
def token_generation_batches(case: Case) -> Iterator[Trip]:
    value = given(case).get("token_generation_batches")
    if value is None or not since(case, "0.8"):
        return
    path = at(case, "token_generation_batches")
    number = whole(value)
    batches = [number] if number else integers(given(case), "token_generation_batches")
    most = integer(case.effective, "tkg_batch_size")
    if batches and most is not None and batches[-1] > most:
        message = f"token_generation_batches goes to {batches[-1]} and the batch is {most}"
        yield Trip(message, f"end it at {most}", path)
    words = dict.fromkeys(word for name, word in _NO_BATCH_BUCKETS.items() if _on(case, name))
    if words:
        message = f"token_generation_batches does not go with {', '.join(words)}"
        yield Trip(message, "remove token_generation_batches, or switch that off", path)


_NO_BATCH_BUCKETS = {
    "is_prefix_caching": "prefix caching",
    "is_block_kv_layout": "the block KV layout",
    "chunked_prefill_config": "chunked prefill",
    "speculation_length": "speculative decoding",
    "enable_fused_speculation": "speculative decoding",
    "enable_eagle_speculation": "speculative decoding",
    "is_medusa": "Medusa",
    "token_tree_config": "a token tree",
}


def _on(case: Case, name: str) -> bool:
    if name == "token_tree_config":
        return case.effective.get(name) is not None
    return flag(case.effective, name)


@rule(
    "model-batch",
    Severity.WARNING,
    "The model is known to work at this batch",
    "aws-neuron-sdk release-notes/components/nxd-inference.rst, 2.27.0, known issues",
    NXDI,
)
def model_batch(case: Case) -> Iterator[Trip]:
    seqs = sequences(case.plan.engine_args)
    pixtral = "LlavaForConditionalGeneration" in _architectures(case)
    if pixtral and seqs > 4 and not since(case, "0.8"):
        message = f"Pixtral is known to work with up to 4 sequences here, not {seqs}"
        yield Trip(message, "set engine.max_num_seqs: 4", SEQS)


def _architectures(case: Case) -> tuple[str, ...]:
    return case.model.architectures if case.model else ()
