"""Runs a compile job: its log, its progress, its end, and the artifact, which is whole or absent.

The compiler works in a draft directory beside the target. The manifest is written into the draft
when all files are there, and one rename makes the draft the target.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from serve_app.artifacts.compile_log import Evidence, Progress, Tracker
from serve_app.artifacts.draft import draft_of, reveal, taken
from serve_app.artifacts.job import Job
from serve_app.artifacts.manifest import completeness
from serve_app.artifacts.process_group import lines, running, sigterm_unwinds
from serve_app.config.environment import expand

FALL_BACK: tuple[tuple[str, ...], ...] = (
    ("mlp_kernel_fuse_residual_add", "qkv_kernel_fuse_residual_add"),
    (
        "attn_block_tkg_nki_kernel_cache_update",
        "attn_block_tkg_nki_kernel_cascaded_attention",
        "attn_block_tkg_nki_kernel_enabled",
        "k_cache_transposed",
    ),
    ("quantized_mlp_kernel_enabled", "rmsnorm_quantize_kernel_enabled", "mlp_kernel_enabled"),
    ("strided_context_parallel_kernel_enabled", "attn_kernel_enabled"),
    ("qkv_cte_nki_kernel_fuse_rope", "qkv_nki_kernel_enabled", "qkv_kernel_enabled"),
    ("fused_qkv",),
)
"""Kernel flags in the order in which they are given up, each group with those before it.

From the most special, which the others do without, to what everything else needs: a residual add
is fused into a kernel that stays, and fused_qkv goes last because the QKV kernels need it. Flags
of one kernel go together: half of them is a combination that nobody tested.
"""

_PULSE = 1.0
"""Seconds between two reports at the most."""
_LOOK = 0.25
"""Seconds between two looks at a compiler that says nothing."""
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_LONGEST = 300
"""Characters of the log in an error's one line."""


class CompileError(RuntimeError):
    """A compile failed. One line with what, why and the mend; it names the log."""

    def __init__(self, message: str, tail: list[str] | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.tail = tail or []
        """The lines of the log that tell why."""
        self.refused = refused
        """The compiler or a kernel gave up, not the machine."""


def compile_into(
    build: Callable[[str, tuple[str, ...]], Job],
    directory: Path,
    seal: Callable[[Path, tuple[str, ...]], object],
    log: Path,
    report: Callable[[Progress], None],
    fall_back: bool,
) -> tuple[str, ...]:
    """Compile into `directory`, which is whole afterwards, or as it was.

    `build` makes the job for a directory without some kernel flags; `seal` writes the manifest.
    With `fall_back`, flags are dropped group by group as long as the compiler refuses. Each try
    has its log: `log`, `log`.2, ... A dropped group is reported as a line. Returns all of them.

    Raises:
        CompileError: nothing was compiled, or there is something in `directory` already.
        ArtifactError: what was compiled is not complete.
        ConfigError: a variable that the job needs is not set.
        KeyboardInterrupt: SIGINT. SIGTERM is raised anew when everything is tidied up.
    """
    directory = Path(os.path.realpath(directory))
    with _writing(directory, log):
        if fault := taken(directory):
            raise CompileError(fault)
        draft = draft_of(directory)
    with sigterm_unwinds():
        try:
            dropped = _tries(build, draft, log, report, fall_back)
            with _writing(draft, log):
                seal(draft, dropped)
                reveal(draft, directory)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return dropped


def _tries(
    build: Callable[[str, tuple[str, ...]], Job],
    draft: Path,
    log: Path,
    report: Callable[[Progress], None],
    fall_back: bool,
) -> tuple[str, ...]:
    asked: tuple[str, ...] = ()
    job = build(str(draft), asked)
    groups = iter(FALL_BACK)
    number = 1
    while True:
        try:
            run_job(job, log if number == 1 else log.with_name(f"{log.name}.{number}"), report)
        except CompileError as error:
            if not (fall_back and error.refused):
                raise
            # vLLM's plugin would load what a failed try left behind.
            shutil.rmtree(draft, ignore_errors=True)
            before = job.dropped
            while job.dropped == before:
                group = next(groups, None)
                if group is None:
                    raise _nothing_left(error, before) from error
                asked += group
                job = build(str(draft), asked)
            new = ", ".join(name for name in job.dropped if name not in before)
            report(Progress("", 0, 0, 0, 0, 0.0, f"the compiler refused: again without {new}"))
            number += 1
        else:
            return job.dropped


def _nothing_left(error: CompileError, dropped: tuple[str, ...]) -> CompileError:
    tried = f"without {', '.join(dropped)} too" if dropped else "with no kernel on"
    return CompileError(f"{error} (it fails {tried})", error.tail, error.refused)


def run_job(job: Job, log: Path, report: Callable[[Progress], None]) -> None:
    """Run the command; `report` is called at each change and at least every second.

    Whatever ends this function ends the command and its children. Values of variables that are
    called like secrets are blackened in the log.

    Raises:
        CompileError: it failed, is not installed, or left no result.
        ConfigError: a variable that the job needs is not set.
        KeyboardInterrupt: SIGINT. SIGTERM is raised anew.
    """
    command = [expand(word, os.environ, "command") for word in job.command]
    given = {name: expand(value, os.environ, f"env.{name}") for name, value in job.env.items()}
    env = {**os.environ, **given}
    # The command stands beside this program also where the environment was not activated.
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    evidence = Evidence()
    with sigterm_unwinds(), _open(log) as file, _started(command, env, log) as process:
        _write(file, _header(job), log)
        _follow(process, _Blackener(env), evidence, file, log, report)
        code = process.wait()
    if code != 0:
        raise _failure(command[0], code, evidence, log)
    if gap := _gap(job):
        raise CompileError(
            f"{command[0]} ended without a result: {gap} -> read the log: {log}", evidence.tail()
        )


def _follow(
    process: subprocess.Popen[bytes],
    blacken: _Blackener,
    evidence: Evidence,
    file: BinaryIO,
    log: Path,
    report: Callable[[Progress], None],
) -> None:
    tracker = Tracker()
    start = time.monotonic()
    reported, last = start, ""
    for line in lines(process, _LOOK):
        changed = False
        if line is not None:
            last = blacken(line)
            _write(file, last + "\n", log)
            evidence.read(last)
            changed = tracker.read(last)
        now = time.monotonic()
        if changed or now - reported >= _PULSE - _LOOK:
            report(tracker.progress(now - start, last))
            reported = now


@contextmanager
def _started(
    command: list[str], env: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as stack:
        try:
            process = stack.enter_context(running(command, env))
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            why = "is not installed here" if missing else f"does not start: {error.strerror}"
            mend = "run it where neuronx-distributed-inference is installed, as in AWS's containers"
            raise CompileError(f"{command[0]} {why} -> {mend} (log: {log})") from error
        yield process


class _Blackener:
    """Replaces the values of variables that are called like secrets."""

    def __init__(self, env: Mapping[str, str]) -> None:
        named = [v for k, v in env.items() if any(word in k.upper() for word in _SECRET)]
        parts = {line for value in named for line in value.splitlines()}
        # A short value is a switch, and occurs in other words.
        secrets = sorted((re.escape(part) for part in parts if len(part) >= 8), reverse=True)
        self._pattern = re.compile("|".join(secrets)) if secrets else None

    def __call__(self, line: str) -> str:
        return self._pattern.sub("***", line) if self._pattern else line


def _header(job: Job) -> str:
    # Names alone: a value may be a secret, and this file is what people send around.
    now = datetime.now(UTC).isoformat(timespec="seconds")
    names = ", ".join(sorted(job.env)) or "nothing"
    return f"# {now} {shlex.join(job.command)}\n# environment: {names}\n"


@contextmanager
def _open(log: Path) -> Iterator[BinaryIO]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb", buffering=0)
    except OSError as error:
        raise _unwritable(log, error) from error
    with file:
        yield file


def _write(file: BinaryIO, text: str, log: Path) -> None:
    try:
        file.write(text.encode(errors="replace"))
    except OSError as error:
        raise _unwritable(log, error) from error


def _unwritable(log: Path, error: OSError) -> CompileError:
    mend = "free space there or choose another place for the log"
    return CompileError(f"cannot write the log {log}: {error.strerror} -> {mend}")


def _failure(name: str, code: int, evidence: Evidence, log: Path) -> CompileError:
    cause, line = evidence.cause()
    # A shell in between tells a signal by 128 and its number.
    number = -code if code < 0 else code - 128 if code in (137, 143) else 0
    if number:
        what = f"{name} was killed by signal {number} ({signal.strsignal(number)})"
    else:
        what = f"{name} ended with exit code {code}"
    mend = cause.mend
    if number == signal.SIGKILL:
        mend = "see with dmesg whether the machine ran out of memory"
    why = line[line.index("[NCC_") :] if "[NCC_" in line else line.strip()
    why = f": {why[:_LONGEST]}" if why else ""
    refused = cause.refused and not number
    return CompileError(f"{what}{why} -> {mend} (log: {log})", evidence.tail(), refused)


def _gap(job: Job) -> str | None:
    """What is missing of the result, in words. A compile cache is addressed by content: only the
    start that reads it tells whether all is there."""
    if job.command[0] != "inference_demo" and "NEURON_COMPILED_ARTIFACTS" not in job.env:
        return None
    try:
        return completeness(Path(expand(job.directory, os.environ, "directory")))
    except ValueError as error:
        return str(error)


@contextmanager
def _writing(directory: Path, log: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "free space or mend the rights, then compile again"
        place = error.filename or directory
        message = f"cannot write {place}: {error.strerror} -> {mend} (log: {log})"
        raise CompileError(message) from error
