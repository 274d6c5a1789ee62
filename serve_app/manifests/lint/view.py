"""What rules look at: the set of objects, its Ray clusters, its pod templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from serve_app.manifests.lint.objects import (
    Object,
    at,
    each,
    mapping,
    name_of,
)
from serve_app.manifests.lint.quantity import amount
from serve_app.manifests.lint.schemas import Misfit
from serve_app.neuron.instances import Instance, instances

NEURON, NEURONCORE = "aws.amazon.com/neuron", "aws.amazon.com/neuroncore"
EFA = "vpc.amazonaws.com/efa"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
RAY = {
    "RayService": ("spec", "rayClusterConfig"),
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
}
_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}


@dataclass(frozen=True, eq=False)
class Pod:
    """A pod template, or a pod."""

    owner: Object
    path: str
    """Of the template in its owner; "" for a bare pod."""
    template: Object
    labels: Mapping[str, Any]
    """The template's, and for Ray's pods those that KubeRay adds and can be known before."""
    count: int
    """How many there are at most."""
    group: Object | None = None
    """Ray's headGroupSpec or worker group."""
    is_head: bool = False

    def at(self, path: str) -> str:
        """The path of something in the pod's spec."""
        return f"{self.path}.spec.{path}".lstrip(".")

    @property
    def spec(self) -> Object:
        return mapping(self.template, "spec")

    @property
    def containers(self) -> list[tuple[str, Object]]:
        """Containers that run side by side, each with its path in the spec."""
        return _objects("containers", each(self.spec, "containers"))

    @property
    def all_containers(self) -> list[tuple[str, Object]]:
        first = each(self.spec, "initContainers")
        return [*self.containers, *_objects("initContainers", first)]

    @property
    def main(self) -> Object:
        """The first container; in Ray's pods the one that runs Ray."""
        return mapping(self.spec, "containers", 0)

    def limit(self, resource: str) -> Decimal:
        """What its containers may have of a resource together; requests where no limit is."""
        return sum(
            (
                amount(
                    at(container, "resources", "limits", resource)
                    or at(container, "resources", "requests", resource)
                )
                for _, container in self.containers
            ),
            Decimal(0),
        )

    def request(self, resource: str) -> Decimal:
        """What the scheduler counts: requests, else limits."""
        return sum(
            (
                amount(
                    at(container, "resources", "requests", resource)
                    or at(container, "resources", "limits", resource)
                )
                for _, container in self.containers
            ),
            Decimal(0),
        )

    @property
    def devices(self) -> int:
        """Neuron devices that it asks for."""
        return int(self.limit(NEURON))

    @property
    def on_neuron(self) -> bool:
        return bool(self.limit(NEURON) or self.limit(NEURONCORE))

    @property
    def instance_types(self) -> list[str]:
        """Instance types that it may run on, by nodeSelector or required affinity."""
        chosen = at(self.spec, "nodeSelector", INSTANCE_TYPE)
        if chosen:
            return [str(chosen)]
        required = "requiredDuringSchedulingIgnoredDuringExecution"
        terms = each(self.spec, "affinity", "nodeAffinity", required, "nodeSelectorTerms")
        return [
            str(value)
            for term in terms
            for expression in each(term, "matchExpressions")
            if expression.get("key") == INSTANCE_TYPE and expression.get("operator") == "In"
            for value in each(expression, "values")
        ]

    @property
    def instance(self) -> Instance | None:
        """The one Neuron instance type that it runs on; None if it is not known or not one."""
        types = self.instance_types
        return instances().get(types[0]) if len(types) == 1 else None

    def environment(self, container: Object | None = None) -> dict[str, Object]:
        """Entries of `env` by name, the last of each, as the kubelet takes it."""
        entries = each(self.main if container is None else container, "env")
        return {str(e.get("name")): e for e in entries if isinstance(e, dict)}

    @property
    def cores_per_device(self) -> int | None:
        """Logical cores of one device here: by NEURON_LOGICAL_NC_CONFIG, else by default."""
        if self.instance is None:
            return None
        set_to = at(self.environment().get("NEURON_LOGICAL_NC_CONFIG"), "value")
        lnc = int(set_to) if set_to in ("1", "2") else self.instance.default_lnc
        return self.instance.cores_per_device(lnc)


@dataclass(frozen=True, eq=False)
class Ray:
    """A Ray cluster: of a RayService, a RayJob, or its own."""

    object: Object
    path: str
    cluster: Object
    head: Pod
    workers: tuple[Pod, ...]

    @property
    def pods(self) -> tuple[Pod, ...]:
        return (self.head, *self.workers)

    @property
    def autoscaling(self) -> bool:
        return self.cluster.get("enableInTreeAutoscaling") is True


@dataclass(frozen=True, eq=False)
class Manifests:
    """A set of objects that are applied together."""

    objects: Sequence[Object]
    misfits: dict[int, list[Misfit]] = field(default_factory=dict, repr=False)
    """Where custom resources break their definitions, by id(): looked up once."""

    def of(self, *kinds: str) -> Iterator[Object]:
        """The objects of these kinds."""
        return (thing for thing in self.objects if thing.get("kind") in kinds)

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such an object. That namespaces are alike is a rule of its own."""
        return any(name_of(thing) == name for thing in self.of(kind))

    @cached_property
    def rays(self) -> tuple[Ray, ...]:
        return tuple(_ray(thing) for thing in self.of(*RAY) if mapping(thing, *RAY[thing["kind"]]))

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Every pod template of the set, Ray's first."""
        own = [pod for ray in self.rays for pod in ray.pods]
        return (*own, *(_pod(thing) for thing in self.of(*_TEMPLATES)))


def _pod(owner: Object) -> Pod:
    path = _TEMPLATES[owner["kind"]]
    template = mapping(owner, *path)
    replicas = at(owner, "spec", "replicas" if owner["kind"] != "Job" else "parallelism")
    count = replicas if isinstance(replicas, int) else 1
    return Pod(owner, ".".join(path), template, mapping(template, "metadata", "labels"), count)


def _ray(owner: Object) -> Ray:
    path = ".".join(RAY[owner["kind"]])
    cluster = mapping(owner, *RAY[owner["kind"]])
    head, scaled = mapping(cluster, "headGroupSpec"), cluster.get("enableInTreeAutoscaling") is True
    workers = tuple(
        _ray_pod(owner, f"{path}.workerGroupSpecs[{index}]", group, False, scaled)
        for index, group in enumerate(each(cluster, "workerGroupSpecs"))
        if isinstance(group, dict)
    )
    return Ray(
        owner, path, cluster, _ray_pod(owner, f"{path}.headGroupSpec", head, True, scaled), workers
    )


def _ray_pod(owner: Object, path: str, group: Object, is_head: bool, scaled: bool) -> Pod:
    template = mapping(group, "template")
    # ray-operator/controllers/ray/common/pod.go: labelPod, and ray.io/serve of a RayService.
    labels = {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        **mapping(template, "metadata", "labels"),
        **mapping(group, "labels"),
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": "head" if is_head else "worker",
        "ray.io/group": "headgroup" if is_head else group.get("groupName"),
    }
    if owner["kind"] == "RayCluster":
        labels["ray.io/cluster"] = name_of(owner)
    if owner["kind"] == "RayService":
        labels["ray.io/serve"] = "true"
    count = 1 if is_head else _most(group, scaled)
    return Pod(owner, f"{path}.template", template, labels, count, group, is_head)


def _most(group: Object, scaled: bool) -> int:
    """Pods of a worker group: a fixed number unless Ray's autoscaler runs."""
    given = [group.get(key) for key in ("maxReplicas" if scaled else "replicas", "minReplicas")]
    replicas = next((n for n in given if isinstance(n, int)), 0)
    hosts = group.get("numOfHosts")
    return min(replicas, 1000) * (hosts if isinstance(hosts, int) else 1)


def _objects(name: str, entries: list[Any]) -> list[tuple[str, Object]]:
    """Entries with their paths; Kubernetes' own schemas let null stand for an object."""
    return [(f"{name}[{i}]", entry) for i, entry in enumerate(entries) if isinstance(entry, dict)]
