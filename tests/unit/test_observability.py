"""Boards, alerts and scrape configurations: well formed, and what is said of them is so."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli.dashboards import files
from serve_app.cli.main import app
from serve_app.manifests.components import cloudwatch as component_cloudwatch
from serve_app.manifests.components import dashboards as component
from serve_app.manifests.lint import lint
from serve_app.manifests.pod import PORTS
from serve_app.observability import cloudwatch
from serve_app.observability.alert import DOCS, as_prometheus, as_table
from serve_app.observability.board import Board, as_json
from serve_app.observability.boards import BOARDS
from serve_app.observability.objective import TARGET_S
from serve_app.observability.rules import GROUPS, RULES
from serve_app.observability.scrape import HAPROXY_PORT, NEURON_PORT, RAY_TARGETS, prometheus
from tests.prometheus import program

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs/observability.md"
CASES = Path(__file__).parent / "data/alerts.yaml"
NAMES = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def queries() -> dict[str, str]:
    return {
        f"{name} {panel.title} {i}": re.sub(
            r"\$[a-z]\w*", ".*", query.expr.replace("$__rate_interval", "1m")
        )
        for name, board in BOARDS.items()
        for panel in board.panels
        for i, query in enumerate(panel.queries)
    }


def selectors(exprs: Iterable[str]) -> set[str]:
    """Names of metrics in PromQL."""
    text = re.sub(r"\b(?:by|on) \([^)]*\)", "", " ".join(exprs))
    starts = "ray|haproxy|neuron|neuroncore|execution|hardware|system"
    return set(re.findall(rf"\b((?:{starts})_\w+)\b(?=[{{)\[ ]|$)", text))


@NAMES
def test_a_board_is_what_grafana_takes(board: Board) -> None:
    made = as_json(board)
    assert json.loads(json.dumps(made)) == made
    assert re.fullmatch(r"[a-z-]{1,40}", made["uid"])
    panels = made["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    choices = {each["name"] for each in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(panels)))
    assert used - {"__rate_interval"} == choices
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"].endswith((".", "?"))
        assert 1 <= len(panel["targets"]) <= 8
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["expr"] for target in panel["targets"])
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@NAMES
def test_a_board_is_of_grafanas_own_schema(board: Board) -> None:
    """Grafana's generated classes keep what they know: nothing of ours may be lost or changed."""
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    grafana = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    made = as_json(board)
    read = json.loads(encoder().encode(grafana.Dashboard.from_json(made)))
    assert lost(made, read) == []


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Paths of what is not the same after it went through their classes."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [p for key in ours for p in lost(ours[key], theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        both = zip(ours, theirs, strict=True)
        return [p for i, (a, b) in enumerate(both) for p in lost(a, b, f"{path}[{i}]")]
    # They leave out what is empty.
    return [] if ours == theirs or (not ours and theirs is None) else [path]


def test_boards_have_uids_of_their_own_and_four_topics() -> None:
    assert list(BOARDS) == ["serving", "disaggregation", "neuron", "front-door"]
    assert len({board.uid for board in BOARDS.values()}) == 4


def test_every_query_parses(tmp_path: Path) -> None:
    tool = program("promtool")
    records = [{"record": "x", "expr": e, "labels": {"n": n}} for n, e in queries().items()]
    values = [when.value for rule in RULES.values() for when in rule.when]
    records += [{"record": "y", "expr": e, "labels": {"n": str(i)}} for i, e in enumerate(values)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}))
    done = subprocess.run([tool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(records)} rules found" in done.stdout
    file.write_text(file.read_text().replace("sum by", "sum bye", 1))
    broken = subprocess.run([tool, "check", "rules", file], capture_output=True, text=True)
    assert broken.returncode != 0


def test_each_alert_fires_and_is_silent_when_all_is_well(tmp_path: Path) -> None:
    tool = program("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(as_prometheus(GROUPS)))
    (tmp_path / "alerts.yaml").write_text(CASES.read_text())
    command = [tool, "test", "rules", tmp_path / "alerts.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_a_healthy_one() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    healthy = cases[0]
    assert healthy["name"] == "healthy"
    assert all(test["exp_samples"] == [] for test in healthy["promql_expr_test"])
    series = " ".join(each["series"] for each in healthy["input_series"])
    fires = [c["name"] for c in cases if any(t["exp_samples"] for t in c["promql_expr_test"])]
    for name, rule in RULES.items():
        assert any(case.startswith(name) for case in fires), name
        metrics = selectors(when.value for when in rule.when)
        assert metrics
        assert all(f"{metric}{{" in series for metric in metrics), (name, metrics)


def test_an_alert_says_what_to_do() -> None:
    rules = [rule for group in as_prometheus(GROUPS)["groups"] for rule in group["rules"]]
    assert [rule["alert"] for rule in rules] == list(RULES)
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        page, _, anchor = rule["annotations"]["runbook_url"].removeprefix(f"{DOCS}/").partition("#")
        headings = re.findall(r"^#+ (.*)", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert {"TTFTBurnRate", "QueueGrowth", "EngineDead", "RestartLoop", "KVCacheFull"} <= {
        re.sub("^NeuronServe|Fast$", "", name) for name in RULES
    }


def test_the_target_is_a_bucket_of_vllms() -> None:
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.submodule_search_locations is not None
    text = (Path(vllm.submodule_search_locations[0]) / "v1/metrics/loggers.py").read_text()
    histogram = text[text.index('"vllm:time_to_first_token_seconds"') :]
    buckets = histogram[: histogram.index("]")]
    assert re.search(rf"\b{re.escape(str(TARGET_S))},", buckets)


def test_the_components_are_valid() -> None:
    objects = [
        thing
        for module in (component, component_cloudwatch)
        for file in module.files()
        for thing in file.objects
    ]
    assert (
        list(map(str, lint([thing for thing in objects if thing["kind"] != "Kustomization"]))) == []
    )
    maps = [
        t
        for t in objects
        if t["kind"] == "ConfigMap" and t["metadata"]["namespace"] == "monitoring"
    ]
    assert len(maps) == 4
    for thing in maps:
        assert thing["metadata"]["labels"]["grafana_dashboard"] == "1"
        # `kubectl apply` keeps a copy in an annotation.
        assert len(json.dumps(thing)) < 256 * 1024
    (rules,) = (thing for thing in objects if thing["kind"] == "PrometheusRule")
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    rules["spec"]["groups"][0]["rules"][0]["for"] = "soon"
    assert lint([rules])  # its schema is looked at


def test_the_golden_files_are_fresh() -> None:
    made = [*component.files(), *component_cloudwatch.files()]
    assert len(made) == 9
    for file in made:
        there = (ROOT / "kuberay" / file.path).read_text()
        assert there == file.text(), f"{file.path} -> scripts/update_manifests.sh"


def test_the_command_writes_what_prometheus_and_grafana_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dashboards", "--out", str(tmp_path / "all")])
    assert result.exit_code == 0, result.output
    written = {str(p.relative_to(tmp_path / "all")) for p in tmp_path.rglob("*.*")}
    assert written == {name for name, _ in files()}
    assert len(written) == 8
    tool = program("promtool")
    for name in ("prometheus.yml", "cloudwatch/prometheus.yaml"):
        command = [tool, "check", "config", tmp_path / "all" / name]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["dashboards", "--out", str(tmp_path / "file/below")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "-> --out" in result.stderr


def test_ports_are_those_that_serve() -> None:
    assert PORTS["haproxy-metrics"] == HAPROXY_PORT
    assert NEURON_PORT not in PORTS.values()
    ray = prometheus()["scrape_configs"][0]
    assert ray["file_sd_configs"] == [{"files": [RAY_TARGETS]}]


# Of amazon-cloudwatch-agent translator/config/schema.json (01c5802), what we use of it.
AGENT_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "agent": {"type": "object"},
        "logs": {
            "type": "object",
            "additionalProperties": False,
            "required": ["metrics_collected"],
            "properties": {
                "force_flush_interval": {"type": "integer", "minimum": 1, "maximum": 172800},
                "metrics_collected": {
                    "properties": {
                        "prometheus": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "cluster_name": {"type": "string"},
                                "log_group_name": {"type": "string"},
                                "prometheus_config_path": {"type": "string"},
                                "emf_processor": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "metric_declaration_dedup": {"type": "boolean"},
                                        "metric_namespace": {"type": "string"},
                                        "metric_unit": {
                                            "type": "object",
                                            "additionalProperties": {"type": "string"},
                                        },
                                        "metric_declaration": {
                                            "type": "array",
                                            "items": {
                                                "type": "object",
                                                "additionalProperties": False,
                                                "properties": {
                                                    name: {"type": "array"}
                                                    for name in (
                                                        "source_labels",
                                                        "metric_selectors",
                                                        "dimensions",
                                                    )
                                                }
                                                | {"label_matcher": {"type": "string"}},
                                            },
                                        },
                                    },
                                },
                            },
                        }
                    }
                },
            },
        },
    },
}


def test_the_cloudwatch_agent_takes_its_configuration() -> None:
    made = cloudwatch.agent()
    jsonschema.validate(made, AGENT_SCHEMA)
    processor = made["logs"]["metrics_collected"]["prometheus"]["emf_processor"]
    # API_MetricDatum: units of CloudWatch; PutMetricData: at most 30 dimensions.
    assert set(processor["metric_unit"].values()) <= {"Count", "Seconds", "Bytes", "None"}
    assert all(len(d) <= 30 for one in processor["metric_declaration"] for d in one["dimensions"])
    keep = cloudwatch.scrape()["scrape_configs"][0]["metric_relabel_configs"][0]["regex"]
    boards = selectors([*queries().values(), *(r.expr for r in RULES.values())])
    for name in cloudwatch.METRICS:
        assert re.fullmatch(keep, name)
        assert not name.endswith("_bucket")  # histograms are dropped
        assert name in boards | {f"{b.removesuffix('_count')}_sum" for b in boards}, name


def test_the_page_has_every_alert_board_and_file() -> None:
    text = DOC.read_text()
    assert as_table(RULES.values()) in text, as_table(RULES.values())
    for board in BOARDS.values():
        assert board.title in text
    for name, _ in files():
        assert name.rpartition("/")[2] in text
    assert str(NEURON_PORT) in text
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOC.parent / target).exists(), target
    assert "(docs/observability.md)" in (ROOT / "README.md").read_text()
