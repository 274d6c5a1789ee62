"""Stands for the chip: an inf2.8xlarge as AWS's neuron-monitor-prometheus.py would export it.

Names, labels and types are that script's: it makes Gauge, Counter and Info of prometheus_client
from neuron-monitor's report and adds what a period counted (public copies of it; two samples, from
inf1 and trn1, are in the tests of AWS's fork of opentelemetry-collector-contrib,
receiver/awscontainerinsightreceiver/internal). All values are invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, start_http_server

INSTANCE = {
    "instance_name": "",
    "instance_id": "i-00000000000000000",
    "instance_type": "inf2.8xlarge",
    "availability_zone": "us-east-2a",
    "region": "us-east-2",
    "subnet_id": "subnet-00000000",
}
RUNTIME = {**INSTANCE, "runtime_tag": "neuron-serve"}
CORES = ("0", "1")
_GIB = 2.0**30

GAUGES: tuple[tuple[str, Mapping[str, str], Mapping[str, str], float], ...] = (
    *(("neuroncore_utilization_ratio", RUNTIME, {"neuroncore": core}, 0.4) for core in CORES),
    ("neuron_runtime_vcpu_usage_ratio", RUNTIME, {"usage_type": "user"}, 0.1),
    ("neuron_runtime_vcpu_usage_ratio", RUNTIME, {"usage_type": "system"}, 0.02),
    ("neuron_runtime_memory_used_bytes", RUNTIME, {"memory_location": "host"}, 2 * _GIB),
    ("neuron_runtime_memory_used_bytes", RUNTIME, {"memory_location": "neuron_device"}, 20 * _GIB),
    *(
        (
            f"neuroncore_memory_usage_{kind}",
            RUNTIME,
            # The script leaves this label in from the metric before.
            {"memory_location": "None", "neuroncore": core},
            size * _GIB,
        )
        for core in CORES
        for kind, size in (
            ("constants", 0.2),
            ("model_code", 0.3),
            ("model_shared_scratchpad", 0.5),
            ("runtime_memory", 0.1),
            ("tensors", 9.0),
        )
    ),
    *(
        ("execution_latency_seconds", RUNTIME, {"percentile": name}, seconds)
        for name, seconds in (("p0", 0.010), ("p50", 0.012), ("p99", 0.015), ("p100", 0.020))
    ),
    ("system_vcpu_count", INSTANCE, {}, 32),
    ("system_vcpu_usage_ratio", INSTANCE, {"usage_type": "user"}, 0.2),
    ("system_vcpu_usage_ratio", INSTANCE, {"usage_type": "system"}, 0.05),
    ("system_memory_total_bytes", INSTANCE, {}, 128 * _GIB),
    ("system_memory_used_bytes", INSTANCE, {}, 40 * _GIB),
    ("system_swap_total_bytes", INSTANCE, {}, 0),
    ("system_swap_used_bytes", INSTANCE, {}, 0),
)
COUNTERS: tuple[tuple[str, Mapping[str, str], Mapping[str, str], float], ...] = (
    *(
        ("execution_status_total", RUNTIME, {"status_type": kind}, 60 * (kind == "completed"))
        for kind in (
            "completed",
            "completed_with_err",
            "completed_with_num_err",
            "timed_out",
            "incorrect_input",
            "failed_to_queue",
        )
    ),
    *(
        ("execution_errors_total", RUNTIME, {"error_type": kind}, 0)
        for kind in ("generic", "numerical", "transient", "model", "runtime", "hardware")
    ),
    *(
        (
            "hardware_ecc_events_total",
            INSTANCE,
            {"event_type": kind, "neuron_device_index": "0"},
            kind == "mem_ecc_corrected",
        )
        for kind in (
            "mem_ecc_corrected",
            "mem_ecc_uncorrected",
            "sram_ecc_corrected",
            "sram_ecc_uncorrected",
        )
    ),
)


class NeuronMonitor:
    """The exporter, on this port."""

    def __init__(self, port: int) -> None:
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        Info("neuron_hardware", "", registry=self._registry).info(
            {"neuron_device_count": "1", "neuroncore_per_device_count": "2", **INSTANCE}
        )
        Info("instance", "", registry=self._registry).info(INSTANCE)
        self.report()
        self._server, self._thread = start_http_server(port, "127.0.0.1", self._registry)

    def report(self) -> None:
        """One report of neuron-monitor: gauges are set, counters grow."""
        for name, base, more, value in GAUGES:
            self._metric(Gauge, name, {**base, **more}).set(value)
        for name, base, more, value in COUNTERS:
            self._metric(Counter, name, {**base, **more}).inc(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _metric(self, kind: type[Any], name: str, labels: Mapping[str, str]) -> Any:
        if name not in self._metrics:
            self._metrics[name] = kind(name, name, list(labels), registry=self._registry)
        return self._metrics[name].labels(**labels)
