"""What the services of a namespace share: applied once, and not taken away with one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve_app.config.cluster import Cluster
from serve_app.manifests.pod import HEAD_PORTS, PORTS
from serve_app.manifests.tree import File, Object

ACCOUNT = "neuron-serve"
_OPERATOR = {
    # Of KubeRay's helm chart, and of its own kustomization.
    "key": "app.kubernetes.io/name",
    "operator": "In",
    "values": ["kuberay-operator", "kuberay"],
}
_RAY = {"app.kubernetes.io/name": "neuron-serve"}


def base(cluster: Cluster) -> list[File]:
    """The files of `base/`, and of `storage/` where there is a claim."""
    files = {
        "namespace.yaml": (_namespace(cluster), "All services of neuron-serve live here."),
        "serviceaccount.yaml": (
            _account(cluster),
            "Of all pods. An IAM role comes by the annotation (IRSA) or by EKS Pod Identity.",
        ),
        "networkpolicy.yaml": (
            _policy(cluster),
            "Requests may come from anywhere, metrics from any namespace, the dashboard from\n"
            "KubeRay's operator; all else (replicas, HAProxy's stats, GCS, side channels) only\n"
            "from pods of this namespace.",
        ),
    }
    found = [
        File("base/kustomization.yaml", (kustomization(files),), _WHY),
        *(File(f"base/{name}", (thing,), why) for name, (thing, why) in files.items()),
    ]
    if cluster.storage.claim:
        found += [
            File("storage/kustomization.yaml", (kustomization(["volume.yaml"]),), _VOLUME),
            File("storage/volume.yaml", (_volume(cluster, cluster.storage.claim),)),
        ]
    return found


_WHY = (
    "Once per namespace, before the first overlay:   kubectl apply -k kuberay/base\n"
    "The overlays leave it out, so that `kubectl delete -k` of one service takes nothing away\n"
    "from the others."
)
_VOLUME = (
    "Weights and compiled models, shared by all nodes: EFS or FSx for Lustre. Once per namespace:\n"
    "  kubectl apply -k kuberay/storage\n"
    "Apart from base/ because it costs money until it is deleted, and a laptop has none."
)


def kustomization(resources: Iterable[str]) -> Object:
    """A kustomization of these files."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
    }


def _metadata(name: str, cluster: Cluster, **more: Any) -> Object:
    return {"name": name, "namespace": cluster.namespace, "labels": _RAY, **more}


def _namespace(cluster: Cluster) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": cluster.namespace, "labels": _RAY},
    }


def _account(cluster: Cluster) -> Object:
    more: Object = {}
    if cluster.service_account_role:
        more["annotations"] = {"eks.amazonaws.com/role-arn": cluster.service_account_role}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(ACCOUNT, cluster, **more),
        "automountServiceAccountToken": False,
    }


def _volume(cluster: Cluster, claim: str) -> Object:
    storage = cluster.storage
    spec: Object = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{storage.size_gib}Gi"}},
    }
    if storage.storage_class:
        spec["storageClassName"] = storage.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(claim, cluster),
        "spec": spec,
    }


def _policy(cluster: Cluster) -> Object:
    anywhere: list[Object] = [{"namespaceSelector": {}}]
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchExpressions": [_OPERATOR]},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata("neuron-serve", cluster),
        "spec": {
            "podSelector": {"matchLabels": _RAY},
            "policyTypes": ["Ingress"],
            "ingress": [
                # An Application Load Balancer is no pod.
                {"ports": [_port(PORTS["serve"])]},
                {
                    "from": anywhere,
                    "ports": [_port(PORTS["metrics"]), _port(PORTS["haproxy-metrics"])],
                },
                {"from": [operator], "ports": [_port(HEAD_PORTS["dashboard"])]},
                {"from": [{"podSelector": {"matchLabels": _RAY}}]},
            ],
        },
    }


def _port(port: int) -> Object:
    return {"protocol": "TCP", "port": port}
