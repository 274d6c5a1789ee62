"""A replica's metrics: what it says of itself, the files of its engine, the copies for Ray."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from starlette.responses import JSONResponse, Response

from serve_app.access import usage
from serve_app.artifacts.verdict import Verdict
from serve_app.engine import metrics, phases
from serve_app.engine.metrics import MetricsMirror
from serve_app.engine.phases import Phases
from serve_app.ingress import prefill
from serve_app.manifests.components import neuron_monitor
from serve_app.manifests.components.monitoring import service_monitor
from serve_app.telemetry import front_door
from serve_app.telemetry.replica import FILES, ReplicaMetrics, take_files

MODEL = "org/model"
ON_CHIP = SimpleNamespace(
    backend="nxdi",
    target=SimpleNamespace(cores=8, instance=SimpleNamespace(name="inf2.24xlarge")),
)
ON_CPU = SimpleNamespace(backend="cpu", target=None)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Engine:
    """As far as its metrics go."""

    up = True
    facts = {  # noqa: RUF012
        "vllm_version": "0.29.0",
        "tensor_parallel_size": "8",
        "max_num_seqs": "4",
        "max_model_len": "2048",
        "dtype": "bfloat16",
    }

    def is_up(self) -> bool:
        return self.up


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    return clock


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What Ray's gauges hold, which are as strict as Ray's about labels."""
    held: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    class Strict:
        def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
            assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name)
            assert text
            self._name, self._keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert sorted(tags) == sorted(self._keys)
            assert all(tags.values())
            held.setdefault(self._name, {})[tuple(sorted(tags.items()))] = value

    monkeypatch.setattr(metrics, "Gauge", Strict)
    return held


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    made = CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(metrics, "REGISTRY", made)
    return made


def samples(of: Any) -> Samples:
    return {
        (sample.name.removeprefix("neuron_serve_"), tuple(sorted(sample.labels.items()))): (
            sample.value
        )
        for metric in of.collect()
        for sample in metric.samples
    }


def value(of: Any, name: str, **labels: str) -> float | None:
    return samples(of).get((name, tuple(sorted({"model_name": MODEL, **labels}.items()))))


def test_a_start_from_its_first_moment_to_ready(clock: Clock) -> None:
    start = Phases()
    shown = ReplicaMetrics(MODEL, ON_CPU, start)
    assert value(shown, "startup_phase", phase="start") == 1
    clock.now = 2.0
    start.report("download", "a bit")
    clock.now = 5.0
    start.report("download", "more")
    clock.now = 9.0
    assert value(shown, "startup_phase", phase="download") == 1
    assert value(shown, "startup_phase", phase="start") == 0
    assert value(shown, "startup_phase_seconds", phase="start") == 2
    assert value(shown, "startup_phase_seconds", phase="download") == 7
    for absent in ("startup_seconds", "compile_seconds", "engine_up"):
        assert value(shown, absent) is None
    start.report("engine")
    clock.now = 10.0
    start.report("download")  # the tokenizer's
    clock.now = 12.0
    start.report(phases.READY)
    clock.now = 99.0
    assert value(shown, "startup_phase_seconds", phase="download") == 9
    assert value(shown, "startup_phase_seconds", phase=phases.READY) is None
    assert value(shown, "startup_seconds") == 12
    on = [name for name, labels in samples(shown) if name == "startup_phase"]
    assert len(on) == 4
    assert sum(v for (name, _), v in samples(shown).items() if name == "startup_phase") == 1


def test_what_runs_and_whether_it_is_up() -> None:
    start, engine = Phases(), Engine()
    shown = ReplicaMetrics(MODEL, ON_CHIP, start)
    assert value(shown, "neuron_cores") == 8
    assert value(ReplicaMetrics(MODEL, ON_CPU, start), "neuron_cores") == 0
    shown.engine = engine
    (labels,) = (dict(labels) for name, labels in samples(shown) if name == "info")
    assert labels.pop("version")
    assert labels == {
        "model_name": MODEL,
        "backend": "nxdi",
        "instance_type": "inf2.24xlarge",
        **Engine.facts,
    }
    assert value(shown, "engine_up") == 1
    engine.up = False
    assert value(shown, "engine_up") == 0


def test_verdicts_and_the_seconds_of_a_compile() -> None:
    start = Phases()
    shown = ReplicaMetrics(MODEL, ON_CHIP, start)
    start.verdicts |= {str(Verdict.REBUILD), str(Verdict.USABLE)}
    start.compile_seconds = 0.0
    assert value(shown, "artifact_verdict", verdict="rebuild needed") == 1
    assert value(shown, "artifact_verdict", verdict="usable") == 1
    assert value(shown, "artifact_verdict", verdict="unsafe") is None
    assert value(shown, "compile_seconds") == 0


WORKER = """
from prometheus_client import Counter, Gauge, Histogram
labels = ["model_name", "bucket_name"]
Counter("vllm_neuron:neff_execution_count", "x", labels).labels("m", "prefill_s128").inc(5)
Histogram("vllm_neuron:num_seqs_padding", "x", labels, buckets=[1, 2]).labels("m", "b").observe(2)
compiled = Gauge("vllm_neuron:compilation_time_seconds", "x", labels, multiprocess_mode="max")
compiled.labels("m", "prefill_s128").set({seconds})
compiled.labels("m", "decode_b4").set(3)
size = Gauge("vllm_neuron:model_load_size_bytes", "x", ["model_name"], multiprocess_mode="sum")
size.labels("m").set(100)
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """What two ranks of the native plugin leave, written by prometheus_client itself."""
    directory = tmp_path / "files"
    directory.mkdir()
    for seconds in (20, 30):
        subprocess.run(
            [sys.executable, "-c", WORKER.format(seconds=seconds)],
            env={**os.environ, FILES: str(directory)},
            check=True,
        )
    assert len(list(directory.glob("*.db"))) >= 6
    yield directory
    os.environ.pop("NEURON_SERVE_METRIC_FILES", None)


def mirrored(mirror: MetricsMirror) -> None:
    asyncio.run(mirror.copy())


def test_the_files_of_the_engines_processes_count_once(
    files: Path,
    gauges: dict[str, Any],
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FILES, str(files))
    # The plugin's module has been imported here, too, and counts nothing here.
    Counter(
        "vllm_neuron:neff_execution_count", "x", ["model_name", "bucket_name"], registry=registry
    )
    Counter("vllm:generation_tokens", "x", ["model_name"], registry=registry).labels("m").inc(7)
    shown = ReplicaMetrics(MODEL, ON_CHIP, Phases())
    registry.register(shown)
    for taken in (False, True):
        if taken:
            take_files(os.environ)
            assert FILES not in os.environ  # else vLLM's /metrics would show files only
        gauges.clear()
        mirrored(MetricsMirror(MODEL))
        (executed,) = gauges["vllm_neuron_neff_execution_count_total"].values()
        assert executed == 10
        assert list(gauges["vllm_neuron_model_load_size_bytes"].values()) == [200]
        slowest = {dict(k)["bucket_name"]: v for k, v in _of(gauges, "compilation_time_seconds")}
        assert slowest == {"prefill_s128": 30, "decode_b4": 3}
        buckets = {dict(k)["le"]: v for k, v in _of(gauges, "num_seqs_padding_bucket")}
        assert buckets == {"1.0": 0, "2.0": 2, "+Inf": 2}
        assert list(gauges["vllm_generation_tokens_total"].values()) == [7]
        assert list(gauges["neuron_serve_compile_seconds"].values()) == [33]


def _of(gauges: dict[str, Any], name: str) -> Any:
    return gauges[f"vllm_neuron_{name}"].items()


def test_a_directory_that_is_gone_is_no_error(registry: CollectorRegistry, tmp_path: Path) -> None:
    environment = {FILES: str(tmp_path / "gone")}
    take_files(environment)
    assert list(environment.values()) == [str(tmp_path / "gone")]
    assert FILES not in environment
    os.environ.update(environment)
    try:
        assert value(ReplicaMetrics(MODEL, ON_CPU, Phases()), "neuron_cores") == 0
    finally:
        del os.environ["NEURON_SERVE_METRIC_FILES"]


def test_the_copies_say_whose_they_are(gauges: dict[str, Any], registry: CollectorRegistry) -> None:
    requests = Counter("neuron_serve_requests", "Requests.", ["key", "model"], registry=registry)
    requests.labels("", "org/adapter").inc(2)
    Gauge("vllm:num_requests_running", "", ["model_name"], registry=registry).labels("m").set(3)
    Gauge("python_info", "Not ours.", registry=registry)
    wait = Histogram("neuron_serve_pd_wait_seconds", "Wait.", buckets=[1], registry=registry)
    wait.observe(0.5)
    registry.register(ReplicaMetrics(MODEL, ON_CPU, Phases()))
    mirrored(MetricsMirror(MODEL))
    (labels,) = gauges["neuron_serve_requests_total"]
    assert dict(labels) == {"key": "none", "model": "org/adapter", "model_name": MODEL}
    assert list(gauges["vllm_num_requests_running"]) == [(("model_name", "m"),)]
    assert [dict(k)["model_name"] for k in gauges["neuron_serve_pd_wait_seconds_bucket"]] == [
        MODEL,
        MODEL,
    ]
    assert "python_info" not in gauges
    assert not [name for name in gauges if name.endswith("_created")]
    ours = [name for name in gauges if name.startswith("neuron_serve_")]
    assert all("model_name" in dict(k) for name in ours for k in gauges[name])


def test_a_failure_is_logged_once_and_the_copies_go_on(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    class Broken:
        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            nonlocal asked
            asked += 1
            if asked == 5:
                raise asyncio.CancelledError
            raise OSError("no such disk")

    registry.register(Broken())  # type: ignore[arg-type]
    monkeypatch.setattr(metrics, "PERIOD_S", 0.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(MetricsMirror().run())
    assert asked == 5
    assert [r.getMessage() for r in caplog.records] == [
        "metrics are not copied: OSError: no such disk"
    ]


@pytest.mark.parametrize(
    ("path", "answers", "outcome"),
    [
        ("/v1/chat/completions", 200, "relayed"),
        ("/v1/chat/completions", 404, "relayed"),
        ("/v1/chat/completions", 502, "failed"),
        ("/v1/chat/completions", ConnectionResetError(), "failed"),
        ("/v1/chat/completions", None, None),  # the client has left
        ("/v1/chat/completions", JSONResponse({}, 404), "unknown"),
        ("/v1/chat/completions", JSONResponse({}, 503), "loading"),
        ("/v1/chat/completions", JSONResponse({}, 401), "refused"),
        ("/v1/models", JSONResponse({}), "models"),
        ("/v1/models/nope", JSONResponse({}, 404), "unknown"),
        ("/health", Response(), None),
        ("/-/front-door/table", Response(), None),
    ],
)
def test_what_the_front_door_counts(path: str, answers: Any, outcome: str | None) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> Response | None:
        if isinstance(answers, Exception):
            raise answers
        if isinstance(answers, int):
            await send({"type": "http.response.start", "status": answers, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return None
        return answers

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    def counts() -> dict[str, float]:
        (family,) = front_door.REQUESTS.collect()
        return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}

    before = counts()
    counting = front_door.counted(answer, {"path": path}, None, send)  # type: ignore[arg-type]
    if isinstance(answers, Exception):
        with pytest.raises(type(answers)):
            asyncio.run(counting)
    else:
        assert asyncio.run(counting) is (answers if isinstance(answers, Response) else None)
    after = counts()
    grown = {name for name in after if after[name] != before.get(name, 0)}
    assert grown == ({outcome} if outcome else set())
    assert len(sent) == (2 if isinstance(answers, int) else 0)


def declared() -> dict[str, set[str]]:
    """Name and labels of every metric of ours."""
    start = Phases()
    start.report(phases.READY)
    start.verdicts.add("usable")
    start.compile_seconds = 1.0
    replica = ReplicaMetrics(MODEL, ON_CHIP, start)
    replica.engine = Engine()
    found = {
        metric.name: {label for sample in metric.samples for label in sample.labels}
        for metric in replica.collect()
    }
    for module in (usage, prefill, front_door):
        for made in vars(module).values():
            if isinstance(made, Counter | Gauge | Histogram):
                suffix = "_total" if isinstance(made, Counter) else ""
                labels = {*made._labelnames}
                found[made._name + suffix] = labels | ({"model_name"} - {*_no_model(module)})
    return found


def _no_model(module: Any) -> tuple[str, ...]:
    return ("model_name",) if module is front_door else ()


def test_the_table_of_the_docs_has_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(neuron_serve_\w+)` \| ([^|]*) \| ([^|]+) \| ([^|]+) \|$", text, re.M)
    assert len(rows) == len({name for name, *_ in rows})
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels, *_ in rows} == declared()


def test_every_metric_is_in_the_registry_under_our_prefix() -> None:
    ours = {m.name for m in REGISTRY.collect() if m.name.startswith("neuron_serve_")}
    assert {name.removesuffix("_total") for name in declared() if "pd_" in name} <= ours
    assert all(name.startswith("neuron_serve_") for name in declared())


def test_the_scrapes_own_labels_hide_none_of_ours() -> None:
    monitor = service_monitor("llm", "default")
    added = {
        relabeling["targetLabel"]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
    }
    added |= {"namespace", "pod", "container", "endpoint", "job", "instance"}  # the operator's
    ours = {"application", "deployment", "replica", "model_name", "engine", "le"}
    assert not added & ours.union(*declared().values())


def test_the_neuron_monitor_runs_on_every_family_beside_serve() -> None:
    daemonset = next(f for f in neuron_monitor.files() if f.path.endswith("daemonset.yaml"))
    (pod,) = (thing["spec"]["template"]["spec"] for thing in daemonset.objects)
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] not in (8000, 8080, 8265, 9101)
    assert container["args"][container["args"].index("--port") + 1] == str(port["containerPort"])
    families = {name.split(".")[0] for name in neuron_monitor.instance_types()}
    assert {"inf2", "trn1", "trn2", "trn3"} <= families
