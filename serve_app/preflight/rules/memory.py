"""Rules about memory: does it fit a rank's HBM, and the host while it loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from serve_app.config import Severity
from serve_app.neuron.memory import (
    GIB,
    KV_CAP,
    MXFP4,
    Memory,
    WeightBytes,
    estimate,
    kv_cache_bytes,
    native_kv_heads_per_rank,
)
from serve_app.neuron.model_facts import ModelFacts, known_models
from serve_app.neuron.native_config import whole
from serve_app.neuron.nxdi_config import length as tokens
from serve_app.preflight.case import BOTH, NATIVE, Case, Trip, rule

_FREE = 0.20
"""Share of the HBM that should stay free for code, scratch and what the estimate leaves out."""

_HOST = 0.8
"""Share of the host's memory that loading may take; the rest is the system's, Ray's and vLLM's."""

_SHARE = 0.92
"""vLLM 0.24's gpu_memory_utilization (config/cache.py), for a value that is none."""

_DTYPES = {"float32": 4, "float": 4}
_FLASH_DECODING_SPARE = 128  # flashdecode/utils.py, EXTRA_RESERVED_SPACE
_SEQUENCE_MASK_SPARE = 128  # kv_cache_manager.py, KV_CACHE_PAD_FOR_SEQ_IDS_MASKING


def memory_of(case: Case) -> Memory | None:
    """What one rank will hold. None: the model, or how long its sequences are, is not known."""
    if case.model is None:
        return None
    model, size = _padded(case, case.model), _degrees(case)
    if size is None:
        return None
    made = _estimate(case, model, weight_bytes(case, model), size)
    draft = _draft(case)
    if draft is None:
        return made
    other = _estimate(case, draft, weight_bytes(case, draft), size)
    native = case.plan.backend == "neuron"  # its KV pool is shared, not doubled
    return Memory(
        made.weights + other.weights,
        made.kv_cache + (0 if native else other.kv_cache),
        max(made.workspace, other.workspace),
        made.available,
        (*made.detail, *(f"draft model, {line}" for line in other.detail)),
    )


def weight_bytes(case: Case, model: ModelFacts) -> WeightBytes:
    """Bytes per weight on the device."""
    dtype = case.engine("dtype", "auto")
    full = float(_DTYPES.get(model.dtype if dtype == "auto" else str(dtype), 2))
    if case.plan.backend == "nxdi":
        linear = 1.0 if case.neuron("quantized") is True else full
        experts = MXFP4 if case.neuron("is_mxfp4_compute") is True else linear
        return WeightBytes(linear, experts, full)
    return _native_weight_bytes(case, model, full)


def _native_weight_bytes(case: Case, model: ModelFacts, full: float) -> WeightBytes:
    overrides = case.engine("hf_overrides")
    described = model.quantization
    if isinstance(overrides, Mapping) and "quantization_config" in overrides:
        given = overrides["quantization_config"]
        described = given if isinstance(given, Mapping) else None
    method = (described or {}).get("quant_method")
    asked = case.neuron("quantization")
    trn3 = case.target.instance.generation >= 3
    if asked == "mxfp8":
        return WeightBytes(33 / 32, 33 / 32, full)
    if method == "modelopt":
        return WeightBytes(1.0, 1.0, full)
    # trn3 takes MXFP4 from the published checkpoint by itself; trn2 runs it in bfloat16
    # (aws-neuron-sdk vllm-neuron/docs/model-recipes/gpt-oss.md).
    mxfp4 = asked == "mxfp4" or (model.model_type == "gpt_oss" and asked is None)
    return WeightBytes(full, MXFP4 if mxfp4 and trn3 else full, full)


def _kv_bytes(case: Case, full: float) -> float:
    if case.plan.backend == "nxdi":
        quantized = case.neuron("kv_cache_quant") is True or case.neuron("kv_quant_config")
        return 1.0 if quantized else full
    kind = case.engine("kv_cache_dtype", "auto")
    return 1.0 if case.neuron("fp8_packed_kv") is True or "fp8" in str(kind) else full


def _padded(case: Case, model: ModelFacts) -> ModelFacts:
    """gpt-oss can be padded to sizes that suit the kernels (modeling_gpt_oss.py)."""
    hidden = whole(case.neuron("padded_hidden_size"))
    intermediate = whole(case.neuron("padded_intermediate_size"))
    if model.model_type != "gpt_oss" or not (hidden or intermediate):
        return model
    return replace(
        model,
        hidden_size=hidden or model.hidden_size,
        moe_intermediate_size=intermediate or model.moe_intermediate_size,
    )


def _draft(case: Case) -> ModelFacts | None:
    """The model that guesses ahead, if it is a known one."""
    speculative = case.engine("speculative_config")
    name = speculative.get("model") if isinstance(speculative, Mapping) else None
    return known_models().get(name.lower()) if isinstance(name, str) else None


def _degrees(case: Case) -> tuple[int, int, int] | None:
    """Tensor-parallel degree, sequences at a time, tokens per sequence."""
    tp = whole(case.engine("tensor_parallel_size", 1))
    # Of one rank; the plan counts all data-parallel ranks.
    batch = whole(case.engine("max_num_seqs")) or whole(case.plan.max_num_seqs)
    length = tokens(case.engine("max_model_len"))
    if length is None and case.model is not None:
        length = case.model.max_positions
    return (tp, batch, length) if tp and batch and length else None


def _estimate(
    case: Case, model: ModelFacts, bytes_per: WeightBytes, size: tuple[int, int, int]
) -> Memory:
    tp, batch, length = size
    if case.plan.backend == "nxdi":
        return _nxdi(case, model, bytes_per, tp, batch, length)
    share = case.engine("gpu_memory_utilization")
    dp = whole(case.engine("data_parallel_size", 1)) or 1
    return estimate(
        model=model,
        instance=case.target.instance,
        lnc=case.target.lnc,
        tp=tp,
        batch=batch,
        length=length,
        weight_bytes=bytes_per,
        kv_bytes=_kv_bytes(case, bytes_per.rest),
        blocks=whole(case.engine("num_gpu_blocks_override")),
        block_size=whole(case.engine("block_size")),
        prompt=min(whole(case.engine("max_num_batched_tokens")) or length, length),
        expert_ranks=tp * dp if case.engine("enable_expert_parallel") is True else None,
        utilization=share if isinstance(share, int | float) and 0 < share <= 1 else _SHARE,
        kv_cap=_number(case, "VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION", KV_CAP),
    )


def _nxdi(
    case: Case, model: ModelFacts, bytes_per: WeightBytes, tp: int, batch: int, length: int
) -> Memory:
    attention_dp = _divisor(tp, whole(case.neuron("attention_dp_degree")))
    batch = (whole(case.neuron("kv_cache_batch_size")) or 0) * attention_dp or batch
    blocks, block_size = _blocks(case)
    if (
        attention_dp > 1
    ):  # it replaces the block layout (model_base.py, init_inference_optimization)
        blocks = None
    prompt = whole(case.neuron("max_context_length"))
    lines = length
    if case.neuron("flash_decoding_enabled") is True:
        group = max(min(tp, model.heads) // max(model.kv_heads, 1), 1)
        lines = -(-length // group) + _FLASH_DECODING_SPARE
    if case.neuron("apply_seq_ids_mask") is True:
        lines += _SEQUENCE_MASK_SPARE
    cascaded = case.neuron("attn_block_tkg_nki_kernel_cascaded_attention") is True
    spare = 1 if attention_dp > 1 and not cascaded else 0  # config.py, kv_cache_padding_size
    return estimate(
        model=model,
        instance=case.target.instance,
        lnc=case.target.lnc,
        tp=tp,
        batch=batch,
        length=lines,
        weight_bytes=bytes_per,
        kv_bytes=_kv_bytes(case, bytes_per.rest),
        blocks=blocks,
        block_size=block_size,
        prompt=min(prompt or length, length),
        attention_dp=attention_dp,
        context_parallel=_divisor(tp, whole(case.neuron("cp_degree"))),
        sequence_parallel=case.neuron("sequence_parallel_enabled") is True,
        spare_lines=(whole(case.neuron("kv_cache_padding_size")) or 0) or spare,
    )


def _divisor(tp: int, degree: int | None) -> int:
    """`degree` where it divides `tp`; that it must is another rule's business."""
    return degree if degree and tp % degree == 0 else 1


def _blocks(case: Case) -> tuple[int | None, int | None]:
    """Blocks that NxDI allocates, with its own spare one, and tokens per block."""
    if case.neuron("is_block_kv_layout") is not True:
        return None, None
    blocks, block_size = whole(case.neuron("pa_num_blocks")), whole(case.neuron("pa_block_size"))
    return (blocks + 1, block_size) if blocks and block_size else (None, None)


def _number(case: Case, variable: str, default: float) -> float:
    """A positive number of the environment; anything else is as if it were not there."""
    try:
        value = float(case.args.env.get(variable, default))
    except ValueError:
        return default
    return value if 0 < value < 1e6 else default


@rule(
    "memory-device",
    Severity.ERROR,
    "Weights and KV cache fit the HBM of a rank",
    "aws-neuron-sdk libraries/nxd-inference/developer_guides/feature-guide.rst, "
    "Tensor-parallelism support, 2",
    BOTH,
)
def memory_device(case: Case) -> Iterator[Trip]:
    memory = memory_of(case)
    if memory is None or memory.weights + memory.kv_cache <= memory.available:
        return
    yield Trip(
        f"one rank needs {_sum(memory)}, and has {memory.available / GIB:.0f} GiB",
        _mend(case, memory),
        "engine.tensor_parallel_size",
    )


# Only for NxDI: the native plugin sizes its KV cache so that a margin stays.
@rule(
    "memory-margin",
    Severity.WARNING,
    "A fifth of a rank's HBM stays free",
    "estimate; code, scratch and collectives take what it leaves out",
)
def memory_margin(case: Case) -> Iterator[Trip]:
    memory = memory_of(case)
    if memory is None or memory.weights + memory.kv_cache > memory.available:
        return
    if memory.total <= memory.available * (1 - _FREE):
        return
    free = max(memory.available - memory.total, 0)
    yield Trip(
        f"one rank needs about {_sum(memory)} and {memory.workspace / GIB:.1f} GiB of workspace: "
        f"{free / GIB:.1f} of {memory.available / GIB:.0f} GiB stay free, "
        f"less than {_FREE:.0%}",
        _mend(case, memory),
        "engine.tensor_parallel_size",
    )


@rule(
    "memory-native-pool",
    Severity.ERROR,
    "The native plugin finds room for its KV cache",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/determine_available_memory_design.md, "
    "Minimum KV guard",
    NATIVE,
)
def memory_native_pool(case: Case) -> Iterator[Trip]:
    memory = memory_of(case)
    if memory is None or whole(case.engine("num_gpu_blocks_override")):
        return
    least = _number(case, "VLLM_NEURON_MIN_KV_BUDGET_GIB", 1.0) * GIB
    if memory.kv_cache >= least or memory.weights + memory.kv_cache > memory.available:
        return
    yield Trip(
        f"{memory.weights / GIB:.1f} GiB of weights leave {memory.kv_cache / GIB:.2f} GiB for the "
        f"KV cache, less than the plugin's {least / GIB:g} GiB",
        "raise tensor_parallel_size or gpu_memory_utilization",
        "engine.gpu_memory_utilization",
    )


@rule(
    "memory-native-length",
    Severity.WARNING,
    "The native KV cache holds every sequence at full length",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/neuron-scheduler.md; vllm "
    "v1/core/kv_cache_utils.py, check_enough_kv_cache_memory",
    NATIVE,
)
def memory_native_length(case: Case) -> Iterator[Trip]:
    memory, size = memory_of(case), _degrees(case)
    if memory is None or case.model is None or size is None or memory.kv_cache == 0:
        return  # nothing left at all: of that the other rules speak
    tp, batch, length = size
    dcp = whole(case.engine("decode_context_parallel_size", 1)) or 1
    one = kv_cache_bytes(
        case.model,
        kv_heads=native_kv_heads_per_rank(case.model.kv_heads, tp),
        tokens=-(-length // dcp),
        sequences=1,
        kv_bytes=_kv_bytes(case, weight_bytes(case, case.model).rest),
        **_windows(case, case.model, length),
    )
    fit = memory.kv_cache // one if one else batch
    if fit >= batch:
        return
    sizes = f"{memory.kv_cache / GIB:.1f} GiB of KV cache, {one / GIB:.2f} GiB a sequence"
    if fit == 0:
        yield Trip(
            f"not one sequence of {length} tokens fits: {sizes}",
            "lower max_model_len or raise tensor_parallel_size",
            "engine.max_model_len",
            Severity.ERROR,
        )
        return
    yield Trip(
        f"the KV cache holds {fit} sequences of {length} tokens, not {batch}: {sizes}",
        f"lower max_num_seqs to {fit}, or max_model_len",
        "engine.max_num_seqs",
    )


def _windows(case: Case, model: ModelFacts, length: int) -> dict[str, int]:
    """Half of gpt-oss's layers keep a window only, when vLLM's hybrid manager is on."""
    hybrid = case.engine("disable_hybrid_kv_cache_manager") is False
    if not hybrid or model.model_type != "gpt_oss" or not model.sliding_window:
        return {}
    return {"window": min(model.sliding_window, length), "windowed_layers": model.layers // 2}


@rule(
    "memory-host",
    Severity.WARNING,
    "The checkpoint fits the host while it is loaded",
    "estimate; aws-neuron-sdk issue 1222 (8B killed on trn1.2xlarge), feature-guide.rst line 31",
    BOTH,
)
def memory_host(case: Case) -> Iterator[Trip]:
    host = case.target.instance.host_gib
    if case.model is None or host is None:
        return
    count = case.model.weights
    bytes_per = weight_bytes(case, case.model)
    checkpoint = (
        (sum(count) - count.experts - count.embeddings - count.head) * bytes_per.linear
        + count.experts * bytes_per.experts
        + (count.embeddings + count.head) * bytes_per.rest
    )
    # NxDI holds the checkpoint and the shards made of it; the native plugin reads slices.
    once = case.plan.backend == "neuron" or case.neuron("save_sharded_checkpoint") is True
    copies = 1 if once else 2
    replicas = min(
        case.args.scaling.most,
        max(case.target.instance.cores(case.target.lnc) // max(case.target.cores, 1), 1),
    )
    replicas = 1 if case.plan.backend == "neuron" else replicas
    needed = checkpoint * copies * replicas
    if needed <= host * GIB * _HOST:
        return
    many = f"{replicas} replicas" if replicas > 1 else "a replica"
    yield Trip(
        f"{many} of {checkpoint / GIB:.1f} GiB of weights may take {needed / GIB:.0f} GiB of host "
        f"memory while loading, and {case.target.instance.name} has {host} GiB",
        "take a larger instance, or compile elsewhere with save_sharded_checkpoint",
        "instance",
    )


def _sum(memory: Memory) -> str:
    total = (memory.weights + memory.kv_cache) / GIB
    parts = f"{memory.weights / GIB:.1f} GiB weights + {memory.kv_cache / GIB:.1f} GiB KV cache"
    return f"{parts} = {total:.1f} GiB"


def _mend(case: Case, memory: Memory) -> str:
    if memory.weights > memory.available * (1 - _FREE):
        return "raise tensor_parallel_size, quantize, or take a larger instance"
    if memory.kv_cache > memory.weights:
        return "lower max_num_seqs or max_model_len"
    return "raise tensor_parallel_size, or lower max_num_seqs or max_model_len"
