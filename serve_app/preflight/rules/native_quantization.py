"""Rules of the native plugin: quantized weights and the KV cache's type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config import Severity
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    architecture,
    block_size,
    pooling,
    quantization,
    segmented,
    since,
)

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"
_CHECKPOINT = "model.id"
_METHODS = ("neuron_quant", "compressed-tensors", "modelopt")
_KV_TYPES = ("auto", "float32", "float16", "bfloat16", "fp8", "fp8_e4m3")
_FP8 = ("fp8", "fp8_e4m3")
_DROP = 'convert it to one of them, or set hf_overrides {"quantization_config": {}} if the'


def _method(case: Case) -> str:
    return str(quantization(case).get("quant_method") or "").lower()


@rule(
    "native-quantization-flag",
    Severity.WARNING,
    "The checkpoint selects the quantization, not vLLM's argument",
    f"{_PLATFORM} supported_quantization; reference-configuration.md",
    NATIVE,
)
def quantization_flag(case: Case) -> Iterator[Trip]:
    given = case.args.engine.get("quantization")
    if given is None:
        return
    usable = given in _METHODS[1:]
    message = f"quantization {given!r} is not for the native plugin"
    mend = "remove it: quantization_config of the checkpoint selects the path"
    severity = None if usable else Severity.ERROR
    yield Trip(message, mend, "engine.quantization", severity)


@rule(
    "native-quantization-method",
    Severity.ERROR,
    "The checkpoint's quantization is one that the platform supports",
    f"{_PLATFORM} supported_quantization; vLLM platforms/interface.py verify_quantization",
    NATIVE,
)
def method(case: Case) -> Iterator[Trip]:
    name = _method(case)
    # 0.21 also lists gpt_oss_mxfp4, which is what vLLM makes of gpt-oss's mxfp4.
    if not name or name in _METHODS or (name == "mxfp4" and not since(case, "0.24")):
        return
    message = f"the checkpoint's quant_method {name!r} is not one of {', '.join(_METHODS)}"
    mend = f"{_DROP} model dequantizes by itself"
    if name == "mxfp4":
        mend = 'set hf_overrides {"quantization_config": {}}, as AWS\'s gpt-oss recipes do'
    path = "engine.hf_overrides" if _overridden(case) else _CHECKPOINT
    yield Trip(message, mend, path)


def _overridden(case: Case) -> bool:
    given = case.engine("hf_overrides")
    return isinstance(given, Mapping) and "quantization_config" in given


@rule(
    "native-compressed-tensors",
    Severity.ERROR,
    "compressed-tensors may hold scales of the KV cache only",
    f"{_PLATFORM} _validate_quantization_config (ValueError)",
    NATIVE,
)
def compressed_tensors(case: Case) -> Iterator[Trip]:
    if _method(case) != "compressed-tensors":
        return
    if case.given.get("quantization") == "mxfp8" and since(case, "0.24"):
        return  # dequantized on the processor while loading
    groups = quantization(case).get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and (what := _quantized(group)):
            message = f"config_groups.{name} of the checkpoint quantizes {what}"
            mend = "serve the checkpoint in bf16, or ModelOpt's static FP8"
            yield Trip(message, mend, _CHECKPOINT)
            return


def _quantized(group: Mapping[str, Any]) -> str | None:
    targets = group.get("targets")
    of_attention = isinstance(targets, list) and any("Attention" in str(t) for t in targets)
    if group.get("weights"):
        return "weights"
    if group.get("output_activations"):
        return "output activations"
    if group.get("input_activations") and not of_attention:
        return "input activations outside attention"
    return None


@rule(
    "native-modelopt",
    Severity.ERROR,
    "A ModelOpt checkpoint is static FP8, of Llama",
    "vllm-neuron 0.24 model/llama3/quantization.py _parse_modelopt (ValueError)",
    NATIVE,
)
def modelopt(case: Case) -> Iterator[Trip]:
    if _method(case) != "modelopt":
        return
    name, algorithms = architecture(case), _modelopt(case)
    weights = str(algorithms.get("quant_algo") or "").upper()
    cache = algorithms.get("kv_cache_quant_algo")
    if weights and weights != "FP8":
        message = f"ModelOpt quant_algo {weights!r} is not supported"
        yield Trip(message, "use a checkpoint of static FP8", _CHECKPOINT)
    elif cache is not None and str(cache).upper() != "FP8":
        message = f"ModelOpt kv_cache_quant_algo {cache!r}: the plugin requires FP8"
        yield Trip(message, "quantize the KV cache to FP8 as well", _CHECKPOINT)
    elif name and not name.startswith("Llama"):
        message = f"static FP8 weights are implemented for Llama 3, not for {name}"
        yield Trip(message, "serve it in bf16", _CHECKPOINT, Severity.WARNING)


def _modelopt(case: Case) -> Mapping[str, Any]:
    # Older checkpoints nest it.
    config = quantization(case)
    inner = config.get("quantization")
    return inner if isinstance(inner, Mapping) else config


@rule(
    "native-quantization",
    Severity.ERROR,
    "neuron_config.quantization fits model and chip",
    "vllm-neuron 0.24 model/{gpt_oss,qwen3,qwen3_vl}/factory.py _validate_config (ValueError)",
    NATIVE,
)
def neuron_quantization(case: Case) -> Iterator[Trip]:
    given, name = case.given.get("quantization"), architecture(case)
    path = case.at("quantization")
    if given is None or given == "bf16":
        return
    if given in ("mxfp4", "mxfp8") and case.target.instance.generation < 3:
        message = f"quantization {given!r} needs trn3; this is {case.target.instance.name}"
        yield Trip(message, "use bf16", path)
        return
    known = {"Qwen3ForCausalLM": (), "Qwen3VL": ("mxfp8",), "GptOss": ("mxfp4",), "Llama": ()}
    for prefix, fits in known.items():
        if name.startswith(prefix) and given not in fits:
            # Qwen's factories raise; the others run in the default precision.
            severity = None if prefix.startswith("Qwen3") else Severity.WARNING
            mend = f"use {' or '.join([*fits, 'bf16'])}, or remove it"
            yield Trip(f"quantization {given!r} is not one of {name}", mend, path, severity)
            return
    if given not in ("mxfp4", "mxfp8"):
        message = f"quantization {given!r} is neither bf16, mxfp4 nor mxfp8"
        yield Trip(message, "use one of them, or remove it", path, Severity.WARNING)


@rule(
    "native-kv-type",
    Severity.ERROR,
    "The KV cache is of the model's type, of another float, or FP8 E4M3",
    "vllm-neuron 0.24 utils/dtype_utils.py kv_cache_dtype_str_to_dtype (ValueError)",
    NATIVE,
)
def kv_type(case: Case) -> Iterator[Trip]:
    given = case.engine("kv_cache_dtype", "auto")
    if given not in _KV_TYPES:
        message = f"kv_cache_dtype {given!r} is not one of {', '.join(_KV_TYPES)}"
        yield Trip(message, "use auto or fp8", "engine.kv_cache_dtype")
    elif given in _FP8 and pooling(case):
        message = "an FP8 KV cache is refused with a pooling model"
        yield Trip(message, "remove kv_cache_dtype", "engine.kv_cache_dtype")


def _fp8_cache(case: Case) -> bool:
    given = case.engine("kv_cache_dtype", "auto")
    if given != "auto":
        return given in _FP8
    # auto follows the checkpoint, and the plugin takes no ModelOpt checkpoint with another cache.
    cache = _modelopt(case).get("kv_cache_quant_algo", "FP8")
    return _method(case) == "modelopt" and str(cache).upper() == "FP8"


@rule(
    "native-fp8-packed",
    Severity.ERROR,
    "An FP8 KV cache is packed when prefill is segmented",
    "vllm-neuron 0.24 utils/dtype_utils.py validate_fp8_segmented_supported (raises)",
    NATIVE,
)
def fp8_packed(case: Case) -> Iterator[Trip]:
    packed, name = case.given.get("fp8_packed_kv") is True, architecture(case)
    if not _fp8_cache(case) or not segmented(case) or pooling(case):
        return
    wired = ("GptOss", "Llama") if since(case, "0.24") else ("GptOss",)
    unpacked = "set max_num_batched_tokens to max_model_len and enable_prefix_caching to false"
    if name and not name.startswith(wired):
        message = f"segmented prefill cannot read an FP8 KV cache with {name}"
        yield Trip(message, f"set kv_cache_dtype to auto, or {unpacked}", "engine.kv_cache_dtype")
    elif not packed:
        message = "segmented prefill cannot read an FP8 KV cache that is not packed"
        mend = "set neuron_config.fp8_packed_kv to true and block_size to 128"
        yield Trip(message, mend, case.at("fp8_packed_kv"))


@rule(
    "native-fp8-block",
    Severity.WARNING,
    "The packed FP8 KV cache is validated with blocks of 128",
    "aws-neuron-sdk vllm-neuron/docs/tutorials/tutorial-llama3-70b.md --block-size 128",
    NATIVE,
)
def fp8_block(case: Case) -> Iterator[Trip]:
    if case.given.get("fp8_packed_kv") is not True:
        return
    if not _fp8_cache(case):
        message = "fp8_packed_kv has no effect: the KV cache is not known to be FP8"
        yield Trip(message, "set kv_cache_dtype to fp8", case.at("fp8_packed_kv"), Severity.NOTE)
    elif block_size(case) != 128:
        message = f"block_size {block_size(case)} with a packed FP8 KV cache is not validated"
        yield Trip(message, "set it to 128", "engine.block_size")


@rule(
    "native-kv-scales",
    Severity.WARNING,
    "Scales of an FP8 KV cache come with the checkpoint",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/kv-cache-quantization.md",
    NATIVE,
)
def kv_scales(case: Case) -> Iterator[Trip]:
    if case.engine("calculate_kv_scales"):
        message = "calculate_kv_scales is not supported"
        mend = "remove it and serve a calibrated checkpoint"
        yield Trip(message, mend, "engine.calculate_kv_scales")
    elif _fp8_cache(case) and case.model and not quantization(case):
        message = "the checkpoint has no quantization_config: without scales for the FP8 KV cache"
        mend = "serve a calibrated checkpoint"
        yield Trip(f"{message} all are 1.0, and accuracy suffers", mend, "engine.kv_cache_dtype")


@rule(
    "native-head-dim",
    Severity.WARNING,
    "Qwen3 is known to run with a head_dim of 128",
    "field reports of Qwen3 on trn2; every dense Qwen3 that AWS documents has 128",
    NATIVE,
)
def head_dim(case: Case) -> Iterator[Trip]:
    if case.model and architecture(case).startswith("Qwen3") and case.model.head_dim != 128:
        message = f"head_dim {case.model.head_dim}: Qwen3 is known to run with 128 only"
        yield Trip(message, "try it on the chip before relying on it", _CHECKPOINT)
