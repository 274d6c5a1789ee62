"""The same file without the chip: every application on the `cpu` back end with the demo model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.config.document import Document
from serve_app.config.serve_file import DECODE, ENGINE, PREFILL, Application, ServeFile

_KEPT = (
    "enable_auto_tool_choice",
    "max_logprobs",
    "enable_prompt_tokens_details",
    "enable_force_include_usage",
    "enable_server_load_tracking",
    "return_tokens_as_token_ids",
)
"""Engine arguments of the API, which mean the same for the demo model."""
_KEPT_OF_PREFILL = ("scaling", "limits", "min_prompt_tokens", "routing", "timeout_s", "fallback")
_KEPT_OF_TRANSFER = ("port", "lease_s")
"""The connector and the transport are those of the processor."""
_LENGTH = 1024
"""Positions of the demo model."""
_RESOURCES = {"num_cpus": 0.1}


def rehearse(document: Document, max_num_seqs: Mapping[str, Mapping[str, int]]) -> Document:
    """Names, routes, replica counts and limits stay; weights, chip and environment do not.

    `max_num_seqs` is the batch of each engine, by its application and its deployment: limits
    derive from it.
    """
    applications = []
    for data, typed in zip(document.data["applications"], document.serve.applications, strict=True):
        if not isinstance(typed, Application):
            applications.append(data)
            continue
        args = data["args"]
        engine = {name: args["engine"][name] for name in _KEPT if name in args.get("engine", {})}
        batches = max_num_seqs[typed.name]
        engine["max_num_seqs"] = batches[DECODE if typed.args.prefill else ENGINE]
        length = typed.args.engine.get("max_model_len")
        engine["max_model_len"] = min(length, _LENGTH) if isinstance(length, int) else _LENGTH
        if engine.get("enable_auto_tool_choice"):
            engine["tool_call_parser"] = "hermes"
        rehearsed: dict[str, Any] = {
            "backend": "cpu",
            "model": {
                "id": typed.args.model.id,
                "source": "builtin:demo",
                "aliases": typed.args.model.aliases,
            },
            "engine": engine,
            "resources": dict(_RESOURCES),
        }
        if typed.args.prefill is not None:
            rehearsed["prefill"] = _prefill(args["prefill"], batches[PREFILL])
        kept = ("scaling", "limits", "access", "startup", "health")
        rehearsed |= {name: args[name] for name in kept if name in args}
        applications.append({**data, "args": rehearsed})
    data = {**document.data, "applications": applications}
    return replace(document, data=data, serve=ServeFile.model_validate(data))


def _prefill(section: dict[str, Any], max_num_seqs: int) -> dict[str, Any]:
    kept = {name: section[name] for name in _KEPT_OF_PREFILL if name in section}
    transfer = section.get("transfer", {})
    return {
        **kept,
        "engine": {"max_num_seqs": max_num_seqs},
        "resources": dict(_RESOURCES),
        "transfer": {name: transfer[name] for name in _KEPT_OF_TRANSFER if name in transfer},
    }
