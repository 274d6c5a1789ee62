"""From the `args:` of a config file to a Ray Serve application."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from serve_app.backends import make_plan
from serve_app.config import ConfigError, Severity, parse_args
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
    options = deployment_options(typed, plan)
    return serve.deployment(EngineReplica).options(**options).bind(args)
