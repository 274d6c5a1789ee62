"""What the Kubernetes manifests say, on a real Ray: the pod's environment, the pod's config."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest
import yaml

from serve_app.manifests.pod import HAPROXY
from tests.serving.conftest import HTTP, MODEL, ROOT, START_S, Stack, free_port

pytestmark = pytest.mark.timeout(300)
OVERLAY = ROOT / "kuberay/overlays/local-cpu/rayservice.yaml"


def test_the_overlays_config_is_deployed_and_answers(tmp_path: Path) -> None:
    """`serve deploy` of serveConfigV2 on a Ray node with the worker's CPUs and variables."""
    service = yaml.safe_load(OVERLAY.read_text())["spec"]
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    programs = Path(sys.executable).parent
    assert variables["RAY_SERVE_HAPROXY_BINARY_PATH"] == HAPROXY
    # KubeRay sets both by it.
    assert service["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    token = secrets.token_hex(32)
    port, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        **variables,
        # What is elsewhere in the image, and the ports of other tests.
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(programs / "neuron-serve-haproxy"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "HOME": os.environ["HOME"],
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    config = tmp_path / "serve.yaml"
    config.write_text(service["serveConfigV2"].replace("port: 8000", f"port: {port}"))
    # Ray's sockets lie below it, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as directory:
        log = tmp_path / "log"
        with log.open("wb") as file:
            command = [
                *("ray", "start", "--head", "--block", f"--port={free_port()}"),
                *(f"--num-cpus={group['resources']['CPU']}", f"--temp-dir={directory}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            ]
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        stack = Stack(process, port, log)
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for_dashboard(stack, address, token)
            serve("deploy", "-a", address, str(config), env=environment)
            stack.wait_until_ready()
            with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
                question = [{"role": "user", "content": "What is neuron-serve?"}]
                answer = client.chat.completions.create(model=MODEL, messages=question)
            assert answer.choices[0].message.content
            assert any("haproxy" in process.name() for process in stack.tree())
            serve("shutdown", "-y", "-a", address, env=environment)
        finally:
            stack.stop(signal.SIGTERM)


def wait_for_dashboard(stack: Stack, address: str, token: str) -> None:
    header = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert stack.process.poll() is None, stack.log.read_text()[-3000:]
        with suppress(httpx.HTTPError):
            if HTTP.get(f"{address}/api/serve/applications/", headers=header).is_success:
                return
        time.sleep(0.5)
    raise AssertionError(f"no dashboard:\n{stack.log.read_text()[-3000:]}")


def serve(*words: str, env: dict[str, str]) -> None:
    done = subprocess.run(["serve", *words], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
