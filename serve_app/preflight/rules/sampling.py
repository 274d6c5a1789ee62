"""Rules about sampling and asynchronous execution on NxDI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import flag, integer, mapping, whole
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, at, given

RUNNER = "vllm-neuron worker/neuronx_distributed_model_runner.py"
SAMPLER = "neuronx-distributed-inference modules/generation/sampling.py"
KEY = "on_device_sampling_config"
MOST = 256
"""Largest top_k of the plugin (_MAX_NEURON_SAMPLING_TOP_K)."""


def on_device(case: Case) -> bool:
    """Whether tokens are sampled on the device."""
    return case.effective.get(KEY) is not None


def _given(case: Case) -> Mapping[str, Any]:
    return mapping(given(case), KEY)


def _path(case: Case, name: str) -> str:
    return f"{at(case, KEY)}.{name}"


@rule(
    "sampling-static",
    Severity.WARNING,
    "Requests choose their own sampling parameters",
    f"{CONFIG} OnDeviceSamplingConfig (dynamic is off unless given); {SAMPLER} _multinomial_sample",
    NXDI,
)
def sampling_static(case: Case) -> Iterator[Trip]:
    # A mapping takes the place of the plugin's whole default, which is dynamic.
    if isinstance(given(case).get(KEY), Mapping) and not _given(case).get("dynamic"):
        message = f"without dynamic in {KEY} the sampling parameters of requests have no effect"
        yield Trip(message, "add dynamic: true", _path(case, "dynamic"))


@rule(
    "sampling-top-k",
    Severity.ERROR,
    "global_topk is at least 1",
    f"{RUNNER} get_nxd_sampling_params, _validate_sampling_configuration; {SAMPLER} (a top_k of 0 "
    "picks from the whole vocabulary evenly)",
    NXDI,
)
def sampling_top_k(case: Case) -> Iterator[Trip]:
    most = whole(_given(case).get("global_topk"))
    path = _path(case, "global_topk")
    if most is None:
        return
    if most < 1:
        yield Trip(f"global_topk is {most}", f"set 1 to {MOST}", path)
    elif most > MOST:
        message = f"global_topk is {most}; the plugin uses {MOST} of it"
        yield Trip(message, f"set at most {MOST}", path, Severity.WARNING)
    static = whole(_given(case).get("top_k"))
    if static is not None and static > most > 0:
        message = f"top_k {static} is over global_topk {most}"
        yield Trip(message, f"set at most {most}", _path(case, "top_k"), Severity.WARNING)


@rule(
    "sampling-range",
    Severity.WARNING,
    "Compiled sampling parameters are in range",
    f"{SAMPLER} validate_sampling_params",
    NXDI,
)
def sampling_range(case: Case) -> Iterator[Trip]:
    top_p, temperature = _number(case, "top_p"), _number(case, "temperature")
    if top_p is not None and not 0 < top_p <= 1:
        yield Trip(f"top_p is {top_p:g}", "set it over 0, up to 1", _path(case, "top_p"))
    if temperature is not None and temperature < 0:
        message = f"temperature is {temperature:g}"
        yield Trip(message, "set 0 or more", _path(case, "temperature"))


def _number(case: Case, name: str) -> float | None:
    value = _given(case).get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@rule(
    "sampling-data-parallel",
    Severity.WARNING,
    "Data parallel sampling divides the batch",
    f"{SAMPLER} create_sampler (falls back to the plain sampler)",
    NXDI,
)
def sampling_data_parallel(case: Case) -> Iterator[Trip]:
    degree = whole(_given(case).get("sampling_dp_degree")) or 1
    batch = integer(case.effective, "tkg_batch_size")
    if degree > 1 and batch and batch % degree:
        message = f"sampling_dp_degree {degree} does not divide the batch of {batch}"
        yield Trip(f"{message} and is not used", "remove it", _path(case, "sampling_dp_degree"))


@rule(
    "sampling-kernel",
    Severity.WARNING,
    "The top-k kernel is for trn2 and later",
    f"{CONFIG} OnDeviceSamplingConfig (its default is off on inf2 and trn1)",
    NXDI,
)
def sampling_kernel(case: Case) -> Iterator[Trip]:
    if _given(case).get("top_k_kernel_enabled") and case.target.instance.generation < 2:
        message = f"the top-k kernel is not for {case.target.instance.family}"
        yield Trip(message, "remove it", _path(case, "top_k_kernel_enabled"))


@rule(
    "sampling-device",
    Severity.NOTE,
    "What sampling on the device leaves out",
    f"{RUNNER}:232-248; aws-neuron-sdk vllm-user-guide-v1.rst, Decoding",
    NXDI,
)
def sampling_device(case: Case) -> Iterator[Trip]:
    if on_device(case):
        message = "sampling on the device takes temperature, top_k (up to 256) and top_p; seed, "
        message += "penalties, logit_bias, logprobs and structured outputs have no effect"
        mend = f"set {KEY}: null to sample on the host, if clients need them"
        yield Trip(message, mend, at(case, KEY))


@rule(
    "sampling-logprobs",
    Severity.WARNING,
    "Logprobs come from sampling on the host",
    f"{RUNNER} _sample_on_device (no logprobs in its output)",
    NXDI,
)
def sampling_logprobs(case: Case) -> Iterator[Trip]:
    number = whole(case.args.engine.get("max_logprobs"))
    if number and on_device(case):
        message = f"max_logprobs is {number} and sampling on the device gives none"
        yield Trip(message, f"set {KEY}: null, or remove it", "engine.max_logprobs")


@rule(
    "sampling-structured",
    Severity.WARNING,
    "Structured outputs come from sampling on the host",
    f"{RUNNER}:232-248 (the grammar's mask is dropped with a warning)",
    NXDI,
)
def sampling_structured(case: Case) -> Iterator[Trip]:
    if case.args.engine.get("structured_outputs_config") and on_device(case):
        message = "structured outputs have no effect with sampling on the device"
        path = "engine.structured_outputs_config"
        yield Trip(message, f"set {KEY}: null, or remove it", path)


@rule(
    "sampling-switch",
    Severity.ERROR,
    "NEURON_ON_DEVICE_SAMPLING_DISABLED is not set",
    "vllm-neuron worker/neuronx_distributed_model_loader.py NeuronModelBase.__init__: calls a "
    "module in place of vLLM's sampler class, and does not change what is compiled",
    NXDI,
)
def sampling_switch(case: Case) -> Iterator[Trip]:
    name = "NEURON_ON_DEVICE_SAMPLING_DISABLED"
    if case.plan.env.get(name, "0").strip() not in ("", "0"):
        yield Trip(f"{name} ends the start", f"remove it; set {KEY}: null", f"env.{name}")


@rule(
    "async-mode",
    Severity.ERROR,
    "Asynchronous execution samples on the device",
    "aws-neuron-sdk feature-guide.rst, Asynchronous Runtime Support; "
    f"{CONFIG}:273 (Medusa); modules/async_execution.py:128",
    NXDI,
)
def async_mode(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "async_mode"):
        return
    path, fused = at(case, "async_mode"), flag(case.effective, "enable_fused_speculation")
    if not on_device(case):
        message = "async_mode needs sampling on the device"
        yield Trip(message, f"remove {KEY}: null, or async_mode", path)
    if flag(case.effective, "is_medusa"):
        yield Trip("async_mode does not go with Medusa", "remove one of them", path)
    eagle = flag(case.effective, "enable_eagle_speculation")
    if fused and not eagle and flag(case.effective, "is_prefix_caching"):
        message = "async_mode with prefix caching takes EAGLE speculation only"
        yield Trip(message, "remove async_mode", path)


@rule(
    "tensor-capture",
    Severity.ERROR,
    "Tensor capture samples on the device",
    f"{CONFIG}:348-354",
    NXDI,
)
def tensor_capture(case: Case) -> Iterator[Trip]:
    own = given(case)
    capture = isinstance(own.get("tensor_capture_config"), Mapping)
    if capture and not flag(own, "output_logits") and not on_device(case):
        message = "tensor_capture_config needs sampling on the device"
        yield Trip(message, f"remove {KEY}: null", at(case, "tensor_capture_config"))


@rule(
    "async-scheduling",
    Severity.NOTE,
    "vLLM's asynchronous scheduling on NxDI",
    "vLLM 0.16 config/vllm.py (on by default); AWS's Qwen3-VL tutorial switches it off",
    NXDI,
)
def async_scheduling(case: Case) -> Iterator[Trip]:
    if case.engine("async_scheduling") and case.args.engine.get("async_scheduling"):
        message = "whether asynchronous scheduling works with NxDI is not documented"
        yield Trip(message, "remove it, or set it to false", "engine.async_scheduling")
