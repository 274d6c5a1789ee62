"""The shipped demo model answers everything that its corpus promises, to the letter."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_every_promise_is_kept(capsys) -> None:
    spec = importlib.util.spec_from_file_location("train", ROOT / "scripts/train_demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    corpus = yaml.safe_load(train.CORPUS.read_text())
    assert train.evaluate(ROOT / "serve_app/demo_model", corpus) == 0, capsys.readouterr().out
