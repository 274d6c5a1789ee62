"""Every metric of a replica in Ray's scrape of the node: its registry, mirrored now and then.

vLLM's RayPrometheusStatLogger would record each of vLLM's at each step a second time, in Python,
on the loop that streams the tokens.
"""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from ray.serve.metrics import Gauge

from serve_app.engine.phases import logger

PERIOD_S = 10.0
"""Ray's workers report to their node's agent as often (RAY_metrics_report_interval_ms)."""
_OURS = "neuron_serve_"
_PREFIXES = ("vllm:", "vllm_neuron:", _OURS)
_TASKS: set[asyncio.Task[None]] = set()
"""asyncio itself would forget them."""


def show(metrics: Collector, model: str) -> None:
    """On this process's /metrics and in Ray's scrape, from now on until the process ends."""
    REGISTRY.register(metrics)
    _TASKS.add(asyncio.create_task(MetricsMirror(model).run()))


class MetricsMirror:
    """Copies the samples of this process's registry to gauges of Ray's, which every node's agent
    exports; ours with the label `model_name`, where there is one `model`.

    `vllm:generation_tokens_total` becomes `ray_vllm_generation_tokens_total`, and a histogram's
    `_bucket`, `_sum` and `_count` keep their names, so that `rate` and `histogram_quantile` read
    them as they are.
    """

    def __init__(self, model: str | None = None, prefixes: tuple[str, ...] = _PREFIXES) -> None:
        self._labels = {} if model is None else {"model_name": model}
        self._prefixes = prefixes
        self._gauges: dict[tuple[str, ...], Gauge] = {}

    async def run(self) -> None:
        """Copy every PERIOD_S until cancelled."""
        said = ""
        while True:
            try:
                await self.copy()
            except Exception as error:  # a replica without metrics still serves
                if str(error) != said:
                    said = str(error)
                    logger.warning(f"metrics are not copied: {type(error).__name__}: {said}")
            await asyncio.sleep(PERIOD_S)

    async def copy(self) -> None:
        """Collect in a thread, and let the streams go on after each metric."""
        for metric in await asyncio.to_thread(lambda: list(REGISTRY.collect())):
            if metric.name.startswith(self._prefixes):
                self._copy(metric)
                await asyncio.sleep(0)

    def _copy(self, metric: Metric) -> None:
        constant = self._labels if metric.name.startswith(_OURS) else {}
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                labels = {k: v or "none" for k, v in {**constant, **sample.labels}.items()}
                self._gauge(sample.name, metric, tuple(labels)).set(sample.value, labels)

    def _gauge(self, name: str, metric: Metric, labels: tuple[str, ...]) -> Gauge:
        key = (name, *labels)
        if key not in self._gauges:
            ray_name = name.replace(":", "_")
            self._gauges[key] = Gauge(ray_name, metric.documentation or name, tag_keys=labels)
        return self._gauges[key]
