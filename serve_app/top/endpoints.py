"""Where metrics are, and how they are fetched."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests

DEFAULT = "http://127.0.0.1:8080/metrics"
"""Ray's port in the pods (serve_app/manifests/pod.py), after `kubectl port-forward`."""
_TIMEOUT_S = (3.0, 10.0)
"""To connect, and between two parts of the answer: a busy node takes seconds."""
_WHOLE_S = 20.0
_MOST_BYTES = 1 << 28


class NoMetrics(Exception):
    """An endpoint does not answer, or with something else. A few words."""


def url_of(text: str) -> str:
    """`8080`, `host:8080`, `host:8080/path` and whole URLs. Raises ValueError with one line."""
    whole = text if "://" in text else f"http://127.0.0.1:{text}" if text.isdigit() else ""
    try:
        parts = urlsplit(whole or f"http://{text}")
        known = parts.scheme in ("http", "https") and parts.hostname and " " not in text
        if not known or (parts.port is None and "://" not in text):
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is no endpoint -> host:port or http://host:port/path") from None
    return parts._replace(path="/metrics").geturl() if parts.path in ("", "/") else parts.geturl()


def discovered() -> list[str]:
    """Endpoints of the nodes of the Ray that ran here last, from the file that Ray writes for
    Prometheus (ray/_private/metrics_agent.py, PrometheusServiceDiscoveryWriter)."""
    temp = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        groups = json.loads((Path(temp) / "ray/prom_metrics_service_discovery.json").read_text())
        return [url_of(target) for group in groups for target in group["targets"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def fetch(url: str) -> str:
    """The page; raises NoMetrics."""
    begin, parts, size = time.monotonic(), [], 0
    session = requests.Session()
    session.trust_env = False  # a proxy of the environment is for the world outside
    try:
        with session, session.get(url, timeout=_TIMEOUT_S, stream=True) as answer:
            if answer.status_code != 200:
                raise NoMetrics(f"status {answer.status_code}")
            for part in answer.iter_content(1 << 18):
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES or time.monotonic() - begin > _WHOLE_S:
                    raise NoMetrics("an answer without an end")
    except requests.Timeout:
        raise NoMetrics("timed out") from None
    except requests.ConnectionError:
        raise NoMetrics("no connection") from None
    except requests.RequestException as error:
        raise NoMetrics(type(error).__name__) from None
    return b"".join(parts).decode(errors="replace")
