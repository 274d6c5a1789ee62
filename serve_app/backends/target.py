"""Where on Neuron an engine runs: instance, cores, software stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.config import AppArgs, ConfigError, Finding, Severity
from serve_app.neuron.instances import Instance, instances
from serve_app.neuron.stacks import Stack, choose, stacks


@dataclass(frozen=True)
class Target:
    """The hardware and software that a plan is for."""

    instance: Instance
    lnc: int
    """Logical NeuronCore configuration, 1 or 2."""
    stack: Stack
    cores: int
    """Logical cores of one replica."""

    @property
    def devices(self) -> int:
        """Whole devices that one replica's cores lie on."""
        return -(-self.cores // self.instance.cores_per_device(self.lnc))


def find_target(args: AppArgs, backend: str) -> Target:
    """Instance and stack of a Neuron back end.

    Raises:
        ConfigError: no instance, an unknown one, or an SDK that there is not.
    """
    faults = []
    instance = instances().get(args.instance or "")
    if args.instance is None:
        mend = "name the EC2 instance type, for example instance: inf2.8xlarge"
        faults.append(_error("instance", f"backend {backend} needs to know the instance", mend))
    elif instance is None:
        mend = f"known: {', '.join(instances())}"
        faults.append(_error("instance", f"there is no Neuron instance {args.instance!r}", mend))
    stack = choose(backend, instance.family if instance else "", args.stack.sdk)
    if stack is None:
        known = dict.fromkeys(s.sdk for s in stacks() if s.backend == backend)
        message = f"no SDK {args.stack.sdk} with backend {backend} is known"
        faults.append(_error("stack.sdk", message, f"known: {', '.join(known)}"))
    if instance is None or stack is None:
        raise ConfigError(faults)
    lnc = args.resources.logical_nc_config or instance.default_lnc
    return Target(instance, lnc, stack, world_size(args.engine))


def world_size(engine: Mapping[str, Any]) -> int:
    """Ranks of one engine, each on a logical core of its own."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    size = 1
    for name in sizes:
        value = engine.get(name)
        size *= value if isinstance(value, int) and value > 0 else 1
    return size


def _error(path: str, message: str, mend: str) -> Finding:
    return Finding("target", Severity.ERROR, message, mend, path)
