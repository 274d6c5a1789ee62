"""A NodePool and its EC2NodeClass for Karpenter v1.

Checked against aws/karpenter-provider-aws 1d92708 (2026-08-21), website/content/en/docs/.
"""

from __future__ import annotations

from typing import Any

from serve_app.manifests.components.eks_cluster import CLUSTER, DISCOVERY, ROLE
from serve_app.manifests.tree import Object

AMI = "al2023@v20260818"
"""EKS-optimized AMIs, AL2023, Kubernetes 1.31 to 1.36. Karpenter looks up the standard and the
Neuron image of this version (pkg/providers/amifamily/al2023.go) and gives the latter, with driver
and tools, to instances with accelerators. The release lists amazon-eks-node-al2023-x86_64-neuron-*
(awslabs/amazon-eks-ami, releases/tag/v20260818)."""

NEWER_AMI = """\
The AMI is pinned; with @latest each release would replace the nodes. Newer versions:
  aws ssm get-parameters-by-path --recursive --query 'Parameters[].Name' --path \\
    /aws/service/eks/optimized-ami/1.34/amazon-linux-2023/x86_64/neuron
"""


def node_class(name: str, root_gib: int, local_disks: bool = False) -> Object:
    """EC2NodeClass.

    Args:
        root_gib: EBS volume, GiB.
        local_disks: where an instance has NVMe disks, images and pods live on all of them (RAID 0).
    """
    spec: dict[str, Any] = {
        "amiSelectorTerms": [{"alias": AMI}],
        "role": ROLE,
        "subnetSelectorTerms": [{"tags": {DISCOVERY: CLUSTER}}],
        "securityGroupSelectorTerms": [{"tags": {DISCOVERY: CLUSTER}}],
        "blockDeviceMappings": [
            {
                "deviceName": "/dev/xvda",
                "ebs": {
                    "volumeSize": f"{root_gib}Gi",
                    "volumeType": "gp3",
                    "encrypted": True,
                    "deleteOnTermination": True,
                },
            }
        ],
    }
    if local_disks:
        spec["instanceStorePolicy"] = "RAID0"
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": name},
        "spec": spec,
    }


def node_pool(
    name: str,
    requirements: dict[str, list[str]],
    *,
    taints: list[Object],
    template: Object,
    disruption: Object,
    limits: dict[str, str],
) -> Object:
    """NodePool; `template` goes beside the requirements in spec.template.spec."""
    spec: dict[str, Any] = {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": name},
        "requirements": [
            {"key": key, "operator": "In", "values": values} for key, values in requirements.items()
        ],
        **({"taints": taints} if taints else {}),
        **template,
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {"template": {"spec": spec}, "disruption": disruption, "limits": limits},
    }
