"""A run as LLMPerf's two files: a flat summary and a list with one object per request.

Keys, names and definitions are those of ray-project/llmperf (token_benchmark_ray.py,
src/llmperf/common_metrics.py, src/llmperf/ray_clients/openai_chat_completions_client.py); where we
differ, docs/benchmarks.md says so. Seconds throughout.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serve_app.bench.load import Record, Run
from serve_app.bench.tokens import count

VERSION = "2023-08-31"
"""LLMPerf's RESULTS_VERSION."""
LATENCIES = (
    "inter_token_latency_s",
    "ttft_s",
    "end_to_end_latency_s",
    "request_output_throughput_token_per_s",
    "number_input_tokens",
    "number_output_tokens",
)
"""What LLMPerf gives quantiles of."""
OURS = ("time_per_output_token_s", "token_gap_s")
_QUANTILES = (25, 50, 75, 90, 95, 99)


def individual(run: Run, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """One object per request, in the order in which they were due."""
    records = sorted(run.records, key=lambda record: record.scheduled)
    texts = [text for record in records for text in record.prompt.texts]
    counts = iter(count(tokenizer, texts))
    inputs = [sum(next(counts) for _ in record.prompt.texts) for record in records]
    outputs = count(tokenizer, [record.answer.text for record in records])
    return [
        _request(record, run.begin, tokens_in, tokens_out)
        for record, tokens_in, tokens_out in zip(records, inputs, outputs, strict=True)
    ]


def summary(
    name: str, run: Run, requests: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """`about` is what was asked for and of whom; nested keys are joined by `_`, as LLMPerf does."""
    good = [request for request in requests if request["error_code"] is None]
    results: dict[str, Any] = {
        key: distribution([request[key] for request in good]) for key in (*LATENCIES, OURS[0])
    }
    results[OURS[1]] = distribution(
        [gap for record in run.records if not record.answer.error for gap in gaps(record)]
    )
    codes = Counter(r["error_code"] for r in requests if r["error_code"] is not None)
    minutes = run.duration_s / 60
    results |= {
        "num_requests_started": len(requests),
        "error_rate": codes.total() / len(requests) if requests else 0,
        "number_errors": codes.total(),
        "error_code_frequency": str(dict(codes)),
        "mean_output_throughput_token_per_s": sum(r["number_output_tokens"] for r in good)
        / run.duration_s,
        "num_completed_requests": len(good),
        "num_completed_requests_per_min": len(good) / minutes,
    }
    data = {
        "version": VERSION,
        "name": name,
        **about,
        "results": results,
        "timestamp": int(run.unix_s),
        "duration_s": run.duration_s,
        "interrupted": run.interrupted,
        "client_cpu_share": run.cpu_share,
        "client_lag_s_p99": quantile(run.lags, 99) if run.lags else 0.0,
    }
    return _flat(data)


def stem(model: str, mean_input: int, mean_output: int, label: str) -> str:
    """LLMPerf's name for its files, and the point of the sweep: model_512_245_c8."""
    name = re.sub(r"[^\w\d-]+", "-", f"{model}_{mean_input}_{mean_output}")
    return f"{re.sub(r'-{2,}', '-', name)}_{label}"


def write(
    directory: Path, name: str, summary: Mapping[str, Any], requests: Sequence[Mapping[str, Any]]
) -> Path:
    """Both files, each as a whole or not at all; returns the summary's path. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / f"{name}_individual_responses.json", requests)
    path = directory / f"{name}_summary.json"
    _write(path, summary)
    return path


def gaps(record: Record) -> list[float]:
    """Seconds between the events that brought text."""
    return [after - before for before, after in pairwise(record.answer.times)]


def distribution(values: Sequence[float | None]) -> dict[str, Any]:
    """Quantiles with linear interpolation and the sample's stddev, as pandas has them.

    None stands for what LLMPerf writes as NaN, which is not JSON.
    """
    known = [value for value in values if value is not None]
    return {
        "quantiles": {f"p{q}": quantile(known, q) if known else None for q in _QUANTILES},
        "mean": math.fsum(known) / len(known) if known else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "stddev": statistics.stdev(known) if len(known) > 1 else None,
    }


def quantile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation; values must not be empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _request(record: Record, begin: float, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """Latencies count from the time when the request was due."""
    answer, times = record.answer, record.answer.times
    given = answer.completion_tokens
    n = tokens_out if given is None else given
    e2e = record.ended - record.scheduled
    code, message = answer.error or (None, "")
    last = times[-1] - record.scheduled if times else None
    return {
        "error_code": code,
        "error_msg": message,
        "inter_token_latency_s": last / n if last is not None and n else 0,
        "ttft_s": times[0] - record.scheduled if times else None,
        "end_to_end_latency_s": e2e,
        "request_output_throughput_token_per_s": n / e2e if e2e > 0 else 0,
        "number_total_tokens": tokens_in + n,
        "number_output_tokens": n,
        "number_input_tokens": tokens_in,
        "time_per_output_token_s": (times[-1] - times[0]) / (n - 1) if times and n > 1 else None,
        "scheduled_s": record.scheduled - begin,
        "started_s": record.started - begin,
        "finish_reason": answer.finish_reason,
        "requested_output_tokens": record.prompt.output_tokens,
        "retokenized_output_tokens": tokens_out,
        "server_input_tokens": answer.prompt_tokens,
        "output_tokens_counted_by": "tokenizer" if given is None else "server",
    }


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}_")
        else:
            flat[prefix + key] = value
    return flat


def _write(path: Path, data: object) -> None:
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(json.dumps(data, indent=4, allow_nan=False) + "\n")
    fresh.replace(path)
