"""Rules about speculative decoding on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import speculation as MODULE  # noqa: N812
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
ON = {"enable_prefix_caching": True, "block_size": 32}
EAGLE3 = {"enable_eagle_speculation": True, "is_eagle3": True}
LLAMA4 = {"architectures": ("Llama4ForConditionalGeneration",), "model_type": "llama4"}


def spec(
    neuron: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **keys: Any
) -> dict[str, Any]:
    config = {"method": "eagle", "model": "/d", "num_speculative_tokens": 5, **keys}
    config = {name: value for name, value in config.items() if value is not None}
    return {"engine": {"speculative_config": config, **(engine or {})}, "neuron": neuron}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("speculation-method", spec(method=None), [E]),
    ("speculation-method", spec(method="ngram"), [E]),
    ("speculation-method", spec(method="medusa"), [E]),
    ("speculation-method", {**spec(method="draft_model"), "sdk": "2.28"}, [E]),
    ("speculation-method", spec(method="draft_model"), [W]),
    ("speculation-shape", spec(num_speculative_tokens=0), [E]),
    ("speculation-shape", spec(num_speculative_tokens=None, model=None), [E, E]),
    ("speculation-eagle3", spec(method="eagle3"), [E]),
    ("speculation-eagle3", spec({"is_eagle3": True}, method="eagle3"), [E]),
    ("speculation-eagle3", spec(method=None, model="x/EAGLE3-Llama"), [E]),
    ("speculation-eagle-name", spec({"enable_eagle_speculation": False}), [E]),
    ("speculation-prefix-caching", spec(EAGLE3, ON, method="eagle3"), [E]),
    ("speculation-prefix-caching", spec({**EAGLE3, "token_tree_config": {"0": [1]}}), [E]),
    ("speculation-sampling", spec({"on_device_sampling_config": None}), [E]),
    ("speculation-unasked", {"neuron": {"enable_fused_speculation": True}}, [E]),
    ("speculation-unasked", {"neuron": {"enable_eagle_speculation": True}}, [E]),
    ("speculation-unasked", {"neuron": {"speculation_length": 5}}, [E]),
    ("speculation-unasked", {"neuron": {"is_medusa": True}}, [E]),
    ("speculation-length", spec({"speculation_length": 7}), [E]),
    ("speculation-medusa", spec({"is_medusa": True}), [E]),
    ("speculation-model", {**spec(), "facts": LLAMA4}, [E]),
    ("draft-overrides", {"neuron": {"draft_overrides": {"fused_qkv": False}}}, [W]),
    ("draft-dtype", spec({"draft_overrides": {"torch_dtype": "float16"}}), [E]),
    ("full-model-shuffled", {"neuron": {"is_full_model_shuffled": True}}, [E]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("speculation-method", spec()),
    ("speculation-method", spec(method="eagle3")),
    ("speculation-method", spec(method=None, model="yuhuili/EAGLE-LLaMA3-Instruct-8B")),
    ("speculation-method", {}),
    ("speculation-shape", spec(num_speculative_tokens=1)),
    ("speculation-eagle3", spec(EAGLE3, method="eagle3")),
    ("speculation-eagle3", spec()),
    ("speculation-eagle-name", spec()),
    ("speculation-eagle-name", spec({"enable_eagle_speculation": True})),
    ("speculation-prefix-caching", spec(engine=ON)),
    ("speculation-prefix-caching", spec(EAGLE3, method="eagle3")),
    ("speculation-sampling", spec()),
    ("speculation-sampling", {"neuron": {"on_device_sampling_config": None}}),
    ("speculation-unasked", spec({"enable_fused_speculation": True})),
    ("speculation-unasked", {"neuron": {"speculation_length": 0}}),
    ("speculation-length", spec({"speculation_length": 5})),
    ("speculation-medusa", spec({"is_medusa": False})),
    ("speculation-model", spec()),
    ("speculation-model", {"facts": LLAMA4}),
    ("draft-overrides", spec({"draft_overrides": {"fused_qkv": False}})),
    ("draft-dtype", spec({"draft_overrides": {"torch_dtype": "bfloat16"}})),
    (
        "draft-dtype",
        spec({"draft_overrides": {"torch_dtype": "float16"}, "cast_type": "as-declared"}),
    ),
    (
        "full-model-shuffled",
        {"neuron": {"is_full_model_shuffled": True, "is_mxfp4_compute": True}},
    ),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(MODULE, TRIP, CLEAN)
