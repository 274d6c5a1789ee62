"""Run every rule over a configuration and collect all findings, not the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from serve_app.backends import engines, make_plan
from serve_app.config import AppArgs, ConfigError, Document, Finding
from serve_app.config.environment import references, unset
from serve_app.config.serve_file import DECODE, PREFILL
from serve_app.neuron.memory import Memory
from serve_app.preflight.disaggregation import check_disaggregation
from serve_app.preflight.model_directory import check_model


def check_document(
    document: Document,
    environment: Mapping[str, str] = os.environ,
    model_facts: Path | None = None,
) -> list[Finding]:
    """The findings of every application of the file, with paths in the document.

    `model_facts` is a config.json that stands in for those of the models.
    """
    findings = [
        finding.under(f"{path}.args")
        for path, application in document.applications()
        for finding in check_application(application.args, environment, model_facts)
    ]
    return [replace(finding, line=document.line(finding.path)) for finding in findings]


def check_application(
    args: AppArgs,
    environment: Mapping[str, str] = os.environ,
    model_facts: Path | None = None,
) -> list[Finding]:
    """The findings of one application. The replica runs the same before it loads a model."""
    parts = engines(args)
    if args.prefill is None:
        return _check_engine(args, environment, model_facts)
    decode = _check_engine(parts[DECODE], environment, model_facts)
    known = {(finding.rule, finding.message) for finding in decode}
    prefill = [
        finding.under("prefill")
        for finding in _check_engine(parts[PREFILL], environment, model_facts)
        if (finding.rule, finding.message) not in known
    ]
    return [*check_disaggregation(args, parts), *decode, *prefill]


def _check_engine(
    args: AppArgs, environment: Mapping[str, str], model_facts: Path | None
) -> list[Finding]:
    findings = [*_environment(args, environment), *check_model(args, environment)]
    try:
        plan = make_plan(args)
    except ConfigError as error:
        return [*findings, *error.findings]
    if plan.target is not None:
        from serve_app.preflight.neuron import check_neuron

        findings += check_neuron(args, plan, environment, model_facts)
    return findings


def memory_of(args: AppArgs, model_facts: Path | None = None) -> Memory | None:
    """Device memory of one rank of an engine; None on the processor or if too little is known."""
    try:
        plan = make_plan(args)
        if plan.target is None:
            return None
        from serve_app.preflight.neuron import case_of, find_model
        from serve_app.preflight.rules import memory

        return memory.memory_of(case_of(args, plan, find_model(args, os.environ, model_facts)))
    except ValueError:  # ConfigError, MissingFact: the findings say it
        return None


def _environment(args: AppArgs, environment: Mapping[str, str]) -> Iterator[Finding]:
    values = {f"env.{name}": value for name, value in args.env.items()}
    values |= {
        "model.source": args.model.where,
        "model.tokenizer": args.model.tokenizer or "",
        "artifacts.path": args.artifacts.path or "",
        "artifacts.compile_cache": args.artifacts.compile_cache or "",
    }
    for path, value in values.items():
        for name in references(value):
            if not environment.get(name):
                yield unset(name, path)
