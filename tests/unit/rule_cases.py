"""Build a case for a rule, and run one rule over it."""

from __future__ import annotations

from typing import Any

from serve_app.backends import make_plan
from serve_app.config import parse_args
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
