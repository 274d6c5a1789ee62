"""`components/efa`: the EFA device plugin, as values of AWS's chart."""

from __future__ import annotations

from serve_app.manifests.components.kustomize import NEURON_TAINT
from serve_app.manifests.tree import File

CHART = "v0.5.30"
"""Plugin v0.5.20 (aws/eks-charts 5239609, stable/aws-efa-k8s-device-plugin/Chart.yaml)."""

_ABOUT = f"""\
Values for AWS's EFA chart: what makes vpc.amazonaws.com/efa a resource of the nodes. For
configs with prefill and decode apart (`cluster.efa`).
  helm upgrade --install aws-efa-k8s-device-plugin aws-efa-k8s-device-plugin \\
    --repo https://aws.github.io/eks-charts --version {CHART} \\
    --namespace kube-system --values kuberay/components/efa/values.yaml
The chart's own list of instances has trn1.32xlarge, trn1n.32xlarge and trn2*; its only
toleration is CriticalAddonsOnly, so without this one it never runs on a Neuron node.
The nodes need: a security group that lets all traffic in from itself and out to itself, a
private subnet (no public addresses with several interfaces), one availability zone for the
pods that talk to each other. Node classes need no field: see ../karpenter-trn2.
One pod per node asks for EFA: a pod gets whole interfaces, and Karpenter attaches them only
to a node made for such a pod. The image's libfabric must match the AMI's driver.
"""


def files() -> tuple[File, ...]:
    return (
        File(
            "components/efa/values.yaml",
            ({"tolerations": [NEURON_TAINT]},),
            _ABOUT,
        ),
    )
