"""The same file without the chip: every application on the `cpu` back end with the demo model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.config.document import Document
from serve_app.config.serve_file import ServeFile

_KEPT = (
    "enable_auto_tool_choice",
    "max_logprobs",
    "enable_prompt_tokens_details",
    "enable_force_include_usage",
    "enable_server_load_tracking",
    "return_tokens_as_token_ids",
)
"""Engine arguments of the API, which mean the same for the demo model."""
_LENGTH = 1024
"""Positions of the demo model."""


def rehearse(document: Document, max_num_seqs: Mapping[str, int]) -> Document:
    """Names, routes, replica counts and limits stay; weights, chip and environment do not.

    `max_num_seqs` is the batch of each application by its name: limits derive from it.
    """
    applications = []
    for data, (_, typed) in zip(
        document.data["applications"], document.applications(), strict=True
    ):
        args = data["args"]
        engine = {name: args["engine"][name] for name in _KEPT if name in args.get("engine", {})}
        engine["max_num_seqs"] = max_num_seqs[typed.name]
        length = typed.args.engine.get("max_model_len")
        engine["max_model_len"] = min(length, _LENGTH) if isinstance(length, int) else _LENGTH
        if engine.get("enable_auto_tool_choice"):
            engine["tool_call_parser"] = "hermes"
        rehearsed: dict[str, Any] = {
            "backend": "cpu",
            "model": {"id": typed.args.model.id, "source": "builtin:demo"},
            "engine": engine,
            "resources": {"num_cpus": 0.1},
        }
        kept = ("scaling", "limits", "startup", "health")
        rehearsed |= {name: args[name] for name in kept if name in args}
        applications.append({**data, "args": rehearsed})
    data = {**document.data, "applications": applications}
    return replace(document, data=data, serve=ServeFile.model_validate(data))
