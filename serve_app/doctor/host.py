"""Memory, disks, limits, and what stands in the way of a download."""

from __future__ import annotations

import resource
from pathlib import Path

from serve_app.doctor.check import Answer, check, fail, ok, warn
from serve_app.doctor.machine import Machine
from serve_app.doctor.neuron import expects_neuron

_GIB = 2**30
_RAY_STOPS = 0.95
"""Share of a disk: beyond it Ray no longer spills there (ray, local_fs_capacity_threshold)."""


@check("memory", "Memory is free", "docs: engine and Ray take 2.5 GB with the demo model")
def memory(machine: Machine) -> Answer:
    available, total = machine.memory()
    line = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB of memory are available"
    if available < 3 * _GIB:
        return warn(line, "the smallest model needs about 3 GiB: end what else runs here")
    return ok(line)


@check("processors", "Processors that this process may use", "cgroup v2, cpu.max")
def processors(machine: Machine) -> Answer:
    count = machine.cpus()
    quota, _, period = (machine.read("sys/fs/cgroup/cpu.max") or "max").partition(" ")
    if quota == "max":
        return ok(f"{count} processors")
    allowed = int(quota) / int(period or 100000)
    if allowed < min(2, count):
        return warn(
            f"{allowed:g} of {count} processors are allowed here (cgroup)",
            "give the container 2 at least: limits.cpu, docker --cpus",
        )
    return ok(f"{allowed:g} of {count} processors are allowed here (cgroup)")


@check("shared-memory", "/dev/shm is large enough", "ray/_private/services.py; vLLM's workers")
def shared_memory(machine: Machine) -> Answer | None:
    place = machine.root / "dev/shm"
    if not place.is_dir():
        return None
    _, total = machine.disk(place)
    line = f"/dev/shm has {total / _GIB:.2g} GiB"
    if total < _GIB:
        mend = "docker --shm-size=10g; Kubernetes: emptyDir of medium Memory at /dev/shm"
        return warn(f"{line}: Ray's object store goes to the disk, and workers may fail", mend)
    return ok(line)


@check("disks", "The disks of caches and of Ray have space", "ray, local_fs_capacity_threshold")
def disks(machine: Machine) -> Answer:
    places = {"models": machine.hub_home, "Ray": Path("/tmp")}
    if expects_neuron(machine):
        places["compile cache"] = Path("/var/tmp")
    low, full, told = [], [], []
    for name, path in places.items():
        there = next(p for p in (path, *path.parents) if p.is_dir())
        free, total = machine.disk(there)
        words = f"{name} ({path}) {free / _GIB:.0f} GiB free"
        told.append(words)
        if name == "Ray" and free < (1 - _RAY_STOPS) * total:
            full.append(f"{words}, over 95 % full: Ray stops spilling there")
        elif free < 10 * _GIB:
            low.append(words)
    if full or low:
        mend = "free space, or move the caches: HF_HOME, artifacts.compile_cache"
        return (fail if full else warn)("; ".join(full + low), mend)
    return ok("; ".join(told))


@check("open-files", "Enough files may be opened", "aws-neuron/aws-neuron-sdk#713")
def open_files(machine: Machine) -> Answer:
    limit = machine.soft_limit(resource.RLIMIT_NOFILE)
    words = "without limit" if limit == resource.RLIM_INFINITY else str(limit)
    if limit != resource.RLIM_INFINITY and limit < 4096:
        return warn(
            f"{limit} files may be open at once (ulimit -n)",
            "ulimit -n 65536; docker --ulimit nofile=65536:65536",
        )
    return ok(f"files that may be open at once: {words}")


@check("hub", "What the hub's downloads find", "huggingface_hub/constants.py")
def hub(machine: Machine) -> Answer:
    offline = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if machine.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
    ]
    if offline:
        return warn(f"{' and '.join(offline)} set: nothing is downloaded", "unset, if not meant")
    # Only whether there is one: its text is nobody's business.
    token = bool(machine.environ.get("HF_TOKEN", "").strip())
    token = token or (machine.hub_home / "token").is_file()
    return ok("a token is set" if token else "no token: public models only, with a lower rate")
