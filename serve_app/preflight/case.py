"""What a rule looks at, and how a rule is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from serve_app.backends.plan import EnginePlan
from serve_app.backends.target import Target
from serve_app.config import AppArgs, Finding, Prefill, Severity
from serve_app.config.serve_file import ServeFile
from serve_app.neuron.model_facts import ModelFacts


@dataclass(frozen=True)
class Case:
    """One engine, resolved."""

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


class Side(NamedTuple):
    """One of the two engines of a pair."""

    name: str
    """decode or prefill."""
    args: AppArgs
    plan: EnginePlan

    def engine(self, name: str, default: Any = None) -> Any:
        """An effective engine argument under vLLM's name."""
        value = self.plan.engine_args.get(name)
        return default if value is None else value

    def number(self, name: str, default: int = 1) -> int:
        """An engine argument that is a positive whole number; `default` for anything else."""
        value = self.plan.engine_args.get(name)
        return value if type(value) is int and value > 0 else default

    def neuron(self, name: str) -> Any:
        """A key of neuron_config as the user wrote it."""
        extra = self.engine("additional_config")
        given = extra.get("neuron_config") if isinstance(extra, Mapping) else None
        return given.get(name) if isinstance(given, Mapping) else None


@dataclass(frozen=True)
class Pair:
    """An application with a `prefill` section: two engines, resolved."""

    decode: Side
    prefill: Side
    section: Prefill
    model: ModelFacts | None
    """None: not known; rules about the model then say nothing."""
    file: ServeFile | None
    """The file that the application stands in; None where only its arguments are at hand."""
    name: str = ""
    """The application's, in the file."""

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.decode, self.prefill

    def at(self, side: Side, section: str, name: str) -> str:
        """Where the value of a side stands: `prefill.env.X` or, inherited, `env.X`."""
        own = side is self.prefill and name in getattr(self.section, section)
        return f"{'prefill.' if own else ''}{section}.{name}"


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
    subject: type[Case] | type[Pair] | type[ServeFile]
    check: Callable[[Any], Iterable[Trip]]
    """Of a `subject`."""

    def findings(self, subject: Case | Pair | ServeFile) -> Iterator[Finding]:
        """What the rule says."""
        for trip in self.check(subject):
            severity = trip.severity or self.severity
            yield Finding(self.id, severity, trip.message, trip.mend, trip.path, source=self.source)


RULES: dict[str, Rule] = {}
"""Every rule by its id; filled when `serve_app.preflight.rules` is imported."""

NXDI = frozenset({"nxdi"})
NATIVE = frozenset({"neuron"})
BOTH = NXDI | NATIVE
CPU = frozenset({"cpu"})

CaseCheck = Callable[[Case], Iterable[Trip]]
PairCheck = Callable[[Pair], Iterable[Trip]]
FileCheck = Callable[[ServeFile], Iterable[Trip]]
_Check = TypeVar("_Check", bound=Callable[..., Iterable[Trip]])


def rule(
    id: str, severity: Severity, title: str, source: str, backends: frozenset[str] = NXDI
) -> Callable[[CaseCheck], CaseCheck]:
    """Register a check of an engine. Ids are kebab-case with the topic first: `tp-degree`."""
    return _register(id, severity, title, source, backends, Case)


def pair_rule(
    id: str, severity: Severity, title: str, source: str, backends: frozenset[str] = CPU | NATIVE
) -> Callable[[PairCheck], PairCheck]:
    """Register a check of a prefill and a decode engine together. Ids start with `pd-`."""
    return _register(id, severity, title, source, backends, Pair)


def file_rule(
    id: str, severity: Severity, title: str, source: str
) -> Callable[[FileCheck], FileCheck]:
    """Register a check of the applications of a file together; paths start at the file."""
    return _register(id, severity, title, source, CPU | BOTH, ServeFile)


def _register(
    id: str,
    severity: Severity,
    title: str,
    source: str,
    backends: frozenset[str],
    subject: type[Case] | type[Pair] | type[ServeFile],
) -> Callable[[_Check], _Check]:
    def register(check: _Check) -> _Check:
        if id in RULES:
            raise ValueError(f"two rules are called {id}")
        RULES[id] = Rule(id, severity, title, source, backends, subject, check)
        return check

    return register
