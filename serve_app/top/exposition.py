"""Prometheus' text format, of which only what is shown is parsed.

A node of Ray exports thousands of samples, and this is read every other second: lines are sorted
out by their beginning before prometheus_client parses them (9 ms in place of 300 for a replica).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_BUCKETS = "le"
READ: dict[str, str] = {
    "vllm_num_requests_running": "",
    "vllm_num_requests_waiting": "",
    "vllm_kv_cache_usage_perc": "",
    "vllm_generation_tokens_total": "",
    "vllm_prompt_tokens_total": "",
    "vllm_request_success_total": "finished_reason",
    "vllm_time_to_first_token_seconds_bucket": _BUCKETS,
    "vllm_inter_token_latency_seconds_bucket": _BUCKETS,
    "vllm_time_per_output_token_seconds_bucket": _BUCKETS,
    "neuron_serve_startup_phase": "phase",
    "neuron_serve_startup_phase_seconds": "phase",
    "neuron_serve_engine_up": "",
    "neuron_serve_neuron_cores": "",
    "neuron_serve_refusals_total": "what",
    "neuron_serve_requests_total": "status",
    "neuron_serve_front_door_requests_total": "outcome",
    "neuron_serve_front_door_models": "state",
    "serve_application_status": "",
    "serve_deployment_replica_healthy": "",
    "serve_num_http_error_requests_total": "error_code",
}
"""What is read, without Ray's prefix, and the label that tells apart what is not added up."""
_PREFIXES = tuple(
    spelled
    for name in READ
    for spelled in (f"ray_{name}", name.replace("vllm_", "vllm:", 1))
    if spelled.startswith(("ray_", "vllm:", "neuron_serve_"))
)


class Sample(NamedTuple):
    """One sample; its name is one of READ."""

    name: str
    labels: Mapping[str, str]
    value: float
    by_ray: bool
    """Ray's copy, which moves every 10 s; else an engine's own registry, of this moment."""


def parse(text: str) -> list[Sample]:
    """The samples that are read; of a page without them none.

    Raises:
        ValueError: no exposition, or one of these lines is broken. One line.
    """
    samples = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.startswith(_PREFIXES):
            continue
        after = line.rpartition("}")[2].split()  # the client leaves what follows a time out
        try:
            if len(after) > (2 if "}" in line else 3):
                raise ValueError
            ((found,),) = (family.samples for family in text_string_to_metric_families(line))
        except ValueError:
            raise ValueError(f"line {number} is no sample: {line[:60]!r}") from None
        plain = found.name.removeprefix("ray_").replace("vllm:", "vllm_", 1)
        if plain in READ:  # else it is one of a longer name
            by_ray = found.name.startswith("ray_")
            samples.append(Sample(plain, found.labels, float(found.value), by_ray))
    if not samples and text.strip() and not re.search(r"^# (HELP|TYPE) ", text, re.MULTILINE):
        raise ValueError(f"no Prometheus metrics but {text.strip()[:40]!r}")
    return samples
