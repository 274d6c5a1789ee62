"""The way in: HAProxy, the front door, keys and quotas.

HAProxy's names: its own exporter (haproxy/addons/promex). Ray calls a backend `http-APPLICATION`.
"""

from __future__ import annotations

from serve_app.observability.board import (
    APPLICATION,
    APPLICATIONS,
    RATE,
    RAYSERVICE,
    SERVICE,
    Board,
    Panel,
    Query,
)

_IN = f'{SERVICE}, proxy="http_frontend"'
_BACKENDS = f'{SERVICE}, proxy=~"http-($application)"'


def _of_backends(how: str, metric: str, after: str = "", legend: str = "{{proxy}}") -> Query:
    value = f"haproxy_backend_{metric}{{{_BACKENDS}}}"
    return Query(f"{how} by (proxy) ({f'rate({value}{RATE})' if not after else value})", legend)


_NOW = "now"

_WAY_IN = (
    Panel(
        "Answers by class",
        "5xx: which backend, below; 4xx: clients, see the answers by status.",
        "reqps",
        (
            Query(
                f"sum by (code) (rate(haproxy_frontend_http_responses_total{{{_IN}}}{RATE}))",
                "{{code}}",
            ),
        ),
    ),
    Panel(
        "Clients connected",
        "At the limit of connections new clients wait: more heads, or longer-lived clients.",
        "short",
        (
            Query(
                f"sum by (instance) (haproxy_frontend_current_sessions{{{_IN}}})", "{{instance}}"
            ),
            Query(
                f"sum by (instance) (haproxy_frontend_limit_sessions{{{_IN}}})",
                "{{instance}} limit",
            ),
        ),
    ),
    Panel(
        "Answers by status",
        "401, 403: keys; 404: a model's name; 429: quotas; 499: clients that left.",
        "reqps",
        (
            Query(
                "sum by (application, status_code) "
                f"(rate(ray_serve_num_http_requests_total{{{APPLICATION}}}{RATE}))",
                "{{application}} {{status_code}}",
            ),
        ),
    ),
)
_DOOR = (
    Panel(
        "What the front door itself answered",
        "`relayed` is what HAProxy did not route: many mean that its rules are missing; `failed`: "
        "its log.",
        "reqps",
        (
            Query(
                "sum by (outcome) (rate(ray_neuron_serve_front_door_requests_total"
                f"{{{SERVICE}}}{RATE}))",
                "{{outcome}}",
            ),
        ),
    ),
    Panel(
        "Models behind it",
        "`loading` for longer than a start: `neuron-serve status` tells the phase.",
        "short",
        (Query(f"max by (state) (ray_neuron_serve_front_door_models{{{SERVICE}}})", "{{state}}"),),
    ),
    Panel(
        "HAProxy's servers differ from Serve's",
        "Above 0 for minutes: requests go to replicas that are gone; Serve's controller log.",
        "short",
        (
            Query(
                f"max by (node_id) (ray_serve_haproxy_target_mismatch{{{SERVICE}}})",
                "{{node_id}}",
            ),
        ),
    ),
)
_APPLICATIONS = (
    Panel(
        "Requests",
        "One application without any: its replicas are down, or nobody asks.",
        "reqps",
        (_of_backends("sum", "http_requests_total"),),
    ),
    Panel(
        "Replicas that take requests",
        "0 is an outage of this application: `neuron-serve status`.",
        "short",
        (_of_backends("max", "active_servers", _NOW),),
    ),
    Panel(
        "Time to the answer's first byte, average of the last 1024",
        "Not streamed answers count whole: compare with the serving board.",
        "s",
        (_of_backends("max", "response_time_average_seconds", _NOW),),
    ),
    Panel(
        "Requests under way, and those that wait in HAProxy",
        "Waiting here is rare: every replica is at `max_ongoing_requests`.",
        "short",
        (
            _of_backends("sum", "current_sessions", _NOW),
            _of_backends("sum", "current_queue", _NOW, "{{proxy}} waiting"),
        ),
    ),
    Panel(
        "Answers by class, per application",
        "5xx of one application only: its replica's log.",
        "reqps",
        (
            Query(
                "sum by (proxy, code) "
                f"(rate(haproxy_backend_http_responses_total{{{_BACKENDS}}}{RATE}))",
                "{{proxy}} {{code}}",
            ),
        ),
    ),
    Panel(
        "Tries again, and connections that failed",
        "Each is a replica that died or did not listen; many: look at the restarts.",
        "ops",
        (
            _of_backends("sum", "retry_warnings_total", legend="{{proxy}} tried again"),
            _of_backends("sum", "connection_errors_total", legend="{{proxy}} failed"),
        ),
    ),
)
_KEYS = (
    Panel(
        "Requests, by key",
        "One key far above the others: give it a quota.",
        "reqps",
        (
            Query(
                "sum by (key, status) "
                f"(rate(ray_neuron_serve_requests_total{{{APPLICATION}}}{RATE}))",
                "{{key}} {{status}}",
            ),
        ),
    ),
    Panel(
        "Tokens, by key",
        "What a key costs: prompts and answers are counted apart.",
        "short",
        (
            Query(
                f"sum by (key, kind) (rate(ray_neuron_serve_tokens_total{{{APPLICATION}}}{RATE}))",
                "{{key}} {{kind}}",
            ),
        ),
    ),
    Panel(
        "Refused by quotas, by key",
        "Raise the quota, or tell its owner to heed `retry-after`.",
        "reqps",
        (
            Query(
                "sum by (key, what) "
                f"(rate(ray_neuron_serve_refusals_total{{{APPLICATION}}}{RATE}))",
                "{{key}} {{what}}",
            ),
        ),
    ),
)

BOARD = Board(
    "neuron-serve-front-door",
    "neuron-serve: front door",
    "The way in: HAProxy, the front door, keys and quotas.",
    (RAYSERVICE, APPLICATIONS),
    (
        ("The way in", _WAY_IN),
        ("Front door", _DOOR),
        ("Applications", _APPLICATIONS),
        ("Keys", _KEYS),
    ),
)
