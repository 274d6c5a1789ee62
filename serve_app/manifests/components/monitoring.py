"""`components/monitoring`: what Prometheus scrapes of an overlay's pods."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.manifests.components.kustomize import (
    INSTANCE_LABEL,
    NAMESPACE,
    SERVICE,
    component,
    from_service,
)
from serve_app.manifests.tree import File, Object

NAME = "monitoring"
_LABELS = {
    "app.kubernetes.io/name": "neuron-serve",
    "app.kubernetes.io/component": "monitoring",
    # What the operator of kube-prometheus-stack looks for when its release is called prometheus.
    "release": "prometheus",
}

OPERATOR = """\
Needs the Prometheus operator. kube-prometheus-stack takes only PodMonitors with its release's
label (here `release: prometheus`), unless its values say
  prometheus.prometheusSpec.podMonitorSelectorNilUsesHelmValues: false
"""

_COMPONENT = """\
Metrics of the overlay's pods for Prometheus. In the overlay's kustomization.yaml:
  components: [../../components/monitoring]
Or `cluster.monitoring: true` in the config file, and `neuron-serve render`. Not both.
"""

_MONITOR = """\
metrics: Ray's, of heads and workers (8080), with application, deployment and replica as Serve
names them. haproxy-metrics: of the proxy on each node that has one (9101). Containers declare
ports of these names; one that does not is not scraped.
"""


def files() -> tuple[File, ...]:
    selector = r"spec.selector.matchLabels.app\.kubernetes\.io/instance"
    paths = {"PodMonitor": [selector, INSTANCE_LABEL]}
    return (
        component(NAME, ["podmonitor.yaml"], from_service(SERVICE, paths), _COMPONENT + OPERATOR),
        File(
            f"components/{NAME}/podmonitor.yaml", (service_monitor(SERVICE, NAMESPACE),), _MONITOR
        ),
    )


def service_monitor(name: str, namespace: str) -> Object:
    """PodMonitor of the RayService `name`."""
    instance = {"app.kubernetes.io/instance": name}
    monitor = pod_monitor(
        name,
        namespace,
        {"app.kubernetes.io/name": "neuron-serve", **instance},
        ["metrics", "haproxy-metrics"],
        {
            # The name that Ray's own Grafana boards filter by.
            "__meta_kubernetes_pod_label_ray_io_cluster": "ray_io_cluster",
            "__meta_kubernetes_pod_label_ray_io_node_type": "ray_io_node_type",
            "__meta_kubernetes_pod_label_ray_io_group": "ray_io_group",
            "__meta_kubernetes_pod_label_app_kubernetes_io_instance": "rayservice",
            "__meta_kubernetes_pod_node_name": "node",
        },
    )
    monitor["metadata"]["labels"] = {**_LABELS, **instance}
    return monitor


def pod_monitor(
    name: str,
    namespace: str,
    pods: dict[str, str],
    ports: Sequence[str],
    labels: dict[str, str],
) -> Object:
    """PodMonitor.

    Args:
        pods: labels of the pods, in the same namespace.
        ports: names of container ports.
        labels: Prometheus' name of a fact about the target -> label on its series.
    """
    relabelings = [
        {"sourceLabels": [source], "targetLabel": target} for source, target in labels.items()
    ]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name, "namespace": namespace, "labels": _LABELS},
        "spec": {
            "selector": {"matchLabels": pods},
            "podMetricsEndpoints": [
                {"port": port, "path": "/metrics", "interval": "15s", "relabelings": relabelings}
                for port in ports
            ],
        },
    }
