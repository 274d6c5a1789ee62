"""Rules about the software: back end against chip and model, release notes, known-bad pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from serve_app.config import Severity
from serve_app.neuron.model_facts import ModelFacts
from serve_app.neuron.native_config import whole
from serve_app.neuron.nxdi_config import length as tokens
from serve_app.neuron.stacks import choose, release
from serve_app.preflight.case import BOTH, NATIVE, NXDI, Case, Trip, rule

_NOTES = "aws-neuron-sdk release-notes/components/nxd-inference.rst"
_GUIDE = "aws-neuron-sdk libraries/nxd-inference/developer_guides/vllm-user-guide-v1.rst"

NXDI_MODELS: Mapping[str, str] = {
    # NxDI's MODEL_TYPES (utils/constants.py) -> first NxDI release that has it.
    "llama": "0.7",
    "llama4": "0.7",
    "mixtral": "0.7",
    "dbrx": "0.7",
    "qwen2": "0.7",
    "qwen3": "0.7",
    "qwen3_moe": "0.7",
    "gpt_oss": "0.7",
    "mllama": "0.7",
    "mistral": "0.9",
    "pixtral": "0.7",  # the public tree has it from 0.8 on, the release notes from SDK 2.27
    "qwen2_vl": "0.8",
    "qwen3_vl": "0.8",
    "gemma3": "0.9",
}

UNPROVED = ("mistral",)
"""In the public tree from 30 April 2026 on only, while its tests used it before; the wheels may
differ."""

REMOVED = ("MllamaForConditionalGeneration",)
"""Architectures that vLLM itself dropped after 0.10.2 (model_executor/models/registry.py)."""

_SPELLED = {
    # What the loader makes of an architecture's name.
    "gptoss": "gpt_oss",
    "qwen3moe": "qwen3_moe",
    "qwen2vl": "qwen2_vl",
    "qwen3vl": "qwen3_vl",
}

NATIVE_MODELS = (
    "LlamaForCausalLM",
    "GptOssForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3VLForConditionalGeneration",
)
"""Architectures with a recipe in aws-neuron-sdk vllm-neuron/docs/model-recipes."""


def nxdi_model(architecture: str) -> str | None:
    """NxDI's name of an architecture, as the plugin's loader makes it; None: it would raise.

    Source: vllm-neuron 0.5.0 worker/neuronx_distributed_model_loader.py, _get_neuron_model_cls.
    """
    if architecture == "LlavaForConditionalGeneration":
        return "pixtral"
    name, found, task = architecture.removeprefix("Neuron").partition("For")
    if not found or task not in ("CausalLM", "ConditionalGeneration"):
        return None
    name = _SPELLED.get(name.lower(), name.lower())
    return name if name in NXDI_MODELS else None


@rule(
    "stack-family",
    Severity.ERROR,
    "The back end runs on this chip",
    "aws-neuron-sdk about-neuron/whats-new.rst (2.29.0, Hardware support); "
    + _NOTES
    + " (2.29.0, Breaking Changes); deep-learning-containers README.md",
    BOTH,
)
def stack_family(case: Case) -> Iterator[Trip]:
    stack, instance = case.target.stack, case.target.instance
    if instance.family in stack.families:
        return
    if stack.backend == "neuron":
        yield Trip(
            f"the native plugin runs on trn2 and trn3, not on {instance.family}",
            "use backend: nxdi",
            "backend",
        )
        return
    message = (
        f"SDK {stack.sdk} (vLLM {stack.vllm}) does not serve {instance.family} with NxDI: "
        "AWS ended inf2 and trn1 with SDK 2.28"
    )
    mend = "use a trn2 instance"
    last = choose("nxdi", instance.family)
    if last is not None and instance.family in last.families:
        mend = f'remove stack.sdk or set it to "{last.sdk}" (image {last.image})'
    yield Trip(message, mend, "stack.sdk")


@rule(
    "stack-maintenance",
    Severity.NOTE,
    "The back end gets new features",
    _NOTES + " (2.32.0)",
    NXDI,
)
def stack_maintenance(case: Case) -> Iterator[Trip]:
    newer = choose("neuron", case.target.instance.family)
    if newer is None or case.target.instance.family not in newer.families:
        return
    only_here = case.engine("enable_lora") is True or case.neuron("quantized") is True
    if _architecture(case) in NATIVE_MODELS and not only_here:
        yield Trip(
            f"NxDI is in maintenance since SDK 2.32, and the native plugin serves {_name(case)} on "
            f"{case.target.instance.family} too",
            "try backend: neuron",
            "backend",
        )


@rule(
    "model-nxdi",
    Severity.ERROR,
    "NxDI has this model",
    "neuronx-distributed-inference utils/constants.py, MODEL_TYPES; vllm-neuron 0.5.0 "
    "worker/neuronx_distributed_model_loader.py, _get_neuron_model_cls",
)
def model_nxdi(case: Case) -> Iterator[Trip]:
    architecture, nxdi = _architecture(case), case.target.stack.nxdi
    if architecture is None or nxdi is None:
        return
    name = nxdi_model(architecture)
    if name is None:
        yield Trip(
            f"NxDI does not have {architecture}; it has {', '.join(NXDI_MODELS)}",
            "take one of those, or another back end",
            "model.id",
        )
    elif name in UNPROVED:
        yield Trip(
            f"the sources contradict each other on whether NxDI {nxdi} has {name}",
            "try it before you rely on it",
            "model.id",
            Severity.WARNING,
        )
    elif release(nxdi)[:2] < release(NXDI_MODELS[name]):
        yield Trip(
            f"NxDI {nxdi} (SDK {case.target.stack.sdk}) does not have {name}, which came with "
            f"{NXDI_MODELS[name]}",
            "use a newer stack.sdk",
            "stack.sdk",
        )


@rule(
    "model-removed",
    Severity.ERROR,
    "vLLM has this model",
    "vllm model_executor/models/registry.py, _PREVIOUSLY_SUPPORTED_MODELS; "
    + _GUIDE
    + ", Known issues",
    BOTH,
)
def model_removed(case: Case) -> Iterator[Trip]:
    architecture = _architecture(case)
    if architecture in REMOVED:
        yield Trip(
            f"vLLM dropped {architecture} after 0.10.2, and this is {case.plan.vllm}",
            "take another model",
            "model.id",
        )


@rule(
    "model-architecture",
    Severity.ERROR,
    "config.json says what the model is",
    "vllm-neuron 0.5.0 worker/neuronx_distributed_model_loader.py, _get_model_configs",
)
def model_architecture(case: Case) -> Iterator[Trip]:
    if case.model is not None and _architecture(case) is None:
        yield Trip(
            "config.json of the model names no architectures, by which NxDI picks its class",
            "add them, for example [LlamaForCausalLM]",
            "model.id",
        )


@rule(
    "model-native",
    Severity.WARNING,
    "The native plugin has this model",
    "aws-neuron-sdk vllm-neuron/docs/model-recipes",
    NATIVE,
)
def model_native(case: Case) -> Iterator[Trip]:
    architecture = _architecture(case)
    if architecture is not None and architecture not in NATIVE_MODELS:
        yield Trip(
            f"AWS has no recipe for {architecture} with the native plugin; it has "
            f"{', '.join(NATIVE_MODELS)}",
            "try it before you rely on it"
            if nxdi_model(architecture) is None
            else "use backend: nxdi, or try it before you rely on it",
            "model.id",
        )


@rule(
    "release-moe-prefill",
    Severity.WARNING,
    "Prefill of a mixture of experts is fast",
    _NOTES + " (2.29.0, Breaking Changes)",
)
def release_moe_prefill(case: Case) -> Iterator[Trip]:
    if _nxdi_name(case) in ("llama4", "mixtral", "dbrx") and _sdk(case) >= (2, 29):
        yield Trip(
            f"SDK {case.target.stack.sdk} has no shard-on-hidden prefill kernel any more, which "
            f"{_name(case)} is slower without",
            'pin stack.sdk "2.28"',
            "stack.sdk",
        )


@rule(
    "release-top-k",
    Severity.WARNING,
    "Sampling is accurate",
    _NOTES + " (2.29.0, Known Issues)",
)
def release_top_k(case: Case) -> Iterator[Trip]:
    sampling = case.neuron("on_device_sampling_config")
    places = (case.given, sampling if isinstance(sampling, Mapping) else {})
    off = any(place.get("top_k_kernel_enabled") is False for place in places)
    if off and _sdk(case) >= (2, 29) and case.plan.max_num_seqs <= 4:
        yield Trip(
            f"the top-k kernel is off with a batch of {case.plan.max_num_seqs}: up to 4, SDK 2.29 "
            "has an accuracy issue without it",
            "remove top_k_kernel_enabled",
            case.at("on_device_sampling_config"),
        )


@rule(
    "release-qwen3-moe-batch",
    Severity.WARNING,
    "Qwen3-MoE has its batch",
    _NOTES + " (2.28.0, Known Issues)",
)
def release_qwen3_moe_batch(case: Case) -> Iterator[Trip]:
    if _nxdi_name(case) == "qwen3_moe" and case.plan.max_num_seqs < 16:
        yield Trip(
            f"Qwen3-MoE with max_num_seqs {case.plan.max_num_seqs}: AWS supports 16 and more",
            "use 16 or more",
            "engine.max_num_seqs",
        )


@rule(
    "release-qwen2-vl",
    Severity.WARNING,
    "Qwen2-VL has its batch and degree",
    "aws-neuron-sdk libraries/nxd-inference/tutorials/qwen2-vl-tutorial.ipynb (known issue)",
)
def release_qwen2_vl(case: Case) -> Iterator[Trip]:
    tp, batch = whole(case.engine("tensor_parallel_size", 1)), case.plan.max_num_seqs
    if _nxdi_name(case) == "qwen2_vl" and (tp != 4 or batch != 1):
        yield Trip(
            f"Qwen2-VL with tensor_parallel_size {tp} and max_num_seqs {batch}: AWS knows of an "
            "issue with all but 4 and 1",
            "use tensor_parallel_size 4 and max_num_seqs 1",
            "engine.tensor_parallel_size",
        )


@rule(
    "release-qwen3-vl-length",
    Severity.WARNING,
    "Qwen3-VL stays within its length",
    _NOTES + " (2.28.0, Known Issues)",
)
def release_qwen3_vl_length(case: Case) -> Iterator[Trip]:
    length = tokens(case.engine("max_model_len"))
    if _nxdi_name(case) == "qwen3_vl" and length is not None and length > 32768:
        yield Trip(
            f"max_model_len {length}: Qwen3-VL is supported up to 32768 tokens of image and text",
            "use 32768 or less",
            "engine.max_model_len",
        )


@rule(
    "known-bad",
    Severity.WARNING,
    "Nobody has reported this combination as failing",
    "serve_app/neuron/known_bad.json, each entry with its link",
    BOTH,
)
def known_bad(case: Case) -> Iterator[Trip]:
    for entry in known_bad_table():
        if _matches(entry, case):
            yield Trip(
                f"{entry['what']}, SDK {case.target.stack.sdk} ({entry['link']}, "
                f"{entry['reported']}; {entry['sure']})",
                entry["mend"],
                "model.id",
                Severity(entry["severity"]),
            )


@cache
def known_bad_table() -> tuple[Mapping[str, Any], ...]:
    """The entries of `known_bad.json`: model x chip x SDK, with a link and how sure it is."""
    return tuple(json.loads(files("serve_app.neuron").joinpath("known_bad.json").read_text()))


def _matches(entry: Mapping[str, Any], case: Case) -> bool:
    first, last = (release(sdk) for sdk in entry["sdk"])
    return (
        case.model is not None
        and entry["backend"] == case.plan.backend
        and case.target.instance.family in entry["families"]
        and first <= _sdk(case) <= last
        and all(getattr(case.model, field) in values for field, values in entry["model"].items())
        and all(
            (whole(case.engine(name)) or 0) >= least
            for name, least in entry.get("engine", {}).items()
        )
    )


def _sdk(case: Case) -> tuple[int, ...]:
    """Major and minor of the SDK."""
    return release(case.target.stack.sdk)[:2]


def _architecture(case: Case) -> str | None:
    """The architecture that vLLM will pick: the first, unless `hf_overrides` says otherwise."""
    overrides = case.engine("hf_overrides")
    named = overrides.get("architectures") if isinstance(overrides, Mapping) else None
    if isinstance(named, list) and named:
        return str(named[0])
    model: ModelFacts | None = case.model
    return model.architectures[0] if model is not None and model.architectures else None


def _nxdi_name(case: Case) -> str | None:
    architecture = _architecture(case)
    return nxdi_model(architecture) if architecture else None


def _name(case: Case) -> str:
    return case.args.model.where
