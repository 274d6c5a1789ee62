"""Rules about what objects say of each other: names, selectors, namespaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.manifests.lint.objects import (
    Object,
    at,
    each,
    mapping,
    name_of,
    namespace_of,
    notes_of,
)
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.schemas import custom_resources
from serve_app.manifests.lint.view import Manifests, Pod

SECRETS = "neuron-serve/secrets"
"""Annotation: names of Secrets that the user makes, with a comma between; words after a name are
for people."""
_STARTS = "kubernetes.io docs: concepts/configuration/secret, configmap: the pod waits for it"
_CLUSTERED = ("Namespace", "ClusterRole", "ClusterRoleBinding", "StorageClass", "PriorityClass",
              "PersistentVolume", "IngressClass", "CustomResourceDefinition")  # fmt: skip


@rule(
    "ref-account", "A pod's service account is there", "core/v1: pods of an unknown one are refused"
)
def account(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        given = pod.spec.get("serviceAccountName")
        there = manifests.has("ServiceAccount", str(given))
        if given not in (None, "", "default") and not there:
            path = pod.at("serviceAccountName")
            yield Trip(pod.owner, path, f"there is no ServiceAccount {given!r}", "add it")


@rule("ref-claim", "A pod's volume claims are there", "kubernetes.io docs: persistent-volumes")
def claim(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        for index, volume in enumerate(each(pod.spec, "volumes")):
            given = at(volume, "persistentVolumeClaim", "claimName")
            there = manifests.has("PersistentVolumeClaim", str(given))
            if given is not None and not there:
                message = f"there is no PersistentVolumeClaim {given!r}"
                yield Trip(pod.owner, pod.at(f"volumes[{index}]"), message, "add it")


@rule(
    "claim-shared",
    "A claim that several pods mount can be mounted on several nodes",
    "kubernetes.io docs: concepts/storage/persistent-volumes, Access Modes",
)
def shared_claim(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("PersistentVolumeClaim"):
        modes = each(thing, "spec", "accessModes")
        users = sum(
            pod.count
            for pod in manifests.pods
            for volume in each(pod.spec, "volumes")
            if at(volume, "persistentVolumeClaim", "claimName") == name_of(thing)
        )
        if users > 1 and not {"ReadWriteMany", "ReadOnlyMany"} & {str(mode) for mode in modes}:
            message = f"{users} pods mount it, and it is {', '.join(map(str, modes))}"
            yield Trip(thing, "spec.accessModes", message, "set ReadWriteMany")


@rule("ref-config-map", "A pod's ConfigMaps are there", _STARTS)
def config_map(manifests: Manifests) -> Iterator[Trip]:
    for pod, path, name in _named_in(manifests, "configMap", "configMapKeyRef", "configMapRef"):
        if not manifests.has("ConfigMap", name):
            yield Trip(pod.owner, path, f"there is no ConfigMap {name!r}", "add it")


@rule("ref-secret", f"A pod's Secrets are there, or named in the annotation {SECRETS}", _STARTS)
def secret(manifests: Manifests) -> Iterator[Trip]:
    for pod, path, name in _named_in(manifests, "secret", "secretKeyRef", "secretRef"):
        if name not in _promised(pod.owner) and not manifests.has("Secret", name):
            message = f"there is no Secret {name!r}, and {SECRETS} does not name it"
            yield Trip(pod.owner, path, message, "name it there, so that its reader makes it")


def _promised(owner: Object) -> set[str]:
    parts = str(notes_of(owner).get(SECRETS, "")).split(",")
    # A comma between brackets parts no names: "hugging-face (key token, optional)".
    return {word.split()[0] for word in parts if word.split()}


def _named_in(
    manifests: Manifests, volume: str, variable: str, source: str
) -> Iterator[tuple[Pod, str, str]]:
    """Every ConfigMap or Secret that a pod names: as a volume, a variable, or all of one."""
    for pod in manifests.pods:
        for index, entry in enumerate(each(pod.spec, "volumes")):
            found = mapping(entry, volume)
            for part in [found, *(mapping(s, volume) for s in each(entry, "projected", "sources"))]:
                if name := part.get("secretName") or part.get("name"):
                    yield pod, pod.at(f"volumes[{index}]"), str(name)
        for place, container in pod.all_containers:
            for index, entry in enumerate(each(container, "env")):
                if name := at(entry, "valueFrom", variable, "name"):
                    yield pod, pod.at(f"{place}.env[{index}]"), str(name)
            for index, entry in enumerate(each(container, "envFrom")):
                if name := at(entry, source, "name"):
                    yield pod, pod.at(f"{place}.envFrom[{index}]"), str(name)
        for index, entry in enumerate(each(pod.spec, "imagePullSecrets")):
            if volume == "secret" and at(entry, "name"):
                yield pod, pod.at(f"imagePullSecrets[{index}]"), str(at(entry, "name"))


@rule(
    "namespace", "The objects are in one namespace, and it is theirs", "kubernetes.io: namespaces"
)
def namespaces(manifests: Manifests) -> Iterator[Trip]:
    clustered = {kind for kind, crd in custom_resources().items() if not crd["namespaced"]}
    services = {namespace_of(ray.object) for ray in manifests.rays}
    theirs = {name_of(thing) for thing in manifests.of("Namespace")}
    for thing in manifests.objects:
        given, path = namespace_of(thing), "metadata.namespace"
        if thing["kind"] in clustered or thing["kind"] in _CLUSTERED:
            if given:
                yield Trip(thing, path, "this kind is in no namespace", "remove it")
        elif services and given not in services:
            shown = " or ".join(repr(name) for name in sorted(services))
            message = f"it is in {given!r}, and the Ray cluster in {shown}"
            yield Trip(thing, path, message, "make them the same")
        elif theirs and given not in theirs:
            message = f"the set makes no namespace {given!r}"
            yield Trip(thing, path, message, "correct it")


@rule(
    "selector",
    "What selects pods selects some of this set",
    "kubernetes.io docs: labels; kuberay v1.7.0 common/pod.go labelPod: what KubeRay adds",
)
def selectors(manifests: Manifests) -> Iterator[Trip]:
    paths = {
        "PodDisruptionBudget": ("spec", "selector"),
        "NetworkPolicy": ("spec", "podSelector"),
        "PodMonitor": ("spec", "selector"),
        "Service": ("spec", "selector"),
    }
    for thing in manifests.of(*paths):
        path = paths[thing["kind"]]
        if thing["kind"] == "Service" and not mapping(thing, *path):
            continue
        if not selected(manifests, at(thing, *path)):
            yield Trip(thing, ".".join(path), "no pod has these labels", "correct the labels")


def selected(manifests: Manifests, selector: Any) -> list[Pod]:
    """Pods of the set that a selector (or a Service's labels) selects."""
    plain = isinstance(selector, dict) and not {"matchLabels", "matchExpressions"} & set(selector)
    wanted = selector if not plain else {"matchLabels": selector}
    return [pod for pod in manifests.pods if matches(wanted, pod.labels)]


def matches(selector: Any, labels: Mapping[str, Any]) -> bool:
    """Whether labels match a LabelSelector; the empty one matches all."""
    for key, value in mapping(selector, "matchLabels").items():
        if labels.get(key) != value:
            return False
    for expression in each(selector, "matchExpressions"):
        key, values = at(expression, "key"), each(expression, "values")
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds.get(at(expression, "operator"), False):
            return False
    return True


@rule(
    "ref-port",
    "Ports that are named by name are ports of the pods",
    "core/v1 Service targetPort; prometheus-operator PodMetricsEndpoint.port: not scraped",
)
def ports(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("Service", "PodMonitor"):
        pods = selected(manifests, at(thing, "spec", "selector"))
        field, key = ("ports", "targetPort")
        if thing["kind"] == "PodMonitor":
            field, key = ("podMetricsEndpoints", "port")
        for index, entry in enumerate(each(thing, "spec", field)):
            wanted = at(entry, key)
            known = {
                at(p, "name") for pod in pods for _, c in pod.containers for p in each(c, "ports")
            }
            if any(pod.group is not None for pod in pods):
                known.add("metrics")  # KubeRay adds it
            if pods and isinstance(wanted, str) and wanted not in known:
                message = f"no selected pod has a port {wanted!r}"
                yield Trip(thing, f"spec.{field}[{index}].{key}", message, "correct it")


@rule(
    "ref-backend",
    "Requests are sent to a Service and a port that there are",
    "kuberay v1.7.0 utils/util.go: <name>-serve-svc, <name>-head-svc; common/service.go",
)
def backends(manifests: Manifests) -> Iterator[Trip]:
    services = _services(manifests)
    for ingress in manifests.of("Ingress"):
        for path, service in _ingress_backends(ingress):
            name, port = str(at(service, "name")), mapping(service, "port")
            known = services.get(name)
            if known is None:
                yield Trip(ingress, path, f"there is no Service {name!r}", "correct it")
            elif known and not {port.get("number"), port.get("name")} & known:
                message = f"{name} has no port {port.get('number') or port.get('name')}"
                yield Trip(ingress, path, message, "correct it")
    for pod in manifests.pods:
        for place, container in pod.all_containers:
            for index, entry in enumerate(each(container, "env")):
                if fault := _url_fault(entry, namespace_of(pod.owner), services):
                    path = pod.at(f"{place}.env[{index}].value")
                    yield Trip(pod.owner, path, fault, "correct the URL")


def _services(manifests: Manifests) -> dict[str, set[Any]]:
    """Names and numbers of the ports of each Service, KubeRay's among them; empty: not known."""
    found: dict[str, set[Any]] = {}
    for service in manifests.of("Service"):
        ports = each(service, "spec", "ports")
        known = {value for port in ports for value in (at(port, "port"), at(port, "name")) if value}
        found[name_of(service)] = known
    for ray in manifests.rays:
        ports = each(ray.head.main, "ports")
        known = {v for p in ports for v in (at(p, "containerPort"), at(p, "name")) if v}
        name = name_of(ray.object)
        found[f"{name}-head-svc"] = known
        if ray.object["kind"] == "RayService":
            serving = [p for p in ports if str(at(p, "name")).partition("-")[0] == "serve"]
            found[f"{name}-serve-svc"] = {
                value for p in serving for value in (at(p, "containerPort"), at(p, "name"))
            }
    return found


def _ingress_backends(ingress: Object) -> Iterator[tuple[str, Object]]:
    if default := at(ingress, "spec", "defaultBackend", "service"):
        yield "spec.defaultBackend.service", default
    for i, entry in enumerate(each(ingress, "spec", "rules")):
        for j, path in enumerate(each(entry, "http", "paths")):
            service = mapping(path, "backend", "service")
            # "use-annotation" is an action of the ALB controller, no port.
            if service and at(service, "port", "name") != "use-annotation":
                yield f"spec.rules[{i}].http.paths[{j}].backend.service", service


def _url_fault(entry: Any, namespace: str, services: Mapping[str, set[Any]]) -> str | None:
    """What is wrong with a variable *_URL or *_URLS that points into the namespace."""
    name, value = str(at(entry, "name")), str(at(entry, "value") or "")
    if not name.endswith(("_URL", "_URLS")):
        return None
    for url in value.split(";"):
        own = rf"(?:\.{re.escape(namespace)}(?:\.svc(?:\.cluster\.local)?)?)?"
        found = re.fullmatch(rf"https?://([a-z0-9-]+){own}(?::(\d+))?(/.*)?", url)
        if found is None or found[1] == "localhost":
            continue
        host, port, path = found.groups()
        if host not in services:
            return f"there is no Service {host!r}"
        if services[host] and int(port or 80) not in services[host]:
            return f"{host} has no port {port or 80}"
        if name.startswith("OPENAI_API_BASE") and (path or "").rstrip("/") != "/v1":
            return f"{url} is not where the API is: it ends in /v1"
    return None
