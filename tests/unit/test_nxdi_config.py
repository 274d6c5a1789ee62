"""What NeuronConfig holds in the end, from vLLM's arguments and the override."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.neuron import nxdi_config
from serve_app.neuron.nxdi_config import context_buckets, effective, length, powers, refuses, tables

ENGINE = {"max_model_len": 4096, "max_num_seqs": 8, "dtype": "bfloat16", "block_size": 32}
OFF = {**ENGINE, "enable_prefix_caching": False}


@pytest.mark.parametrize(
    ("engine", "given", "key", "value"),
    [
        (OFF, {}, "tp_degree", 8),
        (OFF, {}, "batch_size", 8),
        (OFF, {}, "tkg_batch_size", 8),
        (OFF, {}, "ctx_batch_size", 1),
        (OFF, {"batch_size": 16}, "max_batch_size", 16),
        (OFF, {}, "seq_len", 4096),
        (OFF, {}, "max_context_length", 4096),
        (OFF, {"seq_len": 2048}, "max_length", 2048),
        (OFF, {}, "enable_bucketing", True),
        (OFF, {}, "is_continuous_batching", True),
        ({**OFF, "max_num_seqs": 1}, {}, "is_continuous_batching", False),
        ({**OFF, "max_num_seqs": None}, {}, "batch_size", 256),
        (OFF, {}, "pa_block_size", 4096),
        (OFF, {}, "is_block_kv_layout", False),
        (ENGINE, {}, "is_block_kv_layout", True),
        (ENGINE, {}, "pa_block_size", 32),
        (ENGINE, {}, "pa_num_blocks", 1024),
        ({**ENGINE, "max_model_len": 4100}, {}, "pa_num_blocks", 1024),
        ({**ENGINE, "num_gpu_blocks_override": 2000}, {}, "pa_num_blocks", 2001),
        (
            {**ENGINE, "num_gpu_blocks_override": 2000},
            {"pa_num_blocks": 2000},
            "pa_num_blocks",
            2001,
        ),
        (OFF, {}, "torch_dtype", "bfloat16"),
        ({**OFF, "dtype": "half"}, {}, "torch_dtype", "float16"),
        (OFF, {"torch_dtype": "float32"}, "torch_dtype", "float32"),
        (
            {**OFF, "additional_config": {"max_prompt_length": 1024}},
            {"max_context_length": 2048},
            "max_context_length",
            1024,
        ),
        (OFF, {"chunked_prefill_config": {}}, "chunked_prefill_config", None),
        (OFF, {"attention_dp_degree": 4}, "kv_cache_batch_size", 2),
        (OFF, {"enable_eagle_speculation": True}, "enable_fused_speculation", True),
        (OFF, {"attn_tkg_nki_kernel_enabled": True}, "attn_block_tkg_nki_kernel_enabled", True),
        (OFF, {"mlp_tkg_nki_kernel_enabled": True}, "mlp_kernel_enabled", True),
        (OFF, {"fused_qkv": True, "activation_quantization_type": "dynamic"}, "fused_qkv", False),
        (OFF, {"quantized_mlp_kernel_enabled": True}, "quantization_dtype", "f8e4m3"),
        (OFF, {"ep_degree": 2}, "world_size", 16),
        (OFF, {}, "logical_nc_config", 2),
        (OFF, {"logical_neuron_cores": 1}, "logical_nc_config", 1),
        (OFF, {}, "scratchpad_page_size", None),
        ({**OFF, "max_model_len": 32768}, {}, "scratchpad_page_size", 1024),
        (OFF, {"on_device_sampling_config": None}, "on_device_sampling_config", None),
        (OFF, {"text_neuron_config": {"fused_qkv": True}}, "fused_qkv", True),
        ({**OFF, "enable_lora": True, "max_loras": 4}, {}, "lora_config", {"max_loras": 4}),
        (OFF, {"tp_degree": "8"}, "tp_degree", "8"),
    ],
)
def test_effective(engine: dict[str, Any], given: dict[str, Any], key: str, value: Any) -> None:
    assert effective(engine, given, 8, 2)[key] == value


@pytest.mark.parametrize("method", ["eagle", "draft_model"])
def test_speculation(method: str) -> None:
    spec = {"method": method, "model": "/d", "num_speculative_tokens": 5}
    config = effective({**OFF, "speculative_config": spec}, {}, 8, 2)
    assert config["enable_fused_speculation"]
    assert config["speculation_length"] == 5
    assert config["enable_eagle_speculation"] == (method == "eagle")


def test_a_given_sampling_configuration_replaces_the_plugins() -> None:
    plugin = effective(OFF, {}, 8, 2)["on_device_sampling_config"]
    own = effective(OFF, {"on_device_sampling_config": {"top_k": 20}}, 8, 1)
    assert plugin["dynamic"]
    assert plugin["top_k_kernel_enabled"]
    assert own["on_device_sampling_config"] == plugin | {
        "dynamic": False,
        "top_k": 20,
        "top_k_kernel_enabled": False,
    }


def test_what_cannot_be_known_is_absent() -> None:
    config = effective({"dtype": "auto"}, {}, 8, 2)
    absent = {"seq_len", "max_context_length", "max_length", "torch_dtype", "pa_num_blocks"}
    assert not absent & config.keys()
    assert config["batch_size"] == 256


def test_unknown_keys_do_not_get_in() -> None:
    assert "fused-qkv" not in effective(OFF, {"fused-qkv": True}, 8, 2)


@pytest.mark.parametrize(
    ("least", "most", "buckets"),
    [
        (128, 128, [128]),
        (128, 64, [64]),
        (128, 1000, [128, 256, 512, 1000]),
        (128, 181, [181]),
        (128, 182, [128, 182]),
        (512, 4096, [512, 1024, 2048, 4096]),
    ],
)
def test_automatic_buckets(least: int, most: int, buckets: list[int]) -> None:
    assert powers(least, most) == buckets


@pytest.mark.parametrize(
    ("engine", "given", "buckets"),
    [
        (OFF, {}, [128, 256, 512, 1024, 2048, 4096]),
        (ENGINE, {}, [512, 1024, 2048, 4096]),
        (OFF, {"enable_bucketing": False}, [4096]),
        (OFF, {"context_encoding_buckets": [4096, 512]}, [512, 4096]),
        ({**OFF, "max_model_len": None}, {}, []),
    ],
)
def test_context_buckets(engine: dict[str, Any], given: dict[str, Any], buckets: list[int]) -> None:
    assert context_buckets(effective(engine, given, 8, 2)) == buckets


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("16k", 16000),
        ("16K", 16384),
        ("1.5k", 1500),
        ("auto", None),
        (-1, None),
        (True, None),
        (None, None),
        ("k", None),
    ],
)
def test_length(value: Any, tokens: int | None) -> None:
    assert length(value) == tokens


def test_each_key_takes_its_own_default() -> None:
    for table, keys in tables().items():
        for name, key in keys.items():
            linked = isinstance(key.default, str) and key.default.startswith("=")
            if linked:
                assert key.default[1:] in tables()[table]
            elif key.default is not None:
                assert refuses(key.kind, key.default) is None, f"{table}.{name}"


def test_nested_tables_are_keys() -> None:
    plain = {"neuron", "moe", "vision", "plugin"}
    assert tables().keys() - plain <= nxdi_config.keys("neuron", "moe").keys()
