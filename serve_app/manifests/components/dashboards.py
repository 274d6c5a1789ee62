"""`components/dashboards`: Grafana's boards and the alerts, for the Prometheus operator's stack."""

from __future__ import annotations

import json

from serve_app.manifests.components.kustomize import kustomization
from serve_app.manifests.tree import File, Object
from serve_app.observability.alert import as_prometheus
from serve_app.observability.board import Board, as_json
from serve_app.observability.boards import BOARDS
from serve_app.observability.rules import GROUPS

NAME = "dashboards"
STACK = "monitoring"
"""Namespace of kube-prometheus-stack in docs/eks.md. Its Grafana takes boards of all namespaces."""
_LABELS = {
    "app.kubernetes.io/name": "neuron-serve",
    "app.kubernetes.io/component": NAME,
}

_KUSTOMIZATION = """\
Grafana boards and alerts, for all services: once per cluster, after kube-prometheus-stack.
  kubectl apply -k kuberay/components/dashboards
They show what the component monitoring (per service) and neuron-monitor (once) have scraped.
"""

_RULES = """\
kube-prometheus-stack takes only rules with its release's label (here `release: prometheus`),
unless its values say prometheus.prometheusSpec.ruleSelectorNilUsesHelmValues: false
What each means, and the mend: docs/observability.md.
"""

_BOARD = "The label is the one that Grafana's sidecar in kube-prometheus-stack looks for.\n"


def files() -> tuple[File, ...]:
    rules: Object = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "neuron-serve",
            "namespace": STACK,
            "labels": {**_LABELS, "release": "prometheus"},
        },
        "spec": as_prometheus(GROUPS),
    }
    boards = {f"{name}.yaml": _config_map(name, board) for name, board in BOARDS.items()}
    return (
        kustomization(NAME, ["rules.yaml", *boards], _KUSTOMIZATION),
        File(f"components/{NAME}/rules.yaml", (rules,), _RULES),
        *(File(f"components/{NAME}/{file}", (made,), _BOARD) for file, made in boards.items()),
    )


def _config_map(name: str, board: Board) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": board.uid,
            "namespace": STACK,
            "labels": {**_LABELS, "grafana_dashboard": "1"},
        },
        "data": {f"{board.uid}.json": json.dumps(as_json(board), indent=1) + "\n"},
    }
