"""What a configuration wants compiled: every value that the graphs depend on.

The values are NeuronConfig's for `nxdi`, with what vLLM's plugin derives; for `neuron` they are
vLLM's arguments and the plugin's own keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serve_app.backends.effective import neuron_configuration
from serve_app.backends.plan import EnginePlan
from serve_app.config import AppArgs
from serve_app.neuron import nxdi_config
from serve_app.neuron.model_facts import ModelFacts

ARCHITECTURE = {
    "model_type": "model_type",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "vocab_size": "vocab_size",
}
"""Fields of config.json that tell one model from another, and ours of the same meaning."""

RUNTIME = frozenset(
    {
        # How it is loaded or run, not what is in the graphs (NxDI models/config.py;
        # async_mode: nxdi feature guide, asynchronous runtime).
        "async_mode",
        "allow_input_truncation",
        "enable_output_completion_notifications",
        "local_ranks_size",
        "on_cpu",
        "quantized_checkpoints_path",
        "save_sharded_checkpoint",
        "skip_sharding",
        "skip_warmup",
        "start_rank_id",
        "tensor_capture_config",
        "tensor_replacement_config",
        # Other names of fields that are compared.
        "buckets",
        "logical_neuron_cores",
        "max_length",
        "max_new_tokens",
        "n_active_tokens",
        "n_positions",
    }
)

_NATIVE_ARGUMENTS = (
    "block_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "dtype",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "hf_overrides",
    "kv_cache_dtype",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "num_gpu_blocks_override",
    "optimization_level",
    "pipeline_parallel_size",
    "speculative_config",
    "tensor_parallel_size",
)
"""vLLM arguments that the native plugin's graphs depend on (vllm-neuron, compile cache design)."""


_PACKAGES = ("vllm", "vllm-neuron", "neuronx-distributed-inference", "neuronx-cc", "torch")


@dataclass(frozen=True)
class Model:
    """Which model, as far as it is known. Digests are SHA-256, hexadecimal."""

    id: str | None = None
    revision: str | None = None
    config_sha256: str | None = None
    """Of config.json: what it holds beside the shapes (RoPE, epsilons) is in the graphs."""
    weights_sha256: str | None = None
    """Of the index of the weights, or of the files' names and sizes when there is none."""


@dataclass(frozen=True)
class Recipe:
    """Everything that what is compiled depends on."""

    backend: str
    model: Model
    architecture: Mapping[str, Any]
    neuron: Mapping[str, Any]
    """NeuronConfig's values (nxdi), or vLLM's and the plugin's (neuron)."""
    platform: str | None
    """Chip generation that the graphs run on: inf2, trn1, trn2, trn3."""
    sdk: str | None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    """Packages: vllm, vllm-neuron, neuronx-distributed-inference, neuronx-cc, torch."""

    @property
    def key(self) -> str:
        """Digest under which a store keeps it: 16 hexadecimal digits.

        Only what is known without the model's files and without the tool chain is in it.
        """
        facts = asdict(self)
        facts["model"] = {"id": self.model.id, "revision": self.model.revision}
        del facts["versions"], facts["architecture"]
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_of(
    args: AppArgs, plan: EnginePlan, facts: ModelFacts | None, directory: str | None = None
) -> Recipe:
    """What this configuration wants compiled. `directory`: the model's files, if they are here."""
    assert plan.target is not None
    effective = neuron_configuration(args, plan).effective
    if plan.backend == "nxdi":
        images = nxdi_config.keys("vision")
        neuron = {
            name: value
            for name, value in effective.items()
            if value is not None and name not in RUNTIME and name not in images
        }
    else:
        given = {name: plan.engine_args.get(name) for name in _NATIVE_ARGUMENTS}
        neuron = {k: v for k, v in {**effective, **given}.items() if v is not None}
        neuron["logical_nc_config"] = plan.target.lnc
    stack = plan.target.stack
    return Recipe(
        backend=plan.backend,
        model=model_of(args.model.id, args.model.revision, directory),
        architecture={n: getattr(facts, our) for n, our in ARCHITECTURE.items()} if facts else {},
        neuron=neuron,
        platform=platform_of(plan.target.instance.family),
        sdk=stack.sdk,
        versions={
            "vllm": stack.vllm,
            "vllm-neuron": stack.plugin,
            "neuronx-distributed-inference": stack.nxdi,
        },
    )


def platform_of(family: str) -> str:
    """trn1n and trn2u have the chips of trn1 and trn2."""
    return {"trn1n": "trn1", "trn2u": "trn2"}.get(family, family)


def model_of(id: str | None, revision: str | None, directory: str | None) -> Model:
    """Identity of a model; the digests when its files are in `directory`."""
    if directory is None or not Path(directory, "config.json").is_file():
        return Model(id, revision)
    config = Path(directory, "config.json").read_bytes()
    return Model(id, revision, hashlib.sha256(config).hexdigest(), _weights(Path(directory)))


def _weights(directory: Path) -> str | None:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return hashlib.sha256(index.read_bytes()).hexdigest()
    sizes = {file.name: file.stat().st_size for file in directory.glob("*.safetensors")}
    text = json.dumps(sizes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if sizes else None


def with_versions(recipe: Recipe) -> Recipe:
    """The recipe with the versions of the packages that are installed here."""
    return replace(recipe, versions={name: _installed(name) for name in _PACKAGES})


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
