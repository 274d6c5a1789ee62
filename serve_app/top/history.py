"""What counters did lately: increases and rates over a window, and quantiles of histograms.

Ray hands on what replicas count every 10 s, and it is looked at more often than that. Between two
looks there is then nothing, or a whole period's worth: so only the looks at which something had
moved are kept, and rates are between the first and the last of these.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

Series = tuple[str, str]
"""Name, and the value of the label that tells apart (exposition.READ); "" for none."""
WINDOW_S = 60.0
RATE_S = 30.0
"""Rates are of fewer periods: they should follow what happens."""
PERIOD_S = 10.0
"""serve_app/engine/metrics.py, and RAY_metrics_report_interval_ms."""
SETTLED_S = 25.0
"""After two periods of Ray's without a change there is none, rather than one under way."""


_Tick = tuple[float, dict[Series, float]]


class History:
    """The counters of one process over the last `WINDOW_S`, s.

    `settled_s` is how old a value may be at the source: 0 for an engine's own registry.
    """

    def __init__(self, settled_s: float = SETTLED_S) -> None:
        self._settled_s = settled_s
        self._seen: dict[Series, float] = {}
        self._looked: float | None = None
        self._moved = 0.0
        self._lost: dict[Series, float] = {}
        """What a counter had before it began anew."""
        self._ticks: deque[_Tick] = deque()

    def add(self, now: float, counters: Mapping[Series, float]) -> None:
        """A look at `now`, s of a monotonic clock."""
        first = self._looked is None or now - self._looked > PERIOD_S
        for series, before in self._seen.items():
            if counters.get(series, before) < before:
                self._lost[series] = self._lost.get(series, 0.0) + before
        moved = any(self._seen.get(series, 0.0) != value for series, value in counters.items())
        self._seen |= counters
        self._looked = now
        if moved or first:
            self._moved = now
        # Of a value that is there at a first look nobody knows since when.
        settled = now - self._moved >= self._settled_s
        if ((moved and not first) or settled) and not (self._ticks and self._ticks[-1][0] >= now):
            whole = {s: value + self._lost.get(s, 0.0) for s, value in self._seen.items()}
            self._ticks.append((now, whole))
        while self._ticks and self._ticks[0][0] < now - WINDOW_S:
            self._ticks.popleft()

    def quiet_s(self, now: float) -> float:
        """Since something moved."""
        return now - self._moved if self._looked is not None else 0.0

    def increase(self, series: Series) -> float | None:
        """Over the window, or what there is of it; None while nothing is known."""
        return _increase(self._ticks[0], self._ticks[-1], series) if len(self._ticks) > 1 else None

    def rate(self, series: Series) -> float | None:
        """Per s, over the last periods; None while nothing is known."""
        if len(self._ticks) < 2:
            return None
        last = self._ticks[-1]
        # Half a period more, as what should come every 10 s comes a little later.
        since = last[0] - RATE_S - PERIOD_S / 2
        first = next(tick for tick in self._ticks if tick[0] >= since or tick is self._ticks[-2])
        return _increase(first, last, series) / (last[0] - first[0])


def _increase(first: _Tick, last: _Tick, series: Series) -> float:
    # A series that came later, as that of a first error, began at 0.
    return last[1].get(series, 0.0) - first[1].get(series, 0.0)


def quantile(q: float, buckets: Mapping[str, float]) -> float | None:
    """As Prometheus' `histogram_quantile`: linear within a bucket (prometheus/promql/quantile.go).

    `buckets` are cumulative, by their `le`. None without observations or without `+Inf`. What lies
    beyond the last bound is given as that bound.
    """
    bounds = sorted((float(le), count) for le, count in buckets.items())
    if not bounds or not math.isinf(bounds[-1][0]) or bounds[-1][1] <= 0:
        return None
    rank = q * bounds[-1][1]
    below, counted = 0.0, 0.0
    for bound, count in bounds:
        count = max(count, counted)  # buckets of two looks may be mixed
        if count >= rank and count > counted:
            if math.isinf(bound):
                return below if len(bounds) > 1 else None
            if bound <= 0 and counted == 0:
                return bound
            return below + (bound - below) * (rank - counted) / (count - counted)
        below, counted = bound, count
    return None
