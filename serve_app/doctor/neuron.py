"""Neuron devices, their driver, who holds their cores, and EFA."""

from __future__ import annotations

import json
import resource
import shutil
from typing import Any

from serve_app.doctor.check import Answer, check, fail, ok, warn
from serve_app.doctor.machine import Machine
from serve_app.neuron.instances import Instance, instances

_NEURON_LS = "opt/aws/neuron/bin/neuron-ls"
_TROUBLE = "aws-neuron-sdk neuron-runtime/nrt-troubleshoot.rst"


@check("neuron", "Neuron devices are there, as many as the instance has", "neuron/instances.json")
def neuron(machine: Machine) -> Answer:
    expected = instance(machine)
    if not expects_neuron(machine):
        return ok("no Neuron device: backend cpu")
    name = product(machine)
    if neuron_ls(machine) is None:
        return fail(
            "there is no neuron-ls, so Ray cannot count the cores either",
            "install aws-neuronx-tools (/opt/aws/neuron/bin), or use AWS's image",
        )
    found = devices(machine)
    if not found:
        return fail(
            f"neuron-ls shows no device{f' on this {name}' if expected else ''}",
            "in a container: --device /dev/neuron0, limits aws.amazon.com/neuron; else the driver",
        )
    cores = sum(int(one.get("nc_count", 0)) for one in found)
    line = f"{len(found)} Neuron devices, {cores} cores"
    if lnc := found[0].get("logical_neuroncore_config"):
        line += f" (LNC {lnc})"
    if expected and len(found) < expected.devices:
        mend = "right for a container that was given a part; else look at `dmesg | grep -i neuron`"
        return warn(f"{line}; {name} has {expected.devices} devices", mend)
    return ok(f"{line} on {name}" if expected else line)


@check("neuron-driver", "The Neuron driver is loaded", f"{_TROUBLE}, Application fails to start")
def driver(machine: Machine) -> Answer | None:
    if not expects_neuron(machine):
        return None
    version = machine.read("sys/module/neuron/version")
    if version is None and not (machine.root / "sys/module/neuron").is_dir():
        return fail(
            "the Neuron driver is not loaded",
            "sudo modprobe neuron; if there is none: install aws-neuronx-dkms on the host",
        )
    return ok(f"Neuron driver {version or 'is loaded'}")


@check("neuron-cores", "Cores are free", f"{_TROUBLE}, Neuron Core is in use")
def cores(machine: Machine) -> Answer | None:
    if not expects_neuron(machine) or neuron_ls(machine) is None:
        return None
    found = devices(machine)
    if not found:
        return None
    held = [one for one in found if one.get("neuron_processes")]
    if not held:
        return ok("no process holds a core")
    words = [
        f"device {one.get('neuron_device')} by {', '.join(map(_holder, one['neuron_processes']))}"
        for one in held
    ]
    line = f"held: {'; '.join(words)}"
    if len(held) < len(found):
        return ok(f"{len(found) - len(held)} of {len(found)} devices are free; {line}")
    return warn(f"no device is free; {line}", "end those that should not run: `neuron-ls`")


@check("efa", "EFA interfaces are there, and may lock memory", "neuron/instances.json; libfabric")
def efa(machine: Machine) -> Answer | None:
    expected = instance(machine)
    folder = machine.root / "sys/class/infiniband"
    there = len(list(folder.iterdir())) if folder.is_dir() else 0
    wanted = (expected.efa_interfaces or 0) if expected else 0
    if not there:
        if not wanted:
            return None
        return warn(
            f"no EFA interface, and {product(machine)} can have {wanted}",
            "needed for prefill/decode and several nodes: limits vpc.amazonaws.com/efa",
        )
    locked = machine.soft_limit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY:
        return fail(
            f"{there} EFA interfaces, and only {locked >> 10} KiB may be locked (ulimit -l)",
            "ulimit -l unlimited; docker --ulimit memlock=-1; Kubernetes: capability IPC_LOCK",
        )
    return ok(f"{there} EFA interfaces; memory may be locked without limit")


def product(machine: Machine) -> str:
    """What the firmware calls this machine: on EC2 the instance type."""
    return machine.read("sys/devices/virtual/dmi/id/product_name") or "?"


def instance(machine: Machine) -> Instance | None:
    """The catalogue's entry for this machine."""
    return instances().get(product(machine))


def expects_neuron(machine: Machine) -> bool:
    """Whether this is a machine with Neuron devices, or says so."""
    return (
        instance(machine) is not None
        or any((machine.root / "dev").glob("neuron*"))
        or (machine.root / _NEURON_LS).is_file()
    )


def neuron_ls(machine: Machine) -> str | None:
    """Where the tool is: Ray only looks in AWS's folder."""
    binary = machine.root / _NEURON_LS
    if binary.is_file():
        return str(binary)
    return shutil.which("neuron-ls", path=machine.environ.get("PATH", ""))


def devices(machine: Machine) -> list[dict[str, Any]]:
    """What neuron-ls tells of each device (aws-neuron-sdk tools/neuron-sys-tools/neuron-ls.rst).

    Raises:
        OSError, RuntimeError: it does not run. ValueError: what it says is no such list.
    """
    tool = neuron_ls(machine)
    if tool is None:
        raise RuntimeError("there is no neuron-ls")
    said = json.loads(machine.run([tool, "--json-output"]) or "[]")
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise ValueError("neuron-ls did not print a list of devices")
    return said


def _holder(process: dict[str, Any]) -> str:
    # Only the program: its arguments may hold secrets.
    program = next(iter(str(process.get("command", "")).split()), "?")
    return f"pid {process.get('pid')} ({program[:40]})"
