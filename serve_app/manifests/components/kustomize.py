"""What the components share: their kustomization files, and names taken from a RayService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve_app.manifests.tree import File, Object

NAMESPACE = "neuron-serve"
"""Of objects that an overlay takes in; there the RayService's own namespace replaces it."""
SERVICE = "NAME"
"""Stands for the RayService's name until kustomize replaces it."""
INSTANCE_LABEL = r"metadata.labels.app\.kubernetes\.io/instance"

NEURON_TAINT = {"key": "aws.amazon.com/neuron", "operator": "Exists", "effect": "NoSchedule"}
"""Toleration for nodes that take only pods with Neuron devices."""


def kustomization(
    component: str, resources: Sequence[str], comment: str, uses: Sequence[str] = ()
) -> File:
    """Applied once per cluster, by itself."""
    data: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
    }
    if uses:
        data["components"] = [f"../{name}" for name in uses]
    return File(f"components/{component}/kustomization.yaml", (data,), comment)


def component(
    name: str, resources: Sequence[str], replacements: Sequence[Object], comment: str
) -> File:
    """Taken in by an overlay, or by a kustomization beside it."""
    data: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": list(resources),
        "replacements": list(replacements),
    }
    return File(f"components/{name}/kustomization.yaml", (data,), comment)


def from_service(name: str, fields: Mapping[str, Sequence[str]]) -> list[Object]:
    """Replacements from the overlay's RayService, of which there must be one with a namespace.

    kustomize splits a text at `-` and puts the whole name in place of the first part, NAME; the
    name itself may contain `-`. Objects are selected by name, so none of the overlay's own is hit.

    Args:
        name: of the component's objects. If it begins with NAME, that is replaced, too.
        fields: kind -> paths of texts that begin with NAME.
    """
    own = ["metadata.name"] if name.startswith(SERVICE) else []
    first = {"delimiter": "-", "index": 0}
    named = [
        {"select": {"kind": kind, "name": name}, "fieldPaths": [*paths, *own], "options": first}
        for kind, paths in fields.items()
        if paths or own
    ]
    namespaced = [
        {"select": {"kind": kind, "name": name}, "fieldPaths": ["metadata.namespace"]}
        for kind in fields
    ]
    # The name last: nothing is found under the old one after it.
    replacements = {"metadata.namespace": namespaced, "metadata.name": named}
    return [
        {"source": {"kind": "RayService", "fieldPath": path}, "targets": targets}
        for path, targets in replacements.items()
        if targets
    ]
