"""The figures of replicas: of now, over the window, or else since their start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from serve_app.top.fleet import Group, Source
from serve_app.top.history import History, Series, quantile

_TTFT = "vllm_time_to_first_token_seconds_bucket"
_ITL = (
    "vllm_inter_token_latency_seconds_bucket",
    "vllm_time_per_output_token_seconds_bucket",  # its name before
)
_FINISHED = "vllm_request_success_total"
_ACCESS = "neuron_serve_requests_total"
_HTTP = "serve_num_http_error_requests_total"
_REFUSED = "neuron_serve_refusals_total"
_DOOR, _DOOR_MODELS = "neuron_serve_front_door_requests_total", "neuron_serve_front_door_models"
Counted = tuple[History, Mapping[Series, float]]


class Reading(NamedTuple):
    """A figure; None: not known. `recent`: of now or of the window, else since the start."""

    value: float | None
    recent: bool = True


def figures(group: Group, replicas: Sequence[Source]) -> dict[str, Reading]:
    """Of some replicas of a group together. Latencies in s, rates per s, KV use from 0 to 1."""
    counted = [(source.history, source.values) for source in replicas]
    itl = next((name for name in _ITL if any(source.of(name) for source in replicas)), _ITL[0])
    finished = sorted({tag for source in replicas for tag in source.of(_FINISHED)})
    found = {
        "cores": _now(replicas, "neuron_serve_neuron_cores"),
        "running": _now(replicas, "vllm_num_requests_running"),
        "waiting": _now(replicas, "vllm_num_requests_waiting"),
        "tokens_out": _rate(counted, [("vllm_generation_tokens_total", "")]),
        "tokens_in": _rate(counted, [("vllm_prompt_tokens_total", "")]),
        "requests": _rate(counted, [(_FINISHED, reason) for reason in finished]),
        "ttft_p50": _quantile(0.5, counted, _TTFT),
        "ttft_p99": _quantile(0.99, counted, _TTFT),
        "itl_p50": _quantile(0.5, counted, itl),
        "kv": _now(replicas, "vllm_kv_cache_usage_perc", max),
        "aborted": _count(counted, [(_FINISHED, "abort")]),
        "refused": _count(counted, _tags(counted, _REFUSED)),
    }
    # One failure is counted in several of these places, and none sees them all.
    ways = [
        _count(counted, [(_FINISHED, "error")]),
        _count(counted, [one for one in _tags(counted, _ACCESS) if one[1].startswith("5")]),
    ]
    if len(replicas) == len(group.replicas):
        fives = [one for one in _tags(group.http, _HTTP) if one[1].startswith("5")]
        ways.append(_count(group.http, fives))
    found["errors"] = max(ways, key=lambda one: (one.recent and bool(one.value), one.value or -1.0))
    return found


def front_door(sources: Iterable[Source]) -> dict[str, float | None]:
    """Requests per s by outcome, and models by state; empty without a front door."""
    doors = [source for source in sources if source.of(_DOOR)]
    counted = [(door.history, door.values) for door in doors]
    found = {tag: _rate(counted, [(_DOOR, tag)]).value for _, tag in _tags(counted, _DOOR)}
    for door in doors:  # each knows all models
        found |= {f"models_{state}": count for state, count in door.of(_DOOR_MODELS).items()}
    return found


def _tags(counted: Iterable[Counted], name: str) -> list[Series]:
    return sorted({series for _, values in counted for series in values if series[0] == name})


def _now(
    replicas: Sequence[Source], name: str, together: Callable[[list[float]], float] = sum
) -> Reading:
    values = [source.values[name, ""] for source in replicas if (name, "") in source.values]
    return Reading(together(values) if values else None)


def _rate(counted: Iterable[Counted], series: Iterable[Series]) -> Reading:
    wanted, total = list(series), None
    for history, values in counted:
        rates = [history.rate(one) for one in wanted if one in values]
        known = [rate for rate in rates if rate is not None]
        if known:
            total = (total or 0.0) + sum(known)
    return Reading(total)


def _count(counted: Iterable[Counted], series: Iterable[Series]) -> Reading:
    """Lately, or if there was nothing, since the start."""
    wanted, recent, whole = list(series), 0.0, None
    for history, values in counted:
        for one in wanted:
            if one in values:
                whole = (whole or 0.0) + values[one]
                recent += history.increase(one) or 0.0
    return Reading(recent) if recent else Reading(whole, recent=False)


def _quantile(q: float, counted: Iterable[Counted], name: str) -> Reading:
    """Over the requests of the window, or if there was none, of all since the start."""
    recent: defaultdict[str, float] = defaultdict(float)
    whole: defaultdict[str, float] = defaultdict(float)
    for history, values in counted:
        for series, value in values.items():
            if series[0] == name:
                whole[series[1]] += value
                recent[series[1]] += history.increase(series) or 0.0
    found = quantile(q, recent)
    return Reading(quantile(q, whole), recent=False) if found is None else Reading(found)
