"""Back ends: what a configuration becomes on one kind of processor. Pure data."""

from serve_app.backends.choice import choose_backend
from serve_app.backends.cpu import CpuBackend
from serve_app.backends.engines import engines, engines_of, side_channels
from serve_app.backends.neuron import NeuronBackend
from serve_app.backends.nxdi import NxdiBackend
from serve_app.backends.plan import Backend, EnginePlan
from serve_app.backends.processor import Machine, this_machine
from serve_app.backends.target import Target
from serve_app.config import AppArgs

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CpuBackend(), NxdiBackend(), NeuronBackend())
}
"""Every back end by the name that `backend:` of a config file uses."""


def make_plan(args: AppArgs, machine: Machine | None = None) -> EnginePlan:
    """The plan of one engine, by the back end that the configuration names or the one that fits.

    Raises:
        ConfigError: the target (instance, SDK) is not known.
    """
    name, reason = choose_backend(args)
    return BACKENDS[name].plan(args, machine or this_machine()).because(reason)


__all__ = [
    "BACKENDS",
    "Backend",
    "EnginePlan",
    "Machine",
    "Target",
    "choose_backend",
    "engines",
    "engines_of",
    "make_plan",
    "side_channels",
    "this_machine",
]
