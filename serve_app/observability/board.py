"""A Grafana board as data, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 41
"""Of Grafana 11.6 and 12; newer ones migrate it (grafana, public/app/features/dashboard/state)."""
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHT = {"stat": 5, "table": 6, "timeseries": 8}

SERVICE = 'rayservice=~"$rayservice"'
"""Selects series of one RayService; all of a machine without Kubernetes, where nothing has it."""
APPLICATION = f'{SERVICE}, application=~"$application"'
MODEL = f'{APPLICATION}, model_name=~"$model_name"'
RATE = "[$__rate_interval]"

Kind = Literal["timeseries", "stat", "table"]


@dataclass(frozen=True)
class Query:
    """PromQL, and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    description: str
    """One sentence: what to do when it looks bad."""
    unit: str
    """Grafana's name of it: s, reqps, percentunit (1 = 100 %), bytes, short ..."""
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    """Of 24 columns."""


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a board: the values of a label of a metric. All is the default, and
    takes in series without the label."""

    name: str
    title: str
    metric: str
    label: str

    @property
    def query(self) -> str:
        return f"label_values({self.metric}, {self.label})"


@dataclass(frozen=True)
class Board:
    """One page."""

    uid: str
    """Of links and bookmarks: never changed."""
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    """Heading and panels."""

    @property
    def panels(self) -> Iterator[Panel]:
        return (panel for _, panels in self.rows for panel in panels)


RAYSERVICE = Variable("rayservice", "RayService", "ray_serve_deployment_status", "rayservice")
APPLICATIONS = Variable("application", "Application", "ray_serve_deployment_status", "application")
MODELS = Variable("model_name", "Model", "ray_vllm_num_requests_running", "model_name")


def quantiles(
    metric: str, where: str, by: str, legend: str, *of: float, rate: str = RATE
) -> tuple[Query, ...]:
    """Quantiles of a histogram, by these labels."""
    return tuple(
        Query(
            f"histogram_quantile({q:g}, "
            f"sum by (le, {by}) (rate({metric}_bucket{{{where}}}{rate})))",
            f"{legend} p{q * 100:g}",
        )
        for q in of
    )


def as_json(board: Board) -> dict[str, Any]:
    """What Grafana imports and provisions."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["neuron-serve"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [_others()],
        "templating": {"list": [_datasource(), *map(_variable, board.variables)]},
        "panels": list(_panels(board)),
    }


def _panels(board: Board) -> Iterator[dict[str, Any]]:
    number = y = 0
    for heading, panels in board.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": heading,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
        }
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            height = _HEIGHT[panel.kind]
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            x, tallest = x + panel.width, max(tallest, height)
        y += tallest


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0} if panel.kind != "table" else {},
            "overrides": [],
        },
        "options": _OPTIONS[panel.kind],
        "targets": list(_targets(panel.queries, panel.kind)),
    }


def _targets(queries: Sequence[Query], kind: Kind) -> Iterator[dict[str, Any]]:
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        yield {
            "refId": letter,
            "datasource": _DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": "table" if kind == "table" else "time_series",
            "instant": kind != "timeseries",
            "range": kind == "timeseries",
        }


_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "none",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value_and_name",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # when the time range changes: models come and go
        "sort": 1,
        "hide": 0,
    }


def _others() -> dict[str, Any]:
    return {
        "title": "neuron-serve",
        "type": "dashboards",
        "tags": ["neuron-serve"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
