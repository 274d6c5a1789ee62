"""The Neuron configuration that an engine runs with: the user's, over what the plugin derives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.backends import neuron, nxdi
from serve_app.backends.plan import EnginePlan
from serve_app.config import AppArgs
from serve_app.neuron import native_config, nxdi_config


@dataclass(frozen=True)
class NeuronConfiguration:
    """`additional_config.override_neuron_config` (nxdi) or `.neuron_config` (neuron)."""

    path: str
    """Where it stands: engine.additional_config.override_neuron_config."""
    given: Mapping[str, Any]
    """As the user wrote it."""
    effective: Mapping[str, Any]
    """`given` over the values that the plugin derives and NeuronConfig's defaults. A key that is
    in neither is absent."""


def neuron_configuration(args: AppArgs, plan: EnginePlan) -> NeuronConfiguration:
    """Of a plan for Neuron."""
    assert plan.target is not None
    key, config = {
        "nxdi": (nxdi.OVERRIDE, nxdi_config),
        "neuron": (neuron.CONFIG, native_config),
    }[plan.backend]
    extra = args.engine.get("additional_config")
    given = extra.get(key) if isinstance(extra, dict) else None
    given = given if isinstance(given, dict) else {}
    tp = plan.engine_args.get("tensor_parallel_size")
    effective = config.effective(
        plan.engine_args,
        given,
        tp if isinstance(tp, int) else 1,
        plan.target.instance.generation,
    )
    return NeuronConfiguration(f"engine.additional_config.{key}", given, effective)
