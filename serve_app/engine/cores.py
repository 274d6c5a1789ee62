"""The NeuronCores that Ray gave to this replica, told to the runtime of the back end."""

from __future__ import annotations

from collections.abc import MutableMapping

from serve_app.engine.errors import StartupError

RAY_VARIABLE = "NEURON_RT_VISIBLE_CORES"
"""Ray sets it by the actor's `neuron_cores`; NxDI reads it."""
NATIVE_VARIABLE = "NEURON_VISIBLE_DEVICES"
"""The native plugin reads this one; it holds cores, whatever its name says."""


def claim_cores(backend: str, cores: int, environment: MutableMapping[str, str]) -> None:
    """Set in `environment` the variables that hold the replica to its cores.

    Raises:
        StartupError: Ray gave no cores, too few, or ones that do not lie side by side. The
            runtime wants a contiguous ascending range (aws-neuron-sdk, neuron-runtime,
            "NEURON_RT_VISIBLE_CORES").
    """
    text = environment.get(RAY_VARIABLE, "")
    ids = sorted(int(part) for part in text.split(",") if part.strip().isdigit())
    if len(ids) != cores:
        raise StartupError(
            f"this replica needs {cores} NeuronCores and Ray gave it {len(ids)} ({text or 'none'}) "
            "-> start Ray where the neuron driver shows them (neuron-ls), or try the file "
            "without a chip: neuron-serve run --rehearse"
        )
    first, last = ids[0], ids[-1]
    if last - first + 1 != cores:
        raise StartupError(
            f"Ray gave this replica the NeuronCores {text}, which do not lie side by side "
            "-> end the other replicas of the node, so that the cores are handed out anew"
        )
    visible = str(first) if cores == 1 else f"{first}-{last}"
    if backend == "neuron":
        # Its workers refuse to start where the other variable is set (vllm-neuron, worker).
        del environment[RAY_VARIABLE]
        environment[NATIVE_VARIABLE] = visible
    else:
        environment[RAY_VARIABLE] = visible
