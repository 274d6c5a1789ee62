"""From the `args:` of a config file to a Ray Serve application."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from serve_app.backends import EnginePlan, engines, make_plan
from serve_app.config import ConfigError, Finding, Severity, parse_args, parse_front_door_args
from serve_app.config.serve_file import DECODE, ENGINE, PREFILL
from serve_app.deployments.front_door import FrontDoorReplica
from serve_app.deployments.options import deployment_options, front_door_options
from serve_app.deployments.replica import EngineReplica, PrefillReplica
from serve_app.preflight import check_application


def build_application(args: dict[str, Any]) -> Application:
    """One model, one deployment, whose replicas are the application's ingress.

    With a `prefill` section: two, of which the decode replicas are the ingress.

    Raises:
        ConfigError: the arguments break the schema or a pre-flight rule.
    """
    typed = parse_args(args)
    errors = [f for f in check_application(typed) if f.severity is Severity.ERROR]
    if errors:
        raise ConfigError(finding.under("args") for finding in errors)
    parts = engines(typed)
    plans = {name: make_plan(part) for name, part in parts.items()}
    _check_cores(plans.values())
    options = {name: deployment_options(parts[name], plan, name) for name, plan in plans.items()}
    if typed.prefill is None:
        return serve.deployment(EngineReplica).options(**options[ENGINE]).bind(args)
    prefill = serve.deployment(PrefillReplica).options(**options[PREFILL]).bind(args)
    return serve.deployment(EngineReplica).options(**options[DECODE]).bind(args, prefill)


def build_front_door_application(args: dict[str, Any]) -> Application:
    """The front door, one deployment.

    Raises:
        ConfigError: the arguments break the schema.
    """
    options = front_door_options(parse_front_door_args(args))
    return serve.deployment(FrontDoorReplica).options(**options).bind(args)


def _check_cores(plans: Iterable[EnginePlan]) -> None:
    """On one machine of its own a missing core never comes, and Serve would wait for it."""
    targets = [plan.target for plan in plans if plan.target is not None]
    if not targets or not ray.is_initialized():
        return
    if "KUBERNETES_SERVICE_HOST" in os.environ or len(ray.nodes()) > 1:
        return  # nodes with cores may still join
    there = ray.cluster_resources().get("neuron_cores", 0.0)
    needed = sum(target.cores for target in targets)
    if there < needed:
        what = "a replica needs" if len(targets) == 1 else "a prefill and a decode replica need"
        message = f"{what} {needed} NeuronCores and this machine has {there:g}"
        mend = (
            f"run it on {targets[0].instance.name}, or try the file without a chip: "
            "neuron-serve run --rehearse"
        )
        raise ConfigError([Finding("cores", Severity.ERROR, message, mend, "args.instance")])
