"""Rules about Karpenter: that it makes the nodes the Neuron pods want, and leaves them alone."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from serve_app.manifests.lint.objects import Object, at, each, mapping, name_of
from serve_app.manifests.lint.quantity import amount, gib
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.neuron import TAINT, neuron_pods, tolerates
from serve_app.manifests.lint.view import INSTANCE_TYPE, NEURON, Manifests, Pod
from serve_app.neuron.instances import instances

_POOLS = "karpenter.sh docs: concepts/nodepools"
_DISRUPTION = "karpenter.sh docs: concepts/disruption; pkg/apis/crds/karpenter.sh_nodepools.yaml"


@rule(
    "node-pool",
    "If the set has NodePools, one of them makes a node for every Neuron pod",
    f"{_POOLS} (spec.template.spec.requirements, taints, labels)",
)
def pool_of_pod(manifests: Manifests) -> Iterator[Trip]:
    pools = list(manifests.of("NodePool"))
    for pod in neuron_pods(manifests) if pools else ():
        if pod.instance is None or not tolerates(pod, TAINT):
            continue  # neuron-instance and neuron-toleration say so
        reasons = [f"{name_of(pool)}: {reason}" for pool in pools if (reason := _unfit(pool, pod))]
        if len(reasons) == len(pools):
            message = f"no NodePool makes its node ({'; '.join(reasons)})"
            mend = "add its instance type to a NodePool, or tolerate the taints"
            yield Trip(pod.owner, pod.at("nodeSelector"), message, mend)


def _unfit(pool: Object, pod: Pod) -> str:
    """Why a node of the pool is none for the pod; "" if it is one."""
    spec = mapping(pool, "spec", "template", "spec")
    labels = mapping(pool, "spec", "template", "metadata", "labels")
    requirements = {str(at(r, "key")): r for r in each(spec, "requirements")}
    for taint in each(spec, "taints"):
        soft = at(taint, "effect") == "PreferNoSchedule"
        if not soft and not tolerates(pod, {k: str(v) for k, v in mapping(taint).items()}):
            return f"taint {at(taint, 'key')}"
    wanted = dict(mapping(pod.spec, "nodeSelector"))
    if pod.instance is not None:
        wanted[INSTANCE_TYPE] = pod.instance.name
        wanted["karpenter.k8s.aws/instance-family"] = pod.instance.family
        wanted["karpenter.k8s.aws/instance-size"] = pod.instance.name.partition(".")[2]
    for key, value in wanted.items():
        if key in requirements and not _allows(requirements[key], str(value)):
            return f"{key} {value} is not among its requirements"
        own = key.startswith(("karpenter.", "node.kubernetes.io/", "kubernetes.io/", "topology."))
        if key not in requirements and not own and labels.get(key) != value:
            return f"its nodes have no label {key}={value}"
    return ""


def _allows(requirement: Object, value: str) -> bool:
    values = [str(v) for v in each(requirement, "values")]
    match at(requirement, "operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "DoesNotExist":
            return False
        case _:
            return True


@rule("node-pool-limits", "A NodePool's limits have room for one node", f"{_POOLS} (spec.limits)")
def pool_limits(manifests: Manifests) -> Iterator[Trip]:
    for pool in _neuron_pools(manifests):
        limits = mapping(pool, "spec", "limits")
        smallest = [i for name in _types(pool) if (i := instances().get(name))]
        for resource, field in (("cpu", "vcpu"), (NEURON, "devices")):
            sizes = [size for i in smallest if (size := getattr(i, field)) is not None]
            if resource in limits and sizes and amount(limits[resource]) < min(sizes):
                message = f"{limits[resource]}, and the smallest node has {min(sizes)}"
                yield Trip(pool, f"spec.limits.{resource}", message, "raise it")


@rule("node-class", "A NodePool's node class is there", f"{_POOLS} (nodeClassRef)")
def node_class(manifests: Manifests) -> Iterator[Trip]:
    for pool in manifests.of("NodePool"):
        reference = mapping(pool, "spec", "template", "spec", "nodeClassRef")
        ours = reference.get("kind") == "EC2NodeClass"
        path = "spec.template.spec.nodeClassRef"
        if ours and reference.get("group") != "karpenter.k8s.aws":
            message = f"EC2NodeClass is of karpenter.k8s.aws, not {reference.get('group')}"
            yield Trip(pool, f"{path}.group", message, "correct the group")
        elif ours and not manifests.has("EC2NodeClass", str(reference.get("name"))):
            message = f"there is no EC2NodeClass {reference.get('name')!r}"
            yield Trip(pool, f"{path}.name", message, "add it, or correct the name")


@rule(
    "node-pool-taint", "Nodes with Neuron are kept for pods that use it", "EKS: Neuron nodes' taint"
)
def pool_taint(manifests: Manifests) -> Iterator[Trip]:
    for pool in _neuron_pools(manifests):
        taints = each(pool, "spec", "template", "spec", "taints")
        if not any(at(taint, "key") == NEURON for taint in taints):
            message = f"without the taint {NEURON} any pod may fill a Neuron node"
            yield Trip(pool, "spec.template.spec.taints", message, "add it, effect NoSchedule")


@rule(
    "node-pool-disruption",
    "Karpenter ends no Neuron node that still serves",
    f"{_DISRUPTION}: expireAfter is 720h and consolidationPolicy WhenEmptyOrUnder"
    "utilized by default",
)
def disruption(manifests: Manifests) -> Iterator[Trip]:
    for pool in _neuron_pools(manifests):
        expires = at(pool, "spec", "template", "spec", "expireAfter") or "720h"
        if expires != "Never":
            message = f"nodes are ended after {expires}, with the streams on them"
            yield Trip(pool, "spec.template.spec.expireAfter", message, "set Never")
        policy = at(pool, "spec", "disruption", "consolidationPolicy") or "WhenEmptyOrUnderutilized"
        if policy != "WhenEmpty":
            message = f"{policy} moves pods that serve"
            yield Trip(pool, "spec.disruption.consolidationPolicy", message, "set WhenEmpty")


@rule(
    "node-disk",
    "Disk that a Neuron pod may fill is on its node",
    "karpenter.sh docs: concepts/nodeclasses (blockDeviceMappings, instanceStorePolicy): 20Gi",
)
def disk(manifests: Manifests) -> Iterator[Trip]:
    for pod in neuron_pods(manifests):
        asked = pod.request("ephemeral-storage")
        pools = [pool for pool in manifests.of("NodePool") if not _unfit(pool, pod)]
        sizes = [size for pool in pools if (size := _disk(manifests, pool)) is not None]
        if asked and sizes and len(sizes) == len(pools) and asked > max(sizes):
            message = f"ephemeral-storage {gib(asked)}, and the node's disk has {gib(max(sizes))}"
            mend = "raise volumeSize in blockDeviceMappings, or ask for less"
            yield Trip(pod.owner, pod.at("containers"), message, mend)


def _disk(manifests: Manifests, pool: Object) -> Decimal | None:
    """Bytes of the root volume of the pool's nodes; None if it is not known here."""
    name = at(pool, "spec", "template", "spec", "nodeClassRef", "name")
    node_class = next((c for c in manifests.of("EC2NodeClass") if name_of(c) == name), None)
    if node_class is None or at(node_class, "spec", "instanceStorePolicy"):
        return None
    volumes = each(node_class, "spec", "blockDeviceMappings")
    roots = [v for v in volumes if at(v, "rootVolume") is True] or volumes[-1:]
    return amount(at(roots[0], "ebs", "volumeSize")) if roots else amount("20Gi")


def _neuron_pools(manifests: Manifests) -> Iterator[Object]:
    return (
        pool
        for pool in manifests.of("NodePool")
        if any(name.startswith(("inf", "trn")) for name in [*_types(pool), *_families(pool)])
    )


def _types(pool: Object) -> list[str]:
    return _values(pool, INSTANCE_TYPE)


def _families(pool: Object) -> list[str]:
    return _values(pool, "karpenter.k8s.aws/instance-family")


def _values(pool: Object, key: str) -> list[str]:
    return [
        str(value)
        for requirement in each(pool, "spec", "template", "spec", "requirements")
        if at(requirement, "key") == key and at(requirement, "operator") == "In"
        for value in each(requirement, "values")
    ]
