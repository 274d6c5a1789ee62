"""`neuron-serve run`: one command from a config file to a served model, with progress."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from serve_app.backends import engines_of, make_plan
from serve_app.backends.processor import set_engines_apart
from serve_app.cli.dashboard import ApplicationStatus, Dashboard, DashboardError
from serve_app.cli.view import status_table
from serve_app.config import Document
from serve_app.config.data_plane import DATA_PLANE

_POLL_S = 0.5
_LOCAL = "local"
"""Ray's own word for: a cluster of my own, whatever else runs here."""
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_RAY = (2, 60)
# What a person waits for at Ctrl-C while streams drain; a second Ctrl-C ends it at once.
_STOP_S = 30.0


class Stopped(Exception):
    """SIGTERM or Ctrl-C."""


def run(document: Document, address: str | None) -> int:
    """Serve the document until Ctrl-C; returns the exit code."""
    console = Console(stderr=True)
    installed = tuple(int(part) for part in version("ray").split(".")[:2])
    if installed < _RAY:
        return _fail(
            console, f"Ray {version('ray')} is too old -> pip install 'ray[serve]==2.60.*'"
        )
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        started, dashboard = _connect(document, address, console)
    except (DashboardError, OSError, ConnectionError, RuntimeError) as error:
        return _fail(console, str(error).splitlines()[0])
    except Stopped:
        return 130
    code, ready = 130, False
    try:
        dashboard.deploy(document.data)
        ready = _wait(document, dashboard, console)
        code = 0 if ready else 1
        if ready:
            _watch(dashboard, console)
    except DashboardError as error:
        code = _fail(console, str(error))
    except Stopped:
        if ready:
            console.print("stopping: streams may finish, press Ctrl-C again to cut them off")
    finally:
        _end(started, ready, dashboard, console)
    return code


def _connect(document: Document, address: str | None, console: Console) -> tuple[bool, Dashboard]:
    """Connect to the Ray cluster, or start one. True: it is ours and ends with us."""
    import ray

    options: dict[str, Any] = {
        "namespace": "serve",
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    context = None
    if address not in (None, _LOCAL):
        _check_reachable(str(address))
    try:
        if address != _LOCAL:
            context = ray.init(address=address or "auto", **options)
            console.print(f"using the Ray cluster at {context.address_info['address']}")
    except ConnectionError:
        if address is not None:
            raise ConnectionError(
                f"no Ray cluster at {address} -> start it, or leave it out"
            ) from None
    ours = context is None
    if context is None:
        _check_port(document)
        os.environ.update(data_plane_environment())
        set_engines_apart(_threads(document), os.environ)
        console.print("starting Ray")
        context = ray.init(address=_LOCAL, include_dashboard=True, **options)
    if not context.dashboard_url:
        raise RuntimeError("this Ray has no dashboard -> start it with --include-dashboard=true")
    # Ray installs handlers of its own that end the process at once.
    signal.signal(signal.SIGTERM, _stop)
    logs = Path(context.address_info["session_dir"]) / "logs"
    dashboard = Dashboard(f"http://{context.dashboard_url}", logs if ours else None)
    if ours:
        _check_resources(document, ray.cluster_resources())
    else:
        _check_others(document, dashboard)
    return ours, dashboard


def _threads(document: Document) -> int:
    """OpenMP threads of all engines; 0 where one is not on the processor, or in workers."""
    total = 0
    for args in (engine.args for engine in engines_of(document)):
        plan = make_plan(args)
        threads = plan.env.get("OMP_NUM_THREADS", "")
        if plan.engine_args.get("distributed_executor_backend") != "uni" or not threads.isdigit():
            return 0
        total += args.scaling.most * int(threads)
    return total


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster at {address}: {error.strerror or error} -> start it, or leave it out"
        ) from None


def _check_others(document: Document, dashboard: Dashboard) -> None:
    """Serve's config is the whole truth: deploying ours would end what others serve."""
    names = {app.name for app in document.serve.applications}
    others = sorted({app.name for app in dashboard.applications()} - names)
    if others:
        raise RuntimeError(
            f"this cluster already serves {', '.join(others)}, which would end -> "
            "put all applications into one file, or replace them with `serve deploy`"
        )


def data_plane_environment() -> dict[str, str]:
    """Environment of Ray's processes for the fast data plane on one machine.

    HAProxy's two side ports have fixed defaults; a second cluster here would find them taken.
    """
    wanted = {
        **DATA_PLANE,
        **_with_front_door(),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port(8404)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port(9101)),
        # Ray gives HAProxy 4 threads, which on a laptop wake each other for nothing: with one,
        # 2.9 instead of 3.9 ms of CPU per streamed request of 64 tokens on 2 cores.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, len(os.sched_getaffinity(0)) // 4))),
        # No load balancer stands before a laptop that would have to notice first.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _with_front_door() -> dict[str, str]:
    """HAProxy routes by `model` itself (serve_app/edge), where our program is installed."""
    program = Path(sys.executable).with_name("neuron-serve-haproxy")
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(program)} if program.exists() else {}


def _free_port(preferred: int) -> int:
    """The next free one. Not any that the kernel would give: it gives such to Ray as well, before
    HAProxy listens."""
    for port in range(preferred, preferred + 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
            return port
    raise OSError(f"no free TCP port from {preferred} on")


def _check_port(document: Document) -> None:
    options = document.serve.http_options
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {options.host}:{options.port}: {error.strerror} -> end what "
                f"uses it, or change http_options.port in {document.file}"
            ) from None


def _check_resources(document: Document, there: dict[str, float]) -> None:
    """A cluster of our own does not grow: what does not fit now never will."""
    cpus = cores = 0.0
    for args in (engine.args for engine in engines_of(document)):
        replicas = args.scaling.num_replicas or args.scaling.min_replicas or 1
        target = make_plan(args).target
        cpus += replicas * args.resources.num_cpus
        cores += replicas * target.cores if target else 0
    if cores > there.get("neuron_cores", 0.0):
        raise RuntimeError(
            f"the replicas ask for {cores:g} NeuronCores and this machine has "
            f"{there.get('neuron_cores', 0.0):g} -> run it on {_instances(document)}, or try the "
            "file without a chip: --rehearse"
        )
    if cpus > there.get("CPU", 0.0):
        raise RuntimeError(
            f"the replicas ask for {cpus:g} CPUs and this machine has {there.get('CPU', 0.0):g} "
            "-> lower resources.num_cpus or scaling.num_replicas"
        )


def _instances(document: Document) -> str:
    named = {e.args.instance for e in engines_of(document) if e.args.instance}
    return ", ".join(sorted(named))


def _wait(document: Document, dashboard: Dashboard, console: Console) -> bool:
    """Show progress until all applications run (True) or one has failed (False)."""
    begin = time.monotonic()
    shown: dict[str, str] = {}
    with Live(console=console, transient=True, refresh_per_second=4) as live:
        while True:
            applications = dashboard.applications()
            live.update(_progress(applications, time.monotonic() - begin))
            if not console.is_terminal:
                _log_changes(applications, shown, console)
            failed = [app for app in applications if app.status in _FAILED]
            if failed:
                break
            states = {app.status for app in applications}
            if applications and states == {"RUNNING"}:
                break
            time.sleep(_POLL_S)
    for app in failed:
        _fail(console, f"{app.name}: {app.message or app.status}")
    if not failed:
        _announce(document, console, time.monotonic() - begin)
    return not failed


def _progress(applications: list[ApplicationStatus], elapsed: float) -> Any:
    from rich.console import Group

    spinner = Spinner("dots", f"starting, {elapsed:.0f} s")
    return Group(status_table(applications), spinner)


def _log_changes(
    applications: list[ApplicationStatus], shown: dict[str, str], console: Console
) -> None:
    """Without a terminal: one line per change of phase."""
    for app in applications:
        phases = {replica.phase.name for replica in app.replicas if replica.phase}
        words = " ".join([app.status, *sorted(phases)])
        if shown.get(app.name) != words:
            shown[app.name] = words
            console.print(f"{app.name}: {words}")


def _announce(document: Document, console: Console, elapsed: float) -> None:
    options = document.serve.http_options
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    at = f"http://{host}:{options.port}"
    for _, app in document.applications():
        url = f"{at}{(app.route_prefix or '/').rstrip('/')}/v1"
        console.print(f"ready in {elapsed:.0f} s: {app.args.model.id} at {url}", highlight=False)
    if document.serve.front_doors:
        console.print(f"all of them at {at}/v1", highlight=False)
    console.print("Ctrl-C stops it")


def _watch(dashboard: Dashboard, console: Console) -> None:
    """Block; say when an application stops being well, and when it is again."""
    shown: dict[str, str] = {}
    while True:
        time.sleep(2.0)
        for app in dashboard.applications():
            if shown.get(app.name, "RUNNING") != app.status:
                console.print(f"{app.name}: {app.status} {app.message}".rstrip())
            shown[app.name] = app.status


def _end(ours: bool, drain: bool, dashboard: Dashboard, console: Console) -> None:
    import psutil
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    node = ray.get_runtime_context().get_node_id()
    with suppress(Stopped, DashboardError):
        if drain:
            # Before the shutdown, which takes HAProxy away from under the streams.
            for application in dashboard.applications():
                serve.delete(application.name, _blocking=False)
            _wait_until_gone(dashboard)
        serve.shutdown()
        _wait_until_gone(dashboard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ray.shutdown()
    if not ours:
        return
    # HAProxy outlives its actor when Ray is cut off; its command line names our node.
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "haproxy" in words and node in words:
            process.kill()
    console.print("stopped")


def _wait_until_gone(dashboard: Dashboard) -> None:
    deadline = time.monotonic() + _STOP_S
    while dashboard.applications() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped


def _fail(console: Console, message: str) -> int:
    console.print(f"neuron-serve: {message}", style="red", highlight=False, soft_wrap=True)
    return 1
