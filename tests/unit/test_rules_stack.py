"""Rules about the software: each trips on one configuration, and not on its neighbour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serve_app.config import Severity
from serve_app.preflight.case import Case
from serve_app.preflight.rules import stack
from tests.unit.rule_cases import case, trips

LLAMA_8B = "meta-llama/Meta-Llama-3-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"


def of(architecture: str, **arguments: Any) -> Case:
    """A case of a model with another architecture."""
    made = case(**arguments)
    assert made.model is not None
    return replace(made, model=replace(made.model, architectures=(architecture,)))


@pytest.mark.parametrize(
    ("instance", "backend", "sdk", "fits"),
    [
        ("inf2.8xlarge", "nxdi", None, True),
        ("inf2.8xlarge", "nxdi", "2.28", True),
        ("inf2.8xlarge", "nxdi", "2.29", False),
        ("trn1.32xlarge", "nxdi", "2.31.1", False),
        ("trn2.48xlarge", "nxdi", "2.29", True),
        ("trn2.48xlarge", "nxdi", "2.28", True),
        ("trn3", "nxdi", "2.31", True),
        ("trn3", "neuron", None, True),
        ("trn2u.48xlarge", "neuron", "2.32", True),
        ("inf2.48xlarge", "neuron", None, False),
        ("trn1n.32xlarge", "neuron", None, False),
    ],
)
def test_back_end_and_chip(instance: str, backend: str, sdk: str | None, fits: bool) -> None:
    pinned = {"sdk": sdk} if sdk else None
    made = case(instance, backend, LLAMA_8B, {"tensor_parallel_size": 2}, stack=pinned)
    assert (trips("stack-family", made) == []) is fits


def test_the_last_image_of_inf2_is_named() -> None:
    [trip] = trips("stack-family", case("inf2.8xlarge", model=LLAMA_8B, stack={"sdk": "2.30"}))
    assert "0.13.0-neuronx-py312-sdk2.28.0-ubuntu24.04" in trip.mend


def test_maintenance() -> None:
    assert len(trips("stack-maintenance", case(model=LLAMA_70B))) == 1
    assert trips("stack-maintenance", case(model="Qwen/Qwen2.5-7B-Instruct")) == []
    assert trips("stack-maintenance", case("inf2.8xlarge", model=LLAMA_8B)) == []
    # The native plugin has neither LoRA nor INT8.
    assert trips("stack-maintenance", case(model=LLAMA_8B, engine={"enable_lora": True})) == []
    assert trips("stack-maintenance", case(model=LLAMA_8B, neuron={"quantized": True})) == []


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "llama"),
        ("Qwen2ForCausalLM", "qwen2"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("GptOssForCausalLM", "gpt_oss"),
        ("Llama4ForConditionalGeneration", "llama4"),
        ("LlavaForConditionalGeneration", "pixtral"),
        ("Gemma3ForConditionalGeneration", "gemma3"),
        ("NeuronLlamaForCausalLM", "llama"),
        ("MixtralForCausalLM", "mixtral"),
        ("DbrxForCausalLM", "dbrx"),
        ("Qwen2_5_VLForConditionalGeneration", None),
        ("Qwen2MoeForCausalLM", None),
        ("Phi3ForCausalLM", None),
        ("DeepseekV3ForCausalLM", None),
        ("Qwen3ForSequenceClassification", None),
        ("BertModel", None),
    ],
)
def test_the_loaders_name_of_an_architecture(architecture: str, name: str | None) -> None:
    assert stack.nxdi_model(architecture) == name


def test_models_of_nxdi() -> None:
    assert trips("model-nxdi", case()) == []
    [trip] = trips("model-nxdi", of("Phi3ForCausalLM"))
    assert trip.severity is None
    [trip] = trips("model-nxdi", case(model="mistralai/Mistral-7B-Instruct-v0.3"))
    assert trip.severity is Severity.WARNING


def test_models_that_came_later() -> None:
    gemma = "Gemma3ForConditionalGeneration"
    assert trips("model-nxdi", of(gemma)) == []
    [trip] = trips("model-nxdi", of(gemma, stack={"sdk": "2.28"}))
    assert trip.severity is None
    assert "0.9" in trip.message
    vision = "Qwen2VLForConditionalGeneration"
    assert trips("model-nxdi", of(vision, stack={"sdk": "2.28"})) == []
    assert len(trips("model-nxdi", of(vision, stack={"sdk": "2.27"}))) == 1


def test_overrides_name_the_architecture() -> None:
    engine = {"hf_overrides": {"architectures": ["Phi3ForCausalLM"]}}
    assert len(trips("model-nxdi", case(engine=engine))) == 1
    assert trips("model-nxdi", case(engine={"hf_overrides": {"architectures": []}})) == []


def test_what_vllm_dropped() -> None:
    assert len(trips("model-removed", of("MllamaForConditionalGeneration"))) == 1
    assert trips("model-removed", case()) == []


def test_a_config_without_architectures() -> None:
    made = case()
    assert made.model is not None
    nameless = replace(made, model=replace(made.model, architectures=()))
    assert len(trips("model-architecture", nameless)) == 1
    assert trips("model-architecture", made) == []
    assert trips("model-architecture", replace(made, model=None)) == []


def test_models_of_the_native_plugin() -> None:
    assert trips("model-native", case(backend="neuron", model="openai/gpt-oss-20b")) == []
    [trip] = trips("model-native", case(backend="neuron", model="Qwen/Qwen2.5-7B-Instruct"))
    assert "backend: nxdi" in trip.mend
    [trip] = trips("model-native", of("Phi3ForCausalLM", backend="neuron"))
    assert "nxdi" not in trip.mend


def test_prefill_kernel_of_moe() -> None:
    mixtral = {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1"}
    assert len(trips("release-moe-prefill", case(**mixtral))) == 1
    assert trips("release-moe-prefill", case(stack={"sdk": "2.28"}, **mixtral)) == []
    assert trips("release-moe-prefill", case(model="Qwen/Qwen3-30B-A3B")) == []


def test_top_k_kernel() -> None:
    off = {"on_device_sampling_config": {"top_k_kernel_enabled": False}}
    small = {"max_num_seqs": 4}
    assert len(trips("release-top-k", case(engine=small, neuron=off))) == 1
    assert trips("release-top-k", case(engine={"max_num_seqs": 8}, neuron=off)) == []
    assert trips("release-top-k", case(engine=small)) == []
    assert trips("release-top-k", case(engine=small, neuron=off, stack={"sdk": "2.28"})) == []


def test_batch_of_qwen3_moe() -> None:
    model = {"model": "Qwen/Qwen3-30B-A3B"}
    assert len(trips("release-qwen3-moe-batch", case(engine={"max_num_seqs": 8}, **model))) == 1
    assert trips("release-qwen3-moe-batch", case(engine={"max_num_seqs": 16}, **model)) == []
    assert trips("release-qwen3-moe-batch", case(engine={"max_num_seqs": 8})) == []


def test_vision_models_of_qwen() -> None:
    qwen2 = "Qwen2VLForConditionalGeneration"
    good = {"tensor_parallel_size": 4, "max_num_seqs": 1}
    assert trips("release-qwen2-vl", of(qwen2, engine=good)) == []
    for bad in ({"tensor_parallel_size": 8}, {"max_num_seqs": 4}):
        assert len(trips("release-qwen2-vl", of(qwen2, engine={**good, **bad}))) == 1
    qwen3 = "Qwen3VLForConditionalGeneration"
    rule = "release-qwen3-vl-length"
    assert len(trips(rule, of(qwen3, engine={"max_model_len": 65536}))) == 1
    assert trips(rule, of(qwen3, engine={"max_model_len": 32768})) == []
    assert trips(rule, case(engine={"max_model_len": 65536})) == []


@pytest.mark.parametrize(
    ("arguments", "issue"),
    [
        ({"instance": "inf2.8xlarge", "model": "Qwen/Qwen3-8B"}, "issues/1303"),
        ({"instance": "inf2.8xlarge", "model": "Qwen/Qwen2.5-14B-Instruct"}, "issues/1303"),
        ({"instance": "inf2.8xlarge", "model": "Qwen/Qwen2.5-7B-Instruct"}, None),
        ({"instance": "trn1.32xlarge", "model": "Qwen/Qwen3-8B"}, None),
        ({"model": "Qwen/Qwen3-8B", "stack": {"sdk": "2.28"}}, None),
        ({"model": LLAMA_70B, "stack": {"sdk": "2.27"}}, "vllm-neuron/issues/16"),
        ({"model": LLAMA_70B, "stack": {"sdk": "2.28"}}, None),
        (
            {"model": LLAMA_70B, "backend": "neuron", "engine": {"data_parallel_size": 2}},
            "llama-3.md",
        ),
        ({"model": LLAMA_70B, "backend": "neuron"}, None),
    ],
)
def test_known_bad(arguments: dict[str, Any], issue: str | None) -> None:
    tripped = trips("known-bad", case(**arguments))
    assert len(tripped) == (issue is not None)
    # What one person reports is a warning, never an error.
    assert all(trip.severity is not Severity.ERROR for trip in tripped)
    assert all(issue in trip.message for trip in tripped if issue)
