"""The RayService of a config file."""

from __future__ import annotations

import copy
import math

from serve_app.config import Document
from serve_app.manifests import pod
from serve_app.manifests.budget import Budget
from serve_app.manifests.grace import grace_period_s, hook_timeout_s
from serve_app.manifests.pools import Pool
from serve_app.manifests.tree import Object, dump
from serve_app.manifests.upgrade import Upgrade

RAY = "2.60.0"
"""What requirements/cpu.txt pins (a test compares them)."""
_HEAD_DISK_GIB = 20
_STOP_S = 30
"""For Ray itself to end, once its replicas have."""


def ray_service(
    document: Document, name: str, pools: list[Pool], budget: Budget, upgrade: Upgrade
) -> Object:
    """The RayService `name`.

    Source: KubeRay 1.7 ray-operator/apis/ray/v1/{rayservice,raycluster}_types.go,
    controllers/ray/common/pod.go, controllers/ray/utils/validation.go.
    """
    cluster = document.serve.cluster
    notes = {
        pod.SECRETS: ", ".join(pod.secrets(document)),
        "neuron-serve/startup-budget": str(budget),
        "neuron-serve/upgrade": upgrade.reason,
        **{f"neuron-serve/pool-{pool.name}": pool.reason for pool in pools},
    }
    config: Object = {
        "rayVersion": RAY,
        # Whoever reaches the dashboard or GCS can run code: KubeRay makes a token, in a Secret.
        "authOptions": {"mode": "token"},
        "headGroupSpec": _head(document, name, pools),
        "workerGroupSpecs": [_worker(document, name, pool) for pool in pools],
    }
    if any(pool.autoscaling for pool in pools):
        options: Object = {"version": "v2", "idleTimeoutSeconds": 300}
        config = {"enableInTreeAutoscaling": True, "autoscalerOptions": options, **config}
    if redis := cluster.gcs_fault_tolerance:
        tolerance: Object = {"redisAddress": redis.address}
        if redis.password_secret:
            key = {"name": redis.password_secret, "key": "password"}
            tolerance["redisPassword"] = {"valueFrom": {"secretKeyRef": key}}
        config = {"gcsFaultToleranceOptions": tolerance, **config}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": pod.metadata(name, cluster, annotations={k: v for k, v in notes.items() if v}),
        "spec": {
            "upgradeStrategy": {"type": upgrade.type},
            # The streams of the old cluster end after the new one has taken over.
            "rayClusterDeletionDelaySeconds": drain_s(document) + _STOP_S,
            "serveConfigV2": dump(serve_config(document)),
            "rayClusterConfig": config,
        },
    }


def serve_config(document: Document) -> Object:
    """The file as a pod needs it: reachable from other pods, compiled models in the store."""
    data = copy.deepcopy(document.data)
    data.pop("cluster", None)
    # KubeRay asks the proxy of every worker whether it is ready, and sends requests to it.
    data["proxy_location"] = "EveryNode"
    data["http_options"] = {
        **data.get("http_options", {}),
        "host": "0.0.0.0",
        "port": pod.PORTS["serve"],
    }
    if document.serve.cluster.storage.claim:
        for path, application in document.applications():
            index = int(path.split("[")[1].rstrip("]"))
            if application.args.instance and not application.args.artifacts.store:
                args = data["applications"][index]["args"]
                args["artifacts"] = {**args.get("artifacts", {}), "store": pod.STORE}
    return data


def drain_s(document: Document) -> int:
    """The longest that a replica lets its streams finish."""
    times = [app.args.health.drain_timeout_s for app in document.serve.models]
    return math.ceil(max(times, default=120))


def frozen(document: Document) -> bool:
    """Whether the service only loads what a Job has compiled."""
    models = document.serve.models
    return bool(models) and all(app.args.artifacts.frozen for app in models)


def _head(document: Document, name: str, pools: list[Pool]) -> Object:
    cluster = document.serve.cluster
    size = cluster.head
    shared_memory = max(1, int(size.memory_gib / 4))
    pairs = pod.volumes(document, _HEAD_DISK_GIB, shared_memory)
    container = pod.container(
        name="ray-head",
        **_image(document, pools[0]),
        **_ports({**pod.HEAD_PORTS, **pod.PORTS}),
        env=pod.environment(document),
        **pod.environment_from(cluster),
        **pod.resources(size.cpu, size.memory_gib, _HEAD_DISK_GIB, {}),
        securityContext={"allowPrivilegeEscalation": False},
        **pod.mounts(pairs),
    )
    # No model on the head: without it the cluster is blind. The front door takes a tenth of a CPU.
    cpus = "1" if document.serve.front_doors else "0"
    return {
        "serviceType": "ClusterIP",
        "rayStartParams": {"dashboard-host": "0.0.0.0"},
        "resources": {"CPU": cpus},
        "template": {
            "metadata": _pod_metadata(name, "head"),
            "spec": {
                **_pod_spec(document),
                # Ray's autoscaler, beside the head, asks Kubernetes for pods.
                "automountServiceAccountToken": any(pool.autoscaling for pool in pools),
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
                **pod.pod_volumes(pairs),
            },
        },
    }


def _worker(document: Document, name: str, pool: Pool) -> Object:
    drain = drain_s(document)
    # Streams end before Ray does; kubelet waits with the signal while this runs.
    hook = ["neuron-serve", "drain-node", "--timeout", str(hook_timeout_s(drain))]
    container = pod.container(
        name="ray-worker",
        **_ports(pod.PORTS),
        lifecycle={"preStop": {"exec": {"command": hook}}},
        **on_chips(document, pool, frozen(document)),
    )
    amount: Object = {"CPU": str(pool.cpus)}
    if pool.cores:
        # KubeRay reads no `aws.amazon.com/neuron`, and counts no logical cores.
        amount["neuron_cores"] = str(pool.cores)
    return {
        "groupName": pool.name,
        "replicas": pool.pods,
        "minReplicas": pool.pods,
        "maxReplicas": pool.most_pods,
        "rayStartParams": {},
        "resources": amount,
        "template": {
            "metadata": _pod_metadata(name, "worker"),
            "spec": {
                **worker_pod(document, pool, frozen(document)),
                "terminationGracePeriodSeconds": grace_period_s(drain),
                "containers": [container],
            },
        },
    }


def on_chips(document: Document, pool: Pool, read_only: bool) -> Object:
    """The keys of a container that may drive the pool's chips."""
    devices = {pod.NEURON: pool.devices, "vpc.amazonaws.com/efa": pool.efa}
    environment = pod.environment(document)
    if pool.instance and pool.lnc != pool.instance.default_lnc:
        environment.append({"name": "NEURON_LOGICAL_NC_CONFIG", "value": str(pool.lnc)})
    return {
        **_image(document, pool),
        "env": environment,
        **pod.environment_from(document.serve.cluster),
        **pod.resources(pool.cpus, pool.memory_gib, pool.local_gib, devices),
        "securityContext": {"allowPrivilegeEscalation": False},
        **pod.mounts(_volumes(document, pool, read_only)),
    }


def worker_pod(document: Document, pool: Pool, read_only: bool) -> Object:
    """The pod around it, without containers: the right node, the volumes."""
    spec: Object = {**_pod_spec(document)}
    if pool.instance is None:
        spec["nodeSelector"] = {"kubernetes.io/arch": "amd64"}
    else:
        spec["nodeSelector"] = {"node.kubernetes.io/instance-type": pool.instance.name}
        spec["tolerations"] = [{"key": pod.NEURON, "operator": "Exists", "effect": "NoSchedule"}]
        if 1 < pool.devices < pool.instance.devices:
            # Contiguous devices: the Neuron scheduler extension (aws-neuron-sdk,
            # deploy/infrastructure/scheduler.rst).
            spec["schedulerName"] = "my-scheduler"
    return spec | pod.pod_volumes(_volumes(document, pool, read_only))


def _volumes(document: Document, pool: Pool, read_only: bool) -> list[Object]:
    shared_memory = max(1, min(64, pool.memory_gib // 4))
    return pod.volumes(document, pool.local_gib, shared_memory, frozen=read_only)


def _pod_metadata(name: str, component: str) -> Object:
    return {
        "labels": pod.labels(name, component),
        # Karpenter moves no pod that has loaded for an hour onto a cheaper node.
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    }


def _pod_spec(document: Document) -> Object:
    cluster = document.serve.cluster
    spec: Object = {
        "serviceAccountName": "neuron-serve",
        # Workers talk to no Kubernetes API.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"fsGroup": 1000},
    }
    if cluster.image.pull_secret:
        spec["imagePullSecrets"] = [{"name": cluster.image.pull_secret}]
    return spec


def _image(document: Document, pool: Pool) -> Object:
    image = document.serve.cluster.image
    return {"image": f"{image.repository}:{image.tag or pool.image_tag}"}


def _ports(ports: dict[str, int]) -> Object:
    return {"ports": [{"name": name, "containerPort": port} for name, port in ports.items()]}
