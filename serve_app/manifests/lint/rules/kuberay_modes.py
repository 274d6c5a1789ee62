"""KubeRay's rules about its autoscaler, tokens and jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import NoneType

import yaml

from serve_app.manifests.lint.objects import Object, at, each, mapping
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.kuberay import VALIDATION
from serve_app.manifests.lint.view import Manifests, Ray

_V2 = "RAY_enable_autoscaler_v2"
_START = "KUBERAY_GEN_AUTOSCALER_START_CMD"


@rule("ray-autoscaler", "The autoscaler is configured as KubeRay accepts it", VALIDATION)
def autoscaler(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        yield from _autoscaler(ray)
        for pod in ray.workers:
            path = pod.path.removesuffix(".template")
            idle = at(pod.group, "idleTimeoutSeconds")
            if idle is not None and (idle < 0 or not _second_version(ray)):
                message = "it is negative" if idle < 0 else "only autoscaler v2 has it"
                mend = "set autoscalerOptions.version: v2, or remove it"
                yield Trip(ray.object, f"{path}.idleTimeoutSeconds", message, mend)
            if at(pod.group, "priority") and not (
                _second_version(ray) and _release(ray) >= (2, 56)
            ):
                message = "it needs autoscaler v2 and rayVersion 2.56 or later"
                yield Trip(ray.object, f"{path}.priority", message, "remove it")


def _autoscaler(ray: Ray) -> Iterator[Trip]:
    options, path = mapping(ray.cluster, "autoscalerOptions"), f"{ray.path}.autoscalerOptions"
    variable = ray.head.environment().get(_V2)
    env = ray.head.at("containers[0].env")
    if not ray.autoscaling and at(variable, "value") in ("1", "true"):
        message, mend = f"{_V2} is set, and the autoscaler is off", "remove it"
        yield Trip(ray.object, env, message, mend)
    if ray.autoscaling and options.get("version") and variable is not None:
        message = f"{_V2} stands beside autoscalerOptions.version"
        yield Trip(ray.object, env, message, "remove it")
    if ray.autoscaling and options.get("version") == "v2":
        for pod in ray.pods:
            if pod.spec.get("restartPolicy") not in (None, "", "Never"):
                message = "autoscaler v2 wants pods that are not restarted"
                yield Trip(ray.object, pod.at("restartPolicy"), message, "set Never")
    if (options.get("idleTimeoutSeconds") or 0) < 0:
        yield Trip(ray.object, f"{path}.idleTimeoutSeconds", "it is negative", "set 0 or more")
    if any(at(entry, "name") == _START for entry in each(options, "env")):
        yield Trip(ray.object, f"{path}.env", f"KubeRay sets {_START} itself", "remove it")


@rule("ray-token", "Tokens between Ray's nodes are configured as KubeRay accepts it", VALIDATION)
def token(manifests: Manifests) -> Iterator[Trip]:
    for ray in manifests.rays:
        options, path = mapping(ray.cluster, "authOptions"), f"{ray.path}.authOptions"
        if options.get("mode") == "token" and _release(ray) < (2, 52):
            message = f"rayVersion is {ray.cluster.get('rayVersion')}, and tokens need 2.52.0"
            yield Trip(ray.object, path, message, "set rayVersion")
        if options.get("enableK8sTokenAuth") is True:
            message = ""
            if ray.object["kind"] != "RayCluster":
                message = f"a {ray.object['kind']} has no Kubernetes tokens"
            elif options.get("mode") != "token":
                message = "mode is not token"
            elif _release(ray) < (2, 55) or options.get("secretName"):
                message = "Kubernetes tokens need rayVersion 2.55.0 and no secretName"
            if message:
                yield Trip(ray.object, f"{path}.enableK8sTokenAuth", message, "remove it")


@rule("ray-job", "A RayJob is one that KubeRay accepts", f"{VALIDATION} ValidateRayJobSpec")
def job(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("RayJob"):
        spec = mapping(thing, "spec")
        for field, message in _job_faults(spec):
            yield Trip(thing, f"spec.{field}", message, "correct it")


def _job_faults(spec: Object) -> Iterator[tuple[str, str]]:
    ends, selected = spec.get("shutdownAfterJobFinishes") is True, bool(spec.get("clusterSelector"))
    suspended, retries = spec.get("suspend") is True, spec.get("backoffLimit") or 0
    mode, lifetime = spec.get("submissionMode"), spec.get("ttlSecondsAfterFinished") or 0
    sidecar = mode == "SidecarMode"
    cases = (
        (suspended and not ends, "suspend", "it needs shutdownAfterJobFinishes"),
        (suspended and selected, "suspend", "a selected cluster cannot be suspended"),
        (lifetime < 0, "ttlSecondsAfterFinished", "it is negative"),
        (lifetime > 0 and not ends, "ttlSecondsAfterFinished", "it needs shutdownAfterJobFinishes"),
        (not selected and not spec.get("rayClusterSpec"), "rayClusterSpec", "there is no cluster"),
        (retries < 0, "backoffLimit", "it is negative"),
        (retries > 0 and selected, "backoffLimit", "a selected cluster has no retries"),
        (retries > 0 and mode == "InteractiveMode", "backoffLimit", "InteractiveMode has none"),
        (sidecar and selected, "submissionMode", "SidecarMode needs a cluster of its own"),
        (sidecar and "submitterPodTemplate" in spec, "submitterPodTemplate", "not in SidecarMode"),
        (not _is_yaml(spec.get("runtimeEnvYAML")), "runtimeEnvYAML", "it is no YAML"),
    )
    yield from ((field, message) for broken, field, message in cases if broken)
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if (spec.get(field) or 1) < 0 or spec.get(field) == 0:
            yield field, "it is 0 or less"


def _is_yaml(text: object) -> bool:
    try:
        return text is None or isinstance(yaml.safe_load(str(text)), dict | NoneType)
    except yaml.YAMLError:
        return False


def _second_version(ray: Ray) -> bool:
    chosen = at(ray.cluster, "autoscalerOptions", "version") == "v2"
    return chosen or at(ray.head.environment().get(_V2), "value") in ("1", "true")


def _release(ray: Ray) -> tuple[int, ...]:
    """(2, 60, 0); () where rayVersion is missing or no version."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", str(ray.cluster.get("rayVersion") or ""))
    return tuple(int(part) for part in found[1].split(".")) if found else ()
