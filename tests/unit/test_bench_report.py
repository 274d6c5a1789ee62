"""The report: figures by hand, the page as a parser sees it, and what is refused in one line."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.bench.report import write
from serve_app.bench.report_sums import Targets, goodput, knee, price
from serve_app.bench.report_text import dollars, figure, percent, seconds
from serve_app.bench.results import ResultsError, one_sweep, per_token, quantile, read
from serve_app.cli.main import app
from tests.unit.bench_results import point, request, sweep

_VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Fails where a tag is not closed by its own; collects words, ids and references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report of everything, errors at 32 and a hostile model name in it."""
    directory = sweep(
        tmp_path_factory.mktemp("results"),
        seed=1,
        errors={32: 0.05},
        extra={"model": "<script>alert('x')</script>", "team": "a & b"},
    )
    made = write(directory, directory / "out" / "page.html", 0.2, 0.02, 2.5)
    return made, made.read_text()


def test_the_page_is_well_formed_small_and_needs_no_network(whole: tuple[Path, str]) -> None:
    made, text = whole
    page = Page(text)
    assert made.stat().st_size < 1_000_000
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert not re.search(r"(src|href|url\()\W{0,2}https?:|@import|//cdn", text)
    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.words
    assert "a & b" in page.words


def test_the_page_says_what_was_measured(whole: tuple[Path, str]) -> None:
    text = " ".join(Page(whole[1]).words)
    for words in ("trn2.3xlarge", "0.24.0", "11111", "sonnet", "$2.50 per hour", "1 Nov 2026"):
        assert words in text
    assert "TPOT" in text
    assert "not Neuron" not in text


def test_errors_are_loud(whole: tuple[Path, str]) -> None:
    assert re.search(r"<li class=bad>Load 32: \d\.\d % of the requests failed", whole[1])
    assert '<tr class="bad"><th>32<span class="tag">errors</span>' in whole[1]
    assert re.search(r"<tr><th>32</th><td>503</td><td>\d+</td>", whole[1])


def test_every_chart_is_a_png_too(whole: tuple[Path, str]) -> None:
    names = {"throughput", "latency", "knee", "distribution", "goodput"}
    for name in names:
        assert (whole[0].parent / f"page-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert whole[1].count("<svg") == 10


def test_llmperfs_own_files(tmp_path: Path) -> None:
    points = one_sweep(sweep(tmp_path, seed=2, loads=(1, 4), requests=40, ours=False))
    assert per_token(points) == "itl_s"
    assert points[0].duration_s == pytest.approx(40 / (points[0].requests_per_s or 0))
    text = " ".join(Page(write(tmp_path, tmp_path / "r.html").read_text()).words)
    assert "The files have no TPOT" in text
    assert "Unknown chip" in text


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("{}", {}),
        ("{429: 3, -1: 2}", {"429": 3, "-1": 2}),
        ("{429.0: np.int64(3)}", {"429": 3}),
        ("{'timeout': 1}", {"timeout": 1}),
    ],
)
def test_errors_by_code_of_a_summary_alone(
    tmp_path: Path, written: str, read_as: dict[str, int]
) -> None:
    point(tmp_path, 1, [request(0.1, 0.01)], 1.0, {"results_error_code_frequency": written})
    next(tmp_path.glob("*_individual_responses.json")).unlink()
    (found,) = read(tmp_path)
    assert found.errors_by_code == read_as


def test_without_individual_responses_distributions_are_left_out(tmp_path: Path) -> None:
    sweep(tmp_path, seed=3, loads=(1, 2, 4), requests=10)
    for file in tmp_path.glob("*_individual_responses.json"):
        file.unlink()
    text = write(tmp_path, tmp_path / "r.html", 0.2).read_text()
    assert "No file of individual responses for load 1, 2, 4" in text
    assert not (tmp_path / "r-distribution.png").exists()
    assert not (tmp_path / "r-goodput.png").exists()


def test_cpu_figures_are_not_neurons(tmp_path: Path) -> None:
    sweep(tmp_path, seed=4, loads=(1,), requests=5, extra={"server_backend": "cpu"})
    text = write(tmp_path, tmp_path / "r.html").read_text()
    assert text.count("CPU: these are not Neuron figures") >= 2


def curve(directory: Path, pairs: list[tuple[int, float, float]], **extra: object) -> Path:
    """(load, output tokens per second, end-to-end seconds) of points with ten requests."""
    for load, rate, whole in pairs:
        rows = [request(whole, 0.0, 11) for _ in range(10)]
        point(directory, load, rows, 110 / rate, extra)
    return directory


# Little's law by hand: 10 tok/s a request until 4 are under way, no more beyond.
_BENDS = [(1, 10.0, 1.0), (2, 20.0, 1.0), (4, 40.0, 1.0), (8, 40.0, 2.0), (16, 40.0, 4.0)]


def test_the_knee_is_where_saturation_begins(tmp_path: Path) -> None:
    found = knee(read(curve(tmp_path / "a", _BENDS)))
    assert found.point is not None
    assert found.point.load == 4
    # It stays where it is when the sweep ends earlier.
    again = knee(read(curve(tmp_path / "b", _BENDS[:4]))).point
    assert again is not None
    assert again.load == 4


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (_BENDS[:2], "takes 3 points"),
        (_BENDS[:3], "beyond the highest"),
        (_BENDS[2:], "below the lowest"),
    ],
)
def test_no_knee(tmp_path: Path, pairs: list[tuple[int, float, float]], why: str) -> None:
    found = knee(read(curve(tmp_path, pairs)))
    assert found.point is None
    assert why in found.reason


def test_a_point_with_errors_is_no_knee(tmp_path: Path) -> None:
    curve(tmp_path, [pair for pair in _BENDS if pair[0] != 4])
    rows = [request(1.0, 0.0, 11, error=500 if at < 2 else None) for at in range(100)]
    point(tmp_path, 4, rows, 1.0, {})
    found = knee(read(tmp_path)).point
    assert found is not None
    assert found.load != 4


def test_goodput_by_hand(tmp_path: Path) -> None:
    rows = [
        request(0.10, 0.020),  # both at their targets: within
        request(0.11, 0.010),  # late
        request(0.05, 0.021),  # slow
        request(0.05, 0.010),
        request(0.05, 0.010, error=503),
        {**request(0.05, 0.0, tokens=1), "time_per_output_token_s": None},
    ]
    point(tmp_path, 2, rows, 3.0, {})
    (found,) = read(tmp_path)
    both = goodput(found, Targets(0.1, 0.02), "tpot_s")
    assert both is not None
    assert (both.per_s, both.share) == (1.0, 0.5)
    first = goodput(found, Targets(ttft_s=0.1), "tpot_s")
    assert first is not None
    assert first.share == pytest.approx(4 / 6)
    assert goodput(found, Targets(), "tpot_s") is None


def test_price_by_hand(tmp_path: Path) -> None:
    # 10 requests of 400 + 100 tokens in 10 s: 100 output and 500 tokens a second.
    point(tmp_path, 1, [request(0.5, 0.005, 100, inputs=400) for _ in range(10)], 10.0, {})
    (found,) = read(tmp_path)
    cost = price(found, 3.6)
    assert cost is not None
    assert cost.output == pytest.approx(10.0)  # 0.001 dollars a second / 100 tok/s
    assert cost.total == pytest.approx(2.0)


def test_quantiles_are_those_of_pandas() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert quantile([1.0, 2.0, 3.0, 4.0], 90) == pytest.approx(3.7)
    assert quantile([7.0], 99) == 7.0


def test_numbers_for_people() -> None:
    assert [seconds(s) for s in (0.0123, 0.9, 1.234, 75.0, None)] == [
        *("12.3 ms", "900 ms", "1.23 s", "75.0 s", "-")
    ]
    assert [figure(n) for n in (0.0, 8, 123.4, 12345)] == ["0", "8.00", "123", "12,345"]
    assert [percent(s) for s in (0.0, 0.004, 0.5, 0.9999, 1.0)] == [
        *("0 %", "0.4 %", "50 %", "99.9 %", "100 %")
    ]
    assert [dollars(d) for d in (0.0421, 12.3)] == ["$0.0421", "$12.30"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    cases = {"no such directory": tmp_path / "none", "no *_summary.json": tmp_path}
    for text, result in (("not JSON", "{"), ("not an object", "[]"), ("no number in", "{}")):
        folder = tmp_path / text.replace(" ", "-")
        folder.mkdir()
        (folder / "m_c1_summary.json").write_text(result)
        cases[text] = folder
    del cases["no *_summary.json"]
    (tmp_path / "empty").mkdir()
    cases["no *_summary.json"] = tmp_path / "empty"
    broken = tmp_path / "rows"
    point(broken, 1, [request(0.1, 0.01)], 1.0, {})
    next(broken.glob("*_individual*")).write_text('["ttft_s"]')
    cases["not a list of objects"] = broken
    for words, directory in cases.items():
        done = CliRunner().invoke(app, ["bench", "report", str(directory)])
        assert done.exit_code == 2, words
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert str(directory) in done.stderr


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    rows = [request(0.1, 0.01)]
    point(tmp_path / "a", 1, rows, 1.0, {})
    point(tmp_path / "b", 1, rows, 1.0, {})
    with pytest.raises(ResultsError, match="load 1 several times"):
        one_sweep(tmp_path)
    point(tmp_path / "b", 1, rows, 1.0, {"model": "other"})
    with pytest.raises(ResultsError, match="several models"):
        one_sweep(tmp_path)


def test_matplotlib_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point(tmp_path, 1, [request(0.1, 0.01)], 1.0, {})
    for name in [n for n in sys.modules if n.startswith("serve_app.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(app, ["bench", "report", str(tmp_path)])
    assert done.exit_code == 1
    assert "pip install 'neuron-serve[bench]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_writes_beside_the_results(tmp_path: Path) -> None:
    sweep(tmp_path, seed=5, loads=(1, 2), requests=5)
    done = CliRunner().invoke(app, ["bench", "report", str(tmp_path)])
    assert done.exit_code == 0
    assert (tmp_path / "report.html").exists()


def test_rates_of_an_open_loop(tmp_path: Path) -> None:
    for rate in (0.5, 2.5):
        rows = [request(0.1, 0.01)]
        point(tmp_path, rate, rows, 1.0, {"request_rate": rate, "num_concurrent_requests": None})
    assert [p.label for p in one_sweep(tmp_path)] == ["0.5/s", "2.5/s"]
    assert "requests sent per second" in write(tmp_path, tmp_path / "r.html").read_text()
