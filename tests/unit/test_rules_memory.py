"""Rules about memory: each trips on one configuration, and not on its neighbour."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config import Severity
from serve_app.neuron.memory import GIB, MXFP4
from serve_app.preflight.rules import memory
from tests.unit.rule_cases import case, trips

LLAMA_8B = "NousResearch/Meta-Llama-3-8B-Instruct"
LLAMA_70B = "meta-llama/Meta-Llama-3-70B-Instruct"
OSS_120B = "openai/gpt-oss-120b"


def engine(tp: int, seqs: int = 1, length: int = 4096, **more: Any) -> dict[str, Any]:
    plain = {"tensor_parallel_size": tp, "max_num_seqs": seqs, "max_model_len": length}
    return {**plain, "enable_prefix_caching": False, **more}


def native(tp: int, seqs: int = 4, length: int = 16384, **more: Any) -> dict[str, Any]:
    return engine(tp, seqs, length, max_num_batched_tokens=8192, **more)


def size(**arguments: Any) -> Any:
    made = memory.memory_of(case(**arguments))
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"instance": "inf2.24xlarge", "model": LLAMA_70B, "engine": engine(8)}, False),
        ({"instance": "inf2.48xlarge", "model": LLAMA_70B, "engine": engine(24)}, True),
        ({"instance": "inf2.8xlarge", "model": LLAMA_8B, "engine": engine(2, 10)}, True),
        ({"instance": "inf2.8xlarge", "model": LLAMA_8B, "engine": engine(2, 64)}, False),
        ({"instance": "inf2.8xlarge", "model": LLAMA_8B, "engine": engine(1, 16)}, False),
        ({"model": OSS_120B, "backend": "neuron", "engine": native(8)}, False),
        ({"model": OSS_120B, "backend": "neuron", "engine": native(16)}, True),
        (
            {"instance": "trn3", "model": OSS_120B, "backend": "neuron", "engine": native(8)},
            True,
        ),
        ({"model": "Qwen/Qwen3-8B", "engine": {"tensor_parallel_size": 8}}, False),
    ],
)
def test_what_fits_the_hbm(arguments: dict[str, Any], fits: bool) -> None:
    tripped = trips("memory-device", case(**arguments))
    assert (tripped == []) is fits
    assert all("GiB weights + " in trip.message and " = " in trip.message for trip in tripped)


def test_a_fifth_stays_free() -> None:
    one_core = {"instance": "inf2.8xlarge", "model": LLAMA_8B, "engine": engine(1, 1, 2048)}
    [trip] = trips("memory-margin", case(**one_core))
    assert "15.0 GiB weights" in trip.message
    assert trips("memory-device", case(**one_core)) == []
    two = {**one_core, "engine": engine(2, 1, 2048)}
    assert trips("memory-margin", case(**two)) == []
    # What does not fit at all is not also too tight.
    full = {"instance": "inf2.24xlarge", "model": LLAMA_70B, "engine": engine(8)}
    assert trips("memory-margin", case(**full)) == []


def test_without_a_model_nothing_is_said() -> None:
    unknown = case(model="some/model", engine=engine(2))
    assert memory.memory_of(unknown) is None
    for rule in ("memory-device", "memory-margin", "memory-host"):
        assert trips(rule, unknown) == []


def test_blocks_are_counted_not_sequences() -> None:
    cached = {"model": LLAMA_8B, "instance": "inf2.8xlarge"}
    few = engine(2, 64, enable_prefix_caching=True, block_size=32, num_gpu_blocks_override=1000)
    # The plugin adds vLLM's null block, NxDI one of its own.
    per_token = 2 * 32 * 4 * 128 * 2
    assert size(engine=few, **cached).kv_cache == 1002 * 32 * per_token
    default = engine(2, 4, enable_prefix_caching=True, block_size=32)
    assert size(engine=default, **cached).kv_cache == (4096 // 32 * 4 + 1) * 32 * per_token


def test_quantized_weights_and_caches() -> None:
    plain = size(model=LLAMA_8B, engine=engine(8))
    quantized = {"quantized": True, "quantization_dtype": "int8"}
    int8 = size(model=LLAMA_8B, engine=engine(8), neuron=quantized)
    assert plain.weights / 2 < int8.weights < plain.weights
    cache = size(model=LLAMA_8B, engine=engine(8), neuron={"kv_cache_quant": True})
    assert cache.kv_cache * 2 == plain.kv_cache


@pytest.mark.parametrize(
    ("instance", "model", "more", "experts", "linear"),
    [
        ("trn2.48xlarge", OSS_120B, {}, 2.0, 2.0),
        ("trn3", OSS_120B, {}, MXFP4, 2.0),
        ("trn3", OSS_120B, {"hf_overrides": {"quantization_config": {}}}, MXFP4, 2.0),
        ("trn2.48xlarge", "nvidia/Llama-3.3-70B-Instruct-FP8", {}, 1.0, 1.0),
        ("trn2.48xlarge", LLAMA_70B, {}, 2.0, 2.0),
    ],
)
def test_bytes_per_weight_of_the_native_plugin(
    instance: str, model: str, more: dict[str, Any], experts: float, linear: float
) -> None:
    made = case(instance, "neuron", model, engine=native(16, **more))
    assert made.model is not None
    bytes_per = memory.weight_bytes(made, made.model)
    assert (bytes_per.linear, bytes_per.experts, bytes_per.rest) == (linear, experts, 2.0)


def test_float32_takes_twice_as_much() -> None:
    assert (
        size(model=LLAMA_8B, engine=engine(8, dtype="float32")).weights
        == 2 * size(model=LLAMA_8B, engine=engine(8)).weights
    )


def test_the_native_pool_has_a_least_size() -> None:
    tight = {"model": LLAMA_70B, "backend": "neuron"}
    # 16.6 GiB of weights: at 0.70 of 24 GiB little is left.
    low = native(8, gpu_memory_utilization=0.70)
    [trip] = trips("memory-native-pool", case(engine=low, **tight))
    assert "1 GiB" in trip.message
    assert trips("memory-native-pool", case(engine=native(8), **tight)) == []
    least = {"VLLM_NEURON_MIN_KV_BUDGET_GIB": "0.1"}
    assert trips("memory-native-pool", case(engine=low, env=least, **tight)) == []


def test_the_native_pool_and_its_sequences() -> None:
    model = {"model": LLAMA_70B, "backend": "neuron"}
    [trip] = trips("memory-native-length", case(engine=native(16, seqs=64), **model))
    assert trip.severity is None
    assert "holds 10 sequences" in trip.message
    assert trips("memory-native-length", case(engine=native(16, seqs=10), **model)) == []
    long = native(16, seqs=1, length=262144)
    [trip] = trips("memory-native-length", case(engine=long, **model))
    assert trip.severity is Severity.ERROR


def test_windows_of_gpt_oss_with_the_hybrid_manager() -> None:
    model = {"model": "openai/gpt-oss-20b", "backend": "neuron"}
    on = {"disable_hybrid_kv_cache_manager": False}
    whole, half = native(8, seqs=100), native(8, seqs=100, **on)
    assert len(trips("memory-native-length", case(engine=whole, **model))) == 1
    assert trips("memory-native-length", case(engine=half, **model)) == []
    many = native(8, seqs=200, **on)
    assert len(trips("memory-native-length", case(engine=many, **model))) == 1


@pytest.mark.parametrize(
    ("instance", "model", "tp", "fits"),
    [
        ("trn1.2xlarge", LLAMA_8B, 2, False),  # aws-neuron-sdk issue 1222
        ("inf2.xlarge", LLAMA_8B, 2, False),
        ("inf2.xlarge", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2, True),
        ("inf2.8xlarge", LLAMA_8B, 2, True),
        ("inf2.48xlarge", LLAMA_70B, 24, True),
        ("trn2.48xlarge", "meta-llama/Llama-3.1-405B-Instruct", 64, True),  # AWS publishes it
        ("trn2.3xlarge", LLAMA_70B, 4, True),  # its host memory is not known
    ],
)
def test_host_memory(instance: str, model: str, tp: int, fits: bool) -> None:
    assert (trips("memory-host", case(instance, model=model, engine=engine(tp))) == []) is fits


def test_a_known_draft_model_is_counted() -> None:
    plain = size(model="Qwen/Qwen3-32B", engine=engine(32))
    draft = {"model": "Qwen/Qwen3-0.6B", "num_speculative_tokens": 7}
    both = size(model="Qwen/Qwen3-32B", engine=engine(32, speculative_config=draft))
    assert both.weights > plain.weights
    assert both.kv_cache > plain.kv_cache
    assert any(line.startswith("draft model") for line in both.detail)


def test_flash_decoding_cuts_the_cache_along_the_sequence() -> None:
    plain = size(model=LLAMA_70B, engine=engine(64, length=16384))
    cut = size(
        model=LLAMA_70B, engine=engine(64, length=16384), neuron={"flash_decoding_enabled": True}
    )
    assert cut.kv_cache * 16384 == plain.kv_cache * (16384 // 8 + 128)


def test_padded_gpt_oss() -> None:
    arguments = {"model": OSS_120B, "engine": engine(32)}
    padded = {"padded_hidden_size": 3072, "padded_intermediate_size": 3072}
    assert size(neuron=padded, **arguments).weights > 1.1 * size(**arguments).weights


@pytest.mark.parametrize(
    "odd",
    [
        {"max_model_len": "16K"},
        {"max_model_len": "many"},
        {"speculative_config": {"model": 3}},
        {"hf_overrides": {"quantization_config": 1}},
    ],
)
def test_odd_input_does_not_raise(odd: dict[str, Any]) -> None:
    for backend in ("nxdi", "neuron"):
        made = case(model=LLAMA_70B, backend=backend, engine={**engine(16), **odd})
        assert memory.memory_of(made) is not None


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "${SHARE}", ""])
def test_odd_environment_is_as_if_absent(value: str) -> None:
    made = {"model": LLAMA_70B, "backend": "neuron", "engine": native(16)}
    env = {"VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION": value}
    assert size(env=env, **made) == size(**made)


@pytest.mark.parametrize(
    "odd",
    [
        {"attention_dp_degree": "8"},
        {"attention_dp_degree": 0},
        {"cp_degree": 3},
        {"max_context_length": None},
        {"kv_cache_batch_size": -1},
        {"pa_num_blocks": "many", "is_block_kv_layout": True},
        {"padded_hidden_size": True},
    ],
)
def test_odd_neuron_config_does_not_raise(odd: dict[str, Any]) -> None:
    made = size(model=LLAMA_70B, engine=engine(16), neuron=odd)
    assert 0 < made.total < 100 * GIB
