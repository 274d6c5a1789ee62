"""Rules of the native plugin: vLLM's arguments that it replaces, limits or does not support."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from serve_app.config import Severity
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    additional,
    block_size,
    length,
    mapping,
)

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"
_DEFAULT_SCHEDULERS = (
    "vllm.v1.core.sched.scheduler.Scheduler",
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler",
)


@rule(
    "native-executor",
    Severity.WARNING,
    "The executor is mp or uni",
    f"{_PLATFORM} check_and_update_config allowed_backends",
    NATIVE,
)
def executor(case: Case) -> Iterator[Trip]:
    given = case.args.engine.get("distributed_executor_backend")
    if given is not None and given not in ("mp", "uni"):
        message = f"distributed_executor_backend {given!r} will be replaced by mp"
        yield Trip(message, "remove it", "engine.distributed_executor_backend")


@rule(
    "native-scheduler",
    Severity.WARNING,
    "A scheduler of one's own loses Neuron's constraints",
    f"{_PLATFORM} check_and_update_config scheduler_cls",
    NATIVE,
)
def scheduler(case: Case) -> Iterator[Trip]:
    given = case.args.engine.get("scheduler_cls")
    ours = isinstance(given, str) and given.startswith("vllm_neuron.")
    if given is not None and given not in _DEFAULT_SCHEDULERS and not ours:
        message = f"scheduler_cls {given!r} keeps NeuronScheduler out: prefill and decode"
        yield Trip(f"{message} may then be mixed", "remove it", "engine.scheduler_cls")


@rule(
    "native-scheduling-policy",
    Severity.ERROR,
    "The scheduler is first come, first served",
    "vllm-neuron 0.24 vllm/core/scheduler.py NeuronScheduler.__init__ (ValueError)",
    NATIVE,
)
def policy(case: Case) -> Iterator[Trip]:
    given = case.engine("scheduling_policy", "fcfs")
    if given != "fcfs":
        message = f"scheduling_policy {given!r}: the Neuron scheduler knows fcfs only"
        yield Trip(message, "remove it", "engine.scheduling_policy")


@rule(
    "native-optimization-level",
    Severity.WARNING,
    "Optimization level 2 is taken for the default and lowered to 1",
    f"{_PLATFORM} apply_config_platform_defaults: looks into sys.argv, and only there",
    NATIVE,
)
def optimization(case: Case) -> Iterator[Trip]:
    given = case.args.engine.get("optimization_level")
    if str(given).upper().removeprefix("O") == "2":
        message = "optimization_level 2 becomes 1, unless sys.argv of the process holds it"
        yield Trip(message, "set 1 or 3", "engine.optimization_level")


@rule(
    "native-block-size",
    Severity.WARNING,
    "Blocks of 16, 32, 64 or 128 tokens",
    "vllm-neuron bucket_utils.py: block tables are cut in tiles of 128 // block_size",
    NATIVE,
)
def block(case: Case) -> Iterator[Trip]:
    if block_size(case) not in (16, 32, 64, 128):
        message = f"block_size {block_size(case)} does not fit the attention kernels' tile of 128"
        yield Trip(message, "use 16, 32 (the default), 64 or 128", "engine.block_size")


@rule(
    "native-gpu-blocks",
    Severity.NOTE,
    "The plugin sizes the KV cache by itself",
    "migration-nxdi-to-vllm-neuron.md: do not set it; features-guide.md: set it. They disagree",
    NATIVE,
)
def gpu_blocks(case: Case) -> Iterator[Trip]:
    given, tokens = case.args.engine.get("num_gpu_blocks_override"), length(case)
    path = "engine.num_gpu_blocks_override"
    if not isinstance(given, int):
        return
    if tokens and given * block_size(case) < tokens:
        message = f"{given} blocks of {block_size(case)} tokens hold less than one sequence of"
        mend = f"set it to {-(-tokens // block_size(case))} or more, or remove it"
        yield Trip(f"{message} max_model_len {tokens}", mend, path, Severity.WARNING)
    else:
        message = f"num_gpu_blocks_override {given} replaces the size that the plugin computes"
        yield Trip(f"{message} from gpu_memory_utilization", "remove it unless you need it", path)


@rule(
    "native-memory-share",
    Severity.ERROR,
    "gpu_memory_utilization is above 0 and at most 1",
    "vLLM config/cache.py CacheConfig (ValueError)",
    NATIVE,
)
def memory_share(case: Case) -> Iterator[Trip]:
    share = case.plan.engine_args.get("gpu_memory_utilization")
    if _number(share) and not 0 < share <= 1:
        message = f"gpu_memory_utilization is {share}"
        mend = "set a share above 0 and at most 1, for example 0.9"
        yield Trip(message, mend, "engine.gpu_memory_utilization")


@rule(
    "native-kv-budget",
    Severity.ERROR,
    "The KV cache's share of device memory is at least 1 GiB",
    "vllm-neuron neuron_worker.py _compute_kv_budget (RuntimeError)",
    NATIVE,
)
def kv_budget(case: Case) -> Iterator[Trip]:
    share = case.engine("gpu_memory_utilization", 0.92)
    cap = _float(case.plan.env.get("VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION"), 0.30)
    least = _float(case.plan.env.get("VLLM_NEURON_MIN_KV_BUDGET_GIB"), 1.0)
    if cap is None or least is None or not _number(share):
        return
    if not 0 < cap <= 1:
        message = f"VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION is {cap:g}"
        path = "env.VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION"
        yield Trip(message, "set a fraction above 0 and at most 1", path)
        return
    if case.model is not None:
        return  # the rule memory-native-pool counts the weights too
    memory = case.target.instance.hbm_gib_per_core(case.target.lnc)
    if 0 < share <= 1 and memory * share * cap < least:
        message = f"the KV cache gets at most {memory:g} GiB x {share} x {cap:g} ="
        message += f" {memory * share * cap:.2f} GiB, below the minimum of {least:g} GiB"
        yield Trip(message, "raise gpu_memory_utilization", "engine.gpu_memory_utilization")


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(text: str | None, default: float) -> float | None:
    """None for what is no number: that is the business of the rule about values."""
    try:
        return default if text is None else float(text)
    except ValueError:
        return None


@rule(
    "native-lora",
    Severity.ERROR,
    "The native plugin has no LoRA",
    "vllm-neuron 0.24 neuron_model_runner.py: LoRA is a TODO",
    NATIVE,
)
def lora(case: Case) -> Iterator[Trip]:
    if case.engine("enable_lora"):
        mend = "serve with backend nxdi, or merge the adapter into the weights"
        yield Trip("LoRA is not implemented in the native plugin", mend, "engine.enable_lora")


@rule(
    "native-pooling-task",
    Severity.ERROR,
    "Of the pooling tasks only embed is supported",
    "aws-neuron-sdk vllm-neuron/docs/design/vllm/pooling-models.md Supported tasks",
    NATIVE,
)
def pooling_task(case: Case) -> Iterator[Trip]:
    given = case.engine("convert")
    if given in ("classify", "reward", "score"):
        message = f"convert {given!r} is not supported"
        yield Trip(message, "use embed", "engine.convert")


@rule(
    "native-encoder-only",
    Severity.NOTE,
    "Half a multimodal model needs the other half",
    "aws-neuron-sdk vllm-neuron/docs/tutorials/tutorial-epd-1e-1pd-xeypd.md",
    NATIVE,
)
def encoder_only(case: Case) -> Iterator[Trip]:
    half = case.engine("mm_encoder_only") or additional(case).get("mm_language_model_only")
    if half and not mapping(case, "ec_transfer_config"):
        message = "only half of the model is built, and no ec_transfer_config links it"
        mend = "set ec_transfer_config, or build the whole model"
        yield Trip(f"{message} to the other", mend, "engine.ec_transfer_config")
