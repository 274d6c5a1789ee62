"""Rules of the native plugin: context parallelism of the KV cache (DCP)."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.neuron.native_config import whole
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    block_size,
    count,
    dcp,
    since,
    size,
    tp,
    transfer,
)

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"
_DCP = "engine.decode_context_parallel_size"
_NIXL = "NeuronNixlConnector"


@rule(
    "native-dcp-ranks",
    Severity.ERROR,
    "decode_context_parallel_size divides tensor_parallel_size",
    "vLLM config/parallel.py; vllm-neuron 0.24 platform.py _validate_dcp_config (ValueError)",
    NATIVE,
)
def dcp_ranks(case: Case) -> Iterator[Trip]:
    if dcp(case) > 1 and tp(case) % dcp(case):
        message = f"tensor_parallel_size {tp(case)} cannot be divided by {dcp(case)}"
        yield Trip(message, f"use a divisor of {tp(case)}", _DCP)


@rule(
    "native-dcp-heads",
    Severity.ERROR,
    "Every KV head is replicated over a whole context-parallel group",
    f"{_PLATFORM} _validate_dcp_config / _validate_decode_dcp_config (ValueError)",
    NATIVE,
)
def dcp_heads(case: Case) -> Iterator[Trip]:
    prefill = bool(case.given.get("apply_prefill_dcp")) and not since(case, "0.24")
    if dcp(case) == 1 or case.model is None or prefill or case.model.kv_heads < 1:
        return
    kv, need = case.model.kv_heads, dcp(case) * case.model.kv_heads
    if tp(case) < need:
        message = f"tensor_parallel_size {tp(case)} is below {dcp(case)} x {kv} KV heads = {need}"
        yield Trip(message, f"lower it, or set tensor_parallel_size to {need}", _DCP)
    if (case.model.heads // kv) % dcp(case):
        group = case.model.heads // kv
        message = f"{group} query heads per KV head cannot be divided by {dcp(case)}"
        yield Trip(message, f"use a divisor of {group}", _DCP)


@rule(
    "native-dcp-connector",
    Severity.ERROR,
    "Context parallelism transfers the KV cache by NeuronNixlConnector",
    f"{_PLATFORM} _validate_dcp_config / _validate_dcp_requires_neuron_nixl_connector",
    NATIVE,
)
def dcp_connector(case: Case) -> Iterator[Trip]:
    given = transfer(case)
    if dcp(case) == 1:
        return
    if given is not None:
        if given.get("kv_connector") != _NIXL:
            message = f"decode_context_parallel_size {dcp(case)} with {given['kv_connector']!r}"
            path = "engine.kv_transfer_config.kv_connector"
            yield Trip(message, f"use {_NIXL}", path)
    elif not since(case, "0.24") and not case.given.get("apply_prefill_dcp"):
        message = f"decode_context_parallel_size {dcp(case)} without kv_transfer_config"
        mend = "set kv_transfer_config, or stack.sdk 2.32, which needs none"
        yield Trip(f"{message}: vLLM {case.target.stack.vllm} needs one", mend, _DCP)


@rule(
    "native-dcp-interleave",
    Severity.ERROR,
    "cp_kv_cache_interleave_size is block_size when the KV cache is transferred",
    "vllm-neuron neuron_model_runner.py __init__ (AssertionError); dcp.md",
    NATIVE,
)
def dcp_interleave(case: Case) -> Iterator[Trip]:
    now, block = count(case, "cp_kv_cache_interleave_size"), block_size(case)
    if dcp(case) > 1 and transfer(case) and now != block:
        message = f"cp_kv_cache_interleave_size {now} is not block_size {block}"
        yield Trip(message, f"set it to {block}", "engine.cp_kv_cache_interleave_size")


@rule(
    "native-dcp-threshold",
    Severity.ERROR,
    "long_prefill_token_threshold is a multiple of the context-parallel stride",
    "vllm-neuron 0.24 vllm/platform.py _validate_dcp_config (ValueError)",
    NATIVE,
)
def dcp_threshold(case: Case) -> Iterator[Trip]:
    stride = dcp(case) * block_size(case)
    given = whole(case.plan.engine_args.get("long_prefill_token_threshold"))
    if dcp(case) > 1 and given and given % stride and since(case, "0.24"):
        message = f"long_prefill_token_threshold {given} is no multiple of"
        message += f" {dcp(case)} x block_size {block_size(case)} = {stride}"
        mend = f"use a multiple of {stride}"
        yield Trip(message, mend, "engine.long_prefill_token_threshold")


@rule(
    "native-dcp-attention-dp",
    Severity.ERROR,
    "Context parallelism and attention data parallelism exclude each other",
    "aws-neuron-sdk vllm-neuron/docs/design/parallelism/dcp.md Decode Constraints",
    NATIVE,
)
def dcp_attention_dp(case: Case) -> Iterator[Trip]:
    wide = size(case, "attention_dp_size")
    if dcp(case) > 1 and wide > 1:
        message = f"decode_context_parallel_size {dcp(case)} with attention_dp_size {wide}"
        yield Trip(message, "set one of them to 1", case.at("attention_dp_size"))


@rule(
    "native-dcp-prefill",
    Severity.ERROR,
    "apply_prefill_dcp is for a prefill server with context parallelism",
    "vllm-neuron 0.21 platform.py _validate_prefill_dcp_config (ValueError); dcp.md",
    NATIVE,
)
def dcp_prefill(case: Case) -> Iterator[Trip]:
    if not case.given.get("apply_prefill_dcp"):
        return
    given, path = transfer(case), case.at("apply_prefill_dcp")
    if dcp(case) == 1:
        message = "apply_prefill_dcp needs decode_context_parallel_size above 1"
        yield Trip(message, "remove it", path)
    elif given is None:
        message = "apply_prefill_dcp needs disaggregated inference, and there is no"
        yield Trip(f"{message} kv_transfer_config", "remove it", path)
    elif given.get("kv_role") != "kv_producer":
        message = f"apply_prefill_dcp is for kv_producer; kv_role is {given.get('kv_role')!r}"
        yield Trip(message, "remove it", path)
