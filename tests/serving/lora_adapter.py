"""A LoRA adapter for the demo model, of random numbers: it is there to answer differently."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import serve_app

CONFIG = Path(serve_app.__file__).parent / "demo_model/config.json"
RANK = 8
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
SIZE = 0.1
"""Standard deviation of both factors. With `lora_alpha` of twice the rank, an adapter then changes
weights by as much as they are."""


def write_adapter(directory: Path, seed: int) -> Path:
    """Write an adapter in peft's form; the same seed gives the same weights."""
    directory.mkdir(parents=True)
    model = json.loads(CONFIG.read_text())
    hidden, head = model["hidden_size"], model["head_dim"]
    heads, kv_heads = model["num_attention_heads"] * head, model["num_key_value_heads"] * head
    shapes = {  # inputs, outputs
        "q_proj": (hidden, heads),
        "k_proj": (hidden, kv_heads),
        "v_proj": (hidden, kv_heads),
        "o_proj": (heads, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(model["num_hidden_layers"]):
        for module in MODULES:
            inputs, outputs = shapes[module]
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for factor, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                made = torch.randn(shape, generator=generator) * SIZE
                tensors[f"{name}.lora_{factor}.weight"] = made.to(torch.bfloat16)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(MODULES),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
