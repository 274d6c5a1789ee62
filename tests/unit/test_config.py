"""The config layer: what is refused, with which words and where."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import ConfigError, load, parse_args
from serve_app.config.document import dotted
from serve_app.config.environment import expand
from serve_app.config.schema import json_schema, json_schema_text
from serve_app.config.vllm_arguments import NEWEST, Argument, _table, command

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def faults(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return [str(finding) for finding in caught.value.findings]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_fits_the_schema(config: Path) -> None:
    load(config)
    jsonschema.validate(yaml.safe_load(config.read_text()), json_schema())
    assert config.read_text().startswith("# yaml-language-server: $schema=schema.json")


def test_committed_schema_is_current() -> None:
    committed = (ROOT / "configs/schema.json").read_text()
    assert committed == json_schema_text(), "neuron-serve schema > configs/schema.json"


@pytest.mark.parametrize("asked", ["configs/local-cpuu.yaml", "local-cpu", "local-cpu.yml"])
def test_a_missing_file_is_guessed(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"did you mean configs/local-cpu.yaml\?"):
        load(asked)


def test_every_field_is_described() -> None:
    for name, definition in json_schema()["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key} has no description"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("id: neuron", "idd: neuron", "args.model.idd: unknown key 'idd' -> did you mean 'id'?"),
        ("max_model_len: 1024", "max_modle_len: 8", "did you mean 'max_model_len'?"),
        ("max_model_len: 1024", "max-model-len: 8", "did you mean 'max_model_len'?"),
        ("max_model_len: 1024", "max_num_seqs: many", "takes a whole number, not 'many' (str)"),
        ("max_model_len: 1024", "max_num_seqs: true", "takes a whole number, not True (bool)"),
        ("max_model_len: 1024", "port: 80", "'port' is not set here -> set http_options.port"),
        ("max_model_len: 1024", "api_key: x", "keys do not belong into a config file"),
        ("port: 8000", "port: '8000'", "http_options.port: should be a valid integer"),
        ("http_options:", "http_option:", "did you mean 'http_options'?"),
        (
            "backend: cpu",
            "backend: gpu",
            "args.backend: should be 'auto', 'cpu', 'nxdi' or 'neuron', not 'gpu'",
        ),
        (
            "serve_app:build_app",
            "serve_ap:build_app",
            "it is no builder of this package -> serve_app:build_app for a model",
        ),
        ("backend: cpu", "scaling: {num_replicas: 1, max_replicas: 2}", "not both"),
        ("backend: cpu", "scaling: {min_replicas: 1}", "autoscaling needs max_replicas"),
        ("backend: cpu", "env: {HF_TOKEN: hf_x}", "in clear text -> write HF_TOKEN: ${HF_TOKEN}"),
        ("backend: cpu", "backend: cpu\n      backend: cpu", "the key 'backend' stands twice"),
        ("    args:", "    deployments: [{name: x}]\n    args:", "no deployment 'x' -> name it"),
        (
            "    args:",
            "    deployments: [{name: engine, max_ongoing: 3}]\n    args:",
            "unknown key 'max_ongoing' of a deployment",
        ),
    ],
)
def test_mistakes_are_named_with_line_and_mend(write_config, old, new, said) -> None:
    found = faults(write_config((old, new)))
    assert any(said in fault for fault in found), found
    assert all(fault.startswith("line ") for fault in found)


def test_all_mistakes_at_once(write_config) -> None:
    found = faults(
        write_config(("id:", "idd:"), ("1024", "'a'"), ("8000", "99999"), ("/\n", "x\n"))
    )
    assert len(found) >= 4
    assert found == sorted(found, key=lambda fault: int(fault.split(":")[0].split()[1]))


@pytest.mark.parametrize("text", ["", "[]", "a: [", "a: b: c", "\t", "applications: []", "x", "&"])
def test_what_is_no_config_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert faults(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in faults(tmp_path / "none.yaml")[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in faults(tmp_path / "binary.yaml")[0]
    assert "Is a directory" in faults(tmp_path)[0]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_args_give_a_config_error_and_nothing_else(value: object) -> None:
    for args in (
        {"model": value},
        {"model": {"id": "x"}, "engine": value},
        {"engine": {"a": value}},
    ):
        with contextlib.suppress(ConfigError):
            parse_args(args)


def test_config_error_survives_pickling() -> None:
    import pickle

    with pytest.raises(ConfigError) as caught:
        parse_args({"modle": 1})
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


def test_environment_is_filled_or_named() -> None:
    assert expand("${HOME}/x", {"HOME": "/h"}, "model.source") == "/h/x"
    with pytest.raises(ConfigError, match=r"model.source: the environment variable NOPE"):
        expand("${NOPE}", {}, "model.source")


def test_config_layer_imports_nothing_heavy() -> None:
    code = (
        "import serve_app.config, serve_app.preflight, serve_app.backends, sys;"
        "print([m for m in ('ray', 'torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dotted() -> None:
    assert dotted(("applications", 0, "args", "model")) == "applications[0].args.model"


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("int", 4, ["--x-y=4"]),
        ("text", "-1", ["--x-y=-1"]),
        ("bool", True, ["--x-y"]),
        ("bool", False, ["--no-x-y"]),
        ("flag", True, ["--x-y"]),
        ("flag", False, []),
        ("list", ["a", "b"], ["--x-y", "a", "b"]),
        ("list", [{"a": 1}, "b=c"], ["--x-y", '{"a": 1}', "b=c"]),
        ("repeat", ["a", "b"], ["--x-y=a", "--x-y=b"]),
        ("repeat", "a", ["--x-y=a"]),
        ("json", {"a": 1}, ['--x-y={"a": 1}']),
        ("int", None, []),
    ],
)
def test_arguments_become_command_line_words(kind, value, words) -> None:
    assert Argument(kind).cli("x_y", value) == words


def test_command_line() -> None:
    assert command(NEWEST, "m", {"max_model_len": 8, "enable_lora": True}) == [
        "vllm",
        "serve",
        "m",
        "--max-model-len=8",
        "--enable-lora",
    ]


def test_argument_table_is_the_parsers() -> None:
    """The stored table equals the installed vLLM's parser (its own process: vLLM is heavy)."""
    code = (
        "import sys, json; sys.path.insert(0, 'scripts');"
        "import update_vllm_arguments as u; print('\\n' + json.dumps(u.table()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    installed = json.loads(done.stdout.splitlines()[-1])
    assert installed == _table()[NEWEST]


def test_keys_are_rays() -> None:
    """Our strict copy of Serve's file format has the keys of the installed Ray."""
    from ray.serve import schema

    from serve_app.config import serve_file

    ours = serve_file
    rays = set(ours.ServeFile.model_fields) - {"cluster"}  # which Ray ignores
    assert rays == set(schema.ServeDeploySchema.model_fields)
    assert set(ours.Application.model_fields) == set(schema.ServeApplicationSchema.model_fields)
    assert set(ours.HttpOptions.model_fields) == set(schema.HTTPOptionsSchema.model_fields)
    assert set(schema.DeploymentSchema.model_fields) == ours.DEPLOYMENT_KEYS
    for config in CONFIGS:
        schema.ServeDeploySchema.model_validate(yaml.safe_load(config.read_text()))
