"""Replicas and models as their metrics tell of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serve_app.config.serve_file import FRONT_DOOR
from serve_app.top.exposition import READ, Sample
from serve_app.top.history import SETTLED_S, WINDOW_S, History, Series

READY = "ready"
ELSEWHERE = "elsewhere"
"""Of an application that runs on nodes that are not asked."""
_STUCK_S = 30.0
"""Three of Ray's periods: an engine with requests has made a token by then."""
_PHASE, _PHASE_S = "neuron_serve_startup_phase", "neuron_serve_startup_phase_seconds"
_RUNNING, _WAITING = "vllm_num_requests_running", "vllm_num_requests_waiting"
_KV = "vllm_kv_cache_usage_perc"
_HTTP = "serve_num_http_error_requests_total"
_HEALTHY, _STATUS = "serve_deployment_replica_healthy", "serve_application_status"
_STATUSES = ("unknown", "deploy failed", "unhealthy", "not started", "deleting", "deploying", READY)
"""Ray's numbers (ray/serve/schema.py, ApplicationStatus.to_numeric)."""


class Place(NamedTuple):
    """Ray's names of a replica; an engine without Ray has its endpoint's host and port."""

    application: str
    deployment: str
    replica: str


@dataclass
class Source:
    """A replica, as it was last seen."""

    place: Place
    url: str
    model: str
    values: dict[Series, float]
    history: History
    node: str = ""
    healthy: bool = True
    """For Ray's controller; Ray shows a dead replica's last values for 20 s."""
    away: bool = False
    """Its endpoint does not answer."""
    queue: deque[tuple[float, float]] = field(default_factory=deque)
    """When and how many requests waited, over the window."""

    def of(self, name: str) -> dict[str, float]:
        """A metric's values by the label that tells them apart."""
        return {tag: value for (known, tag), value in self.values.items() if known == name}

    def phase(self) -> tuple[str, float | None]:
        """What it does instead of serving, or READY; with seconds."""
        if not self.healthy:
            return "unhealthy", None
        named = [name for name, value in self.of(_PHASE).items() if value == 1]
        phase = named[0] if named else READY if (_RUNNING, "") in self.values else "start"
        if phase != READY:
            return phase, self.values.get((_PHASE_S, phase))
        if self.values.get(("neuron_serve_engine_up", "")) == 0:
            return "engine dead", None
        return READY, None

    @property
    def queue_grows(self) -> bool:
        """More wait than at the window's begin."""
        return bool(self.queue) and self.queue[-1][1] > self.queue[0][1]

    def stuck_s(self, now: float) -> float | None:
        """For how long requests run and nothing moves."""
        quiet = self.history.quiet_s(now)
        return quiet if self.values.get((_RUNNING, "")) and quiet >= _STUCK_S else None


@dataclass
class Group:
    """The replicas of one model in one deployment."""

    model: str
    application: str
    deployment: str
    replicas: list[Source] = field(default_factory=list)
    status: str = READY
    """Serve's, of an application of which nothing else is seen."""
    http: Sequence[tuple[History, Mapping[Series, float]]] = ()
    """What the nodes' proxies answered in the application's place."""


@dataclass
class Endpoint:
    """When it was heard of last, what is wrong since, and what Ray's controller told there."""

    answered: float | None = None
    fault: str = ""
    healthy: dict[Place, float] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    """By application."""


class Fleet:
    """All that is known, fed by one look at one endpoint after the other."""

    def __init__(self) -> None:
        self.sources: dict[Place, Source] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self._http: dict[tuple[str, str], tuple[History, dict[Series, float]]] = {}

    def answered(self, url: str, now: float, samples: list[Sample]) -> None:
        """What an endpoint shows at `now`. What it shows no more has ended."""
        endpoint = self.endpoints[url] = Endpoint(now)
        found: dict[Place, list[Sample]] = {}
        http: dict[str, list[Sample]] = {}
        for sample in samples:
            labels = sample.labels
            if sample.name == _HTTP:
                http.setdefault(labels.get("application", ""), []).append(sample)
            elif sample.name == _HEALTHY:
                # Without the label Ray tells numbers of replicas only.
                if "replica" in labels:
                    endpoint.healthy[_place(url, sample)] = sample.value
            elif sample.name == _STATUS:
                endpoint.statuses[labels.get("application", "")] = _word(sample.value)
            else:
                found.setdefault(_place(url, sample), []).append(sample)
        for place, theirs in found.items():
            self._seen(place, url, now, theirs)
        for application, errors in http.items():
            history, _ = self._http.get((url, application), (History(), {}))
            values = _fold(errors)
            history.add(now, values)
            self._http[url, application] = history, values
        self._forget(url, found.keys())
        healthy = self._healthy()
        for place, source in self.sources.items():
            source.healthy = healthy.get(place, 1) > 0

    def silent(self, url: str, fault: str) -> None:
        """It does not answer; what was seen stays."""
        self.endpoints.setdefault(url, Endpoint()).fault = fault
        for source in self.sources.values():
            source.away |= source.url == url

    def gone(self, url: str) -> None:
        """The endpoint is no longer one of Ray's."""
        self.endpoints.pop(url, None)
        self._http = {key: seen for key, seen in self._http.items() if key[0] != url}
        self._forget(url, ())

    def groups(self) -> list[Group]:
        """By application, deployment and model."""
        made: dict[tuple[str, str, str], Group] = {}
        for place, source in sorted(self.sources.items()):
            if source.model:
                key = (place.application, place.deployment, source.model)
                group = made.setdefault(key, Group(source.model, *place[:2]))
                group.replicas.append(source)
        for group in made.values():
            if group.deployment != "prefill":
                group.http = [v for (_, app), v in self._http.items() if app == group.application]
        seen, unseen = {place.application for place in self.sources}, self.unseen()
        for endpoint in self.endpoints.values():
            for application, status in endpoint.statuses.items():
                if application not in seen and (status != READY or application in unseen):
                    word = ELSEWHERE if status == READY else status
                    made[application, "", ""] = Group("", application, "", status=word)
        return [made[key] for key in sorted(made)]

    def unseen(self) -> dict[str, int]:
        """Replicas that Ray's controller holds healthy and no endpoint shows, by application."""
        places = [
            place
            for place, healthy in self._healthy().items()
            if healthy and place not in self.sources and place.deployment != FRONT_DOOR
        ]
        return dict(Counter(place.application for place in places))

    def _seen(self, place: Place, url: str, now: float, samples: list[Sample]) -> None:
        values = _fold(samples)
        # A key's counters may name a model by an alias: the engine's own samples come first.
        named = [s.labels["model_name"] for s in samples if s.labels.get("model_name")]
        by_engine = [s.labels["model_name"] for s in samples if s.name == _RUNNING]
        model = (by_engine or named or [""])[0]
        source = self.sources.get(place)
        if source is None:
            history = History(SETTLED_S if samples[0].by_ray else 0.0)
            source = self.sources[place] = Source(place, url, model, values, history)
        source.url, source.model, source.values, source.away = url, model, values, False
        source.node = samples[0].labels.get("NodeAddress", "")
        counters = {s: v for s, v in values.items() if s[0].endswith(("_total", "_bucket"))}
        source.history.add(now, counters)
        source.queue.append((now, values.get((_WAITING, ""), 0.0)))
        while source.queue[0][0] < now - WINDOW_S:
            source.queue.popleft()

    def _forget(self, url: str, seen: Iterable[Place]) -> None:
        kept = set(seen)
        for place, source in list(self.sources.items()):
            if source.url == url and place not in kept:
                del self.sources[place]

    def _healthy(self) -> dict[Place, float]:
        told = self.endpoints.values()
        return {place: value for one in told for place, value in one.healthy.items()}


def _place(url: str, sample: Sample) -> Place:
    labels = sample.labels
    if "replica" in labels:
        names = (labels.get("application", ""), labels.get("deployment", ""))
        return Place(*names, labels["replica"])
    return Place("", "", url.split("://")[-1].removesuffix("/metrics"))


def _word(status: float) -> str:
    return _STATUSES[int(status)] if 0 <= status < len(_STATUSES) else _STATUSES[0]


def _fold(samples: list[Sample]) -> dict[Series, float]:
    """By the one label that tells apart; over all others (engine, key, model, route) the sum."""
    values: dict[Series, float] = {}
    for name, labels, value, _ in samples:
        series = name, labels.get(READ[name], "") if READ[name] else ""
        before = values.get(series)
        if before is None:
            values[series] = value
        else:
            values[series] = max(before, value) if name == _KV else before + value
    return values
