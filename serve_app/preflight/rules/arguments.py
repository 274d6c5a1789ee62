"""Rules of both Neuron back ends: vLLM's arguments per version, and the other one's variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from serve_app.config import Severity
from serve_app.config.findings import did_you_mean
from serve_app.config.vllm_arguments import OWNED, Argument, arguments
from serve_app.preflight.case import BOTH, NATIVE, NXDI, Case, Trip, rule

_VERSIONS = ("0.13", "0.16", "0.24")
"""vLLM families with a table of arguments that a Neuron stack has."""

_V0 = {
    "device": "remove it: the plugin finds the Neuron devices",
    "override_neuron_config": "write it under additional_config",
    "use_v2_block_manager": "remove it",
    "num_scheduler_steps": "remove it",
    "num_lookahead_slots": "remove it",
    "preemption_mode": "remove it",
    "guided_decoding_backend": "use structured_outputs_config",
    "task": "use runner and convert",
    "disable_log_requests": "remove it: requests are not logged unless enable_log_requests",
}


def _table(case: Case) -> tuple[str, dict[str, Argument]] | None:
    """The stack's arguments, with the version that they are of."""
    vllm = case.target.stack.vllm
    # 0.21 has no table of its own; 0.24 is the nearest.
    version = "0.24" if vllm == "0.21" else vllm
    try:
        return version, dict(arguments(version))
    except KeyError:
        return None


@rule(
    "argument-unknown",
    Severity.ERROR,
    "The stack's vLLM has the argument",
    "vllm serve --help of vLLM 0.13, 0.16 and 0.24",
    BOTH,
)
def unknown(case: Case) -> Iterator[Trip]:
    table = _table(case)
    if table is None:
        return
    version, known = table
    for name, value in case.args.engine.items():
        if name in known or name in OWNED or value is None:
            continue
        message = f"vLLM {case.target.stack.vllm} has no argument {name!r}"
        others = [v for v in _VERSIONS if v != version and name in arguments(v)]
        if others:
            message += f"; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        mend = _V0.get(name) or (
            "remove it, or choose another stack.sdk" if others else did_you_mean(name, known)
        )
        # Between 0.21 and the table of 0.24 an argument may have come or gone.
        doubtful = version != case.target.stack.vllm
        yield Trip(message, mend, f"engine.{name}", Severity.WARNING if doubtful else None)


@rule(
    "argument-value",
    Severity.ERROR,
    "The stack's vLLM takes the value",
    "vllm serve --help of vLLM 0.13, 0.16 and 0.24",
    BOTH,
)
def value(case: Case) -> Iterator[Trip]:
    table = _table(case)
    for name, given in case.args.engine.items() if table else ():
        argument = table[1].get(name) if table else None
        # The native plugin's own rules say more about these.
        if argument is None or (name == "kv_cache_dtype" and case.plan.backend == "neuron"):
            continue
        if wanted := argument.refuses(given):
            message = f"{name} takes {wanted} in vLLM {case.target.stack.vllm}, not {given!r}"
            yield Trip(message, "write a value of that kind", f"engine.{name}")


class Fate(NamedTuple):
    """What becomes of an argument that the user sets."""

    kept: tuple[Any, ...]
    """Values that change nothing."""
    becomes: str
    mend: str = "remove it"
    severity: Severity | None = None


_NXDI_FATES = {
    "distributed_executor_backend": Fate(("uni",), "is replaced by uni: one process drives all"),
    "max_num_batched_tokens": Fate((131072,), "is overwritten with 131072"),
    "gpu_memory_utilization": Fate((), "has no effect: NxDI allocates what it compiled"),
    "kv_cache_memory_bytes": Fate((), "has no effect: NxDI allocates what it compiled"),
    "cpu_offload_gb": Fate((0,), "has no effect: weights are on the device"),
    "enforce_eager": Fate((False,), "has no effect: NxDI always compiles"),
    "compilation_config": Fate((), "has no effect: NxDI compiles the graphs"),
    "optimization_level": Fate((), "has no effect: NxDI compiles the graphs"),
    "attention_backend": Fate((), "has no effect: NxDI brings its attention"),
    "worker_cls": Fate(("auto",), "keeps the plugin's worker out"),
    "scheduler_cls": Fate((), "may be replaced by the plugin's scheduler"),
}
_NATIVE_FATES = {
    "kv_cache_memory_bytes": Fate((), "is not what the plugin sizes the KV cache by"),
    "cpu_offload_gb": Fate((0,), "has no effect: weights are on the device"),
    "attention_backend": Fate((), "is replaced by the plugin's attention"),
    "worker_cls": Fate(("auto",), "keeps the plugin's worker out"),
    "cuda_graph_sizes": Fate((), "has no effect: there are no CUDA graphs"),
    "cudagraph_capture_sizes": Fate((), "has no effect: there are no CUDA graphs"),
    "max_cudagraph_capture_size": Fate((), "has no effect: there are no CUDA graphs"),
    "enable_chunked_prefill": Fate(
        (False,),
        "is the default; prefill and decode are never mixed in one batch",
        "remove it",
        Severity.NOTE,
    ),
}


def _fates(case: Case, fates: dict[str, Fate]) -> Iterator[Trip]:
    for name, fate in fates.items():
        given = case.args.engine.get(name)
        if given is not None and given not in fate.kept:
            message = f"{name} {given!r} {fate.becomes}"
            yield Trip(message, fate.mend, f"engine.{name}", fate.severity)


@rule(
    "argument-overwritten-nxdi",
    Severity.WARNING,
    "The NxDI plugin overwrites or ignores several arguments",
    "vllm-neuron 0.4.1/0.5.0 platform.py check_and_update_config, neuron_worker.py",
    NXDI,
)
def overwritten_nxdi(case: Case) -> Iterator[Trip]:
    ranks = case.target.cores > 1
    fates = dict(_NXDI_FATES)
    if not ranks:
        del fates["distributed_executor_backend"]
    if case.plan.env.get("DISABLE_NEURON_CUSTOM_SCHEDULER") == "1":
        del fates["max_num_batched_tokens"]
    yield from _fates(case, fates)


@rule(
    "argument-overwritten-native",
    Severity.WARNING,
    "The native plugin overwrites or ignores several arguments",
    "vllm-neuron 0.24 platform.py check_and_update_config, get_attn_backend_cls",
    NATIVE,
)
def overwritten_native(case: Case) -> Iterator[Trip]:
    yield from _fates(case, _NATIVE_FATES)


class Stray(NamedTuple):
    """An environment variable of the other back end."""

    why: str
    mend: str
    severity: Severity | None = None


_NXDI_STRAYS = {
    "VLLM_CACHE_ROOT": Stray(
        "does not move NxDI's compile cache", "set artifacts.compile_cache", Severity.NOTE
    ),
    "NEURON_LIBTORCH_REMOTE_CACHE": Stray("is the native plugin's", "set artifacts.compile_cache"),
    "VLLM_NEURON_REMOTE_CACHE": Stray("is the native plugin's", "set artifacts.compile_cache"),
    "VLLM_NEURON_CPU_MODE": Stray("is the native plugin's", "remove it"),
    "VLLM_NEURON_CPU_COMPILE": Stray("is the native plugin's", "remove it"),
    "VLLM_NEURON_COMPILATION_TIMEOUT": Stray("is the native plugin's", "remove it"),
    "NEURON_LIBTORCH_COMPILATION_TIMEOUT": Stray("is the native plugin's", "remove it"),
    "VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION": Stray("is the native plugin's", "remove it"),
    "VLLM_NEURON_MIN_KV_BUDGET_GIB": Stray("is the native plugin's", "remove it"),
}
_NATIVE_STRAYS = {
    "NEURON_COMPILED_ARTIFACTS": Stray(
        "is in AWS's guide, but the plugin's source does not read it",
        "rely on artifacts.compile_cache (VLLM_CACHE_ROOT)",
    ),
    "VLLM_NEURON_FRAMEWORK": Stray("is NxDI's and not needed", "remove it", Severity.NOTE),
    "NEURON_COMPILE_CACHE_URL": Stray("is NxDI's", "set artifacts.compile_cache"),
    "BASE_COMPILE_WORK_DIR": Stray("is NxDI's", "remove it"),
    "DISABLE_NEURON_CUSTOM_SCHEDULER": Stray("is NxDI's", "remove it"),
    "NEURON_ON_DEVICE_SAMPLING_DISABLED": Stray(
        "is NxDI's", "set neuron_config.on_device_sampling_config to null"
    ),
}


def _strays(case: Case, strays: dict[str, Stray]) -> Iterator[Trip]:
    for name in case.args.env:
        if stray := strays.get(name):
            message = f"{name} {stray.why}; it has no effect with backend {case.plan.backend}"
            yield Trip(message, stray.mend, f"env.{name}", stray.severity)


@rule(
    "env-of-native",
    Severity.WARNING,
    "A variable of the native plugin has no effect on NxDI",
    "vllm-neuron 0.5.0 source; vllm-neuron 0.24 envs.py",
    NXDI,
)
def of_native(case: Case) -> Iterator[Trip]:
    yield from _strays(case, _NXDI_STRAYS)


@rule(
    "env-of-nxdi",
    Severity.WARNING,
    "A variable of NxDI has no effect on the native plugin",
    "vllm-neuron 0.24 envs.py; migration-nxdi-to-vllm-neuron.md",
    NATIVE,
)
def of_nxdi(case: Case) -> Iterator[Trip]:
    yield from _strays(case, _NATIVE_STRAYS)


@rule(
    "env-framework",
    Severity.WARNING,
    "VLLM_NEURON_FRAMEWORK has one legal value",
    "aws-neuron-sdk libraries/nxd-inference/developer_guides/vllm-user-guide-v1.rst",
    NXDI,
)
def framework(case: Case) -> Iterator[Trip]:
    given, legal = case.args.env.get("VLLM_NEURON_FRAMEWORK"), "neuronx-distributed-inference"
    if given is not None and given != legal and "${" not in given:
        message = f"VLLM_NEURON_FRAMEWORK is {given!r}"
        yield Trip(message, f"set {legal}, or remove it", "env.VLLM_NEURON_FRAMEWORK")


@rule(
    "env-v0",
    Severity.WARNING,
    "The V0 engine is gone",
    "vLLM 0.11 release notes; aws-neuron-sdk announcement-end-of-support-vllm-v0.rst",
    BOTH,
)
def v0(case: Case) -> Iterator[Trip]:
    if case.args.env.get("VLLM_USE_V1") == "0":
        message = f"VLLM_USE_V1 is 0, and vLLM {case.target.stack.vllm} has no V0 engine"
        yield Trip(message, "remove it", "env.VLLM_USE_V1")
