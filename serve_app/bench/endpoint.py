"""What is known of an endpoint before any load: its models, its kind, its versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

_TIMEOUT_S = 10.0
_INFO = re.compile(r"^neuron_serve_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class EndpointError(Exception):
    """Why the endpoint cannot be asked, in one line with the mend."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI endpoint and the model that is asked."""

    url: str
    """Without /v1."""
    model: str
    root: str | None = None
    """Where the server has the model from, if it says so."""
    max_model_len: int | None = None
    vllm: bool = False
    """It is vLLM, which takes ignore_eos, min_tokens and cache_salt."""
    facts: dict[str, str] = field(default_factory=dict)
    """What the server says of itself: vLLM's version, labels of neuron_serve_info."""

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


def look(url: str, model: str | None, key: str | None) -> Endpoint:
    """Ask the endpoint for its models, its version and its metrics.

    Raises:
        EndpointError: nothing answers there, it wants a key, or has not this model.
    """
    base = _base(url)
    session = requests.Session()
    session.trust_env = False  # the load goes straight to the endpoint, and so do these
    if key:
        session.headers["authorization"] = f"Bearer {key}"
    with session:
        found = _chosen(base, model, _models(session, base, model is not None, key))
        version = _json(session, f"{base}/version").get("version")
        facts = dict(_info(_text(session, f"{base}/metrics")))
    if isinstance(version, str):
        facts["server_vllm_version"] = version
    length = found.get("max_model_len")
    return Endpoint(
        url=base,
        model=found["id"],
        root=found.get("root") if isinstance(found.get("root"), str) else None,
        max_model_len=length if isinstance(length, int) and length > 0 else None,
        vllm=isinstance(version, str) or found.get("owned_by") == "vllm",
        facts=facts,
    )


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(f"{url} is no URL of HTTP -> as in http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise EndpointError("the URL holds a password -> a key belongs into OPENAI_API_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _models(
    session: requests.Session, base: str, named: bool, key: str | None
) -> list[dict[str, Any]]:
    try:
        response = session.get(f"{base}/v1/models", timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        raise EndpointError(
            f"nothing answers at {base} ({type(error).__name__}) -> start the server, or give --url"
        ) from None
    if response.status_code in (401, 403):
        state = "does not take the key of" if key else "wants a key -> set"
        raise EndpointError(f"{base} {state} OPENAI_API_KEY")
    if response.status_code == 404 and named:
        return []  # not every endpoint lists its models
    try:
        data = response.json()["data"]
        return [entry for entry in data if isinstance(entry["id"], str)]
    except (ValueError, KeyError, TypeError):
        raise EndpointError(
            f"{base}/v1/models answers {response.status_code} and no list of models -> is it an "
            "OpenAI endpoint? If so, give --model"
        ) from None


def _chosen(base: str, model: str | None, entries: list[dict[str, Any]]) -> dict[str, Any]:
    names = ", ".join(sorted(entry["id"] for entry in entries)) or "none"
    if model is None:
        if len(entries) == 1:
            return entries[0]
        raise EndpointError(f"{base} has several models or none -> choose by --model: {names}")
    for entry in entries:
        if entry["id"] == model:
            return entry
    if entries:
        raise EndpointError(f"{base} has no model {model} -> choose by --model: {names}")
    return {"id": model}


def _json(session: requests.Session, url: str) -> dict[str, Any]:
    try:
        found = session.get(url, timeout=_TIMEOUT_S)
        data = found.json() if found.ok else {}
    except (requests.RequestException, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(session: requests.Session, url: str) -> str:
    try:
        found = session.get(url, timeout=_TIMEOUT_S)
    except requests.RequestException:
        return ""
    return found.text if found.ok else ""


def _info(metrics: str) -> Iterator[tuple[str, str]]:
    """Labels of neuron_serve_info as server_*, of the first one if there are several."""
    if info := _INFO.search(metrics):
        for name, value in _LABEL.findall(info[1]):
            yield f"server_{name}", value
