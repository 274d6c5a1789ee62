"""Rules about adapters that are loaded later and applications without a replica; names of adapters
that the rules of a file know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import Finding, Severity, load
from serve_app.preflight import check_document
from serve_app.preflight.front_door import _models

ROOT = Path(__file__).parents[2]
RUNTIME = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
DOOR = {"name": "door", "route_prefix": "/", "import_path": "serve_app:build_front_door"}


def document(directory: Path, door: bool, **args: Any) -> Any:
    """A file with one model, of the given arguments, behind a front door or without one."""
    model = {
        "name": "demo",
        "route_prefix": "/demo",
        "import_path": "serve_app:build_app",
        "args": {"backend": "cpu", "model": {"id": "m", "source": "builtin:demo"}, **args},
    }
    applications = [DOOR, model] if door else [model]
    file = directory / "file.yaml"
    file.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": applications})
    )
    return load(file)


def found(rule: str, directory: Path, door: bool, **args: Any) -> list[Finding]:
    findings = check_document(document(directory, door, **args))
    return [finding for finding in findings if finding.rule == rule]


@pytest.mark.parametrize("scaling", [{"num_replicas": 2}, {"min_replicas": 1, "max_replicas": 3}])
@pytest.mark.parametrize("value", ["True", "1", " true "])
def test_runtime_adapters_of_many_replicas(
    tmp_path: Path, value: str, scaling: dict[str, int]
) -> None:
    (finding,) = found(
        "lora-runtime-replicas", tmp_path, False, env={RUNTIME: value}, scaling=scaling
    )
    assert finding.severity is Severity.WARNING
    assert finding.path == f"applications[0].args.env.{RUNTIME}"
    assert f"of up to {max(scaling.values())} replicas" in finding.message
    assert finding.line


@pytest.mark.parametrize(
    "args",
    [
        {"env": {RUNTIME: "True"}},
        {"env": {RUNTIME: "True"}, "scaling": {"max_replicas": 1}},
        {"env": {RUNTIME: "0"}, "scaling": {"num_replicas": 2}},
        {"env": {RUNTIME: "yes"}, "scaling": {"num_replicas": 2}},  # vLLM knows 1 and true
        {"scaling": {"num_replicas": 2}},
    ],
)
def test_runtime_adapters_of_one(tmp_path: Path, args: dict[str, Any]) -> None:
    assert found("lora-runtime-replicas", tmp_path, True, **args) == []


def test_nobody_wakes_what_is_behind_a_front_door(tmp_path: Path) -> None:
    scaling = {"min_replicas": 0, "max_replicas": 2}
    (finding,) = found("front-door-zero", tmp_path, True, scaling=scaling)
    assert finding.severity is Severity.WARNING
    assert finding.path == "applications[1].args.scaling.min_replicas"
    assert "'demo'" in finding.message
    assert "/demo" in finding.mend
    assert found("front-door-zero", tmp_path, False, scaling=scaling) == []
    for more in ({"min_replicas": 1}, {}):
        scaling = {"max_replicas": 2, **more}
        assert found("front-door-zero", tmp_path, True, scaling=scaling) == []


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (["sql=/a/sql", "x=/b"], ["sql", "x"]),
        ([{"name": "sql", "path": "/a", "base_model_name": "m"}], ["sql"]),
        (['{"name": "sql", "path": "/a"}'], ["sql"]),
        (['{"name": ', {"path": "/a"}], []),
        ("sql=/a", ["sql"]),
        ({"name": "sql", "path": "/a"}, ["sql"]),
        (None, []),
    ],
)
def test_names_of_adapters(tmp_path: Path, modules: Any, names: list[str]) -> None:
    engine = {"enable_lora": True, "lora_modules": modules}
    assert _models(document(tmp_path, True, engine=engine).serve) == {"demo": ["m", *names]}


def test_names_of_the_nxdi_config(tmp_path: Path) -> None:
    """As it stands, its adapters are named in a file of the host, which no rule reads."""
    text = (ROOT / "configs/llama3.1-8b-lora-trn2.yaml").read_text()
    assert _models(load(ROOT / "configs/llama3.1-8b-lora-trn2.yaml").serve) == {
        "llama3-1-8b": ["meta-llama/Llama-3.1-8B-Instruct"]
    }
    file = tmp_path / "file.yaml"
    line = "        enable_lora: true\n"
    assert line in text
    file.write_text(text.replace(line, line + "        lora_modules: [sql=/adapters/sql]\n"))
    assert _models(load(file).serve)["llama3-1-8b"][1:] == ["sql"]
