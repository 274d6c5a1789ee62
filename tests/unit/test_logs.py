"""vLLM's lines in Serve's form: real processes, Ray's own handlers and formatter."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._common.formatters import JSONFormatter

from serve_app.engine.child import logging_config
from serve_app.telemetry.logs import in_serves_form, join_serve, say_who

pytestmark = pytest.mark.usefixtures("own_environment")
WHO = ("demo", "engine", "x1")
IN_VLLM = """
import json, logging, logging.config, os, sys
logging.config.dictConfig(json.load(open(sys.argv[1])))
write = sys.stdout.write
sys.stdout.write = lambda text: write(f"(EngineCore pid=1) {text}")  # as vLLM's processes do
logging.getLogger("vllm.v1").info("loaded %s", "it")
try:
    raise ValueError("two\\nlines")
except ValueError:
    logging.getLogger("vllm").exception("oh")
"""


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve's logger of a replica as Ray sets it up for JSON; the file that it writes."""
    file = tmp_path / "replica.log"
    target = logging.FileHandler(file)
    target.setFormatter(JSONFormatter())
    handler = logging.handlers.MemoryHandler(1, target=target)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [handler])
    yield file
    target.close()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "handlers", [])
    return logger


def said_by_engine_core(tmp_path: Path) -> list[str]:
    """The lines on standard output of a process that vLLM's way of logging is set up in."""
    config = tmp_path / "logging.json"
    text = json.dumps(in_serves_form(logging_config(tmp_path / "events")))
    if "JsonFormatter" not in text:
        text = text.replace("vllm.logging_utils.NewLineFormatter", "logging.Formatter")
    config.write_text(text)
    command = [sys.executable, "-c", IN_VLLM, str(config)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()


def test_engine_core_says_it_in_json(serve: Path, tmp_path: Path) -> None:
    say_who(os.environ, *WHO)
    first, second = map(json.loads, said_by_engine_core(tmp_path))
    names = ("message", "levelname", "application", "deployment", "replica", "component")
    assert [first[name] for name in names] == ["loaded it", "INFO", *WHO, "MainProcess"]
    assert second["exc_text"].endswith("ValueError: two\nlines")
    assert first.keys() == {*names, "asctime", "filename", "lineno", "process"}


def test_in_the_replica_it_is_a_line_of_serves_file(
    serve: Path, vllm: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm.addHandler(logging.StreamHandler(sys.stdout))  # as vLLM's import does
    say_who(os.environ, *WHO)
    join_serve()
    logging.getLogger("vllm.entrypoints").error("oh")
    line = json.loads(serve.read_text())
    assert (line["message"], line["levelname"]) == ("oh", "ERROR")
    assert capsys.readouterr().out == ""


def test_text_stays_as_vllm_writes_it(
    tmp_path: Path, vllm: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [logging.NullHandler()])
    say_who(os.environ, *WHO)
    assert said_by_engine_core(tmp_path)[0].startswith("(EngineCore pid=1) INFO ")
    join_serve()
    assert not {*logging.getLogger("ray.serve").handlers} & {*vllm.handlers}
