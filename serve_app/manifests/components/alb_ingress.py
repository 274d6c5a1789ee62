"""`components/alb-ingress`: a load balancer for an overlay whose config says nothing of one."""

from __future__ import annotations

from serve_app.config.cluster import Ingress
from serve_app.manifests.components.kustomize import (
    INSTANCE_LABEL,
    NAMESPACE,
    SERVICE,
    component,
    from_service,
)
from serve_app.manifests.ingress import ingress
from serve_app.manifests.tree import File

NAME = "alb-ingress"

_COMPONENT = """\
A load balancer inside the VPC, plain HTTP, for the overlay's RayService. Needs the AWS Load
Balancer Controller. In the overlay's kustomization.yaml:
  components: [../../components/alb-ingress]
With a host name, TLS or the internet: `cluster.ingress` in the config file instead, and
`neuron-serve render`. Not both.
"""

_INGRESS = """\
NAME and the namespace come from the overlay's RayService (kustomization.yaml). KubeRay names
its service <name>-serve-svc (ray-operator/controllers/ray/utils/util.go).
"""


def files() -> tuple[File, ...]:
    replacements = from_service(
        SERVICE,
        {
            "Ingress": [
                INSTANCE_LABEL,
                "spec.rules.0.http.paths.0.backend.service.name",
            ]
        },
    )
    return (
        component(NAME, ["ingress.yaml"], replacements, _COMPONENT),
        File(
            f"components/{NAME}/ingress.yaml",
            (ingress(SERVICE, NAMESPACE, Ingress()),),
            _INGRESS,
        ),
    )
