"""Rules about quantized weights, activations and KV caches on NxDI."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import flag, flags, mapping
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.kernels import QKV
from serve_app.preflight.rules.keys import CONFIG, at, given, since, switched

NXD = "neuronx-distributed quantization/quantization_config.py"
GUIDE = "aws-neuron-sdk libraries/nxd-inference/developer_guides/feature-guide.rst"
DTYPES = ("int8", "f8e4m3", "f8e4m3fn", "f8e5m2", "f4e2m1fn_x4", "f8e4m3fn_x4", "f8e5m2_x4")
"""Names of QuantizedDtype; NxDI compares them in capitals."""
TYPES = ("per_tensor_symmetric", "per_channel_symmetric")
"""What NxDI can quantize a checkpoint to; the plugin does so before it compiles."""
_OTHER_TYPES = ("blockwise_symmetric", "expert_wise_per_channel_symmetric", "per_key_symmetric")
_ENVIRONMENT = {"XLA_HANDLE_SPECIAL_SCALAR": None, "UNSAFE_FP8FNCAST": Severity.WARNING}
_MLP = ("mlp_kernel_enabled", "mlp_tkg_nki_kernel_enabled", "quantized_mlp_kernel_enabled")


def _quantized(case: Case) -> bool:
    return flag(case.effective, "quantized")


def _activation(case: Case) -> bool:
    return given(case).get("activation_quantization_type") is not None


@rule(
    "quantized-path",
    Severity.ERROR,
    "Quantized weights have a path",
    f"{CONFIG}:216-220, 690",
    NXDI,
)
def quantized_path(case: Case) -> Iterator[Trip]:
    if _quantized(case) and case.effective.get("quantized_checkpoints_path") is None:
        path = at(case, "quantized_checkpoints_path")
        message = "quantized without quantized_checkpoints_path"
        yield Trip(message, "name the file or directory of the quantized weights", path)


@rule(
    "quantized-dtype",
    Severity.ERROR,
    "The dtype of quantized weights is a known one",
    f"{NXD} QuantizedDtype; {CONFIG}:690-695",
    NXDI,
)
def quantized_dtype(case: Case) -> Iterator[Trip]:
    value = given(case).get("quantization_dtype")
    if isinstance(value, str) and value.lower() not in DTYPES:
        path, mend = at(case, "quantization_dtype"), f"write one of {', '.join(DTYPES)}"
        severity = None if _quantized(case) else Severity.WARNING
        yield Trip(f"quantization_dtype is {value!r}", mend, path, severity)


@rule(
    "quantized-type",
    Severity.ERROR,
    "Weights can be quantized so",
    "models/application_base.py generate_quantized_state_dict (two types; the plugin calls it "
    f"before it compiles); {NXD} QuantizationType",
    NXDI,
)
def quantized_type(case: Case) -> Iterator[Trip]:
    value = given(case).get("quantization_type")
    if not _quantized(case) or not isinstance(value, str) or value in TYPES:
        return
    path, mend = at(case, "quantization_type"), f"write {' or '.join(TYPES)}"
    if value not in _OTHER_TYPES:
        yield Trip(f"quantization_type is {value!r}", mend, path)
    else:
        yield Trip(f"the plugin cannot quantize a checkpoint to {value}", mend, path)


@rule(
    "quantized-idle",
    Severity.WARNING,
    "Settings of quantization have quantized",
    f"{CONFIG} _verify_quantized_config",
    NXDI,
)
def quantized_idle(case: Case) -> Iterator[Trip]:
    if _quantized(case) or _activation(case) or switched(case, "quantized_mlp_kernel_enabled"):
        return
    for name in ("quantized_checkpoints_path", "quantization_type", "quantization_dtype"):
        if given(case).get(name) is not None:
            message = f"{name} has no effect without quantized"
            yield Trip(message, "set quantized: true, or remove it", at(case, name))


@rule(
    "quantized-kernels",
    Severity.ERROR,
    "QKV kernels of a quantized model name what stays as it is",
    f"{CONFIG}:552-557",
    NXDI,
)
def quantized_kernels(case: Case) -> Iterator[Trip]:
    mlp = _activation(case) or bool(switched(case, "quantized_mlp_kernel_enabled"))
    on = flags(case.effective, QKV)
    if (_quantized(case) or mlp) and on and not flag(case.effective, "modules_to_not_convert"):
        message = f"{on[0]} on a quantized model without modules_to_not_convert"
        mend = "list the modules that are not quantized in modules_to_not_convert"
        yield Trip(message, mend, at(case, "modules_to_not_convert"))


@rule(
    "quantized-all",
    Severity.WARNING,
    "What is not quantized is named",
    f"{CONFIG}:558-562; {GUIDE}, Quantization",
    NXDI,
)
def quantized_all(case: Case) -> Iterator[Trip]:
    if flag(case.effective, "modules_to_not_convert") or flags(case.effective, QKV):
        return
    if _quantized(case):
        message = "without modules_to_not_convert every module is taken for quantized"
        mend = "list in it what the checkpoint keeps, such as lm_head"
        yield Trip(message, mend, at(case, "modules_to_not_convert"))


@rule(
    "quantized-mlp",
    Severity.WARNING,
    "The quantized MLP kernel has quantized weights",
    f"{CONFIG}:542-562",
    NXDI,
)
def quantized_mlp(case: Case) -> Iterator[Trip]:
    for name in switched(case, "quantized_mlp_kernel_enabled"):
        if not _quantized(case):
            message = f"{name} without quantized asks for scales that the checkpoint has not"
            mend = "set quantized: true and quantized_checkpoints_path"
            yield Trip(message, mend, at(case, name))


@rule(
    "activation-type",
    Severity.ERROR,
    "The quantization of activations is dynamic or static",
    f"{NXD} ActivationQuantizationType (in lower case); {CONFIG}:437-439",
    NXDI,
)
def activation_type(case: Case) -> Iterator[Trip]:
    value = given(case).get("activation_quantization_type")
    # 2.27 knows dynamic only.
    known = ("dynamic", "static") if since(case, "0.8") else ("dynamic",)
    if isinstance(value, str) and value not in known:
        path = at(case, "activation_quantization_type")
        mend = f"write {' or '.join(known)}"
        yield Trip(f"activation_quantization_type is {value!r}", mend, path)


@rule(
    "activation-kernels",
    Severity.ERROR,
    "Quantized activations go without MLP kernels",
    f"{CONFIG}:542-545",
    NXDI,
)
def activation_kernels(case: Case) -> Iterator[Trip]:
    names = _MLP if since(case, "0.9") else (_MLP[0], _MLP[2])
    on = switched(case, *names)
    if flag(given(case), "activation_quantization_type") and on:
        message = f"activation_quantization_type does not go with {on[0]}"
        yield Trip(message, f"remove {on[0]}", at(case, "activation_quantization_type"))


@rule(
    "activation-fused",
    Severity.WARNING,
    "Quantized activations switch fused_qkv off",
    f"{CONFIG}:440-442 (fused_qkv is read a second time and gone)",
    NXDI,
)
def activation_fused(case: Case) -> Iterator[Trip]:
    if _activation(case) and since(case, "0.8") and not switched(case, *QKV):
        for name in switched(case, "fused_qkv"):
            message = f"activation_quantization_type switches {name} off"
            yield Trip(message, f"remove {name}", at(case, name))


@rule(
    "quantization-argument",
    Severity.ERROR,
    "vLLM's quantization is not set",
    "aws-neuron-sdk vllm-user-guide-v1.rst, Quantization: do not set it",
    NXDI,
)
def quantization_argument(case: Case) -> Iterator[Trip]:
    value = case.engine("quantization")
    if value is not None:
        message = f"quantization is {value!r}; NxDI takes no quantization from vLLM"
        mend = "remove it; set quantized and its like in override_neuron_config"
        yield Trip(message, mend, "engine.quantization")


@rule(
    "quantized-environment",
    Severity.ERROR,
    "FP8 weights and caches have the environment that they need",
    f"{GUIDE}, Model Weight Quantization and KV Cache Quantization; inference_demo.py:465-467 "
    "(sets both variables, the plugin neither)",
    NXDI,
)
def quantized_environment(case: Case) -> Iterator[Trip]:
    weights = _quantized(case) and str(case.effective.get("quantization_dtype")).lower() == "f8e4m3"
    cache = flag(case.effective, "kv_cache_quant") or case.effective.get("kv_quant_config")
    if not weights and not cache:
        return
    what = "quantization_dtype f8e4m3" if weights else "an FP8 KV cache"
    for name, severity in _ENVIRONMENT.items():
        value = case.plan.env.get(name)
        if value != "1" and "${" not in (value or ""):
            message = f"{what} needs {name}=1" if severity is None else f"{what} without {name}=1"
            yield Trip(message, f'set {name}: "1" under env', f"env.{name}", severity)


@rule(
    "kv-quantized",
    Severity.WARNING,
    "kv_cache_quant quantizes the KV cache",
    f"{CONFIG} kv_quant_config; modules/kvcache/kv_cache_manager.py (2.28 and later read "
    "kv_quant_config only); inference_demo.py:451 makes one of the other",
    NXDI,
)
def kv_quantized(case: Case) -> Iterator[Trip]:
    alone = not isinstance(case.effective.get("kv_quant_config"), dict)
    if since(case, "0.8") and flag(given(case), "kv_cache_quant") and alone:
        message = f"kv_cache_quant alone has no effect in NxDI {case.target.stack.nxdi}"
        yield Trip(message, "add kv_quant_config: {direct_cast: true}", at(case, "kv_cache_quant"))


@rule(
    "kv-quantized-config",
    Severity.ERROR,
    "kv_quant_config can be written in a file",
    f"{NXD} KVQuantizationConfig (compares with enum members and passes the dtype to torch: a "
    "text is neither)",
    NXDI,
)
def kv_quantized_config(case: Case) -> Iterator[Trip]:
    config = mapping(given(case), "kv_quant_config")
    for name in ("k_quant_method", "v_quant_method", "quant_dtype"):
        if name in config:
            message = f"kv_quant_config.{name} cannot be given as text"
            mend = "remove it; the default is a direct cast to float8_e4m3fn"
            yield Trip(message, mend, f"{at(case, 'kv_quant_config')}.{name}")


@rule(
    "kv-cache-dtype",
    Severity.WARNING,
    "The dtype of the KV cache is NxDI's",
    "vllm-neuron worker/neuronx_distributed_model_loader.py (kv_cache_dtype is not read)",
    NXDI,
)
def kv_cache_dtype(case: Case) -> Iterator[Trip]:
    value = case.args.engine.get("kv_cache_dtype")
    if value not in (None, "auto"):
        message = f"kv_cache_dtype {value!r} has no effect on NxDI"
        mend = "remove it; kv_quant_config in override_neuron_config makes an FP8 cache"
        yield Trip(message, mend, "engine.kv_cache_dtype")
