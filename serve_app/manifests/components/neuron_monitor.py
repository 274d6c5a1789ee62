"""`components/neuron-monitor`: metrics of the Neuron devices, from AWS's monitor on each node.

After aws-neuron-sdk 81ce03a, src/k8/k8s-neuron-monitor-daemonset.yml, which lacks trn2, trn3 and
the toleration for nodes that take only Neuron pods.
"""

from __future__ import annotations

from serve_app.manifests.components.kustomize import NEURON_TAINT, kustomization
from serve_app.manifests.components.monitoring import OPERATOR, pod_monitor
from serve_app.manifests.tree import File, Object
from serve_app.neuron.instances import instances

NAME = "neuron-monitor"
IMAGE = "public.ecr.aws/neuron/neuron-monitor:1.3.0"
_TRN3 = ("trn3.48xlarge", "trn3n.48xlarge", "trn3en.24xlarge", "trn3s-es.48xlarge")
"""EC2's names, which the catalogue lacks: `neuronInstances` of neuron-helm-chart 1.10.0."""
_LABELS = {"app.kubernetes.io/name": NAME}
_PORT = 9010

_KUSTOMIZATION = """\
Utilization, memory and errors of the Neuron devices, from every Neuron node, for all
overlays: once per cluster.
  kubectl apply -k kuberay/components/neuron-monitor
"""

_DAEMONSET = """\
Port 9010: AWS's manifest says 8000, which is Serve's, and would clash with hostNetwork or in
one pod with Serve. Not together with the DRA driver.
"""

_MONITOR = """\
The label `node` ties a device's series to the pods on it: the monitor knows the instance and
not the pod.
"""


def files() -> tuple[File, ...]:
    namespace: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAME,
            # The monitor reads the devices and is privileged for it, as AWS's own manifest is.
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        },
    }
    monitor = pod_monitor(
        NAME, NAME, _LABELS, ["metrics"], {"__meta_kubernetes_pod_node_name": "node"}
    )
    return (
        kustomization(
            NAME,
            ["namespace.yaml", "daemonset.yaml", "podmonitor.yaml"],
            _KUSTOMIZATION + OPERATOR,
        ),
        File(f"components/{NAME}/namespace.yaml", (namespace,), "Its pods are privileged."),
        File(
            f"components/{NAME}/daemonset.yaml",
            (_daemonset(),),
            _DAEMONSET,
        ),
        File(
            f"components/{NAME}/podmonitor.yaml",
            (monitor,),
            _MONITOR,
        ),
    )


def instance_types() -> list[str]:
    """EC2's names of all instances with Neuron devices that the monitor knows."""
    return [name for name in instances() if "." in name] + list(_TRN3)


def _daemonset() -> Object:
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [
                            {
                                "key": "node.kubernetes.io/instance-type",
                                "operator": "In",
                                "values": instance_types(),
                            }
                        ]
                    }
                ]
            }
        }
    }
    container: Object = {
        "name": NAME,
        "image": IMAGE,
        "command": ["/opt/bin/entrypoint.sh"],
        "args": [
            "--port",
            str(_PORT),
            "--neuron-monitor-config",
            "/opt/aws/neuron/bin/neuron-monitor.conf",
        ],
        "env": [{"name": "GOMEMLIMIT", "value": "160MiB"}],
        "ports": [{"name": "metrics", "containerPort": _PORT}],
        "resources": {
            "requests": {"cpu": "256m", "memory": "128Mi"},
            "limits": {"cpu": "500m", "memory": "256Mi"},
        },
        "securityContext": {"privileged": True},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": NAME, "labels": _LABELS},
        "spec": {
            "selector": {"matchLabels": _LABELS},
            "template": {
                "metadata": {"labels": _LABELS},
                "spec": {
                    "automountServiceAccountToken": False,
                    "affinity": affinity,
                    "tolerations": [NEURON_TAINT],
                    "containers": [container],
                },
            },
        },
    }
