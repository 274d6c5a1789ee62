"""`components/karpenter-inf2`, `-trn1`, `-trn2`: Neuron nodes, made when a pod asks for them.

Karpenter's storage, EFA and reservations: aws/karpenter-provider-aws 1d92708,
pkg/providers/instancetype/types.go (ephemeralStorage, evictionThreshold, efas),
pkg/providers/amifamily/resolver.go (efaCount), website/content/en/docs/tasks/odcrs.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.manifests.components import eks_cluster
from serve_app.manifests.components.kustomize import kustomization
from serve_app.manifests.components.nodes import NEWER_AMI, node_class, node_pool
from serve_app.manifests.tree import File
from serve_app.neuron.instances import Instance, instances

FAMILIES = {"inf2": ("inf2",), "trn1": ("trn1", "trn1n"), "trn2": ("trn2", "trn2u")}
"""Node pool -> families of the catalogue. trn3 is left out: its instance names are not known."""

_ROOT_GIB = 600
"""Where some instance keeps images and pods on it: `cluster.storage.local_gib` (400 by default), a
tenth that the kubelet keeps free, and images of 10 to 20 GiB each."""
_ROOT_BESIDE_NVME_GIB = 100

_KUSTOMIZATION = """\
Nodes for {family} from Karpenter (v1.6 or newer), made when pods ask for Neuron devices.
Needs: components/eks-cluster/cluster.yaml edited, components/neuron-helm installed.
  kubectl apply -k kuberay/components/{component}
A Kustomization, not a Component: the objects have no namespace and serve all overlays; in an
overlay, `kubectl delete -k` would take the nodes from under the others.
"""

_NODES = """\
What the nodes are made of. CLUSTER comes from ../eks-cluster/cluster.yaml.
"""

_DISKS = """\
instanceStorePolicy: images and pods live on the NVMe disks where there are some. A tenth and 1 GiB
of them stay free: of 7600 GB 6369 GiB are left, of a trn1.2xlarge's 474 GB 396.
"""

_NO_DISKS = """\
The instances have no disks of their own: images and pods live on the root volume.
"""

_EFA = """\
EFA: no field on purpose. Karpenter attaches all interfaces of an instance when the pod for which it
makes the node asks for vpc.amazonaws.com/efa (../efa); a node made for another pod never has any.
networkInterfaces: would be one number for all instance types.
"""

_RESERVED = """\
Capacity blocks and reservations: tag them and add below spec
  capacityReservationSelectorTerms:
    - tags: {neuron-serve: trn2}      # or - id: cr-...
Karpenter takes reserved capacity first, and may describe and use it only if its role says so
(ec2:DescribeCapacityReservations, ec2:RunInstances). EC2 takes the nodes of a block back 30 minutes
before its end; Karpenter drains them 10 minutes earlier.
"""

_POOL = """\
Which nodes, and how long they live.
expireAfter Never: by default a node is drained after 30 days, whatever it serves.
WhenEmpty, 15m: no replica is moved to save money, and a node outlives the minutes between two pods
  of an upgrade. A new one costs its boot, an image of 10 to 20 GiB and the weights.
{paid}Budget Drifted 0: a change of the AMI is for new nodes. Karpenter would make the new node
  first, for which there may be no capacity. By hand: kubectl delete nodeclaim <name>
terminationGracePeriod 1h: how long a node that is deleted, or that EC2 takes, waits for streams and
  for pods that say do-not-disrupt.
limits: {limit} Neuron devices at a time; raise it with your quota.
"""


def files() -> tuple[File, ...]:
    return tuple(file for pool in FAMILIES for file in _pool(pool))


def members(pool: str) -> list[Instance]:
    """Instances of a node pool, as the catalogue has them."""
    return [known for known in instances().values() if known.family in FAMILIES[pool]]


def _pool(pool: str) -> tuple[File, ...]:
    component, name = f"karpenter-{pool}", f"neuron-{pool}"
    types = members(pool)
    reserved = pool == "trn2"
    limit = 2 * max(known.devices for known in types)
    nodes = node_class(
        name,
        _ROOT_GIB if any(known.nvme_gb is None for known in types) else _ROOT_BESIDE_NVME_GIB,
        local_disks=any(known.nvme_gb for known in types),
    )
    requirements = {
        "node.kubernetes.io/instance-type": [known.name for known in types],
        "kubernetes.io/arch": ["amd64"],
        "kubernetes.io/os": ["linux"],
        # No spot: two minutes' warning, and a replica needs many more to start elsewhere.
        "karpenter.sh/capacity-type": ["reserved", "on-demand"] if reserved else ["on-demand"],
    }
    nodepool = node_pool(
        name,
        requirements,
        taints=[{"key": "aws.amazon.com/neuron", "value": "true", "effect": "NoSchedule"}],
        template={"expireAfter": "Never", "terminationGracePeriod": "1h"},
        disruption={
            "consolidationPolicy": "WhenEmpty",
            "consolidateAfter": "15m",
            "budgets": [
                {"nodes": "0", "reasons": ["Drifted"]},
                {"nodes": "100%", "reasons": ["Empty"]},
            ],
        },
        limits={"aws.amazon.com/neuron": str(limit)},
    )
    return (
        kustomization(
            component,
            ["nodeclass.yaml", "nodepool.yaml"],
            _KUSTOMIZATION.format(family=pool, component=component),
            uses=[eks_cluster.NAME],
        ),
        File(f"components/{component}/nodeclass.yaml", (nodes,), _about_nodes(types, reserved)),
        File(f"components/{component}/nodepool.yaml", (nodepool,), _about_pool(limit, reserved)),
    )


def _about_nodes(types: Sequence[Instance], reserved: bool) -> str:
    disks = [_DISKS] if any(known.nvme_gb for known in types) else [_NO_DISKS]
    efa = [_EFA] if any(known.efa_interfaces for known in types) else []
    return "".join([_NODES, NEWER_AMI, *disks, *efa, *([_RESERVED] if reserved else [])])


def _about_pool(limit: int, reserved: bool) -> str:
    paid = "  Of a capacity block, paid anyway: consolidateAfter: Never.\n" if reserved else ""
    return _POOL.format(limit=limit, paid=paid)
