"""From the `args:` of a config file to a Ray Serve application."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from serve_app.backends import EnginePlan, make_plan
from serve_app.config import ConfigError, Finding, Severity, parse_args
from serve_app.deployments.options import deployment_options
from serve_app.deployments.replica import EngineReplica
from serve_app.preflight import check_application


def build_application(args: dict[str, Any]) -> Application:
    """One model, one deployment, whose replicas are the application's ingress.

    Raises:
        ConfigError: the arguments break the schema or a pre-flight rule.
    """
    typed = parse_args(args)
    errors = [f for f in check_application(typed) if f.severity is Severity.ERROR]
    if errors:
        raise ConfigError(finding.under("args") for finding in errors)
    plan = make_plan(typed)
    _check_cores(plan)
    options = deployment_options(typed, plan)
    return serve.deployment(EngineReplica).options(**options).bind(args)


def _check_cores(plan: EnginePlan) -> None:
    """On one machine of its own a missing core never comes, and Serve would wait for it."""
    if plan.target is None or not ray.is_initialized():
        return
    if "KUBERNETES_SERVICE_HOST" in os.environ or len(ray.nodes()) > 1:
        return  # nodes with cores may still join
    there = ray.cluster_resources().get("neuron_cores", 0.0)
    if there < plan.target.cores:
        message = f"a replica needs {plan.target.cores} NeuronCores and this machine has {there:g}"
        mend = (
            f"run it on {plan.target.instance.name}, or try the file without a chip: "
            "neuron-serve run --rehearse"
        )
        raise ConfigError([Finding("cores", Severity.ERROR, message, mend, "args.instance")])
