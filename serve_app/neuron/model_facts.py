"""What a model's config.json says that a plan or a rule needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class MissingFact(ValueError):
    """config.json lacks a field; the message names it."""


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

    @property
    def parameters(self) -> int:
        """Number of weights, counted from the shape."""
        raise NotImplementedError


def model_facts(config: Mapping[str, Any]) -> ModelFacts:
    """Read a config.json.

    Raises:
        MissingFact: a needed field is not there.
    """
    raise NotImplementedError


def known_models() -> Mapping[str, ModelFacts]:
    """The models of the committed configs by hub name (lower case), so that a check needs no
    network; from `model_facts.json`, which holds the needed fields of their config.json."""
    raise NotImplementedError
