"""What can be known to go wrong before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.config import parse_args
from serve_app.preflight import check_application

HEADER = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"1234"


def model(tmp_path: Path, config: str | None = '{"max_position_embeddings": 2048}') -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    if config is not None:
        (directory / "config.json").write_text(config)
    (directory / "model.safetensors").write_bytes(WEIGHTS)
    return directory


def findings(source: Path | str, environment: dict[str, str] | None = None, **args) -> list[str]:
    parsed = parse_args({"model": {"id": "m", "source": str(source)}, **args})
    return [str(finding) for finding in check_application(parsed, environment or {})]


def test_a_good_model_has_no_findings(tmp_path: Path) -> None:
    assert findings(model(tmp_path), engine={"max_model_len": 2048}) == []
    assert findings("org/name") == []
    assert findings("builtin:demo") == []


def test_missing_things(tmp_path: Path) -> None:
    assert "there is no directory" in findings(tmp_path / "none")[0]
    assert "no config.json" in findings(model(tmp_path, None))[0]
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/config.json").write_text("{}")
    assert "no weights" in findings(tmp_path / "model")[0]
    (tmp_path / "model/config.json").write_text("{")
    assert "is not JSON" in findings(tmp_path / "model")[0]
    assert "the one built-in model is builtin:demo" in findings("builtin:x")[0]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (WEIGHTS[:-1], f"cut off: {len(WEIGHTS) - 1} of {len(WEIGHTS)} bytes"),
        (WEIGHTS[:20], "cut off: 20 bytes"),
        (b"", "cut off: 0 bytes"),
        (b"\x02" + bytes(7) + b"[]", "no safetensors file"),
    ],
)
def test_incomplete_weights(tmp_path: Path, content: bytes, fault: str) -> None:
    source = model(tmp_path)
    (source / "model.safetensors").write_bytes(content)
    assert fault in findings(source)[0]


@pytest.mark.parametrize("length", [2049, 10**9])
def test_longer_than_the_model(tmp_path: Path, length: int) -> None:
    source = model(tmp_path)
    found = findings(source, engine={"max_model_len": length})
    assert f"max_model_len {length} is beyond the model's 2048 positions" in found[0]
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert findings(source, engine={"max_model_len": length}, env=allowed) == []


def test_scaled_rope_is_left_to_vllm(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 2048, "rope_scaling": {"factor": 2}}
    assert findings(model(tmp_path, json.dumps(config)), engine={"max_model_len": 4096}) == []


def test_unset_variables_are_named_once_each() -> None:
    found = findings("${MODELS}/x", env={"HF_TOKEN": "${HF_TOKEN}"})
    assert len(found) == 2
    assert any("env.HF_TOKEN: the environment variable HF_TOKEN is not set" in f for f in found)
    assert any(f.startswith("model.source: the environment variable MODELS") for f in found)
