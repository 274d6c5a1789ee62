"""`neuron-serve drain-node`: the preStop hook of a Ray worker pod.

Ray is told that the node goes. Serve then starts replacements elsewhere, stops what is here so
that it is over by the deadline, and takes the node's proxy out of service; this command waits
for both. The proxy counts by itself: its streams may come from replicas of other nodes.

When nothing runs on a draining node any more, its raylet ends by itself, and the container with
it. How the times fit together stands in `serve_app.manifests.grace`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import psutil

from serve_app.cli.dashboard import Dashboard, DashboardError, OnNode
from serve_app.manifests.grace import SLACK_S

_POLL_S = 1.0
_HEAD = "node:__internal_head__"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Raylet:
    """Ray's process on this node, by its own command line."""

    process: psutil.Process
    node_id: str
    gcs: str
    dashboard: str
    head: bool

    def runs(self) -> bool:
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class OutOfTime(Exception):
    """The time is over, whatever is being waited for."""


def drain(timeout_s: float, node_id: str | None, say: Say) -> int:
    """Drain this node; returns the exit code, at the latest `timeout_s` after this process began.

    0: nothing of Serve is left here, or there was nothing to drain. 1: the time was not enough,
    or Ray did not take the request.
    """
    # On a busy node the imports alone have taken seconds.
    left = timeout_s - (time.time() - psutil.Process().create_time())
    try:
        with _at_most(left):
            # A second before the alarm, to say what is left.
            return _drain(time.monotonic() + left - 1, node_id, say)
    except OutOfTime:
        say("out of time")
        return 1


def _drain(deadline: float, node_id: str | None, say: Say) -> int:
    found = [raylet for raylet in raylets() if node_id in (None, raylet.node_id)]
    if not found:
        say("no Ray runs here" if node_id is None else f"node {node_id} does not run here")
        return 0
    if len(found) > 1:
        names = ", ".join(raylet.node_id for raylet in found)
        say(f"several Ray nodes run here -> choose by --node-id: {names}")
        return 1
    (raylet,) = found
    if raylet.head:
        say("this is Ray's head, which cannot be drained")
        return 0
    dashboard = Dashboard(f"http://{raylet.dashboard}")
    try:
        if not dashboard.on_node(raylet.node_id):
            say("nothing of Serve runs on this node")
            return 0
        tell_ray(raylet, deadline)
    except DashboardError as error:
        say(f"nobody to ask: {error}")
        return 0
    except (RuntimeError, OSError) as error:
        say(f"Ray does not drain this node: {error}")
        return 1
    return wait(lambda: dashboard.on_node(raylet.node_id), raylet.runs, deadline, say)


def tell_ray(raylet: Raylet, deadline: float) -> None:
    """Mark the node as draining; raises RuntimeError. Ray has no public Python API for it."""
    left = deadline - time.monotonic()
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
        *("--address", raylet.gcs, "--node-id", raylet.node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod ends"),
        *("--deadline-remaining-seconds", str(max(0, int(left - SLACK_S)))),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.returncode}"]
        raise RuntimeError(lines[-1])


def wait(
    look: Callable[[], OnNode],
    runs: Callable[[], bool],
    deadline: float,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Until nothing of Serve is left here, or Ray has gone; returns the exit code.

    A head that does not answer is asked again: it may be starting anew, and streams go on
    without it.
    """
    begin, shown = clock(), ""
    while clock() < deadline:
        if not runs():
            say(f"{clock() - begin:.0f} s: Ray has left this node")
            return 0
        try:
            here = look()
            told = f"left here: {here}" if here else "nothing of Serve is left here"
        except DashboardError as error:
            here, told = None, str(error)
        if told != shown:
            say(f"{clock() - begin:.0f} s: {told}")
            shown = told
        if here is not None and not here:
            return 0
        sleep(max(0.0, min(_POLL_S, deadline - clock())))
    say(f"out of time; {shown}")
    return 1


def raylets() -> Iterator[Raylet]:
    """Ray's nodes on this machine; in a pod there is one at the most."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if not words[0].endswith("/raylet"):
            continue
        # The command lines of its workers are single words of its own.
        flags = [word for line in words[1:] for word in line.split()]
        values = dict(flag.split("=", 1) for flag in reversed(flags) if "=" in flag)
        if {"--node_id", "--gcs-address", "--webui"} <= values.keys():
            yield Raylet(
                process,
                values["--node_id"],
                values["--gcs-address"],
                values["--webui"],
                _HEAD in values.get("--static_resource_list", ""),
            )


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises OutOfTime from within: a head that has gone takes no notice of a socket's timeout."""
    before = signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime
