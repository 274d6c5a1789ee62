"""Ray Serve's options of the engine deployment, as plain data: no ray is imported here."""

from __future__ import annotations

from typing import Any

from serve_app.backends import EnginePlan
from serve_app.config import AppArgs, FrontDoorArgs, Scaling
from serve_app.config.serve_file import ENGINE, FRONT_DOOR, PREFILL

# Serve calls a replica unhealthy after 3 checks in a row have failed.
_HEALTH_CHECK_PERIOD_S = 5.0
_HEALTH_CHECK_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 1.0
# One event loop in the replica: a second one costs a hop between threads per token.
_RUNTIME_ENV = {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}
_RELAYED = 1000
"""Requests that a replica of the front door relays at a time, unless limits say otherwise."""
PREFILL_ROUTER = "serve_app.deployments.prefill_router:PrefillRouter"


def deployment_options(args: AppArgs, plan: EnginePlan, name: str = ENGINE) -> dict[str, Any]:
    """Options for `serve.deployment`; `deployments:` of the config file overrides them."""
    seqs = plan.max_num_seqs
    scaling = args.scaling
    options: dict[str, Any] = {
        "name": name,
        "ray_actor_options": {
            **plan.actor_options,
            "runtime_env": _RUNTIME_ENV,
        },
        "max_ongoing_requests": args.limits.max_ongoing_requests or 2 * seqs,
        "max_queued_requests": _given(args.limits.max_queued_requests, 2 * seqs),
        "backpressure_config": {"status_code": 503, "retry_after_s": _RETRY_AFTER_S},
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": args.health.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": args.startup.attempts,
    }
    if name == PREFILL:
        options |= {
            # Decode replicas bound what waits here by their own limits, and each by a deadline.
            "max_queued_requests": _given(args.limits.max_queued_requests, -1),
            "request_router_config": {"request_router_class": PREFILL_ROUTER},
        }
        del options["backpressure_config"]
    return options | _replicas(scaling, seqs)


def front_door_options(args: FrontDoorArgs) -> dict[str, Any]:
    """Options for `serve.deployment` of the front door."""
    relayed = args.limits.max_ongoing_requests or _RELAYED
    options = {
        "name": FRONT_DOOR,
        # HAProxy fetches the table every second.
        "logging_config": {"enable_access_log": False},
        "ray_actor_options": {"num_cpus": 0.1, "runtime_env": _RUNTIME_ENV},
        "max_ongoing_requests": relayed,
        "max_queued_requests": _given(args.limits.max_queued_requests, relayed),
        "backpressure_config": {"status_code": 503, "retry_after_s": _RETRY_AFTER_S},
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": 120.0,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    return options | _replicas(args.scaling, relayed)


def _replicas(scaling: Scaling, requests: int) -> dict[str, Any]:
    """How many; `requests`: what one replica does best at a time."""
    if not scaling.autoscaling:
        return {"num_replicas": scaling.num_replicas or 1}
    return {
        "autoscaling_config": {
            "min_replicas": _given(scaling.min_replicas, 1),
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests or float(requests),
        }
    }


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
