"""Two runs against each other: chance is no regression, a fifth is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.bench.compare import compare, differences
from serve_app.bench.results import ResultsError
from serve_app.cli.main import app
from tests.unit.bench_results import point, request, sweep


def regressions(a: Path, b: Path, threshold: float = 0.1) -> set[tuple[str, str]]:
    rows = compare(a, b, threshold)
    return {(row.load, row.figure) for row in rows if row.verdict == "regression"}


def test_chance_is_no_regression(tmp_path: Path) -> None:
    alarms = 0
    for seed in range(25):
        a, b = (tmp_path / f"{seed}{name}" for name in "ab")
        sweep(a, 2 * seed, (16,), 500)
        sweep(b, 2 * seed + 1, (16,), 500)
        alarms += bool(regressions(a, b))
    assert alarms <= 2


def test_a_fifth_worse_is_caught(tmp_path: Path) -> None:
    for seed in range(2):
        a, b = (tmp_path / f"{seed}{name}" for name in "ab")
        sweep(a, 2 * seed, (1, 16), 500)
        sweep(b, 2 * seed + 1, (1, 16), 500, slower=1.2)
        found = regressions(a, b)
        for figure in ("throughput", "ttft p50", "tpot p50", "e2e p50"):
            assert {("1", figure), ("16", figure)} <= found
        assert not regressions(b, a)
        assert not regressions(a, b, 0.4)


def test_the_interval_holds_the_truth(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", 1, (4,), 500)
    b = sweep(tmp_path / "b", 2, (4,), 500, slower=1.2)
    for row in compare(a, b):
        if row.low is None or row.high is None or row.ratio is None:
            assert row.figure == "error rate"
            continue
        truth = 1 / 1.2 if row.figure == "throughput" else 1.2
        assert row.low < truth < row.high, row
        assert row.high / row.low < 1.5
    assert compare(a, b) == compare(a, b)


def test_several_runs_of_a_point_widen_the_interval(tmp_path: Path) -> None:
    for at, slower in enumerate((0.7, 1.0, 1.3)):
        sweep(tmp_path / "a" / str(at), at, (4,), 300, slower)
        sweep(tmp_path / "b" / str(at), at + 10, (4,), 300, slower * 1.15)
    # One run against one says worse; the runs differ far more than that.
    assert regressions(tmp_path / "a" / "1", tmp_path / "b" / "1")
    assert not regressions(tmp_path / "a", tmp_path / "b")


def test_errors(tmp_path: Path) -> None:
    def run(name: str, errors: int) -> Path:
        rows = [request(0.1, 0.01, error=500 if at < errors else None) for at in range(500)]
        point(tmp_path / name, 1, rows, 10.0, {})
        return tmp_path / name

    assert ("1", "error rate") in regressions(run("none", 0), run("six", 6))
    assert ("1", "error rate") not in regressions(run("none", 0), run("two", 2))


def test_a_p99_of_few_requests_has_no_verdict(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", 1, (1,), 100)
    b = sweep(tmp_path / "b", 2, (1,), 100, slower=1.5)
    verdicts = {row.figure: row.verdict for row in compare(a, b)}
    assert verdicts["ttft p99"] == "unknown"
    assert verdicts["ttft p50"] == "regression"


def test_no_load_in_common(tmp_path: Path) -> None:
    a, b = sweep(tmp_path / "a", 1, (1,), 5), sweep(tmp_path / "b", 1, (2,), 5)
    with pytest.raises(ResultsError, match="no load in common"):
        compare(a, b)


def test_another_workload_is_named(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", 1, (1,), 5)
    b = sweep(tmp_path / "b", 1, (1,), 5, extra={"dataset": "random"})
    assert list(differences(a, b)) == ["dataset: sonnet against random"]


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    a = sweep(tmp_path / "a", 1, (1,), 500)
    b = sweep(tmp_path / "b", 2, (1,), 500, slower=1.3)
    run = CliRunner()
    worse = run.invoke(app, ["bench", "compare", str(a), str(b), "--json"])
    told = json.loads(worse.stdout)
    assert (worse.exit_code, told["regression"]) == (1, True)
    assert {"load", "figure", "a", "b", "ratio", "low", "high", "verdict"} == set(told["rows"][0])
    same = run.invoke(app, ["bench", "compare", str(a), str(a)])
    assert (same.exit_code, "no regression" in same.stdout) == (0, True)
    none = run.invoke(app, ["bench", "compare", str(a), str(tmp_path / "none")])
    assert none.exit_code == 2
    assert none.stderr.count("\n") == 1
