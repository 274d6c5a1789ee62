"""Which worker pods a config file needs: what each takes, what runs in it, how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.backends import Machine, engines_of, make_plan
from serve_app.backends.engines import EngineOf
from serve_app.backends.plan import EnginePlan
from serve_app.config import ConfigError, Document, Finding, Severity
from serve_app.manifests.weights import weights_gib
from serve_app.neuron.instances import Instance
from serve_app.version import VERSION

_NO_MACHINE = Machine(cores=1, cpu_flags=frozenset())
"""What a pool is does not depend on the machine that renders it."""
_ENGINE_GIB = 4
"""Of an engine on the processor and its replica, beside weights and KV cache: 2.5 GiB measured."""


@dataclass(frozen=True)
class Pool:
    """A worker group: pods that are all alike."""

    name: str
    engines: tuple[EngineOf, ...]
    instance: Instance | None
    """None: any amd64 machine."""
    image_tag: str
    lnc: int
    """Logical NeuronCore configuration of the nodes, 1 or 2; 0 on the processor."""
    devices: int
    """Neuron devices of a pod."""
    cores: int
    """Logical NeuronCores of those devices."""
    cpus: int
    memory_gib: int
    local_gib: int
    """Of the node's disk."""
    efa: int
    """EFA interfaces of a pod."""
    pods: int
    most_pods: int
    reason: str
    """Why so many of that size: one sentence."""

    @property
    def whole_instance(self) -> bool:
        return self.instance is not None and self.devices == self.instance.devices

    @property
    def autoscaling(self) -> bool:
        return self.most_pods > self.pods


@dataclass(frozen=True)
class _Planned:
    engine: EngineOf
    plan: EnginePlan

    @property
    def cores(self) -> int:
        return self.plan.target.cores if self.plan.target else 0

    @property
    def fewest(self) -> int:
        scaling = self.engine.args.scaling
        if not scaling.autoscaling:
            return scaling.most
        return 1 if scaling.min_replicas is None else scaling.min_replicas

    @property
    def most(self) -> int:
        return self.engine.args.scaling.most


def pools(document: Document) -> list[Pool]:
    """The worker groups of a file: one per kind of instance.

    Raises:
        ConfigError: engines that cannot share a Ray cluster, or a machine that is not known
            well enough.
    """
    kinds: dict[str, list[_Planned]] = {}
    for engine in engines_of(document):
        plan = make_plan(engine.args, _NO_MACHINE)
        kind = plan.target.instance.name if plan.target else "cpu"
        kinds.setdefault(kind, []).append(_Planned(engine, plan))
    found = [_pool(kind, members, document) for kind, members in kinds.items()]
    _one_python([member for members in kinds.values() for member in members])
    return found


def usable(instance: Instance) -> tuple[int, int]:
    """CPUs and GiB of memory of an instance that pods of ours may ask for.

    The rest is for kubelet, daemon sets and what the hypervisor keeps: Karpenter counts 7.5 % of
    the memory for that (VM_MEMORY_OVERHEAD_PERCENT), the EKS image reserves 11 MiB per pod that
    the node could have (amazon-eks-ami, nodeadm, kubelet defaults).

    Raises:
        ConfigError: the catalogue does not know them.
    """
    if instance.vcpu is None or instance.host_gib is None:
        message = f"how much memory {instance.name} has is not known from a source"
        raise _refused("applications", message, "render for another size of the family")
    return instance.vcpu - (1 if instance.vcpu < 16 else 2), int(instance.host_gib * 0.88) - 1


def _pool(kind: str, members: Sequence[_Planned], document: Document) -> Pool:
    target = members[0].plan.target
    scaled = any(member.engine.args.scaling.autoscaling for member in members)
    engines = tuple(member.engine for member in members)
    if target is None:
        cpus = [max(0.1, member.engine.args.resources.num_cpus) for member in members]
        memory = [_cpu_memory(member) for member in members]
        if scaled:
            few, most = (sum(getattr(m, field) for m in members) for field in ("fewest", "most"))
            why = "a pod per replica, so that Ray's autoscaler can add and remove them"
            size = math.ceil(max(cpus)), max(memory) + 1
        else:
            few = most = 1
            why = "one pod holds all replicas"
            size = (
                math.ceil(sum(c * m.most for c, m in zip(cpus, members, strict=True))),
                sum(g * m.most for g, m in zip(memory, members, strict=True)) + 1,
            )
        tag = f"{VERSION}-cpu"
        local = document.serve.cluster.storage.local_gib or _local_gib(members, 1)
        return Pool("cpu", engines, None, tag, 0, 0, 0, *size, local, 0, few, most, why)
    instance, lnc = target.instance, target.lnc
    if len({member.plan.target.lnc for member in members if member.plan.target}) > 1:
        message = f"engines on {kind} ask for different logical_nc_config, which is a node's"
        raise _refused("applications", message, "give them one, or other instances")
    tags = dict.fromkeys(_tag(member.plan) for member in members)
    if len(tags) > 1:
        message = f"engines on {kind} want different software: {', '.join(tags)}"
        raise _refused("applications", message, "pin one stack.sdk, or write two files")
    there, per_device = instance.cores(lnc), instance.cores_per_device(lnc)
    if scaled:
        few, most = (sum(getattr(m, field) for m in members) for field in ("fewest", "most"))
        wanted = max(member.cores for member in members)
        why = "a pod per replica, so that Ray's autoscaler can add and remove them"
    else:
        filled = _pack([member.cores for member in members for _ in range(member.most)], there)
        few = most = len(filled)
        wanted = max(filled)
        count = sum(member.most for member in members)
        why = f"{count} replica{'s' if count > 1 else ''} on {len(filled)} x {kind}"
    devices = _allowed(-(-wanted // per_device), instance)
    why += f": {wanted} of {devices * per_device} cores of a pod are used"
    cpus_there, memory_there = usable(instance)
    local = document.serve.cluster.storage.local_gib or _local_gib(members, 3)
    if instance.nvme_gb:
        # The instance's own disks, less what kubelet and the file system keep.
        local = min(local, int(instance.nvme_gb * 1e9 / 2**30 * 0.85))
    efa = 0
    if _apart(document) and instance.efa_interfaces:
        efa = instance.efa_interfaces * devices // instance.devices
    return Pool(
        name=kind.replace(".", "-"),
        engines=engines,
        instance=instance,
        image_tag=next(iter(tags)),
        lnc=lnc,
        devices=devices,
        cores=devices * per_device,
        cpus=max(1, cpus_there * devices // instance.devices),
        memory_gib=max(1, memory_there * devices // instance.devices),
        local_gib=local,
        efa=efa,
        pods=few,
        most_pods=most,
        reason=why,
    )


def _pack(sizes: list[int], there: int) -> list[int]:
    """Cores taken on each instance when the largest replica is placed first."""
    filled: list[int] = []
    for size in sorted(sizes, reverse=True):
        spot = next((i for i, taken in enumerate(filled) if taken + size <= there), None)
        if spot is None:
            filled.append(size)
        else:
            filled[spot] += size
    return filled


def _allowed(devices: int, instance: Instance) -> int:
    """The next number of devices that the Neuron scheduler extension gives to one pod."""
    return next((n for n in sorted(instance.device_counts) if n >= devices), instance.devices)


def _apart(document: Document) -> bool:
    """Whether KV caches travel, which takes EFA even on one node, unless `cluster.efa` says."""
    given = document.serve.cluster.efa
    if given is not None:
        return given
    return any(app.args.prefill is not None for app in document.serve.models)


def _cpu_memory(member: _Planned) -> int:
    args = member.engine.args
    if args.resources.memory_gib is not None:
        return math.ceil(args.resources.memory_gib)
    # Twice the checkpoint's bfloat16: float32, where bfloat16 is slow.
    return math.ceil(_ENGINE_GIB + args.resources.kv_cache_gib + 2 * weights_gib(args))


def _local_gib(members: Sequence[_Planned], copies: int) -> int:
    """The node's disk for so many copies of the weights, and 20 or 50 GiB for caches."""
    models = {member.engine.args.model.where: member.engine.args for member in members}
    weights = sum(weights_gib(args) for args in models.values())
    return 10 * math.ceil((copies * weights + (50 if copies > 1 else 20)) / 10)


def _tag(plan: EnginePlan) -> str:
    return f"{VERSION}-{plan.backend}-{plan.vllm}"


def _one_python(members: Sequence[_Planned]) -> None:
    """Ray's nodes must run one Python; AWS's images differ."""
    pythons = {m.plan.target.stack.python: m.engine.label for m in members if m.plan.target}
    if len(pythons) > 1:
        said = " and ".join(f"{label} wants Python {python}" for python, label in pythons.items())
        mend = "write a file for each, that is a Ray cluster for each"
        raise _refused("applications", f"one Ray cluster has one Python, but {said}", mend)
    if pythons and any(member.plan.target is None for member in members):
        message = "engines on the processor need another image than those on Neuron"
        raise _refused("applications", message, "write a file for each")


def _refused(path: str, message: str, mend: str) -> ConfigError:
    return ConfigError([Finding("cluster", Severity.ERROR, message, mend, path)])
