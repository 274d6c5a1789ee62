"""`components/eks-cluster`: the one file that says which EKS cluster the nodes belong to."""

from __future__ import annotations

from serve_app.manifests.components.kustomize import component
from serve_app.manifests.tree import File, Object

NAME = "eks-cluster"
CLUSTER = "CLUSTER"
ROLE = "KarpenterNodeRole-CLUSTER"
"""Placeholders in the node classes; the role is the one of Karpenter's getting-started guide
(website/content/en/docs/concepts/nodeclasses.md, spec.role)."""
DISCOVERY = "karpenter.sh/discovery"

_COMPONENT = """\
Puts the names of cluster.yaml into Karpenter's node classes. The components karpenter-*
and cpu-nodes take it in; it is nothing to apply by itself.
"""

_SETTINGS = """\
THE ONE PLACE TO EDIT before karpenter-inf2, karpenter-trn1, karpenter-trn2 and cpu-nodes
are applied. Never applied itself.
cluster-name: the value of the tag karpenter.sh/discovery on the subnets and the security
  groups of the nodes; usually the EKS cluster's name.
node-role: IAM role of the nodes (its name, no ARN), with AmazonEKSWorkerNodePolicy,
  AmazonEKS_CNI_Policy, AmazonEC2ContainerRegistryPullOnly and
  AmazonSSMManagedInstanceCore, and an EKS access entry of type EC2_LINUX.
By hand, or:
  sed -i 's/CLUSTER$/my-cluster/' kuberay/components/eks-cluster/cluster.yaml
"""


def files() -> tuple[File, ...]:
    tag = DISCOVERY.replace(".", r"\.")
    settings: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": NAME,
            # kustomize reads it and leaves it out of what it prints.
            "annotations": {"config.kubernetes.io/local-config": "true"},
        },
        "data": {"cluster-name": CLUSTER, "node-role": ROLE},
    }
    return (
        component(
            NAME,
            ["cluster.yaml"],
            [
                _into(
                    "cluster-name",
                    f"spec.subnetSelectorTerms.*.tags.{tag}",
                    f"spec.securityGroupSelectorTerms.*.tags.{tag}",
                ),
                _into("node-role", "spec.role"),
            ],
            _COMPONENT,
        ),
        File(
            f"components/{NAME}/cluster.yaml",
            (settings,),
            _SETTINGS,
        ),
    )


def _into(key: str, *paths: str) -> Object:
    return {
        "source": {"kind": "ConfigMap", "name": NAME, "fieldPath": f"data.{key}"},
        "targets": [{"select": {"kind": "EC2NodeClass"}, "fieldPaths": list(paths)}],
    }
