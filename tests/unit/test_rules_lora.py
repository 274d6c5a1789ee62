"""Rules about LoRA on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import lora as MODULE  # noqa: N812
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
LLAMA4 = {"architectures": ("Llama4ForConditionalGeneration",), "model_type": "llama4"}
JSON = {"lora_ckpt_json": "/adapters.json"}


def lora(neuron: dict[str, Any] | None = JSON, **engine: Any) -> dict[str, Any]:
    return {"engine": {"enable_lora": True, **engine}, "neuron": neuron}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("lora-override", lora(None), [E]),
    ("lora-override", lora(None, additional_config={"max_prompt_length": 1024}), [E]),
    ("lora-modules", lora({}), [E]),
    ("lora-modules", {**lora({}), "artifacts": {"path": "/a"}}, [W]),
    ("lora-count", lora(max_loras=4, max_cpu_loras=2), [E]),
    ("lora-count", lora(max_loras=0), [E]),
    ("lora-model", {**lora(), "model": "Qwen/Qwen3-30B-A3B"}, [E]),
    ("lora-model", {**lora(), "facts": LLAMA4}, [E]),
    ("lora-config", {"neuron": {"lora_config": {"max_loras": 2}}}, [E]),
    ("lora-config", lora({"lora_config": {"max_loras": 2}}), [W]),
    ("lora-base-model", lora(), [W]),
    ("lora-unused", {"engine": {"lora_modules": ["a=/a"]}}, [W]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("lora-override", lora({})),
    ("lora-override", {}),
    ("lora-modules", lora()),
    ("lora-modules", lora({"target_modules": ["q_proj"]})),
    ("lora-modules", lora(None)),
    ("lora-count", lora(max_loras=4, max_cpu_loras=4)),
    ("lora-count", lora(max_loras=4, max_cpu_loras=0)),
    ("lora-count", {"engine": {"max_loras": 4, "max_cpu_loras": 2}}),
    ("lora-model", lora()),
    ("lora-model", {"model": "Qwen/Qwen3-30B-A3B"}),
    ("lora-config", {"neuron": {"lora_config": None}}),
    ("lora-base-model", {}),
    ("lora-unused", lora(lora_modules=["a=/a"])),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(MODULE, TRIP, CLEAN)
