"""Device memory of one rank: what a configuration will need, before it runs.

Sizes are bytes unless a name says GiB. A rank is one logical core. What is sharded and how was read
from NxDI's source (commit ef2731e): `modules/attention/gqa.py`, `modules/kvcache/*`,
`models/*/modeling_*.py`; for the native plugin from aws-neuron-sdk
`vllm-neuron/docs/design/parallelism/tensor_parallelism.md` and
`vllm-neuron/docs/design/vllm/determine_available_memory_design.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from serve_app.neuron.instances import Instance
from serve_app.neuron.model_facts import ModelFacts

GIB = 2**30

KV_CAP = 0.30
"""Share of the native plugin's memory budget that its KV cache takes at most
(VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION)."""

MXFP4 = 17 / 32
"""Bytes of a weight in MXFP4: 4 bits, and 8 bits of scale per 32 weights."""

_ROUTER_BYTES = 4
"""Routers stay float32 for accuracy (qwen3_moe/modeling_qwen3_moe.py) and are replicated."""

_SLOT = 128
"""Kernels round the cache of a sliding window up to a multiple of this many tokens."""


class WeightBytes(NamedTuple):
    """Bytes per weight."""

    linear: float
    """Attention and dense MLPs."""
    experts: float
    rest: float
    """Embeddings, output projection, norms: these are not quantized."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank (= one logical core), and what there is."""

    weights: int
    """Sharded weights plus what is replicated on every rank (norms, routers)."""
    kv_cache: int
    workspace: int
    """Activations and scratch of the largest bucket: an estimate."""
    available: int
    detail: tuple[str, ...]
    """How each number comes about, one sentence each."""

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.workspace


def padded_heads(heads: int, tp: int) -> int:
    """Q heads after NxDI pads them to a multiple of the tensor-parallel degree."""
    return -(-heads // tp) * tp


def kv_heads_per_rank(heads: int, kv_heads: int, tp: int) -> int:
    """KV heads that each rank holds, as NxDI shards them (padding, replication, MHA)."""
    tp, kv_heads = max(tp, 1), max(kv_heads, 1)
    per_rank = padded_heads(heads, tp) // tp
    if heads == kv_heads:
        return per_rank
    if kv_heads >= tp and kv_heads % tp == 0:
        return kv_heads // tp
    if tp % kv_heads == 0:
        return 1
    return per_rank  # every Q head gets a KV head of its own: CONVERT_TO_MHA


def native_kv_heads_per_rank(kv_heads: int, tp: int) -> int:
    """KV heads that each rank of the native plugin holds: sharded, and below one replicated."""
    return max(1, kv_heads // max(tp, 1))


def kv_cache_bytes(
    model: ModelFacts,
    *,
    kv_heads: int,
    tokens: int,
    sequences: int = 0,
    kv_bytes: float = 2,
    window: int | None = None,
    windowed_layers: int = 0,
) -> int:
    """KV cache of one rank.

    Args:
        kv_heads: KV heads on the rank.
        tokens: Slots of a layer, over all sequences.
        sequences: Sequences of the layers with a sliding window.
        kv_bytes: Bytes per element of the cache.
        window: Slots per sequence of a layer with a sliding window.
        windowed_layers: How many layers have one.
    """
    slots = (model.layers - windowed_layers) * tokens
    slots += windowed_layers * sequences * (window or 0)
    return int(2 * kv_heads * model.head_dim * kv_bytes * slots)


def weight_bytes_per_rank(
    model: ModelFacts,
    bytes_per: WeightBytes,
    tp: int,
    attention_tps: tuple[int, ...],
    *,
    expert_ranks: int | None = None,
    native: bool = False,
) -> int:
    """Weights of one rank.

    Args:
        attention_tps: The degrees that attention is sharded by. NxDI holds its weights once for
            prefill and once for decode when those differ (attention_base.py: cte_qkv_proj,
            tkg_qkv_proj).
        expert_ranks: Ranks that share out whole experts; default: each expert is cut into `tp`.
        native: Count KV heads as the native plugin does.
    """
    count = model.weights
    attention = 0.0
    for degree in attention_tps:
        if native:
            kv_heads = native_kv_heads_per_rank(model.kv_heads, degree)
        else:
            kv_heads = kv_heads_per_rank(model.heads, model.kv_heads, degree)
        attention += count.queries / max(model.heads, 1) * -(-model.heads // degree)
        attention += count.keys_values / max(model.kv_heads, 1) * kv_heads
    if expert_ranks is None:
        experts = _share(count.experts, model.moe_intermediate_size, tp)
    else:
        experts = count.experts / expert_ranks
    sharded = (
        attention * bytes_per.linear
        + _share(count.dense, model.intermediate_size, tp) * bytes_per.linear
        + experts * bytes_per.experts
        # Embeddings and output projection are sharded, and held twice even when tied.
        + (count.embeddings + count.head) / tp * bytes_per.rest
    )
    return int(sharded + count.routers * _ROUTER_BYTES + count.norms * bytes_per.rest)


def estimate(
    *,
    model: ModelFacts,
    instance: Instance,
    lnc: int,
    tp: int,
    batch: int,
    length: int,
    weight_bytes: WeightBytes,
    kv_bytes: float,
    blocks: int | None = None,
    block_size: int | None = None,
    prompt: int | None = None,
    attention_dp: int = 1,
    context_parallel: int = 1,
    sequence_parallel: bool = False,
    spare_lines: int = 0,
    expert_ranks: int | None = None,
    utilization: float | None = None,
    kv_cap: float = KV_CAP,
) -> Memory:
    """What one rank will hold.

    Args:
        lnc: Logical NeuronCore configuration, 1 or 2: how many physical cores a rank has.
        batch: Sequences at a time (max_num_seqs).
        length: Tokens per sequence, prompt and answer (max_model_len).
        kv_bytes: Bytes per element of the KV cache.
        blocks: Blocks actually allocated, when the KV cache is in blocks; the count includes
            reserved ones.
        block_size: Tokens per block.
        prompt: Tokens of the largest prefill bucket; default `length`.
        attention_dp: NxDI's attention_dp_degree: groups of ranks that share out the sequences.
        context_parallel: NxDI's cp_degree.
        spare_lines: Further sequences that the cache has room for (kv_cache_padding_size).
        expert_ranks: Ranks that share out whole experts (native: ep_degree over several engines).
        utilization: gpu_memory_utilization. Given, the back end is the native plugin, which sizes
            its KV cache by what is left.
        kv_cap: The native plugin's cap of the KV cache, as a share of its budget.
    """
    native = utilization is not None
    available = int(instance.hbm_gib_per_core(lnc) * GIB)
    decode_tp = max(tp // attention_dp, 1)
    prefill_tp = max(tp // context_parallel, 1)
    same = context_parallel == attention_dp
    degrees = (decode_tp,) if same else (prefill_tp, decode_tp)
    weights = weight_bytes_per_rank(
        model, weight_bytes, tp, degrees, expert_ranks=expert_ranks, native=native
    )
    detail = [
        f"weights: {model.parameters / 1e9:.2f} billion, sharded by {tp}, "
        f"norms and routers on every rank: {weights / GIB:.1f} GiB"
    ]
    if native:
        kv_heads = native_kv_heads_per_rank(model.kv_heads, tp)
    else:
        kv_heads = kv_heads_per_rank(model.heads, model.kv_heads, decode_tp)
    if blocks is not None and block_size is not None:
        kv_cache = kv_cache_bytes(
            model, kv_heads=kv_heads, tokens=blocks * block_size, kv_bytes=kv_bytes
        )
        how = f"{blocks} blocks of {block_size} tokens"
    elif utilization is not None:
        budget = int(available * utilization)
        kv_cache = max(min(budget - weights, int(budget * kv_cap)), 0)
        how = f"what {utilization:g} of the memory leaves, at most {kv_cap:g} of that"
    else:
        lines = -(-batch // attention_dp) + spare_lines
        window, windowed = _windows(model, length)
        kv_cache = kv_cache_bytes(
            model,
            kv_heads=kv_heads,
            tokens=lines * length,
            sequences=lines,
            kv_bytes=kv_bytes,
            window=window,
            windowed_layers=windowed,
        )
        how = f"{lines} x {length} tokens"
        if windowed:
            how += f", {windowed} of {model.layers} layers keep {window} tokens"
    detail.append(
        f"KV cache: {how}, {kv_heads} of {model.kv_heads} KV heads: {kv_cache / GIB:.1f} GiB"
    )
    workspace = _workspace(
        model, tp, batch, length, prompt or length, weight_bytes.rest, sequence_parallel or native
    )
    detail.append(
        f"workspace: activations of {prompt or length} prompt tokens or of a batch of {batch}, "
        f"an estimate: {workspace / GIB:.1f} GiB"
    )
    return Memory(weights, kv_cache, workspace, available, tuple(detail))


def _share(count: int, intermediate: int, tp: int) -> float:
    """An MLP's weights on one rank: its intermediate size is padded to a multiple of `tp`."""
    return count / intermediate * -(-intermediate // tp) if intermediate else 0.0


def _windows(model: ModelFacts, length: int) -> tuple[int, int]:
    """Slots per sequence of layers with a sliding window, and how many such layers there are.

    NxDI: gpt-oss alternates (gpt_oss_kv_cache_manager.py); Llama and Mistral apply the window to
    every layer (kv_cache_manager.py); other models keep every token.
    """
    window = model.sliding_window
    if window is None:
        return 0, 0
    if model.model_type == "gpt_oss":
        return min(((window - 1) // _SLOT + 1) * _SLOT, length), -(-model.layers // 2)
    if model.model_type in ("llama", "mistral"):
        return min(window, length), model.layers
    return 0, 0


def _workspace(
    model: ModelFacts,
    tp: int,
    batch: int,
    length: int,
    prompt: int,
    element: float,
    sequence_parallel: bool,
) -> int:
    """Activations of the greater of prefill (one prompt) and decode (all sequences).

    A rough count: four copies of the hidden state, what one layer computes, the logits. Flash
    attention keeps no score matrix in prefill; decode keeps a row per sequence and head.
    """
    heads = -(-model.heads // tp)
    width = model.intermediate_size
    if model.experts:
        width = max(model.experts_per_token * model.moe_intermediate_size, model.shared_expert_size)
    hidden = 4 * model.hidden_size / (tp if sequence_parallel else 1)
    layer = 3 * heads * model.head_dim + 2 * -(-width // tp)
    prefill = prompt * (hidden + layer) * element
    logits = -(-model.vocab_size // tp) * 4
    decode = batch * ((hidden + layer) * element + heads * length * 4 + 2 * logits)
    return int(max(prefill + logits, decode))
