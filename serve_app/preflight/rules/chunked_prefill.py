"""Rules about chunked prefill, which NxDI does not have."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import (
    flag,
)
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, at, since


@rule(
    "chunked-prefill-config",
    Severity.ERROR,
    "NxDI has no chunked prefill",
    f"models/model_base.py:3054-3055 (2.28 and later); {CONFIG}:308-320 (before)",
    NXDI,
)
def chunked_prefill_config(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "chunked_prefill_config"):
        return
    path = at(case, "chunked_prefill_config")
    nxdi = case.target.stack.nxdi
    if since(case, "0.8"):
        yield Trip(f"NxDI {nxdi} refuses chunked prefill", "remove chunked_prefill_config", path)
    elif not flag(case.effective, "is_block_kv_layout"):
        yield Trip(
            "chunked prefill needs is_block_kv_layout", "remove chunked_prefill_config", path
        )
    elif not _own_scheduler(case):
        message = (
            "the plugin's scheduler turns chunked prefill off, but the model is compiled for it"
        )
        yield Trip(message, "remove chunked_prefill_config", path)


def _own_scheduler(case: Case) -> bool:
    value = case.plan.env.get("DISABLE_NEURON_CUSTOM_SCHEDULER", "0").strip()
    return value not in ("", "0")


@rule(
    "chunked-prefill-scheduler",
    Severity.ERROR,
    "The plugin's scheduler runs",
    "vllm-neuron platform.py check_and_update_config; models/model_base.py:3054-3055",
    NXDI,
)
def chunked_prefill_scheduler(case: Case) -> Iterator[Trip]:
    if not _own_scheduler(case):
        return
    path = "env.DISABLE_NEURON_CUSTOM_SCHEDULER"
    ready = flag(case.effective, "chunked_prefill_config") and case.engine("block_size")
    if since(case, "0.8") or not ready:
        message = "vLLM's own scheduler needs chunked prefill, which NxDI has not"
        yield Trip(message, "remove it", path)
    else:
        message = "vLLM's own scheduler and chunked prefill are not supported by AWS"
        yield Trip(message, "remove it", path, Severity.WARNING)


@rule(
    "chunked-prefill",
    Severity.NOTE,
    "Chunked prefill is off",
    "vllm-neuron platform.py check_and_update_config",
    NXDI,
)
def chunked_prefill(case: Case) -> Iterator[Trip]:
    if case.args.engine.get("enable_chunked_prefill") and not _own_scheduler(case):
        path = "engine.enable_chunked_prefill"
        yield Trip("the plugin turns chunked prefill off", "remove it", path)
