"""Where on Neuron an engine runs: instance, cores, software stack."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.neuron.instances import Instance
from serve_app.neuron.stacks import Stack


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
