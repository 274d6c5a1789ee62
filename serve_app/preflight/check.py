"""Run every rule over a configuration and collect all findings, not the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serve_app.backends import engines, make_plan
from serve_app.config import AppArgs, ConfigError, Document, Finding, Prefill
from serve_app.config.environment import references, unset
from serve_app.config.serve_file import DECODE, PREFILL, ServeFile
from serve_app.neuron.memory import Memory
from serve_app.neuron.model_facts import MissingFact
from serve_app.preflight import front_door  # noqa: F401  (registers its rules)
from serve_app.preflight.case import RULES, Pair, Side
from serve_app.preflight.disaggregation import BACKEND
from serve_app.preflight.model_directory import check_model
from serve_app.preflight.sides import merge


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
        for finding in check_application(
            application.args, environment, model_facts, document.serve, application.name
        )
    ]
    findings += [
        unset(name, f"{path}.args.access.{field}")
        for path, door in document.front_doors()
        for field in ("keys", "counts", "usage")
        for name in references(getattr(door.args.access, field) or "")
        if not environment.get(name)
    ]
    findings += check_file(document.serve)
    return [replace(finding, line=document.line(finding.path)) for finding in findings]


def check_file(file: ServeFile) -> list[Finding]:
    """What the applications of a file are to each other."""
    return [
        finding
        for rule in RULES.values()
        if rule.subject is ServeFile
        for finding in rule.findings(file)
    ]


def check_application(
    args: AppArgs,
    environment: Mapping[str, str] = os.environ,
    model_facts: Path | None = None,
    file: ServeFile | None = None,
    name: str = "",
) -> list[Finding]:
    """The findings of one application, `name` in `file` if there is one.

    The replica runs the same, without the file, before it loads a model.
    """
    if args.prefill is None:
        return _check_engine(args, environment, model_facts)
    parts = engines(args)
    pair = _pair(args.prefill, parts, environment, model_facts, file, name)
    found = [] if pair is None else list(_check_pair(pair))
    decode = _check_engine(parts[DECODE], environment, model_facts)
    if any(finding.rule == BACKEND for finding in found):  # no pair: what decode is suffices
        return [*found, *merge(args.prefill, decode, [])]
    prefill = _check_engine(parts[PREFILL], environment, model_facts)
    return [*found, *merge(args.prefill, decode, prefill)]


def _pair(
    section: Prefill,
    parts: Mapping[str, AppArgs],
    environment: Mapping[str, str],
    model_facts: Path | None,
    file: ServeFile | None,
    name: str,
) -> Pair | None:
    """None where an engine has no plan: its own findings say why."""
    try:
        decode, prefill = (
            Side(kind, parts[kind], make_plan(parts[kind])) for kind in (DECODE, PREFILL)
        )
    except ConfigError:
        return None
    model = None
    if decode.plan.target is not None:
        from serve_app.preflight.neuron import find_model

        with suppress(MissingFact):
            model = find_model(decode.args, environment, model_facts)
    return Pair(decode, prefill, section, model, file, name)


def _check_pair(pair: Pair) -> Iterator[Finding]:
    if apart := list(RULES[BACKEND].findings(pair)):
        yield from apart
        return
    for rule in RULES.values():
        if rule.subject is Pair and pair.decode.plan.backend in rule.backends:
            yield from rule.findings(pair)


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
        "access.keys": args.access.keys or "",
        "access.counts": args.access.counts,
        "access.usage": args.access.usage or "",
    }
    for path, value in values.items():
        for name in references(value):
            if not environment.get(name):
                yield unset(name, path)
