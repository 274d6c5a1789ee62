"""Models: are they well, how fast, how full."""

from __future__ import annotations

from serve_app.observability.board import (
    APPLICATION,
    APPLICATIONS,
    MODEL,
    MODELS,
    RATE,
    RAYSERVICE,
    Board,
    Panel,
    Query,
    quantiles,
)
from serve_app.observability.objective import BUDGET, slower_than_target

_ENGINE = "application, deployment, model_name"
_LEGEND = "{{application}} {{deployment}}"


def _per_second(metric: str, by: str, legend: str) -> Query:
    return Query(f"sum by ({by}) (rate({metric}{{{MODEL}}}{RATE}))", legend)


def _average(kind: str) -> Query:
    """Tokens of a request, prompt or generation."""
    added, counted = (
        f"sum by ({_ENGINE}) (rate(ray_vllm_request_{kind}_tokens_{part}{{{MODEL}}}{RATE}))"
        for part in ("sum", "count")
    )
    return Query(f"{added} / {counted}", f"{_LEGEND} {kind}")


_STATE = (
    Panel(
        "Engines that answer",
        "0 is an engine that died or is frozen: the replica's log says why, and Serve starts it "
        "anew.",
        "short",
        (
            Query(
                f"min by (application, model_name) (ray_neuron_serve_engine_up{{{MODEL}}})",
                "{{application}} {{model_name}}",
            ),
        ),
        "stat",
    ),
    Panel(
        "Healthy replicas and those wanted",
        "Fewer than wanted for longer than a load: `neuron-serve status` tells the phase, "
        "`kubectl get pods` whether a pod waits for a node.",
        "short",
        (
            Query(
                "sum by (application, deployment) "
                f"(ray_serve_deployment_replica_healthy{{{APPLICATION}}})",
                _LEGEND,
            ),
            Query(
                "max by (application, deployment) "
                f"(ray_serve_autoscaling_target_replicas{{{APPLICATION}}})",
                f"{_LEGEND} wanted",
            ),
        ),
        "stat",
    ),
    Panel(
        "Phase of each model",
        "Not `ready` for longer than docs/eks.md's budget: look at that replica's log.",
        "short",
        (
            Query(
                "max by (application, deployment, model_name, phase) "
                f"(ray_neuron_serve_startup_phase{{{MODEL}}}) == 1",
                f"{_LEGEND} {{{{phase}}}}",
            ),
        ),
        "stat",
    ),
    Panel(
        "What serves",
        "Replicas of one application that differ in a version: an upgrade is under way, or stuck.",
        "short",
        (
            Query(
                "count by (application, model_name, version, vllm_version, backend, "
                "instance_type, tensor_parallel_size, max_num_seqs, max_model_len, dtype) "
                f"(ray_neuron_serve_info{{{MODEL}}})",
                "",
            ),
        ),
        "table",
        24,
    ),
)
_LATENCY = (
    Panel(
        "Time to first token",
        "If the queue's time has grown with it, add replicas; if not, prompts are longer or the "
        "cores slower.",
        "s",
        quantiles("ray_vllm_time_to_first_token_seconds", MODEL, _ENGINE, _LEGEND, 0.5, 0.9, 0.99),
    ),
    Panel(
        "Time between tokens",
        "It grows with the batch: lower `max_num_seqs` or add replicas; sudden peaks are prefills "
        "of long prompts.",
        "s",
        quantiles("ray_vllm_inter_token_latency_seconds", MODEL, _ENGINE, _LEGEND, 0.5, 0.99),
    ),
    Panel(
        "Whole request",
        "Compare with the tokens per request: long answers take long.",
        "s",
        quantiles("ray_vllm_e2e_request_latency_seconds", MODEL, _ENGINE, _LEGEND, 0.5, 0.99),
    ),
    Panel(
        "Time in the engine's queue",
        "Above a second: more replicas, or a larger `max_num_seqs` if the KV cache has room.",
        "s",
        quantiles("ray_vllm_request_queue_time_seconds", MODEL, _ENGINE, _LEGEND, 0.5, 0.99),
    ),
    Panel(
        "Burn rate of the objective for the first token",
        "1 uses up the budget of a month in a month; the alerts fire at 6 and 14.4.",
        "short",
        (
            Query(f"{slower_than_target(MODEL, _ENGINE, '[5m]')} / {BUDGET:g}", f"{_LEGEND} 5 m"),
            Query(f"{slower_than_target(MODEL, _ENGINE, '[1h]')} / {BUDGET:g}", f"{_LEGEND} 1 h"),
        ),
    ),
    Panel(
        "Tokens of a request",
        "Explains most changes of latency: nothing to mend here.",
        "short",
        tuple(_average(kind) for kind in ("prompt", "generation")),
    ),
)
_THROUGHPUT = (
    Panel(
        "Requests that ended",
        "Many `abort` are clients that give up: look at the time to first token; `error` is in "
        "the replica's log.",
        "reqps",
        (
            _per_second(
                "ray_vllm_request_success_total",
                "application, deployment, finished_reason",
                f"{_LEGEND} {{{{finished_reason}}}}",
            ),
        ),
    ),
    Panel(
        "Tokens per second",
        "A fall while requests wait: the engine is stuck or compiles; see its log.",
        "short",
        (
            _per_second("ray_vllm_prompt_tokens_total", _ENGINE, f"{_LEGEND} prompt"),
            _per_second("ray_vllm_generation_tokens_total", _ENGINE, f"{_LEGEND} generated"),
        ),
    ),
    Panel(
        "Answers by status",
        "5xx: the replica's log; 429: quotas or full queues, see the front door's board.",
        "reqps",
        (
            Query(
                "sum by (application, status_code) "
                f"(rate(ray_serve_num_http_requests_total{{{APPLICATION}}}{RATE}))",
                "{{application}} {{status_code}}",
            ),
        ),
    ),
)
_LOAD = (
    Panel(
        "Requests that run and that wait",
        "Waiting that does not fall back: more replicas (`scaling`), or shorter `max_model_len`.",
        "short",
        (
            Query(f"sum by ({_ENGINE}) (ray_vllm_num_requests_running{{{MODEL}}})", _LEGEND),
            Query(
                f"sum by ({_ENGINE}) (ray_vllm_num_requests_waiting{{{MODEL}}})",
                f"{_LEGEND} waiting",
            ),
        ),
    ),
    Panel(
        "KV cache in use",
        "At 1 requests wait or are preempted: more replicas, more memory for the cache, or a "
        "shorter `max_model_len`.",
        "percentunit",
        (
            Query(
                f"max by ({_ENGINE}, replica) (ray_vllm_kv_cache_usage_perc{{{MODEL}}})",
                f"{_LEGEND} {{{{replica}}}}",
            ),
        ),
    ),
    Panel(
        "Preemptions",
        "Each computes a prompt again: the KV cache is too small for `max_num_seqs`.",
        "ops",
        (_per_second("ray_vllm_num_preemptions_total", _ENGINE, _LEGEND),),
    ),
    Panel(
        "Prefix cache: share of tokens found",
        "A fall after a change of prompts or routing costs time to first token.",
        "percentunit",
        (
            Query(
                f"sum by ({_ENGINE}) (rate(ray_vllm_prefix_cache_hits_total{{{MODEL}}}{RATE})) / "
                f"sum by ({_ENGINE}) (rate(ray_vllm_prefix_cache_queries_total{{{MODEL}}}{RATE}))",
                _LEGEND,
            ),
        ),
    ),
    Panel(
        "Requests waiting, by reason",
        "`capacity` is a full batch or cache; `deferred` waits for a transfer or an adapter.",
        "short",
        (
            Query(
                "sum by (application, deployment, reason) "
                f"(ray_vllm_num_requests_waiting_by_reason{{{MODEL}}})",
                f"{_LEGEND} {{{{reason}}}}",
            ),
        ),
    ),
    Panel(
        "Memory of replicas",
        "Steady growth ends in OOMKilled: raise `resources.memory_gib`, and report it.",
        "bytes",
        (
            Query(
                "sum by (Component) (ray_component_rss_bytes"
                '{rayservice=~"$rayservice", Component=~"ray::ServeReplica:($application):.*"})',
                "{{Component}}",
            ),
        ),
    ),
)
_START = (
    Panel(
        "Time from start to ready",
        "Longer than before: it compiled, or downloaded; see the next panel and the phases.",
        "s",
        (
            Query(
                f"max by (application, model_name) (ray_neuron_serve_startup_seconds{{{MODEL}}})",
                "{{application}} {{model_name}}",
            ),
        ),
        "stat",
    ),
    Panel(
        "Time in each phase of the start",
        "`download` long: a store nearer by; `compile`: compile once, before; `weights`: the disk.",
        "s",
        (
            Query(
                "max by (application, deployment, phase) "
                f"(ray_neuron_serve_startup_phase_seconds{{{MODEL}}})",
                f"{_LEGEND} {{{{phase}}}}",
            ),
        ),
    ),
    Panel(
        "Time spent compiling at start",
        "More than 0 on Neuron: `neuron-serve compile` once, and set `artifacts.frozen`.",
        "s",
        (
            Query(
                f"max by (application, model_name) (ray_neuron_serve_compile_seconds{{{MODEL}}})",
                "{{application}} {{model_name}}",
            ),
        ),
        "stat",
    ),
    Panel(
        "Starts of replicas, last hour",
        "More than the replicas wanted: they die and start anew; the log of the one before says "
        "why.",
        "short",
        (
            Query(
                "count by (application, deployment) "
                f"(last_over_time(ray_serve_deployment_replica_starts_total{{{APPLICATION}}}[1h]))",
                _LEGEND,
            ),
        ),
        "stat",
    ),
)

BOARD = Board(
    "neuron-serve-serving",
    "neuron-serve: serving",
    "Models: are they well, how fast, how full.",
    (RAYSERVICE, APPLICATIONS, MODELS),
    (
        ("State", _STATE),
        ("Latency", _LATENCY),
        ("Throughput", _THROUGHPUT),
        ("Load", _LOAD),
        ("Start", _START),
    ),
)
