"""What the two Neuron back ends have in common."""

from __future__ import annotations

from typing import Any

from serve_app.backends.plan import EnginePlan
from serve_app.backends.target import Target
from serve_app.config import AppArgs

MAX_NUM_SEQS = 256
"""vLLM's default behind the API server (0.13 to 0.24: arg_utils.py, default_max_num_seqs)."""


def stack_reason(args: AppArgs, target: Target) -> str:
    """Which software, and why that one."""
    stack = target.stack
    why = "pinned" if args.stack.sdk else f"the newest for {target.instance.family}"
    return f"SDK {stack.sdk}, vLLM {stack.vllm}, plugin {stack.plugin}: {why}"


def neuron_plan(
    backend: str,
    args: AppArgs,
    target: Target,
    engine: dict[str, Any],
    env: dict[str, str],
    max_num_seqs: Any,
    reasons: list[str],
) -> EnginePlan:
    """What the two Neuron back ends have in common: cores as a Ray resource, LNC, image."""
    if target.instance.generation >= 2:
        env["NEURON_LOGICAL_NC_CONFIG"] = str(target.lnc)
    actor_options: dict[str, Any] = {
        "num_cpus": args.resources.num_cpus,
        # Ray sets NEURON_RT_VISIBLE_CORES of the replica by it.
        "resources": {"neuron_cores": target.cores},
    }
    if args.resources.memory_gib is not None:
        actor_options["memory"] = int(args.resources.memory_gib * 2**30)
    return EnginePlan(
        backend=backend,
        vllm=target.stack.vllm,
        engine_args=engine,
        env={**env, **args.env},
        actor_options=actor_options,
        max_num_seqs=max_num_seqs if isinstance(max_num_seqs, int) else MAX_NUM_SEQS,
        reasons=tuple(reasons),
        target=target,
    )


def fill(engine: dict[str, Any], name: str, value: Any, why: str, reasons: list[str]) -> Any:
    """Fill in an argument that the user left out, and say why; returns the effective value."""
    if engine.get(name) is None:
        engine[name] = value
        reasons.append(f"{name} {str(value).lower() if value in (True, False) else value}: {why}")
    return engine[name]
