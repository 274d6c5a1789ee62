"""What the pods of a service have in common: environment, volumes, names, labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from serve_app.config import ConfigError, Document, Finding, Severity
from serve_app.config.cluster import Cluster
from serve_app.config.data_plane import DATA_PLANE
from serve_app.config.environment import references
from serve_app.manifests.tree import Object

LOCAL = "/var/lib/neuron-serve"
"""On the node's disk: compiled models, caches, $HOME."""
SHARED = "/mnt/neuron-serve"
"""On the claim that all nodes mount: weights, the store of compiled models."""
STORE = f"{SHARED}/artifacts"
HAPROXY = "/usr/local/bin/neuron-serve-haproxy"
"""Where kuberay/images/ put the program; Ray takes an absolute path only."""
PORTS = {"serve": 8000, "metrics": 8080, "haproxy-metrics": 9101}
HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
NEURON = "aws.amazon.com/neuron"
SECRETS = "neuron-serve/secrets"
"""Annotation: the Secrets that somebody has to make, and their keys."""


def labels(name: str, component: str | None = None) -> dict[str, str]:
    """Of an object, or of the pods of a component: head, worker, compile."""
    found = {"app.kubernetes.io/name": "neuron-serve", "app.kubernetes.io/instance": name}
    return found if component is None else found | {"app.kubernetes.io/component": component}


def metadata(service: str, cluster: Cluster, suffix: str = "", **more: Any) -> Object:
    """Of an object of a service, with the service's name and `suffix`."""
    name = f"{service}{suffix}"
    return {"name": name, "namespace": cluster.namespace, "labels": labels(service), **more}


def environment(document: Document) -> list[Object]:
    """Of each Ray container: the data plane, and where things are kept."""
    cluster = document.serve.cluster
    values: dict[str, str] = {
        **DATA_PLANE,
        "RAY_SERVE_HAPROXY_BINARY_PATH": HAPROXY,
        # Caches go by it: the node's disk, not the container's layer.
        "HOME": LOCAL,
    }
    if cluster.storage.claim:
        values["HF_HOME"] = f"{SHARED}/huggingface"
    found: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    if cluster.hugging_face_secret:
        key: Object = {"name": cluster.hugging_face_secret, "key": "token", "optional": True}
        found.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return found


def environment_from(cluster: Cluster) -> Object:
    """`envFrom` of the containers: what ${NAME} in the config file refers to."""
    if not cluster.env_secrets:
        return {}
    return {"envFrom": [{"secretRef": {"name": name}} for name in cluster.env_secrets]}


def volumes(
    document: Document, local_gib: int, shared_memory_gib: int, frozen: bool = False
) -> list[Object]:
    """Pairs of a volume and its mount, as {"volume": ..., "mount": ...}; one may be shared."""
    cluster, found = document.serve.cluster, []
    found.append(
        {
            "volume": {"emptyDir": {"sizeLimit": f"{local_gib}Gi"}},
            "mount": {"name": "local", "mountPath": LOCAL},
        }
    )
    # vLLM's processes and Ray's object store; counts as the pod's memory.
    memory = {"medium": "Memory", "sizeLimit": f"{shared_memory_gib}Gi"}
    found.append(
        {
            "volume": {"emptyDir": memory},
            "mount": {"name": "shared-memory", "mountPath": "/dev/shm"},
        }
    )
    if cluster.storage.claim:
        claim = {"persistentVolumeClaim": {"claimName": cluster.storage.claim}}
        found.append({"volume": claim, "mount": {"name": "shared", "mountPath": SHARED}})
        if frozen:
            # Nothing that serves can change what was compiled.
            mount: Object = {"name": "shared", "mountPath": STORE, "subPath": "artifacts"}
            found.append({"volume": claim, "mount": mount | {"readOnly": True}})
        for place in _usage(document):
            mount = {"name": "shared", "mountPath": place, "subPath": place[len(SHARED) + 1 :]}
            found.append({"volume": claim, "mount": mount})
    for place in _key_directories(document):
        secret = {"secret": {"secretName": cluster.keys_secret}}
        mount = {"name": "keys", "mountPath": place, "readOnly": True}
        found.append({"volume": secret, "mount": mount})
    return found


def pod_volumes(pairs: list[Object]) -> Object:
    """The key `volumes` of a pod, each volume once."""
    named = {pair["mount"]["name"]: pair["volume"] for pair in pairs}
    return {"volumes": [{"name": name, **volume} for name, volume in named.items()]}


def mounts(pairs: list[Object]) -> Object:
    """The key `volumeMounts` of a container."""
    return {"volumeMounts": [pair["mount"] for pair in pairs]}


def resources(cpus: float, memory_gib: float, local_gib: int, devices: Mapping[str, int]) -> Object:
    """The key `resources`: memory bounded by what is asked for, CPUs not bounded."""
    limits: Object = {"memory": f"{memory_gib:g}Gi"}
    limits |= {name: str(count) for name, count in devices.items() if count}
    asked = {"cpu": f"{cpus:g}", "ephemeral-storage": f"{local_gib}Gi", **limits}
    return {"resources": {"requests": asked, "limits": limits}}


_ORDER = (
    "name image command args ports env envFrom resources lifecycle securityContext volumeMounts"
)


def container(**keys: Any) -> Object:
    """A container, its keys in the order in which people look for them."""
    return dict(sorted(keys.items(), key=lambda item: _ORDER.split().index(item[0])))


def secrets(document: Document) -> list[str]:
    """The Secrets that the pods read, each with what must stand in it."""
    cluster, found = document.serve.cluster, []
    if cluster.hugging_face_secret:
        found.append(f"{cluster.hugging_face_secret} (key token, optional)")
    if _key_directories(document):
        found.append(f"{cluster.keys_secret} (the key file)")
    found += [f"{name} (environment variables)" for name in cluster.env_secrets]
    redis = cluster.gcs_fault_tolerance
    if redis and redis.password_secret:
        found.append(f"{redis.password_secret} (key password)")
    return found


def _accesses(document: Document) -> list[tuple[str, Any]]:
    found = [(path, app.args.access) for path, app in document.applications()]
    return found + [(path, door.args.access) for path, door in document.front_doors()]


def _key_directories(document: Document) -> list[str]:
    """Where the Secret with the key file is mounted."""
    found: dict[str, None] = {}
    for path, access in _accesses(document):
        if access.keys is None:
            continue
        place = PurePosixPath(access.keys)
        if references(access.keys) or not place.is_absolute():
            raise _refused(f"{path}.args.access.keys", "a pod needs an absolute path here")
        found[str(place.parent)] = None
    return list(found)


def _usage(document: Document) -> list[str]:
    """Directories of the record of use on the shared volume: a mount makes them."""
    found: dict[str, None] = {}
    for path, access in _accesses(document):
        if access.usage is None:
            continue
        if not access.usage.startswith(f"{SHARED}/"):
            raise _refused(f"{path}.args.access.usage", f"only {SHARED}/... outlives a pod")
        found[access.usage.rstrip("/")] = None
    return list(found)


def _refused(path: str, message: str) -> ConfigError:
    mend = "for example /etc/neuron-serve/keys/keys.yaml"
    if path.endswith("usage"):
        mend = f"write {SHARED}/usage"
    return ConfigError([Finding("cluster", Severity.ERROR, message, mend, path)])
