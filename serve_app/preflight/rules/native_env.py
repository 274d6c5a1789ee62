"""Rules of the native plugin: environment variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from serve_app.config import Severity
from serve_app.config.findings import did_you_mean
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import mapping, on, since

_ENVS = "vllm-neuron envs.py of 0.21 and 0.24"
_SWITCHES = (
    "VLLM_NEURON_CPU_MODE",
    "VLLM_NEURON_CPU_COMPILE",
    "VLLM_NEURON_DEBUG_MODE",
    "VLLM_NEURON_SWITCH_CC",
    "VLLM_NEURON_MLP_FORCE_TKG",
    "VLLM_NEURON_DISABLE_NKI_KERNELS",
    "VLLM_NEURON_DISABLE_WARMUP_COMPILE",
    "VLLM_NEURON_DISABLE_PARALLEL_TRACE",
    "VLLM_NEURON_SKIP_PREFILL_WARMUP",
    "VLLM_NEURON_SKIP_DECODE_WARMUP",
    "VLLM_NEURON_SKIP_PREFILL_DECODE_WARMUP",
    "VLLM_NEURON_SKIP_ENCODER_WARMUP",
    "VLLM_NEURON_FORCE_STATIC_FP8",
    "VLLM_NEURON_RUNTIME_INPUT_SNAPSHOT_ENABLE",
)
_COUNTS = (
    "VLLM_NEURON_BARRIER_TIMEOUT",
    "VLLM_NEURON_WORKER_TERMINATION_TIMEOUT",
    "VLLM_NEURON_EPD_RENDERER_WORKERS",
)
_SHARES = ("VLLM_NEURON_MIN_KV_BUDGET_GIB", "VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION")
_TEXTS = (
    "VLLM_NEURON_LOG_LEVEL",
    "VLLM_NEURON_BACKEND",
    "VLLM_NEURON_EFA_INSTANCE_FAMILY",
    "VLLM_NEURON_CHECKPOINT_CACHE",
    "VLLM_NEURON_GOLDEN_CACHE_DIR",
    "VLLM_NEURON_S3_GOLDENS_URI",
    "VLLM_NEURON_SYNTHETIC_MODEL",
    "VLLM_NEURON_BIDIRECTIONAL_KV",
    "VLLM_NEURON_FRAMEWORK",
)
_RENAMED = {
    name.replace("NEURON_LIBTORCH", "VLLM_NEURON"): name
    for name in (
        "NEURON_LIBTORCH_COMPILATION_TIMEOUT",
        "NEURON_LIBTORCH_PARALLEL_COMPILE_WORKERS",
        "NEURON_LIBTORCH_PARALLEL_TRACE_WORKERS",
        "NEURON_LIBTORCH_DISABLE_COMPILE_CACHE",
        "NEURON_LIBTORCH_DISABLE_GRAPH_CAPTURE_BACKEND",
        "NEURON_LIBTORCH_REMOTE_CACHE",
    )
}
"""0.21's name -> 0.24's."""
_GONE = (
    "VLLM_NEURON_ASSERT_CACHE_HIT",
    "VLLM_NEURON_KERNEL_DEVICE_DUMP",
    "VLLM_NEURON_LIBTORCH_NEURONX_LITE",
)
_MISSPELT = {
    "VLLM_EXECUTE_MODEL_TIMEOUT": "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    "VLLM_EXECUTE_MODEL_TIMEOUT_S": "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    "VLLM_ENGINE_READY_TIMEOUT": "VLLM_ENGINE_READY_TIMEOUT_S",
    "VLLM_ENGINE_READY_TIMEOUT_SECONDS": "VLLM_ENGINE_READY_TIMEOUT_S",
}
_PREFIX, _SNAPSHOT = "VLLM_NEURON_", "VLLM_NEURON_RUNTIME_INPUT_SNAPSHOT_"
_KNOWN = (*_SWITCHES, *_COUNTS, *_SHARES, *_TEXTS, *_RENAMED, *_GONE)


@rule(
    "native-env-value",
    Severity.ERROR,
    "The plugin's switches are 0 or 1, its limits are numbers",
    f"{_ENVS}: maybe_convert_bool is bool(int(value)) (ValueError)",
    NATIVE,
)
def value(case: Case) -> Iterator[Trip]:
    kinds: tuple[tuple[tuple[str, ...], Callable[[str], object], str], ...] = (
        (_SWITCHES, int, "0 or 1"),
        (_COUNTS, int, "a whole number"),
        (_SHARES, float, "a number"),
    )
    for names, convert, wanted in kinds:
        for name in names:
            text = case.args.env.get(name)
            # A reference is read where the replica runs.
            if text is None or "${" in text:
                continue
            try:
                convert(text)
            except ValueError:
                yield Trip(f"{name} is {text!r}", f"set {wanted}", f"env.{name}")


@rule(
    "native-env-unknown",
    Severity.WARNING,
    "VLLM_NEURON_* variables have known names",
    _ENVS,
    NATIVE,
)
def unknown(case: Case) -> Iterator[Trip]:
    for name in case.args.env:
        if name in _MISSPELT:
            yield Trip(f"{name} is read by nobody", f"use {_MISSPELT[name]}", f"env.{name}")
        elif name.startswith(_PREFIX) and name not in _KNOWN and not name.startswith(_SNAPSHOT):
            message = f"{name} is not known to the plugin"
            yield Trip(message, did_you_mean(name, _KNOWN), f"env.{name}")


@rule(
    "native-env-renamed",
    Severity.WARNING,
    "0.24 renamed the compiler's variables",
    f"{_ENVS}; reference-configuration.md Environment variables",
    NATIVE,
)
def renamed(case: Case) -> Iterator[Trip]:
    newer = since(case, "0.24")
    for old, new in _RENAMED.items():
        wrong, right = (old, new) if newer else (new, old)
        if wrong in case.args.env and right not in case.args.env:
            message = f"vLLM {case.target.stack.vllm}'s plugin calls {wrong} {right}"
            yield Trip(message, f"set {right}", f"env.{wrong}")
    for name in _GONE if newer else ():
        if name in case.args.env:
            yield Trip(f"{name} is gone since 0.24", "remove it", f"env.{name}")


@rule(
    "native-env-cpu",
    Severity.ERROR,
    "CPU mode and CPU compilation exclude each other",
    "vllm-neuron __init__.py _init_backend (RuntimeError); cpu_compilation.md",
    NATIVE,
)
def cpu(case: Case) -> Iterator[Trip]:
    env = case.plan.env
    mode, compiling = (on(env.get(f"VLLM_NEURON_CPU_{name}")) for name in ("MODE", "COMPILE"))
    path = "env.VLLM_NEURON_CPU_COMPILE"
    if mode and compiling:
        message = "VLLM_NEURON_CPU_MODE and VLLM_NEURON_CPU_COMPILE are both on"
        yield Trip(message, "keep one of them", path)
        return
    if mode:
        message = "VLLM_NEURON_CPU_MODE runs the model on the processor"
        yield Trip(message, "remove it to serve", "env.VLLM_NEURON_CPU_MODE", Severity.WARNING)
    if not compiling:
        return
    if not env.get("NEURON_PLATFORM_TARGET_OVERRIDE"):
        message = "VLLM_NEURON_CPU_COMPILE needs NEURON_PLATFORM_TARGET_OVERRIDE"
        family = case.target.instance.family.removesuffix("u")
        yield Trip(message, f"set NEURON_PLATFORM_TARGET_OVERRIDE to {family}", path)
    if mapping(case, "speculative_config"):
        message = "VLLM_NEURON_CPU_COMPILE does not support speculative decoding"
        yield Trip(message, "remove speculative_config", path)
    message = "VLLM_NEURON_CPU_COMPILE compiles only: the engine answers nothing"
    yield Trip(message, "remove it to serve", path, Severity.WARNING)


@rule(
    "native-env-warmup",
    Severity.ERROR,
    "Fatal cache misses need the compile cache",
    "vllm-neuron 0.21 envs.py: incompatible",
    NATIVE,
)
def warmup(case: Case) -> Iterator[Trip]:
    env = case.plan.env
    caches = ("NEURON_LIBTORCH_DISABLE_COMPILE_CACHE", "VLLM_NEURON_DISABLE_COMPILE_CACHE")
    strict = ("VLLM_NEURON_DISABLE_WARMUP_COMPILE", "VLLM_NEURON_ASSERT_CACHE_HIT")
    for name in strict:
        for other in caches:
            if on(env.get(name)) and on(env.get(other)):
                message = f"{name} makes a cache miss fatal, and {other} turns the cache off"
                yield Trip(message, f"remove {other}", f"env.{other}")
                return


@rule(
    "native-env-v2-runner",
    Severity.ERROR,
    "The V2 model runner is not supported",
    "vllm-neuron 0.24 vllm/platform.py _reject_v2_model_runner (ValueError)",
    NATIVE,
)
def v2_runner(case: Case) -> Iterator[Trip]:
    if on(case.args.env.get("VLLM_USE_V2_MODEL_RUNNER")):
        message = "VLLM_USE_V2_MODEL_RUNNER is on; Neuron has no such runner"
        severity = None if since(case, "0.24") else Severity.WARNING
        yield Trip(message, "remove it", "env.VLLM_USE_V2_MODEL_RUNNER", severity)


@rule(
    "native-env-efa",
    Severity.WARNING,
    "Without EFA the worker's affinity must be switched off",
    "field report, SDK 2.32 on trn2.3xlarge: FileNotFoundError .../infiniband in every worker",
    NATIVE,
)
def efa(case: Case) -> Iterator[Trip]:
    small = case.target.instance.name.endswith(".3xlarge")
    if small and not on(case.plan.env.get("NEURON_SKIP_EFA_AFFINITY")):
        message = f"{case.target.instance.name} has no EFA device, and every worker looks for it"
        yield Trip(message, "set NEURON_SKIP_EFA_AFFINITY to 1", "env.NEURON_SKIP_EFA_AFFINITY")
