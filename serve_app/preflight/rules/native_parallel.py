"""Rules of the native plugin: tensor, pipeline, data and expert parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.neuron.native_config import COMPONENT_SIZES
from serve_app.preflight.case import NATIVE, Case, Trip, rule
from serve_app.preflight.rules.native_case import (
    architecture,
    count,
    dp,
    size,
    tp,
    transfer,
)

_PLATFORM = "vllm-neuron 0.21/0.24 vllm/platform.py"


@rule(
    "native-data-llama",
    Severity.WARNING,
    "Data parallelism does not scale with Llama",
    "aws-neuron-sdk vllm-neuron/docs/model-recipes/llama-3.md Known issues",
    NATIVE,
)
def data_llama(case: Case) -> Iterator[Trip]:
    if dp(case) > 1 and architecture(case).startswith("Llama") and not transfer(case):
        message = f"data_parallel_size {dp(case)}: AWS reports that throughput does not scale"
        mend = f"set scaling.num_replicas to {dp(case)} and data_parallel_size to 1"
        yield Trip(f"{message} with Llama", mend, "engine.data_parallel_size")


@rule(
    "native-expert-flag",
    Severity.ERROR,
    "ep_degree needs enable_expert_parallel",
    "vllm-neuron neuron_worker.py resolve_ep_degree (ValueError)",
    NATIVE,
)
def expert_flag(case: Case) -> Iterator[Trip]:
    if size(case, "ep_degree") > 1 and not case.engine("enable_expert_parallel"):
        message = f"ep_degree {size(case, 'ep_degree')} without enable_expert_parallel"
        yield Trip(message, "set enable_expert_parallel to true", case.at("ep_degree"))


@rule(
    "native-expert-degree",
    Severity.ERROR,
    "ep_degree divides the ranks and the experts",
    "vllm-neuron neuron_worker.py resolve_ep_degree (ValueError); expert_parallelism.md",
    NATIVE,
)
def expert_degree(case: Case) -> Iterator[Trip]:
    if not case.engine("enable_expert_parallel"):
        return
    ranks = tp(case) * dp(case)
    degree = size(case, "ep_degree")
    degree = ranks if degree == 1 else degree
    path = case.at("ep_degree")
    if ranks % degree:
        message = f"{ranks} ranks (TP x DP) cannot be divided by ep_degree {degree}"
        yield Trip(message, f"use a divisor of {ranks}", path)
    elif case.model and case.model.experts and case.model.experts % degree:
        message = f"{case.model.experts} experts cannot be divided by ep_degree {degree}"
        if size(case, "ep_degree") == 1:
            message += ", by default all ranks"
        yield Trip(message, f"use a divisor of {case.model.experts} and {ranks}", path)


@rule(
    "native-expert-span",
    Severity.WARNING,
    "With data parallelism experts span all ranks",
    "features-guide.md and expert_parallelism.md reject others; resolve_ep_degree takes them",
    NATIVE,
)
def expert_span(case: Case) -> Iterator[Trip]:
    degree, ranks = size(case, "ep_degree"), tp(case) * dp(case)
    flag = case.engine("enable_expert_parallel")
    if flag and dp(case) > 1 and degree > 1 and degree != ranks and not ranks % degree:
        message = f"ep_degree {degree} is not TP x DP = {ranks}; AWS's guide says that it must be"
        yield Trip(message, f"set it to {ranks} or remove it", case.at("ep_degree"))


@rule(
    "native-expert-dense",
    Severity.ERROR,
    "Expert parallelism needs experts",
    "vLLM config/model.py _verify_with_expert_parallelism (ValueError)",
    NATIVE,
)
def expert_dense(case: Case) -> Iterator[Trip]:
    if case.engine("enable_expert_parallel") and case.model and not case.model.experts:
        message = f"enable_expert_parallel with {case.model.model_type}, which has no experts"
        yield Trip(message, "remove it", "engine.enable_expert_parallel")


def _components(case: Case) -> dict[str, int]:
    return {name: size(case, name) for name in COMPONENT_SIZES if size(case, name) > 1}


@rule(
    "native-component-dp",
    Severity.ERROR,
    "Component data parallelism is for the decode side of a split pair",
    f"{_PLATFORM} _validate_component_dp_config (ValueError)",
    NATIVE,
)
def component_dp(case: Case) -> Iterator[Trip]:
    sizes = _components(case)
    if not sizes:
        return
    name = next(iter(sizes))
    what, path = f"{name} {sizes[name]}", case.at(name)
    given = transfer(case)
    if given is None:
        message = f"{what} needs disaggregated inference, and there is no kv_transfer_config"
        yield Trip(message, f"remove {', '.join(sizes)}", path)
    elif given.get("kv_role") not in ("kv_consumer", "kv_both"):
        message = f"{what} is for the decode server; kv_role is {given.get('kv_role')!r}"
        yield Trip(message, f"remove {', '.join(sizes)}", path)
    if dp(case) < 2:
        message = f"{what} needs data_parallel_size of at least 2"
        yield Trip(message, f"set data_parallel_size to {sizes[name]}", path)


@rule(
    "native-component-size",
    Severity.ERROR,
    "A component's degree divides data_parallel_size",
    "aws-neuron-sdk design/parallelism/component_dp_sharding.md, attention_dp.md",
    NATIVE,
)
def component_size(case: Case) -> Iterator[Trip]:
    for name, degree in _components(case).items():
        if dp(case) > 1 and dp(case) % degree:
            message = f"{name} {degree} does not divide data_parallel_size {dp(case)}"
            yield Trip(message, f"use a divisor of {dp(case)}", case.at(name))
    wide = tp(case) * size(case, "attention_dp_size")
    if size(case, "attention_dp_size") > 1 and case.model and wide > case.model.heads:
        message = f"TP x attention_dp_size = {wide} exceeds the {case.model.heads} heads"
        yield Trip(message, "lower attention_dp_size", case.at("attention_dp_size"))


@rule(
    "native-nodes",
    Severity.ERROR,
    "An engine over several nodes needs the head's address",
    "vllm-neuron neuron_worker.py validate_cross_node_master_addr (ValueError)",
    NATIVE,
)
def nodes(case: Case) -> Iterator[Trip]:
    here = (None, "", "127.0.0.1", "localhost", "::1")
    if count(case, "nnodes") > 1 and case.plan.engine_args.get("master_addr") in here:
        message = f"nnodes is {count(case, 'nnodes')} and master_addr is the loopback"
        yield Trip(message, "set master_addr to the head node's IP", "engine.master_addr")
