"""`neuron-serve top`: recorded expositions, real servers, a real terminal.

`NEURON_SERVE_GOLDEN=1 python -m pytest tests/unit/test_top.py` writes the golden views anew.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.top.endpoints import discovered, url_of
from serve_app.top.exposition import READ, parse
from serve_app.top.figures import figures, front_door
from serve_app.top.fleet import Fleet, Group, Place
from serve_app.top.history import History, quantile
from serve_app.top.view import data, page
from serve_app.top.watch import Watch

DATA = Path(__file__).parent / "data/top"
RAY = [(DATA / f"ray-{number}.prom").read_text() for number in range(3)]
VLLM = [(DATA / f"vllm-{number}.prom").read_text() for number in range(2)]
OURS = (DATA / "ours.prom").read_text()
URL, OTHER = "http://10.0.0.7:8080/metrics", "http://10.0.0.8:8080/metrics"
TOKENS = ("vllm_generation_tokens_total", "")


def fed(*texts: str, url: str = URL, start: float = 100.0) -> tuple[Fleet, float]:
    """A fleet that looked every 2 s while the source moved every 10 s, and the time now."""
    fleet, now = Fleet(), start
    for number in range(5 * len(texts) - 4):
        now = start + 2 * number
        fleet.answered(url, now, parse(texts[number // 5]))
    return fleet, now


def only(fleet: Fleet, application: str, deployment: str = "engine") -> Group:
    (group,) = [
        one
        for one in fleet.groups()
        if (one.application, one.deployment) == (application, deployment)
    ]
    return group


# Exposition


@pytest.mark.parametrize("text", [*RAY, *VLLM, OURS])
def test_samples_are_as_prometheus_own_client_reads_them(text: str) -> None:
    theirs = {
        (
            sample.name.removeprefix("ray_").replace("vllm:", "vllm_"),
            tuple(sorted(sample.labels.items())),
            float(sample.value),
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    ours = {(one.name, tuple(sorted(one.labels.items())), one.value) for one in parse(text)}
    assert ours == {one for one in theirs if one[0] in READ}
    assert len(ours) > 30


def test_labels_are_unescaped_and_times_left_out() -> None:
    line = r'ray_vllm_num_requests_running{model_name="a\"b\\n\n}",replica="x", } 3e1 1700000000000'
    (sample,) = parse(line)
    assert (sample.labels["model_name"], sample.value) == ('a"b\\n\n}', 30.0)


@pytest.mark.parametrize(
    "text",
    [
        "<html><body>no such page</body></html>",
        '{"detail": "Not Found"}',
        'vllm:num_requests_running{engine="0} 3',
        "vllm:num_requests_running three",
        "vllm:num_requests_running",
        "vllm:num_requests_running{} 3 4 5",
    ],
)
def test_junk_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(no Prometheus metrics|line 1 is no sample)") as told:
        parse(text)
    assert "\n" not in str(told.value)


def test_other_programs_metrics_are_no_junk() -> None:
    assert parse("") == []
    assert parse("# TYPE node_load1 gauge\nnode_load1 0.5\n") == []
    assert parse('# TYPE x gauge\nvllm:num_requests_waiting_by_reason{reason="x"} 1\n') == []


# Counters and histograms


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.0, 0.0), (0.25, 0.05), (0.5, 0.1), (0.75, 0.3), (0.95, 0.46), (1.0, 0.5)],
)
def test_a_quantile_lies_linearly_within_its_bucket(q: float, expected: float) -> None:
    assert quantile(q, {"0.1": 10, "0.5": 20, "1.0": 20, "+Inf": 20}) == pytest.approx(expected)


def test_quantiles_at_the_edges() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {"1.0": 0, "+Inf": 0}) is None
    assert quantile(0.5, {"1.0": 3}) is None
    assert quantile(0.99, {"1.0": 3, "+Inf": 10}) == 1.0  # beyond the last bound
    assert quantile(0.5, {"+Inf": 10}) is None
    assert quantile(0.5, {"2.0": 9, "10.0": 4, "+Inf": 10}) == pytest.approx(2 * 5 / 9)


def looks(history: History, values: list[tuple[float, float]]) -> None:
    for now, value in values:
        history.add(now, {TOKENS: value})


def test_a_rate_does_not_flicker_between_the_sources_moves() -> None:
    """100 tokens a second, told every 10.3 s, looked at every 2 s."""
    history, rates = History(), []
    for number in range(100):
        now = 2.0 * number
        history.add(now, {TOKENS: 100 * 10.3 * (now // 10.3)})
        rates.append(history.rate(TOKENS))
    known = [rate for rate in rates if rate is not None]
    assert rates.index(known[0]) * 2 == pytest.approx(2 * 10.3, abs=2)  # of the second move
    assert all(75 < rate < 125 for rate in known)
    assert all(85 < rate < 115 for rate in known[20:])


def test_what_stands_still_comes_to_0() -> None:
    history = History()
    looks(history, [(float(now), min(now // 10, 3) * 50.0) for now in range(0, 90, 2)])
    assert history.rate(TOKENS) == 0
    idle = History()
    looks(idle, [(float(now), 7.0) for now in range(0, 40, 2)])
    assert (idle.rate(TOKENS), idle.quiet_s(40)) == (0, 40)


def test_a_counter_that_begins_anew_goes_on() -> None:
    history = History()
    looks(history, [(0, 100), (5, 150), (10, 30), (15, 90)])
    assert history.increase(TOKENS) == 90  # 150 to 0, 0 to 30, 30 to 90
    assert history.rate(TOKENS) == 9


def test_a_series_that_comes_later_began_at_0() -> None:
    history, error = History(), ("vllm_request_success_total", "error")
    looks(history, [(0, 1), (5, 2), (10, 3)])
    history.add(14, {TOKENS: 4, error: 2})
    assert history.increase(error) == 2


def test_after_a_pause_the_first_look_tells_no_rate() -> None:
    history = History()
    looks(history, [(0, 0), (5, 100), (200, 9000)])
    assert history.rate(TOKENS) is None
    looks(history, [(202, 9000), (208, 9100), (218, 9200)])
    assert history.rate(TOKENS) == 10


def test_an_engines_own_registry_tells_with_every_look() -> None:
    history = History(settled_s=0)
    looks(history, [(0, 100), (2, 300)])
    assert history.rate(TOKENS) == 100


# Replicas and models


def test_recorded_replica() -> None:
    """Between the two moves of the recording, 10 s apart."""
    fleet, _ = fed(*RAY)
    group = only(fleet, "demo")
    found = figures(group, group.replicas)
    assert (group.model, len(group.replicas)) == ("neuron-serve/demo", 1)
    assert group.replicas[0].phase() == ("ready", None)
    values = [
        {(s.name, s.labels.get(READ[s.name], "")): s.value for s in parse(text) if s.by_ray}
        for text in RAY
    ]
    assert found["tokens_out"].value == pytest.approx((values[2][TOKENS] - values[1][TOKENS]) / 10)
    assert found["tokens_out"].value > 200
    assert (found["running"].value, found["waiting"].value) == (4, 0)
    le = "vllm_time_to_first_token_seconds_bucket"
    lately = {
        tag: value - values[1][name, tag] for (name, tag), value in values[2].items() if name == le
    }
    assert found["ttft_p50"] == (quantile(0.5, lately), True)
    assert found["ttft_p99"] == (quantile(0.99, lately), True)
    assert 0.1 < quantile(0.5, lately) < 1
    assert found["errors"] == (0, False)
    # No key, no cores: not known rather than 0.
    assert (found["refused"].value, found["cores"].value) == (None, None)


def test_without_a_request_in_the_window_quantiles_are_since_the_start() -> None:
    fleet, _ = fed(RAY[0])
    group = only(fleet, "demo")
    buckets = group.replicas[0].of("vllm_time_to_first_token_seconds_bucket")
    assert figures(group, group.replicas)["ttft_p99"] == (quantile(0.99, buckets), False)


def test_vllms_own_metrics() -> None:
    """Without names of Ray's."""
    fleet, _ = fed(*VLLM, url="http://127.0.0.1:8000/metrics")
    (group,) = fleet.groups()
    assert group.replicas[0].place == Place("", "", "127.0.0.1:8000")
    found = figures(group, group.replicas)
    assert (group.model, found["running"].value) == ("neuron-serve/demo", 4)
    assert found["tokens_out"].value > 200
    assert found["requests"].recent


def test_engines_of_one_process_are_added_up() -> None:
    text = "".join(
        f'vllm:num_requests_running{{engine="{n}",model_name="m"}} {n + 1}\n'
        f'vllm:kv_cache_usage_perc{{engine="{n}",model_name="m"}} 0.{n + 1}\n'
        for n in range(3)
    )
    fleet, _ = fed(text)
    (group,) = fleet.groups()
    found = figures(group, group.replicas)
    assert (found["running"].value, found["kv"].value) == (6, 0.3)


def test_ours_phases_cores_and_roles() -> None:
    fleet, _ = fed(OURS)
    llama, prefill = only(fleet, "llama"), only(fleet, "qwen", "prefill")
    assert [source.phase() for source in llama.replicas] == [("ready", None), ("weights", 41.2)]
    found = figures(llama, llama.replicas)
    assert (found["cores"].value, found["refused"]) == (16, (42, False))
    assert found["errors"] == (3, False)  # not 5: a failure is counted in several places
    assert only(fleet, "qwen", "decode").replicas[0].phase() == ("engine dead", None)
    assert prefill.replicas[0].phase() == ("ready", None)
    assert {group.application: group.status for group in fleet.groups()} == {
        "broken": "deploy failed",
        "far": "elsewhere",
        "llama": "ready",
        "qwen": "ready",
    }
    assert fleet.unseen() == {"far": 2}
    assert front_door(fleet.sources.values()) == {
        "relayed": None,
        "unknown": None,
        "models_ready": 3,
        "models_loading": 1,
    }


def test_errors_are_of_the_window_first() -> None:
    more = OURS.replace('finished_reason="error"} 3', 'finished_reason="error"} 5')
    most = more.replace('key="bob",what="requests"} 2', 'key="bob",what="requests"} 9')
    fleet, _ = fed(OURS, OURS.replace("9000000", "9000001"), more, most)
    group = only(fleet, "llama")
    found = figures(group, group.replicas)
    assert (found["errors"], found["refused"]) == ((2, True), (7, True))


def test_failures_that_only_the_proxy_sees() -> None:
    line = 'ray_serve_num_http_error_requests_total{{application="demo",error_code="{}"}} {}\n'
    texts = [
        f"{text}{line.format(502, 3 * number)}{line.format(404, 50 * number)}"
        for number, text in enumerate(RAY)
    ]
    fleet, _ = fed(*texts)
    group = only(fleet, "demo")
    assert figures(group, group.replicas)["errors"] == (3, True)


def test_a_dead_replica() -> None:
    """Ray's controller knows first; Ray's agent shows the last values for 20 s."""
    fleet, now = fed(*RAY)
    healthy = r'(replica_healthy\{.*replica="a75kzchp".*\}) 1\.0'
    dead, count = re.subn(healthy, r"\1 0.0", RAY[2])
    assert count == 1
    fleet.answered(URL, now + 2, parse(dead))
    assert only(fleet, "demo").replicas[0].phase() == ("unhealthy", None)
    without = "".join(line for line in dead.splitlines(True) if "ray_vllm" not in line)
    fleet.answered(URL, now + 4, parse(without))
    assert fleet.groups() == []


def test_an_engine_with_requests_that_does_not_move() -> None:
    fleet, now = fed(*RAY)
    for _ in range(20):
        now += 2
        fleet.answered(URL, now, parse(RAY[2]))
    (source,) = only(fleet, "demo").replicas
    assert source.stuck_s(now) == 40
    assert "stuck 40 s" in shown(fleet, now, 80)


def test_replicas_of_one_model_on_two_nodes() -> None:
    fleet, now = fed(*RAY)
    theirs = RAY[0].replace("a75kzchp", "zzzz9999")
    fleet.answered(OTHER, now, parse(theirs))
    group = only(fleet, "demo")
    assert [source.place.replica for source in group.replicas] == ["a75kzchp", "zzzz9999"]
    assert figures(group, group.replicas)["running"].value == 8
    fleet.gone(OTHER)
    assert len(only(fleet, "demo").replicas) == 1


def test_missing_metrics_are_unknown() -> None:
    bare = "".join(line for line in RAY[2].splitlines(True) if "num_requests_running{" in line)
    fleet, now = fed(bare)
    group = only(fleet, "demo")
    found = figures(group, group.replicas)
    assert {name for name, one in found.items() if one.value is not None} == {"running"}
    assert "-" in shown(fleet, now, 80)
    assert json.dumps(data(fleet, now))


# The view


def shown(fleet: Fleet, now: float, width: int, styles: bool = False) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=styles)
    console.print(page(fleet, now, "12:00:00", width, every_replica=False))
    return console.export_text(styles=styles)


def whole() -> tuple[Fleet, float]:
    """All that there is: recorded and by hand, and a second endpoint that has gone away."""
    texts = []
    for number, text in enumerate(RAY):
        ours = OURS.replace(" 9000000", f" {9_000_000 + 12_000 * number}")
        ours = ours.replace('engine="0"} 117', f'engine="0"}} {117 + 9 * number}')
        texts.append(text + ours.replace('"relayed"} 100', f'"relayed"}} {100 + 31 * number}'))
    fleet, now = fed(*texts)
    fleet.answered(OTHER, now - 12, parse(VLLM[0].replace("neuron-serve/demo", "other/model")))
    fleet.silent(OTHER, "timed out")
    return fleet, now


@pytest.mark.parametrize("width", [80, 160])
def test_golden(width: int) -> None:
    text = "".join(line.rstrip() + "\n" for line in shown(*whole(), width).splitlines())
    golden = DATA / f"view-{width}.txt"
    if os.environ.get("NEURON_SERVE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("width", [60, 79, 80, 81, 100, 120, 140, 200])
def test_lines_fit(width: int) -> None:
    lines = shown(*whole(), width).splitlines()
    assert max(map(len, lines)) <= width
    heads = " ".join(lines[:8])
    if width < 79:
        return  # it is cut, and no line is broken
    for title in ("model", "ready", "phase", "run", "wait", "p50", "p99", "KV", "err"):
        assert title in heads, title


def test_colour_is_for_what_needs_eyes() -> None:
    text = shown(*whole(), 160, styles=True)
    assert "\x1b[31m945ms" not in text
    for style, what in ((33, " 135"), (31, "98%"), (31, "engine dead"), (33, "weights 41 s")):
        assert f"\x1b[{style}m{what}" in text, what
    assert "\x1b[2mother/model" in text  # of an endpoint that is away
    assert "\x1b[33mhttp://10.0.0.8:8080/metrics: no answer for 12 s (timed out)" in text


def test_data() -> None:
    found = data(*whole())
    assert json.loads(json.dumps(found)) == found
    llama = next(one for one in found["models"] if one["application"] == "llama")
    assert (llama["ready"], llama["waiting"], llama["tokens_out"]) == (1, 135, 1200)
    assert [one["phase"] for one in llama["replicas"]] == ["ready", "weights"]
    assert "refused" in llama["since_start"]
    assert [one["error"] for one in found["endpoints"]] == [None, "timed out"]


# Endpoints


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("8081", "http://127.0.0.1:8081/metrics"),
        ("10.0.0.1:8080", "http://10.0.0.1:8080/metrics"),
        ("http://node:8080", "http://node:8080/metrics"),
        ("https://p/federate?match[]=x", "https://p/federate?match[]=x"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert url_of(text) == url


@pytest.mark.parametrize("text", ["", "node", "ftp://x/", "a b:1", "x:port", "http://"])
def test_no_urls(text: str) -> None:
    with pytest.raises(ValueError, match="is no endpoint -> host:port"):
        url_of(text)


def test_rays_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert discovered() == []
    file = tmp_path / "ray" / "prom_metrics_service_discovery.json"
    file.parent.mkdir()
    # As Ray 2.60 wrote it.
    file.write_text('[{"labels": {"job": "ray"}, "targets": ["127.0.0.1:36467", "127.0.0.1:1"]}]')
    assert discovered() == ["http://127.0.0.1:36467/metrics", "http://127.0.0.1:1/metrics"]
    file.write_text('[{"labels"')
    assert discovered() == []


@dataclass
class Node:
    """A real server of metrics."""

    text: str
    status: int = 200
    port: int = 0
    server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def start(self) -> None:
        node = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                body = node.text.encode()
                self.send_response(node.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        assert self.server
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def node() -> Iterator[Node]:
    found = Node(RAY[0])
    found.start()
    yield found
    found.stop()


def until(true: Callable[[], bool], watch: Watch) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
        watch.take()


def test_an_endpoint_that_goes_and_comes_back(node: Node) -> None:
    watch = Watch([node.url])
    watch.first()
    watch.start(0.05)
    try:
        fleet = watch.fleet
        node.stop()
        until(lambda: fleet.endpoints[node.url].fault == "no connection", watch)
        assert only(fleet, "demo").replicas[0].away
        assert "no answer for 0 s (no connection)" in shown(fleet, time.monotonic(), 80)
        node.text = RAY[1]
        node.start()
        until(lambda: not fleet.endpoints[node.url].fault, watch)
        (source,) = only(fleet, "demo").replicas
        assert not source.away
        assert source.values[TOKENS] == 4993
        node.text = "<html>"
        until(lambda: "no Prometheus metrics" in fleet.endpoints[node.url].fault, watch)
        assert only(fleet, "demo").replicas[0].away
    finally:
        watch.stop()


def test_rays_nodes_come_and_go(node: Node) -> None:
    second = Node(RAY[0].replace("a75kzchp", "zzzz9999"))
    second.start()
    urls = [node.url]
    watch = Watch([], find=lambda: urls)
    watch.first()
    watch.start(0.05)
    try:
        urls.append(second.url)
        until(lambda: len(watch.fleet.sources) == 2, watch)
        urls.remove(node.url)
        until(lambda: [one.replica for one in watch.fleet.sources] == ["zzzz9999"], watch)
    finally:
        watch.stop()
        second.stop()


def test_the_default_stands_in_for_a_ray_that_has_gone(node: Node) -> None:
    gone = "http://127.0.0.1:1/metrics"
    watch = Watch([], find=lambda: [gone], default=node.url)
    watch.first()
    assert list(watch.fleet.sources) == [Place("demo", "engine", "a75kzchp")]


# The command

runner = CliRunner()


def test_once(node: Node) -> None:
    done = runner.invoke(app, ["top", "--once", "--metrics", str(node.port)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert re.search(r"neuron-serve/demo +demo +1/1 +4 +2 ", done.stdout)
    assert "a75kzchp" not in done.stdout
    done = runner.invoke(app, ["top", "--once", "--replicas", "--metrics", str(node.port)])
    assert "a75kzchp" in done.stdout
    # Not into a terminal: one view, too.
    assert runner.invoke(app, ["top", "--metrics", node.url]).exit_code == 0


def test_json_with_rates(node: Node) -> None:
    node.text = VLLM[0]

    def move() -> None:
        time.sleep(0.3)
        node.text = VLLM[1]

    threading.Thread(target=move, daemon=True).start()
    words = ["top", "--once", "--json", "--interval", "0.8", "--metrics", node.url]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    (model,) = json.loads(done.stdout)["models"]
    assert model["tokens_out"] > 1000  # ten seconds' worth in one


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--json"], 2, "goes with --once"),
        (["--metrics", "nonsense"], 2, "'nonsense' is no endpoint -> host:port"),
        (["--interval", "0"], 2, "--interval"),
        (["--metrics", "127.0.0.1:1"], 1, "127.0.0.1:1/metrics (no connection) -> start"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], code: int, told: str) -> None:
    done = runner.invoke(app, ["top", *words], env={"COLUMNS": "200"})
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [("<html>", 200, "no Prometheus metrics but '<html>'"), ("x", 404, "status 404")],
)
def test_junk_is_one_line(node: Node, text: str, status: int, told: str) -> None:
    node.text, node.status = text, status
    done = runner.invoke(app, ["top", "--once", "--metrics", node.url])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert f"({told}) -> " in done.stderr


@contextmanager
def terminal(url: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """`top` in a terminal of its own: the process, its keyboard and screen, and the terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "20"}
    words = [sys.executable, "-m", "serve_app", "top", "--metrics", url]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    try:
        yield process, ours, theirs
    finally:
        process.kill()
        process.wait(20)
        os.close(ours)
        os.close(theirs)


def read_until(screen: int, *parts: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + 30
    while not all(part in found for part in parts):
        assert time.monotonic() < deadline, found
        if select.select([screen], [], [], 0.1)[0]:
            found += os.read(screen, 1 << 16)
    return found


@pytest.mark.parametrize(("how", "code"), [("q", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_terminal_is_left_as_it_was(node: Node, how: str | int, code: int) -> None:
    with terminal(node.url) as (process, screen, theirs):
        before = termios.tcgetattr(theirs)
        text = read_until(screen, b"neuron-serve/demo")
        assert b"\x1b[?1049h" in text  # the other screen
        while termios.tcgetattr(theirs) == before:
            time.sleep(0.01)
        if isinstance(how, str):
            os.write(screen, how.encode())
        else:
            process.send_signal(how)
        left = read_until(screen, b"\x1b[?1049l", b"\x1b[?25h")
        assert process.wait(20) == code, left
        assert termios.tcgetattr(theirs) == before
        assert b"Traceback" not in left
