"""`neuron-serve bench` as it is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve_app.cli.main import app
from tests.unit import no_compute_server as fake
from tests.unit.test_bench_llmperf import INDIVIDUAL, SUMMARY

ROOT = Path(__file__).parents[2]
GUIDE = (
    *("--mean-input-tokens", "512", "--stddev-input-tokens", "20"),
    *("--mean-output-tokens", "245", "--stddev-output-tokens", "20"),
    *("--num-concurrent-requests", "2", "--max-num-completed-requests", "16"),
)
SHORT = ("--mean-input-tokens", "20", "--mean-output-tokens", "10", "--stddev-input-tokens", "2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake.no_compute_server() as made:
        yield made


def bench(*words: str | Path, key: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["bench", *map(str, words)], env={"OPENAI_API_KEY": key})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def do(**what: Any) -> tuple[str, str]:
    return "--additional-sampling-params", json.dumps({"do": what})


def files(directory: Path, stem: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = json.loads((directory / f"{stem}_summary.json").read_text())
    return summary, json.loads((directory / f"{stem}_individual_responses.json").read_text())


def test_the_guides_run_with_one_command(url: str, tmp_path: Path) -> None:
    done = bench("--url", url, *GUIDE, "--results-dir", tmp_path, "--metadata", "a=b,c=1")
    assert done.exit_code == 0, done.output
    summary, requests = files(tmp_path, "neuron-serve-demo_512_245_c2")
    assert set(summary) >= SUMMARY
    assert all(set(request) >= INDIVIDUAL for request in requests)
    assert len(requests) == summary["results_num_completed_requests"] == 16
    assert summary["results_error_rate"] == 0
    assert summary["num_concurrent_requests"] == 2
    assert (summary["a"], summary["c"]) == ("b", "1")
    assert (summary["warm_up_requests"], summary["loop"]) == (2, "closed")
    assert (summary["server_vllm_version"], summary["server_backend"]) == ("0.29.0", "cpu")
    assert 440 < summary["results_number_input_tokens_mean"] < 580
    assert [r["number_output_tokens"] for r in requests] == [
        r["requested_output_tokens"] for r in requests
    ]
    assert "1 of 1 points" in done.stderr
    for column in ("req/s", "TTFT", "TPOT", "E2E", "failed", "CPU"):
        assert column in done.stdout


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take seconds: one test makes them."""
    if "report" not in request.node.name:
        monkeypatch.setattr("serve_app.cli.bench._report", lambda results_dir: None)


def test_a_report_is_beside_the_files(url: str, tmp_path: Path) -> None:
    done = bench("--url", url, *SHORT, "--results-dir", tmp_path, "--concurrency", "1,2,3")
    assert done.exit_code == 0
    assert f"report: {tmp_path / 'report.html'}" in done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "neuron-serve/demo" in page
    assert len(page) < 1_000_000
    assert len(list(tmp_path.glob("report-*.png"))) >= 4


def test_a_sweep_has_two_files_per_point(url: str, tmp_path: Path) -> None:
    words = ("--url", f"{url}/v1/", *SHORT, "--results-dir", tmp_path, "--warm-up", "0")
    assert bench(*words, "--concurrency", "1,3").exit_code == 0
    assert bench(*words, "--rate", "50,80.5").exit_code == 0
    stems = [f"neuron-serve-demo_20_10_{point}" for point in ("c1", "c3", "r50", "r80.5")]
    expected = {f"{s}_{f}.json" for s in stems for f in ("summary", "individual_responses")}
    assert {path.name for path in tmp_path.iterdir()} == expected
    summary, requests = files(tmp_path, stems[3])
    assert (summary["request_rate"], summary["num_concurrent_requests"]) == (80.5, None)
    assert (summary["loop"], summary["endpoint"]) == ("open", url)
    assert sorted(r["scheduled_s"] for r in requests) == [r["scheduled_s"] for r in requests]


def test_conversations_and_files(url: str, tmp_path: Path) -> None:
    words = ("--url", url, *SHORT, "--results-dir", tmp_path, "--concurrency", "2")
    chats = ("--dataset", "conversations", "--turns", "3", "--shared-prefix-tokens", "50")
    assert bench(*words, *chats).exit_code == 0
    summary, requests = files(tmp_path, "neuron-serve-demo_20_10_c2")
    assert (summary["turns"], summary["shared_prefix_tokens"]) == (3, 50)
    # The first turns, then those that send the earlier ones again.
    assert 50 < min(r["number_input_tokens"] for r in requests) < 80
    assert max(r["number_input_tokens"] for r in requests) > 110
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is TTFT?\nAnd TPOT?\n")
    assert bench(*words, "--dataset", prompts).exit_code == 0
    summary, requests = files(tmp_path, "neuron-serve-demo_20_10_c2")
    assert summary["dataset"] == str(prompts)


def test_only_vllm_is_asked_for_exact_lengths(url: str, tmp_path: Path) -> None:
    words = (*SHORT, "--results-dir", tmp_path, "--concurrency", "1")
    with fake.no_compute_server(version=None) as other:
        bench("--url", other, *words)
    assert not files(tmp_path, "neuron-serve-demo_20_10_c1")[0]["exact_output_lengths"]
    bench("--url", url, *words)
    assert files(tmp_path, "neuron-serve-demo_20_10_c1")[0]["exact_output_lengths"]


def test_a_key_comes_from_the_environment_and_goes_nowhere_else(url: str, tmp_path: Path) -> None:
    words = ("--url", url, *SHORT, "--results-dir", tmp_path, *do(key="sk-secret"))
    done = bench(*words, key="sk-secret")
    assert done.exit_code == 0, done.output
    assert "sk-secret" in words[-1]
    for path in tmp_path.iterdir():
        text = path.read_text().replace('"additional_sampling_params_do_key": "sk-secret"', "")
        assert "sk-secret" not in text
    assert "sk-secret" not in done.output
    assert bench(*words, key="sk\nsecret").exit_code == 1


def test_all_requests_failed(url: str, tmp_path: Path) -> None:
    done = bench("--url", url, *SHORT, "--results-dir", tmp_path, *do(whole="zero"))
    assert done.exit_code == 1
    assert "10 users: failed: {'no-tokens': 10}" in done.stderr
    summary, requests = files(tmp_path, "neuron-serve-demo_20_10_c10")
    assert summary["results_error_rate"] == 1
    assert {r["error_code"] for r in requests} == {"no-tokens"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "nothing answers at http://127.0.0.1:9 ("),
        (["--url", "127.0.0.1:8000"], 1, "is no URL of HTTP -> as in http://127.0.0.1:8000"),
        (["--url", "http://me:word@host"], 1, "OPENAI_API_KEY"),
        (["--model", "none"], 1, "has no model none -> choose by --model: neuron-serve/demo"),
        (["--mean-input-tokens", "900"], 1, "beyond the model's max_model_len of 1024 -> --mean"),
        (["--tokenizer", "/no/where"], 1, "no tokenizer.json at /no/where -> --tokenizer"),
        (["--dataset", "/no/where"], 1, "/no/where: No such file or directory -> --dataset"),
        (["--results-dir", "/proc/none"], 1, "/proc/none: No such file or directory -> --results"),
        (["--concurrency", "1,x"], 2, "'1,x' is no list such as 1,2,4"),
        (["--concurrency", "0"], 2, "'0' is no list"),
        (["--rate", "nan"], 2, "'nan' is no list"),
        (["--rate", "1", "--concurrency", "1"], 2, "users or a rate, not both"),
        (["--additional-sampling-params", "[]"], 2, "'[]' is no JSON object such as"),
        (["--metadata", "a"], 2, "'a' is not as in name=foo,bar=1"),
        (["--mean-output-tokens", "0"], 2, "--mean-output-tokens"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(url: str, words: list[str], code: int, said: str) -> None:
    done = bench("--url", url, "--results-dir", "/nonexistent/never", *words)
    text = " ".join(done.stderr.replace("│", "").split())
    assert (done.exit_code, said in text) == (code, True), done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_an_endpoint_with_several_models_or_a_key(tmp_path: Path) -> None:
    with fake.no_compute_server(models=[{"id": "b"}, {"id": "a"}], keys=["k"]) as url:
        done = bench("--url", url)
        assert f"{url} wants a key -> set OPENAI_API_KEY" in done.stderr
        assert "does not take the key of OPENAI_API_KEY" in bench("--url", url, key="x").stderr
        done = bench("--url", url, key="k")
        assert "has several models or none -> choose by --model: a, b" in done.stderr
        done = bench("--url", url, "--model", "a", key="k")
        assert "no tokenizer.json for a here -> --tokenizer DIRECTORY" in done.stderr
        words = ("--tokenizer", ROOT / "serve_app/demo_model", "--results-dir", tmp_path)
        assert bench("--url", url, "--model", "a", *words, key="k").exit_code == 0
    assert (tmp_path / "a_550_150_c10_summary.json").exists()


def test_ctrl_c_keeps_what_is_done(url: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "serve_app", "bench", "--url", url, *SHORT]
    words += ["--concurrency", "2,4", "--max-num-completed-requests", "1000", "--warm-up", "0"]
    words += ["--results-dir", str(tmp_path), "--seed", "3", *do(gap_s=0.02)]
    words += ["--stddev-output-tokens", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    # Its stderr says when the load has begun, in the bar of a terminal; here it is only waited for.
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert process.stderr
    assert "random" in process.stderr.readline()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err + out
    summary, requests = files(tmp_path, "neuron-serve-demo_20_10_c2")
    assert summary["interrupted"] is True
    assert 1 < len(requests) < 1000
    assert summary["results_num_completed_requests"] == len(requests)
    assert len(list(tmp_path.iterdir())) == 2
    assert "interrupted; requests under way are left out" in err
