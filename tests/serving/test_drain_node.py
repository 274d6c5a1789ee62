"""A worker node is drained while it streams: a head and two workers of Ray on this machine.

Only the head has a HAProxy here, as several on one machine would share their ports. So this does
not show that a node's own HAProxy is waited for, which may carry streams of other nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve_app.cli.dashboard import Dashboard, DashboardError
from serve_app.cli.drain import Raylet, raylets
from tests.serving.conftest import MODEL, ROOT, command_line, environment, free_port
from tests.serving.disaggregated import Answer, ask_all, completion, tokens, wait_until

pytestmark = pytest.mark.timeout(480)
TIMEOUT_S = 200
"""Of which a replacement may take 135: it loads in 20 s on an idle machine."""


@dataclass
class Cluster:
    """Ray's nodes, each a `ray start --block` as in a pod, and the port that Serve listens on."""

    folder: Path
    gcs: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    dashboard: Dashboard = field(init=False)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=environment)

    def __post_init__(self) -> None:
        # A token that lies about here would be asked of workers, who do not look for it.
        self.env["RAY_AUTH_MODE"] = "disabled"

    def start(self, *words: str) -> None:
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        small = ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        command = ["ray", "start", "--node-ip-address=127.0.0.1", *ports, *small, *words]
        with (self.folder / f"log{len(self.nodes)}").open("wb") as log:
            node = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.env, cwd=ROOT, start_new_session=True
            )
        self.nodes.append(node)
        # One after another: two at once take the same name for a socket.
        wait_until(lambda: self.started(node, Path(log.name)), 60, self.logs)

    def started(self, node: subprocess.Popen[bytes], log: Path) -> bool:
        assert node.poll() is None, self.logs()
        return "Ray runtime started" in log.read_text()

    def start_head(self) -> None:
        port = free_port()
        self.dashboard = Dashboard(f"http://127.0.0.1:{port}")
        ports = [f"--port={self.gcs}", f"--dashboard-port={port}"]
        ports.append(f"--ray-client-server-port={free_port()}")
        self.start("--head", "--num-cpus=0", f"--temp-dir={self.folder}", *ports)
        wait_until(self.answers, 60, self.logs)

    def start_worker(self) -> None:
        self.start(f"--address=127.0.0.1:{self.gcs}", "--num-cpus=1")

    def raylets(self) -> dict[str, Raylet]:
        # Ray takes the machine's own address for 127.0.0.1 where it has one.
        return {ray.node_id: ray for ray in raylets() if ray.gcs.endswith(f":{self.gcs}")}

    def answers(self) -> bool:
        try:
            return self.dashboard.applications() == []
        except DashboardError:
            return False

    def running(self) -> bool:
        (app,) = self.dashboard.applications()
        assert app.status != "DEPLOY_FAILED", app.message
        return app.status == "RUNNING"

    def on(self, node_id: str) -> tuple[str, ...]:
        return self.dashboard.on_node(node_id).replicas

    def logs(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.folder.glob("log*"))

    def stop(self) -> None:
        names = self.raylets()
        trees = [child for node in self.nodes for child in _tree(node.pid)]
        for node in reversed(self.nodes):
            node.send_signal(signal.SIGTERM)
        psutil.wait_procs(trees, timeout=5)
        for process in trees:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self.nodes:
            node.wait(10)
        # HAProxy is reloaded while Ray ends, and outlives it; its command names the node.
        for process in psutil.process_iter():
            words = command_line(process)
            if "haproxy" in words and any(name in words for name in names):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: Ray's sockets have a short limit for their path.
    made = Cluster(Path(tempfile.mkdtemp(prefix="drain")))
    try:
        made.start_head()
        made.start_worker()
        made.start_worker()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def deploy(cluster: Cluster) -> None:
    config = yaml.safe_load((ROOT / "configs/local-cpu.yaml").read_text())
    config["http_options"]["port"] = cluster.port
    args = config["applications"][0]["args"]
    args["engine"] |= {"max_model_len": 2048, "enforce_eager": True}
    args |= {"resources": {"num_cpus": 1}, "health": {"drain_timeout_s": 45}}
    cluster.dashboard.deploy(config)
    wait_until(
        cluster.running, 200, lambda: f"{cluster.dashboard.applications()}\n{cluster.logs()}"
    )


def drain(cluster: Cluster, node_id: str) -> tuple[subprocess.CompletedProcess[str], float]:
    command = [sys.executable, "-m", "serve_app", "drain-node", "--timeout", str(TIMEOUT_S)]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--node-id", node_id],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=cluster.env | {"PYTHONPATH": os.fspath(ROOT)},
        timeout=TIMEOUT_S + 30,
    )
    return done, time.monotonic() - begin


def streams(url: str, begun: list[bool], stop: list[bool]) -> list[list[str]]:
    """The data lines of streams of 1000 tokens without a pause: one runs when the replica stops."""
    made: list[list[str]] = []
    while not stop:
        body = completion(
            tokens(8, len(made)), 1000, stream=True, stream_options={"include_usage": True}
        )
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=body, timeout=120, trust_env=False
        ) as reply:
            made.append([])
            for line in filter(None, reply.iter_lines()):
                begun.append(True)
                made[-1].append(line.removeprefix("data: "))
    return made


def small_ones(url: str, stop: list[bool], each: Callable[[], None]) -> list[Answer]:
    answers: list[Answer] = []
    while not stop:
        each()
        answers += ask_all(url, [completion(tokens(8, 1000 + len(answers)), 3)], 1)
        time.sleep(1)
    return answers


def test_streams_end_whole_and_the_replica_moves(cluster: Cluster) -> None:
    deploy(cluster)
    nodes = cluster.raylets()
    (head,) = [node_id for node_id, raylet in nodes.items() if raylet.head]
    (old,) = [node_id for node_id in nodes if cluster.on(node_id)]
    (new,) = nodes.keys() - {head, old}
    # On few cores its endless streams would keep the replacement from starting for minutes.
    for process in nodes[old].process.children(recursive=True):
        process.nice(15)
    url = f"http://127.0.0.1:{cluster.port}"
    begun: list[bool] = []
    stop: list[bool] = []
    seen: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def look() -> None:
        seen.append((cluster.on(old), cluster.on(new)))

    with ThreadPoolExecutor() as pool:
        streamed = pool.submit(streams, url, begun, stop)
        asked = pool.submit(small_ones, url, stop, look)
        try:
            wait_until(lambda: bool(begun) or streamed.done(), 30, cluster.logs)
            done, seconds = drain(cluster, old)
            at_the_end = (cluster.on(old), cluster.on(new))
        finally:
            stop.append(True)
        answers = asked.result(120)
        lines = streamed.result(120)
    print(
        f"{seconds:.0f} s, {len(lines)} streams, {len(answers)} answers\n{done.stdout}{done.stderr}"
    )
    for stream in lines:
        assert stream[-1] == "[DONE]"
        assert json.loads(stream[-2])["usage"]["completion_tokens"] == 1000
    assert all(answer.complete for answer in answers), answers
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(("nothing of Serve is left here\n", "Ray has left this node\n"))
    assert seconds < TIMEOUT_S - 20
    for left, came in seen:
        serves = left in (("demo/engine RUNNING",), ("demo/engine PENDING_MIGRATION",))
        assert serves or came == ("demo/engine RUNNING",), (left, came)
    assert at_the_end == ((), ("demo/engine RUNNING",))
    # Without a lease left, a draining raylet ends by itself, and a pod's container with it.
    wait_until(lambda: not nodes[old].runs(), 30, cluster.logs)
    again, _ = drain(cluster, head)
    assert (again.returncode, again.stdout) == (0, "this is Ray's head, which cannot be drained\n")
    (answer,) = ask_all(url, [completion(tokens(8, 3))], 1)
    assert answer.complete
    assert MODEL in httpx.get(f"{url}/v1/models", trust_env=False).text
