"""Fixtures of all tests. What serves here is real: Ray, HAProxy, vLLM, the OpenAI client."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Tests that run in the background of a shell have SIGINT ignored, and would hand that down to the
# processes that they send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def write_config(tmp_path: Path):
    """Write a config file from local-cpu.yaml with text replaced; returns its path."""

    def write(*replacements: tuple[str, str], name: str = "config.yaml") -> Path:
        text = (ROOT / "configs/local-cpu.yaml").read_text()
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
