"""One real stack for the session: `serve run` of the demo model, behind HAProxy."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import psutil
import pytest

from serve_app.access.keyring import dump, issue

if TYPE_CHECKING:
    from tests.serving.door import Door

ROOT = Path(__file__).parents[2]
MODEL = "neuron-serve/demo"
START_S = 180
# Made once: a TLS context costs 50 ms of CPU, which may take seconds beside a busy engine.
HTTP = httpx.Client(verify=False, timeout=60)


def free_port() -> int:
    """Between Ray's workers (10002 to 19999) and its replicas (from 30000 on), and none that the
    kernel gives to whoever asks: until it is used, it stays free."""
    while True:
        port = random.randrange(20_000, 29_900)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def issue_keys(file: Path, keys: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Write the key file; returns the texts that clients send, by the keys' names."""
    issued = [issue(fields) for fields in keys]
    file.write_text(dump(key for key, _ in issued))
    return {key.name: text for key, text in issued}


def environment() -> dict[str, str]:
    """README's for `serve run`, with side ports of its own and no wait for a load balancer."""
    return {
        **os.environ,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(
            Path(sys.executable).with_name("neuron-serve-haproxy")
        ),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        # As `neuron-serve run` does: Ray's niceness of 15 would give way to the tests.
        "RAY_worker_niceness": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@dataclass
class Stack:
    """A running command and the port that it serves on."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    metrics_port: int = 0
    """HAProxy's, where it is known."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self, seconds: float = START_S) -> None:
        models = f"{self.url}/v1/models"
        self.wait_until(lambda: MODEL in httpx.get(models, timeout=5).text, seconds)

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_S) -> None:
        """What `ready` cannot find in an answer, or no answer, means: not yet."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if ready():
                    return
            except (httpx.HTTPError, KeyError, ValueError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"not ready in {seconds} s:\n{self.log.read_text()[-3000:]}")

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engines(self) -> list[psutil.Process]:
        """EngineCore and its worker processes."""
        return [p for p in self.tree() if command_line(p).startswith("VLLM::")]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples on vLLM's own /metrics."""
        lines = HTTP.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))

    def scrape(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """A metric's samples with these labels in Ray's scrape of the node."""
        (raylet,) = (p for p in self.tree() if "--raylet_socket_name=" in command_line(p))
        found = re.search(r"--raylet_socket_name=(\S+)/sockets/", command_line(raylet))
        assert found is not None
        (port,) = Path(found[1]).glob("metrics_export_port_*")
        text = HTTP.get(f"http://127.0.0.1:{port.read_text().strip()}/metrics").text
        samples = []
        for line in re.findall(rf"^{name}({{.*)$", text, re.MULTILINE):
            all_, value = line.rsplit(" ", 1)
            given = dict(re.findall(r'(\w+)="([^"]*)"', all_))
            if labels.items() <= given.items():
                samples.append((given, float(value)))
        return samples

    def stop(self, sig: signal.Signals = signal.SIGINT, seconds: float = 60) -> int:
        """End it and see that nothing is left of it."""
        tree = self.tree()
        self.process.send_signal(sig)
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()
            _, alive = psutil.wait_procs(tree, timeout=30)
            for process in alive:
                process.kill()
        assert not alive
        return code


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def start(command: list[str], port: int, log: Path) -> Stack:
    env = environment()
    # Of its own session, so that a Ctrl-C at the tests reaches it only through its fixture.
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=env,
            start_new_session=True,
        )
    return Stack(process, port, log, int(env["RAY_SERVE_HAPROXY_METRICS_PORT"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a Ray of their own run before the session's starts: they would join it.

    Those of the front door's stack run together, and the one that kills a part of it last.
    """
    door = [item for item in items if _uses(item, "door")]
    if door:
        place = items.index(door[0])
        rest = [item for item in items if item not in door]
        door.sort(key=lambda item: item.name == "test_one_application_dies_and_the_others_go_on")
        items[:] = [*rest[:place], *door, *rest[place:]]
    items.sort(key=lambda item: _uses(item, "stack"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The front door's stack ends with the last test that uses it, not with the session."""
    if _uses(item, "door") and not _uses(nextitem, "door"):
        made = getattr(item, "funcargs", {}).get("door")
        if made is not None:
            made.close()


def _uses(item: pytest.Item | None, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`serve run configs/local-cpu.yaml`, on a free port.

    Eager, as the tests replace its engine a few times; others start the file as it is.
    """
    directory = tmp_path_factory.mktemp("stack")
    port = free_port()
    config = directory / "local-cpu.yaml"
    text = (ROOT / "configs/local-cpu.yaml").read_text()
    text = text.replace("port: 8000", f"port: {port}")
    text = text.replace("max_model_len: 1024", "max_model_len: 1024\n        enforce_eager: true")
    assert "enforce_eager" in text
    config.write_text(text)
    running = start(["serve", "run", str(config)], port, directory / "log")
    try:
        running.wait_until_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Several models behind one /v1; tests of two files use it."""
    from tests.serving.door import Door

    made = Door(tmp_path_factory.mktemp("door"))
    try:
        made.wait()
        yield made
    finally:
        made.close()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as made:
        yield made
