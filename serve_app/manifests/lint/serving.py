"""The Serve config inside a RayService: what it asks of the pods."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import yaml

from serve_app.backends import EnginePlan, engines_of, make_plan
from serve_app.config import ConfigError, Document, Finding, Severity
from serve_app.config.document import parse
from serve_app.config.environment import references
from serve_app.config.serve_file import ServeFile
from serve_app.config.sources import is_directory
from serve_app.manifests.lint.objects import at, each, mapping
from serve_app.preflight import check_document

_FRONT_DOOR_DRAIN = 120.0
"""Seconds; serve_app/deployments/options.py."""


class Engine(NamedTuple):
    """An engine of the config and how many replicas of it there can be."""

    label: str
    plan: EnginePlan
    most: int


@dataclass(frozen=True, eq=False)
class Serving:
    """A Serve config, read."""

    data: Any
    """As YAML gives it."""
    document: Document | None
    """None: it has faults."""
    faults: tuple[Finding, ...]
    """Why it does not start, whatever machine it starts on."""
    engines: tuple[Engine, ...]

    @property
    def port(self) -> int:
        port = at(self.data, "http_options", "port")
        return port if isinstance(port, int) else 8000

    @property
    def variables(self) -> set[str]:
        """Names of the variables that the config refers to."""
        return {name for text in _texts(self.data) for name in references(text)}

    @property
    def drain(self) -> float:
        """Seconds that the slowest replica may take to let its streams finish."""
        if self.document is None:
            return 0.0
        waits = [app.args.health.drain_timeout_s for app in self.document.serve.models]
        waits += [_FRONT_DOOR_DRAIN for _ in self.document.serve.front_doors]
        for app in each(self.data, "applications"):
            for override in each(app, "deployments"):
                given = mapping(override).get("graceful_shutdown_timeout_s")
                waits += [float(given)] if isinstance(given, int | float) else []
        return max(waits, default=0.0)


@cache
def serving(text: str) -> Serving:
    """The Serve config in `text`; never fails, its faults are in the result.

    What depends on the machine (directories, files, variables, installed packages) is no fault:
    the pods are another machine.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        data = None
    if isinstance(data, dict) and "cluster" in data:  # a rule of its own speaks of it
        text = yaml.safe_dump({k: v for k, v in data.items() if k != "cluster"}, sort_keys=False)
    try:
        document = parse(text, "serveConfigV2")
    except ConfigError as error:
        return Serving(data, None, tuple(error.findings), ())
    document = replace(document, serve=ServeFile.model_validate(_elsewhere(document.data)))
    anything = {name: "set" for each_text in _texts(data) for name in references(each_text)}
    faults = [
        finding
        for finding in check_document(document, anything)
        if finding.severity is Severity.ERROR and not _of_this_machine(finding)
    ]
    return Serving(data, document, tuple(faults), () if faults else tuple(_engines(document)))


def _elsewhere(data: dict[str, Any]) -> dict[str, Any]:
    """The config with model directories left out: they are in the pod, not here."""
    data = deepcopy(data)
    for application in each(data, "applications"):
        model = mapping(application, "args", "model")
        for key in ("source", "tokenizer"):
            given = model.get(key)
            if isinstance(given, str) and (is_directory(given) or references(given)):
                del model[key]
    return data


def _of_this_machine(finding: Finding) -> bool:
    path = finding.path.rpartition("args.")[2]
    return (finding.rule == "artifact" and path == "artifacts.path") or finding.rule in (
        "pd-nixl",
        "environment",
    )


def _engines(document: Document) -> Iterator[Engine]:
    for engine in engines_of(document):
        yield Engine(engine.label, make_plan(engine.args), engine.args.scaling.most)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for inner in node.values():
            yield from _texts(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _texts(inner)
