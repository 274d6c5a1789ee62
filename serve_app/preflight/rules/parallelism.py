"""Rules about degrees of parallelism on NxDI, and about what its plugin cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import flag, integer, mapping, sequences, whole
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.kernels import CASCADED, UPDATE
from serve_app.preflight.rules.keys import (
    CONFIG,
    LOADER,
    WINDOW_DP,
    at,
    experts,
    given,
    model_type,
    since,
)

UTILS = "neuronx-distributed-inference modules/attention/utils.py"
DEGREES = (
    "tp_degree",
    "cp_degree",
    "mlp_cp_degree",
    "attention_dp_degree",
    "pp_degree",
    "ep_degree",
    "moe_tp_degree",
    "moe_ep_degree",
    WINDOW_DP,
)
DP, CP = "attention_dp_degree", "cp_degree"


def _degree(case: Case, name: str) -> int:
    """A degree; 1 when it is none, of which `degree-positive` and the kinds speak."""
    value = integer(case.effective, name)
    return value if value is not None and value > 0 else 1


def _tp(case: Case) -> int:
    """tp_degree, when it is usable."""
    return _degree(case, "tp_degree")


@rule(
    "degree-positive",
    Severity.ERROR,
    "Degrees are at least 1",
    f"{CONFIG}:358-372 (divides by them)",
    NXDI,
)
def degree_positive(case: Case) -> Iterator[Trip]:
    for name in DEGREES:
        value = integer(given(case), name)
        if value is not None and value < 1:
            yield Trip(f"{name} is {value}", "set at least 1, or remove it", at(case, name))


@rule(
    "tp-override",
    Severity.ERROR,
    "NxDI and vLLM have the same tensor-parallel degree",
    f"{LOADER} _get_default_neuron_config (tp_degree = tensor_parallel_size)",
    NXDI,
)
def tp_override(case: Case) -> Iterator[Trip]:
    own = integer(given(case), "tp_degree")
    if own is not None and own > 0 and own != case.tp:
        message = f"tp_degree is {own} and tensor_parallel_size {case.tp}"
        yield Trip(message, "make them equal, or remove tp_degree", at(case, "tp_degree"))


@rule(
    "world-size",
    Severity.ERROR,
    "The ranks of NxDI are those of tensor parallelism",
    f"{CONFIG}:380-391 (world_size = tp x pp x ep)",
    NXDI,
)
def world_size(case: Case) -> Iterator[Trip]:
    for name in ("pp_degree", "ep_degree"):
        value = _degree(case, name)
        if value > 1:
            message = f"{name} {value} multiplies the ranks beyond the {case.tp} that vLLM reserves"
            mend = "remove it" + ("; use moe_ep_degree" if name == "ep_degree" else "")
            yield Trip(message, mend, at(case, name))
    world = integer(given(case), "world_size")
    ranks = _tp(case) * _degree(case, "pp_degree") * _degree(case, "ep_degree")
    if world is not None and world != ranks:
        message = f"world_size is {world} and tp x pp x ep {ranks}"
        yield Trip(message, "remove world_size", at(case, "world_size"))


class Divides(NamedTuple):
    """`divisor` must divide `number`."""

    divisor: str
    number: str


_DIVIDES = (
    Divides(CP, "tp_degree"),
    Divides(DP, "tp_degree"),
    Divides(DP, "tkg_batch_size"),
    Divides(WINDOW_DP, "tp_degree"),
    Divides(WINDOW_DP, "tkg_batch_size"),
)


@rule(
    "degree-divides",
    Severity.ERROR,
    "Attention degrees divide TP and the batch",
    f"{CONFIG}:371 and validate_attention_data_parallel",
    NXDI,
)
def degree_divides(case: Case) -> Iterator[Trip]:
    for divisor, number in _DIVIDES:
        if divisor == WINDOW_DP and model_type(case) != "gpt_oss":
            continue
        degree, whole_number = _degree(case, divisor), integer(case.effective, number)
        if number == "tkg_batch_size" and not flag(case.effective, "is_continuous_batching"):
            continue  # of this another rule speaks
        if whole_number is not None and whole_number % degree:
            message = f"{divisor} {degree} does not divide {number} {whole_number}"
            yield Trip(message, f"set a divisor of {whole_number}", at(case, divisor))


@rule(
    "cp-dp",
    Severity.ERROR,
    "Context parallelism is a multiple of attention data parallelism",
    f"{CONFIG} validate_attention_data_parallel",
    NXDI,
)
def cp_dp(case: Case) -> Iterator[Trip]:
    cp, dp = _degree(case, CP), _degree(case, DP)
    if cp > 1 and dp > 1 and cp % dp:
        message = f"{CP} {cp} is not a multiple of {DP} {dp}"
        yield Trip(message, f"set {CP} to a multiple of {dp}", at(case, CP))


@rule(
    "dp-batching",
    Severity.ERROR,
    "Attention data parallelism has several sequences",
    f"{CONFIG} validate_attention_data_parallel (needs is_continuous_batching)",
    NXDI,
)
def dp_batching(case: Case) -> Iterator[Trip]:
    dp = _degree(case, DP)
    if dp > 1 and not flag(case.effective, "is_continuous_batching"):
        seqs = sequences(case.plan.engine_args)
        message = f"{DP} {dp} needs continuous batching, which is off with {seqs} sequence"
        message += "s" if seqs > 1 else ""
        yield Trip(message, f"set engine.max_num_seqs to a multiple of {dp}", at(case, DP))


@rule(
    "dp-cache-update",
    Severity.ERROR,
    "The cache update kernel under data parallelism is cascaded",
    f"{CONFIG}:507-518, 716-718",
    NXDI,
)
def dp_cache_update(case: Case) -> Iterator[Trip]:
    if _degree(case, DP) < 2 or not flag(case.effective, UPDATE):
        return
    if case.target.instance.generation < 2:
        family = case.target.instance.family
        yield Trip(f"{UPDATE} with {DP} is not for {family}", f"remove {UPDATE}", at(case, UPDATE))
    elif not flag(case.effective, CASCADED):
        yield Trip(
            f"{UPDATE} with {DP} needs {CASCADED}", f"set {CASCADED}: true", at(case, UPDATE)
        )


@rule(
    "ep-dispatch",
    Severity.ERROR,
    "RS_AG has a sequence per rank",
    f"{CONFIG}:720",
    NXDI,
)
def ep_dispatch(case: Case) -> Iterator[Trip]:
    batch, tp = integer(case.effective, "tkg_batch_size"), _tp(case)
    on = given(case).get("ep_dispatch_cc_option") == "RS_AG" and since(case, "0.8")
    if on and batch is not None and tp > batch:
        message = f"ep_dispatch_cc_option RS_AG with TP {tp} over a batch of {batch}"
        yield Trip(message, "remove it", at(case, "ep_dispatch_cc_option"))


@rule(
    "mlp-cp",
    Severity.ERROR,
    "Context parallel MLPs have sequence parallelism",
    f"{CONFIG}:374-375",
    NXDI,
)
def mlp_cp(case: Case) -> Iterator[Trip]:
    degree = _degree(case, "mlp_cp_degree")
    if degree > 1 and not flag(case.effective, "sequence_parallel_enabled"):
        message = f"mlp_cp_degree {degree} needs sequence_parallel_enabled"
        yield Trip(message, "set sequence_parallel_enabled: true", at(case, "mlp_cp_degree"))


def _layout(case: Case) -> tuple[int, int, int, int] | None:
    """TP, CP, DP and KV heads; None when the degrees do not divide or the model is not known."""
    tp, cp, dp = _tp(case), _degree(case, CP), _degree(case, DP)
    heads = case.model.kv_heads if case.model else 0
    return (tp, cp, dp, heads) if heads > 0 and not tp % cp and not tp % dp else None


@rule(
    "dp-heads",
    Severity.ERROR,
    "Prefill and decode hold the same KV heads per rank",
    f"{UTILS}:600-621 validate_tp_prefill_to_dp_decode",
    NXDI,
)
def dp_heads(case: Case) -> Iterator[Trip]:
    layout = _layout(case)
    if layout is None:
        return
    tp, cp, dp, heads = layout
    if dp < 2 or cp > 1:
        return
    decode, prefill = max(heads // (tp // dp), 1), max(heads // tp, 1)
    if decode != prefill:
        message = f"{DP} {dp} at TP {tp}: decode holds {decode} of {heads} KV heads per rank and "
        message += f"prefill {prefill}"
        yield Trip(message, f"set {DP} to at most {max(tp // heads, 1)}", at(case, DP))


@rule(
    "cp-heads",
    Severity.ERROR,
    "Context parallelism has a rank per KV head",
    f"{UTILS}:464, 473, 504, 576, 585 (torch.stack wants equal parts)",
    NXDI,
)
def cp_heads(case: Case) -> Iterator[Trip]:
    layout = _layout(case)
    if layout is None:
        return
    tp, cp, dp, heads = layout
    if cp < 2 or cp == dp or cp % dp:
        return
    group = tp // dp
    if group < heads:
        words = f"TP {tp}" + (f" / {DP} {dp}" if dp > 1 else "")
        message = f"{CP} {cp}: {words} is {group}, less than {heads} KV heads"
        mend = "raise engine.tensor_parallel_size" if dp == 1 else f"lower {DP}"
        yield Trip(message, mend, at(case, CP))
        return
    uneven = [ranks for ranks in (tp // cp, group) if heads * max(ranks // heads, 1) % ranks]
    if uneven:
        message = f"{CP} {cp}: {heads} KV heads do not spread evenly over {uneven[0]} ranks"
        yield Trip(message, f"choose a {CP} that leaves a power of two", at(case, CP))
        return
    there, needed = max(tp // cp // heads, 1) * cp, max(group // heads, 1) * dp
    if dp > 1 and there < needed:
        message = f"{CP} {cp} makes {there} copies of each KV head and {DP} {dp} needs {needed}"
        yield Trip(message, f"raise {CP}, or lower {DP}", at(case, CP))


@rule(
    "flash-decoding",
    Severity.ERROR,
    "Flash decoding has whole groups of ranks per KV head",
    "modules/flashdecode/utils.py:21 calculate_num_cores_per_group; "
    "modules/attention/attention_base.py:1485 (needs replicated KV heads)",
    NXDI,
)
def flash_decoding(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "flash_decoding_enabled") or case.model is None:
        return
    tp, heads, kv = _tp(case), case.model.heads, case.model.kv_heads
    path = at(case, "flash_decoding_enabled")
    if kv < 1:
        return
    if min(tp, heads) % kv or tp % kv:
        message = f"flash decoding: {kv} KV heads do not divide TP {tp} and {heads} heads"
        mend = f"set a tensor_parallel_size that is a multiple of {kv}, or remove it"
        yield Trip(message, mend, path)
    elif flag(case.effective, "is_block_kv_layout"):
        message = "flash decoding is made for a contiguous cache"
        mend = "set engine.enable_prefix_caching: false"
        yield Trip(message, mend, path, Severity.WARNING)


@rule(
    "moe-degrees",
    Severity.ERROR,
    "The degrees of the experts make up TP",
    "aws-neuron-sdk Qwen3-MoE tutorial; modules/moe_v2.py initialize_moe_process_group",
    NXDI,
)
def moe_degrees(case: Case) -> Iterator[Trip]:
    ep, moe_tp, tp = _degree(case, "moe_ep_degree"), _degree(case, "moe_tp_degree"), _tp(case)
    if not experts(case) or ep < 2:
        return
    if ep * moe_tp != tp:
        message = f"moe_tp_degree {moe_tp} x moe_ep_degree {ep} is {ep * moe_tp}, not TP {tp}"
        mend = f"set moe_tp_degree: {tp // ep}" if tp % ep == 0 else "choose divisors of TP"
        yield Trip(message, mend, at(case, "moe_ep_degree"))
    elif case.model and case.model.experts and case.model.experts % ep:
        message = f"moe_ep_degree {ep} does not divide {case.model.experts} experts"
        yield Trip(message, "choose a divisor", at(case, "moe_ep_degree"))


@rule(
    "moe-hybrid",
    Severity.ERROR,
    "The degrees of hybrid sharding make up TP",
    "modules/moe_v2.py initialize_moe_process_group",
    NXDI,
)
def moe_hybrid(case: Case) -> Iterator[Trip]:
    if "hybrid_sharding_config" not in given(case) or not experts(case):
        return
    config, tp = mapping(given(case), "hybrid_sharding_config"), _tp(case)
    for stage in ("cte", "tkg"):
        names = (f"moe_{stage}_tp_degree", f"moe_{stage}_ep_degree")
        degrees = [whole(config.get(name, 1)) or 1 for name in names]
        if config and degrees[0] * degrees[1] != tp:
            message = f"{names[0]} {degrees[0]} x {names[1]} {degrees[1]} is not TP {tp}"
            yield Trip(message, "make the product TP", at(case, "hybrid_sharding_config"))


@rule(
    "expert-parallel",
    Severity.WARNING,
    "Expert parallelism is NxDI's own",
    f"{LOADER} (enable_expert_parallel is not read); vLLM config/model.py "
    "_verify_with_expert_parallelism (refuses a dense model)",
    NXDI,
)
def expert_parallel(case: Case) -> Iterator[Trip]:
    if not case.engine("enable_expert_parallel") or case.model is None:
        return
    path = "engine.enable_expert_parallel"
    if not experts(case):
        message = f"enable_expert_parallel with {model_type(case)}, which has no experts"
        yield Trip(message, "remove it", path, Severity.ERROR)
    else:
        message = "NxDI does not read enable_expert_parallel"
        mend = "set moe_ep_degree and moe_tp_degree in override_neuron_config"
        yield Trip(message, mend, path)


@rule(
    "context-parallel-argument",
    Severity.ERROR,
    "Context parallelism is NxDI's own",
    f"{LOADER} (vLLM's context parallel sizes are not read)",
    NXDI,
)
def context_parallel_argument(case: Case) -> Iterator[Trip]:
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        size = whole(case.engine(name, 1))
        if size is not None and size > 1:
            message = f"{name} is {size}, which NxDI has not"
            yield Trip(message, f"remove it; set {CP}, or backend: neuron", f"engine.{name}")


@rule(
    "kv-transfer",
    Severity.ERROR,
    "Prefill and decode run in one engine",
    "aws-neuron-sdk vllm-user-guide-v1.rst, known issue 5; the plugin's hooks are not documented",
    NXDI,
)
def kv_transfer(case: Case) -> Iterator[Trip]:
    if case.engine("kv_transfer_config") is not None:
        message = "kv_transfer_config: nxdi does not split prefill and decode"
        yield Trip(message, "set backend: neuron", "engine.kv_transfer_config")


@rule(
    "runner-generate",
    Severity.ERROR,
    "NxDI's plugin generates text",
    "vllm-neuron worker/neuron_worker.py get_supported_tasks",
    NXDI,
)
def runner_generate(case: Case) -> Iterator[Trip]:
    runner, convert = case.engine("runner"), case.engine("convert")
    pooling = runner == "pooling" or convert in ("embed", "classify", "reward")
    if pooling:
        message = "the plugin for NxDI generates text only, no embeddings"
        path = "engine.runner" if runner == "pooling" else "engine.convert"
        yield Trip(message, "set backend: neuron", path)
    if case.engine("enable_prompt_embeds"):
        message = "the plugin for NxDI takes token ids only"
        yield Trip(message, "remove it, or set backend: neuron", "engine.enable_prompt_embeds")
