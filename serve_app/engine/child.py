"""What runs inside vLLM's own processes: a log handler, loaded by VLLM_LOGGING_CONFIG_PATH.

It tells the replica which start-up phase EngineCore is in and why it failed, which vLLM
says only in its log, and it ties the life of the process to the replica's: EngineCore does
not notice that its parent was killed, and would hold its cores for ever. It also takes the
process to the cores that were set aside for engines.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from serve_app.backends.processor import go_to_engine_cpus
from serve_app.engine.nixl import let_nixl_sleep
from serve_app.engine.phases import WARM_UP, WEIGHTS

PARENT_VARIABLE = "NEURON_SERVE_REPLICA_PID"
_FORMAT = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Wording checked in vLLM 0.13, 0.16, 0.24 and 0.29.
_PHASES = {
    "Starting to load model": WEIGHTS,
    "Warming up model": WARM_UP,
    "Model loading took": WARM_UP,
}
_FAILURES = ("EngineCore failed to start", "WorkerProc failed to start")


class StartupHandler(logging.Handler):
    """Appends JSON lines `{"phase": ...}` and `{"error": ...}` to the file `path`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        replica = os.environ.get(PARENT_VARIABLE)
        if replica not in (None, str(os.getpid())):
            die_with_parent()
            go_to_engine_cpus(os.environ)
            let_nixl_sleep()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and message.startswith(_FAILURES):
            error = record.exc_info[1]
            self._write({"error": f"{type(error).__name__}: {error}"})
            return
        for beginning, phase in _PHASES.items():
            if message.startswith(beginning):
                self._write({"phase": phase})

    def _write(self, event: dict[str, str]) -> None:
        # After the start the file is gone; a later message of the same wording is not ours.
        with suppress(FileNotFoundError), self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def logging_config(path: Path) -> dict[str, Any]:
    """vLLM's default logging plus the handler above."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {
                "class": "vllm.logging_utils.NewLineFormatter",
                "format": _FORMAT,
                "datefmt": "%m-%d %H:%M:%S",
            }
        },
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "formatter": "vllm",
                "level": "INFO",
                "stream": "ext://sys.stdout",
            },
            "startup": {"class": f"{__name__}.StartupHandler", "path": str(path)},
        },
        "loggers": {
            "vllm": {"handlers": ["console", "startup"], "level": "INFO", "propagate": False}
        },
    }
