"""Rules about a prefill and a decode engine together; each alone has the rules of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve_app.backends import choose_backend
from serve_app.config import AppArgs, Finding, Severity


def check_disaggregation(args: AppArgs, parts: Mapping[str, AppArgs]) -> Iterator[Finding]:
    """What is wrong between the two engines of an application with a `prefill` section."""
    if choose_backend(args)[0] == "nxdi":
        message = "nxdi does not split prefill and decode"
        yield Finding("pd-backend", Severity.ERROR, message, "set backend: neuron", "backend")
