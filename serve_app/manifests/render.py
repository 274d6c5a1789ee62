"""A config file as a kustomize tree: what all services share, and the overlay of this one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from serve_app.config import ConfigError, Document, Finding, Severity
from serve_app.manifests import components, pod
from serve_app.manifests.base import base, kustomization
from serve_app.manifests.budget import Budget, budget
from serve_app.manifests.compile_job import compile_jobs
from serve_app.manifests.components.monitoring import service_monitor
from serve_app.manifests.ingress import ingress
from serve_app.manifests.pools import Pool, pools
from serve_app.manifests.ray_service import frozen, ray_service
from serve_app.manifests.tree import File, Object
from serve_app.manifests.upgrade import Upgrade, upgrade
from serve_app.preflight import check_document

_OF_A_MACHINE = ("environment", "model", "artifact")
_LONGEST = 47
"""Of a RayService's name: KubeRay appends to it (ray-operator/controllers/ray/utils/constant.go,
MaxRayServiceNameLength)."""


@dataclass(frozen=True)
class Rendering:
    """What `render` made of a file."""

    name: str
    folder: str
    """Of the overlay, in the tree."""
    pools: tuple[Pool, ...]
    budget: Budget
    upgrade: Upgrade
    base: tuple[File, ...]
    overlay: tuple[File, ...]
    compile: tuple[File, ...]
    """The compile Job, applied by itself before the overlay; none where nothing is frozen."""
    secrets: tuple[str, ...]
    """Secrets to be made by hand."""

    @property
    def files(self) -> tuple[File, ...]:
        """The tree, with what a cluster or an overlay may add."""
        return (*self.base, *self.overlay, *self.compile, *components.files())

    def objects(self) -> list[Object]:
        """All Kubernetes objects but the compile Job's."""
        return [
            thing
            for file in (*self.base, *self.overlay)
            for thing in file.objects
            if thing.get("kind") != "Kustomization"
        ]


def render(document: Document, force: bool = False, model_facts: Path | None = None) -> Rendering:
    """The tree for a valid config file.

    `force` renders what `check` rejects, and says so in the files.

    Raises:
        ConfigError: `check` rejects it, or Kubernetes would.
    """
    cluster = document.serve.cluster
    name = service_name(document)
    rejected = [f for f in findings(document, model_facts) if f.severity is Severity.ERROR]
    if rejected and not force:
        raise ConfigError(rejected, document.file)
    groups = pools(document)
    time = budget(groups, model_facts)
    chosen = upgrade(groups, cluster.quota)
    said = "".join(f"\nREJECTED by neuron-serve check: {finding}" for finding in rejected)
    source = f"Written by `neuron-serve render` from {Path(document.file).name}." + said
    things: dict[str, tuple[Object, str]] = {
        "rayservice.yaml": (ray_service(document, name, groups, time, chosen), source),
        "poddisruptionbudget.yaml": (
            _disruption(document, name),
            "One pod at a time may be taken away by a drain of nodes.",
        ),
    }
    if cluster.ingress is not None:
        things["ingress.yaml"] = (
            ingress(name, cluster.namespace, cluster.ingress),
            "Needs the AWS Load Balancer Controller.",
        )
    if cluster.monitoring:
        things["podmonitor.yaml"] = (
            service_monitor(name, cluster.namespace),
            "Needs the Prometheus operator.",
        )
    stem = Path(document.file).stem
    folder = f"overlays/{stem}"
    overlay = [
        File(f"{folder}/kustomization.yaml", (kustomization(things),), _apply(stem)),
        *(File(f"{folder}/{path}", (thing,), why) for path, (thing, why) in things.items()),
    ]
    job: list[File] = []
    if frozen(document):
        jobs = compile_jobs(document, name, groups, time)
        job = [
            File(f"{folder}/compile/kustomization.yaml", (kustomization(["job.yaml"]),), ""),
            File(f"{folder}/compile/job.yaml", tuple(jobs), _compile(document, name)),
        ]
    return Rendering(
        name=name,
        folder=folder,
        pools=tuple(groups),
        budget=time,
        upgrade=chosen,
        base=tuple(base(cluster)),
        overlay=tuple(overlay),
        compile=tuple(job),
        secrets=tuple(pod.secrets(document)),
    )


def findings(document: Document, model_facts: Path | None = None) -> list[Finding]:
    """What `check` says, less what is true of this machine only: its variables are not a pod's."""
    found = check_document(document, os.environ, model_facts)
    return [
        finding for finding in found if finding.rule not in ("environment", "model", "artifact")
    ]


def service_name(document: Document) -> str:
    """The RayService's name: `cluster.name`, or the file's.

    Raises:
        ConfigError: Kubernetes or KubeRay would refuse it.
    """
    given = document.serve.cluster.name
    name = given or re.sub(r"[^a-z0-9]+", "-", Path(document.file).stem.lower()).strip("-")
    message = ""
    if not name or len(name) > _LONGEST:
        message = f"the name {name!r} has {len(name)} characters, and KubeRay takes 1 to {_LONGEST}"
    elif not name[0].isalpha():
        message = f"the name {name!r} begins with no letter, and the Services are named by it"
    if message:
        fault = Finding("cluster", Severity.ERROR, message, "set cluster.name", "cluster.name")
        raise ConfigError([fault], document.file)
    return name


def _apply(stem: str) -> str:
    return f"kubectl apply -k kuberay/base && kubectl apply -k kuberay/overlays/{stem}"


def _compile(document: Document, name: str) -> str:
    return (
        "Compiles once, on the right chip, into the shared volume. Before the overlay:\n"
        f"  kubectl apply -k kuberay/overlays/{Path(document.file).stem}/compile\n"
        f"  kubectl wait -n {document.serve.cluster.namespace} --for=condition=complete "
        f"--timeout=4h job \\\n    -l app.kubernetes.io/instance={name}\n"
        "Not together with the service: both want the same chips."
    )


def _disruption(document: Document, name: str) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": pod.metadata(name, document.serve.cluster),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pod.labels(name)}},
    }
