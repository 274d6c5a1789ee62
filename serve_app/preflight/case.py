"""What a rule looks at, and how a rule is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.backends.plan import EnginePlan
from serve_app.backends.target import Target
from serve_app.config import AppArgs, Severity
from serve_app.neuron.model_facts import ModelFacts


@dataclass(frozen=True)
class Case:
    """One application, resolved."""

    args: AppArgs
    plan: EnginePlan
    """What the replica would run. `plan.engine_args` are the effective ones."""
    target: Target
    model: ModelFacts | None
    """None: config.json could not be found; rules about the model then say nothing."""
    given: Mapping[str, Any]
    """The Neuron configuration as the user wrote it: `additional_config.override_neuron_config`
    (nxdi) or `additional_config.neuron_config` (neuron)."""
    effective: Mapping[str, Any]
    """`given` over the values that the plugin derives and NeuronConfig's defaults. A key that is
    in neither is absent."""
    path: str
    """Where `given` stands: engine.additional_config.override_neuron_config."""

    @property
    def tp(self) -> int:
        return int(self.engine("tensor_parallel_size", 1))

    def engine(self, name: str, default: Any = None) -> Any:
        """An effective engine argument under vLLM's name."""
        value = self.plan.engine_args.get(name)
        return default if value is None else value

    def neuron(self, name: str, default: Any = None) -> Any:
        """An effective value of the Neuron configuration."""
        value = self.effective.get(name)
        return default if value is None else value

    def at(self, name: str) -> str:
        """The path of a key of the Neuron configuration."""
        return f"{self.path}.{name}"


class Trip(NamedTuple):
    """A rule has tripped."""

    message: str
    """What is wrong, with the numbers; a clause without a full stop."""
    mend: str
    """What to do, in the imperative."""
    path: str = ""
    """Which key: `engine.tensor_parallel_size`, or `case.at(...)`."""
    severity: Severity | None = None
    """Another one than the rule's own."""


@dataclass(frozen=True)
class Rule:
    """A named check. `source` says where the fact is from: repository, path, line or section."""

    id: str
    severity: Severity
    title: str
    source: str
    backends: frozenset[str]
    check: Callable[[Case], Iterable[Trip]]


RULES: dict[str, Rule] = {}
"""Every rule by its id; filled when `serve_app.preflight.rules` is imported."""

NXDI = frozenset({"nxdi"})
NATIVE = frozenset({"neuron"})
BOTH = NXDI | NATIVE


def rule(
    id: str, severity: Severity, title: str, source: str, backends: frozenset[str] = NXDI
) -> Callable[[Callable[[Case], Iterable[Trip]]], Callable[[Case], Iterable[Trip]]]:
    """Register a check. Ids are kebab-case with the topic first: `tp-degree`, `kernel-qkv`."""

    def register(check: Callable[[Case], Iterable[Trip]]) -> Callable[[Case], Iterable[Trip]]:
        if id in RULES:
            raise ValueError(f"two rules are called {id}")
        RULES[id] = Rule(id, severity, title, source, backends, check)
        return check

    return register
