"""Rules about streams: that they get in, last, and are let finish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from serve_app.manifests.lint.objects import Object, at, each, mapping, notes_of
from serve_app.manifests.lint.rule import Trip, rule
from serve_app.manifests.lint.rules.references import matches, selected
from serve_app.manifests.lint.rules.serve import served
from serve_app.manifests.lint.view import Manifests, Pod

_ALB = "alb.ingress.kubernetes.io"
_ALB_DOCS = "aws-load-balancer-controller docs/guide/ingress/annotations.md"
_POLICY = "kubernetes.io docs: concepts/services-networking/network-policies"
_IDLE = 3600
"""Seconds. ALB's own default of 60 ends a stream whose first token takes longer."""


@rule(
    "drain-grace",
    "Pods have as long to end as their streams have",
    "kubernetes.io docs: pod-lifecycle, termination (30 s by default); health.drain_timeout_s",
)
def grace(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        for pod in ray.workers:
            given = pod.spec.get("terminationGracePeriodSeconds")
            seconds = 30 if given is None else given
            if seconds < config.drain:
                message = f"pods are killed after {seconds} s, and streams have {config.drain:g} s"
                path = pod.at("terminationGracePeriodSeconds")
                yield Trip(ray.object, path, message, f"set {config.drain:g} or more")


@rule(
    "drain-cluster",
    "After an upgrade the old cluster stays until its streams have ended",
    "kuberay v1.7.0 ray-operator/apis/ray/v1/rayservice_types.go "
    "RayClusterDeletionDelaySeconds: 60 s by default",
)
def deletion_delay(manifests: Manifests) -> Iterator[Trip]:
    for ray, config in served(manifests):
        kept = at(ray.object, "spec", "upgradeStrategy", "type") == "None"
        given = at(ray.object, "spec", "rayClusterDeletionDelaySeconds")
        seconds = 60 if given is None else given
        if not kept and 0 <= seconds < config.drain:
            path = "spec.rayClusterDeletionDelaySeconds"
            message = f"it is deleted after {seconds} s, and streams have {config.drain:g} s"
            yield Trip(ray.object, path, message, f"set {config.drain:g} or more")


@rule("ingress-idle", "The load balancer keeps a silent stream open", f"{_ALB_DOCS}: 60 s")
def idle(manifests: Manifests) -> Iterator[Trip]:
    for ingress in _albs(manifests):
        path = f"metadata.annotations[{_ALB}/load-balancer-attributes]"
        given = str(notes_of(ingress).get(f"{_ALB}/load-balancer-attributes", ""))
        found = re.search(r"idle_timeout\.timeout_seconds=(\d+)", given)
        seconds = int(found[1]) if found else 60
        if not _IDLE <= seconds <= 4000:
            message = f"idle streams are cut after {seconds} s"
            if seconds > 4000:
                message = f"{seconds} s, and an ALB takes 4000 at most"
            yield Trip(ingress, path, message, f"set idle_timeout.timeout_seconds={_IDLE}")


@rule("ingress-target", "The load balancer reaches Services without node ports", _ALB_DOCS)
def target(manifests: Manifests) -> Iterator[Trip]:
    nodes = any(
        at(s, "spec", "type") in ("NodePort", "LoadBalancer") for s in manifests.of("Service")
    )
    for ingress in _albs(manifests):
        if notes_of(ingress).get(f"{_ALB}/target-type", "instance") != "ip" and not nodes:
            path = f"metadata.annotations[{_ALB}/target-type]"
            message = "type `instance` needs node ports, and KubeRay's Service has none"
            yield Trip(ingress, path, message, "set ip")


@rule("ingress-tls", "What faces the internet speaks TLS, with a certificate", _ALB_DOCS)
def tls(manifests: Manifests) -> Iterator[Trip]:
    for ingress in _albs(manifests):
        marks = notes_of(ingress)
        certificate = marks.get(f"{_ALB}/certificate-arn")
        listens = str(marks.get(f"{_ALB}/listen-ports", ""))
        if certificate:
            continue
        path = f"metadata.annotations[{_ALB}/certificate-arn]"
        if marks.get(f"{_ALB}/scheme") == "internet-facing":
            yield Trip(ingress, path, "keys and prompts go in clear text", "name a certificate")
        elif "HTTPS" in listens:
            yield Trip(ingress, path, "HTTPS is asked for without a certificate", "name one")


def _albs(manifests: Manifests) -> Iterator[Object]:
    for ingress in manifests.of("Ingress"):
        legacy = notes_of(ingress).get("kubernetes.io/ingress.class")
        if "alb" in (at(ingress, "spec", "ingressClassName"), legacy):
            yield ingress


@rule(
    "budget-room",
    "A disruption budget lets a node be drained, and says one thing",
    "kubernetes.io docs: tasks/run-application/configure-pdb; Karpenter waits for it for ever",
)
def budget(manifests: Manifests) -> Iterator[Trip]:
    for thing in manifests.of("PodDisruptionBudget"):
        least, most = at(thing, "spec", "minAvailable"), at(thing, "spec", "maxUnavailable")
        there = sum(pod.count for pod in selected(manifests, at(thing, "spec", "selector")))
        if (least is None) == (most is None):
            message = "it wants one of minAvailable and maxUnavailable"
            yield Trip(thing, "spec", message, "set maxUnavailable: 1")
        elif most is not None and _share(most, there) == 0 and there:
            message = f"maxUnavailable {most}: no pod may ever be moved"
            yield Trip(thing, "spec.maxUnavailable", message, "set 1")
        elif least is not None and there and _share(least, there) >= there:
            message = f"minAvailable {least} of {there}: no pod may ever be moved"
            yield Trip(thing, "spec.minAvailable", message, "set maxUnavailable: 1 instead")


def _share(value: Any, of: int) -> int:
    """A number, or a percentage of `of`, rounded up as the disruption controller does."""
    found = re.fullmatch(r"(\d+)(%?)", str(value))
    if found is None:
        return 0
    return -(-int(found[1]) * of // 100) if found[2] else int(found[1])


@rule(
    "policy-ray", "Ray's nodes reach each other on every port", f"{_POLICY}; Ray ports are random"
)
def among_ray(manifests: Manifests) -> Iterator[Trip]:
    for policy, pods in _policies(manifests, "Ingress"):
        for pod in pods:
            if not _lets(
                policy, "ingress", "from", [p for p in manifests.pods if p.owner is pod.owner]
            ):
                message = "the nodes of its Ray cluster do not reach each other"
                mend = "allow them `from` their own podSelector, without ports"
                yield Trip(policy, "spec.ingress", message, mend)
                break


@rule(
    "policy-operator",
    "KubeRay's operator reaches the head's dashboard",
    f"{_POLICY}; kuberay v1.7.0 utils/dashboardclient: the Serve config is sent to port 8265",
)
def operator(manifests: Manifests) -> Iterator[Trip]:
    for policy, pods in _policies(manifests, "Ingress"):
        if any(p.is_head for p in pods) and not any(
            _has_port(entry, 8265) and _from_elsewhere(entry)
            for entry in each(policy, "spec", "ingress")
        ):
            message = "nothing outside the namespace reaches port 8265, so nothing is deployed"
            mend = "allow it from the operator's namespace"
            yield Trip(policy, "spec.ingress", message, mend)


@rule("policy-dns", "Pods whose way out is limited still resolve names", _POLICY)
def dns(manifests: Manifests) -> Iterator[Trip]:
    for policy, _ in _policies(manifests, "Egress"):
        if not any(_has_port(entry, 53) for entry in each(policy, "spec", "egress")):
            yield Trip(policy, "spec.egress", "no rule allows port 53", "allow DNS")


def _policies(manifests: Manifests, side: str) -> Iterator[tuple[Object, list[Pod]]]:
    """Policies that limit one side of Ray's pods, with those pods."""
    for policy in manifests.of("NetworkPolicy"):
        given = each(policy, "spec", "policyTypes")
        types = given or ["Ingress", *(["Egress"] if at(policy, "spec", "egress") else [])]
        pods = selected(manifests, at(policy, "spec", "podSelector"))
        ray = [pod for pod in pods if pod.group is not None]
        if side in types and ray:
            yield policy, ray


def _lets(policy: Object, side: str, peers: str, pods: list[Pod]) -> bool:
    """Whether one rule lets all these pods of the namespace in, on every port."""
    for entry in each(policy, "spec", side):
        if each(entry, "ports"):
            continue
        if not each(entry, peers):
            return True
        selectors = [
            at(peer, "podSelector") or {}
            for peer in each(entry, peers)
            if "podSelector" in mapping(peer) and "namespaceSelector" not in mapping(peer)
        ]
        if all(any(matches(selector, pod.labels) for selector in selectors) for pod in pods):
            return True
    return False


def _has_port(entry: Any, wanted: int) -> bool:
    ports = each(entry, "ports")
    names = {8265: "dashboard"}
    return not ports or any(
        at(port, "port") in (None, wanted, names.get(wanted))
        or (
            isinstance(at(port, "port"), int)
            and at(port, "port") <= wanted <= (at(port, "endPort") or 0)
        )
        for port in ports
    )


def _from_elsewhere(entry: Any) -> bool:
    peers = each(entry, "from")
    return not peers or any({"namespaceSelector", "ipBlock"} & set(mapping(p)) for p in peers)
