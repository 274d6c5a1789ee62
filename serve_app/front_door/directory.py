"""Which application serves which model, from what the replicas report. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

ModelCard = Mapping[str, Any]
"""An entry of vLLM's `/v1/models`, unchanged."""
READY = "ready"
NOT_RESPONDING = "not responding"
NO_REPLICA = "no replica"
"""It has had one; another is to come, or the application is scaled to none."""
STALE_S = 15.0
"""A replica that has said nothing for longer counts as not ready."""


@dataclass(frozen=True)
class Report:
    """What a replica last said of itself."""

    application: str
    replica: str
    phase: str
    detail: str
    elapsed_s: float
    """Since the replica began to start, as of the report."""
    models: tuple[ModelCard, ...] = ()
    """Of a ready replica."""
    age_s: float = 0.0


@dataclass(frozen=True)
class Target:
    """Send the request here."""

    application: str
    prefix: str
    """As it stands in a URL, without a trailing slash."""


@dataclass(frozen=True)
class Loading:
    """No application that serves the name is ready; this one is nearest."""

    application: str
    phase: str
    detail: str
    elapsed_s: float


@dataclass(frozen=True)
class Unknown:
    """Nobody serves the name; these are served, or will be."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class _Application:
    name: str
    prefix: str | None
    cards: Mapping[str, ModelCard]
    """Of its ready replicas, by name."""
    declared: tuple[str, ...]
    loading: Loading
    """How far it is, should a name not be served yet."""

    @property
    def names(self) -> tuple[str, ...]:
        """The model's own name first, then its aliases."""
        return tuple(dict.fromkeys([*self.declared, *self.cards]))

    def serves(self, name: str) -> bool:
        return self.prefix is not None and name in self.cards


def _target(application: _Application) -> Target:
    assert application.prefix is not None
    return Target(application.name, application.prefix)


@dataclass(frozen=True)
class Directory:
    """Who serves what at one moment. Names are looked up, and never become part of a path."""

    _applications: tuple[_Application, ...] = ()
    _weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @staticmethod
    def build(
        routes: Mapping[str, str],
        reports: Iterable[Report],
        declared: Mapping[str, tuple[str, ...]],
        weights: Mapping[str, Mapping[str, float]],
    ) -> Directory:
        """From Ray Serve's routes (prefix to application) and what the replicas report.

        `declared`: the names that an application will serve. `weights`: of a name, the share of
        each application. What stands on `/` is the front door itself, and not listed.
        """
        prefixes = {name: prefix for prefix, name in routes.items() if prefix.strip("/")}
        own = {name for prefix, name in routes.items() if not prefix.strip("/")}
        by_application: dict[str, list[Report]] = {}
        for report in reports:
            if report.application not in own:
                by_application.setdefault(report.application, []).append(report)
        for name in declared.keys() & prefixes.keys():
            by_application.setdefault(name, [])  # known, and without a replica
        return Directory(
            tuple(
                _application(name, prefixes.get(name), said, declared.get(name, ()))
                for name, said in sorted(by_application.items())
            ),
            weights,
        )

    def names(self) -> tuple[str, ...]:
        """All that are served or will be, sorted."""
        return tuple(sorted({name for each in self._applications for name in each.names}))

    def cards(self) -> list[dict[str, Any]]:
        """`/v1/models` of all, one card per name: that of the first application that is ready."""
        merged: dict[str, dict[str, Any]] = {}
        for application in self._ready():
            for name, card in application.cards.items():
                merged.setdefault(name, dict(card))
        return list(merged.values())

    def target(self, name: str, draw: float) -> Target | Loading | Unknown:
        """Where a request goes; `draw` from [0, 1) chooses among several applications."""
        shares = self._shares(name)
        for application, share in shares:
            draw -= share
            if draw < 0:
                return _target(application)
        if shares:  # 1.0 is not always the sum of what adds up to 1
            return _target(shares[-1][0])
        waiting = [each.loading for each in self._applications if name in each.names]
        if not waiting:
            return Unknown(self.names())
        return max(waiting, key=lambda loading: loading.phase != NOT_RESPONDING)

    def prefixes(self, name: str) -> list[str]:
        """Where the applications that serve the name stand."""
        return [_target(application).prefix for application, _ in self._shares(name)]

    def only(self) -> str | None:
        """The name to use where a request has none: that of the only model, if there is one."""
        if len(self._applications) == 1:
            return next(iter(self._applications[0].names), None)
        names = self.names()
        return names[0] if len(names) == 1 else None

    def table(self) -> str:
        """The lines `<sha256 of the name> <share> <prefix>` of all that is ready, for HAProxy.

        The shares of a name add up to 1. Hashed, as everyone may read it and a name may be
        nobody's business.
        """
        lines = []
        for name in {name for each in self._ready() for name in each.cards}:
            digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
            for application, share in self._shares(name):
                lines.append(f"{digest} {share:.6f} {_target(application).prefix}\n")
        return "".join(sorted(lines))

    def _ready(self) -> Iterator[_Application]:
        return (each for each in self._applications if each.prefix is not None and each.cards)

    def _shares(self, name: str) -> list[tuple[_Application, float]]:
        """The ready applications that take requests of the name, and how much of them."""
        ready = [each for each in self._applications if each.serves(name)]
        weights = self._weights.get(name, {})
        weighted = [(each, weights.get(each.name, 0.0)) for each in ready]
        weighted = [(each, weight) for each, weight in weighted if weight > 0]
        # Without weights, or with none of those they name ready: whoever can serve does.
        weighted = weighted or [(each, 1.0) for each in ready]
        total = sum(weight for _, weight in weighted)
        return [(each, weight / total) for each, weight in weighted]


def _application(
    name: str, prefix: str | None, reports: list[Report], declared: tuple[str, ...]
) -> _Application:
    fresh = [report for report in reports if report.age_s <= STALE_S]
    cards: dict[str, ModelCard] = {}
    for report in fresh:
        if report.phase == READY:
            for card in report.models:
                cards.setdefault(card["id"], card)
    path = None if prefix is None else quote(prefix.rstrip("/"))
    return _Application(name, path, cards, declared, _progress(name, fresh, reports))


def _progress(name: str, fresh: list[Report], reports: list[Report]) -> Loading:
    """Of the replica that will be ready first: the one that began first."""
    if not reports:
        return Loading(name, NO_REPLICA, "", 0.0)
    if not fresh:
        return Loading(name, NOT_RESPONDING, "", min(report.age_s for report in reports))
    starting = [report for report in fresh if report.phase != READY] or fresh
    first = max(starting, key=lambda report: (report.elapsed_s + report.age_s, report.replica))
    return Loading(name, first.phase, first.detail, first.elapsed_s + first.age_s)
