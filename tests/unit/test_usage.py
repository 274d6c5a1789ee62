"""The record of use loses no line that it can keep, and writes none twice."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from serve_app.access.usage import REFUSALS, UsageLog, Use, count

USE = Use("alice", "llm", "demo", "/v1/chat/completions", 200, 12, 34, False, 0.5)
MIDNIGHT = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class Clock:
    now = MIDNIGHT - 0.0005

    def __call__(self) -> float:
        return self.now


def log(directory: Path, clock: Clock | None = None) -> UsageLog:
    return UsageLog(directory, "r1", clock or Clock())


def written(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def prompt_tokens(directory: Path) -> list[int]:
    return [line["prompt_tokens"] for line in written(directory)]


def test_a_line_says_it_all(tmp_path: Path) -> None:
    usage = log(tmp_path)
    usage.record(USE)
    assert not list(tmp_path.iterdir())  # the loop never waits for a disk
    usage.flush()
    assert (tmp_path / "2025-12-31.r1.jsonl").read_text() == (
        '{"time": "2025-12-31T23:59:59.999Z", "key": "alice", "application": "llm", '
        '"model": "demo", "route": "/v1/chat/completions", "status": 200, "prompt_tokens": 12, '
        '"completion_tokens": 34, "aborted": false, "seconds": 0.5}\n'
    )


def test_a_file_for_each_day_and_replica(tmp_path: Path) -> None:
    clock = Clock()
    usage, other = log(tmp_path, clock), UsageLog(tmp_path, "app#name/../2", clock)
    usage.record(replace(USE, key=None))
    clock.now = MIDNIGHT
    usage.record(replace(USE, key="line\nbreak"))
    other.record(USE)
    usage.flush()
    other.flush()
    usage.record(USE)
    usage.flush()
    assert {file.name: len(file.read_text().splitlines()) for file in tmp_path.iterdir()} == {
        "2025-12-31.r1.jsonl": 1,
        "2026-01-01.r1.jsonl": 2,
        "2026-01-01.app-name-..-2.jsonl": 1,
    }
    assert {line["key"] for line in written(tmp_path)} == {None, "line\nbreak", "alice"}


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    clock = Clock()
    usage = log(tmp_path, clock)
    for i, now in enumerate([MIDNIGHT - 1, MIDNIGHT, MIDNIGHT - 1, MIDNIGHT]):
        clock.now = now
        usage.record(replace(USE, prompt_tokens=i))
    usage.flush()
    assert prompt_tokens(tmp_path) == [0, 2, 1, 3]


def test_a_missing_directory_is_logged_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "later"
    usage = log(directory)
    for i in range(3):
        usage.record(replace(USE, prompt_tokens=i))
        usage.flush()
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
    directory.mkdir()
    usage.record(replace(USE, prompt_tokens=3))
    usage.flush()
    assert prompt_tokens(directory) == [0, 1, 2, 3]
    assert caplog.records[-1].levelno == logging.WARNING


def test_a_disk_that_fills_up_within_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usage = log(tmp_path)
    usage.record(replace(USE, prompt_tokens=0))
    usage.flush()
    free = 300
    write = os.write

    def little(file: int, data: bytes) -> int:
        nonlocal free
        if free == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = write(file, data[:free])
        free -= size
        return size

    monkeypatch.setattr(os, "write", little)
    usage.record(replace(USE, prompt_tokens=1))
    usage.record(replace(USE, prompt_tokens=2))
    for _ in range(2):
        usage.flush()
        assert prompt_tokens(tmp_path) == [0]
        free = 100
    monkeypatch.undo()
    usage.record(replace(USE, prompt_tokens=3))
    usage.flush()
    assert prompt_tokens(tmp_path) == [0, 1, 2, 3]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_a_bounded_number_waits(tmp_path: Path) -> None:
    usage = log(tmp_path / "later")
    for i in range(10_005):
        usage.record(replace(USE, prompt_tokens=i))
    usage.flush()
    assert usage.dropped == 5
    (tmp_path / "later").mkdir()
    usage.flush()
    usage.record(replace(USE, prompt_tokens=-1))
    usage.flush()
    assert prompt_tokens(tmp_path / "later") == [*range(10_000), -1]


def test_recorded_while_flushed(tmp_path: Path) -> None:
    usage = log(tmp_path)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            usage.flush()

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        usage.record(replace(USE, prompt_tokens=i))
    done.set()
    for thread in threads:
        thread.join()
    usage.flush()
    assert prompt_tokens(tmp_path) == list(range(2000))


def test_counters() -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    for key in ("alice", ""):
        count(replace(USE, key=key or None, model="counted here"))
        label = {"key": key, "model": "counted here"}
        assert value("neuron_serve_requests_total", **label, status="200") == 1
        assert value("neuron_serve_tokens_total", **label, kind="prompt") == 12
        assert value("neuron_serve_tokens_total", **label, kind="completion") == 34
    REFUSALS.labels("counted here", "tokens").inc()
    assert value("neuron_serve_refusals_total", key="counted here", what="tokens") == 1
