"""Rules about lengths, buckets and batches on NxDI."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import (
    LONG_CONTEXT,
    context_buckets,
    flag,
    integer,
    integers,
    length,
    mapping,
    sequences,
    whole,
)
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, LOADER, at, given, image, since

MODEL = "neuronx-distributed-inference models/model_base.py"
CACHE = "neuronx-distributed-inference modules/kvcache/kv_cache_manager.py"
PROMPT = "engine.additional_config.max_prompt_length"
TOKENS, SEQS = "engine.max_model_len", "engine.max_num_seqs"
BUDGET = 131072
"""What the plugin's scheduler sets max_num_batched_tokens to; prompts are not split."""
CONTEXT, DECODE = "context_encoding_buckets", "token_generation_buckets"
BUCKETS = {CONTEXT: "max_context_length", DECODE: "max_length"}
"""Each bucket list and the length that it serves."""
_LISTS = (*BUCKETS, "prefix_buckets", "token_generation_batches")


def _length(case: Case) -> int | None:
    return length(case.engine("max_model_len"))


@rule(
    "max-model-len",
    Severity.ERROR,
    "max_model_len is given",
    "vllm-neuron platform_overrides.py changed_get_and_verify_max_len: the model's own length is "
    "not looked up, so an absent value stays None",
    NXDI,
)
def max_model_len(case: Case) -> Iterator[Trip]:
    value = case.engine("max_model_len")
    if value is None:
        yield Trip("max_model_len is not given and the plugin takes none from the model", _SET_LEN)
    elif _length(case) is None:
        yield Trip(f"max_model_len is {value!r}, no positive number of tokens", _SET_LEN, TOKENS)


_SET_LEN = "set engine.max_model_len"


@rule(
    "seq-len",
    Severity.ERROR,
    "The compiled length is max_model_len",
    f"{LOADER} _get_default_neuron_config; model_wrapper.py (an input longer than the largest "
    "bucket raises)",
    NXDI,
)
def seq_len(case: Case) -> Iterator[Trip]:
    tokens = _length(case)
    for name in ("seq_len", "max_length"):
        compiled = integer(given(case), name)
        if tokens is None or compiled is None or compiled == tokens:
            continue
        if compiled < tokens:
            message = f"{name} is {compiled} and vLLM takes {tokens} tokens"
            yield Trip(message, f"make {name} and engine.max_model_len equal", at(case, name))
        else:
            message = f"{name} is {compiled} and vLLM uses {tokens} of it"
            mend = "make them equal"
            yield Trip(message, mend, at(case, name), Severity.WARNING)


@rule(
    "context-length",
    Severity.ERROR,
    "Prompts are not longer than sequences",
    f"{CONFIG} NeuronConfig.__init__ (max_context_length <= max_length)",
    NXDI,
)
def context_length(case: Case) -> Iterator[Trip]:
    context = integer(case.effective, "max_context_length")
    most = integer(case.effective, "max_length")
    prompt = whole(_prompt(case))
    key = "max_prompt_length" if prompt is not None else "max_context_length"
    path = PROMPT if prompt is not None else at(case, key)
    if context is not None and context < 1:
        yield Trip(f"{key} is {context}", "set it to the longest prompt in tokens", path)
    elif context is not None and most is not None and context > most:
        if prompt is None and "max_context_length" not in given(case):
            return  # seq_len is the culprit and has its own rule
        yield Trip(f"{key} is {context}, over max_length {most}", f"set at most {most}", path)


def _prompt(case: Case) -> object:
    return mapping(case.args.engine, "additional_config").get("max_prompt_length")


@rule(
    "max-prompt-length",
    Severity.ERROR,
    "max_prompt_length agrees with the override",
    f"{LOADER} _validate_override_neuron_config and _validate_image_to_text_override_neuron_config",
    NXDI,
)
def max_prompt_length(case: Case) -> Iterator[Trip]:
    prompt = _prompt(case)
    if prompt is None:
        return
    if whole(prompt) is None:
        message = f"max_prompt_length takes a whole number, not {prompt!r}"
        yield Trip(message, "write the longest prompt in tokens", PROMPT)
    if image(case):
        message = "the plugin cannot give max_prompt_length to an image model"
        yield Trip(message, "write max_context_length into text_neuron_config", PROMPT)
    context = given(case).get("max_context_length")
    if context is not None and context != prompt:
        message = f"max_prompt_length is {prompt} and max_context_length {context}"
        yield Trip(message, "make them equal, or remove max_context_length", PROMPT)


@rule(
    "long-prompts",
    Severity.WARNING,
    "Prompts too long for the compiled model are turned away, not passed on",
    "vllm-neuron worker/neuronx_distributed_model_runner.py _validate_max_prompt_length: the "
    "plugin warns that such a prompt ends the engine",
    NXDI,
)
def long_prompts(case: Case) -> Iterator[Trip]:
    tokens, context = _length(case), integer(case.effective, "max_context_length")
    if _prompt(case) is None and tokens and context and context < tokens:
        message = f"prompts over max_context_length {context} end the engine; vLLM takes {tokens}"
        mend = f"set additional_config.max_prompt_length: {context}"
        yield Trip(message, mend, at(case, "max_context_length"))


@rule(
    "prompt-budget",
    Severity.ERROR,
    "The scheduler can take the longest prompt",
    "vllm-neuron platform.py check_and_update_config: chunked prefill off, "
    "max_num_batched_tokens 131072; vLLM's scheduler then never starts a longer prompt",
    NXDI,
)
def prompt_budget(case: Case) -> Iterator[Trip]:
    context = integer(case.effective, "max_context_length")
    if context and context > BUDGET:
        message = f"prompts of {context} tokens exceed the scheduler's {BUDGET} and never start"
        mend = f"set additional_config.max_prompt_length: {BUDGET}"
        yield Trip(message, mend, PROMPT if _prompt(case) else TOKENS)


@rule(
    "max-num-batched-tokens",
    Severity.ERROR,
    "vLLM takes max_num_batched_tokens",
    "vLLM 0.13, 0.16 config/scheduler.py verify_max_model_len, which runs before the plugin",
    NXDI,
)
def max_num_batched_tokens(case: Case) -> Iterator[Trip]:
    budget = length(case.engine("max_num_batched_tokens"))
    if budget is None:
        return
    tokens, seqs = _length(case), sequences(case.plan.engine_args)
    path = "engine.max_num_batched_tokens"
    if tokens and budget < tokens and case.engine("enable_chunked_prefill") is False:
        message = f"max_num_batched_tokens {budget} is less than max_model_len {tokens}"
        yield Trip(message, f"remove it: the plugin sets {BUDGET}", path)
    elif budget < seqs:
        message = f"max_num_batched_tokens {budget} is less than max_num_seqs {seqs}"
        yield Trip(message, f"remove it: the plugin sets {BUDGET}", path)


@rule(
    "bucket-list",
    Severity.ERROR,
    "Lists of buckets hold positive numbers",
    f"{CONFIG}:192-201 (the last entry of an empty list is asked for)",
    NXDI,
)
def bucket_list(case: Case) -> Iterator[Trip]:
    for name in _LISTS:
        buckets = integers(given(case), name)
        if buckets is None or (name == "token_generation_batches" and not since(case, "0.8")):
            continue
        if not buckets:
            severity = Severity.WARNING if name == "prefix_buckets" else None
            yield Trip(f"{name} is empty", "remove it, or fill it", at(case, name), severity)
        elif buckets[0] < 1:
            yield Trip(f"{name} holds {buckets[0]}", "remove that entry", at(case, name))
        elif len(set(buckets)) < len(buckets):
            message = f"{name} holds an entry twice; each is compiled"
            yield Trip(message, "keep one of each", at(case, name), Severity.WARNING)


@rule(
    "bucket-within",
    Severity.ERROR,
    "No bucket exceeds its length",
    f"{CONFIG}:192-201",
    NXDI,
)
def bucket_within(case: Case) -> Iterator[Trip]:
    for name, limit in BUCKETS.items():
        buckets, most = integers(given(case), name), integer(case.effective, limit)
        if buckets and most is not None and buckets[-1] > most:
            message = f"{name} goes to {buckets[-1]} and {limit} is {most}"
            yield Trip(message, f"end it at {most}", at(case, name))


@rule(
    "bucket-reach",
    Severity.ERROR,
    "The largest bucket reaches the length",
    "neuronx-distributed-inference models/model_wrapper.py _get_seq_bucket (an input longer than "
    "the largest bucket raises in the running engine)",
    NXDI,
)
def bucket_reach(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "enable_bucketing"):
        return
    if flag(case.effective, "allow_input_truncation"):
        return
    for name, limit in BUCKETS.items():
        buckets, most = integers(given(case), name), integer(case.effective, limit)
        if buckets and most is not None and buckets[-1] < most:
            message = f"{name} ends at {buckets[-1]} and {limit} is {most}"
            yield Trip(message, f"add {most} as the last bucket", at(case, name))


@rule(
    "bucket-ignored",
    Severity.WARNING,
    "Buckets are used",
    "neuronx-distributed-inference modules/autobucketing.py generate_buckets_for_cte, _for_tkg",
    NXDI,
)
def bucket_ignored(case: Case) -> Iterator[Trip]:
    if flag(case.effective, "enable_bucketing"):
        return
    for name in (CONTEXT, DECODE, "prefix_buckets"):
        if given(case).get(name) is not None:
            message = f"without enable_bucketing {name} is ignored"
            yield Trip(message, "set enable_bucketing: true, or remove it", at(case, name))


@rule(
    "bucket-sequence-parallel",
    Severity.ERROR,
    "With sequence parallelism TP divides every context bucket",
    f"{MODEL}:1284-1285, 1471-1480 validate_sequence_parallel",
    NXDI,
)
def bucket_sequence_parallel(case: Case) -> Iterator[Trip]:
    tp = integer(case.effective, "tp_degree")
    if not flag(case.effective, "sequence_parallel_enabled") or not tp or tp < 1:
        return
    odd = [bucket for bucket in context_buckets(case.effective) if bucket % tp]
    if odd:
        own = given(case).get(CONTEXT) is not None
        buckets = f"context bucket{'s' if len(odd) > 1 else ''} {', '.join(map(str, odd))}"
        message = f"sequence parallelism: {buckets} {'' if own else '(automatic) '}not divisible"
        mend = f"give {CONTEXT} in multiples of {tp}"
        yield Trip(f"{message} by TP {tp}", mend, at(case, CONTEXT))


@rule(
    "long-context",
    Severity.NOTE,
    "Prompts from 32768 tokens on run in long-context mode",
    f"{CONFIG} LONG_CONTEXT_SCRATCHPAD_PAGE_SIZE; utils/runtime_env.py set_env_vars",
    NXDI,
)
def long_context(case: Case) -> Iterator[Trip]:
    context = integer(case.effective, "max_context_length")
    if context and context >= LONG_CONTEXT:
        message = f"max_context_length {context} switches NxDI to its long-context mode"
        mend = "expect scratchpad pages of 1024 and an execution timeout of 600 s"
        yield Trip(message, mend, TOKENS)


@rule(
    "windowed-context",
    Severity.ERROR,
    "Windowed context encoding has the model's window",
    f"{CONFIG} _validate_windowed_context_encoding_support",
    NXDI,
)
def windowed_context(case: Case) -> Iterator[Trip]:
    window = integer(given(case), "windowed_context_encoding_size")
    own = case.model.sliding_window if case.model else None
    if window is not None and own and window != own:
        message = f"windowed_context_encoding_size is {window} and the model's window {own}"
        yield Trip(message, f"set {own}", at(case, "windowed_context_encoding_size"))
