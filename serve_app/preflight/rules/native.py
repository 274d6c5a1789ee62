"""Rules of the native plugin, part one: the keys of its configuration.

The other parts are the modules `native_*`; importing this one registers them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config import Severity
from serve_app.config.findings import did_you_mean
from serve_app.neuron import native_config as config
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules import (  # noqa: F401  (registers their rules)
    native_buckets,
    native_dcp,
    native_engine,
    native_env,
    native_parallel,
    native_prefill,
    native_quantization,
    native_sampling,
    native_transfer,
)
from serve_app.preflight.rules.native_case import additional

_WHERE = "engine.additional_config"
_DICT = "vllm-neuron model/neuron_config.py NeuronConfig.from_dict"
_DOC_ONLY = ("quantized", "quantization_dtype")


@rule(
    "native-override",
    Severity.ERROR,
    "The native plugin reads neuron_config, not override_neuron_config",
    "vllm-neuron 0.21/0.24 platform.py check_and_update_config reads neuron_config only",
    NATIVE,
)
def override(case: Case) -> Iterator[Trip]:
    for name in additional(case):
        if str(name).replace("-", "_") == "override_neuron_config":
            yield Trip(
                f"{name} is NxDI's; the native plugin drops it without a word",
                "write its keys under neuron_config, with the native names",
                f"{_WHERE}.{name}",
            )


@rule(
    "native-additional",
    Severity.ERROR,
    "additional_config has a fixed set of keys",
    "aws-neuron-sdk vllm-neuron/docs/guides/reference-configuration.md; unknown keys are dropped",
    NATIVE,
)
def top_level(case: Case) -> Iterator[Trip]:
    for name, value in additional(case).items():
        path = f"{_WHERE}.{name}"
        if name in ("neuron_config", "vision_neuron_config"):
            if not isinstance(value, Mapping):
                yield Trip(f"{name} is {value!r}, not a mapping", "write a mapping", path)
        elif name in config.KEYS:
            yield Trip(f"{name} stands one level too high and is not read", _under(name), path)
        elif name in config.TOP_LEVEL or str(name).replace("-", "_") == "override_neuron_config":
            continue
        else:
            mend = did_you_mean(str(name), config.TOP_LEVEL)
            severity = None if mend.startswith("did") else Severity.WARNING
            yield Trip(f"{name} is no key of the native plugin", mend, path, severity)


def _under(name: str) -> str:
    return f"move it to neuron_config.{name}"


@rule(
    "native-key",
    Severity.ERROR,
    "neuron_config has a fixed set of keys; others have no effect",
    f"{_DICT}; migration-nxdi-to-vllm-neuron.md for the renamed ones",
    NATIVE,
)
def unknown_key(case: Case) -> Iterator[Trip]:
    for name in case.given:
        if name in config.KEYS:
            continue
        message, mend, severity = _unknown(str(name))
        yield Trip(message, mend, case.at(str(name)), severity)


def _unknown(name: str) -> tuple[str, str, Severity | None]:
    plain = name.replace("-", "_")
    if plain in config.FROM_NXDI:
        return f"{name} is NxDI's and has no effect here", f"set {config.FROM_NXDI[plain]}", None
    if plain in config.ONLY_NXDI or plain.endswith("_kernel_enabled"):
        return f"{name} is NxDI's and has no effect here", "remove it", None
    if plain in _DOC_ONLY:
        message = f"{name} is in AWS's migration guide, but no version of the plugin reads it"
        return message, "serve a checkpoint that is quantized already", Severity.WARNING
    if plain == "mm_language_model_only":
        mend = "move it one level up, beside neuron_config"
        return f"{name} is ignored inside neuron_config", mend, Severity.WARNING
    mend = did_you_mean(name, config.KEYS)
    severity = None if mend.startswith("did") else Severity.WARNING
    return f"{name} is no key of neuron_config and is dropped silently", mend, severity


@rule(
    "native-key-version",
    Severity.WARNING,
    "A key of another version of the plugin has no effect",
    f"{_DICT} of 0.21.0.1.0.0 and of 0.24.0.1.1.0",
    NATIVE,
)
def key_version(case: Case) -> Iterator[Trip]:
    vllm = case.target.stack.vllm
    for name in case.given:
        key = config.KEYS.get(str(name))
        if key and vllm in config.BOTH_VERSIONS and vllm not in key.vllm:
            message = f"{name} is read by vLLM {key.vllm[0]}'s plugin; this one is of {vllm}"
            yield Trip(message, "remove it, it has no effect", case.at(str(name)))


@rule(
    "native-key-type",
    Severity.ERROR,
    "Degrees are positive whole numbers, switches are true or false",
    "vllm-neuron model/neuron_config.py NeuronConfig.__post_init__ (ValueError)",
    NATIVE,
)
def key_type(case: Case) -> Iterator[Trip]:
    for name, value in case.given.items():
        key = config.KEYS.get(str(name))
        if key and (wanted := _refused(key.kind, value)):
            yield Trip(f"{name} is {value!r}", f"give {wanted}", case.at(str(name)))


def _refused(kind: str, value: Any) -> str | None:
    # Buckets have rules of their own; null means the default for the rest.
    if kind == "count" and config.whole(value) is None:
        return "a whole number of at least 1"
    if kind == "bool" and not isinstance(value, bool):
        return "true or false"
    if kind == "mapping" and value is not None and not isinstance(value, Mapping):
        return "a mapping"
    return None


@rule(
    "native-sampling-key",
    Severity.WARNING,
    "on_device_sampling_config has five keys; the plugin drops others",
    "vllm-neuron model/neuron_config.py OnDeviceSamplingConfig",
    NATIVE,
)
def sampling_key(case: Case) -> Iterator[Trip]:
    given = case.given.get("on_device_sampling_config")
    for name in given if isinstance(given, Mapping) else ():
        if name in config.SAMPLING_KEYS:
            continue
        mend = "give it with each request, or set all_greedy"
        if name not in ("temperature", "top_k", "top_p"):
            mend = did_you_mean(str(name), config.SAMPLING_KEYS)
        path = case.at(f"on_device_sampling_config.{name}")
        yield Trip(f"on_device_sampling_config.{name} has no effect", mend, path)


@rule(
    "native-vision",
    Severity.ERROR,
    "Vision buckets and the encoder's degrees fit together",
    "vllm-neuron platform.py _resolve_vision_auto_config, neuron_config.py resolve_tp_dp",
    NATIVE,
)
def vision(case: Case) -> Iterator[Trip]:
    given = additional(case).get("vision_neuron_config")
    if not isinstance(given, Mapping):
        return
    path = f"{_WHERE}.vision_neuron_config"
    for name in given:
        if name not in config.VISION_KEYS:
            mend = did_you_mean(str(name), config.VISION_KEYS)
            severity = None if mend.startswith("did") else Severity.WARNING
            message = f"{name} is no key of vision_neuron_config and is dropped silently"
            yield Trip(message, mend, f"{path}.{name}", severity)
    if (architectures := case.model and case.model.architectures) and not any(
        "ConditionalGeneration" in name for name in architectures
    ):
        message = f"{architectures[0]} has no vision encoder to configure"
        yield Trip(message, "remove vision_neuron_config", path)
        return
    yield from _vision_buckets(given, path)
    yield from _vision_degrees(case, given, path)


def _vision_buckets(given: Mapping[str, Any], path: str) -> Iterator[Trip]:
    block = config.whole(given.get("vision_attention_block_size")) or 2048
    buckets, longest = given.get("num_vision_tokens_buckets"), given.get("max_vision_seq_len")
    if buckets and longest:
        message = "num_vision_tokens_buckets and max_vision_seq_len exclude each other"
        yield Trip(message, "keep one of them", f"{path}.max_vision_seq_len")
        return
    numbers = [n for n in buckets if config.whole(n)] if isinstance(buckets, list) else []
    if numbers and max(numbers) < block:
        message = f"the largest bucket {max(numbers)} is below vision_attention_block_size {block}"
        yield Trip(message, f"add a bucket of {block}", f"{path}.num_vision_tokens_buckets")
    if (config.whole(longest) or block) < block:
        message = f"max_vision_seq_len {longest} is below vision_attention_block_size {block}"
        yield Trip(message, f"set it to {block} or more", f"{path}.max_vision_seq_len")


def _vision_degrees(case: Case, given: Mapping[str, Any], path: str) -> Iterator[Trip]:
    world = config.whole(case.plan.engine_args.get("tensor_parallel_size")) or 1
    world *= config.whole(case.plan.engine_args.get("pipeline_parallel_size")) or 1
    tp = config.whole(given.get("tp_size")) or 1
    dp = config.whole(given.get("dp_size")) or 1
    if tp > 1 and dp > 1:
        if tp * dp != world:
            message = f"tp_size {tp} x dp_size {dp} is {tp * dp}, not the {world} ranks"
            yield Trip(message, "give one of them: the other is derived", f"{path}.tp_size")
    elif world % (tp * dp):
        name = "tp_size" if tp > 1 else "dp_size"
        yield Trip(
            f"{world} ranks cannot be divided by {name} {tp * dp}",
            f"choose a divisor of {world}",
            f"{path}.{name}",
        )


@rule(
    "native-towers",
    Severity.ERROR,
    "An engine is vision-only or language-only, not both",
    "vllm-neuron model/neuron_config.py VisionNeuronConfig.set_construction_role (ValueError)",
    NATIVE,
)
def towers(case: Case) -> Iterator[Trip]:
    if case.engine("mm_encoder_only") and additional(case).get("mm_language_model_only"):
        message = "mm_encoder_only and mm_language_model_only are both set"
        yield Trip(message, "keep one of them", "engine.mm_encoder_only")
