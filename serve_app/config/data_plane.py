"""Environment of Ray's processes for the fast data plane: HAProxy, and replicas that answer it."""

from __future__ import annotations

from collections.abc import Mapping

DATA_PLANE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # A replica that dies before the first byte: once more, elsewhere. HAProxy can only repeat
    # what it holds whole before it sends, and what fits its buffer, which is 16 KiB by default:
    # fewer than 5000 tokens of a prompt. Ray has no setting for the former; what stands here
    # goes into its `defaults` section as it is.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 500\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_RETRIES": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 1024),
    # A reload, at each replica that comes or goes, leaves the old HAProxy its streams for 120 s by
    # default (ray/serve/_private/constants.py). An hour is what a load balancer grants at most.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # 0.1 s by default: the controller and the GCS then take 7 % of a core when idle, now 3 %.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray runs its workers at niceness 15; an engine must not give way to its own clients.
    "RAY_worker_niceness": "0",
}
"""On any machine. Where HAProxy itself is, RAY_SERVE_HAPROXY_BINARY_PATH says, an absolute path."""


def data_plane(environment: Mapping[str, str]) -> str:
    """One line: how tokens reach clients, and how to get the fast way."""
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        line = "data plane: HAProxy to the replica (fast)"
        if environment.get("RAY_SERVE_HAPROXY_BINARY_PATH"):
            return line
        return (
            f"{line}, as Ray starts it: it may miss that a client left. "
            "Set RAY_SERVE_HAPROXY_BINARY_PATH to neuron-serve-haproxy's path where Ray starts"
        )
    return (
        "data plane: Ray's Python proxy (slow). For the fast one start with `neuron-serve run`, "
        "or set RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_ENABLE_DIRECT_INGRESS=1 where Ray starts"
    )
