"""A directory of results, LLMPerf's or ours, as load points.

Per point there are two files: `<stem>_summary.json`, one flat object, and
`<stem>_individual_responses.json`, a list with one object per request. Names and keys are those
of ray-project/llmperf (token_benchmark_ray.py, src/llmperf/common_metrics.py). Ours have more
keys; LLMPerf's own files are read, too.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

_SUMMARY = "_summary.json"
_INDIVIDUAL = "_individual_responses.json"
_NEEDED = ("results_mean_output_throughput_token_per_s", "results_num_completed_requests")
_KEYS = {
    "ttft_s": "ttft_s",
    "tpot_s": "time_per_output_token_s",
    "itl_s": "inter_token_latency_s",
    "e2e_s": "end_to_end_latency_s",
}

Latency = Literal["ttft_s", "tpot_s", "itl_s", "e2e_s"]
"""itl_s is LLMPerf's inter_token_latency_s: end-to-end time over output tokens, so the first
token's wait is in it. tpot_s leaves the first token out, as vLLM's TPOT does."""


class ResultsError(Exception):
    """What is wrong with a directory of results, in one line."""


@dataclass(frozen=True)
class Request:
    """One request; seconds. A latency of a failed request is None."""

    error: str | None
    ttft_s: float | None
    tpot_s: float | None
    itl_s: float | None
    e2e_s: float | None
    busy_s: float
    """How long it was under way, failed or not."""
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Point:
    """What was measured at one load."""

    file: Path
    summary: Mapping[str, Any]
    requests: tuple[Request, ...] | None
    """None: the file of individual responses is missing."""
    has_tpot: bool

    @property
    def open_loop(self) -> bool:
        """Requests come at a rate, whether or not earlier ones are done."""
        return number(self.summary.get("request_rate")) is not None

    @property
    def load(self) -> float:
        """Concurrent requests, or requests per second where the loop is open."""
        key = "request_rate" if self.open_loop else "num_concurrent_requests"
        return float(self.summary[key])

    @property
    def label(self) -> str:
        return f"{self.load:g}/s" if self.open_loop else f"{self.load:g}"

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of all requests together."""
        return self._result("mean_output_throughput_token_per_s") or 0.0

    @property
    def completed(self) -> int:
        return int(self._result("num_completed_requests") or 0)

    @property
    def errors(self) -> int:
        return sum(self.errors_by_code.values()) or int(self._result("number_errors") or 0)

    @property
    def error_rate(self) -> float:
        started = self.completed + self.errors
        return self.errors / started if started else 0.0

    @property
    def errors_by_code(self) -> dict[str, int]:
        if self.requests is not None:
            return dict(Counter(r.error for r in self.requests if r.error is not None))
        return _frequency(self.summary.get("results_error_code_frequency"))

    @property
    def duration_s(self) -> float | None:
        """Of the measurement; LLMPerf's files tell it by requests per minute only."""
        given = number(self.summary.get("duration_s"))
        per_minute = self._result("num_completed_requests_per_min")
        if given is None and per_minute:
            return self.completed * 60 / per_minute
        return given

    @property
    def requests_per_s(self) -> float | None:
        return self.completed / self.duration_s if self.duration_s else None

    @property
    def total_tokens_per_s(self) -> float | None:
        """Input and output tokens of completed requests."""
        if not self.requests_per_s:
            return None
        if self.requests:
            done = [r for r in self.requests if r.error is None]
            tokens = sum(r.input_tokens + r.output_tokens for r in done)
            return tokens / len(done) * self.requests_per_s if done else None
        inputs = self._result("number_input_tokens_mean")
        return None if inputs is None else self.tokens_per_s + inputs * self.requests_per_s

    def values(self, latency: Latency) -> list[float]:
        """Of each request that did not fail, in no order."""
        all_of_them = (getattr(request, latency) for request in self.requests or ())
        return [value for value in all_of_them if value is not None]

    def quantile(self, latency: Latency, percent: int) -> float | None:
        """From the individual responses, else as the summary has it (p25 to p99)."""
        if values := self.values(latency):
            return quantile(values, percent)
        return self._result(f"{_KEYS[latency]}_quantiles_p{percent}")

    def mean(self, latency: Latency) -> float | None:
        if values := self.values(latency):
            return math.fsum(values) / len(values)
        return self._result(f"{_KEYS[latency]}_mean")

    def _result(self, key: str) -> float | None:
        return number(self.summary.get(f"results_{key}"))


def read(directory: Path) -> list[Point]:
    """All points below the directory, by load.

    Raises:
        ResultsError: no directory, no summary in it, or a file that is not what its name says.
    """
    if not directory.is_dir():
        raise ResultsError(f"{directory}: no such directory -> neuron-serve bench writes one")
    summaries = sorted(directory.rglob(f"*{_SUMMARY}"))
    if not summaries:
        raise ResultsError(f"{directory}: no *{_SUMMARY} in it -> give a directory of results")
    points = [_point(file) for file in summaries]
    return sorted(points, key=lambda point: (point.open_loop, point.load, str(point.file)))


def one_sweep(directory: Path) -> list[Point]:
    """`read`, of one model, in one kind of load, each load once. Raises ResultsError."""
    points = read(directory)
    for what, key in (("models", "model"), ("endpoints", "endpoint")):
        found = sorted({str(p.summary[key]) for p in points if p.summary.get(key) is not None})
        if len(found) > 1:
            raise ResultsError(
                f"{directory}: several {what}: {', '.join(found)} -> a directory for each"
            )
    if len({point.open_loop for point in points}) > 1:
        raise ResultsError(f"{directory}: both concurrency and rates -> a directory for each")
    again = [b for a, b in pairwise(points) if a.load == b.load]
    if again:
        names = ", ".join(p.file.name for p in points if p.load == again[0].load)
        raise ResultsError(
            f"{directory}: load {again[0].label} several times: {names} -> a directory for each run"
        )
    return points


def per_token(points: Iterable[Point]) -> Latency:
    """TPOT where every point has it, else LLMPerf's inter_token_latency_s."""
    return "tpot_s" if all(point.has_tpot for point in points) else "itl_s"


def quantile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation, as pandas does it for LLMPerf. Values must not be empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def number(value: object) -> float | None:
    """Also of a string: LLMPerf writes numpy's integers so."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        made = float(value)
    except ValueError:
        return None
    return made if math.isfinite(made) else None


def _point(file: Path) -> Point:
    summary = _json(file)
    if not isinstance(summary, dict):
        raise ResultsError(f"{file}: not an object -> LLMPerf's summary is one flat object")
    missing = [key for key in _NEEDED if number(summary.get(key)) is None]
    if all(number(summary.get(key)) is None for key in ("request_rate", "num_concurrent_requests")):
        missing.append("num_concurrent_requests")
    if missing:
        raise ResultsError(f"{file}: no number in {', '.join(missing)} -> is it LLMPerf's summary?")
    rows = _individual(file.with_name(file.name.removesuffix(_SUMMARY) + _INDIVIDUAL))
    mark = _KEYS["tpot_s"]
    return Point(
        file,
        summary,
        None if rows is None else tuple(_request(row) for row in rows),
        f"results_{mark}_mean" in summary or any(mark in row for row in rows or ()),
    )


def _individual(file: Path) -> list[dict[str, Any]] | None:
    if not file.exists():
        return None
    rows = _json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ResultsError(f"{file}: not a list of objects -> LLMPerf writes one per request")
    return rows


def _request(row: Mapping[str, Any]) -> Request:
    error = row.get("error_code")
    seconds = {name: number(row.get(key)) for name, key in _KEYS.items()}
    busy = seconds["e2e_s"] or 0.0
    if error is not None:  # LLMPerf gives a failed request a TTFT of 0
        seconds = dict.fromkeys(seconds)
    tokens = [
        int(number(row.get(key)) or 0) for key in ("number_input_tokens", "number_output_tokens")
    ]
    return Request(
        None if error is None else str(error),
        **seconds,
        busy_s=busy,
        input_tokens=tokens[0],
        output_tokens=0 if error is not None else tokens[1],
    )


def _frequency(value: object) -> dict[str, int]:
    """Of results_error_code_frequency: str() of a dict, at times with numpy's numbers in it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(re.sub(r"np\.\w+\(([^()]*)\)", r"\1", value))
        except (ValueError, SyntaxError):
            return {}
    if not isinstance(value, dict):
        return {}
    codes = {f"{code:g}" if isinstance(code, float) else str(code): n for code, n in value.items()}
    return {code: int(n) for code, n in codes.items() if number(n)}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(), parse_constant=lambda _: None)
    except OSError as error:
        raise ResultsError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ResultsError(f"{file}: not JSON: {error}") from None
