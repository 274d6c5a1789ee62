"""Two directories of results, load by load: is B worse than A, beyond chance?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.bench.results import Latency, Point, ResultsError, per_token, read

Verdict = Literal["regression", "better", "same", "unknown"]
_DRAWS = 1000
_CHUNK = 2_000_000
_SEED = 11111  # LLMPerf's own
_ERROR = 0.05
_FEWEST_BEYOND = 5
"""A quantile with fewer requests beyond it is shown without a verdict."""
_SHOWN: tuple[tuple[Latency, int], ...] = (("ttft_s", 50), ("ttft_s", 99), ("tpot_s", 50))
_WHOLE: tuple[tuple[Latency, int], ...] = (("e2e_s", 50), ("e2e_s", 99))
_MUST_BE_ALIKE = (
    *("model", "dataset", "mean_input_tokens", "stddev_input_tokens", "mean_output_tokens"),
    *("stddev_output_tokens", "server_backend", "server_instance_type"),
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One figure at one load. Latencies are seconds, throughput output tokens per second."""

    load: str
    figure: str
    a: float
    b: float
    ratio: float | None
    """b/a."""
    low: float | None
    high: float | None
    """Interval of the ratio; all of a comparison hold together with 95 %."""
    verdict: Verdict


def compare(a: Path, b: Path, threshold: float = 0.1) -> list[Row]:
    """Rows by load, for the loads that both have; a directory may hold several runs of each.

    A regression is worse by more than the threshold, and its interval excludes 1. Of errors, any
    significant rise is one (Fisher's exact test). The same files give the same rows.

    Raises:
        ResultsError: one is not readable, or they have no load in common.
    """
    old, new = _by_load(read(a)), _by_load(read(b))
    common = [key for key in old if key in new]
    if not common:
        raise ResultsError(f"{a} and {b} have no load in common -> run the same sweep on both")
    per = per_token(p for key in common for p in (*old[key], *new[key]))
    shown = [(per if name == "tpot_s" else name, percent) for name, percent in (*_SHOWN, *_WHOLE)]
    # Bonferroni's: many rows make one of them cross its own 95 % by chance.
    wide = NormalDist().inv_cdf(1 - _ERROR / len(common) / (1 + len(shown)) / 2)
    rng = np.random.default_rng(_SEED)
    rows: list[Row] = []
    for key in common:
        before, after = old[key], new[key]
        label = before[0].label
        draws = _Draws(before, rng), _Draws(after, rng)
        mean = [
            math.fsum(p.tokens_per_s for p in points) / len(points) for points in (before, after)
        ]
        ratio = _ratio(mean, [made.throughputs() for made in draws], wide)
        rows.append(
            Row(label, "throughput", mean[0], mean[1], *ratio, _judge(ratio, threshold, more=True))
        )
        for latency, percent in shown:
            both = [_middle(points, latency, percent) for points in (before, after)]
            if both[0] is None or both[1] is None:
                continue
            ratio = _ratio(both, [made.quantiles(latency, percent) for made in draws], wide)
            fewest = min(made.count(latency) for made in draws)
            few = fewest * (100 - percent) / 100 < _FEWEST_BEYOND
            verdict = "unknown" if few else _judge(ratio, threshold, more=False)
            name = f"{latency.removesuffix('_s')} p{percent}"
            rows.append(Row(label, name, both[0], both[1], *ratio, verdict))
        rows.append(_errors(label, before, after, _ERROR / len(common)))
    return rows


def differences(a: Path, b: Path) -> Iterator[str]:
    """What of workload and machine is not alike, a line for each; then ratios say little."""
    both = [read(a), read(b)]
    for key in _MUST_BE_ALIKE:
        old, new = (sorted({str(p.summary.get(key, "-")) for p in points}) for points in both)
        if old != new:
            yield f"{key}: {', '.join(old)} against {', '.join(new)}"


class _Draws:
    """Bootstrap of one load: runs are drawn with replacement, then requests within each."""

    def __init__(self, points: Sequence[Point], rng: np.random.Generator) -> None:
        self._points = [point for point in points if point.requests]
        self._rng = rng

    def count(self, latency: Latency) -> int:
        return sum(len(point.values(latency)) for point in self._points)

    def throughputs(self) -> Floats | None:
        """Of a closed loop, tokens over busy time (Little's law) scaled to what was measured:
        how long requests take is what varies. An open loop's time is given: tokens vary.
        """

        def of(point: Point) -> tuple[Floats, Callable[[Floats], Floats]] | None:
            pairs = [(r.output_tokens, r.busy_s) for r in point.requests or ()]
            table = np.array(pairs, dtype=np.float64)
            tokens, busy = table.sum(axis=0)
            if not tokens or not (busy or point.open_loop):
                return None

            def rate(drawn: Floats) -> Floats:
                sums: Floats = drawn.sum(axis=1)
                made = sums[:, 0] / tokens
                if not point.open_loop:
                    made = made * busy / sums[:, 1]
                return np.asarray(made * point.tokens_per_s)

            return table, rate

        return self._over_runs([of(point) for point in self._points])

    def quantiles(self, latency: Latency, percent: int) -> Floats | None:
        def of(point: Point) -> tuple[Floats, Callable[[Floats], Floats]] | None:
            values = np.array(point.values(latency), dtype=np.float64)
            if not values.size:
                return None
            return values, lambda drawn: np.asarray(np.percentile(drawn, percent, axis=1))

        return self._over_runs([of(point) for point in self._points])

    def _over_runs(
        self, runs: Sequence[tuple[Floats, Callable[[Floats], Floats]] | None]
    ) -> Floats | None:
        """A mean over drawn runs for each draw; None: a run cannot be resampled."""
        if not runs or any(run is None for run in runs):
            return None
        made = np.stack([self._resampled(*run) for run in runs if run is not None])
        chosen = self._rng.integers(len(runs), size=(len(runs), _DRAWS))
        mean: Floats = np.take_along_axis(made, chosen, axis=0).mean(axis=0)
        return mean

    def _resampled(self, values: Floats, statistic: Callable[[Floats], Floats]) -> Floats:
        size = len(values)
        step = max(1, _CHUNK // size)
        parts = [
            statistic(values[self._rng.integers(size, size=(min(step, _DRAWS - done), size))])
            for done in range(0, _DRAWS, step)
        ]
        return np.concatenate(parts)


def _by_load(points: Iterable[Point]) -> dict[tuple[bool, float], list[Point]]:
    found: dict[tuple[bool, float], list[Point]] = {}
    for point in points:
        found.setdefault((point.open_loop, point.load), []).append(point)
    return found


def _middle(points: Sequence[Point], latency: Latency, percent: int) -> float | None:
    """Mean of the runs' quantiles."""
    known = [q for point in points if (q := point.quantile(latency, percent)) is not None]
    return math.fsum(known) / len(known) if known else None


_Ratio = tuple[float | None, float | None, float | None]


def _ratio(observed: Sequence[float | None], draws: Sequence[Floats | None], wide: float) -> _Ratio:
    """The ratio and its interval: normal on the logarithm, its width from the bootstrap."""
    a, b = observed
    if not a or not b:
        return None, None, None
    old, new = draws
    if old is None or new is None or not (old > 0).all() or not (new > 0).all():
        return b / a, None, None
    reach = math.exp(wide * float(np.std(np.log(new) - np.log(old), ddof=1)))
    return b / a, b / a / reach, b / a * reach


def _judge(ratio: _Ratio, threshold: float, more: bool) -> Verdict:
    """`more`: a greater figure is the better one."""
    middle, low, high = ratio
    if middle is None or low is None or high is None:
        return "unknown"
    if low > 1 and middle > 1 + threshold:
        return "better" if more else "regression"
    if high < 1 and middle < 1 - threshold:
        return "regression" if more else "better"
    return "same"


def _errors(label: str, before: Sequence[Point], after: Sequence[Point], most: float) -> Row:
    (bad_a, all_a), (bad_b, all_b) = (
        (sum(p.errors for p in points), sum(p.errors + p.completed for p in points))
        for points in (before, after)
    )
    a, b = bad_a / max(1, all_a), bad_b / max(1, all_b)
    verdict: Verdict = "same"
    if b > a and _fisher(bad_b, all_b, bad_a, all_a) < most:
        verdict = "regression"
    elif a > b and _fisher(bad_a, all_a, bad_b, all_b) < most:
        verdict = "better"
    return Row(label, "error rate", a, b, b / a if a else None, None, None, verdict)


def _fisher(bad: int, of: int, other_bad: int, other_of: int) -> float:
    """Chance of at least `bad` errors among `of`, were both alike (one-sided)."""
    errors, everything = bad + other_bad, of + other_of
    ways = math.comb(everything, errors)
    more = range(bad, min(errors, of) + 1)
    return float(sum(math.comb(of, k) * math.comb(other_of, errors - k) for k in more) / ways)
