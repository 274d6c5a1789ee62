"""Ray's dashboard REST API: deploy a config, and read what became of it.

Plain HTTP and no `import ray`, so `status` answers at once and from any machine. Documented
by Ray as the Serve REST API; the token is the one of Ray's token authentication.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from serve_app.doctor.log import Reader
from serve_app.engine.phases import Phase

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_TIMEOUT_S = 30.0
"""Ray beside starting engines has taken 14 s to take a config."""
_LOG_TAIL = 400
# The one line of serve_app.engine.errors and serve_app.config that stands in a traceback; of what
# HAProxy says when it does not start, the first that is no notice.
_CAUSE = re.compile(
    r"(?:(?:StartupError|ConfigError): |HAProxy crashed(?:.|\n)*?\[ALERT\] +\(\d+\) : )(.+)"
)


class DashboardError(RuntimeError):
    """The dashboard cannot be reached, or refuses. One line with the mend."""


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica: Serve's state, and the start-up phase that its log tells of."""

    id: str
    state: str
    phase: Phase | None = None


@dataclass(frozen=True)
class ApplicationStatus:
    """One application as Serve sees it, with a one-line message fit to be shown."""

    name: str
    route_prefix: str
    status: str
    message: str = ""
    replicas: list[ReplicaStatus] = field(default_factory=list)


@dataclass(frozen=True)
class OnNode:
    """What Serve has on one node of Ray; false when nothing."""

    replicas: tuple[str, ...] = ()
    """Deployment and state of each, as "demo/engine RUNNING"."""
    proxy: str = ""
    """Serve's state of the node's HAProxy or proxy; DRAINING while streams go through it."""

    def __bool__(self) -> bool:
        return bool(self.replicas or self.proxy)

    def __str__(self) -> str:
        proxy = (f"proxy {self.proxy}",) if self.proxy else ()
        return ", ".join((*self.replicas, *proxy))


class Dashboard:
    """A client of the dashboard at `address`; `logs` is Ray's log folder when it is local."""

    def __init__(self, address: str, logs: Path | None = None) -> None:
        self.address = address.rstrip("/")
        self._logs = logs
        self._session = requests.Session()
        # A proxy of the environment is for the world outside, and none stands before Ray.
        self._session.trust_env = False
        if token := auth_token():
            self._session.headers["Authorization"] = f"Bearer {token}"

    def deploy(self, config: dict[str, Any]) -> None:
        """Deploy a Serve config file's data, as `serve deploy` does."""
        self._request("PUT", "/api/serve/applications/", json=config)

    def applications(self) -> list[ApplicationStatus]:
        """All applications, with the phases of the replicas that are starting."""
        details = self._request("GET", "/api/serve/applications/").json()
        return [self._application(app) for app in details["applications"].values()]

    def on_node(self, node_id: str) -> OnNode:
        """What runs on this node, or is starting there."""
        details = self._request("GET", "/api/serve/applications/").json()
        replicas = [
            f"{app['name']}/{deployment['name']} {replica['state']}"
            for app in details["applications"].values()
            for deployment in app["deployments"].values()
            for replica in deployment["replicas"]
            # A replica without a place yet has no node.
            if replica.get("node_id") == node_id
        ]
        proxy = details["proxies"].get(node_id, {})
        return OnNode(tuple(sorted(replicas)), proxy.get("status", ""))

    def _application(self, app: dict[str, Any]) -> ApplicationStatus:
        deployments = app["deployments"].values()
        messages = [app["message"], *(deployment["message"] for deployment in deployments)]
        return ApplicationStatus(
            app["name"],
            app.get("route_prefix") or "-",
            app["status"],
            one_line(messages),
            [self._replica(replica) for d in deployments for replica in d["replicas"]],
        )

    def _replica(self, replica: dict[str, Any]) -> ReplicaStatus:
        phase = None
        if replica["state"] == "STARTING" and replica.get("log_file_path"):
            phase = Phase.last(self._log(replica["node_id"], replica["log_file_path"]))
        return ReplicaStatus(replica["replica_id"], replica["state"], phase)

    def _log(self, node_id: str, path: str) -> str:
        if self._logs is not None:
            local = self._logs / path.lstrip("/")
            if local.is_file():
                return local.read_text(errors="replace")
        params = {"node_id": node_id, "filename": path.lstrip("/"), "lines": _LOG_TAIL}
        try:
            return self._request("GET", "/api/v0/logs/file", params=params).text
        except DashboardError:
            return ""  # a log that is not there yet says nothing

    def _request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        url = self.address + path
        try:
            response = self._session.request(method, url, timeout=_TIMEOUT_S, **kwargs)
        except requests.RequestException as error:
            reason = type(error).__name__
            raise DashboardError(
                f"no Ray dashboard at {self.address} ({reason}) -> start Ray, or give --address"
            ) from None
        if response.status_code in (401, 403):
            raise DashboardError(
                f"{self.address} wants Ray's token -> set RAY_AUTH_TOKEN or ~/.ray/auth_token"
            )
        if not response.ok:
            text = one_line([response.text]) or response.reason
            raise DashboardError(f"{method} {url}: {response.status_code} {text}")
        return response


def auth_token() -> str | None:
    """Ray's token, from the places that Ray documents."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def one_line(messages: list[str]) -> str:
    """The first cause among Serve's messages, which hold whole tracebacks, with its mend."""
    for message in messages:
        if cause := _CAUSE.search(message):
            return _with_mend(cause[1].strip())
    for message in messages:
        if lines := [line.strip() for line in message.splitlines() if line.strip()]:
            exceptions = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
            return _with_mend(_short((exceptions or lines)[-1 if exceptions else 0]))
    return ""


def _with_mend(line: str) -> str:
    """A line that names no mend gets the doctor's, if the doctor knows it."""
    if " -> " in line:
        return line
    reader = Reader()
    reader.read(line.encode())
    causes = reader.report.causes
    return f"{line} -> {causes[0].mend}" if causes else line


def _short(line: str, limit: int = 600) -> str:
    return line if len(line) <= limit else line[:limit] + "..."


def phases_of(applications: list[ApplicationStatus]) -> Iterator[tuple[str, str, Phase | None]]:
    """(application, replica id, phase) of each replica that is starting."""
    for application in applications:
        for replica in application.replicas:
            if replica.state == "STARTING":
                yield application.name, replica.id, replica.phase
