"""The catalogues: every number has a source, and the counts agree with what is published."""

from __future__ import annotations

from dataclasses import fields

import pytest

from serve_app.neuron.instances import Instance, instances
from serve_app.neuron.model_facts import MissingFact, known_models, model_facts
from serve_app.neuron.stacks import choose, release, stacks
from serve_app.preflight.rules.stack import known_bad_table

PUBLISHED = {
    # Numbers of weights, as the hub shows them for the checkpoints.
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "nvidia/Llama-3.3-70B-Instruct-FP8": 70_553_706_496,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
}

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("instance", instances().values(), ids=lambda i: i.name)
def test_every_number_of_an_instance_has_a_source(instance: Instance) -> None:
    own = {"name", "family", "verified", "sources"}
    assert {field.name for field in fields(Instance)} - own <= instance.sources.keys()


@pytest.mark.parametrize("instance", instances().values(), ids=lambda i: i.name)
def test_what_an_instance_says_is_consistent(instance: Instance) -> None:
    assert instance.cores(instance.default_lnc) == instance.devices * instance.cores_per_device(
        instance.default_lnc
    )
    assert instance.device_counts[0] == 1
    assert instance.device_counts[-1] == instance.devices
    if instance.tp_degrees is not None:
        assert max(instance.tp_degrees) <= instance.cores(instance.default_lnc)


@pytest.mark.parametrize(
    ("name", "cores", "gib"),
    [
        ("inf2.xlarge", 2, 16),
        ("inf2.24xlarge", 12, 16),
        ("inf2.48xlarge", 24, 16),
        ("trn1.32xlarge", 32, 16),
        ("trn2.3xlarge", 4, 24),
        ("trn2.48xlarge", 64, 24),
        ("trn3", 64, 36),
        ("trn3-gen2", 16, 36),
    ],
)
def test_logical_cores_and_their_memory(name: str, cores: int, gib: int) -> None:
    instance = instances()[name]
    assert instance.cores(instance.default_lnc) == cores
    assert instance.hbm_gib_per_core(instance.default_lnc) == gib


def test_what_no_source_of_aws_gives_is_marked() -> None:
    unverified = {name for name, instance in instances().items() if not instance.verified}
    assert unverified == {"trn2.3xlarge", "trn3", "trn3-gen2"}
    assert instances()["trn2.3xlarge"].host_gib is None


def test_stacks_are_newest_first() -> None:
    for backend in ("nxdi", "neuron"):
        versions = [release(stack.sdk) for stack in stacks() if stack.backend == backend]
        assert versions == sorted(versions, reverse=True)
    assert all(f"sdk{stack.sdk}-" in stack.image and stack.source for stack in stacks())


@pytest.mark.parametrize(
    ("family", "sdk", "vllm"),
    [("inf2", "2.28.0", "0.13"), ("trn1n", "2.28.0", "0.13"), ("trn2", "2.31.1", "0.16")],
)
def test_the_newest_nxdi_of_a_family(family: str, sdk: str, vllm: str) -> None:
    stack = choose("nxdi", family)
    assert stack is not None
    assert (stack.sdk, stack.vllm) == (sdk, vllm)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_weights_are_counted_exactly(name: str, count: int) -> None:
    assert known_models()[name.lower()].parameters == count


def test_missing_facts_are_named() -> None:
    for field in ("hidden_size", "num_hidden_layers", "vocab_size", "model_type"):
        config = {name: value for name, value in LLAMA.items() if name != field}
        with pytest.raises(MissingFact, match=field):
            model_facts(config)


def test_what_config_json_may_leave_out() -> None:
    facts = model_facts({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    assert (facts.kv_heads, facts.head_dim, facts.dtype) == (4, 16, "bfloat16")
    assert (facts.experts, facts.moe_layers, facts.tied_embeddings) == (0, 0, False)
    assert model_facts({**LLAMA, "dtype": "float16"}).dtype == "float16"
    assert model_facts({**LLAMA, "model_type": "gemma3_text"}).tied_embeddings


def test_the_text_part_of_a_multimodal_model() -> None:
    outer = {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {**LLAMA, "model_type": "qwen3_vl_text", "architectures": None},
        "tie_word_embeddings": True,
    }
    facts = model_facts(outer)
    assert (facts.model_type, facts.layers, facts.qk_norm) == ("qwen3_vl", 2, True)
    assert facts.architectures == ("Qwen3VLForConditionalGeneration",)
    assert facts.tied_embeddings


def test_layers_without_experts() -> None:
    moe = {**LLAMA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    moe |= {"model_type": "qwen3_moe", "num_hidden_layers": 6}
    assert model_facts(moe).moe_layers == 6
    assert model_facts({**moe, "decoder_sparse_step": 2}).moe_layers == 3
    assert model_facts({**moe, "mlp_only_layers": [0, 5]}).moe_layers == 4
    llama4 = {**LLAMA, "num_local_experts": 16, "intermediate_size_mlp": 256}
    facts = model_facts({**llama4, "model_type": "llama4", "interleave_moe_layer_step": 2})
    assert facts.moe_layers == 1
    assert facts.intermediate_size == 256
    assert (facts.moe_intermediate_size, facts.shared_expert_size) == (128, 128)


def test_a_window_that_is_switched_off_is_none() -> None:
    assert model_facts({**LLAMA, "sliding_window": 64}).sliding_window == 64
    off = {**LLAMA, "sliding_window": 64, "use_sliding_window": False}
    assert model_facts(off).sliding_window is None


def test_known_bad_entries_name_fields_of_models() -> None:
    facts = model_facts(LLAMA)
    families = {instance.family for instance in instances().values()}
    for entry in known_bad_table():
        assert all(hasattr(facts, field) for field in entry["model"])
        assert set(entry["families"]) <= families
        assert entry["link"]
        assert release(entry["sdk"][0]) <= release(entry["sdk"][1])
