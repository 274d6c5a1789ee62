"""Rules of the native plugin: sampling, async scheduling, speculation, structured outputs."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import architecture, mapping, pooling

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"


@rule(
    "native-async-sampling",
    Severity.ERROR,
    "Async scheduling needs on-device sampling",
    "vllm-neuron neuron_model_runner.py __init__ (RuntimeError); features-guide.md",
    NATIVE,
)
def async_sampling(case: Case) -> Iterator[Trip]:
    given = case.given
    if "on_device_sampling_config" not in given or given["on_device_sampling_config"] is not None:
        return
    wanted = case.plan.engine_args.get("async_scheduling")
    # Left alone, vLLM turns it on, but not for pooling; with a draft model versions differ.
    by_default = wanted is None and not pooling(case) and not mapping(case, "speculative_config")
    if wanted or by_default:
        message = "sampling is on the processor (on_device_sampling_config null), but async"
        message += " scheduling is on" if wanted else " scheduling is on by default"
        yield Trip(message, "set async_scheduling to false", "engine.async_scheduling")


@rule(
    "native-async-speculative",
    Severity.WARNING,
    "Speculative decoding turns async scheduling off",
    "aws-neuron-sdk vllm-neuron/docs/guides/features-guide.md Speculative decoding",
    NATIVE,
)
def async_speculative(case: Case) -> Iterator[Trip]:
    if case.engine("async_scheduling") and mapping(case, "speculative_config"):
        message = "async_scheduling and speculative_config exclude each other"
        yield Trip(message, "remove async_scheduling", "engine.async_scheduling")


@rule(
    "native-async-pooling",
    Severity.WARNING,
    "Pooling models have no decode loop to overlap",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/pooling-models.md",
    NATIVE,
)
def async_pooling(case: Case) -> Iterator[Trip]:
    if case.engine("async_scheduling") and pooling(case):
        message = "async scheduling is not supported with a pooling model"
        yield Trip(message, "remove async_scheduling", "engine.async_scheduling")


@rule(
    "native-speculative",
    Severity.ERROR,
    "EAGLE3 is the one method of speculative decoding",
    "vllm-neuron 0.24 neuron_model_runner.py __init__ (ValueError); features-guide.md",
    NATIVE,
)
def speculative(case: Case) -> Iterator[Trip]:
    given = mapping(case, "speculative_config")
    method = given.get("method") if given else None
    path = "engine.speculative_config.method"
    if method == "dflash":
        message = "AWS's features guide lists dflash, but the runner of 0.24 raises for it"
        yield Trip(message, "use eagle3", path, Severity.WARNING)
    elif method is not None and method != "eagle3":
        message = f"speculative method {method!r} is not supported"
        yield Trip(message, "use eagle3 with a draft that fits the model", path)


@rule(
    "native-speculative-model",
    Severity.WARNING,
    "EAGLE3 is documented for Llama 3 and gpt-oss",
    "aws-neuron-sdk vllm-neuron/docs/model-recipes/*.md, Features",
    NATIVE,
)
def speculative_model(case: Case) -> Iterator[Trip]:
    name = architecture(case)
    if mapping(case, "speculative_config") and name and not name.startswith(("Llama", "GptOss")):
        message = f"speculative decoding is documented for Llama 3 and gpt-oss, not for {name}"
        yield Trip(message, "remove speculative_config", "engine.speculative_config")


@rule(
    "native-structured",
    Severity.NOTE,
    "Structured outputs are off unless enabled",
    f"{_PLATFORM} validate_request; structured-outputs-and-tool-calling.md",
    NATIVE,
)
def structured(case: Case) -> Iterator[Trip]:
    path = case.at("enable_structured_outputs")
    if case.given.get("enable_structured_outputs") is True:
        if case.given.get("on_device_sampling_config", {}) is None:
            message = "structured outputs need on-device sampling, which is null"
            mend = "remove on_device_sampling_config"
            yield Trip(message, mend, path, Severity.ERROR)
        return
    mend = "set neuron_config.enable_structured_outputs to true if clients need them"
    if case.args.engine.get("structured_outputs_config"):
        message = "structured_outputs_config is set, but the plugin refuses such requests"
        yield Trip(message, mend, path, Severity.WARNING)
    elif case.engine("tool_call_parser") or case.engine("enable_auto_tool_choice"):
        message = "requests with tool_choice required or a named tool, and those with a"
        yield Trip(f"{message} response_format, are refused; tool_choice auto works", mend, path)


@rule(
    "native-greedy",
    Severity.NOTE,
    "all_greedy compiles greedy decoding for every request",
    "vllm-neuron model/neuron_config.py OnDeviceSamplingConfig.all_greedy",
    NATIVE,
)
def greedy(case: Case) -> Iterator[Trip]:
    sampling = case.effective.get("on_device_sampling_config")
    value = sampling.get("all_greedy") if isinstance(sampling, dict) else False
    if str(value).lower() in ("true", "1", "yes"):
        message = "all_greedy: temperature, top_k and top_p of requests have no effect"
        path = case.at("on_device_sampling_config.all_greedy")
        yield Trip(message, "remove it if clients sample", path)


@rule(
    "native-logprobs",
    Severity.WARNING,
    "neuron_config.max_logprobs hides vLLM's max_logprobs",
    "vllm-neuron neuron_model_runner.py __init__: setdefault from model_config.max_logprobs",
    NATIVE,
)
def logprobs(case: Case) -> Iterator[Trip]:
    inner, outer = case.given.get("max_logprobs"), case.engine("max_logprobs", 20)
    if inner is not None and bool(inner) != bool(outer):
        message = f"neuron_config.max_logprobs {inner} and vLLM's max_logprobs {outer} differ"
        yield Trip(message, "set engine.max_logprobs only", case.at("max_logprobs"))


@rule(
    "native-snapshot",
    Severity.ERROR,
    "Snapshot capture needs synchronous scheduling",
    "vllm-neuron 0.24 vllm/platform.py check_and_update_config (ValueError)",
    NATIVE,
)
def snapshot(case: Case) -> Iterator[Trip]:
    name = "VLLM_NEURON_RUNTIME_INPUT_SNAPSHOT_ENABLE"
    if case.plan.env.get(name) == "1" and case.engine("async_scheduling", True):
        message = f"{name} excludes async scheduling, which is on"
        yield Trip(message, "set async_scheduling to false", "engine.async_scheduling")
