"""Prefill and decode apart: what a first token waits for, and whether the transfer holds."""

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

_DECODE = f'{APPLICATION}, deployment="decode"'
"""Every replica has the counters of a split; only these count."""
_SIDES = f'{MODEL}, deployment=~"prefill|decode"'
_SIDE = "application, deployment"
_LEGEND = "{{application}} {{deployment}}"
_SPLIT = f"sum by (application) (rate(ray_neuron_serve_pd_requests_total{{{_DECODE}}}{RATE}))"


def _or_zero(metric: str, label: str) -> Query:
    """A counter that is there once it has counted: till then 0."""
    return Query(
        f"sum by (application, {label}) (rate({metric}{{{_DECODE}}}{RATE})) or {_SPLIT} * 0",
        f"{{{{application}}}} {{{{{label}}}}}",
    )


_REQUESTS = (
    Panel(
        "Requests that are split",
        "A fall while requests come: they go whole, or prefill fails; see the next two.",
        "reqps",
        (Query(_SPLIT, "{{application}}"),),
    ),
    Panel(
        "Requests that decode serves alone, by reason",
        "Reasons of requests are theirs; `short prompt` is the setting `min_prompt_tokens`.",
        "reqps",
        (_or_zero("ray_neuron_serve_pd_whole_total", "reason"),),
    ),
    Panel(
        "Prefills that failed, by reason",
        "`full`: more prefill replicas; `timeout`, `dead`: their log; `none`: none is up.",
        "reqps",
        (_or_zero("ray_neuron_serve_pd_fallbacks_total", "reason"),),
    ),
)
_FIRST_TOKEN = (
    Panel(
        "1. Wait for a prefill replica",
        "Long: all are busy, so add prefill replicas.",
        "s",
        quantiles(
            "ray_neuron_serve_pd_wait_seconds",
            _DECODE,
            "application",
            "{{application}}",
            0.5,
            0.99,
        ),
    ),
    Panel(
        "2. Prefill",
        "Long with short prompts: the prefill engine's queue; add prefill replicas.",
        "s",
        quantiles(
            "ray_neuron_serve_pd_prefill_seconds",
            _DECODE,
            "application",
            "{{application}}",
            0.5,
            0.99,
        ),
    ),
    Panel(
        "3. Transfer, decode's queue and first step",
        "Long: compare with the transfer below; if that is short, decode is full.",
        "s",
        quantiles(
            "ray_neuron_serve_pd_first_token_seconds",
            _DECODE,
            "application",
            "{{application}}",
            0.5,
            0.99,
        ),
    ),
)
_TRANSFER = (
    Panel(
        "Time of a transfer",
        "Longer than milliseconds: check that EFA is used (`cluster.efa`), not TCP.",
        "s",
        quantiles("ray_vllm_nixl_xfer_time_seconds", _SIDES, _SIDE, _LEGEND, 0.5, 0.99),
    ),
    Panel(
        "Bytes transferred",
        "0 while requests are split: decode computes prompts by itself.",
        "Bps",
        (
            Query(
                f"sum by ({_SIDE}) (rate(ray_vllm_nixl_bytes_transferred_sum{{{_SIDES}}}{RATE}))",
                _LEGEND,
            ),
        ),
    ),
    Panel(
        "Transfers that went wrong",
        "Failed: side channel or fabric, see docs/disaggregation.md; expired: decode came too "
        "late for the blocks.",
        "ops",
        tuple(
            Query(
                f"sum by ({_SIDE}) (rate(ray_vllm_nixl_num_{name}_total{{{_SIDES}}}{RATE}))",
                f"{_LEGEND} {name}",
            )
            for name in ("failed_transfers", "failed_notifications", "kv_expired_reqs")
        ),
    ),
    Panel(
        "Prompt tokens by where they came from",
        "In decode nearly all should be `external_kv_transfer`.",
        "short",
        (
            Query(
                "sum by (application, deployment, source) "
                f"(rate(ray_vllm_prompt_tokens_by_source_total{{{_SIDES}}}{RATE}))",
                f"{_LEGEND} {{{{source}}}}",
            ),
        ),
    ),
)
_BALANCE = (
    Panel(
        "Requests that run and that wait, by side",
        "The side where they wait is the one that needs replicas.",
        "short",
        (
            Query(f"sum by ({_SIDE}) (ray_vllm_num_requests_running{{{_SIDES}}})", _LEGEND),
            Query(
                f"sum by ({_SIDE}) (ray_vllm_num_requests_waiting{{{_SIDES}}})",
                f"{_LEGEND} waiting",
            ),
        ),
    ),
    Panel(
        "KV cache in use, by side",
        "Prefill holds a prompt until decode has it: a full one waits for decode.",
        "percentunit",
        (Query(f"max by ({_SIDE}) (ray_vllm_kv_cache_usage_perc{{{_SIDES}}})", _LEGEND),),
    ),
    Panel(
        "Time between tokens, decode",
        "Should not grow with long prompts: that is what the split is for.",
        "s",
        quantiles(
            "ray_vllm_inter_token_latency_seconds",
            f'{MODEL}, deployment="decode"',
            "application",
            "{{application}}",
            0.5,
            0.99,
        ),
    ),
)

BOARD = Board(
    "neuron-serve-disaggregation",
    "neuron-serve: prefill and decode",
    "What a first token waits for, and whether the transfer holds.",
    (RAYSERVICE, APPLICATIONS, MODELS),
    (
        ("Requests", _REQUESTS),
        ("What a first token waits for", _FIRST_TOKEN),
        ("Transfer of the KV cache", _TRANSFER),
        ("Balance of both sides", _BALANCE),
    ),
)
