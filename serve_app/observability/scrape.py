"""Where the metrics are: scrape configurations without Kubernetes."""

from __future__ import annotations

from typing import Any

RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"
"""Written by Ray's head; names the agent of each node (Ray, Collecting and monitoring metrics)."""
HAPROXY_PORT = 9101
"""RAY_SERVE_HAPROXY_METRICS_PORT, on each node that has a proxy."""
NEURON_PORT = 9010
"""Of neuron-monitor-prometheus.py here: its own default, 8000, is Serve's."""


def scrape_configs() -> list[dict[str, Any]]:
    """Jobs for one machine: Ray's agents, HAProxy, neuron-monitor."""
    return [
        {"job_name": "ray", "file_sd_configs": [{"files": [RAY_TARGETS]}]},
        _local("haproxy", HAPROXY_PORT),
        _local("neuron-monitor", NEURON_PORT),
    ]


def prometheus() -> dict[str, Any]:
    """A Prometheus configuration; its rules lie beside it."""
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "30s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": scrape_configs(),
    }


def _local(job: str, port: int) -> dict[str, Any]:
    return {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
