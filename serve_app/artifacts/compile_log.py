"""What the lines of a compile say: how far it is, and why it failed.

Wording: neuronx-distributed src/.../trace/model_builder.py (2.29) and the wrapper of neuronx-cc in
libneuronxla; error codes: AWS Neuron documentation, compiler/error-codes. Lines are searched, not
matched from their beginning: the compiler writes dots in front, vLLM the name of the process.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

TAIL = 15
"""Lines of the log that an error shows."""

_KEPT = 400
"""Lines of errors that are kept of a log without end."""

_MODULE = r"(?P<module>MODULE_[\w+-]+)"
_SUBMODEL = r"(?P<submodel>\w+)"


@dataclass(frozen=True)
class Progress:
    """How far a compile is. Buckets are compiled side by side: `done` counts, `bucket` names."""

    submodel: str
    """The last one that the log spoke of; "" before the first."""
    bucket: int
    """Of that sub-model, the last one that the log spoke of, from 1; 0 before the first."""
    buckets: int
    """Of that sub-model; 0 when it is not known."""
    done: int
    """Buckets compiled, of all sub-models."""
    total: int
    """Buckets of all sub-models that were announced so far."""
    elapsed: float
    """Seconds since the start of the command."""
    line: str
    """The last line of the log."""


class Tracker:
    """Follows the lines of one compile."""

    def __init__(self) -> None:
        self._submodel = ""
        self._bucket = 0
        self._buckets: dict[str, int] = {}
        self._generated: dict[str, int] = {}
        self._places: dict[str, str] = {}
        self._done: set[str] = set()
        self._before_priority = 0

    def read(self, line: str) -> bool:
        """Take in one line; whether it told anything."""
        for pattern, act in _LINES:
            if match := pattern.search(line):
                act(self, match)
                return True
        return False

    def progress(self, elapsed: float, line: str) -> Progress:
        """Where it stands."""
        total = sum(self._buckets.values())
        done = min(len(self._done), total)
        buckets = self._buckets.get(self._submodel, 0)
        return Progress(self._submodel, self._bucket, buckets, done, total, elapsed, line)

    def announced(self, match: re.Match[str]) -> None:
        self._submodel, self._bucket = match["submodel"], 0
        self._buckets[match["submodel"]] = int(match["buckets"])

    def traced(self, match: re.Match[str]) -> None:
        self._submodel = match["submodel"]
        self._bucket = self._generated[self._submodel] = self._generated.get(self._submodel, 0) + 1

    def priority(self, match: re.Match[str]) -> None:
        self._at(match)
        self._before_priority = len(self._done)

    def priority_done(self, match: re.Match[str]) -> None:
        # Only a wrapper that says nothing of its own at the end leaves it uncounted.
        if len(self._done) == self._before_priority:
            self._done.add(self._place())

    def called(self, match: re.Match[str]) -> None:
        self._at(match)
        self._places[match["module"]] = self._place()

    def compiled(self, match: re.Match[str]) -> None:
        # Small graphs of torch's own, compiled elsewhere, end with the same line.
        if match["module"] in self._places:
            self._done.add(self._places[match["module"]])

    def cached(self, match: re.Match[str]) -> None:
        # The path is the cache's: it does not tell the bucket.
        if self._buckets:
            self._done.add(self._places.get(match["module"], match["module"]))

    def all_done(self, match: re.Match[str]) -> None:
        self._done = {
            f"{name} {bucket + 1}"
            for name, count in self._buckets.items()
            for bucket in range(count)
        }

    def _at(self, match: re.Match[str]) -> None:
        self._submodel, self._bucket = match["submodel"], int(match["bucket"]) + 1

    def _place(self) -> str:
        return f"{self._submodel} {self._bucket}"


_LINES: tuple[tuple[re.Pattern[str], Callable[[Tracker, re.Match[str]], None]], ...] = (
    (
        re.compile(rf"Generating (?P<buckets>\d+) hlos for key: {_SUBMODEL}"),
        Tracker.announced,
    ),
    (re.compile(rf"Finished generating HLO for {_SUBMODEL} in "), Tracker.traced),
    (
        re.compile(rf"'{_SUBMODEL}' is the priority model with bucket rank (?P<bucket>\d+)"),
        Tracker.priority,
    ),
    (re.compile(r"Done compilation for the priority HLO"), Tracker.priority_done),
    (
        re.compile(
            rf"Call compiler with cmd: .*?{_SUBMODEL}/_tp\d+_bk(?P<bucket>\d+)/\S*?{_MODULE}"
        ),
        Tracker.called,
    ),
    (re.compile(rf"Compilation Successfully Completed for \S*?{_MODULE}"), Tracker.compiled),
    (re.compile(rf"Using a cached neff at \S*?{_MODULE}"), Tracker.cached),
    (re.compile(r"Finished Compilation for all HLOs"), Tracker.all_done),
)
"""The first pattern that a line holds, and what it means."""


class Cause(NamedTuple):
    """Why a compile fails, by the words of the log."""

    words: re.Pattern[str]
    mend: str
    refused: bool = False
    """The compiler or a kernel gave up: with fewer kernels it may go through."""


def _cause(words: str, mend: str, refused: bool = False) -> Cause:
    return Cause(re.compile(words), mend, refused)


CAUSES = (
    _cause(
        # The last two are what torch says of a full disk.
        r"No space left on device|Disk quota exceeded|Errno 28\b|PytorchStreamWriter failed"
        r"|inline_container\.cc:\d+\] \. unexpected pos",
        "free space where the result, /tmp and the compile cache are",
    ),
    _cause(
        r"\[F137\]|insufficient system memory|\bMemoryError\b|Cannot allocate memory|bad_alloc",
        "compile on a machine with more memory, or with smaller or fewer buckets",
    ),
    _cause(
        r"NCC_EOOM\d+|NCC_E?VRF009|NCC_EXSP001|exceeds HBM limit",
        "it does not fit the chip: fewer sequences, a shorter length, or more cores",
    ),
    _cause(r"NCC_EARG001", "mend resources.logical_nc_config"),
    _cause(
        r"ModuleNotFoundError|No module named|ImportError",
        "install what is missing, or run it in AWS's container of this SDK",
    ),
    _cause(
        r"\b40[13] Client Error|GatedRepoError|RepositoryNotFoundError|[Gg]ated repo",
        "accept the model's licence on the hub and set HF_TOKEN",
    ),
    _cause(r"NCC_[A-Z]+\d+", "switch off the kernel that it names", refused=True),
    _cause(
        r"Got a cached failed neff",
        "an earlier compile failed or was stopped: remove that MODULE_ directory from the cache",
    ),
    _cause(
        r"neuronx-cc (failed|terminated)|Failed compilation with|Compilation fail|Numerical Error"
        r"|\b[Nn][Kk][Ii]|_nki_|[Kk]ernel|\bAssertionError\b",
        "switch off the kernel that it names",
        refused=True,
    ),
)
"""The first whose words are in the log. What no kernel can help stands first: each further try
costs tens of minutes of a rented machine. A graph that is too large for the chip's memory is of
that kind: AWS's mend is a smaller batch or more cores, kernels are not among it."""

_UNKNOWN = Cause(re.compile(""), "read the log")

_ERROR = re.compile(
    r"\bERROR\b|\bCRITICAL\b|\bFATAL\b|INTERNAL_ERROR|NCC_[A-Z]+\d+|\[F1\d\d\]"
    r"|^(\w+\.)*\w*(Error|Exception): "
)
_FRAME = re.compile(r'File "[^"]+", line \d+|^\s*\d+# ')
_TRACEBACK = "Traceback (most recent call last):"


class Evidence:
    """Keeps what a failed compile's log says of the failure.

    Only errors and tracebacks count for a cause: the names of kernels also stand in commands and
    in dumps of the configuration, whatever the failure.
    """

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=TAIL)
        self._errors: deque[str] = deque(maxlen=_KEPT)
        self._frames: deque[str] = deque(maxlen=_KEPT)
        self._prefix: str | None = None

    def read(self, line: str) -> None:
        """Take in one line."""
        self._last.append(line)
        if _TRACEBACK in line:
            self._prefix = line[: line.index(_TRACEBACK)]
            return
        if self._prefix is None:
            if _ERROR.search(line):
                self._errors.append(line)
            return
        body = line.removeprefix(self._prefix)
        if body[:1].isspace() or not body:
            self._frames.append(body)
        else:
            self._errors.append(body)
            self._prefix = None

    def tail(self) -> list[str]:
        """Errors and the last lines of tracebacks when there are any, else the last lines."""
        errors = [line for line in self._errors if not _FRAME.search(line)]
        return errors[-TAIL:] or list(self._last)

    def cause(self) -> tuple[Cause, str]:
        """The cause, and the line that tells it."""
        lines = list(self._errors)
        for cause in CAUSES:
            if line := _first(cause.words, lines if cause.refused else [*lines, *self._last]):
                return cause, line
            if cause.refused and lines and _first(cause.words, self._frames):
                return cause, lines[-1]
        return _UNKNOWN, (lines or list(self._last) or [""])[-1]


def _first(words: re.Pattern[str], lines: Iterable[str]) -> str | None:
    return next((line for line in lines if words.search(line)), None)
