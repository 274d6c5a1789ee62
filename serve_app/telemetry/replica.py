"""What a replica says of itself, for prometheus_client's registry. Its table: docs/metrics.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue, ValueClass

from serve_app.version import VERSION

FILES = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's: where processes leave their metrics for another one to add up. The native
plugin sets it when it is imported (vllm_neuron/__init__.py), and its workers write there."""
_TAKEN = "NEURON_SERVE_METRIC_FILES"
_NATIVE_COMPILE = "vllm_neuron:compilation_time_seconds"
_READY = "ready"


class Start(Protocol):
    """How far the start is (engine/phases.py)."""

    verdicts: set[str]
    compile_seconds: float | None

    def spent(self) -> tuple[str, dict[str, float]]: ...


class Plan(Protocol):
    """What was planned (backends/plan.py)."""

    @property
    def backend(self) -> str: ...
    @property
    def target(self) -> Any: ...


class Running(Protocol):
    """The engine (engine/engine.py)."""

    @property
    def facts(self) -> dict[str, str]: ...

    def is_up(self) -> bool: ...


class ReplicaMetrics(Collector):
    """Of one replica, as of each scrape; what is not known yet is absent."""

    def __init__(self, model: str, plan: Plan, start: Start) -> None:
        self._model, self._plan, self._start = model, plan, start
        self.engine: Running | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not collect to know the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        start, engine, target = self._start, self.engine, self._plan.target
        compiled = start.compile_seconds
        for metric in _from_files():
            if metric.name == _NATIVE_COMPILE:
                compiled = sum(sample.value for sample in metric.samples)
            yield metric
        now, spent = start.spent()
        text = "Phases of the start: 1 for the one now, 0 for those behind."
        yield self._by("phase", "startup_phase", text, {name: name == now for name in spent})
        spent.pop(_READY, None)
        text = "Seconds in each phase of the start so far."
        yield self._by("phase", "startup_phase_seconds", text, spent)
        if now == _READY:
            text = "Seconds from the start of the replica until it was ready."
            yield self._one("startup_seconds", text, sum(spent.values()))
        text = "1 for each verdict on a compiled model that this start came to."
        yield self._by("verdict", "artifact_verdict", text, dict.fromkeys(start.verdicts, 1))
        if compiled is not None:
            text = "Seconds that this start spent compiling; 0: it loaded what is compiled."
            yield self._one("compile_seconds", text, compiled)
        cores = target.cores if target else 0
        yield self._one("neuron_cores", "NeuronCores that the replica holds.", cores)
        if engine is not None:
            text = "1 while EngineCore lives and answers, 0 when it is dead or frozen."
            yield self._one("engine_up", text, engine.is_up())
            facts = {"version": VERSION, "backend": self._plan.backend, **engine.facts}
            facts["instance_type"] = target.instance.name if target else ""
            info = self._family("info", "What runs here, always 1.", *facts)
            info.add_metric([self._model, *facts.values()], 1)
            yield info

    def _family(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"neuron_serve_{name}", text, labels=["model_name", *labels])

    def _one(self, name: str, text: str, value: float) -> Metric:
        family = self._family(name, text)
        family.add_metric([self._model], float(value))
        return family

    def _by(self, label: str, name: str, text: str, values: Mapping[str, float]) -> Metric:
        family = self._family(name, text, label)
        for each, value in values.items():
            family.add_metric([self._model, each], float(value))
        return family


def take_files(environment: MutableMapping[str, str]) -> None:
    """The engine's processes have started and know where to write; from now on only we read it.

    vLLM's /metrics shows what is in files and nothing else where it finds the variable
    (prometheus_fastapi_instrumentator, expose). What this process counts is in no file, as Ray has
    imported prometheus_client before the plugin set it.
    """
    if ValueClass is MutexValue and FILES in environment:
        environment[_TAKEN] = environment.pop(FILES)


def _from_files() -> Iterable[Metric]:
    directory = os.environ.get(_TAKEN) or os.environ.get(FILES)
    if directory is None or not Path(directory).is_dir():
        return ()
    files: Collector = MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]
    return files.collect()
