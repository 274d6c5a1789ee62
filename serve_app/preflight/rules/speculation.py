"""Rules about speculative decoding on NxDI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config.findings import Severity
from serve_app.neuron import nxdi_config
from serve_app.neuron.nxdi_config import flag, integer, mapping, whole
from serve_app.neuron.stacks import release
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, LOADER, at, given, image, model_type, switched
from serve_app.preflight.rules.sampling import KEY, on_device

PATH = "engine.speculative_config"
FUSED = "neuronx-distributed-inference models/model_base.py NeuronFusedSpecModel"
_EAGLE = ("eagle", "eagle3")


def _config(case: Case) -> Mapping[str, Any]:
    return mapping(case.plan.engine_args, "speculative_config")


def _on(case: Case) -> bool:
    return case.engine("speculative_config") is not None


def _method(case: Case) -> Any:
    return nxdi_config.speculation_method(_config(case))


@rule(
    "speculation-method",
    Severity.ERROR,
    "NxDI speculates with an EAGLE draft",
    f"{LOADER} _get_default_neuron_config, _init_fused_spec_config; vLLM 0.13, 0.16 "
    "config/speculative.py; aws-neuron-sdk vllm-user-guide-v1.rst, known issue 5",
    NXDI,
)
def speculation_method(case: Case) -> Iterator[Trip]:
    if not _on(case) or not _config(case):
        return
    method, mend = _method(case), "set method: eagle with an EAGLE draft"
    path = f"{PATH}.method"
    if method is None:
        yield Trip("speculative_config has no method and vLLM finds none", mend, path)
    elif method == "draft_model" and release(case.target.stack.vllm) >= (0, 16):
        message = (
            "AWS documents draft models for its old fork only; the plugin fuses them, unproved"
        )
        yield Trip(message, mend, path, Severity.WARNING)
    elif method not in _EAGLE:
        yield Trip(f"NxDI has no speculation by {method!r}", mend, path)


@rule(
    "speculation-shape",
    Severity.ERROR,
    "Speculation names a draft and a number of tokens",
    f"{LOADER} _init_fused_spec_config; vLLM config/speculative.py _verify_args",
    NXDI,
)
def speculation_shape(case: Case) -> Iterator[Trip]:
    if not _on(case):
        return
    config = case.engine("speculative_config")
    if not isinstance(config, Mapping):
        yield Trip(f"speculative_config is {config!r}", "write it as a mapping", PATH)
        return
    tokens = config.get("num_speculative_tokens")
    if (whole(tokens) or 0) < 1:
        message = f"num_speculative_tokens is {tokens!r}"
        yield Trip(message, "set at least 1", f"{PATH}.num_speculative_tokens")
    if not config.get("model") and _method(case) in (*_EAGLE, "draft_model"):
        yield Trip("the draft model is not named", "set model", f"{PATH}.model")


@rule(
    "speculation-eagle3",
    Severity.ERROR,
    "EAGLE3 is said in the override",
    f"{LOADER} _get_default_neuron_config (sets enable_eagle_speculation for method eagle only)",
    NXDI,
)
def speculation_eagle3(case: Case) -> Iterator[Trip]:
    if not _on(case) or _method(case) != "eagle3":
        return
    names = ("enable_eagle_speculation", "is_eagle3")
    missing = [name for name in names if not flag(case.effective, name)]
    if missing:
        message = f"method eagle3 without {' and '.join(missing)} loads the draft as a plain model"
        yield Trip(message, f"set {' and '.join(missing)}", at(case, missing[0]))


@rule(
    "speculation-eagle-name",
    Severity.ERROR,
    "EAGLE is said to the plugin",
    f"{LOADER} _get_default_neuron_config",
    NXDI,
)
def speculation_eagle_name(case: Case) -> Iterator[Trip]:
    # vLLM resolves the method before the plugin looks at it: a name with "eagle-" is enough.
    if not _on(case) or _method(case) != "eagle":
        return
    if given(case).get("enable_eagle_speculation") is False:
        message = "method eagle and enable_eagle_speculation off"
        yield Trip(message, "remove it", at(case, "enable_eagle_speculation"))


@rule(
    "speculation-prefix-caching",
    Severity.ERROR,
    "EAGLE3 goes without prefix caching and token trees",
    f"{FUSED}:1655-1658",
    NXDI,
)
def speculation_prefix_caching(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "is_eagle3") or not flag(
        case.effective, "enable_fused_speculation"
    ):
        return
    if flag(case.effective, "is_prefix_caching"):
        message = "EAGLE3 does not go with prefix caching"
        yield Trip(
            message, "set engine.enable_prefix_caching: false", "engine.enable_prefix_caching"
        )
    if case.effective.get("token_tree_config") is not None:
        message = "EAGLE3 does not go with a token tree"
        yield Trip(message, "remove token_tree_config", at(case, "token_tree_config"))


@rule(
    "speculation-sampling",
    Severity.ERROR,
    "Fused speculation samples on the device",
    f"{FUSED}:1633-1646, 1765",
    NXDI,
)
def speculation_sampling(case: Case) -> Iterator[Trip]:
    fused = flag(case.effective, "enable_fused_speculation")
    if fused and _on(case) and not on_device(case):
        yield Trip("speculation needs sampling on the device", f"remove {KEY}: null", at(case, KEY))


@rule(
    "speculation-unasked",
    Severity.ERROR,
    "Speculation is switched on in vLLM too",
    f"{LOADER} _load_weights_common (asserts); models/model_base.py:3057-3068 (no decode model)",
    NXDI,
)
def speculation_unasked(case: Case) -> Iterator[Trip]:
    if _on(case):
        return
    own = given(case)
    names = switched(case, "enable_fused_speculation", "enable_eagle_speculation")
    names += [
        name
        for name in ("speculation_length", "medusa_speculation_length")
        if (integer(own, name) or 0) > 0
    ]
    names += switched(case, "is_medusa", "is_eagle_draft")
    if names:
        message = f"{names[0]} without engine.speculative_config"
        yield Trip(message, "set engine.speculative_config, or remove it", at(case, names[0]))


@rule(
    "speculation-length",
    Severity.ERROR,
    "speculation_length is num_speculative_tokens",
    f"{LOADER} _get_default_neuron_config; {CONFIG}",
    NXDI,
)
def speculation_length(case: Case) -> Iterator[Trip]:
    own, tokens = (
        integer(given(case), "speculation_length"),
        whole(_config(case).get("num_speculative_tokens")),
    )
    if own is not None and tokens is not None and own != tokens:
        message = f"speculation_length is {own} and num_speculative_tokens {tokens}"
        path = at(case, "speculation_length")
        yield Trip(message, "remove speculation_length", path)


@rule(
    "speculation-medusa",
    Severity.ERROR,
    "Medusa does not run behind vLLM",
    f"{LOADER} _get_default_neuron_config; modules/kvcache/kv_cache_manager.py:266",
    NXDI,
)
def speculation_medusa(case: Case) -> Iterator[Trip]:
    if _on(case) and flag(case.effective, "is_medusa"):
        yield Trip("Medusa does not go with speculative_config", "remove it", at(case, "is_medusa"))


@rule(
    "speculation-model",
    Severity.ERROR,
    "The model can be the target of speculation",
    "models/image_to_text_model_base.py:171; models/llama4/modeling_llama4_text.py:252-255",
    NXDI,
)
def speculation_model(case: Case) -> Iterator[Trip]:
    asked = _on(case) or flag(case.effective, "enable_fused_speculation")
    if asked and (image(case) or model_type(case) in ("llama4", "llama4_text")):
        yield Trip(f"{model_type(case)} has no speculation on NxDI", "remove it", PATH)


@rule(
    "draft-overrides",
    Severity.WARNING,
    "Overrides of the draft have a draft",
    f"{LOADER} _load_weights_common",
    NXDI,
)
def draft_overrides(case: Case) -> Iterator[Trip]:
    if given(case).get("draft_overrides") and not _on(case):
        message = "draft_overrides is ignored without engine.speculative_config"
        yield Trip(message, "remove it", at(case, "draft_overrides"))


@rule(
    "draft-dtype",
    Severity.ERROR,
    "A draft of another dtype needs cast_type as-declared",
    "models/application_base.py:209-216",
    NXDI,
)
def draft_dtype(case: Case) -> Iterator[Trip]:
    draft = mapping(given(case), "draft_overrides").get("torch_dtype")
    dtype = case.neuron("torch_dtype", case.model.dtype if case.model else None)
    if draft is None or not _on(case) or not isinstance(dtype, str) or draft == dtype:
        return
    if case.neuron("cast_type") == "config":
        message = f"torch_dtype is {draft!r} for the draft and {dtype} for the target"
        yield Trip(message, "set cast_type: as-declared", at(case, "draft_overrides"))


@rule(
    "full-model-shuffled",
    Severity.ERROR,
    "Shuffled weights are for MXFP4",
    f"{CONFIG}:252-253",
    NXDI,
)
def full_model_shuffled(case: Case) -> Iterator[Trip]:
    ready = switched(case, "is_mxfp4_compute", "is_eagle_draft")
    if flag(case.effective, "is_full_model_shuffled") and not ready:
        message = "is_full_model_shuffled needs is_mxfp4_compute"
        yield Trip(message, "remove it", at(case, "is_full_model_shuffled"))
