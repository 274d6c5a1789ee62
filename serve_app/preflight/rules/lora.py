"""Rules about LoRA adapters on NxDI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import flag, integer, mapping
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import at, experts, given, image, model_type

RUNNER = "vllm-neuron worker/neuronx_distributed_model_runner.py _get_nxdi_lora_config"
SERVING = "neuronx-distributed-inference modules/lora_serving"


def _on(case: Case) -> bool:
    return flag(case.plan.engine_args, "enable_lora")


@rule(
    "lora-override",
    Severity.ERROR,
    "LoRA needs an override",
    f"{RUNNER} (takes keys out of it without asking whether it is there)",
    NXDI,
)
def lora_override(case: Case) -> Iterator[Trip]:
    extra = mapping(case.args.engine, "additional_config")
    if _on(case) and extra.get("override_neuron_config") is None:
        message = "enable_lora without additional_config.override_neuron_config ends the start"
        yield Trip(message, "add override_neuron_config with lora_ckpt_json", case.path)


@rule(
    "lora-modules",
    Severity.ERROR,
    "LoRA knows which modules to adapt",
    f"{SERVING}/config.py LoraServingConfig.__init__ (takes them from the adapters of "
    "lora_ckpt_json), lora_model.py:55-75 (raises without any)",
    NXDI,
)
def lora_modules(case: Case) -> Iterator[Trip]:
    own = given(case)
    extra = mapping(case.args.engine, "additional_config")
    if not _on(case) or not isinstance(extra.get("override_neuron_config"), Mapping):
        return
    if own.get("lora_ckpt_json") or own.get("target_modules") or "lora_config" in own:
        return
    message = "neither lora_ckpt_json nor target_modules says which modules LoRA adapts"
    mend = "set lora_ckpt_json in override_neuron_config to the JSON file that lists the adapters"
    # A compiled model brings its own configuration.
    compiled = bool(case.plan.env.get("NEURON_COMPILED_ARTIFACTS"))
    severity = Severity.WARNING if compiled else None
    yield Trip(message, mend, at(case, "lora_ckpt_json"), severity)


@rule(
    "lora-count",
    Severity.ERROR,
    "The host holds at least the adapters of the device",
    "vLLM 0.13, 0.16 config/lora.py _validate_lora_config",
    NXDI,
)
def lora_count(case: Case) -> Iterator[Trip]:
    if not _on(case):
        return
    device = integer(case.plan.engine_args, "max_loras")
    host = integer(case.plan.engine_args, "max_cpu_loras")
    if device is not None and device < 1:
        yield Trip(f"max_loras is {device}", "set at least 1", "engine.max_loras")
    elif host is not None and 0 < host < (device or 1):
        message = f"max_cpu_loras {host} is less than max_loras {device}"
        yield Trip(message, f"set at least {device}", "engine.max_cpu_loras")


@rule(
    "lora-model",
    Severity.ERROR,
    "The model is dense",
    "aws-neuron-sdk feature-guide.rst, Multi-LoRA Serving: dense model families",
    NXDI,
)
def lora_model(case: Case) -> Iterator[Trip]:
    if _on(case) and (experts(case) or image(case)):
        kind = "a mixture of experts" if experts(case) else "an image model"
        message = f"LoRA on NxDI is for dense models; {model_type(case)} is {kind}"
        yield Trip(message, "remove enable_lora", "engine.enable_lora")


@rule(
    "lora-config",
    Severity.ERROR,
    "LoRA is set by vLLM's arguments",
    f"{RUNNER}; {SERVING}/config.py",
    NXDI,
)
def lora_config(case: Case) -> Iterator[Trip]:
    if given(case).get("lora_config") is None:
        return
    path = at(case, "lora_config")
    if _on(case):
        message = "lora_config takes the place of what the plugin makes of max_loras and the like"
        yield Trip(message, "remove it; use vLLM's arguments", path, Severity.WARNING)
    else:
        message = "lora_config compiles adapters that vLLM does not know of"
        yield Trip(message, "set engine.enable_lora: true, and remove it", path)


@rule(
    "lora-base-model",
    Severity.WARNING,
    "Every request names an adapter",
    "vllm-neuron 0.4.1, 0.5.0 worker/neuronx_distributed_model_runner.py "
    "_prepare_adapter_id_in_new_request (reads the adapter of a request that has none)",
    NXDI,
)
def lora_base_model(case: Case) -> Iterator[Trip]:
    if _on(case):
        message = "with LoRA a request for the base model ends the engine"
        mend = "let clients name an adapter as the model"
        yield Trip(message, mend, "engine.enable_lora")


@rule(
    "lora-unused",
    Severity.WARNING,
    "Adapters need LoRA switched on",
    "vLLM engine/arg_utils.py (a LoRA configuration is made with enable_lora only)",
    NXDI,
)
def lora_unused(case: Case) -> Iterator[Trip]:
    if not _on(case) and case.args.engine.get("lora_modules"):
        message = "lora_modules without enable_lora"
        yield Trip(message, "set engine.enable_lora: true", "engine.lora_modules")
