"""What KubeRay's operator refuses or ignores, though the definitions let it through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from serve_app.manifests.lint.objects import at, each, mapping, name_of, notes_of
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.view import RAY, Manifests

VALIDATION = "kuberay v1.7.0 ray-operator/controllers/ray/utils/validation.go"
_POD = "kuberay v1.7.0 ray-operator/controllers/ray/common/pod.go"
_LONGEST = {"RayService": 47, "RayCluster": 53, "RayJob": 47}
_TIMEOUT = "ray.io/initializing-timeout"
_BUDGET = 3 * 3600
"""Seconds: a node, an image of 10 GB and more, weights, and a cold compile of over an hour."""
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@rule("ray-name", "Names leave room for what KubeRay appends to them", f"{VALIDATION} (metadata)")
def name(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of(*RAY):
        given, longest = name_of(thing), _LONGEST[thing["kind"]]
        if len(given) > longest:
            message = f"{given!r} has {len(given)} characters, and KubeRay takes {longest}"
            yield Trip(thing, "metadata.name", message, "shorten it")
        elif not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given):
            message = f"{given!r} is no DNS label that starts with a letter"
            yield Trip(thing, "metadata.name", message, "use letters, digits and -")


@rule(
    "ray-initializing-timeout",
    "A start-up is never given up: the end of that timeout is final",
    "kuberay v1.7.0 ray-operator/controllers/ray/utils/constant.go "
    "(RayServiceInitializingTimeoutAnnotation), validation.go validateInitializingTimeout",
)
def initializing_timeout(manifests: Manifests) -> Iterator[Trip]:
    for service in manifests.of("RayService"):
        given = notes_of(service).get(_TIMEOUT)
        if not given:
            continue
        path, seconds = f"metadata.annotations[{_TIMEOUT}]", _seconds(str(given))
        if seconds is None or seconds <= 0:
            message = f"{given!r} is no time, such as 6h or 21600"
            yield Trip(service, path, message, "leave it out")
        elif seconds < _BUDGET:
            message = (
                f"after {given} the service fails for good, and a cold start with a compile may "
                f"take {_BUDGET // 3600} h"
            )
            yield Trip(service, path, message, "leave it out, or set hours")


@rule(
    "ray-threshold",
    "No field is set that KubeRay no longer reads",
    "kuberay v1.7.0 ray-operator/apis/ray/v1/rayservice_types.go (deprecated)",
)
def thresholds(manifests: Manifests) -> Iterator[Trip]:
    for service in manifests.of("RayService"):
        for field in ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"):
            if at(service, "spec", field) is not None:
                yield Trip(service, f"spec.{field}", "KubeRay ignores it", "remove it")


@rule("ray-head-service", "The head's service keeps KubeRay's name", f"{VALIDATION} (RayService)")
def head_service(manifests: Manifests) -> Iterator[Trip]:
    for service in manifests.of("RayService"):
        where = ("spec", "rayClusterConfig", "headGroupSpec", "headService", "metadata", "name")
        if at(service, *where):
            message = f"KubeRay refuses any name, {at(service, *where)!r} too"
            yield Trip(service, ".".join(where), message, "remove it")


@rule("ray-upgrade", "How a service is upgraded is a way that there is", f"{VALIDATION} (upgrade)")
def upgrade(manifests: Manifests) -> Iterator[Trip]:
    kinds = {
        "RayService": ("None", "NewCluster", "NewClusterWithIncrementalUpgrade"),
        "RayCluster": ("None", "Recreate"),
    }
    for thing in manifests.of(*kinds):
        known = kinds[thing["kind"]]
        given, path = at(thing, "spec", "upgradeStrategy", "type"), "spec.upgradeStrategy.type"
        if given is not None and given not in known:
            message = f"KubeRay knows no upgrade {given!r}"
            yield Trip(thing, path, message, f"take {', '.join(known)}")
        delay = at(thing, "spec", "rayClusterDeletionDelaySeconds")
        if isinstance(delay, int) and delay < 0:
            path = "spec.rayClusterDeletionDelaySeconds"
            yield Trip(thing, path, f"{delay} is negative", "set seconds")
        if given == "NewClusterWithIncrementalUpgrade":
            options = mapping(thing, "spec", "upgradeStrategy", "clusterUpgradeOptions")
            cluster = mapping(thing, "spec", "rayClusterConfig")
            for message, mend in _incremental(options, cluster.get("enableInTreeAutoscaling")):
                yield Trip(thing, path, message, mend)


def _incremental(options: dict[str, Any], autoscaling: Any) -> Iterator[tuple[str, str]]:
    if autoscaling is not True:
        yield "an incremental upgrade needs Ray's autoscaler", "set enableInTreeAutoscaling: true"
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent")
    interval = options.get("intervalSeconds")
    if not options.get("gatewayClassName"):
        yield "clusterUpgradeOptions has no gatewayClassName", "name the Gateway's class"
    if not isinstance(interval, int) or interval <= 0:
        yield f"intervalSeconds is {interval}", "set 1 or more"
    if not isinstance(step, int) or not 0 <= step <= min(surge, 100):
        yield f"stepSizePercent is {step}, of a surge of {surge}", "set 0 to maxSurgePercent"


@rule(
    "ray-containers",
    "Head and workers have a container that runs Ray",
    f"{VALIDATION} ValidateRayClusterSpec",
    shape=True,
)
def containers(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        for pod in ray.pods:
            if not pod.containers:
                yield Trip(ray.object, pod.at("containers"), "there is none", "add one")


@rule(
    "ray-resources",
    "Ray's resources stand in one place: `resources`, or rayStartParams",
    f"{VALIDATION} validateRayGroupResources",
)
def resources(manifests: Manifests) -> Iterator[Trip]:
    keys = ("num-cpus", "num-gpus", "memory", "resources")
    for ray in manifests.rays:
        for pod in ray.pods:
            both = [key for key in keys if at(pod.group, "rayStartParams", key)]
            if both and mapping(pod.group, "resources"):
                path = pod.path.replace(".template", ".rayStartParams")
                message = f"{', '.join(both)} stands here, and `resources` beside it"
                yield Trip(ray.object, path, message, "write all of it in `resources`")


@rule("ray-labels", "Labels of a group are set where KubeRay reads them", f"{VALIDATION}; {_POD}")
def labels(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        for pod in ray.pods:
            path = pod.path.removesuffix(".template")
            if "labels" in mapping(pod.group, "rayStartParams"):
                message = "KubeRay refuses labels in rayStartParams"
                mend = "set the group's `labels`"
                yield Trip(ray.object, f"{path}.rayStartParams.labels", message, mend)
            for key in ("ray.io/node-type", "ray.io/group", "ray.io/cluster"):
                if key in mapping(pod.template, "metadata", "labels"):
                    message = f"KubeRay sets {key} itself and drops this one"
                    yield Trip(ray.object, f"{path}.template.metadata.labels", message, "remove it")


@rule(
    "ray-group-names",
    "Worker groups have names of their own",
    "kuberay v1.7.0 ray-operator/pkg/webhooks/v1/raycluster_webhook.go validateWorkerGroups",
)
def group_names(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        seen = set()
        for pod in ray.workers:
            name = at(pod.group, "groupName")
            if name in seen:
                path = pod.path.replace(".template", ".groupName")
                yield Trip(ray.object, path, f"a second group is called {name!r}", "rename one")
            seen.add(name)


@rule(
    "ray-replicas",
    "Each worker group says how many pods it has, within its own bounds",
    f"{VALIDATION} ValidateRayClusterSpec; util.go GetWorkerGroupDesiredReplicas: KubeRay clamps",
)
def replicas(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        for pod in ray.workers:
            for field, message, mend in _replica_faults(pod.group or {}, ray.autoscaling):
                path = pod.path.replace(".template", f".{field}")
                yield Trip(ray.object, path, message, mend)


def _replica_faults(group: dict[str, Any], autoscaling: bool) -> Iterator[tuple[str, str, str]]:
    least, most, wanted = (group.get(key) for key in ("minReplicas", "maxReplicas", "replicas"))
    for field, value in (("minReplicas", least), ("maxReplicas", most)):
        if value is not None and value < 0:
            yield field, f"{value} is negative", "set 0 or more"
    if least is not None and most is not None and least > most:
        yield "minReplicas", f"{least} is more than maxReplicas {most}", "lower it"
    elif wanted is not None and not (least or 0) <= wanted <= (wanted if most is None else most):
        bounds = f"{least or 0} to {most}"
        yield "replicas", f"KubeRay makes {wanted} one of {bounds}", "set it within the bounds"
    if autoscaling and group.get("suspend") is True:
        yield "suspend", "the autoscaler cannot suspend a group", "remove it"


_REDIS = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD")


@rule(
    "ray-gcs",
    "What keeps the head's state is configured in gcsFaultToleranceOptions alone",
    f"{VALIDATION} ValidateRayClusterSpec, validateGcsFaultToleranceBackend",
)
def gcs(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        options = ray.cluster.get("gcsFaultToleranceOptions")
        marks, environment = notes_of(ray.object), ray.head.environment()
        params = mapping(ray.head.group, "rayStartParams")
        env, mend = ray.head.at("containers[0].env"), "set it in gcsFaultToleranceOptions"
        if "REDIS_USERNAME" in environment or params.get("redis-username"):
            yield Trip(ray.object, env, "KubeRay refuses a user name of Redis here", mend)
        if options is None:
            enabled = str(marks.get("ray.io/ft-enabled", "")).lower() == "true"
            if "RAY_REDIS_ADDRESS" in environment and not enabled:
                message = "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
                yield Trip(ray.object, env, message, mend)
            continue
        for key in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
            if marks.get(key):
                message = "it stands beside gcsFaultToleranceOptions"
                yield Trip(ray.object, f"metadata.annotations[{key}]", message, "remove it")
        for key in (key for key in _REDIS if key in environment):
            yield Trip(ray.object, env, f"{key} stands beside gcsFaultToleranceOptions", mend)
        path = f"{ray.path}.gcsFaultToleranceOptions"
        if params.get("redis-password"):
            yield Trip(ray.object, path, "rayStartParams has redis-password, too", mend)
        if options.get("backend") != "rocksdb" and options.get("storage") is not None:
            yield Trip(ray.object, f"{path}.storage", "it is for rocksdb alone", "remove it")


_GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


@rule(
    "ray-feature-gate",
    "Nothing needs a feature that KubeRay has switched off",
    "kuberay v1.7.0 ray-operator/pkg/features/features.go (alpha); validation.go",
)
def feature_gates(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        for field, gate in _GATED.items():
            if ray.cluster.get(field) is not None:
                message = f"KubeRay refuses it unless its feature gate {gate} is on"
                yield Trip(ray.object, f"{ray.path}.{field}", message, "remove it")
        if at(ray.cluster, "gcsFaultToleranceOptions", "backend") == "rocksdb":
            path = f"{ray.path}.gcsFaultToleranceOptions.backend"
            message = "rocksdb needs the feature gate GCSFaultToleranceEmbeddedStorage"
            yield Trip(ray.object, path, message, "take redis")


@rule(
    "ray-serve-port",
    "Ray's head has a port `serve`, and with it a Service for requests",
    "kuberay v1.7.0 ray-operator/controllers/ray/common/service.go BuildServeService",
)
def serve_port(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        ports = each(ray.head.main, "ports")
        named = any(str(at(port, "name")).partition("-")[0] == "serve" for port in ports)
        if ray.object["kind"] == "RayService" and ports and not named:
            message = "no port is called serve: KubeRay makes no Service for requests"
            mend = "add {name: serve, containerPort: 8000}"
            yield Trip(ray.object, ray.head.at("containers[0].ports"), message, mend)


def _seconds(text: str) -> float | None:
    """A duration of Go ("1h30m"), or whole seconds."""
    if re.fullmatch(r"[+-]?\d+", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.lstrip("+"):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
