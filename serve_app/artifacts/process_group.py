"""A command in a process group of its own: its lines as they come, and its end with all children.

inference_demo starts one neuronx-cc per bucket, each with children. A Ctrl-C that ended the first
alone would leave hours of work for nobody behind.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psutil

GRACE = 10.0
"""Seconds that the group has to end by itself."""

_GUARD = 'read -r line; kill -s TERM -- "-$1"; sleep "$2"; kill -s KILL -- "-$1"'
"""Waits for the end of its standard input, which this process alone holds."""


class Terminated(BaseException):
    """SIGTERM, as an exception."""


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does; then it does what it would have done before."""
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (signal.SIG_IGN, None):
        yield
        return

    def unwind(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, before)
        if callable(before):
            before(signal.SIGTERM, None)
        else:
            signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command, both outputs in one pipe. Its group ends with this context, or with this
    process, however that ends.

    Raises:
        OSError: it cannot be started; FileNotFoundError when it is not on the path.
    """
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        with _guard(process.pid):
            try:
                yield process
            finally:
                _end(process)
    finally:
        _end(process)
        assert process.stdout is not None
        process.stdout.close()


def lines(process: subprocess.Popen[bytes], pulse: float) -> Iterator[str | None]:
    """The lines of `running` as they come, until it ends; None after `pulse` seconds without."""
    assert process.stdout is not None
    rest = b""
    ended = None
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while True:
            if process.poll() is not None and ended is None:
                ended = time.monotonic()
            if not ready.select(pulse):
                if ended is not None:
                    break
                yield None
                continue
            # A child that outlives the command may hold the pipe, and write on.
            if ended is not None and time.monotonic() - ended > GRACE:
                break
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            # Progress bars end their lines with \r.
            *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
            yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
    # It may have closed its output and work on.
    while process.poll() is None:
        time.sleep(pulse)
        yield None


@contextmanager
def _guard(group: int) -> Iterator[None]:
    """Ends the group when this process is killed: a compiler without anyone to take its result
    would hold cores and memory for an hour, and share its work directory with the next."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(group), str(GRACE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process's group, the hard way after `GRACE` seconds."""
    stop: BaseException | None = None
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _alive(process):
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            deadline = time.monotonic() + GRACE
            while _alive(process) and time.monotonic() < deadline:
                time.sleep(0.05)
        except (KeyboardInterrupt, Terminated) as error:
            stop = error  # who asks again does not wait
    if stop is not None:
        raise stop


def _alive(process: subprocess.Popen[bytes]) -> bool:
    """Whether someone in its group still runs. Zombies that nobody reaps do not."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    for pid in psutil.pids():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            mine = os.getpgid(pid) == process.pid
            if mine and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False
