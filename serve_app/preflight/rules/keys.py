"""Rules about where the Neuron configuration of NxDI stands, its keys and their kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config.findings import Severity, did_you_mean
from serve_app.neuron import native_config
from serve_app.neuron.nxdi_config import (
    TEXT,
    VISION,
    Key,
    flag,
    keys,
    mapping,
    refuses,
    tables,
    written,
)
from serve_app.neuron.stacks import release
from serve_app.preflight.case import NXDI, Case, Trip, rule

CONFIG = "neuronx-distributed-inference models/config.py"
LOADER = "vllm-neuron worker/neuronx_distributed_model_loader.py"
EXTRA = "engine.additional_config"
_READ = ("override_neuron_config", "max_prompt_length")
_IMAGE = {
    "LlavaForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
}
_EXPERTS = {"mixtral", "dbrx", "qwen3_moe", "llama4", "llama4_text", "gpt_oss"}
_EVER = "9999"
"""Newer than every release."""
WINDOW_DP = "sliding_window_attention_dp_degree"
"""A key of gpt-oss only."""
_NESTED = {name for name in tables() if name.endswith("_config")}
"""Keys that hold a mapping with a table of its own."""
_STRICT = {"lora_config", "router_config"}
"""Nested mappings whose class raises at a key that it does not know."""
_CHOICES = {
    "cast_type": ("config", "as-declared"),
    "padding_side": ("right", "left"),
    "ep_dispatch_cc_option": ("AR_AG", "RS_AG", "AG_AR"),
}


def since(case: Case, nxdi: str) -> bool:
    """Whether the stack has this NxDI release or a newer one."""
    return release(case.target.stack.nxdi or "0") >= release(nxdi)


def image(case: Case) -> bool:
    """Whether the plugin loads the model as an image model, with two nested configurations."""
    return case.model is not None and bool(_IMAGE & set(case.model.architectures[:1]))


def model_type(case: Case) -> str:
    """`model_type` of config.json; "" when the model is not known."""
    return case.model.model_type if case.model else ""


def experts(case: Case) -> bool:
    """Whether NxDI takes the model for a mixture of experts."""
    return model_type(case) in _EXPERTS or bool(case.model and case.model.experts)


def at(case: Case, key: str) -> str:
    """Where the key stands, or would stand."""
    nested = image(case) and key in mapping(case.given, TEXT)
    return case.at(f"{TEXT}.{key}" if nested else key)


def given(case: Case) -> dict[str, Any]:
    """The keys that the user wrote for the decoder."""
    return written(case.given)


def switched(case: Case, *names: str) -> list[str]:
    """Those of the flags that the user switched on."""
    return [name for name in names if flag(given(case), name)]


def _extra(case: Case) -> Mapping[str, Any]:
    return mapping(case.args.engine, "additional_config")


@rule(
    "additional-config-shape",
    Severity.ERROR,
    "additional_config and the override are mappings",
    f"{LOADER} get_neuron_model",
    NXDI,
)
def additional_config_shape(case: Case) -> Iterator[Trip]:
    extra = case.args.engine.get("additional_config")
    if extra is not None and not isinstance(extra, Mapping):
        yield Trip(f"additional_config is {_name(extra)}", "write it as a mapping", EXTRA)
    override = _extra(case).get("override_neuron_config")
    if override is not None and not isinstance(override, Mapping):
        message = f"override_neuron_config is {_name(override)}"
        yield Trip(message, "write it as a mapping", case.path)


@rule(
    "additional-config-key",
    Severity.WARNING,
    "The plugin reads two keys of additional_config",
    f"{LOADER} get_neuron_model, platform.py check_and_update_config; the hyphens are in the "
    "samples of AWS's user guide (vllm-user-guide-v1.rst) and in no code",
    NXDI,
)
def additional_config_key(case: Case) -> Iterator[Trip]:
    for name, value in _extra(case).items():
        if name in _READ:
            continue
        path = f"{EXTRA}.{name}"
        plain = str(name).replace("-", "_")
        if plain in _READ:
            message = f"the plugin does not read {name!r}: all that it holds is ignored"
            yield Trip(message, f"write {plain} with underscores", path, Severity.ERROR)
        elif name in ("neuron_config", "vision_neuron_config"):
            message = f"{name} is read by the native plugin only and ignored by nxdi"
            mend = "move its values to override_neuron_config, or set backend: neuron"
            yield Trip(message, mend, path, Severity.ERROR)
        else:
            # A whole mapping that nobody reads is another configuration than the one written.
            severity = Severity.ERROR if isinstance(value, Mapping) else None
            mend = did_you_mean(str(name), [*_READ, *keys("neuron", "moe")])
            if name in keys("neuron", "moe", "plugin"):
                mend = "move it into override_neuron_config"
            yield Trip(f"the plugin does not read {name!r}", mend, path, severity)


@rule(
    "neuron-key-hyphen",
    Severity.ERROR,
    "Keys of the Neuron configuration have underscores",
    f"{CONFIG} NeuronConfig.__init__ (an unexpected keyword is logged and ignored)",
    NXDI,
)
def neuron_key_hyphen(case: Case) -> Iterator[Trip]:
    for path, name, _ in _items(case):
        plain = str(name).replace("-", "_")
        if plain != name and plain in _known(case, _EVER):
            yield Trip(f"NxDI ignores {name!r}", f"write {plain}", case.at(f"{path}{name}"))


@rule(
    "neuron-key-unknown",
    Severity.WARNING,
    "NxDI knows the key",
    f"{CONFIG} NeuronConfig.__init__ (an unexpected keyword is logged and ignored)",
    NXDI,
)
def neuron_key_unknown(case: Case) -> Iterator[Trip]:
    known = _known(case, case.target.stack.nxdi or "0")
    for path, name, value in _items(case):
        if name in known or str(name).replace("-", "_") in _known(case, _EVER):
            late = keys("neuron", "moe").get(name)
            if name not in known and late:
                message = f"NxDI {case.target.stack.nxdi} ignores {name!r}, new in {late.since}"
                yield Trip(message, "remove it, or take a newer SDK", case.at(f"{path}{name}"))
            continue
        message, mend, severity = _why_unknown(case, name, value)
        yield Trip(message, mend, case.at(f"{path}{name}"), severity)


def _why_unknown(case: Case, name: Any, value: Any) -> tuple[str, str, Severity | None]:
    if name in (TEXT, VISION):
        kind = model_type(case) or "text"
        mend = "write its keys one level up"
        return f"NxDI ignores {name} of a {kind} model", mend, Severity.ERROR
    if name == WINDOW_DP:
        return f"{name!r} is for gpt-oss; NxDI ignores it here", "remove it", None
    if name in keys("moe"):
        return f"{name!r} is for mixtures of experts; NxDI ignores it here", "remove it", None
    if name in keys("vision"):
        return f"{name!r} is for image models; NxDI ignores it here", "remove it", None
    if name in ("lora_ckpt_json", "target_modules"):
        return f"{name!r} is ignored without LoRA", "set engine.enable_lora: true", None
    if name == "max_prompt_length":
        mend = "write it beside override_neuron_config, or write max_context_length"
        return f"{name!r} is no key of NeuronConfig and ignored", mend, None
    if name in native_config.KEYS:
        mend = "remove it, or set backend: neuron"
        return f"{name!r} is a key of the native plugin; NxDI ignores it", mend, None
    for table in ("on_device_sampling_config", "blockwise_matmul_config"):
        if name in keys(table):
            return (
                f"{name!r} is a key of {table}; NxDI ignores it here",
                f"move it into {table}",
                None,
            )
    mend = did_you_mean(str(name), _known(case, case.target.stack.nxdi or "0"))
    return f"NxDI has no key {name!r} and ignores it", mend, None


@rule(
    "neuron-key-nested",
    Severity.WARNING,
    "NxDI knows the keys of the nested mappings",
    f"{CONFIG} OnDeviceSamplingConfig and its like; modules/lora_serving/config.py",
    NXDI,
)
def neuron_key_nested(case: Case) -> Iterator[Trip]:
    for path, table, value in _nested(case):
        known = _of_release(keys(table), case.target.stack.nxdi or "0")
        for name in value:
            if name in known:
                continue
            strict = table in _STRICT
            message = f"{table} has no key {name!r}" + ("" if strict else "; NxDI ignores it")
            severity = Severity.ERROR if strict else None
            yield Trip(message, did_you_mean(str(name), known), f"{path}.{name}", severity)


@rule(
    "neuron-key-kind",
    Severity.ERROR,
    "Each key of the Neuron configuration holds a value of its kind",
    f"{CONFIG} NeuronConfig.__init__",
    NXDI,
)
def neuron_key_kind(case: Case) -> Iterator[Trip]:
    known = _known(case, _EVER) | keys("plugin", "moe", "vision")
    for path, name, value in _items(case):
        # One number instead of a list of one is taken for token_generation_batches only.
        if name == "token_generation_batches" and not refuses("int", value):
            continue
        if name in known and (wanted := refuses(known[name].kind, value)):
            yield _wrong(name, wanted, value, case.at(f"{path}{name}"))
    for place, table, nested in _nested(case):
        for name, value in nested.items():
            key = keys(table).get(name)
            if key and (wanted := refuses(key.kind, value)):
                yield _wrong(f"{table}.{name}", wanted, value, f"{place}.{name}")


@rule(
    "neuron-key-choice",
    Severity.ERROR,
    "A key with a closed list holds one of it",
    f"{CONFIG}:118-120 (cast_type); modules/attention/attention_base.py EPDispatchOption",
    NXDI,
)
def neuron_key_choice(case: Case) -> Iterator[Trip]:
    for name, choices in _CHOICES.items():
        value = given(case).get(name)
        if isinstance(value, str) and value not in choices:
            yield Trip(f"{name} is {value!r}", f"write one of {', '.join(choices)}", at(case, name))


@rule(
    "attention-dtype",
    Severity.ERROR,
    "Another dtype of attention needs cast_type as-declared",
    f"{CONFIG}:130-131",
    NXDI,
)
def attention_dtype(case: Case) -> Iterator[Trip]:
    attention = given(case).get("attention_dtype")
    dtype = case.neuron("torch_dtype", case.model.dtype if case.model else None)
    if not (isinstance(attention, str) and isinstance(dtype, str)) or attention == dtype:
        return
    if case.neuron("cast_type") != "as-declared":
        message = f"attention_dtype is {attention} and torch_dtype {dtype}, but all is cast to one"
        yield Trip(message, "set cast_type: as-declared", at(case, "attention_dtype"))


@rule(
    "image-model-keys",
    Severity.ERROR,
    "The override of an image model holds its two nested configurations only",
    f"{LOADER} _validate_image_to_text_override_neuron_config",
    NXDI,
)
def image_model_keys(case: Case) -> Iterator[Trip]:
    if not image(case):
        return
    for name in case.given:
        if name not in (TEXT, VISION):
            message = f"an image model takes {TEXT} and {VISION} only, not {name!r}"
            yield Trip(message, f"move it into {TEXT}", case.at(name))


def _items(case: Case) -> Iterator[tuple[str, Any, Any]]:
    """Path prefix, key and value of all that goes to NeuronConfig."""
    nested = (TEXT, VISION) if image(case) else ()
    for name, value in case.given.items():
        if name not in nested:
            yield "", name, value
    for table in nested:
        for name, value in mapping(case.given, table).items():
            yield f"{table}.", name, value


def _nested(case: Case) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Path, table and value of each mapping within, such as on_device_sampling_config."""
    for path, name, value in _items(case):
        if isinstance(value, Mapping) and name in _NESTED:
            yield case.at(f"{path}{name}"), name, value


def _known(case: Case, nxdi: str) -> dict[str, Key]:
    tables = ["neuron", *(("moe",) if case.model is None or experts(case) else ())]
    if image(case) or case.model is None or model_type(case) == "mllama":
        tables.append("vision")
    known = keys(*tables)
    if case.model is not None and model_type(case) != "gpt_oss":
        known.pop(WINDOW_DP, None)
    plugin = keys("plugin")
    known["draft_overrides"] = plugin["draft_overrides"]
    if case.engine("enable_lora"):
        known |= {name: plugin[name] for name in ("lora_ckpt_json", "target_modules")}
    return _of_release(known, nxdi)


def _of_release(table: Mapping[str, Key], nxdi: str) -> dict[str, Key]:
    return {name: key for name, key in table.items() if release(key.since) <= release(nxdi)}


def _wrong(name: str, wanted: str, value: Any, path: str) -> Trip:
    return Trip(f"{name} takes {wanted}, not {value!r}", f"write {wanted}", path)


def _name(value: Any) -> str:
    return f"a {type(value).__name__}"
