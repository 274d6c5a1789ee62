"""What a model's config.json says that a plan or a rule needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple


class MissingFact(ValueError):
    """config.json lacks a field; the message names it."""


class Weights(NamedTuple):
    """Numbers of weights by kind, whole model. The kinds differ in how they are sharded."""

    embeddings: int
    head: int
    """The output projection, whether or not it is tied to the embeddings."""
    queries: int
    """Q and O projections, with their biases and what else goes with the Q heads."""
    keys_values: int
    """K and V projections, with their biases."""
    dense: int
    """MLPs of layers without experts, and shared experts."""
    experts: int
    routers: int
    norms: int


@dataclass(frozen=True)
class ModelFacts:
    """The shape of a decoder model. Counts are whole-model, before any sharding."""

    model_type: str
    """Of config.json: llama, qwen3, qwen3_moe, ..."""
    architectures: tuple[str, ...]
    layers: int
    hidden_size: int
    intermediate_size: int
    """Of the dense MLP; for a mixture of experts, of one expert if that is all there is."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    max_positions: int
    dtype: str
    """bfloat16, float16 or float32: of the checkpoint."""
    experts: int
    """0 for a dense model."""
    experts_per_token: int
    moe_intermediate_size: int
    sliding_window: int | None
    quantization: Mapping[str, Any] | None
    """`quantization_config` of config.json."""
    qk_norm: bool
    """Q and K are normalized before RoPE (Qwen3, Gemma 3)."""
    attention_bias: bool
    moe_layers: int = 0
    """Layers with experts; the others have a dense MLP."""
    shared_expert_size: int = 0
    """Intermediate size of the experts that every token passes (Llama 4)."""

    @property
    def weights(self) -> Weights:
        """Numbers of weights by kind."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biased = self.attention_bias
        # Qwen2 has a bias on Q, K and V only; the others that have one, on O too.
        o_bias = self.hidden_size if biased and not self.model_type.startswith("qwen2") else 0
        queries = 2 * self.hidden_size * q + (q if biased else 0) + o_bias
        queries += self.heads if self.model_type == "gpt_oss" else 0  # attention sinks
        keys_values = 2 * (self.hidden_size * kv + (kv if biased else 0))
        mlp = 3 * self.hidden_size
        per_expert = mlp * self.moe_intermediate_size
        router = self.hidden_size * self.experts
        if self.model_type == "gpt_oss":  # its experts and routers have biases
            per_expert += 2 * self.moe_intermediate_size + self.hidden_size
            router += self.experts
        dense = (self.layers - self.moe_layers) * mlp * self.intermediate_size
        dense += self.moe_layers * mlp * self.shared_expert_size
        norms = (4 if self.model_type.startswith("gemma") else 2) * self.hidden_size
        norms += 2 * self.head_dim if self.qk_norm else 0
        return Weights(
            embeddings=self.vocab_size * self.hidden_size,
            head=self.vocab_size * self.hidden_size,
            queries=self.layers * queries,
            keys_values=self.layers * keys_values,
            dense=dense,
            experts=self.moe_layers * self.experts * per_expert,
            routers=self.moe_layers * router,
            norms=self.layers * norms + self.hidden_size,
        )

    @property
    def parameters(self) -> int:
        """Number of weights, counted from the shape; of a multimodal model, the text part."""
        return sum(self.weights) - (self.weights.head if self.tied_embeddings else 0)


_NAMES: dict[str, tuple[str, ...]] = {
    # Field of ModelFacts -> the names that config.json gives it. The last ones are DBRX's.
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "d_model"),
    "intermediate_size": ("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "kv_n_heads"),
    "vocab_size": ("vocab_size",),
    "max_positions": ("max_position_embeddings", "max_seq_len"),
    "experts": ("num_local_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": ("num_experts_per_tok", "experts_per_token", "moe_top_k"),
    # Without a size of its own (Mixtral, gpt-oss, Llama 4), an expert has the MLP's.
    "moe_intermediate_size": ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size"),
}

_QK_NORM = ("qwen3", "gemma3")
_ALWAYS_BIASED = ("qwen2",)


def model_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Read a config.json.

    Raises:
        MissingFact: a needed field is not there.
    """
    text = _text_part(config)
    model_type = str(config.get("model_type") or _needed(text, "model_type"))
    heads = _number(text, "heads")
    hidden = _number(text, "hidden_size")
    experts = _number(text, "experts", 0)
    layers = _number(text, "layers")
    # The outer type of a multimodal model names its text model too: qwen3_vl, gemma3.
    has_qk_norm = model_type.startswith(_QK_NORM)
    biased = model_type.startswith(_ALWAYS_BIASED) and "attention_bias" not in text
    llama4 = model_type.startswith("llama4")
    quantization = text.get("quantization_config")
    return ModelFacts(
        model_type=model_type,
        architectures=tuple(str(a) for a in config.get("architectures") or ()),
        layers=layers,
        hidden_size=hidden,
        intermediate_size=_number(text, "intermediate_size"),
        heads=heads,
        kv_heads=_number(text, "kv_heads", heads),
        head_dim=_int(text.get("head_dim")) or hidden // max(heads, 1),
        vocab_size=_number(text, "vocab_size"),
        # Absent, it is transformers' default of the architecture: only Gemma's is true.
        tied_embeddings=bool(text.get("tie_word_embeddings", model_type.startswith("gemma"))),
        max_positions=_number(text, "max_positions"),
        dtype=_dtype(text),
        experts=experts,
        experts_per_token=_number(text, "experts_per_token", 0) if experts else 0,
        moe_intermediate_size=_number(text, "moe_intermediate_size") if experts else 0,
        sliding_window=_sliding_window(text),
        quantization=quantization if isinstance(quantization, Mapping) else None,
        qk_norm=has_qk_norm,
        attention_bias=biased or bool(text.get("attention_bias", False)),
        moe_layers=_moe_layers(text, layers) if experts else 0,
        shared_expert_size=_int(text.get("intermediate_size")) or 0 if llama4 and experts else 0,
    )


@cache
def known_models() -> Mapping[str, ModelFacts]:
    """The models of the committed configs by hub name (lower case), so that a check needs no
    network; from `model_facts.json`, which holds the needed fields of their config.json."""
    text = files("serve_app.neuron").joinpath("model_facts.json").read_text()
    return {
        name.lower(): model_facts(entry["config"])
        for entry in json.loads(text)
        for name in entry["names"]
    }


def _text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model; what only the outer level has stays visible."""
    part = dict(config)
    for nested in ("attn_config", "ffn_config", "text_config"):
        inner = config.get(nested)
        if isinstance(inner, Mapping):
            part |= {name: value for name, value in inner.items() if value is not None}
    return part


def _needed(config: Mapping[str, Any], name: str) -> Any:
    value = config.get(name)
    if value is None:
        raise MissingFact(f"config.json of the model has no {name}")
    return value


def _number(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    for name in _NAMES[field]:
        value = _int(config.get(name))
        if value is not None:
            return value
    if default is None:
        raise MissingFact(f"config.json of the model has no {_NAMES[field][0]}")
    return default


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dtype(config: Mapping[str, Any]) -> str:
    # transformers 5 writes `dtype`, 4 `torch_dtype`; a checkpoint without one is nearly always
    # bfloat16, and that is what Neuron runs.
    value = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return str(value).removeprefix("torch.")


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    # Qwen2 and Qwen3 name a window and switch it off.
    if config.get("use_sliding_window") is False:
        return None
    return _int(config.get("sliding_window"))


def _moe_layers(config: Mapping[str, Any], layers: int) -> int:
    # Qwen3-MoE: every `decoder_sparse_step`-th but for `mlp_only_layers`; Llama 4: every
    # `interleave_moe_layer_step`-th; the others: all.
    step = _int(config.get("decoder_sparse_step"))
    step = step or _int(config.get("interleave_moe_layer_step")) or 1
    dense = config.get("mlp_only_layers")
    dense = dense if isinstance(dense, list) else []
    return sum((layer + 1) % max(step, 1) == 0 and layer not in dense for layer in range(layers))
