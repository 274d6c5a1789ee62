"""How long a worker pod may take to end, as one sum.

    t=0                         the pod is deleted; preStop runs `neuron-serve drain-node`
    .. REPLACEMENT_S            the replica still serves while another starts elsewhere
    .. + drain_timeout_s        it is told to stop, and its streams finish
    .. + SLACK_S                Serve notices, the node's proxy goes: end of the hook's time
    .. + RAY_STOP_S             SIGTERM: Ray itself ends
    = terminationGracePeriodSeconds

What is not needed is not waited for: a pod whose replica has moved, or never had one, ends at
once after the 30 s in which Ray lets load balancers forget it.
"""

from __future__ import annotations

import math

REPLACEMENT_S = 300
"""A new node, its image, a load of weights. The cluster autoscaler grants 600 in all."""
SLACK_S = 20
"""The request itself, of which Ray counts from its end, and the ways through Serve's loops."""
RAY_STOP_S = 15
_LEAST_DRAIN_S = 35
"""Serve raises a smaller graceful_shutdown_timeout_s of an ingress to its draining period of 30 s
(RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S) and 5 s more."""


def hook_timeout_s(drain_timeout_s: float) -> int:
    """What `neuron-serve drain-node --timeout` is given, for the pod's longest drain."""
    return REPLACEMENT_S + math.ceil(max(drain_timeout_s, _LEAST_DRAIN_S)) + SLACK_S


def grace_period_s(drain_timeout_s: float) -> int:
    """terminationGracePeriodSeconds of a worker pod; `drain_timeout_s` as in `health`."""
    return hook_timeout_s(drain_timeout_s) + RAY_STOP_S
