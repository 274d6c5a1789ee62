"""Hand-made defects of the good manifests in data/manifests.yaml, each with the rule that finds it.

A defect changes one place: `where` is (kind, name, then keys and indices), `change` the new value,
GONE, or a function of the old value.
"""
# ruff: noqa: E501  (a table: one defect, one line)

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import yaml

GONE = object()
DATA = Path(__file__).parent / "data" / "manifests.yaml"


class Defect(NamedTuple):
    rule: str
    what: str
    where: tuple[Any, ...]
    change: Any


def good() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(DATA.read_text()))


def broken(objects: list[dict[str, Any]], defect: Defect) -> list[dict[str, Any]]:
    """The objects with the defect in them."""
    objects = deepcopy(objects)
    kind, name, *path = defect.where
    thing: Any = next(o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    if not path:
        objects.remove(thing)
        if defect.change is not GONE:
            objects += defect.change(thing)
        return objects
    for part in path[:-1]:
        thing = thing.setdefault(part, {}) if isinstance(thing, dict) else thing[part]
    last, change = path[-1], defect.change
    if change is GONE:
        del thing[last]
    elif callable(change):
        thing[last] = change(thing[last] if isinstance(thing, list) or last in thing else None)
    else:
        thing[last] = change
    return objects


NAME = "llama3-8b-inf2"
SERVICE = ("RayService", NAME)
CLUSTER = (*SERVICE, "spec", "rayClusterConfig")
HEAD = (*CLUSTER, "headGroupSpec")
HEAD_POD = (*HEAD, "template", "spec")
GROUP = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*GROUP, "template", "spec")
RAY = (*POD, "containers", 0)
LIMITS = (*RAY, "resources", "limits")
REQUESTS = (*RAY, "resources", "requests")
CONFIG = (*SERVICE, "spec", "serveConfigV2")
NOTES = (*SERVICE, "metadata", "annotations")
JOB = ("Job", f"{NAME}-compile")
JOB_POD = (*JOB, "spec", "template", "spec")
WEBUI = ("Deployment", "open-webui")
INGRESS = ("Ingress", NAME)
ALB = "alb.ingress.kubernetes.io"
POLICY = ("NetworkPolicy", NAME)
BUDGET = ("PodDisruptionBudget", NAME)
POOL = ("NodePool", "neuron-inf2")
POOL_SPEC = (*POOL, "spec", "template", "spec")
CLASS = ("EC2NodeClass", "neuron")
NEURON = "aws.amazon.com/neuron"


def text(old: str, new: str) -> Any:
    """Other words in the Serve config."""

    def change(given: str) -> str:
        assert old in given
        return given.replace(old, new)

    return change


def plus(*entries: Any) -> Any:
    """More entries in a list."""
    return lambda given: [*(given or []), *entries]


def without(index: int) -> Any:
    return lambda given: given[:index] + given[index + 1 :]


def variable(name: str, value: str) -> Any:
    return plus({"name": name, "value": value})


def with_variable(name: str, value: str) -> Any:
    """Another value of a variable of a container."""
    return lambda given: [e if e["name"] != name else {"name": name, "value": value} for e in given]


def at_once(*paths: tuple[tuple[Any, ...], Any]) -> Any:
    """A change of several keys below one place; paths are relative to it."""

    def change(thing: Any) -> Any:
        thing = thing or {}
        for path, value in paths:
            inner = thing
            for part in path[:-1]:
                inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
            if value is GONE:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
        return thing

    return change


INCREMENTAL = at_once((("upgradeStrategy", "type"), "NewClusterWithIncrementalUpgrade"))
SHORT = {f"{ALB}/load-balancer-attributes": "idle_timeout.timeout_seconds=60"}
INTERNET = {f"{ALB}/scheme": "internet-facing"}

DEFECTS = [
    # Shapes
    Defect("object-name", "upper case", (*BUDGET, "metadata", "name"), "Budget"),
    Defect("object-name", "no name", ("ConfigMap", f"{NAME}-config", "metadata", "name"), GONE),
    Defect("object-known", "an old version of KubeRay", (*SERVICE, "apiVersion"), "ray.io/v1alpha1"),
    Defect("object-known", "an old Karpenter", (*POOL, "apiVersion"), "karpenter.sh/v1beta1"),
    Defect("object-known", "a removed API", (*BUDGET, "apiVersion"), "policy/v1beta1"),
    Defect("object-twice", "twice", BUDGET, lambda thing: [thing, deepcopy(thing)]),
    Defect("object-twice", "two services", SERVICE, lambda thing: [thing, deepcopy(thing)]),
    Defect("crd-schema", "Karpenter v1beta1's place", (*POOL, "spec", "disruption", "expireAfter"), "Never"),
    Defect("crd-schema", "a typing error", (*POD, "nodeSelectr"), {"a": "b"}),
    Defect("crd-schema", "a number for a text", (*GROUP, "rayStartParams", "num-cpus"), 8),
    Defect("crd-schema", "no group name", (*GROUP, "groupName"), GONE),
    Defect("crd-schema", "a variable twice", (*RAY, "env"), variable("KEYS_FILE", "/x")),
    Defect("crd-schema", "consolidate after nothing", (*POOL, "spec", "disruption", "consolidateAfter"), GONE),
    Defect("crd-schema", "operator", (*POOL_SPEC, "requirements", 0, "operator"), "Equals"),
    Defect("crd-schema", "no endpoints", ("PodMonitor", NAME, "spec", "podMetricsEndpoint"), []),
    Defect("crd-cel", "role and profile", (*CLASS, "spec", "instanceProfile"), "p"),
    Defect("crd-cel", "no AMI family", (*CLASS, "spec", "amiSelectorTerms"), [{"id": "ami-1"}]),
    Defect("crd-cel", "id and tags", (*CLASS, "spec", "subnetSelectorTerms", 0, "id"), "subnet-1"),
    Defect("crd-cel", "an unknown alias", (*CLASS, "spec", "amiSelectorTerms", 0, "alias"), "al2024@latest"),
    Defect("crd-cel", "In without values", (*POOL_SPEC, "requirements", 1, "values"), []),
    Defect("crd-cel", "Karpenter's own label", (*POOL, "spec", "template", "metadata", "labels"), {"karpenter.sh/x": "y"}),
    Defect("crd-cel", "managed by nobody", (*CLUSTER, "managedBy"), "me"),
    Defect("core-schema", "a typing error", (*WEBUI, "spec", "replica"), 1),
    Defect("core-schema", "a number for a text", (*WEBUI, "spec", "template", "spec", "containers", 0, "env", 0, "value"), 1),
    Defect("core-schema", "no path type", (*INGRESS, "spec", "rules", 0, "http", "paths", 0, "pathType"), GONE),
    Defect("core-schema", "metadata", (*SERVICE, "metadata", "label"), {}),
    Defect("labels", "a label with a space", (*JOB, "metadata", "labels", "app.kubernetes.io/version"), "0.1 beta"),
    Defect("labels", "a label with /", (*GROUP, "template", "metadata", "labels", "model"), "meta/llama"),
    Defect("quantity", "GB", ("Job", f"{NAME}-compile", "spec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "96GB"),
    # KubeRay
    Defect("ray-name", "too long", SERVICE, lambda thing: [thing, _renamed(thing, "l" * 48)]),
    Defect("ray-name", "starts with a digit", SERVICE, lambda thing: [thing, _renamed(thing, "3llama")]),
    Defect("ray-initializing-timeout", "30 minutes, then never again", (*NOTES, "ray.io/initializing-timeout"), "30m"),
    Defect("ray-initializing-timeout", "no time", (*NOTES, "ray.io/initializing-timeout"), "2 hours"),
    Defect("ray-threshold", "deprecated", (*SERVICE, "spec", "deploymentUnhealthySecondThreshold"), 3600),
    Defect("ray-head-service", "named", (*HEAD, "headService"), {"metadata": {"name": "head"}}),
    Defect("ray-upgrade", "unknown", (*SERVICE, "spec", "upgradeStrategy", "type"), "Recreate"),
    Defect("crd-schema", "negative", (*SERVICE, "spec", "rayClusterDeletionDelaySeconds"), -1),
    Defect("ray-upgrade", "incremental without its options", (*SERVICE, "spec"), INCREMENTAL),
    Defect("ray-resources", "in both places", (*GROUP, "rayStartParams", "num-cpus"), "24"),
    Defect("ray-labels", "in rayStartParams", (*GROUP, "rayStartParams", "labels"), "a=b"),
    Defect("ray-labels", "KubeRay's own", (*GROUP, "template", "metadata", "labels", "ray.io/group"), "x"),
    Defect("ray-group-names", "twice", (*CLUSTER, "workerGroupSpecs"), lambda groups: [*groups, deepcopy(groups[0])]),
    Defect("ray-replicas", "fewer at most than at least", (*GROUP, "minReplicas"), 2),
    Defect("ray-replicas", "outside", (*GROUP, "replicas"), 4),
    Defect("ray-replicas", "negative", GROUP, at_once((("minReplicas",), -1))),
    Defect("ray-replicas", "suspended with the autoscaler", CLUSTER, at_once((("enableInTreeAutoscaling",), True), (("workerGroupSpecs", 0, "suspend"), True))),
    Defect("ray-gcs", "only the address", (*HEAD_POD, "containers", 0, "env"), variable("RAY_REDIS_ADDRESS", "redis:6379")),
    Defect("ray-gcs", "options and annotation", SERVICE, lambda thing: [at_once((("metadata", "annotations", "ray.io/ft-enabled"), "true"), (("spec", "rayClusterConfig", "gcsFaultToleranceOptions"), {"redisAddress": "redis:6379"}))(thing)]),
    Defect("ray-gcs", "password beside the options", CLUSTER, at_once((("gcsFaultToleranceOptions",), {"redisAddress": "r:6379"}), (("headGroupSpec", "rayStartParams", "redis-password"), "x"))),
    Defect("ray-feature-gate", "alpha", (*CLUSTER, "tlsOptions"), {}),
    Defect("ray-autoscaler", "v2 without the autoscaler", (*HEAD_POD, "containers", 0, "env"), variable("RAY_enable_autoscaler_v2", "1")),
    Defect("ray-autoscaler", "restarted pods", CLUSTER, at_once((("enableInTreeAutoscaling",), True), (("autoscalerOptions",), {"version": "v2"}), (("workerGroupSpecs", 0, "template", "spec", "restartPolicy"), "Always"))),
    Defect("ray-token", "no version", CLUSTER, at_once((("authOptions",), {"mode": "token"}), (("rayVersion",), GONE))),
    Defect("ray-serve-port", "no port", (*HEAD_POD, "containers", 0, "ports"), without(2)),
    Defect("ray-containers", "none", (*HEAD_POD, "containers"), []),
    # The Serve config
    Defect("serve-missing", "empty", CONFIG, ""),
    Defect("serve-check", "no YAML", CONFIG, "applications: ["),
    Defect("serve-check", "an unknown argument", CONFIG, text("max_num_seqs", "max_nun_seqs")),
    Defect("serve-check", "does not fit the chip", CONFIG, text("max_model_len: 4096", "max_model_len: 1000000")),
    Defect("serve-check", "a key twice", CONFIG, text("proxy_location: EveryNode\n", "proxy_location: EveryNode\nproxy_location: EveryNode\n")),
    Defect("serve-cluster", "left in", CONFIG, lambda given: given + "cluster:\n  namespace: x\n"),
    Defect("serve-http", "only to itself", CONFIG, text("host: 0.0.0.0", "host: 127.0.0.1")),
    Defect("serve-http", "another port", CONFIG, text("port: 8000", "port: 8001")),
    Defect("serve-http", "the head alone", CONFIG, text("EveryNode", "HeadOnly")),
    Defect("serve-haproxy", "not on the workers", (*RAY, "env"), with_variable("RAY_SERVE_ENABLE_HA_PROXY", "0")),
    Defect("serve-haproxy", "no program", (*HEAD_POD, "containers", 0, "env"), without(2)),
    Defect("serve-variables", "not there", (*RAY, "env"), without(3)),
    Defect("serve-capacity", "more replicas than pods", CONFIG, text("      resources:", "      scaling:\n        num_replicas: 2\n      resources:")),
    Defect("serve-capacity", "too few CPUs", (*GROUP, "resources", "CPU"), "8"),
    # Neuron
    Defect("neuron-core-resource", "cores", (*JOB_POD, "containers", 0, "resources"), at_once((("limits", "aws.amazon.com/neuroncore"), 2), (("requests", "aws.amazon.com/neuroncore"), 2))),
    Defect("neuron-instance", "none named", (*JOB_POD, "nodeSelector"), GONE),
    Defect("neuron-instance", "there is none such", (*JOB_POD, "nodeSelector", "node.kubernetes.io/instance-type"), "inf2.4xlarge"),
    Defect("neuron-devices", "more than there are", (*JOB_POD, "containers", 0, "resources"), at_once((("limits", NEURON), 2), (("requests", NEURON), 2))),
    Defect("neuron-scheduler", "not needed", (*POD, "schedulerName"), "my-scheduler"),
    Defect("neuron-scheduler", "needed", JOB_POD, at_once((("nodeSelector", "node.kubernetes.io/instance-type"), "inf2.24xlarge"), (("containers", 0, "resources", "limits", NEURON), 2), (("containers", 0, "resources", "requests", NEURON), 2))),
    Defect("neuron-cores", "too many", (*GROUP, "resources", "neuron_cores"), "4"),
    Defect("neuron-toleration", "none", (*JOB_POD, "tolerations"), GONE),
    Defect("neuron-fit", "the whole memory", RAY, at_once((("resources", "limits", "memory"), "128Gi"), (("resources", "requests", "memory"), "128Gi"))),
    Defect("neuron-fit", "all CPUs", (*REQUESTS, "cpu"), "32"),
    Defect("neuron-fit", "EFA", RAY, at_once((("resources", "limits", "vpc.amazonaws.com/efa"), 1), (("resources", "requests", "vpc.amazonaws.com/efa"), 1))),
    # Pods
    Defect("pod-limits", "more requested than allowed", (*JOB_POD, "containers", 0, "resources", "limits", "cpu"), "8"),
    Defect("pod-limits", "devices without a limit", (*LIMITS, NEURON), GONE),
    Defect("pod-memory", "over-committed", (*REQUESTS, "memory"), "64Gi"),
    Defect("pod-memory", "no limit", (*HEAD_POD, "containers", 0, "resources", "limits", "memory"), GONE),
    Defect("pod-shm", "none for the compiler", (*JOB_POD, "containers", 0, "volumeMounts"), without(2)),
    Defect("pod-shm", "on a disk", (*POD, "volumes", 2, "emptyDir", "medium"), ""),
    Defect("pod-shm", "more than there is", (*POD, "volumes", 2, "emptyDir", "sizeLimit"), "128Gi"),
    Defect("pod-volume", "no volume", (*JOB_POD, "volumes"), without(2)),
    Defect("core-schema", "one place twice", (*JOB_POD, "containers", 0, "volumeMounts", 0, "mountPath"), "/dev/shm"),
    Defect("pod-hugepages", "a volume alone", (*POD, "volumes"), plus({"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}})),
    Defect("image-tag", "latest", (*WEBUI, "spec", "template", "spec", "containers", 0, "image"), "open-webui:latest"),
    Defect("image-tag", "no tag", (*RAY, "image"), "registry.example:5000/neuron-serve"),
    Defect("image-stack", "another plugin", (*RAY, "image"), "registry.example/neuron-serve:0.1.0-nxdi-0.16"),
    # Nodes
    Defect("node-pool", "another instance", (*POOL_SPEC, "requirements", 0, "values"), ["trn1.2xlarge"]),
    Defect("node-pool", "a taint that nobody tolerates", (*POOL_SPEC, "taints"), plus({"key": "team", "effect": "NoSchedule"})),
    Defect("node-pool", "a label that no node has", (*JOB_POD, "nodeSelector", "provisionerType"), "Karpenter"),
    Defect("node-pool-limits", "less than a node", (*POOL, "spec", "limits", "cpu"), "16"),
    Defect("node-class", "another name", (*POOL_SPEC, "nodeClassRef", "name"), "default"),
    Defect("node-pool-taint", "none", (*POOL_SPEC, "taints"), GONE),
    Defect("node-pool-disruption", "a month", (*POOL_SPEC, "expireAfter"), "720h"),
    Defect("node-pool-disruption", "by default", (*POOL_SPEC, "expireAfter"), GONE),
    Defect("node-pool-disruption", "moved", (*POOL, "spec", "disruption", "consolidationPolicy"), "WhenEmptyOrUnderutilized"),
    Defect("node-disk", "too small", (*CLASS, "spec", "blockDeviceMappings", 0, "ebs", "volumeSize"), "100Gi"),
    # References
    Defect("ref-account", "gone", ("ServiceAccount", "neuron-serve"), GONE),
    Defect("ref-claim", "gone", ("PersistentVolumeClaim", "neuron-serve"), GONE),
    Defect("claim-shared", "one node at a time", ("PersistentVolumeClaim", "neuron-serve", "spec", "accessModes"), ["ReadWriteOnce"]),
    Defect("ref-config-map", "gone", ("ConfigMap", f"{NAME}-config"), GONE),
    Defect("ref-secret", "not said", (*NOTES, "neuron-serve/secrets"), GONE),
    Defect("ref-secret", "misspelt", (*RAY, "envFrom"), [{"secretRef": {"name": "hugging-fase"}}]),
    Defect("namespace", "another", (*JOB, "metadata", "namespace"), "default"),
    Defect("namespace", "of the cluster", (*POOL, "metadata", "namespace"), "neuron-serve"),
    Defect("namespace", "none made", ("Namespace", "neuron-serve", "metadata", "name"), "other"),
    Defect("selector", "a budget of nothing", (*BUDGET, "spec", "selector", "matchLabels", "app.kubernetes.io/component"), "workers"),
    Defect("selector", "a policy of nothing", (*POLICY, "spec", "podSelector", "matchLabels", "app.kubernetes.io/name"), "kuberay"),
    Defect("selector", "a service of nothing", ("Service", "open-webui", "spec", "selector", "app.kubernetes.io/component"), "webui"),
    Defect("selector", "a monitor of nothing", ("PodMonitor", NAME, "spec", "selector", "matchLabels"), {"ray.io/cluster": NAME}),
    Defect("ref-port", "of no pod", ("Service", "open-webui", "spec", "ports", 0, "targetPort"), "web"),
    Defect("ref-port", "not scraped", ("PodMonitor", NAME, "spec", "podMetricsEndpoints", 0, "port"), "prometheus"),
    Defect("ref-backend", "no service", (*INGRESS, "spec", "rules", 0, "http", "paths", 0, "backend", "service", "name"), NAME),
    Defect("ref-backend", "no port", (*INGRESS, "spec", "rules", 0, "http", "paths", 0, "backend", "service", "port", "number"), 80),
    Defect("ref-backend", "a URL of nothing", (*WEBUI, "spec", "template", "spec", "containers", 0, "env", 0, "value"), "http://llama-serve-svc:8000/v1"),
    Defect("ref-backend", "a URL without /v1", (*WEBUI, "spec", "template", "spec", "containers", 0, "env", 0, "value"), f"http://{NAME}-serve-svc:8000"),
    # Streams
    Defect("drain-grace", "30 s by default", (*POD, "terminationGracePeriodSeconds"), GONE),
    Defect("drain-grace", "longer streams", (*POD, "terminationGracePeriodSeconds"), 119),
    Defect("drain-cluster", "60 s by default", (*SERVICE, "spec", "rayClusterDeletionDelaySeconds"), GONE),
    Defect("drain-cluster", "longer streams", SERVICE, lambda thing: [_patient(thing)]),
    Defect("ingress-idle", "60 s by default", (*INGRESS, "metadata", "annotations", f"{ALB}/load-balancer-attributes"), GONE),
    Defect("ingress-idle", "60 s", (*INGRESS, "metadata", "annotations"), lambda given: {**given, **SHORT}),
    Defect("ingress-target", "node ports", (*INGRESS, "metadata", "annotations", f"{ALB}/target-type"), GONE),
    Defect("ingress-tls", "clear text", (*INGRESS, "metadata", "annotations"), lambda given: {**given, **INTERNET}),
    Defect("budget-room", "never", (*BUDGET, "spec", "maxUnavailable"), 0),
    Defect("budget-room", "all of them", (*BUDGET, "spec"), at_once((("maxUnavailable",), GONE), (("minAvailable",), "100%"))),
    Defect("budget-room", "both", (*BUDGET, "spec", "minAvailable"), 1),
    Defect("policy-ray", "apart", (*POLICY, "spec", "ingress"), without(0)),
    Defect("policy-ray", "one port only", (*POLICY, "spec", "ingress", 0, "ports"), [{"port": 6379}]),
    Defect("policy-operator", "shut out", (*POLICY, "spec", "ingress"), without(2)),
    Defect("policy-dns", "no names", (*POLICY, "spec"), at_once((("policyTypes",), ["Ingress", "Egress"]), (("egress",), [{"ports": [{"port": 443}]}]))),
    # Workloads
    Defect("job-restart", "restarted", (*JOB_POD, "restartPolicy"), GONE),
    Defect("job-deadline", "an hour", (*JOB, "spec", "activeDeadlineSeconds"), 3600),
    Defect("deployment-selector", "others", (*WEBUI, "spec", "selector", "matchLabels", "app.kubernetes.io/component"), "webui"),
]  # fmt: skip


def _renamed(thing: dict[str, Any], name: str) -> dict[str, Any]:
    thing = deepcopy(thing)
    thing["metadata"]["name"] = name
    return thing


def _patient(thing: dict[str, Any]) -> dict[str, Any]:
    """Streams may take four minutes, and the pods know it."""
    thing = deepcopy(thing)
    spec = thing["spec"]
    longer = "      health:\n        drain_timeout_s: 240.0\n      resources:"
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("      resources:", longer)
    pod = spec["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 300
    return thing
