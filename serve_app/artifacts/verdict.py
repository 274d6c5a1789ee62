"""Does this artifact serve this configuration? Field by field, with the smallest mend.

vLLM's plugin loads whatever stands in NEURON_COMPILED_ARTIFACTS: NxDI takes its configuration
from the artifact, vLLM schedules by its own arguments, and nobody compares the two (vllm-neuron
worker/neuronx_distributed_model_loader.py, load_weights; the one exception is max_prompt_length).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.artifacts import manifest as manifests
from serve_app.artifacts.manifest import ArtifactError, Manifest
from serve_app.artifacts.recipe import RUNTIME, Recipe
from serve_app.neuron import nxdi_config


class Verdict(StrEnum):
    """`unsafe`: it would load, and answer wrongly or die later. `rebuild`: it would not load, or
    not be what the configuration asks for."""

    USABLE = "usable"
    REBUILD = "rebuild needed"
    UNSAFE = "unsafe"


class Difference(NamedTuple):
    """One field of which the artifact and the configuration think differently."""

    field: str
    artifact: Any
    wanted: Any
    verdict: Verdict
    why: str
    mend: str
    """The smallest change of the configuration that makes the artifact usable; "" for none."""

    def __str__(self) -> str:
        text = f"{self.field} is {_show(self.artifact)} in the artifact and {_show(self.wanted)} "
        text += f"here: {self.why}"
        return f"{text} -> {self.mend}" if self.mend else text


@dataclass(frozen=True)
class Judgement:
    """The verdict on an artifact, and what it rests on."""

    verdict: Verdict
    differences: tuple[Difference, ...] = ()
    faults: tuple[str, ...] = ()
    """Files that are missing or cut off."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = [*self.faults, *map(str, self.differences)]
        return "; ".join([str(self.verdict), *reasons])


class _Field(NamedTuple):
    """`more` is the verdict when the configuration asks for more than was compiled, or for
    something else; `less` when it asks for less."""

    more: Verdict
    less: Verdict
    why: str
    path: str
    """Where the configuration says it; "" = the Neuron configuration."""


_U, _R = Verdict.UNSAFE, Verdict.REBUILD
_SEQS = "sequences beyond the compiled batch index out of range"
_LENGTH = "tokens beyond the compiled length are cut or read out of range"
_LAYOUT = "vLLM and the graphs would lay out the KV cache differently"
_SPECULATION = "the graphs verify another number of tokens than the scheduler hands out"
_NXDI: dict[str, _Field] = {
    "tp_degree": _Field(_U, _U, "NxDI would start that many ranks", "engine.tensor_parallel_size"),
    "batch_size": _Field(_U, _R, _SEQS, "engine.max_num_seqs"),
    "tkg_batch_size": _Field(_U, _R, _SEQS, "engine.max_num_seqs"),
    "max_batch_size": _Field(_U, _R, _SEQS, "engine.max_num_seqs"),
    "ctx_batch_size": _Field(_U, _U, "the plugin prefills one prompt at a time", ""),
    "seq_len": _Field(_U, _R, _LENGTH, "engine.max_model_len"),
    "max_context_length": _Field(
        _U, _R, "prompts in between have no bucket", "engine.additional_config.max_prompt_length"
    ),
    "torch_dtype": _Field(_U, _U, "the weights would be cast to another type", "engine.dtype"),
    "is_continuous_batching": _Field(_U, _U, _LAYOUT, "engine.max_num_seqs"),
    "is_prefix_caching": _Field(_U, _U, _LAYOUT, "engine.enable_prefix_caching"),
    "is_block_kv_layout": _Field(_U, _U, _LAYOUT, "engine.enable_prefix_caching"),
    "pa_block_size": _Field(_U, _U, "blocks would be read out of range", "engine.block_size"),
    "pa_num_blocks": _Field(
        _U, _R, "blocks would be read out of range", "engine.num_gpu_blocks_override"
    ),
    "kv_cache_batch_size": _Field(_U, _R, _SEQS, "engine.max_num_seqs"),
    "on_device_sampling_config": _Field(
        _U, _U, "where and how tokens are sampled is compiled in", ""
    ),
    "output_logits": _Field(_U, _U, "what the graphs return is compiled in", ""),
    "speculation_length": _Field(
        _U, _U, _SPECULATION, "engine.speculative_config.num_speculative_tokens"
    ),
    "enable_fused_speculation": _Field(_U, _U, _SPECULATION, "engine.speculative_config"),
    "enable_eagle_speculation": _Field(_U, _U, _SPECULATION, "engine.speculative_config.method"),
    "apply_seq_ids_mask": _Field(_U, _U, "inactive sequences would write to the KV cache", ""),
    "quantized": _Field(_U, _U, "the weights would be read as another type", ""),
    "quantization_dtype": _Field(_U, _U, "the weights would be read as another type", ""),
    "logical_nc_config": _Field(
        _R, _R, "the runtime refuses to load it", "resources.logical_nc_config"
    ),
}
"""The fields that must match. Sources: vllm-neuron neuronx_distributed_model_loader.py
(_get_default_neuron_config, get_neuron_model) and neuronx_distributed_model_runner.py;
neuronx-distributed-inference models/config.py."""

_OTHER = _Field(_R, _R, "it was compiled otherwise", "")
_BLOCKS = ("pa_block_size", "pa_num_blocks")
_FOLLOWS = {
    "tkg_batch_size": "batch_size",
    "max_batch_size": "batch_size",
    "kv_cache_batch_size": "batch_size",
    "spec_batch_size": "batch_size",
    "is_block_kv_layout": "is_prefix_caching",
    "max_context_length": "seq_len",
    "world_size": "tp_degree",
}
"""A field that follows another is not told of when that one says it already."""


def judge(directory: Path, wanted: Recipe, deep: bool = False) -> Judgement | None:
    """The verdict on what is in `directory`; None when nothing was compiled there to the end.

    An artifact without our manifest is judged by what NxDI recorded. `deep` reads every file.

    Raises:
        ArtifactError: a manifest or record that cannot be read.
    """
    found = manifests.read(directory)
    if found is None:
        # NxDI's record alone is what a compile leaves that did not end: it is done again.
        if wanted.backend != "nxdi" or not (directory / manifests.GRAPHS).is_file():
            return None
        recipe, unknown = manifests.adopted(directory)
        sharded = bool(
            manifests.library_config(directory)["neuron_config"].get("save_sharded_checkpoint")
        )
        found = Manifest(recipe, recipe.key, {}, sharded, unknown=unknown)
    faults = manifests.verify(directory, found, deep)
    return compare(found, wanted, faults)


def compare(found: Manifest, wanted: Recipe, faults: list[str] | None = None) -> Judgement:
    """The verdict on a manifest against what a configuration wants."""
    differences = [*_model(found, wanted), *_software(found.recipe, wanted)]
    if found.recipe.backend == wanted.backend == "nxdi":
        differences += _neuron(found, wanted)
    elif found.recipe.backend == wanted.backend:
        differences += _native(found.recipe, wanted)
    worst = [difference.verdict for difference in differences]
    if faults:
        worst.append(Verdict.REBUILD)
    verdict = next((v for v in (_U, _R) if v in worst), Verdict.USABLE)
    notes = [f"the artifact does not tell its {name}" for name in found.unknown]
    if found.dropped:
        notes.append(f"compiled without {', '.join(found.dropped)}: the compiler refused")
    return Judgement(verdict, tuple(differences), tuple(faults or ()), tuple(notes))


def _model(found: Manifest, wanted: Recipe) -> Iterator[Difference]:
    ours, theirs = wanted.model, found.recipe.model
    for name, value in wanted.architecture.items():
        there = found.recipe.architecture.get(name)
        if there is not None and there != value:
            yield Difference(name, there, value, _U, "it is another model", "")
    if ours.config_sha256 and theirs.config_sha256:
        if ours.config_sha256 != theirs.config_sha256:
            why = "it is another model: what config.json says beside the shapes is compiled in"
            yield _digest("config.json", theirs.config_sha256, ours.config_sha256, why)
    elif ours.id and theirs.id and ours.id != theirs.id:
        mend = f"model.id: {theirs.id}"
        yield Difference("model.id", theirs.id, ours.id, _U, "it is another model", mend)
    if not found.weights_in_artifact:
        return
    there, here = theirs.weights_sha256, ours.weights_sha256
    if there and here and there != here:
        yield _digest("weights", there, here, "the artifact holds the weights of another model")
    if theirs.revision != ours.revision and None not in (theirs.revision, ours.revision):
        mend = f"model.revision: {theirs.revision}"
        why = "the artifact holds the weights of another revision"
        yield Difference("model.revision", theirs.revision, ours.revision, _U, why, mend)


def _digest(name: str, there: str, here: str, why: str) -> Difference:
    return Difference(name, there[:12], here[:12], _U, why, "")


def _software(found: Recipe, wanted: Recipe) -> Iterator[Difference]:
    if found.backend != wanted.backend:
        mend = f"backend: {found.backend}"
        yield Difference("backend", found.backend, wanted.backend, _R, "it cannot load it", mend)
    if found.platform and wanted.platform and found.platform != wanted.platform:
        why = "graphs run on the chip that they were compiled for"
        yield Difference("platform", found.platform, wanted.platform, _R, why, "")
    if found.sdk and wanted.sdk and found.sdk != wanted.sdk:
        why = "the runtime may refuse graphs of another SDK"
        mend = f'stack.sdk: "{found.sdk}"'
        yield Difference("sdk", found.sdk, wanted.sdk, _R, why, mend)


def _neuron(found: Manifest, wanted: Recipe) -> Iterator[Difference]:
    theirs, ours = found.recipe.neuron, wanted.neuron
    known = nxdi_config.keys("neuron", "moe")
    paged = bool(theirs.get("is_block_kv_layout") or ours.get("is_block_kv_layout"))
    skipped = {*RUNTIME, *found.dropped, *(() if paged else _BLOCKS)}
    told: set[str] = set()
    for name in [*_NXDI, *(name for name in known if name not in _NXDI)]:
        if name in skipped or _FOLLOWS.get(name) in told:
            continue
        there, here = (_or_default(values, known[name], name) for values in (theirs, ours))
        if _equal(_value(there), _value(here)):
            continue
        told.add(name)
        field = _NXDI.get(name, _OTHER)
        less = isinstance(here, int) and isinstance(there, int) and here < there
        mend = _mend(name, field, there)
        yield Difference(name, there, here, field.less if less else field.more, field.why, mend)


def _or_default(values: Mapping[str, Any], key: nxdi_config.Key, name: str) -> Any:
    """An absent key has NeuronConfig's default; the release that compiled may not know it."""
    default = key.default
    if isinstance(default, str) and default.startswith("="):
        default = values.get(default[1:])
    value = values.get(name)
    return default if value is None else value


def _mend(name: str, field: _Field, value: Any) -> str:
    if name == "pa_num_blocks" and isinstance(value, int):
        value -= 1  # the plugin adds the null block
    if name == "is_continuous_batching":
        return f"{field.path}: {'2 or more' if value else 1}"
    if name in ("enable_fused_speculation", "enable_eagle_speculation"):
        return f"change {field.path}"
    path = field.path or f"engine.additional_config.override_neuron_config.{name}"
    return f"{path}: {_show(value)}"


def _native(found: Recipe, wanted: Recipe) -> Iterator[Difference]:
    # The plugin's cache is addressed by content: a difference compiles, it never loads wrongly.
    for name in sorted({*found.neuron, *wanted.neuron}):
        there, here = _value(found.neuron.get(name)), _value(wanted.neuron.get(name))
        if not _equal(there, here):
            why = "the cache has no graph for it"
            yield Difference(name, there, here, _R, why, f"{name}: {_show(there)}")


def _value(value: Any) -> Any:
    return False if value is None else value


def _equal(there: Any, here: Any) -> bool:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        # Releases add keys: only those that both know are compared.
        return all(_equal(_value(there[k]), _value(here[k])) for k in there.keys() & here.keys())
    if isinstance(there, list) and isinstance(here, list):
        return sorted(map(str, there)) == sorted(map(str, here))
    return bool(there == here)


def _show(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


__all__ = ["ArtifactError", "Difference", "Judgement", "Verdict", "compare", "judge"]
