"""Rules about quantization on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import quantization as MODULE  # noqa: N812
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
QUANTIZED = {"quantized": True, "quantized_checkpoints_path": "/q", "modules_to_not_convert": ["x"]}
F8 = {**QUANTIZED, "quantization_dtype": "f8e4m3"}
ENV = {"XLA_HANDLE_SPECIAL_SCALAR": "1", "UNSAFE_FP8FNCAST": "1"}
QKV = {"fused_qkv": True, "qkv_kernel_enabled": True}


def quant(sdk: str | None = None, **neuron: Any) -> dict[str, Any]:
    return {"model": LLAMA, "neuron": neuron, "sdk": sdk}


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


NAMELESS = without(QUANTIZED, "modules_to_not_convert")
TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("quantized-path", quant(quantized=True), [E]),
    ("quantized-dtype", quant(**QUANTIZED, quantization_dtype="fp8"), [E]),
    ("quantized-dtype", quant(quantization_dtype="fp8"), [W]),
    ("quantized-type", quant(**QUANTIZED, quantization_type="per_row"), [E]),
    ("quantized-type", quant(**QUANTIZED, quantization_type="blockwise_symmetric"), [E]),
    ("quantized-idle", quant(quantization_dtype="int8"), [W]),
    ("quantized-kernels", quant(**NAMELESS, **QKV), [E]),
    (
        "quantized-kernels",
        quant(quantized_mlp_kernel_enabled=True, **QKV),
        [E],
    ),
    ("quantized-all", quant(**NAMELESS), [W]),
    ("quantized-mlp", quant(quantized_mlp_kernel_enabled=True), [W]),
    ("activation-type", quant(activation_quantization_type="DYNAMIC"), [E]),
    ("activation-type", quant(activation_quantization_type="static", sdk="2.27"), [E]),
    (
        "activation-kernels",
        quant(activation_quantization_type="dynamic", mlp_kernel_enabled=True),
        [E],
    ),
    (
        "activation-kernels",
        quant(activation_quantization_type="dynamic", mlp_tkg_nki_kernel_enabled=True),
        [E],
    ),
    ("activation-fused", quant(activation_quantization_type="dynamic", fused_qkv=True), [W]),
    ("quantization-argument", {"engine": {"quantization": "neuron_quant"}}, [E]),
    ("quantized-environment", quant(**F8), [E, W]),
    ("quantized-environment", quant(kv_quant_config={}, kv_cache_quant=True), [E, W]),
    (
        "quantized-environment",
        {**quant(**F8), "env": without(ENV, "UNSAFE_FP8FNCAST")},
        [W],
    ),
    ("kv-quantized", quant(kv_cache_quant=True), [W]),
    ("kv-quantized-config", quant(kv_quant_config={"quant_dtype": "float8_e4m3fn"}), [E]),
    ("kv-cache-dtype", {"engine": {"kv_cache_dtype": "fp8"}}, [W]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("quantized-path", quant(**QUANTIZED)),
    ("quantized-path", quant(quantized=False)),
    ("quantized-dtype", quant(**QUANTIZED, quantization_dtype="F8E4M3")),
    ("quantized-dtype", quant(**QUANTIZED)),
    ("quantized-type", quant(**QUANTIZED, quantization_type="per_channel_symmetric")),
    ("quantized-idle", quant(**F8)),
    ("quantized-kernels", quant(**QUANTIZED, **QKV)),
    ("quantized-kernels", quant(**NAMELESS)),
    ("quantized-kernels", quant(**QKV)),
    ("quantized-all", quant(**QUANTIZED)),
    ("quantized-mlp", quant(**QUANTIZED, quantized_mlp_kernel_enabled=True)),
    ("activation-type", quant(activation_quantization_type="static")),
    ("activation-type", quant(activation_quantization_type="dynamic", sdk="2.27")),
    ("activation-kernels", quant(mlp_kernel_enabled=True)),
    ("activation-kernels", quant(activation_quantization_type="dynamic")),
    (
        "activation-kernels",
        quant(activation_quantization_type="dynamic", mlp_tkg_nki_kernel_enabled=True, sdk="2.28"),
    ),
    ("activation-fused", quant(activation_quantization_type="dynamic")),
    ("activation-fused", quant(fused_qkv=True)),
    ("quantization-argument", quant(**QUANTIZED)),
    ("quantized-environment", {**quant(**F8), "env": ENV}),
    ("quantized-environment", quant(**QUANTIZED)),
    ("kv-quantized", quant(kv_cache_quant=True, kv_quant_config={})),
    ("kv-quantized", quant(kv_cache_quant=True, sdk="2.27")),
    ("kv-quantized-config", quant(kv_quant_config={"direct_cast": True})),
    ("kv-cache-dtype", {"engine": {"kv_cache_dtype": "auto"}}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(MODULE, TRIP, CLEAN)
