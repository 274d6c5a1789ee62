"""Rules about the shape of single objects: fields, types, names, numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from serve_app.config.document import dotted
from serve_app.manifests.lint.cel import broken_rules
from serve_app.manifests.lint.objects import Object, at, group_of, mapping, name_of, named
from serve_app.manifests.lint.quantity import quantity
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.schemas import (
    Misfit,
    core_misfits,
    custom_misfits,
    custom_resources,
)
from serve_app.manifests.lint.view import Manifests

_NAMES = "kubernetes.io docs: concepts/overview/working-with-objects/names"
_LABELS = "kubernetes.io docs: concepts/overview/working-with-objects/labels, Syntax"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_CORE_GROUPS = ("", "apps", "batch", "policy", "autoscaling")
_K8S_GROUPS = tuple(
    f"{name}.k8s.io"
    for name in ("networking", "rbac.authorization", "storage", "scheduling", "discovery")
)


@rule(
    "object-name",
    "Every object has a name that Kubernetes accepts",
    _NAMES,
    shape=True,
)
def names(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.objects:
        name = at(thing, "metadata", "name")
        if not isinstance(name, str) or not name:
            yield Trip(thing, "metadata.name", "the object has no name", "give it one")
            continue
        # A Service's name is a host name's part, others' may hold dots.
        short = thing["kind"] in ("Service", "Namespace")
        form, longest = (_LABEL, 63) if short else (_SUBDOMAIN, 253)
        if not form.fullmatch(name) or len(name) > longest:
            message = f"{name!r} is no name of a {thing['kind']}"
            mend = f"use lower-case letters, digits and -, at most {longest}"
            yield Trip(thing, "metadata.name", message, mend)


@rule("object-known", "Kind and apiVersion are ones that exist", "their definitions", shape=True)
def known(manifests: Manifests) -> Iterator[Trip]:
    groups = {group_of(dict(each)) for each in custom_resources().values()}
    for thing in manifests.objects:
        custom = custom_resources().get(str(thing["kind"]))
        version = str(thing["apiVersion"])
        if custom is not None and group_of(thing) == group_of(dict(custom)):
            if version != custom["apiVersion"]:
                mend = f"write {custom['apiVersion']}"
                yield Trip(thing, "apiVersion", f"{version} is not what is stored", mend)
        elif (group_of(thing) in groups or _is_core(thing)) and core_misfits(thing) is None:
            message = f"there is no {thing['kind']} in {version}"
            yield Trip(thing, "apiVersion", message, "correct kind or apiVersion")


@rule("object-twice", "No two objects are the same one", _NAMES, shape=True)
def twice(manifests: Manifests) -> Iterator[Trip]:
    seen = set()
    for thing in manifests.objects:
        key = (group_of(thing), named(thing))
        if key in seen and name_of(thing):
            yield Trip(thing, "metadata.name", "it stands twice", "rename one, or remove it")
        seen.add(key)


@rule(
    "crd-schema",
    "Custom resources have no unknown field, and each value its type",
    "ray-operator/config/crd/bases (KubeRay v1.7.0); pkg/apis/crds (Karpenter v1.14.1); "
    "prometheus-operator example/prometheus-operator-crd",
    shape=True,
)
def custom(manifests: Manifests) -> Iterator[Trip]:
    for thing in _customs(manifests):
        yield from (_trip(thing, misfit) for misfit in _misfits(manifests, thing))


@rule(
    "crd-cel",
    "Custom resources keep the rules in their definitions",
    "x-kubernetes-validations there",
    shape=True,
)
def cel(manifests: Manifests) -> Iterator[Trip]:
    for thing in _customs(manifests):
        if not _misfits(manifests, thing):
            yield from (_trip(thing, misfit) for misfit in broken_rules(thing))


@rule(
    "core-schema",
    "Kubernetes' own objects have no unknown field, and each value its type",
    "api/openapi-spec of Kubernetes 1.37, by kubernetes-validate (strict)",
    shape=True,
)
def core(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.objects:
        if _is_core(thing):
            yield from (_trip(thing, misfit) for misfit in core_misfits(thing) or ())
        else:
            bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing.get("metadata")}
            yield from (_trip(thing, misfit) for misfit in core_misfits(bare) or ())


@rule(
    "pod-schema",
    "Pod templates inside Ray's objects are pods",
    "api/openapi-spec of Kubernetes 1.37, Pod, by kubernetes-validate (strict)",
    shape=True,
)
def pod_templates(manifests: Manifests) -> Iterator[Trip]:
    told = {
        (id(thing), dotted(misfit.path))
        for thing in _customs(manifests)
        for misfit in _misfits(manifests, thing)
    }
    for pod in manifests.pods:
        if pod.group is None:
            continue
        as_pod = {**pod.template, "apiVersion": "v1", "kind": "Pod"}
        for misfit in core_misfits(as_pod) or ():
            path = ".".join(part for part in (pod.path, dotted(misfit.path)) if part)
            if (id(pod.owner), path) not in told:
                yield Trip(pod.owner, path, misfit.message, misfit.mend)


@rule("labels", "Labels and selectors are ones that Kubernetes accepts", _LABELS, shape=True)
def labels(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.objects:
        for path, found in _label_maps(thing, ()):
            for key, value in found.items():
                if not _is_label(key, value):
                    message = f"{key}: {value!r} is no label"
                    mend = "a value is a text of at most 63 letters, digits, -, _ and ."
                    yield Trip(thing, dotted((*path, key)), message, mend)


@rule(
    "quantity",
    "Amounts of resources are numbers with a unit of Kubernetes, and not negative",
    "kubernetes apimachinery pkg/api/resource/quantity.go",
    shape=True,
)
def quantities(manifests: Manifests) -> Iterator[Trip]:
    for pod in manifests.pods:
        for place, container in pod.all_containers:
            for side in ("requests", "limits"):
                for name, value in mapping(container, "resources", side).items():
                    number = quantity(value)
                    if number is None or number < 0:
                        path = pod.at(f"{place}.resources.{side}.{name}")
                        yield Trip(pod.owner, path, f"{value!r} is no amount", "write it as 16Gi")


def _customs(manifests: Manifests) -> Iterator[Object]:
    for thing in manifests.objects:
        custom = custom_resources().get(str(thing["kind"]))
        if custom is not None and custom["apiVersion"] == thing["apiVersion"]:
            yield thing


def _misfits(manifests: Manifests, thing: Object) -> list[Misfit]:
    """Where a custom resource breaks its definition."""
    if id(thing) not in manifests.misfits:
        manifests.misfits[id(thing)] = custom_misfits(thing)
    return manifests.misfits[id(thing)]


def _is_core(thing: Object) -> bool:
    group = group_of(thing)
    return group in _CORE_GROUPS or group in _K8S_GROUPS


def _trip(thing: Object, misfit: Misfit) -> Trip:
    return Trip(thing, dotted(misfit.path), misfit.message, misfit.mend)


def _label_maps(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every `metadata.labels`, `matchLabels` and `nodeSelector` of an object, with its path."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _label_maps(item, (*path, index))
    if not isinstance(node, dict):
        return
    for key, inner in node.items():
        named = key in ("matchLabels", "nodeSelector") or (
            key == "labels" and path and path[-1] == "metadata"
        )
        if named and isinstance(inner, dict):
            yield (*path, key), inner
        else:
            yield from _label_maps(inner, (*path, key))


def _is_label(key: Any, value: Any) -> bool:
    prefix, slash, name = str(key).rpartition("/")
    if slash and not (_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253):
        return False
    if not _WORD.fullmatch(name) or len(name) > 63 or not isinstance(value, str):
        return False
    return value == "" or (_WORD.fullmatch(value) is not None and len(value) <= 63)
