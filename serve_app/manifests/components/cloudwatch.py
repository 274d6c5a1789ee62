"""`components/cloudwatch`: what AWS's CloudWatch agent for Prometheus scrapes of our pods.

Names and paths: amazon-cloudwatch-container-insights, k8s-deployment-manifest-templates/
deployment-mode/service/cwagent-prometheus/prometheus-eks.yaml.
"""

from __future__ import annotations

import json
from typing import Any

from serve_app.manifests.components import neuron_monitor
from serve_app.manifests.components.kustomize import kustomization
from serve_app.manifests.tree import File, Object, dump
from serve_app.observability import cloudwatch

NAME = "cloudwatch"
AGENT = "amazon-cloudwatch"
"""The agent's namespace."""
_PATH = "/etc/prometheusconfig/prometheus.yaml"
_POD = "__meta_kubernetes_pod_"

_KUSTOMIZATION = """\
Our main metrics in CloudWatch, namespace NeuronServe, for all services: once per cluster, after
AWS's CloudWatch agent for Prometheus (Container Insights, prometheus-eks.yaml), in place of the
two ConfigMaps that come with it. Then restart it:
  kubectl apply -k kuberay/components/cloudwatch
  kubectl -n amazon-cloudwatch rollout restart deployment cwagent-prometheus
Each metric costs; serve_app/observability/cloudwatch.py has the list.
"""


def files() -> tuple[File, ...]:
    config = cloudwatch.scrape(_jobs())
    return (
        kustomization(NAME, ["agent.yaml", "scrape.yaml"], _KUSTOMIZATION),
        _file(
            "agent.yaml",
            "prometheus-cwagentconfig",
            {"cwagentconfig.json": json.dumps(cloudwatch.agent(_PATH), indent=1) + "\n"},
            "What becomes a CloudWatch metric, and by which dimensions.",
        ),
        _file(
            "scrape.yaml",
            "prometheus-config",
            {"prometheus.yaml": dump(config)},
            "Which pods are scraped. No histograms: the agent drops them.",
        ),
    )


def _file(name: str, config: str, data: dict[str, str], comment: str) -> File:
    made: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config, "namespace": AGENT},
        "data": data,
    }
    return File(f"components/{NAME}/{name}", (made,), comment)


def _jobs() -> list[dict[str, Any]]:
    return [_job("neuron-serve", "metrics|haproxy-metrics"), _job(neuron_monitor.NAME, "metrics")]


def _job(name: str, ports: str) -> dict[str, Any]:
    def keep(fact: str, regex: str) -> dict[str, Any]:
        return {"source_labels": [_POD + fact], "regex": regex, "action": "keep"}

    return {
        "job_name": name,
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            keep("label_app_kubernetes_io_name", name),
            keep("container_port_name", ports),
        ],
    }
