"""Logs in JSON, where `logging_config: {encoding: JSON}` of the serve file asks for them.

Ray Serve then writes JSON into the replica's file, of what its own logger gets. vLLM logs by
handlers of its own: in the replica its lines go Serve's way, in EngineCore they get the same form.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

_FIELDS = "NEURON_SERVE_LOG_FIELDS"
"""Variable of the replica and of vLLM's processes; set: logs are JSON, and each line has these."""
_SERVE, _VLLM = "ray.serve", "vllm"


class JsonFormatter(logging.Formatter):
    """One object per line, with the names that Ray Serve's have."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "component": record.processName,
            **json.loads(os.environ.get(_FIELDS, "{}")),
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Console(logging.StreamHandler[TextIO]):
    """This process's standard output, without the prefix that vLLM writes before each line of it
    (vllm/utils/system_utils.py, _add_prefix)."""

    def __init__(self) -> None:
        super().__init__(os.fdopen(os.dup(1), "w", buffering=1))


def say_who(
    environment: MutableMapping[str, str], application: str, deployment: str, replica: str
) -> None:
    """Where Serve has set up its logger for JSON: what each line of vLLM's processes tells."""
    handlers = logging.getLogger(_SERVE).handlers
    formatters = [getattr(handler, "target", handler).formatter for handler in handlers]
    if any(type(formatter).__name__ == "JSONFormatter" for formatter in formatters):
        fields = {"application": application, "deployment": deployment, "replica": replica}
        environment[_FIELDS] = json.dumps(fields)


def in_serves_form(config: dict[str, Any]) -> Mapping[str, Any]:
    """vLLM's logging configuration, in JSON if Serve's is."""
    if _FIELDS in os.environ:
        module = JsonFormatter.__module__
        config["formatters"]["vllm"] = {"()": f"{module}.JsonFormatter"}
        config["handlers"]["console"] |= {"()": f"{module}.Console"}
        for name in ("class", "stream"):
            del config["handlers"]["console"][name]
    return config


def join_serve() -> None:
    """In the replica, once vLLM is imported: its lines go where Serve's go, if that is JSON, and no
    more to standard output. Serve adds request, application and replica."""
    if _FIELDS not in os.environ:
        return
    vllm = logging.getLogger(_VLLM)
    for console in [each for each in vllm.handlers if type(each) is logging.StreamHandler]:
        vllm.removeHandler(console)
    for handler in logging.getLogger(_SERVE).handlers:
        vllm.addHandler(handler)
