"""The catalogue of Neuron instances; the numbers and their sources are in `instances.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Instance:
    """One instance type. None: not known from a source."""

    name: str
    family: str
    """inf2, trn1, trn1n, trn2, trn2u or trn3."""
    devices: int
    physical_cores_per_device: int
    default_lnc: int
    """Physical cores that one logical core is made of, unless configured otherwise."""
    hbm_gib_per_device: int
    vcpu: int | None
    host_gib: int | None
    efa_interfaces: int | None
    nvme_gb: int | None
    tp_degrees: tuple[int, ...] | None
    """Tensor-parallel degrees that the runtime supports here, at the default LNC."""
    device_counts: tuple[int, ...]
    """Devices that one pod may ask for (Neuron scheduler extension)."""
    verified: bool
    """False: some number is from a source that is not AWS's."""
    sources: Mapping[str, str]
    """Field -> where the number is from."""

    @property
    def generation(self) -> int:
        """1 for NeuronCore-v2 (inf2, trn1, trn1n), 2 for trn2, 3 for trn3."""
        return {"trn2": 2, "trn2u": 2, "trn3": 3}.get(self.family, 1)

    def cores_per_device(self, lnc: int) -> int:
        """Logical cores of one device."""
        return self.physical_cores_per_device // lnc

    def cores(self, lnc: int) -> int:
        """Logical cores of the instance."""
        return self.devices * self.cores_per_device(lnc)

    def hbm_gib_per_core(self, lnc: int) -> float:
        """Device memory that one logical core owns, GiB (at LNC 1 on trn2: on average)."""
        return self.hbm_gib_per_device / self.cores_per_device(lnc)


@cache
def instances() -> Mapping[str, Instance]:
    """Every known instance by its name."""
    text = files("serve_app.neuron").joinpath("instances.json").read_text()
    table: dict[str, dict[str, Any]] = json.loads(text)
    return {
        name: Instance(name=name, **{k: _frozen(v) for k, v in fields.items()})
        for name, fields in table.items()
    }


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
