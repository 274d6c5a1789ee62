"""Rules about the keys of NxDI's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config import Severity
from serve_app.preflight.case import RULES, Case
from serve_app.preflight.rules import keys, parallelism, quantization  # noqa: F401
from tests.unit.rule_cases import build, rule_tests, trips

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
IMAGE = {"architectures": ("Llama4ForConditionalGeneration",), "model_type": "llama4"}
MOE = "Qwen/Qwen3-235B-A22B"


def extra(**keys: Any) -> dict[str, Any]:
    return {"engine": {"additional_config": keys}}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("additional-config-shape", {"engine": {"additional_config": "{}"}}, [E]),
    ("additional-config-shape", extra(override_neuron_config="{}"), [E]),
    ("additional-config-key", extra(**{"override-neuron-config": {"fused_qkv": True}}), [E]),
    ("additional-config-key", extra(**{"max-prompt-length": 1024}), [E]),
    ("additional-config-key", extra(neuron_config={"num_seqs_buckets": [8]}), [E]),
    ("additional-config-key", extra(override_neuron_confg={"fused_qkv": True}), [E]),
    ("additional-config-key", extra(fused_qkv=True), [W]),
    ("neuron-key-hyphen", {"neuron": {"fused-qkv": True}}, [E]),
    ("neuron-key-unknown", {"neuron": {"scratch_pad_size": 1024}}, [W]),
    ("neuron-key-unknown", {"neuron": {"kv_cache_tiling": False}}, [W]),
    ("neuron-key-unknown", {"neuron": {"max_prompt_length": 1024}}, [W]),
    ("neuron-key-unknown", {"neuron": {"num_batched_tokens_buckets": [1024]}}, [W]),
    ("neuron-key-unknown", {"neuron": {"moe_ep_degree": 2}}, [W]),
    ("neuron-key-unknown", {"neuron": {"lora_ckpt_json": "/x"}}, [W]),
    ("neuron-key-unknown", {"neuron": {"global_topk": 64}}, [W]),
    ("neuron-key-unknown", {"neuron": {"text_neuron_config": {"fused_qkv": True}}}, [E]),
    (
        "neuron-key-unknown",
        {"neuron": {"text_neuron_config": {"sequence_parallel": True}}, "facts": IMAGE},
        [W],
    ),
    ("neuron-key-unknown", {"neuron": {"disable_argmax_kernel": True}, "sdk": "2.27"}, [W]),
    ("neuron-key-nested", {"neuron": {"on_device_sampling_config": {"topk": 1}}}, [W]),
    ("neuron-key-nested", {"neuron": {"lora_config": {"rank": 1}}}, [E]),
    ("neuron-key-kind", {"neuron": {"tp_degree": "8"}}, [E]),
    ("neuron-key-kind", {"neuron": {"fused_qkv": "true"}}, [E]),
    ("neuron-key-kind", {"neuron": {"seq_len": None}}, [E]),
    ("neuron-key-kind", {"neuron": {"context_encoding_buckets": 128}}, [E]),
    ("neuron-key-kind", {"neuron": {"context_encoding_buckets": [128, "256"]}}, [E]),
    ("neuron-key-kind", {"neuron": {"on_device_sampling_config": True}}, [E]),
    ("neuron-key-kind", {"neuron": {"on_device_sampling_config": {"top_k": "20"}}}, [E]),
    ("neuron-key-kind", {"neuron": {"torch_dtype": "bf16"}}, [E]),
    ("neuron-key-choice", {"neuron": {"cast_type": "declared"}}, [E]),
    ("neuron-key-choice", {"neuron": {"ep_dispatch_cc_option": "AG"}}, [E]),
    ("attention-dtype", {"neuron": {"attention_dtype": "float32"}}, [E]),
    ("image-model-keys", {"neuron": {"fused_qkv": True}, "facts": IMAGE}, [E]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("additional-config-shape", extra(override_neuron_config={}, max_prompt_length=1024)),
    ("additional-config-key", extra(override_neuron_config={}, max_prompt_length=1024)),
    ("neuron-key-hyphen", {"neuron": {"fused_qkv": True, "x-y": 1}}),
    ("neuron-key-unknown", {"neuron": {"fused-qkv": True, "scratchpad_page_size": 1024}}),
    ("neuron-key-unknown", {"neuron": {"moe_ep_degree": 2, "router_config": {}}, "model": MOE}),
    ("neuron-key-unknown", {"neuron": {"moe_ep_degree": 2}, "model": "who/knows"}),
    ("neuron-key-unknown", {"neuron": {"disable_argmax_kernel": True}, "sdk": "2.28"}),
    (
        "neuron-key-unknown",
        {"neuron": {"lora_ckpt_json": "/x"}, "engine": {"enable_lora": True}},
    ),
    (
        "neuron-key-unknown",
        {"neuron": {"text_neuron_config": {}, "vision_neuron_config": {}}, "facts": IMAGE},
    ),
    ("neuron-key-nested", {"neuron": {"on_device_sampling_config": {"top_k": 1}}}),
    ("neuron-key-kind", {"neuron": {"fused_qkv": None, "attn_kernel_enabled": None}}),
    ("neuron-key-kind", {"neuron": {"token_generation_batches": 4, "quantize_clamp_bound": 1}}),
    ("neuron-key-kind", {"neuron": {"on_device_sampling_config": None}}),
    ("neuron-key-choice", {"neuron": {"cast_type": "as-declared", "padding_side": "right"}}),
    ("attention-dtype", {"neuron": {"attention_dtype": "bfloat16"}}),
    (
        "attention-dtype",
        {"neuron": {"attention_dtype": "float32", "cast_type": "as-declared"}},
    ),
    ("image-model-keys", {"neuron": {"text_neuron_config": {"fused_qkv": True}}, "facts": IMAGE}),
    ("image-model-keys", {"neuron": {"fused_qkv": True}}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(keys, TRIP, CLEAN)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("mode_mask_padded_tokens", "moe_mask_padded_tokens"),
        ("sequence_parallel_enable", "sequence_parallel_enabled"),
        ("token_generation_bucket", "token_generation_buckets"),
    ],
)
def test_a_misspelt_key_names_the_right_one(key: str, words: str) -> None:
    [trip] = trips("neuron-key-unknown", build(neuron={key: 1}, model=MOE))
    assert words in trip.mend


def test_the_path_of_a_nested_key() -> None:
    made = build(neuron={"text_neuron_config": {"tp_degree": "x"}}, facts=IMAGE)
    [trip] = trips("neuron-key-kind", made)
    assert trip.path.endswith("override_neuron_config.text_neuron_config.tp_degree")


ODD: list[Any] = [None, True, -1, 0, 1.5, "x", [], [0], ["x"], {}, {"a": 1}, [[1, 2]], 10**9]


@pytest.mark.parametrize("value", ODD)
def test_no_rule_raises_on_odd_values(value: Any) -> None:
    every = {**keys.keys("neuron", "moe", "vision", "plugin")}
    for name in every:
        made = build(neuron={name: value})
        for rule in RULES.values():
            if rule.subject is Case and "nxdi" in rule.backends:
                list(rule.check(made))


@pytest.mark.parametrize("value", [v for v in ODD if isinstance(v, dict | str | int | list)])
def test_no_rule_raises_on_odd_mappings(value: Any) -> None:
    engine = {"additional_config": value, "speculative_config": value, "max_model_len": value}
    for extra in (engine, {**engine, "additional_config": {"override_neuron_config": value}}):
        try:
            made = build(engine=extra)
        except ValueError:  # the schema refuses it
            continue
        for rule in RULES.values():
            if rule.subject is Case and "nxdi" in rule.backends:
                list(rule.check(made))
