"""`kuberay/components/`: what a cluster or an overlay may add. The same for every config file.

No component scales anything: RayService and RayCluster have no `scale` subresource (KubeRay v1.7,
ray-operator/config/crd/bases), so neither KEDA nor an HPA has anything to set. Serve decides.
"""

from __future__ import annotations

from serve_app.manifests.components import (
    alb_ingress,
    cloudwatch,
    cpu_nodes,
    dashboards,
    efa,
    eks_cluster,
    karpenter,
    monitoring,
    neuron_helm,
    neuron_monitor,
    open_webui,
)
from serve_app.manifests.tree import File

_COMPONENTS = (
    alb_ingress,
    cloudwatch,
    cpu_nodes,
    dashboards,
    efa,
    eks_cluster,
    karpenter,
    monitoring,
    neuron_helm,
    neuron_monitor,
    open_webui,
)


def files() -> tuple[File, ...]:
    """All files below `components/`."""
    return tuple(file for module in _COMPONENTS for file in module.files())
