"""The preStop hook: what is waited for, and that it never waits too long."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from serve_app.cli import drain
from serve_app.cli.dashboard import Dashboard, DashboardError, OnNode
from serve_app.manifests.grace import RAY_STOP_S, grace_period_s, hook_timeout_s

BUSY = OnNode(("demo/engine RUNNING",), "HEALTHY")
STREAMS = OnNode((), "DRAINING")
FREE = OnNode()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(
    seen: list[OnNode | Exception],
    deadline: float = 60,
    runs: Callable[[], bool] = lambda: True,
) -> tuple[int, list[str], float]:
    """Exit code, lines and seconds of a wait that sees these, the last one for ever."""
    clock, said, left = Clock(), list[str](), iter(seen)

    def look() -> OnNode:
        state = next(left, seen[-1])
        if isinstance(state, Exception):
            raise state
        return state

    code = drain.wait(look, runs, deadline, said.append, clock, clock.sleep)
    return code, said, clock.now


def test_one_line_per_change_until_nothing_is_left() -> None:
    code, said, seconds = waited([BUSY, BUSY, STREAMS, STREAMS, FREE])
    assert code == 0
    assert said == [
        "0 s: left here: demo/engine RUNNING, proxy HEALTHY",
        "2 s: left here: proxy DRAINING",
        "4 s: nothing of Serve is left here",
    ]
    assert seconds == 4


def test_never_longer_than_the_timeout() -> None:
    code, said, seconds = waited([BUSY], deadline=7.5)
    assert (code, seconds) == (1, 7.5)
    assert said[-1] == "out of time; left here: demo/engine RUNNING, proxy HEALTHY"


def test_a_head_that_is_silent_for_a_while_is_asked_again() -> None:
    code, said, _ = waited([BUSY, DashboardError("no head"), DashboardError("no head"), FREE])
    assert (code, said[1:]) == (0, ["1 s: no head", "3 s: nothing of Serve is left here"])


def test_silence_is_not_nothing() -> None:
    code, said, seconds = waited([DashboardError("no head")], deadline=5)
    assert (code, seconds) == (1, 5)
    assert said == ["0 s: no head", "out of time; no head"]


def test_it_ends_with_its_raylet() -> None:
    alive = iter([True, False])
    code, said, _ = waited([BUSY], runs=lambda: next(alive))
    assert (code, said[-1]) == (0, "1 s: Ray has left this node")


def dashboard(monkeypatch: pytest.MonkeyPatch, details: dict[str, object]) -> Dashboard:
    class Reply:
        def json(self) -> dict[str, object]:
            return details

    monkeypatch.setattr(Dashboard, "_request", lambda *args, **kwargs: Reply())
    return Dashboard("http://nowhere")


def test_what_is_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = [
        {"replica_id": "a", "state": "STOPPING", "node_id": "here"},
        {"replica_id": "b", "state": "RUNNING", "node_id": "there"},
        {"replica_id": "c", "state": "STARTING"},
    ]
    engine = {"name": "engine", "replicas": replicas}
    details = {
        "applications": {"demo": {"name": "demo", "deployments": {"engine": engine}}},
        "proxies": {"here": {"status": "DRAINING"}, "far": {"status": "HEALTHY"}},
    }
    made = dashboard(monkeypatch, details)
    assert made.on_node("here") == OnNode(("demo/engine STOPPING",), "DRAINING")
    assert made.on_node("there") == OnNode(("demo/engine RUNNING",))
    assert made.on_node("far") == OnNode((), "HEALTHY")
    assert not made.on_node("elsewhere")


def raylet(head: bool = False, node_id: str = "aa") -> subprocess.Popen[bytes]:
    """A process with a raylet's command line."""
    resources = "node:10.0.0.2,1.0,CPU,1" + (",node:__internal_head__,1.0" if head else "")
    worker = f"python worker.py --node_id=zz --gcs-address=127.0.0.1:9 --webui=127.0.0.1:9 {head}"
    words = [f"--node_id={node_id}", f"--static_resource_list={resources}"]
    return subprocess.Popen(
        ["/ray/raylet", "-c", "import time; time.sleep(60)", *words, f"--python_worker={worker}"],
        executable=sys.executable,
    )


def test_raylets_by_their_command_line() -> None:
    with raylet(node_id="cafe") as worker, raylet(head=True, node_id="beef") as head:
        try:
            found = {r.node_id: r for r in drain.raylets() if r.node_id in ("cafe", "beef")}
            assert (found["cafe"].gcs, found["cafe"].dashboard) == ("127.0.0.1:9", "127.0.0.1:9")
            assert (found["cafe"].head, found["beef"].head) == (False, True)
            assert found["cafe"].runs()
        finally:
            worker.kill()
            head.kill()
    assert not found["cafe"].runs()


def drained(node_id: str | None = None, seconds: float = 5) -> tuple[int, list[str]]:
    said: list[str] = []
    began = time.time() - psutil.Process().create_time()
    return drain.drain(began + seconds, node_id, said.append), said


def stand_in(monkeypatch: pytest.MonkeyPatch, *heads: bool) -> None:
    class Process:
        def is_running(self) -> bool:
            return True

        def status(self) -> str:
            return "running"

    made = [
        drain.Raylet(Process(), str(i), "127.0.0.1:9", "127.0.0.1:9", head)  # type: ignore[arg-type]
        for i, head in enumerate(heads)
    ]
    monkeypatch.setattr(drain, "raylets", lambda: iter(made))


def test_nothing_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert drained() == (0, ["no Ray runs here"])
    assert drained("7") == (0, ["node 7 does not run here"])
    stand_in(monkeypatch, True)
    assert drained() == (0, ["this is Ray's head, which cannot be drained"])
    stand_in(monkeypatch, False)
    code, said = drained()
    assert (code, len(said)) == (0, 1)
    assert said[0].startswith("nobody to ask: no Ray dashboard at")
    monkeypatch.setattr(Dashboard, "on_node", lambda *args: FREE)
    assert drained() == (0, ["nothing of Serve runs on this node"])
    stand_in(monkeypatch, True, False)
    assert drained() == (1, ["several Ray nodes run here -> choose by --node-id: 0, 1"])


def test_ray_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, False)
    monkeypatch.setattr(Dashboard, "on_node", lambda *args: BUSY)
    done = subprocess.CompletedProcess([], 1, "", "Traceback\nError: rejected\n")
    asked: list[list[str]] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return done

    monkeypatch.setattr(subprocess, "run", run)
    assert drained() == (1, ["Ray does not drain this node: Error: rejected"])
    (words,) = asked
    assert words[words.index("--node-id") + 1] == "0"
    assert words[words.index("--deadline-remaining-seconds") + 1] == "0"


def test_a_head_that_hangs_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, False)
    monkeypatch.setattr(Dashboard, "on_node", lambda *args: time.sleep(60))
    begin = time.monotonic()
    assert drained(seconds=0.2) == (1, ["out of time"])
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(("drain_s", "hook", "grace"), [(120, 440, 455), (5, 355, 370)])
def test_times_fit_together(drain_s: float, hook: int, grace: int) -> None:
    assert hook_timeout_s(drain_s) == hook
    assert grace_period_s(drain_s) == grace == hook + RAY_STOP_S
    assert isinstance(grace_period_s(0.5), int)
