"""`neuron-serve run` and the life of what it starts. Each test has a Ray of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from serve_app.backends import this_machine
from tests.serving.conftest import (
    HTTP,
    MODEL,
    Stack,
    command_line,
    environment,
    free_port,
    start,
)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "serve_app/demo_model"
pytestmark = pytest.mark.timeout(300)


def run(config: Path, port: int, tmp_path: Path) -> Stack:
    command = [sys.executable, "-m", "serve_app", "run", str(config)]
    return start(command, port, tmp_path / "log")


def fails(config: Path) -> str:
    """The words of a run that ends by itself; exit code 1, no traceback, nothing left."""
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "run", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    deadline = time.monotonic() + 60
    while left := [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and ours(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(1)
    return done.stderr


def ours(process: psutil.Process) -> bool:
    words = " ".join(process.info["cmdline"] or [])
    return any(name in words for name in ("raylet", "VLLM::", "haproxy", "ray::", "gcs_server"))


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    directory = tmp_path / "broken"
    shutil.copytree(DEMO, directory)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    return directory


def test_from_start_to_ctrl_c(write_config, tmp_path) -> None:
    """Progress, `status`, a stream that survives the drain, and nothing left."""
    port = free_port()
    stack = run(write_config(("8000", str(port))), port, tmp_path)
    stack.wait_until_ready()
    while "ready in" not in stack.log.read_text():
        time.sleep(0.2)
    said = stack.log.read_text()
    for phase in ("starting Ray", "DEPLOYING", "warm-up", f"{MODEL} at http://127.0.0.1:{port}/v1"):
        assert phase in said
    (dashboard,) = [
        c.laddr.port
        for p in stack.tree()
        if "dashboard/dashboard.py" in " ".join(p.cmdline())
        for c in p.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and 8265 <= c.laddr.port < 8365
    ]
    status = subprocess.run(
        [sys.executable, "-m", "serve_app", "status", "--address", f"http://127.0.0.1:{dashboard}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo" in status.stdout
    assert "RUNNING" in status.stdout

    (engine,) = stack.engines()
    haproxy = next(p for p in stack.tree() if "bin/haproxy" in command_line(p))
    assert this_machine().cores == 1 or not {*engine.cpu_affinity()} & {*haproxy.cpu_affinity()}

    body = {"model": MODEL, "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}
    read: list[str] = []
    begun = threading.Event()

    def reader() -> None:
        with HTTP.stream("POST", f"{stack.url}/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                read.append(line)
                begun.set()

    thread = threading.Thread(target=reader)
    thread.start()
    assert begun.wait(30)
    assert stack.stop(signal.SIGINT) == 0
    thread.join(30)
    assert "data: [DONE]" in read
    assert not any("error" in line for line in read)


def test_a_model_that_vllm_cannot_load(write_config, broken_model) -> None:
    said = fails(write_config(("builtin:demo", str(broken_model)), ("8000", str(free_port()))))
    (cause,) = [line for line in said.splitlines() if line.startswith("neuron-serve: demo:")]
    assert "vLLM cannot start the model: " in cause
    assert "NoSuchForCausalLM" in cause


def test_port_in_use(write_config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails(write_config(("8000", str(port))))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said


def test_not_enough_cpus(write_config) -> None:
    said = fails(
        write_config(
            ("backend: cpu", "backend: cpu\n      resources: {num_cpus: 1000}"),
            ("8000", str(free_port())),
        )
    )
    assert "ask for 1000 CPUs and this machine has" in said


def test_an_argument_that_vllm_refuses(write_config) -> None:
    said = fails(write_config(("hermes", "hermit"), ("8000", str(free_port()))))
    assert "invalid tool call parser: hermit" in said
