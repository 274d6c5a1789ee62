"""Rules about the applications of a file together: the front door, and who may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from serve_app.config import Severity
from serve_app.config.findings import did_you_mean
from serve_app.config.serve_file import Application, FrontDoorApplication, ServeFile
from serve_app.preflight.case import Trip, file_rule

_EDGE = "serve_app/edge/haproxy.py: its rules are for paths below /v1"
_OURS = "serve_app/front_door/directory.py"
_RUNTIME_LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


_Kind = TypeVar("_Kind", Application, FrontDoorApplication)


def _places(file: ServeFile, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
    for index, application in enumerate(file.applications):
        if isinstance(application, kind):
            yield f"applications[{index}]", application


def _behind_a_door(file: ServeFile) -> Iterator[tuple[str, Application]]:
    return _places(file, Application) if file.front_doors else iter(())


def _models(file: ServeFile) -> dict[str, list[str]]:
    """The names that each application serves, with its LoRA adapters."""
    found = {}
    for app in file.models:
        given = app.args.engine.get("lora_modules") or []
        adapters = given if isinstance(given, list) else [given]
        names = [name for name in map(_adapter, adapters) if name]
        found[app.name] = [*app.args.model.names, *names]
    return found


def _adapter(module: Any) -> str:
    """The name in an item of `lora_modules`: a mapping, the same as JSON, or `name=path`."""
    if isinstance(module, str) and module.lstrip().startswith("{"):
        try:
            module = json.loads(module)
        except ValueError:
            return ""  # vLLM says what is wrong with it
    if isinstance(module, dict):
        return str(module.get("name") or "")
    return str(module).partition("=")[0]


@file_rule("front-door-prefix", Severity.ERROR, "The front door stands at /", _EDGE)
def prefix(file: ServeFile) -> Iterator[Trip]:
    for place, app in _places(file, FrontDoorApplication):
        if app.route_prefix != "/":
            message = f"the front door stands at {app.route_prefix}"
            yield Trip(message, "set route_prefix: /", f"{place}.route_prefix")


@file_rule(
    "front-door-routes",
    Severity.ERROR,
    "No model's prefix hides a route of the front door",
    "Ray Serve: the longest prefix of a path wins",
)
def routes(file: ServeFile) -> Iterator[Trip]:
    for place, app in _behind_a_door(file):
        first = (app.route_prefix or "").strip("/").partition("/")[0]
        if first in ("v1", "v2", "-", "inference"):
            message = f"{app.route_prefix} hides the front door's /{first}"
            yield Trip(message, f"set route_prefix: /{app.name}", f"{place}.route_prefix")


@file_rule(
    "front-door-upstream",
    Severity.ERROR,
    "The front door finds Serve's own port",
    "Ray Serve: http_options.port",
)
def upstream(file: ServeFile) -> Iterator[Trip]:
    for place, app in _places(file, FrontDoorApplication):
        there = urlsplit(app.args.upstream)
        here = there.hostname in ("localhost", "127.0.0.1", "::1")
        if here and (there.port or 80) != file.http_options.port:
            message = f"Serve listens on port {file.http_options.port}, not {there.port or 80}"
            mend = f"set it to http://127.0.0.1:{file.http_options.port}"
            yield Trip(message, mend, f"{place}.args.upstream")


@file_rule(
    "front-door-weights",
    Severity.ERROR,
    "A canary's shares are those of applications that serve the name",
    f"{_OURS} Directory.target",
)
def weights(file: ServeFile) -> Iterator[Trip]:
    models = _models(file)
    for place, app in _places(file, FrontDoorApplication):
        for name, shares in app.args.weights.items():
            path = f"{place}.args.weights.{name}"
            for other in shares:
                if other not in models:
                    mend = did_you_mean(other, models) or f"it is one of {', '.join(models)}"
                    yield Trip(f"there is no application {other!r}", mend, path)
                elif name not in models[other]:
                    mend = f"add {name!r} to its model.aliases"
                    yield Trip(f"the application {other!r} does not serve {name!r}", mend, path)


@file_rule(
    "front-door-models",
    Severity.WARNING,
    "Names that several applications serve are meant to be shared out",
    f"{_OURS} Directory.target",
)
def shared(file: ServeFile) -> Iterator[Trip]:
    models = _models(file)
    weighted = {name for door in file.front_doors for name in door.args.weights}
    for place, app in _behind_a_door(file):
        name = app.args.model.id
        others = [o for o, names in models.items() if o != app.name and name in names]
        if others and name not in weighted:
            message = f"{others[0]!r} serves {name!r}, too: each takes a share"
            mend = "give each model an id of its own, and the common name as an alias"
            yield Trip(message, mend, f"{place}.args.model.id")


@file_rule(
    "front-door-zero",
    Severity.WARNING,
    "What stands behind a front door keeps a replica",
    "serve_app/deployments/front_door.py: the table has ready applications only",
)
def zero(file: ServeFile) -> Iterator[Trip]:
    for place, app in _behind_a_door(file):
        if app.args.scaling.min_replicas == 0:
            message = f"asking the front door never wakes {app.name!r} from zero replicas"
            mend = f"set it to 1, or wake it by a request to {app.route_prefix}"
            yield Trip(message, mend, f"{place}.args.scaling.min_replicas")


@file_rule(
    "lora-runtime-replicas",
    Severity.WARNING,
    "Adapters that are loaded later reach every replica",
    "vLLM entrypoints/openai/models/serving.py load_lora_adapter: this process only",
)
def runtime_adapters(file: ServeFile) -> Iterator[Trip]:
    for place, app in _places(file, Application):
        most = app.args.scaling.most
        value = app.args.env.get(_RUNTIME_LORA, "")
        if value.strip().lower() in ("1", "true") and most > 1:
            message = f"of up to {most} replicas, only the one that is asked loads an adapter"
            mend = "set scaling.num_replicas: 1, or name the adapters in engine.lora_modules"
            yield Trip(message, mend, f"{place}.args.env.{_RUNTIME_LORA}")


@file_rule(
    "access-alike",
    Severity.WARNING,
    "All applications of a file ask for keys, or none",
    "each replica listens on a port of its own, and enforces its own section",
)
def alike(file: ServeFile) -> Iterator[Trip]:
    with_keys = [app for app in file.applications if app.args.access.keys]
    for index, app in enumerate(file.applications):
        if with_keys and not app.args.access.keys:
            message = f"{with_keys[0].name!r} asks for keys, and {app.name!r} lets everyone in"
            where = f"applications[{index}].args.access"
            yield Trip(message, "write the same section access", where)


@file_rule(
    "access-open",
    Severity.WARNING,
    "What others can reach asks for keys",
    "vLLM and Ray Serve ask nobody who he is",
)
def open_to_all(file: ServeFile) -> Iterator[Trip]:
    host = file.http_options.host
    if is_loopback(host) or any(app.args.access.keys for app in file.applications):
        return
    mend = "set access.keys, or http_options.host: 127.0.0.1"
    yield Trip(f"everyone who reaches {host} may use the models", mend, "http_options.host")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
