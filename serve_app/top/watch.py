"""Looks at endpoints again and again, each in a thread of its own: one that hangs holds up none."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from serve_app.top.endpoints import DEFAULT, NoMetrics, discovered, fetch
from serve_app.top.exposition import Sample, parse
from serve_app.top.fleet import Fleet

LOOK_S = 2.0
_MEND = "start `neuron-serve run`, or `kubectl port-forward pod/NAME 8080`; or give --metrics"


class Look(NamedTuple):
    """What an endpoint answered at a time of `time.monotonic`, or why there is nothing."""

    url: str
    at: float
    samples: list[Sample]
    fault: str = ""


def look(url: str) -> Look:
    """One look."""
    try:
        samples = parse(fetch(url))
        return Look(url, time.monotonic(), samples)
    except (NoMetrics, ValueError) as error:
        return Look(url, time.monotonic(), [], str(error))


class Watch:
    """The fleet behind some endpoints; without any those of the Ray that runs here, which come
    and go with its nodes."""

    def __init__(
        self, given: list[str], find: Callable[[], list[str]] = discovered, default: str = DEFAULT
    ) -> None:
        self.fleet = Fleet()
        self._find = None if given else find
        self._choices = [given] if given else [find(), [default]]
        self._looks: queue.SimpleQueue[Look] = queue.SimpleQueue()
        self._ends: dict[str, threading.Event] = {}
        self._interval = LOOK_S

    def first(self) -> None:
        """The first look. Raises NoMetrics with one line where nothing answers."""
        faults = []
        for urls in filter(None, self._choices):
            found = _looks(urls)
            if any(not one.fault for one in found):
                if urls != self._choices[0]:
                    self._find = None
                self._choices = [urls]
                self._feed(found)
                return
            faults += [f"{one.url} ({one.fault})" for one in found]
        raise NoMetrics(f"no metrics at {', '.join(dict.fromkeys(faults))} -> {_MEND}")

    def again(self) -> None:
        """A further look at all, now."""
        self._feed(_looks(self._choices[0]))

    def start(self, interval: float = LOOK_S) -> None:
        """Look every `interval` s from now on."""
        self._interval = interval
        self._follow(self._choices[0])

    def take(self) -> None:
        """Into the fleet with what has come since."""
        while not self._looks.empty():
            one = self._looks.get()
            if one.url in self._ends:
                self._feed([one])
        # Without Ray its file stays, or goes; what was seen is shown as away.
        if self._find is not None and (urls := self._find()):
            self._follow(urls)

    def stop(self) -> None:
        """Look no more."""
        for end in self._ends.values():
            end.set()

    def _follow(self, urls: list[str]) -> None:
        for url in [url for url in self._ends if url not in urls]:
            self._ends.pop(url).set()
            self.fleet.gone(url)
        for url in urls:
            if url not in self._ends:
                self._ends[url] = threading.Event()
                arguments = (url, self._ends[url])
                threading.Thread(target=self._look_on, args=arguments, daemon=True).start()

    def _look_on(self, url: str, end: threading.Event) -> None:
        while not end.wait(self._interval):
            self._looks.put(look(url))

    def _feed(self, looks: Iterable[Look]) -> None:
        for one in looks:
            if one.fault:
                self.fleet.silent(one.url, one.fault)
            else:
                self.fleet.answered(one.url, one.at, one.samples)


def _looks(urls: list[str]) -> list[Look]:
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(look, urls))
