"""Run the rules of the Neuron back ends over one application."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import serve_app.preflight.rules  # noqa: F401  (registers the rules)
from serve_app.backends import EnginePlan
from serve_app.backends.effective import neuron_configuration
from serve_app.config import AppArgs, ConfigError, Finding, Severity
from serve_app.config.sources import is_directory, resolve
from serve_app.neuron.model_facts import MissingFact, ModelFacts, known_models, model_facts
from serve_app.preflight.artifact import check_artifact
from serve_app.preflight.case import RULES, Case


def check_neuron(
    args: AppArgs, plan: EnginePlan, environment: Mapping[str, str], facts: Path | None = None
) -> Iterator[Finding]:
    """Every finding of every rule; the order is that of the rules' modules."""
    try:
        model = find_model(args, environment, facts)
    except MissingFact as error:
        yield Finding("model-facts", Severity.ERROR, str(error), "", "model.source")
        model = None
    else:
        yield from check_artifact(args, plan, model, environment)
        if model is None:
            message = f"nothing is known of {args.model.where}: the rules about the model rest"
            mend = "give its config.json with --model-facts FILE"
            yield Finding("model-facts", Severity.WARNING, message, mend, "model.id")
    case = case_of(args, plan, model)
    for rule in RULES.values():
        if rule.subject is Case and plan.backend in rule.backends:
            yield from rule.findings(case)


def case_of(args: AppArgs, plan: EnginePlan, model: ModelFacts | None) -> Case:
    """What the rules look at."""
    assert plan.target is not None
    neuron = neuron_configuration(args, plan)
    return Case(args, plan, plan.target, model, neuron.given, neuron.effective, neuron.path)


def find_model(
    args: AppArgs, environment: Mapping[str, str], facts: Path | None = None
) -> ModelFacts | None:
    """The model's shape: from `facts`, its local directory, or the table of known models.

    Raises:
        MissingFact: there is a config.json and it lacks a field.
    """
    if facts is not None:
        return model_facts(json.loads(facts.read_text()))
    known = known_models()
    for name in (args.model.where, args.model.id):
        if name.lower() in known:
            return known[name.lower()]
    try:
        source = resolve(args.model.where, environment, "model.source")
    except ConfigError:
        return None  # of an unset variable another rule speaks
    config = _config_json(source) if is_directory(source) else None
    return None if config is None else model_facts(config)


def _config_json(directory: str) -> dict[str, Any] | None:
    # A missing or broken file is the business of the rules about the directory.
    try:
        config = json.loads((Path(directory) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
