"""Rules about cores: tensor-parallel degree, devices, logical cores, attention heads."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config import Severity
from serve_app.neuron.memory import kv_heads_per_rank, padded_heads
from serve_app.neuron.native_config import whole
from serve_app.preflight.case import BOTH, NATIVE, NXDI, Case, Trip, rule

_TP = "engine.tensor_parallel_size"
_FEATURE_GUIDE = (
    "aws-neuron-sdk libraries/nxd-inference/developer_guides/feature-guide.rst, "
    "Tensor-parallelism support"
)
_LNC = "aws-neuron-sdk about-neuron/arch/neuron-features/logical-neuroncore-config.rst"
_GQA = (
    "neuronx-distributed-inference modules/attention/gqa.py, get_shardable_head_counts; "
    "modules/kvcache/kv_cache_manager.py, _get_num_kv_heads_per_rank"
)
_RUNTIME = "aws-neuron-sdk neuron-runtime/guides/nrt-developer-guide.rst, NEURON_RT_VISIBLE_CORES"

LNC_VARIABLES = ("NEURON_LOGICAL_NC_CONFIG", "NEURON_RT_VIRTUAL_CORE_SIZE")
"""The second is the older name of the first."""

CORE_VARIABLES = ("NEURON_RT_VISIBLE_CORES", "NEURON_VISIBLE_DEVICES")
"""Lists of cores of a process: NxDI reads the first, the native plugin the second."""

_MUCH_PADDING = 1.25
"""From this share of padded Q heads on, a degree is worth a warning. AWS published numbers for
TP 24 with 32 heads (1.5) and 64 heads (1.125), so it is never an error."""


@rule(
    "tp-degree",
    Severity.ERROR,
    "The runtime supports this tensor-parallel degree",
    _FEATURE_GUIDE,
    BOTH,
)
def tp_degree(case: Case) -> Iterator[Trip]:
    instance, lnc = case.target.instance, case.target.lnc
    tp = _tp(case)
    if tp is None or tp > instance.cores(lnc):
        return  # more than there are: core-count
    listed = instance.tp_degrees
    if listed is not None and lnc == instance.default_lnc:
        if tp not in listed:
            yield Trip(
                f"tensor_parallel_size {tp} is not among {_list(listed)}, the degrees that the "
                f"runtime supports on {instance.name}{_why(instance.family, tp)}",
                f"use {_nearest(tp, listed)}",
                _TP,
            )
        return
    if not _power_of_two(tp):
        yield Trip(
            f"tensor_parallel_size {tp}: AWS lists no degrees for {instance.name} at LNC {lnc}, "
            "and its recipes use powers of two only",
            f"use {1 << tp.bit_length() - 1}",
            _TP,
            Severity.WARNING,
        )


@rule(
    "lnc-one",
    Severity.WARNING,
    "The tensor-parallel degrees are documented for LNC 2",
    _FEATURE_GUIDE,
    BOTH,
)
def lnc_one(case: Case) -> Iterator[Trip]:
    instance = case.target.instance
    if instance.default_lnc == 2 and case.target.lnc == 1:
        yield Trip(
            f"LNC 1 on {instance.name}: {instance.cores(1)} cores that share HBM banks by twos "
            f"({instance.hbm_gib_per_core(1):g} GiB each); AWS documents LNC 2 only",
            "leave resources.logical_nc_config out",
            "resources.logical_nc_config",
        )


@rule("lnc-chip", Severity.ERROR, "The chip has this LNC", _LNC, BOTH)
def lnc_chip(case: Case) -> Iterator[Trip]:
    instance, lnc = case.target.instance, case.target.lnc
    if lnc not in (1, 2) or (lnc == 2 and instance.generation < 2):
        yield Trip(
            f"logical_nc_config {lnc} on {instance.name}: "
            + ("it is 1 or 2" if instance.generation > 1 else "its cores cannot be joined"),
            "leave resources.logical_nc_config out",
            "resources.logical_nc_config",
        )


@rule(
    "lnc-environment",
    Severity.ERROR,
    "The environment says the same LNC as the configuration",
    "neuronx-distributed-inference models/config.py:753: the environment wins",
    BOTH,
)
def lnc_environment(case: Case) -> Iterator[Trip]:
    lnc = case.target.lnc
    for name in LNC_VARIABLES:
        value = case.args.env.get(name)
        if value is None or value.strip() == str(lnc) or "${" in value:
            continue
        yield Trip(
            f"{name} is {value!r}, while cores are counted with LNC {lnc}",
            f"remove it, and set resources.logical_nc_config: {value.strip()}"
            if value.strip() in ("1", "2") and case.target.instance.generation > 1
            else "remove it",
            f"env.{name}",
        )


@rule(
    "lnc-neuron-config",
    Severity.WARNING,
    "NeuronConfig says the same LNC",
    "neuronx-distributed-inference models/config.py:753: the environment wins",
    NXDI,
)
def lnc_neuron_config(case: Case) -> Iterator[Trip]:
    for name in ("logical_nc_config", "logical_neuron_cores"):
        value = case.given.get(name)
        if whole(value) is not None and value != case.target.lnc:
            yield Trip(
                f"{name} {value} loses against the LNC {case.target.lnc} that cores are counted "
                "with",
                "say it in resources.logical_nc_config, and there only",
                case.at(name),
            )


@rule(
    "core-count",
    Severity.ERROR,
    "An instance has the cores of one replica",
    "aws-neuron-sdk about-neuron/arch/neuron-hardware",
    BOTH,
)
def core_count(case: Case) -> Iterator[Trip]:
    instance, lnc = case.target.instance, case.target.lnc
    there = instance.cores(lnc)
    if case.target.cores > there:
        yield Trip(
            f"one replica takes {case.target.cores} cores ({_factors(case)}), and "
            f"{instance.name} has {there}",
            f"use {_largest(instance.tp_degrees, there)} or a larger instance",
            _TP,
        )


@rule(
    "core-idle",
    Severity.NOTE,
    "Every core of an instance is used",
    "aws-neuron-sdk about-neuron/arch/neuron-hardware",
    BOTH,
)
def core_idle(case: Case) -> Iterator[Trip]:
    cores, there = case.target.cores, case.target.instance.cores(case.target.lnc)
    if not 0 < cores <= there:
        return
    fit = there // cores
    used = min(case.args.scaling.most, fit) * cores
    if used == there:
        return
    name, left = case.target.instance.name, there - used
    if case.args.scaling.most < fit:
        mend = f"{fit} replicas fit: raise num_replicas, or tensor_parallel_size"
    else:
        mend = f"take a degree that divides {there}, or let another model have the rest"
    yield Trip(f"{left} of the {there} cores of {name} stay idle", mend, "scaling")


@rule(
    "device-count",
    Severity.NOTE,
    "Kubernetes hands out this number of devices",
    "aws-neuron-sdk deploy/infrastructure/scheduler.rst, Device Allocation by Instance Type; "
    "deploy/eks/dra.rst",
    BOTH,
)
def device_count(case: Case) -> Iterator[Trip]:
    instance, lnc = case.target.instance, case.target.lnc
    devices = case.target.devices
    if devices in instance.device_counts:
        return
    allowed = min((n for n in instance.device_counts if n > devices), default=None)
    if allowed is None:
        return  # more than the instance has: core-count
    idle = allowed * instance.cores_per_device(lnc) - case.target.cores
    yield Trip(
        f"one replica takes {devices} devices, and a pod on {instance.name} gets "
        f"{_list(instance.device_counts)}: it asks for {allowed}, and {idle} cores stay idle",
        f"use tensor_parallel_size {allowed * instance.cores_per_device(lnc)}, or several "
        "replicas in one pod",
        _TP,
    )


@rule(
    "core-environment",
    Severity.ERROR,
    "Ray hands out the cores",
    _RUNTIME,
    BOTH,
)
def core_environment(case: Case) -> Iterator[Trip]:
    for name in CORE_VARIABLES:
        value = case.args.env.get(name)
        if value is None:
            continue
        message = f"{name} is {value!r}, and Ray gives each replica cores of its own"
        if "${" not in value and not contiguous(value):
            message += "; it is also not a contiguous ascending range, which the runtime demands"
        yield Trip(message, "remove it", f"env.{name}")


@rule(
    "core-number-environment",
    Severity.WARNING,
    "Ray hands out the cores",
    _RUNTIME,
    BOTH,
)
def core_number_environment(case: Case) -> Iterator[Trip]:
    value = case.args.env.get("NEURON_RT_NUM_CORES")
    if value is not None:
        yield Trip(
            f"NEURON_RT_NUM_CORES is {value!r}, and has no effect: the list of cores that Ray "
            "sets takes precedence",
            "remove it",
            "env.NEURON_RT_NUM_CORES",
        )


@rule(
    "heads-padding", Severity.WARNING, "Attention heads divide by the tensor-parallel degree", _GQA
)
def heads_padding(case: Case) -> Iterator[Trip]:
    tp = _tp(case)
    if tp is None or case.model is None:
        return
    heads = case.model.heads
    padded = padded_heads(heads, tp)
    if padded == heads or heads <= 0:
        return
    waste = padded / heads
    message = f"{heads} attention heads are padded to {padded} for tensor_parallel_size {tp}, "
    message += f"{waste:.2f} times the attention work"
    if tp > heads:
        message += f": {tp - heads} ranks hold padding only"
    yield Trip(
        message,
        f"use a degree that divides {heads}",
        _TP,
        None if waste >= _MUCH_PADDING else Severity.NOTE,
    )


@rule(
    "heads-divisible",
    Severity.ERROR,
    "Attention heads divide by the tensor-parallel degree",
    "vllm config/model.py, verify_with_parallel_config; vllm-neuron 0.21 platform.py calls it",
    NATIVE,
)
def heads_divisible(case: Case) -> Iterator[Trip]:
    tp = _tp(case)
    if tp is not None and case.model is not None and case.model.heads % tp:
        yield Trip(
            f"{case.model.heads} attention heads are not divisible by tensor_parallel_size {tp}",
            f"use a degree that divides {case.model.heads}",
            _TP,
        )


@rule("heads-kv", Severity.NOTE, "The KV cache shrinks with the tensor-parallel degree", _GQA)
def heads_kv(case: Case) -> Iterator[Trip]:
    tp, model = _tp(case), case.model
    if tp is None or model is None or model.kv_heads <= 0:
        return
    dp = whole(case.neuron("attention_dp_degree")) or 1
    ranks = max(tp // dp, 1)
    per_rank = kv_heads_per_rank(model.heads, model.kv_heads, ranks)
    copies = per_rank * ranks / model.kv_heads
    if copies <= 1 or model.heads == model.kv_heads:
        return
    if ranks % model.kv_heads:
        yield Trip(
            f"{model.kv_heads} KV heads do not go into {ranks} ranks: each Q head gets a KV head "
            f"of its own, {copies:.3g} times the KV cache",
            f"use a degree that {model.kv_heads} divides, or that divides {model.kv_heads}",
            _TP,
            Severity.WARNING,
        )
        return
    yield Trip(
        f"{model.kv_heads} KV heads on {ranks} ranks: each is held {copies:.3g} times, so beyond "
        f"{model.kv_heads} ranks the KV cache per rank does not shrink",
        "where memory is short, share out the sequences with attention_dp_degree, or run more "
        "replicas of a smaller degree",
        _TP,
    )


@rule(
    "pipeline-parallel",
    Severity.ERROR,
    "Neuron has no pipeline parallelism behind vLLM",
    "vllm-neuron 0.5.0 worker/neuronx_distributed_model_loader.py passes tp_degree only; "
    "aws-neuron-sdk vllm-neuron/docs/model-recipes: PP not supported",
    BOTH,
)
def pipeline_parallel(case: Case) -> Iterator[Trip]:
    stages = whole(case.engine("pipeline_parallel_size", 1))
    if stages is not None and stages > 1:
        yield Trip(
            f"pipeline_parallel_size is {stages}, and neither Neuron plugin has pipelines",
            "remove it and raise tensor_parallel_size",
            "engine.pipeline_parallel_size",
        )


@rule(
    "data-parallel",
    Severity.WARNING,
    "Replicas are engines of their own",
    "aws-neuron-sdk libraries/nxd-inference/tutorials/trn2-llama3.3-70b-dp-tutorial.ipynb; "
    "release-notes/components/nxd-inference.rst, 2.28.0, Known Issues",
    NXDI,
)
def data_parallel(case: Case) -> Iterator[Trip]:
    size = whole(case.engine("data_parallel_size", 1))
    if size is not None and size > 1:
        yield Trip(
            f"data_parallel_size is {size}: AWS runs a server each, and knows of uneven "
            "distribution of requests within one engine",
            f"use scaling.num_replicas: {size}",
            "engine.data_parallel_size",
        )


def contiguous(cores: str) -> bool:
    """Whether a list of cores ("0-3", "3,4,5", "0-1,2") is an ascending range without a gap."""
    following: int | None = None
    for part in cores.split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
            return False
        if following is not None and int(first) != following:
            return False
        following = int(last) + 1
    return True


def _tp(case: Case) -> int | None:
    return whole(case.engine("tensor_parallel_size", 1))


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in numbers)


def _nearest(tp: int, listed: tuple[int, ...]) -> str:
    below = [n for n in listed if n < tp][-1:]
    above = [n for n in listed if n > tp][:1]
    return " or ".join(str(n) for n in above + below)


def _largest(listed: tuple[int, ...] | None, cores: int) -> str:
    most = max((n for n in listed or () if n <= cores), default=cores)
    return f"tensor_parallel_size {most}"


def _why(family: str, tp: int) -> str:
    # Four cores make two devices, which a trn1.32xlarge does have.
    if family in ("trn1", "trn1n") and tp == 4:
        return " (its torus has no group of two devices)"
    return ""


def _factors(case: Case) -> str:
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    sizes = ((name, whole(case.engine(name, 1)) or 1) for name in names)
    return " x ".join(f"{name} {size}" for name, size in sizes if size > 1)
