"""The one interface of a back end: configuration and machine in, plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serve_app.backends.processor import Machine
from serve_app.backends.target import Target
from serve_app.config import AppArgs
from serve_app.config.vllm_arguments import command


@dataclass(frozen=True)
class EnginePlan:
    """Everything a replica needs to start its engine, decided before it starts."""

    backend: str
    vllm: str
    """vLLM version family, for example "0.29"."""
    engine_args: Mapping[str, Any]
    """Arguments of `vllm serve` by vLLM's names; the model is not among them."""
    env: Mapping[str, str]
    """Process environment; values may hold ${NAME}, filled in the replica."""
    actor_options: Mapping[str, Any]
    """Ray actor options: num_cpus, memory (bytes), resources."""
    max_num_seqs: int
    """Sequences that the engine runs at a time; limits and autoscaling derive from it."""
    reasons: tuple[str, ...]
    """Why each value that the user did not give is what it is."""
    target: Target | None = None
    """Where on Neuron; None on the processor."""

    def because(self, reason: str) -> EnginePlan:
        """The same plan with one more reason, the first."""
        return replace(self, reasons=(reason, *self.reasons))

    def command(
        self, model: str, served_names: Sequence[str], tokenizer: str | None = None
    ) -> list[str]:
        """The equal `vllm serve` command line; the replica parses just this."""
        names = {"served_model_name": [*served_names], "tokenizer": tokenizer}
        return command(self.vllm, model, {**names, **self.engine_args})


class Backend(Protocol):
    """A kind of processor and the vLLM that drives it."""

    name: str

    def plan(self, args: AppArgs, machine: Machine) -> EnginePlan:
        """Decide engine arguments, environment and Ray options.

        `actor_options` and `max_num_seqs` must not depend on `machine`: the graph is built
        on another one than the replica runs on.
        """
        ...
