"""Build a case for a rule, and run one rule over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.backends import make_plan
from serve_app.config import Severity, parse_args
from serve_app.preflight.case import RULES, Case, Trip
from serve_app.preflight.neuron import case_of, find_model

KEYS = {"nxdi": "override_neuron_config", "neuron": "neuron_config"}


def case(
    instance: str = "trn2.48xlarge",
    backend: str | None = None,
    model: str = "Qwen/Qwen3-8B",
    engine: dict[str, Any] | None = None,
    neuron: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    stack: dict[str, str] | None = None,
    **args: Any,
) -> Case:
    """`neuron` is the Neuron configuration as the user writes it, whatever its key."""
    engine = dict(engine or {})
    if neuron is not None:
        key = KEYS[backend or "nxdi"]
        engine["additional_config"] = {**engine.get("additional_config", {}), key: neuron}
    parsed = parse_args(
        {
            "backend": backend or "auto",
            "instance": instance,
            "model": {"id": model},
            "engine": engine,
            "env": env or {},
            "stack": stack or {},
            **args,
        }
    )
    return case_of(parsed, make_plan(parsed), find_model(parsed, {}))


def trips(rule: str, case: Case) -> list[Trip]:
    """What the rule says of the case."""
    return list(RULES[rule].check(case))


ENGINE = {
    "tensor_parallel_size": 8,
    "max_model_len": 4096,
    "max_num_seqs": 8,
    "enable_prefix_caching": False,
    "dtype": "bfloat16",
}
"""An engine that no rule says anything of; `None` in a test removes an argument."""


def build(
    engine: dict[str, Any] | None = None,
    neuron: dict[str, Any] | None = None,
    sdk: str | None = None,
    facts: dict[str, Any] | None = None,
    **args: Any,
) -> Case:
    """A case of the nxdi back end; `facts` changes what is known of the model."""
    merged = {**ENGINE, **(engine or {})}
    merged = {name: value for name, value in merged.items() if value is not None}
    stack = {"sdk": sdk} if sdk else None
    made = case(backend="nxdi", engine=merged, neuron=neuron, stack=stack, **args)
    if facts:
        assert made.model
        made = replace(made, model=replace(made.model, **facts))
    return made


def found(rule: str, **args: Any) -> list[Severity]:
    """How severe the trips of the rule are."""
    return [trip.severity or RULES[rule].severity for trip in trips(rule, build(**args))]


def untested(modules: Any, trip: list[tuple[Any, ...]], clean: list[tuple[Any, ...]]) -> set[str]:
    """Rules of the modules without a case that trips them, or without a near miss."""
    names = {m.__name__ for m in (modules if isinstance(modules, tuple) else (modules,))}
    own = {rule.id for rule in RULES.values() if rule.check.__module__ in names}
    return own - ({row[0] for row in trip} & {row[0] for row in clean})


def rule_tests(
    modules: Any, trip: list[tuple[Any, ...]], clean: list[tuple[Any, ...]]
) -> tuple[Callable[..., None], ...]:
    """Three tests of a module of rules: each case trips, each near miss does not, and every rule
    has both. `trip`: (rule, arguments of `build`, severities); `clean`: (rule, arguments)."""

    @pytest.mark.parametrize(("rule", "args", "severities"), trip)
    def test_trips(rule: str, args: dict[str, Any], severities: list[Severity]) -> None:
        assert found(rule, **args) == severities

    @pytest.mark.parametrize(("rule", "args"), clean)
    def test_near_misses(rule: str, args: dict[str, Any]) -> None:
        assert found(rule, **args) == []

    def test_each_rule_has_both() -> None:
        assert not untested(modules, trip, clean)

    return test_trips, test_near_misses, test_each_rule_has_both
