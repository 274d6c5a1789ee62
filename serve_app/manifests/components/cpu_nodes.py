"""`components/cpu-nodes`: nodes for the pods without Neuron devices."""

from __future__ import annotations

from serve_app.manifests.components import eks_cluster
from serve_app.manifests.components.kustomize import kustomization
from serve_app.manifests.components.nodes import NEWER_AMI, node_class, node_pool
from serve_app.manifests.tree import File

NAME = "cpu-nodes"

_KUSTOMIZATION = """\
Nodes without accelerators for Ray's heads, CPU workers and Open WebUI, from Karpenter, for
a cluster without a managed node group for them.
Needs: components/eks-cluster/cluster.yaml edited.
  kubectl apply -k kuberay/components/cpu-nodes
"""

_NODES = """\
What the nodes are made of. CLUSTER comes from ../eks-cluster/cluster.yaml.
"""

_POOL = """\
Half-empty nodes are given up. What must not move says so itself: heads carry
karpenter.sh/do-not-disrupt, which holds against a change of AMI, too, as long as there is no
terminationGracePeriod here (docs/concepts/disruption.md). expireAfter Never: the default
drains a node after 30 days.
"""


def files() -> tuple[File, ...]:
    pool = node_pool(
        NAME,
        {
            "karpenter.k8s.aws/instance-family": ["m7i", "m6i"],
            # A head of 4 CPUs and 16 GiB does not fit an xlarge beside the kubelet.
            "karpenter.k8s.aws/instance-size": ["2xlarge", "4xlarge"],
            "kubernetes.io/arch": ["amd64"],
            "kubernetes.io/os": ["linux"],
            "karpenter.sh/capacity-type": ["on-demand"],
        },
        taints=[],
        template={"expireAfter": "Never"},
        disruption={"consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "15m"},
        limits={"cpu": "64"},
    )
    return (
        kustomization(
            NAME,
            ["nodeclass.yaml", "nodepool.yaml"],
            _KUSTOMIZATION,
            uses=[eks_cluster.NAME],
        ),
        File(
            f"components/{NAME}/nodeclass.yaml",
            (node_class(NAME, root_gib=100),),
            _NODES + NEWER_AMI.replace("neuron", "standard"),
        ),
        File(
            f"components/{NAME}/nodepool.yaml",
            (pool,),
            _POOL,
        ),
    )
