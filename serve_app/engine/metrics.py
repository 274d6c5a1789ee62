"""vLLM's metrics in Ray's scrape: every sample of vLLM's own registry, mirrored now and then.

vLLM's RayPrometheusStatLogger would record each of them at each step a second time, in Python,
on the loop that streams the tokens.
"""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY
from ray.serve.metrics import Gauge

PERIOD_S = 10.0
"""Ray's workers report to their node's agent as often (RAY_metrics_report_interval_ms)."""
_PREFIXES = ("vllm:", "neuron_serve_")


class MetricsMirror:
    """Copies vLLM's samples to gauges of Ray's, which every node's agent exports.

    `vllm:generation_tokens_total` becomes `ray_vllm_generation_tokens_total`, and a histogram's
    `_bucket`, `_sum` and `_count` keep their names, so that `rate` and `histogram_quantile` read
    them as they are.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def copy(self) -> None:
        for metric in REGISTRY.collect():
            if not metric.name.startswith(_PREFIXES):
                continue
            for sample in metric.samples:
                if not sample.name.endswith("_created"):
                    self._gauge(sample.name, metric.documentation, tuple(sample.labels)).set(
                        sample.value, {k: v or "none" for k, v in sample.labels.items()}
                    )

    async def run(self) -> None:
        """Copy every PERIOD_S until cancelled."""
        while True:
            self.copy()
            await asyncio.sleep(PERIOD_S)

    def _gauge(self, name: str, documentation: str, labels: tuple[str, ...]) -> Gauge:
        if name not in self._gauges:
            ray_name = name.replace(":", "_")
            self._gauges[name] = Gauge(ray_name, documentation or name, tag_keys=labels)
        return self._gauges[name]
