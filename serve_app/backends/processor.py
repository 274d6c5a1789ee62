"""The processor of this machine: what a plan needs to know of it, and who gets which of its cores.

An engine's OpenMP threads are always busy. Where the scheduler also puts what serves (replica,
HAProxy, Ray) on their cores, every stream waits with them: on 2 cores, dividing these gave a fifth
more requests per second at concurrency 8.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

ENGINE_CPUS = "NEURON_SERVE_ENGINE_CPUS"
"""Environment variable: the logical processors of all engines here, for example `2,3`."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True)
class Machine:
    """What a plan needs to know of the machine that the replica runs on."""

    cores: int
    """Processor cores that replica and engine may use; two threads of one core count once."""
    cpu_flags: frozenset[str]
    engine_cpus: frozenset[int] = frozenset()
    """Logical processors set aside for engines; none: they share all."""


def this_machine() -> Machine:
    """The machine of this process (Linux: /proc/cpuinfo)."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                break
    except OSError:
        pass
    apart = _engine_cpus(os.environ)
    cores = len(_cores(os.sched_getaffinity(0) | apart))
    return Machine(cores, frozenset(flags), frozenset(apart))


def set_engines_apart(threads: int, environment: MutableMapping[str, str]) -> None:
    """From now on this process and its children leave as many cores as the engines have threads.

    Does nothing where that would leave it none.
    """
    cores = _cores(os.sched_getaffinity(0))
    if ENGINE_CPUS in environment or not 0 < threads < len(cores):
        return
    for_engines = set().union(*cores[-threads:])
    environment[ENGINE_CPUS] = ",".join(map(str, sorted(for_engines)))
    os.sched_setaffinity(0, os.sched_getaffinity(0) - for_engines)


def go_to_engine_cpus(environment: Mapping[str, str]) -> None:
    """In an engine's process: run on the processors that were set aside, if any."""
    if cpus := _engine_cpus(environment):
        os.sched_setaffinity(0, cpus)


def _engine_cpus(environment: Mapping[str, str]) -> set[int]:
    return {int(cpu) for cpu in environment.get(ENGINE_CPUS, "").split(",") if cpu}


def _cores(cpus: set[int]) -> list[set[int]]:
    """The logical processors of each core, in order."""
    cores: dict[str, set[int]] = {}
    for cpu in sorted(cpus):
        try:
            core = Path(_SIBLINGS.format(cpu)).read_text()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, set()).add(cpu)
    return list(cores.values())
