"""Results made up by a seed, in our shape or in LLMPerf's own."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS: Mapping[str, Any] = {
    "request_rate": None,
    "endpoint": "http://127.0.0.1:8000/v1",
    "server_backend": "neuron",
    "server_instance_type": "trn2.3xlarge",
    "server_vllm_version": "0.24.0",
    "client_version": "0.9.0",
    "client_cpu_share": 0.2,
    "dataset": "sonnet",
    "seed": 11111,
    "warm_up_requests": 8,
}


def point(
    directory: Path,
    load: float,
    rows: Sequence[Mapping[str, Any]],
    duration_s: float,
    extra: Mapping[str, Any] | None = None,
    stem: str = "",
) -> None:
    """One point's two files; `extra` None: only what LLMPerf itself writes."""
    done = [row for row in rows if row["error_code"] is None]
    codes = [row["error_code"] for row in rows if row["error_code"] is not None]
    mean = sum(row["end_to_end_latency_s"] for row in done) / max(1, len(done))
    summary = {
        "version": "2023-08-31",
        "name": f"{stem}_summary",
        "model": "Qwen/Qwen3-8B",
        "mean_input_tokens": 550,
        "mean_output_tokens": 128,
        "num_concurrent_requests": load,
        "results_end_to_end_latency_s_mean": mean,
        "results_end_to_end_latency_s_stddev": float("nan"),
        "results_number_input_tokens_mean": 500.0,
        "results_number_input_tokens_min": "500",  # numpy's integers become strings there
        "results_num_requests_started": len(rows),
        "results_number_errors": len(codes),
        "results_error_rate": len(codes) / max(1, len(rows)),
        "results_error_code_frequency": str({code: codes.count(code) for code in codes}),
        "results_mean_output_throughput_token_per_s": sum(r["number_output_tokens"] for r in done)
        / duration_s,
        "results_num_completed_requests": len(done),
        "results_num_completed_requests_per_min": len(done) / duration_s * 60,
        "timestamp": 1793500000,
    }
    if extra is not None:
        summary |= {**OURS, "duration_s": duration_s, **extra}
    directory.mkdir(parents=True, exist_ok=True)
    stem = stem or f"qwen_550_128_c{load:g}"
    (directory / f"{stem}_summary.json").write_text(json.dumps(summary))
    (directory / f"{stem}_individual_responses.json").write_text(json.dumps(list(rows)))


def request(
    ttft: float, tpot: float | None, tokens: int = 11, error: int | None = None, inputs: int = 500
) -> dict[str, Any]:
    """LLMPerf's row, and TPOT where it is given as a number."""
    whole = ttft + (tpot or 0.0) * (tokens - 1)
    row = {
        "error_code": error,
        "error_msg": "" if error is None else "busy",
        "ttft_s": 0 if error else ttft,
        "end_to_end_latency_s": whole,
        "inter_token_latency_s": whole / tokens,
        "request_output_throughput_token_per_s": tokens / whole,
        "number_input_tokens": inputs,
        "number_output_tokens": 0 if error else tokens,
        "number_total_tokens": inputs + tokens,
    }
    return row if tpot is None else {**row, "time_per_output_token_s": None if error else tpot}


def sweep(
    directory: Path,
    seed: int,
    loads: Sequence[int] = (1, 2, 4, 8, 16, 32),
    requests: int = 500,
    slower: float = 1.0,
    errors: Mapping[int, float] | None = None,
    ours: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Like a server whose queue grows beyond 8 requests at a time."""
    rng = random.Random(seed)
    for load in loads:
        rows = []
        for _ in range(requests):
            wait = 0.03 + 0.004 * load + 0.3 * max(0, load - 8)
            ttft = wait * rng.lognormvariate(0, 0.25) * slower
            tpot = (0.012 + 0.0003 * load) * rng.lognormvariate(0, 0.08) * slower
            code = 503 if rng.random() < (errors or {}).get(load, 0.0) else None
            row = request(ttft, tpot, max(2, int(rng.gauss(128, 15))), code)
            if not ours:
                row.pop("time_per_output_token_s")
            rows.append(row)
        duration = sum(row["end_to_end_latency_s"] for row in rows) / load
        point(directory, load, rows, duration, (extra or {}) if ours else None)
    return directory
