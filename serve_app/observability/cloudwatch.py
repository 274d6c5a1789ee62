"""The CloudWatch agent: which metrics it scrapes, and makes CloudWatch metrics of.

Format: amazon-cloudwatch-agent translator/config/schema.json, CloudWatch user guide "Scraping
additional Prometheus sources". The agent drops histograms and sends the growth of counters; what
Ray exports of replicas are gauges, also totals: in CloudWatch, RATE() of them.
"""

from __future__ import annotations

from typing import Any

from serve_app.observability.scrape import scrape_configs

NAMESPACE = "NeuronServe"
_ETC = "/opt/aws/amazon-cloudwatch-agent/etc"
_MODEL = ("application", "model_name")
_NEURON = ("instance_id",)

METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "ray_vllm_num_requests_running": (_MODEL, "Count"),
    "ray_vllm_num_requests_waiting": (_MODEL, "Count"),
    "ray_vllm_kv_cache_usage_perc": (_MODEL, "None"),
    "ray_vllm_generation_tokens_total": (_MODEL, "Count"),
    "ray_vllm_prompt_tokens_total": (_MODEL, "Count"),
    "ray_vllm_time_to_first_token_seconds_sum": (_MODEL, "Seconds"),
    "ray_vllm_time_to_first_token_seconds_count": (_MODEL, "Count"),
    "ray_neuron_serve_engine_up": (_MODEL, "None"),
    "ray_neuron_serve_compile_seconds": (_MODEL, "Seconds"),
    "ray_serve_application_status": (("application",), "None"),
    "haproxy_frontend_http_responses_total": (("proxy", "code"), "Count"),
    "haproxy_backend_active_servers": (("proxy",), "Count"),
    "neuroncore_utilization_ratio": (_NEURON, "None"),
    "neuron_runtime_memory_used_bytes": ((*_NEURON, "memory_location"), "Bytes"),
    "execution_errors_total": ((*_NEURON, "error_type"), "Count"),
    "hardware_ecc_events_total": ((*_NEURON, "event_type"), "Count"),
}
"""Name -> dimensions and CloudWatch's unit. Each combination of them is paid for by itself."""


def agent(prometheus: str = f"{_ETC}/prometheus.yaml") -> dict[str, Any]:
    """The agent's own configuration; `prometheus` is the path of the scrape configuration."""
    return {
        "agent": {"metrics_collection_interval": 60},
        "logs": {
            "metrics_collected": {
                "prometheus": {
                    "log_group_name": "/neuron-serve/prometheus",
                    "prometheus_config_path": prometheus,
                    "emf_processor": {
                        "metric_declaration_dedup": True,
                        "metric_namespace": NAMESPACE,
                        "metric_unit": {name: unit for name, (_, unit) in METRICS.items()},
                        "metric_declaration": [
                            {
                                "source_labels": ["job"],
                                "label_matcher": ".*",
                                "dimensions": [list(dimensions)],
                                "metric_selectors": [f"^{name}$"],
                            }
                            for name, (dimensions, _) in METRICS.items()
                        ],
                    },
                }
            },
            "force_flush_interval": 5,
        },
    }


def scrape(jobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The scrape configuration beside it; jobs default to those of one machine. Once a minute, and
    only what is declared: the agent writes all else to CloudWatch Logs, too."""
    keep = {
        "source_labels": ["__name__"],
        "regex": "|".join(METRICS),
        "action": "keep",
    }
    return {
        "global": {"scrape_interval": "1m", "scrape_timeout": "10s"},
        "scrape_configs": [
            {**job, "metric_relabel_configs": [keep]} for job in jobs or scrape_configs()
        ],
    }
