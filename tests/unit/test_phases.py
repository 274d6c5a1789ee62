"""Start-up phases: written into the log, read back from it."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cli.dashboard import one_line
from serve_app.engine.child import StartupHandler
from serve_app.engine.phases import Phase

words = st.text("abcdefgh ./0123", max_size=30).map(lambda text: " ".join(text.split()))


@given(st.sampled_from(["weights", "warm-up"]), st.floats(0, 1e6), words)
def test_a_phase_is_read_back_from_any_log(name: str, elapsed: float, detail: str) -> None:
    phase = Phase(name, elapsed, detail)
    for log in (f"INFO 2026 app x -- {phase}\nINFO other\n", f'{{"message": "{phase}", "a": 1}}'):
        read = Phase.last(log)
        assert read is not None
        assert (read.name, read.detail) == (name, detail)
        assert abs(read.elapsed - elapsed) <= 0.051


def test_the_last_phase_counts() -> None:
    assert Phase.last("") is None
    first, last = Phase("weights", 1.0), Phase("ready", 2.0)
    assert Phase.last(f"{first}\n{last}\n") == last


def test_what_vllm_says_becomes_a_phase_or_a_cause(tmp_path) -> None:
    events = tmp_path / "events.jsonl"
    logger = logging.getLogger("test.child")
    logger.addHandler(StartupHandler(str(events)))
    logger.setLevel(logging.INFO)
    logger.info("Starting to load model %s...", "x")
    logger.info("Something else")
    try:
        raise ValueError("no such quantization")
    except ValueError:
        logger.exception("EngineCore failed to start.")
    assert events.read_text().splitlines() == [
        '{"phase": "weights"}',
        '{"error": "ValueError: no such quantization"}',
    ]


def test_one_line_out_of_serves_tracebacks() -> None:
    traceback = (
        "Deploying app 'demo' failed with exception:\nTraceback (most recent call last):\n"
        '  File "x.py", line 1\nserve_app.config.findings.ConfigError: args.model: gone -> mend\n'
    )
    assert one_line(["", traceback]) == "args.model: gone -> mend"
    assert (
        one_line(["Traceback (most recent call last):\n  x\nValueError: bad"]) == "ValueError: bad"
    )
    assert one_line(["waiting for resources\nmore"]) == "waiting for resources"
    assert one_line([]) == ""
