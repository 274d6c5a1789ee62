"""The way in from outside: an Ingress that becomes an Application Load Balancer.

Annotations as in kubernetes-sigs/aws-load-balancer-controller 225f445 (2026-08-17),
docs/guide/ingress/annotations.md.
"""

from __future__ import annotations

from serve_app.config.cluster import Ingress
from serve_app.manifests.tree import Object

_STREAM_S = 3600
"""The most that a load balancer may be told to wait, for a token or for a stream to end."""
_TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-Res-PQ-2025-09"
"""TLS 1.2 and 1.3; what AWS recommends. Left out it would be one of 2016, with TLS 1.0 (Elastic
Load Balancing, describe-ssl-policies)."""


def ingress(name: str, namespace: str, settings: Ingress) -> Object:
    """Ingress of the RayService `name`."""
    backend = {"service": {"name": f"{name}-serve-svc", "port": {"number": 8000}}}
    rule: Object = {"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    if settings.host:
        rule = {"host": settings.host, **rule}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": "neuron-serve",
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/component": "ingress",
            },
            "annotations": {
                f"alb.ingress.kubernetes.io/{key}": value
                for key, value in _annotations(settings).items()
            },
        },
        "spec": {"ingressClassName": "alb", "rules": [rule]},
    }


def _annotations(settings: Ingress) -> dict[str, str]:
    annotations = {
        "scheme": settings.scheme,
        "target-type": "ip",
        "load-balancer-attributes": f"idle_timeout.timeout_seconds={_STREAM_S}",
        # Requests differ a hundredfold in length: no round robin. A pod that leaves keeps its
        # streams (300 s by default).
        "target-group-attributes": "load_balancing.algorithm.type=least_outstanding_requests,"
        f"deregistration_delay.timeout_seconds={_STREAM_S}",
        # Ray's HAProxy and its Python proxy answer 200 while a replica can be reached, else 503
        # (ray/serve/_private/haproxy_templates.py, HAPROXY_HEALTHZ_RULES_TEMPLATE; proxy.py).
        "healthcheck-path": "/-/healthz",
        "success-codes": "200",
    }
    if settings.certificate_arn is None:
        return {**annotations, "listen-ports": '[{"HTTP": 80}]'}
    return {
        **annotations,
        "listen-ports": '[{"HTTP": 80}, {"HTTPS": 443}]',
        "ssl-redirect": "443",
        "ssl-policy": _TLS_POLICY,
        "certificate-arn": settings.certificate_arn,
    }
