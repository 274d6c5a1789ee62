"""The command line: words and exit codes, without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def cli(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve_app", *map(str, words)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "120", **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_check_accepts() -> None:
    done = cli("check", "configs/local-cpu.yaml")
    assert (done.returncode, done.stdout) == (0, "configs/local-cpu.yaml: accept\n")


def test_check_rejects_with_one_line_each(write_config) -> None:
    path = write_config(("max_model_len: 1024", "max_model_len: 1000000"))
    done = cli("check", path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "max_model_len 1000000 is beyond the model's 2048 positions" in done.stderr
    assert done.stdout == f"{path}: reject\n"


def test_check_as_json(write_config) -> None:
    done = cli("check", "--format", "json", write_config(("id:", "idd:")))
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert report["verdict"] == "reject"
    assert {"rule", "severity", "message", "mend", "source", "path", "line"} == set(
        report["findings"][0]
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "none.yaml"], 2, "none.yaml: error: cannot read it: No such file"),
        (["check"], 2, "Missing argument"),
        (["chek"], 2, "No such command"),
        (["check", "configs/local-cpu.yaml", "--format", "xml"], 2, "table or json"),
        (
            ["status", "--address", "http://127.0.0.1:9"],
            1,
            "no Ray dashboard at http://127.0.0.1:9",
        ),
        (["run", "none.yaml"], 2, "No such file"),
        (["run", "configs/local-cpu.yaml", "--address", "127.0.0.1:9"], 1, "no Ray cluster at"),
    ],
)
def test_bad_input(words: list[str], code: int, said: str) -> None:
    done = cli(*words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_help_teaches_every_command() -> None:
    for command in ("run", "check", "status", "schema"):
        assert "Example: neuron-serve" in cli(command, "--help").stdout


def test_schema_and_version() -> None:
    assert json.loads(cli("schema").stdout)["title"] == "neuron-serve config file"
    assert "ray 2.60" in cli("version").stdout


def test_readme_names_every_command_and_setting() -> None:
    from serve_app.cli.main import app
    from serve_app.config import AppArgs

    text = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"neuron-serve {name}" in text, name
    for group in app.registered_groups:
        assert f"neuron-serve {group.name}" in text, group.name
    for field in AppArgs.model_fields:
        assert f"`{field}`" in text or f"{field}:" in text, field
