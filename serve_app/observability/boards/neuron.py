"""Neuron devices, as AWS's neuron-monitor-prometheus.py exports them.

Its counters add up what neuron-monitor reports each period. Two samples of it, from inf1 and trn1,
are in the tests of AWS's fork of the OpenTelemetry collector (receiver/awscontainerinsightreceiver)
and have these names and labels.
"""

from __future__ import annotations

from serve_app.observability.board import (
    MODEL,
    RATE,
    RAYSERVICE,
    Board,
    Panel,
    Query,
    Variable,
)

_WHERE = 'instance_id=~"$instance_id"'
_INSTANCE = "{{instance_id}}"

_CORES = (
    Panel(
        "Utilization of the cores",
        "0 on some cores while others work: those ranks wait, or nobody uses them.",
        "percentunit",
        (
            Query(
                f"avg by (instance_id, neuroncore) (neuroncore_utilization_ratio{{{_WHERE}}})",
                f"{_INSTANCE} core {{{{neuroncore}}}}",
            ),
        ),
        width=16,
    ),
    Panel(
        "Cores that models hold",
        "Fewer than the instance has: more replicas fit; see `neuron-serve check`.",
        "short",
        (
            Query(
                f"sum by (application, model_name) (ray_neuron_serve_neuron_cores{{{MODEL}}})",
                "{{application}} {{model_name}}",
            ),
        ),
    ),
    Panel(
        "Instances",
        "Less devices than the type has: the driver lost one; replace the node.",
        "short",
        (
            Query(
                "max by (instance_id, instance_type, neuron_device_count, "
                f"neuroncore_per_device_count) (neuron_hardware_info{{{_WHERE}}})",
                "",
            ),
        ),
        "table",
        24,
    ),
)
_MODELS = (
    Panel(
        "Executions, by outcome",
        "Anything but `completed`: the runtime's log in the replica, and the errors beside.",
        "ops",
        (
            Query(
                "sum by (instance_id, status_type) "
                f"(rate(execution_status_total{{{_WHERE}}}{RATE}))",
                f"{_INSTANCE} {{{{status_type}}}}",
            ),
        ),
    ),
    Panel(
        "Errors of executions, by type",
        "`hardware`: replace the node; `numerical`: NaN from the model; `model`: compile anew.",
        "ops",
        (
            Query(
                "sum by (instance_id, error_type) "
                f"(rate(execution_errors_total{{{_WHERE}}}{RATE}))",
                f"{_INSTANCE} {{{{error_type}}}}",
            ),
        ),
    ),
    Panel(
        "Latency of an execution",
        "Grows with the bucket that is run; a jump at the same load is throttling or a new graph.",
        "s",
        (
            Query(
                "max by (instance_id, percentile) "
                f'(execution_latency_seconds{{{_WHERE}, percentile=~"p50|p99"}})',
                f"{_INSTANCE} {{{{percentile}}}}",
            ),
        ),
    ),
)
_MEMORY = (
    Panel(
        "Memory in use, on devices and host",
        "On the device near the size of all of them: the next graph will not load; see `check`.",
        "bytes",
        (
            Query(
                "sum by (instance_id, memory_location) "
                f"(neuron_runtime_memory_used_bytes{{{_WHERE}}})",
                f"{_INSTANCE} {{{{memory_location}}}}",
            ),
        ),
    ),
    Panel(
        "Memory of each core",
        "Ranks should be alike; the largest decides what fits.",
        "bytes",
        (
            Query(
                "sum by (instance_id, neuroncore) "
                f'({{__name__=~"neuroncore_memory_usage_.+", {_WHERE}}})',
                f"{_INSTANCE} core {{{{neuroncore}}}}",
            ),
        ),
    ),
    Panel(
        "Memory of the instance",
        "Near 1: weights are loaded through the host's memory; a larger instance, or fewer pods.",
        "percentunit",
        (
            Query(
                f"max by (instance_id) (system_memory_used_bytes{{{_WHERE}}}) / "
                f"max by (instance_id) (system_memory_total_bytes{{{_WHERE}}})",
                _INSTANCE,
            ),
        ),
    ),
)
_HEALTH = (
    Panel(
        "ECC events, last hour",
        "`uncorrected`: drain and replace the node; `corrected` alone is no reason to.",
        "short",
        (
            Query(
                "sum by (instance_id, neuron_device_index, event_type) "
                f"(increase(hardware_ecc_events_total{{{_WHERE}}}[1h]))",
                f"{_INSTANCE} device {{{{neuron_device_index}}}} {{{{event_type}}}}",
            ),
        ),
    ),
    Panel(
        "Processors of the instance",
        "Near 1: sampling and tokenizing wait for a processor; cores then idle.",
        "percentunit",
        (
            Query(
                f"max by (instance_id, usage_type) (system_vcpu_usage_ratio{{{_WHERE}}})",
                f"{_INSTANCE} {{{{usage_type}}}}",
            ),
        ),
    ),
    Panel(
        "Processors of the Neuron runtime",
        "Compare with the instance's: who else uses them?",
        "percentunit",
        (
            Query(
                f"sum by (instance_id, usage_type) (neuron_runtime_vcpu_usage_ratio{{{_WHERE}}})",
                f"{_INSTANCE} {{{{usage_type}}}}",
            ),
        ),
    ),
)

BOARD = Board(
    "neuron-serve-neuron",
    "neuron-serve: Neuron devices",
    "Cores, executions, memory and errors of the devices.",
    (
        RAYSERVICE,
        Variable("application", "Application", "ray_neuron_serve_neuron_cores", "application"),
        Variable("model_name", "Model", "ray_neuron_serve_neuron_cores", "model_name"),
        Variable("instance_id", "Instance", "neuron_hardware_info", "instance_id"),
    ),
    (("Cores", _CORES), ("Executions", _MODELS), ("Memory", _MEMORY), ("Health", _HEALTH)),
)
