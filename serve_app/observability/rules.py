"""The alerts: data only."""

from __future__ import annotations

from serve_app.observability.alert import Rule, When
from serve_app.observability.objective import BUDGET, OBJECTIVE, TARGET_S, slower_than_target

_APPLICATION = "rayservice, application"
_DEPLOYMENT = f"{_APPLICATION}, deployment"
_ENGINE = f"{_DEPLOYMENT}, model_name"
_WHERE = "{{ $labels.application }} {{ $labels.deployment }}"


def _burn(window: str, rate: float) -> When:
    """Windows of one rule have the same labels, so `and` joins them."""
    return When(f"{slower_than_target('', _ENGINE, f'[{window}]')} / {BUDGET:g}", ">", rate)


def _count(window: str) -> str:
    metric = "ray_vllm_time_to_first_token_seconds_count"
    return f"sum by ({_ENGINE}) (increase({metric}[{window}]))"


_REPLICA = f"{_ENGINE}, replica"
_COMPILED = "ray_neuron_serve_compile_seconds"
_COMPILES = 'ray_neuron_serve_startup_phase_seconds{phase="compile"}'
_UP = f"sum by ({_DEPLOYMENT}) (ray_neuron_serve_engine_up)"
# A replica ends as soon as its engine has: a 0 may never be scraped.
_WERE = f"max_over_time({_UP}[10m:15s])"
_SEEN = f"count by ({_DEPLOYMENT}) (last_over_time(ray_serve_deployment_replica_starts_total[30m]))"
_THERE = f"count by ({_DEPLOYMENT}) (ray_serve_deployment_replica_starts_total)"
_WAITING = f"sum by ({_ENGINE}) (avg_over_time(ray_vllm_num_requests_waiting[5m]))"
_RUNNING = f"sum by ({_ENGINE}) (avg_over_time(ray_vllm_num_requests_running[5m]))"
_SPLIT = f"sum by ({_APPLICATION}) (rate(ray_neuron_serve_pd_requests_total[10m]))"
_FELL = f"sum by ({_APPLICATION}) (rate(ray_neuron_serve_pd_fallbacks_total[10m]))"
_IN = 'haproxy_frontend_http_responses_total{proxy="http_frontend"'
_SLOW = (
    "More replicas (`scaling`) if requests wait; else look at the length of prompts and at the "
    "cores."
)
_LABELS = (("ttft_target_seconds", f"{TARGET_S:g}"),)
_TARGET = f"{OBJECTIVE:.0%} of requests have their first token within {TARGET_S:g} s"

SERVING = (
    Rule(
        "NeuronServeTTFTBurnRateFast",
        (_burn("1h", 14.4), _burn("5m", 14.4), When(_count("1h"), ">", 20)),
        "critical",
        f"{_WHERE}: first tokens are late",
        f"The objective ({_TARGET}) loses 2 % of a month's budget in an hour. At least 20 "
        "requests in that hour.",
        "neuron-serve status",
        _SLOW,
        "2m",
        labels=_LABELS,
    ),
    Rule(
        "NeuronServeTTFTBurnRateSlow",
        (_burn("6h", 6), _burn("30m", 6), When(_count("6h"), ">", 100)),
        "warning",
        f"{_WHERE}: first tokens have been late for hours",
        f"The objective ({_TARGET}) loses 5 % of a month's budget in six hours. At least 100 "
        "requests in them.",
        "neuron-serve status",
        _SLOW,
        "15m",
        labels=_LABELS,
    ),
    Rule(
        "NeuronServeQueueGrowth",
        (
            When(f"{_WAITING} / clamp_min({_RUNNING}, 1)", ">", 1),
            When(f"deriv(sum by ({_ENGINE}) (ray_vllm_num_requests_waiting)[10m:15s])", ">", 0),
        ),
        "warning",
        f"{_WHERE}: the queue is longer than the batch and grows",
        "More requests come than the replicas finish.",
        "neuron-serve status",
        "More replicas (`scaling.max_replicas`), or quotas for the keys that ask most.",
        "5m",
    ),
    Rule(
        "NeuronServeKVCacheFull",
        (
            When(
                f"max by ({_ENGINE}) (avg_over_time(ray_vllm_kv_cache_usage_perc[5m]))", ">", 0.95
            ),
            When(_WAITING, ">", 0),
        ),
        "warning",
        f"{_WHERE}: the KV cache is full and requests wait for it",
        "Sequences are longer, or more, than the cache holds.",
        "neuron-serve check CONFIG",
        "More replicas, a lower `max_model_len` or `max_num_seqs`, or more memory for the cache.",
        "5m",
    ),
)
REPLICAS = (
    Rule(
        "NeuronServeEngineDead",
        (
            When(f"{_WERE} - ({_UP} or {_WERE} * 0)", ">", 0),
            When(
                f"max by ({_DEPLOYMENT}) (ray_serve_autoscaling_target_replicas) - "
                f"({_UP} or {_WERE} * 0)",
                ">",
                0,
            ),
        ),
        "critical",
        f"{_WHERE}: an engine died or is frozen",
        "Fewer engines answer than in the last 10 minutes, and fewer than Serve wants. A change "
        "of the Serve file that ends a replica before the next one looks the same.",
        "neuron-serve status",
        "Serve starts it anew; the log of the replica before has the engine's last words. If it "
        "happens again: NeuronServeRestartLoop.",
    ),
    Rule(
        "NeuronServeApplicationDown",
        (When(f"max by ({_APPLICATION}) (ray_serve_application_status)", "<", 3),),
        "critical",
        "{{ $labels.application }} is down",
        "Serve calls it DEPLOY_FAILED or UNHEALTHY (ray.serve.schema.ApplicationStatus).",
        "neuron-serve status",
        "Its message says which replica and why; docs/eks.md, chapter 9, has the usual ones.",
        "2m",
    ),
    Rule(
        "NeuronServeRestartLoop",
        (When(f"{_SEEN} - ({_THERE} or {_SEEN} * 0)", ">", 2),),
        "critical",
        f"{_WHERE}: replicas die and start anew",
        "Three or more replicas of it ended within 30 minutes. An autoscaler that takes away as "
        "many looks the same.",
        "neuron-serve status",
        "The first error in the log of the replica before: OOMKilled, a device that fails, an "
        "artifact that does not fit.",
    ),
    Rule(
        "NeuronServeCompileInServingPath",
        (
            # nxdi's is absent while it compiles, and the phase is there.
            When(
                f"(max by ({_REPLICA}) ({_COMPILED}) or max by ({_REPLICA}) ({_COMPILES}))", ">", 60
            ),
            When(f"max by ({_REPLICA}) (ray_neuron_serve_neuron_cores)", ">", 0),
        ),
        "warning",
        f"{_WHERE}: a replica compiled instead of loading",
        "A start took minutes to hours longer than it must; each new replica would compile again.",
        "neuron-serve artifact show DIR",
        "`neuron-serve compile CONFIG`, a shared `artifacts.store`, and `artifacts.frozen: true`.",
        unless=f"max by ({_REPLICA}) ({_COMPILED} offset 1h) > 60",
    ),
    Rule(
        "NeuronServePrefillFallbacks",
        (When(f"({_FELL} or {_SPLIT} * 0) / ({_SPLIT} + ({_FELL} or {_SPLIT} * 0))", ">", 0.05),),
        "warning",
        "{{ $labels.application }}: prefills fail",
        "More than 5 % of the requests to split had no prefill: decode computes them, or refuses.",
        "neuron-serve status",
        "The board of prefill and decode has the reason: `full` needs prefill replicas, others "
        "are in their log.",
        "5m",
    ),
)
DOOR = (
    Rule(
        "NeuronServeErrors",
        (
            When(
                f'sum by (rayservice) (rate({_IN}, code="5xx"}}[5m])) / '
                f"sum by (rayservice) (rate({_IN}}}[5m]))",
                ">",
                0.05,
            ),
        ),
        "critical",
        "{{ $value | humanizePercentage }} of the answers are 5xx",
        "More than 5 % of the answers are 5xx, counted at HAProxy: clients see them.",
        "neuron-serve status",
        "The front door's board tells the application; then its replica's log.",
        "5m",
    ),
    Rule(
        "NeuronServeNoReplica",
        (
            When(
                'min by (rayservice, proxy) (haproxy_backend_active_servers{proxy=~"http-.+"})',
                "<",
                1,
            ),
        ),
        "critical",
        "{{ $labels.proxy }}: HAProxy has no replica to send to",
        "Every replica of the application is gone or still starts. Expected with "
        "`min_replicas: 0`: silence it there.",
        "neuron-serve status",
        "Wait for the phase `ready`; if no replica starts, `kubectl get pods` and docs/eks.md, "
        "chapter 9.",
        "5m",
    ),
)
NEURON = (
    Rule(
        "NeuronCoreUnused",
        (
            When(
                "max by (node, instance_id, neuroncore) "
                "(max_over_time(neuroncore_utilization_ratio[30m]))",
                "<",
                0.01,
            ),
        ),
        "warning",
        "{{ $labels.instance_id }}: core {{ $labels.neuroncore }} does nothing",
        "A runtime holds the core and it did nothing for 30 minutes, while others of the instance "
        "worked.",
        "kubectl exec POD -- neuron-ls",
        "A rank that waits: the replica's log. A model on fewer cores than its pod: "
        "`tensor_parallel_size`, or smaller pods.",
        "10m",
        # All are idle: nobody asks.
        "on (instance_id) "
        "(max by (instance_id) (avg_over_time(neuroncore_utilization_ratio[30m])) < 0.05)",
    ),
    Rule(
        "NeuronUncorrectedECC",
        (
            When(
                "sum by (node, instance_id, neuron_device_index) (increase("
                'hardware_ecc_events_total{event_type=~".+_ecc_uncorrected"}[1h]))',
                ">",
                0,
            ),
        ),
        "critical",
        "{{ $labels.instance_id }}: memory of device {{ $labels.neuron_device_index }} is faulty",
        "Uncorrected ECC events: what is computed there can be wrong.",
        "kubectl get nodeclaims -o wide",
        "`kubectl delete nodeclaims NODECLAIM`: its pods drain, a new node takes their place.",
    ),
    Rule(
        "NeuronExecutionErrors",
        (
            When(
                "sum by (node, instance_id, error_type) (increase(execution_errors_total[10m]))",
                ">",
                0,
            ),
        ),
        "warning",
        "{{ $labels.instance_id }}: executions fail ({{ $labels.error_type }})",
        "The Neuron runtime reports errors of this type.",
        "kubectl logs POD --tail=100",
        "`hardware`: a new node, as above; `numerical`: NaN from the model; others: compile anew "
        "and compare.",
    ),
)
GROUPS: dict[str, tuple[Rule, ...]] = {
    "neuron-serve-serving": SERVING,
    "neuron-serve-replicas": REPLICAS,
    "neuron-serve-front-door": DOOR,
    "neuron-serve-neuron": NEURON,
}
RULES: dict[str, Rule] = {rule.name: rule for rules in GROUPS.values() for rule in rules}
