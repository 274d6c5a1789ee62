"""Every query of every board and alert, asked of a Prometheus that scrapes a stack under load."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.observability.alert import as_prometheus
from serve_app.observability.boards import BOARDS
from serve_app.observability.rules import GROUPS, RULES
from serve_app.observability.scrape import HAPROXY_PORT, NEURON_PORT, prometheus
from tests.prometheus import Prometheus
from tests.serving.conftest import free_port
from tests.serving.door import Door, chat, completion
from tests.serving.neuron_monitor import NeuronMonitor

WITHOUT_DATA: dict[str, str] = {}
"""Queries that return nothing here -> why. None so far."""
ONLY_ON_KUBERNETES = {"rayservice"}
"""Labels that the scrape adds there (manifests/components/monitoring.py)."""
PATIENCE_S = 90


@pytest.fixture
def monitor() -> Iterator[tuple[NeuronMonitor, int]]:
    port = free_port()
    made = NeuronMonitor(port)
    yield made, port
    made.close()


def asked() -> dict[str, str]:
    """Every query by where it stands, as Grafana would send it with all choices at All."""
    queries = {
        f"{name} / {panel.title} / {query.legend or '-'}": query.expr
        for name, board in BOARDS.items()
        for panel in board.panels
        for query in panel.queries
    }
    for rule in RULES.values():
        queries |= {f"{rule.name} / {i}": when.value for i, when in enumerate(rule.when)}
    return {name: as_sent(expr) for name, expr in queries.items()}


def as_sent(expr: str) -> str:
    return re.sub(r"\$[a-z]\w*", ".*", expr.replace("$__rate_interval", "1m"))


def quick(door: Door, neuron_port: int, directory: Path) -> dict[str, Any]:
    """The configuration that is shipped, with these ports and a shorter interval."""
    ports = {HAPROXY_PORT: door.stack.metrics_port, NEURON_PORT: neuron_port}
    config = prometheus()
    text = yaml.safe_dump(config["scrape_configs"])
    for usual, here in ports.items():
        assert f":{usual}" in text
        text = text.replace(f":{usual}", f":{here}")
    (directory / "rules.yaml").write_text(yaml.safe_dump(as_prometheus(GROUPS)))
    interval = {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "5s"}
    return config | {"global": interval, "scrape_configs": yaml.safe_load(text)}


@contextmanager
def load(door: Door) -> Iterator[None]:
    """Requests of each kind, now and then, until the end."""
    over = threading.Event()

    def repeat(ask: Callable[[httpx.Client, int], Any]) -> None:
        with httpx.Client(base_url=door.url, timeout=60, verify=False) as client:
            turn = 0
            while not over.wait(0.3):
                turn += 1
                with suppress(httpx.HTTPError):
                    ask(client, turn)

    def talk(model: str) -> Callable[[httpx.Client, int], Any]:
        def ask(client: httpx.Client, turn: int) -> None:
            body = chat(model, f"What is TTFT, {turn}?", stream=turn % 2 == 0)
            client.post("/v1/chat/completions", json=body, headers=door.headers())

        return ask

    def others(client: httpx.Client, turn: int) -> None:
        ask = {"path": "/v1/completions", "headers": door.headers()}
        several = completion("demo-pair", 4, turn, max_tokens=2, n=2)
        refused = completion("demo-blue", 4, turn, max_tokens=600)
        client.post(ask["path"], json=several, headers=ask["headers"])  # prefill cannot split it
        client.post(ask["path"], json=refused, headers=door.headers("few-tokens"))
        client.post(ask["path"], json={"model": "nobody"}, headers=ask["headers"])
        client.get("/v1/models", headers=ask["headers"])

    asks = [*map(talk, ("demo-blue", "demo-green", "demo-pair")), others]
    threads = [threading.Thread(target=repeat, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.timeout(400)
def test_every_query_returns_data(
    door: Door, monitor: tuple[NeuronMonitor, int], tmp_path: Path
) -> None:
    exporter, port = monitor
    queries = asked()
    waiting = set(queries) - WITHOUT_DATA.keys()
    server = Prometheus(tmp_path, quick(door, port, tmp_path), free_port())
    try:
        with load(door):
            deadline = time.monotonic() + PATIENCE_S
            while waiting and time.monotonic() < deadline:
                time.sleep(2)
                exporter.report()
                waiting -= {name for name in waiting if server.values(queries[name])}
        print(f"{len(queries)} queries, {len(queries) - len(waiting)} with data")
        assert not waiting, "\n".join(f"{name}: {queries[name]}" for name in sorted(waiting))
        assert not [name for name in WITHOUT_DATA if server.values(queries[name])]
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(RULES, "ok")
        for board in BOARDS.values():
            for variable in board.variables:
                found = server.get(f"label/{variable.label}/values", **{"match[]": variable.metric})
                assert found or variable.label in ONLY_ON_KUBERNETES, variable
    finally:
        server.close()
