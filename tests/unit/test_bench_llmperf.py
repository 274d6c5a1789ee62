"""LLMPerf's keys and names, held as they are in its source."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from serve_app.bench import llmperf
from serve_app.bench.answers import Answer
from serve_app.bench.load import Record, Run
from serve_app.bench.prompts import Prompt
from serve_app.bench.tokens import find

TOKENIZER = find(None, "neuron-serve/demo", None)[0]

# ray-project/llmperf, token_benchmark_ray.py: metadata, flattened by src/llmperf/utils.py.
ASKED = {
    "model",
    "mean_input_tokens",
    "stddev_input_tokens",
    "mean_output_tokens",
    "stddev_output_tokens",
    "num_concurrent_requests",
}
STATISTICS = {*(f"quantiles_p{q}" for q in (25, 50, 75, 90, 95, 99)), "mean", "min", "max"} | {
    "stddev"
}
OF_LATENCIES = {
    f"results_{key}_{statistic}"
    for key in (
        "inter_token_latency_s",
        "ttft_s",
        "end_to_end_latency_s",
        "request_output_throughput_token_per_s",
        "number_input_tokens",
        "number_output_tokens",
    )
    for statistic in STATISTICS
}
COUNTS = {
    "results_num_requests_started",
    "results_error_rate",
    "results_number_errors",
    "results_error_code_frequency",
    "results_mean_output_throughput_token_per_s",
    "results_num_completed_requests",
    "results_num_completed_requests_per_min",
}
SUMMARY = {"version", "name", "timestamp"} | ASKED | OF_LATENCIES | COUNTS
# src/llmperf/ray_clients/openai_chat_completions_client.py
INDIVIDUAL = {
    "error_code",
    "error_msg",
    "inter_token_latency_s",
    "ttft_s",
    "end_to_end_latency_s",
    "request_output_throughput_token_per_s",
    "number_total_tokens",
    "number_output_tokens",
    "number_input_tokens",
}


def record(answer: Answer, *, due: float = 10.0, started: float = 10.0, ended: float = 13.0):
    prompt = Prompt([{"role": "user", "content": "one two"}], 3)
    return Record(prompt, due, started, ended, answer)


def run_of(*records: Record) -> Run:
    return Run(list(records), begin=10.0, end=16.0, unix_s=1.7e9, cpu_s=0.6, lags=[0.0, 0.001])


GOOD = Answer("a b c", [11.0, 12.0, 12.5], "length", 9, 3)


def test_every_key_of_llmperf_is_there() -> None:
    run = run_of(record(GOOD))
    requests = llmperf.individual(run, TOKENIZER)
    assert set(requests[0]) >= INDIVIDUAL
    about = dict.fromkeys(ASKED, 1) | {"additional_sampling_params": {"temperature": 0}}
    summary = llmperf.summary("name_summary", run, requests, about)
    assert set(summary) >= SUMMARY
    assert (summary["version"], summary["timestamp"]) == ("2023-08-31", 1_700_000_000)
    assert summary["additional_sampling_params_temperature"] == 0
    assert not any(isinstance(value, dict | list) for value in summary.values())


def test_figures_by_hand() -> None:
    """Due at 9.5, first token at 11, third and last at 12.5, stream over at 13."""
    run = run_of(record(GOOD, due=9.5))
    (made,) = llmperf.individual(run, TOKENIZER)
    assert made["ttft_s"] == 1.5
    assert made["end_to_end_latency_s"] == 3.5
    assert made["inter_token_latency_s"] == 1.0  # LLMPerf's: the last token's time over tokens
    assert made["time_per_output_token_s"] == 0.75
    assert made["request_output_throughput_token_per_s"] == pytest.approx(3 / 3.5)
    assert (made["number_output_tokens"], made["server_input_tokens"]) == (3, 9)
    assert (made["scheduled_s"], made["started_s"]) == (-0.5, 0.0)
    summary = llmperf.summary("name", run, [made], {})
    assert summary["results_token_gap_s_quantiles_p50"] == 0.75
    assert summary["results_mean_output_throughput_token_per_s"] == 0.5
    assert summary["results_num_completed_requests_per_min"] == 10
    assert summary["client_cpu_share"] == pytest.approx(0.1)


def test_failed_requests_are_in_no_figure_but_the_errors() -> None:
    broken = Answer("a", [11.0, 15.0], error=("cut-off", "died"))
    run = run_of(record(GOOD), record(broken, due=9.0), record(Answer(error=(401, "no key"))))
    requests = llmperf.individual(run, TOKENIZER)
    assert [r["error_code"] for r in requests] == ["cut-off", None, 401]
    summary = llmperf.summary("name", run, requests, {})
    assert summary["results_error_code_frequency"] == "{'cut-off': 1, 401: 1}"
    assert summary["results_num_requests_started"] == 3
    assert summary["results_error_rate"] == pytest.approx(2 / 3)
    assert summary["results_ttft_s_max"] == 1.0
    assert summary["results_token_gap_s_max"] == 1.0
    assert summary["results_num_completed_requests"] == 1


def test_without_a_request_there_are_still_two_good_files(tmp_path: Path) -> None:
    summary = llmperf.summary("name", run_of(), [], {})
    assert set(summary) >= OF_LATENCIES | COUNTS
    assert summary["results_ttft_s_mean"] is None
    path = llmperf.write(tmp_path / "new" / "folder", "name", summary, [])
    assert path == tmp_path / "new" / "folder" / "name_summary.json"
    assert json.loads(path.read_text()) == summary
    assert json.loads((path.parent / "name_individual_responses.json").read_text()) == []
    assert len(list(path.parent.iterdir())) == 2


def test_distribution_is_that_of_pandas() -> None:
    # pandas.Series([4, 1, 3, 2, 10]).quantile(...), .mean(), .std()
    made = llmperf.distribution([4.0, None, 1.0, 3.0, 2.0, 10.0])
    expected = {"p25": 2.0, "p50": 3.0, "p75": 4.0, "p90": 7.6, "p95": 8.8, "p99": 9.76}
    assert made["quantiles"] == pytest.approx(expected)
    assert (made["mean"], made["min"], made["max"]) == (4.0, 1.0, 10.0)
    assert made["stddev"] == pytest.approx(math.sqrt(12.5))
    assert llmperf.distribution([1.0])["stddev"] is None


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("neuron-serve/demo", "neuron-serve-demo_512_245_c8"),
        ("meta-llama/Llama-3.1-8B", "meta-llama-Llama-3-1-8B_512_245_c8"),
        ("a//b--c", "a-b-c_512_245_c8"),
        ("../../etc", "-etc_512_245_c8"),
    ],
)
def test_names_are_those_of_llmperf_and_the_point(model: str, stem: str) -> None:
    assert llmperf.stem(model, 512, 245, "c8") == stem
    assert llmperf.stem("m", 1, 2, "r2.5") == "m_1_2_r2.5"
