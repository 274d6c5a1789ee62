"""Rules about pods on Neuron: devices, cores, memory, what a node has."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from serve_app.manifests.lint.objects import at, each, mapping
from serve_app.manifests.lint.quantity import GIB, amount, gib, plain
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.serve import served
from serve_app.manifests.lint.view import EFA, INSTANCE_TYPE, NEURON, NEURONCORE, Manifests, Pod
from serve_app.neuron.instances import Instance

_SCHEDULER = (
    "aws-neuron-sdk deploy/infrastructure/scheduler.rst, Device Allocation by Instance Type"
)
_PLUGIN = "kubernetes.io docs: tasks/manage-gpus and extended resources; neuron device plugin"
_TYPES = "karpenter-provider-aws website/content/en/docs/reference/instance-types.md (Resources)"

_ALLOCATABLE = {
    "inf2.xlarge": (3920, 14162),
    "inf2.8xlarge": (31850, 118312),
    "inf2.24xlarge": (95690, 355262),
    "inf2.48xlarge": (191450, 718987),
    "trn1.2xlarge": (7910, 29317),
    "trn1.32xlarge": (127610, 481894),
    "trn1n.32xlarge": (127610, 481894),
    "trn2.48xlarge": (191450, 1938410),
}
"""Millicores and MiB that Karpenter counts on for pods: less the kubelet's and the VM's share."""
_DAEMONS = (Decimal("0.5"), GIB)
"""CPUs and bytes left for what runs on each node: VPC CNI and kube-proxy (150m), EBS and EFS CSI,
the device plugin, neuron-monitor (256m, 128 MiB)."""


TAINT = {"key": NEURON, "effect": "NoSchedule", "value": "true"}
"""What keeps other pods off Neuron nodes."""


def neuron_pods(manifests: Manifests) -> Iterator[Pod]:
    return (pod for pod in manifests.pods if pod.on_neuron)


@rule(
    "neuron-core-resource", "Pods ask for whole devices", f"{_PLUGIN}; neuroncore counts physical"
)
def core_resource(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        for place, container in pod.all_containers:
            for side in ("limits", "requests"):
                if NEURONCORE in mapping(container, "resources", side):
                    message = f"{NEURONCORE} counts physical cores on trn2, and may split a device"
                    path = pod.at(f"{place}.resources.{side}")
                    yield Trip(pod.owner, path, message, f"ask for {NEURON}")
                    break


@rule("neuron-instance", "A Neuron pod names the instance type it runs on", "Karpenter, EKS labels")
def instance_type(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        if pod.instance is None:
            types = ", ".join(pod.instance_types) or "none"
            message = (
                f"of instance types it names {types}: no Neuron instance that is known, or many"
            )
            yield Trip(pod.owner, pod.at("nodeSelector"), message, f"set {INSTANCE_TYPE}")
    for ray, config in served(manifests):
        there = {pod.instance.name for pod in ray.workers if pod.instance}
        for engine in config.engines:
            target = engine.plan.target
            if there and target is not None and target.instance.name not in there:
                message = f"{engine.label} is for {target.instance.name}, and no worker runs there"
                path = f"{ray.path}.workerGroupSpecs"
                yield Trip(ray.object, path, message, "make `instance` and nodeSelector the same")


@rule("neuron-devices", "A pod asks for as many devices as can be handed out", _SCHEDULER)
def devices(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        if pod.instance and pod.devices and pod.devices not in pod.instance.device_counts:
            counts = ", ".join(map(str, pod.instance.device_counts))
            message = f"{pod.instance.name} hands out {counts} devices to a pod, not {pod.devices}"
            yield Trip(pod.owner, pod.at("containers"), message, "ask for one of these")


@rule("neuron-scheduler", "Some of a node's devices are side by side", _SCHEDULER)
def scheduler(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        if pod.instance is None:
            continue
        part = 1 < pod.devices < pod.instance.devices
        own = pod.spec.get("schedulerName") not in (None, "default-scheduler")
        if part and not own:
            message = f"{pod.devices} of {pod.instance.devices} devices need Neuron's scheduler"
            yield Trip(pod.owner, pod.at("schedulerName"), message, "set my-scheduler")
        elif own and not part:
            message = "all devices, or one, need no scheduler of their own, and it may be absent"
            yield Trip(pod.owner, pod.at("schedulerName"), message, "remove it")


@rule(
    "neuron-cores",
    "Ray knows of the logical cores that the pod's devices have",
    "kuberay v1.7.0 common/pod.go customAcceleratorToRayResourceMap: aws.amazon.com/neuron is not "
    "in it; aws-neuron-sdk logical-neuroncore-config.rst",
)
def cores(manifests: Manifests) -> Iterator[Trip]:
    wanted = {
        (id(ray), engine.plan.target.instance.name): engine.plan.target.lnc
        for ray, config in served(manifests)
        for engine in config.engines
        if engine.plan.target
    }
    for ray in manifests.rays:
        for pod in ray.pods:
            given = at(pod.group, "resources", "neuron_cores")
            params = mapping(pod.group, "rayStartParams")
            if "neuron_cores" in str(params.get("resources")):
                continue
            if pod.instance is None or not pod.devices:
                if given is not None and not pod.on_neuron:
                    path = pod.path.replace(".template", ".resources.neuron_cores")
                    message = f"{given} cores, and the pod asks for no device"
                    yield Trip(ray.object, path, message, f"ask for {NEURON}")
                continue
            per_device = pod.cores_per_device
            if "NEURON_LOGICAL_NC_CONFIG" not in pod.environment():
                lnc = wanted.get((id(ray), pod.instance.name), pod.instance.default_lnc)
                per_device = pod.instance.cores_per_device(lnc)
            there = pod.devices * (per_device or 0)
            if amount(given) != there:
                message = f"{given} neuron_cores, and {pod.devices} devices have {there}"
                path = pod.path.replace(".template", ".resources")
                yield Trip(ray.object, path, message, f'set neuron_cores: "{there}"')


@rule("neuron-toleration", "A Neuron pod tolerates the taint of Neuron nodes", f"{NEURON} on EKS")
def toleration(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        if not tolerates(pod, TAINT):
            message = f"it does not tolerate {NEURON}:NoSchedule"
            yield Trip(pod.owner, pod.at("tolerations"), message, "add {operator: Exists}")


def tolerates(pod: Pod, taint: dict[str, str]) -> bool:
    """Whether a pod may be scheduled in spite of a taint (core/v1 Toleration)."""
    for toleration in each(pod.spec, "tolerations"):
        key, operator = at(toleration, "key"), at(toleration, "operator") or "Equal"
        if at(toleration, "effect") not in (None, "", taint["effect"]):
            continue
        if operator == "Exists" and key in (None, "", taint["key"]):
            return True
        same = (at(toleration, "value") or "") == (taint.get("value") or "")
        if operator == "Equal" and key == taint["key"] and same:
            return True
    return False


@rule("neuron-fit", "What a pod asks for is on its node", f"{_TYPES}; kubelet and daemons off")
def fit(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        there = pod.instance and _room(pod.instance)
        if not there:
            continue
        assert pod.instance is not None
        for resource, free in zip(("cpu", "memory"), there, strict=True):
            asked = pod.request(resource)
            if asked > free:
                shown = (
                    (gib(asked), gib(free)) if resource == "memory" else (plain(asked), plain(free))
                )
                message = f"{shown[0]} {resource}, and {pod.instance.name} has {shown[1]} for pods"
                yield Trip(pod.owner, pod.at("containers"), message, "ask for less")
        interfaces = pod.instance.efa_interfaces
        if interfaces is not None and pod.limit(EFA) > interfaces:
            message = f"{plain(pod.limit(EFA))} EFA, and {pod.instance.name} has {interfaces}"
            yield Trip(pod.owner, pod.at("containers"), message, "ask for no more")


def _room(instance: Instance) -> tuple[Decimal, Decimal] | None:
    """CPUs and bytes that one pod may take; None if nothing is known."""
    if instance.name in _ALLOCATABLE:
        millicores, mebibytes = _ALLOCATABLE[instance.name]
        cpu, memory = Decimal(millicores) / 1000, Decimal(mebibytes) * 2**20
    elif instance.vcpu is not None and instance.host_gib is not None:
        # Karpenter's estimate: 7.5 % for the VM; kube-reserved 255 MiB + 11 per pod (100 here).
        cpu = Decimal(instance.vcpu) * Decimal("0.9975") - Decimal("0.07")
        memory = instance.host_gib * GIB * Decimal("0.925") - Decimal(1455) * 2**20
    else:
        return None
    return cpu - _DAEMONS[0], memory - _DAEMONS[1]
