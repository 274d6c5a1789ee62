"""Rules about the applications of a file together, and what the sections say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import ConfigError, Finding, Severity, load
from serve_app.config.serve_file import ServeFile
from serve_app.preflight import check_document
from serve_app.preflight.case import RULES

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
Data = dict[str, Any]
KEYS = {"keys": "keys.yaml"}


def model(name: str, id: str = "", prefix: str = "", **args: Any) -> Data:
    """An application; `lora` are its adapters, `aliases` further names."""
    engine: Data = {"max_model_len": 1024}
    if lora := args.pop("lora", None):
        engine |= {"enable_lora": True, "lora_modules": lora}
    section: Data = {"id": id or name, "source": "builtin:demo"}
    if aliases := args.pop("aliases", None):
        section["aliases"] = aliases
    return {
        "name": name,
        "route_prefix": prefix or f"/{name}",
        "import_path": "serve_app:build_app",
        "args": {"backend": "cpu", "model": section, "engine": engine, **args},
    }


def door(prefix: str = "/", **args: Any) -> Data:
    return {
        "name": "front-door",
        "route_prefix": prefix,
        "import_path": "serve_app:build_front_door",
        "args": args,
    }


def written(folder: Path, applications: list[Data], http: Data | None = None) -> Path:
    path = folder / "c.yaml"
    data = {"http_options": {"host": "127.0.0.1", **(http or {})}, "applications": applications}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def check(folder: Path, applications: list[Data], http: Data | None = None) -> list[Finding]:
    """What is said beside notes."""
    found = check_document(load(written(folder, applications, http)), {})
    return [finding for finding in found if finding.severity is not NOTE]


SHARES = {"x": {"a": 0.9, "b": 0.1}}
TWO = [model("a", aliases=["x"]), model("b", aliases=["x"])]
OPEN: Data = {"host": "0.0.0.0"}

TRIPS: list[tuple[str, str, list[Data], Data]] = [
    ("front-door-prefix", "[0].route_prefix", [door("/all"), model("a")], {}),
    ("front-door-routes", "[1].route_prefix", [door(), model("a", prefix="/v1")], {}),
    ("front-door-routes", "[1].route_prefix", [door(), model("a", prefix="/-/a")], {}),
    ("front-door-routes", "[1].route_prefix", [door(), model("a", prefix="/inference")], {}),
    ("front-door-upstream", "[0].args.upstream", [door(), model("a")], {"port": 8080}),
    ("front-door-upstream", "[0].args.upstream", [door(upstream="http://localhost"), model("a")],
     {}),
    ("front-door-weights", "[0].args.weights.x", [door(weights={"x": {"c": 1.0}}), *TWO], {}),
    ("front-door-weights", "[0].args.weights.y", [door(weights={"y": {"a": 1.0}}), *TWO], {}),
    ("front-door-models", "[2].args.model.id", [door(), model("a", aliases=["m"]),
                                                model("b", "m")], {}),
    ("access-alike", "[1].args.access", [door(access=KEYS), model("a")], {}),
    ("access-open", "http_options.host", [model("a")], OPEN),
    ("access-open", "http_options.host", [door(), model("a")], {"host": "::"}),
    ("access-open", "http_options.host", [model("a")], {"host": "example.org"}),
]  # fmt: skip

CLEAN: list[tuple[str, list[Data], Data]] = [
    ("front-door-prefix", [door(), model("a")], {}),
    ("front-door-routes", [door(), model("a", prefix="/v11"), model("b", prefix="/x/v1")], {}),
    ("front-door-routes", [model("a", prefix="/v1")], {}),
    ("front-door-upstream", [door(upstream="http://127.0.0.1:8080"), model("a")], {"port": 8080}),
    ("front-door-upstream", [door(upstream="http://elsewhere:9"), model("a")], {"port": 8080}),
    ("front-door-upstream", [door(upstream="http://localhost"), model("a")], {"port": 80}),
    ("front-door-weights", [door(weights=SHARES), *TWO], {}),
    ("front-door-weights", [door(weights={"l": {"a": 1.0}}),
                            model("a", lora=["l=/nonexistent"])], {}),
    ("front-door-weights", [door(weights={"l": {"a": 1.0}}),
                            model("a", lora=[{"name": "l", "path": "/nonexistent"}])], {}),
    ("front-door-models", [door(), *TWO], {}),
    ("front-door-models", [door(weights={"m": {"a": 1.0, "b": 1.0}}), model("a", aliases=["m"]),
                           model("b", "m")], {}),
    ("front-door-models", [model("a", aliases=["m"]), model("b", "m")], {}),
    ("access-alike", [door(access=KEYS), model("a", access=KEYS)], {}),
    ("access-open", [model("a", access=KEYS)], OPEN),
    ("access-open", [model("a")], {"host": "localhost"}),
    ("access-open", [model("a")], {"host": "::1"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "applications", "http"), TRIPS)
def test_a_rule_trips_once(
    rule: str, path: str, applications: list[Data], http: Data, tmp_path: Path
) -> None:
    (finding,) = check(tmp_path, applications, http)
    assert (finding.rule, finding.severity) == (rule, RULES[rule].severity)
    assert finding.path == (path if path.startswith("http") else f"applications{path}")
    assert "\n" not in str(finding)
    assert finding.mend
    assert finding.line


@pytest.mark.parametrize(("rule", "applications", "http"), CLEAN)
def test_a_near_miss_is_quiet(
    rule: str, applications: list[Data], http: Data, tmp_path: Path
) -> None:
    found = check(tmp_path, applications, http)
    assert [str(finding) for finding in found if finding.rule != "lora-path"] == []


def test_each_rule_has_both() -> None:
    elsewhere = {"front-door-zero", "lora-runtime-replicas"}  # test_rules_lora_runtime.py
    rules = {rule.id for rule in RULES.values() if rule.subject is ServeFile} - elsewhere
    assert rules == {row[0] for row in TRIPS} == {row[0] for row in CLEAN}


def test_a_weight_names_the_application_that_was_meant(tmp_path: Path) -> None:
    two = [model("alpha", aliases=["x"]), model("beta", aliases=["x"])]
    (finding,) = check(tmp_path, [door(weights={"x": {"alpah": 1.0}}), *two])
    assert "alpha" in finding.mend
    (finding,) = check(tmp_path, [door(weights={"x": {"zzzzzz": 1.0}}), *two])
    assert finding.mend == "known: alpha, beta"


def refused(folder: Path, *applications: Data) -> Finding:
    """The only fault of the file's form."""
    with pytest.raises(ConfigError) as raised:
        load(written(folder, list(applications)))
    (finding,) = raised.value.findings
    assert finding.severity is ERROR
    return finding


@pytest.mark.parametrize("path", ["serve_app:build", "other:app", None])
def test_an_unknown_builder(tmp_path: Path, path: str | None) -> None:
    application = {**door(), "import_path": path}
    finding = refused(tmp_path, model("a"), application)
    assert finding.path == "applications[1].import_path"
    assert "build_app" in finding.mend
    assert "build_front_door" in finding.mend


def test_no_builder(tmp_path: Path) -> None:
    application = door()
    del application["import_path"]
    assert "build_app" in refused(tmp_path, application).mend


@pytest.mark.parametrize(
    ("args", "path", "meant"),
    [
        ({"weight": {}}, "weight", "weights"),
        ({"access": {"kyes": "f"}}, "access.kyes", "keys"),
        ({"limits": {"max_body_mbi": 1}}, "limits.max_body_mbi", "max_body_mib"),
        ({"scaling": {"num_replica": 2}}, "scaling.num_replica", "num_replicas"),
    ],
)
def test_a_slip_in_the_front_doors_args(tmp_path: Path, args: Data, path: str, meant: str) -> None:
    finding = refused(tmp_path, model("a"), door(**args))
    assert finding.path == f"applications[1].args.{path}"
    assert meant in finding.mend


def test_the_front_door_has_no_model(tmp_path: Path) -> None:
    assert refused(tmp_path, door(model={"id": "x"})).path == "applications[0].args.model"


def test_the_front_door_needs_no_args(tmp_path: Path) -> None:
    application = door()
    del application["args"]
    assert check(tmp_path, [application, model("a")]) == []


@pytest.mark.parametrize("shares", [{}, {"a": 0.0}, {"a": -0.1, "b": 1.1}, {"a": 0.0, "b": 0.0}])
def test_weights_that_are_no_shares(tmp_path: Path, shares: Data) -> None:
    finding = refused(tmp_path, door(weights={"x": shares}), *TWO)
    assert finding.path == "applications[0].args.weights.x"
    assert "not shares" in finding.message


def test_keys_are_required_and_missing(tmp_path: Path) -> None:
    finding = refused(tmp_path, model("a", access={"required": True}))
    assert finding.path == "applications[0].args.access.required"
    assert "neuron-serve keys new" in finding.mend
    assert check(tmp_path, [model("a", access={"required": True, **KEYS})]) == []


@pytest.mark.parametrize("url", ["redis://u:hunter2@h:1/0", "rediss://:hunter2@h/0"])
def test_a_password_in_clear_text(tmp_path: Path, url: str) -> None:
    finding = refused(tmp_path, door(access={**KEYS, "counts": url}))
    assert finding.path == "applications[0].args.access.counts"
    assert "hunter2" not in str(finding)
    assert "${NAME}" in finding.mend


@pytest.mark.parametrize("counts", ["memory", "redis://h:6379/0", "${COUNTS}"])
def test_counts_without_one(tmp_path: Path, counts: str) -> None:
    load(written(tmp_path, [model("a", access={**KEYS, "counts": counts})]))


def test_a_place_of_counts_that_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path, door(access={"counts": "disk"})).path.endswith("access.counts")
