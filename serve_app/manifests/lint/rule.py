"""How a rule about manifests is written, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.manifests.lint.objects import Object, named
from serve_app.manifests.lint.view import Manifests


@dataclass(frozen=True)
class Fault:
    """One thing that a cluster rejects, leaves pending, or cuts."""

    rule: str
    object: str
    """"RayService/neuron-serve/llama3-8b-inf2": kind, namespace if any, name."""
    path: str
    """Dotted, in the object: "spec.rayClusterConfig.workerGroupSpecs[0].groupName"."""
    message: str
    mend: str
    source: str

    def __str__(self) -> str:
        place = f"{self.object}: {self.path}: " if self.path else f"{self.object}: "
        mend = f" -> {self.mend}" if self.mend else ""
        return f"{place}{self.message}{mend} [{self.rule}]"


class Trip(NamedTuple):
    """A rule has tripped."""

    object: Object
    path: str
    message: str
    """What is wrong, with the numbers; a clause without a full stop."""
    mend: str
    """What to do, in the imperative."""


Check = Callable[[Manifests], Iterable[Trip]]


@dataclass(frozen=True)
class Rule:
    """A named check of a set of objects. `source` says where the fact is from."""

    id: str
    title: str
    source: str
    check: Check
    shape: bool = False
    """Of the shape of single objects. Other rules run only when all shapes are right."""

    def faults(self, manifests: Manifests) -> Iterator[Fault]:
        """What the rule says."""
        for trip in self.check(manifests):
            name = named(trip.object)
            yield Fault(self.id, name, trip.path, trip.message, trip.mend, self.source)


RULES: dict[str, Rule] = {}
"""Every rule by its id; filled when `serve_app.manifests.lint.rules` is imported."""


def rule(id: str, title: str, source: str, *, shape: bool = False) -> Callable[[Check], Check]:
    """Register a check. Ids are kebab-case with the topic first: `ray-name`."""

    def register(check: Check) -> Check:
        if id in RULES:
            raise ValueError(f"two rules are called {id}")
        RULES[id] = Rule(id, title, source, check, shape)
        return check

    return register
