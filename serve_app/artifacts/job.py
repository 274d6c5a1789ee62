"""The command that compiles what a configuration wants, and nothing else decides its fields.

`nxdi`: AWS's `inference_demo`, because each field of NeuronConfig stands in its command line and
can be compared, and it ends when the compile ends. What it cannot express (models that it does not
know, LoRA, speculation, keys without a flag) goes through vLLM's plugin itself, with the very
arguments that the replica serves with. Either way a chip of the family is needed: NxDI reads the
platform from it.

`neuron`: a start of vLLM that ends when everything is compiled. With `chip=False` it runs on any
machine (vllm-neuron docs/design/compilation/cpu_compilation.md).

Source of the flags: neuronx-distributed-inference src/.../inference_demo.py (2.29).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serve_app.artifacts.recipe import RUNTIME, Recipe
from serve_app.backends.effective import neuron_configuration
from serve_app.backends.neuron import FROZEN
from serve_app.backends.plan import EnginePlan
from serve_app.config import AppArgs, ConfigError, Finding, Severity
from serve_app.neuron import nxdi_config

MODEL_TYPES = (
    "llama",
    "mistral",
    "mixtral",
    "dbrx",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma3",
)
"""What `inference_demo --model-type` takes."""

_SWITCHES = frozenset(
    """apply_seq_ids_mask attn_block_tkg_nki_kernel_cache_update
    attn_block_tkg_nki_kernel_cascaded_attention attn_block_tkg_nki_kernel_enabled
    bucket_n_active_tokens disable_kv_cache_tiling disable_normalize_top_k_affinities
    early_expert_affinity_modulation enable_bucketing enable_spill_reload_dge
    flash_decoding_enabled fused_qkv fused_rmsnorm_skip_gamma fused_shared_experts
    is_block_kv_layout is_continuous_batching is_prefix_caching k_cache_transposed
    kv_cache_quant layer_boundary_markers mlp_kernel_enabled mlp_kernel_fuse_residual_add
    output_logits qkv_cte_nki_kernel_fuse_rope qkv_kernel_enabled qkv_kernel_fuse_residual_add
    qkv_kernel_nbsd_layout qkv_nki_kernel_enabled quantized quantized_mlp_kernel_enabled
    rmsnorm_quantize_kernel_enabled save_sharded_checkpoint sequence_parallel_enabled
    strided_context_parallel_kernel_enabled vocab_parallel""".split()
)
_VALUES = frozenset(
    """activation_quantization_type attention_dp_degree attention_dtype batch_size capacity_factor
    cast_type cc_pipeline_tiling_factor context_encoding_buckets cp_degree ctx_batch_size ep_degree
    kv_cache_batch_size kv_cache_padding_size logical_nc_config max_batch_size max_context_length
    mlp_cp_degree moe_ep_degree moe_tp_degree pa_block_size pa_num_blocks padding_side pp_degree
    prefix_buckets quantization_dtype quantization_type quantized_checkpoints_path
    quantize_clamp_bound router_act_fn router_dtype rpl_reduce_dtype scratchpad_page_size seq_len
    tkg_batch_size token_generation_buckets torch_dtype tp_degree weight_gather_seq_len_threshold
    windowed_context_encoding_size world_size""".split()
)
_SAMPLING_SWITCHES = ("do_sample", "dynamic", "top_k_kernel_enabled")
_SAMPLING_VALUES = ("global_topk", "sampling_dp_degree", "temperature", "top_k", "top_p")
_SPELLED = {
    "is_block_kv_layout": "--enable-block-kv-layout",
    "is_prefix_caching": "--enable-prefix-caching",
}
_ALWAYS = (
    "tp_degree",
    "batch_size",
    "max_context_length",
    "seq_len",
    "torch_dtype",
    "logical_nc_config",
    "ctx_batch_size",
    "tkg_batch_size",
    "is_continuous_batching",
)
"""Said also where they equal a default: people compare them with what they serve."""

_NOT_SAID = RUNTIME - {"save_sharded_checkpoint", "quantized_checkpoints_path"} | {
    # NxDI derives them from what is said.
    "max_batch_size",
    "kv_cache_batch_size",
    "spec_batch_size",
    "world_size",
    "lm_head_pad",
    "overrides_torch_dtype",
}

_WARM_UP = (
    "import sys; from vllm.engine.arg_utils import EngineArgs; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser; "
    "from vllm.v1.engine.llm_engine import LLMEngine; "
    "a = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(sys.argv[1:]); "
    "LLMEngine.from_engine_args(EngineArgs.from_cli_args(a))"
)
"""Starts the engine with the arguments of `vllm serve` and ends; vLLM's plugin compiles on the way.
The arguments stay in sys.argv, where the native plugin looks for --optimization-level."""

_SERVER_ONLY = (
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "--reasoning-parser",
    "--chat-template",
    "--served-model-name",
)


@dataclass(frozen=True)
class Job:
    """One compile: what to run, with which environment, and where the result goes."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    """Values may hold ${NAME}, filled where the job runs."""
    directory: str
    """The artifact (nxdi), or the compile cache (neuron)."""
    chip: str | None
    """The chip that the machine must have; None for any machine."""
    how: str
    """Which way, and why that one."""
    dropped: tuple[str, ...] = ()
    """Kernel flags that were left out after the compiler refused them."""

    def shell(self) -> str:
        """The environment and the command, as a shell takes them."""
        lines = [f"export {name}={_quoted(value)}" for name, value in sorted(self.env.items())]
        return "\n".join([*lines, _wrapped(self.command)])


def compile_job(
    args: AppArgs,
    plan: EnginePlan,
    recipe: Recipe,
    model: str,
    *,
    directory: str | None = None,
    chip: bool = True,
    without: Iterable[str] = (),
) -> Job:
    """The job for one application.

    `model`: a directory or hub repository. `directory`: another place than artifacts.path for the
    result. `without`: keys of NeuronConfig to switch off (the kernel fall-back).

    Raises:
        ConfigError: there is nowhere to put the result, or the back end has nothing to compile.
    """
    if plan.backend == "cpu":
        raise _refusal("backend", "backend cpu compiles nothing", "choose nxdi or neuron")
    if plan.backend == "neuron":
        return _native(args, plan, recipe, model, chip)
    directory = directory or args.artifacts.path
    if not directory:
        mend = "set artifacts.path to the directory that the replicas read"
        raise _refusal("artifacts.path", "there is nowhere to put the compiled model", mend)
    effective = dict(neuron_configuration(args, plan).effective)
    off = frozenset(name for name in without if effective.get(name))
    effective.update(dict.fromkeys(off, False))
    return _nxdi(args, plan, recipe, model, directory, effective, tuple(sorted(off)))


def _nxdi(
    args: AppArgs,
    plan: EnginePlan,
    recipe: Recipe,
    model: str,
    directory: str,
    effective: Mapping[str, Any],
    off: tuple[str, ...],
) -> Job:
    assert plan.target is not None
    env = {name: value for name, value in plan.env.items() if name != "NEURON_COMPILED_ARTIFACTS"}
    # NxDI empties its work directory first; two compiles on a machine must not share one.
    env.setdefault("BASE_COMPILE_WORK_DIR", f"/tmp/neuron-serve-compile-{recipe.key}/")
    job = Job((), env, directory, plan.target.instance.family, "", off)
    kind = str(recipe.architecture.get("model_type", ""))
    flags, silent = flags_of(effective)
    if kind in MODEL_TYPES and not silent and not args.engine.get("speculative_config"):
        command = ["inference_demo", "--model-type", kind, "--task-type", "causal-lm", "run"]
        command += ["--model-path", model, "--compiled-model-path", directory]
        command += ["--prompt", "compile", "--compile-only", *flags]
        return replace(job, command=tuple(command), how="inference_demo: every field is a flag")
    if args.engine.get("speculative_config"):
        why = "speculative decoding compiles two models"
    elif silent:
        why = f"inference_demo has no flag for {', '.join(silent)}"
    else:
        why = f"inference_demo does not know model type {kind or '(unknown)'}"
    env["NEURON_COMPILED_ARTIFACTS"] = directory
    command = _engine_command(plan, model, {"additional_config": _without(plan, off)})
    return replace(job, command=tuple(command), how=f"vLLM's plugin: {why}")


def flags_of(effective: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Flags of `inference_demo run` for a NeuronConfig, and the keys that have none."""
    known = nxdi_config.keys("neuron", "moe", "vision")
    flags: list[str] = []
    silent: list[str] = []
    paged = bool(effective.get("is_block_kv_layout"))
    for name in [*_ALWAYS, *(name for name in effective if name not in _ALWAYS)]:
        value = effective.get(name)
        if value is None or name in _NOT_SAID or (name.startswith("pa_") and not paged):
            continue
        if name not in _ALWAYS and _is_default(name, value, known, effective):
            continue
        if name == "on_device_sampling_config" and isinstance(value, Mapping):
            flags += _sampling(value)
        elif name == "attn_kernel_enabled":
            flags.append("--attn-kernel-enabled" if value else "--no-attn-kernel-enabled")
        elif name in _SWITCHES:
            flags += [_flag(name)] if value else []
        elif name in _VALUES:
            flags += [_flag(name), *map(str, value if isinstance(value, list) else [value])]
        else:
            silent.append(name)
    return flags, silent


def _sampling(config: Mapping[str, Any]) -> list[str]:
    defaults = nxdi_config.keys("on_device_sampling_config")
    flags = ["--on-device-sampling"]
    flags += [_flag(name) for name in _SAMPLING_SWITCHES if config.get(name)]
    for name in _SAMPLING_VALUES:
        value = config.get(name)
        if value is not None and value != defaults[name].default:
            flags += [_flag(name), str(value)]
    return flags


def _is_default(
    name: str, value: Any, known: Mapping[str, nxdi_config.Key], config: Mapping[str, Any]
) -> bool:
    key = known.get(name)
    if key is None:
        return False
    default = key.default
    if isinstance(default, str) and default.startswith("="):
        default = config.get(default[1:])
    return bool(value == default) or (not value and not default)


def _native(args: AppArgs, plan: EnginePlan, recipe: Recipe, model: str, chip: bool) -> Job:
    env = {name: value for name, value in plan.env.items() if name not in FROZEN}
    family = plan.target.instance.family if plan.target else ""
    if chip:
        how = "a start of vLLM that fills the compile cache"
    else:
        env["VLLM_NEURON_CPU_COMPILE"] = "1"
        env["NEURON_PLATFORM_TARGET_OVERRIDE"] = recipe.platform or family
        how = "a start of vLLM that compiles on the processor and fills the compile cache"
        if args.engine.get("speculative_config"):
            mend = "compile on the chip"
            message = "speculative decoding cannot be compiled without a chip"
            raise _refusal("engine.speculative_config", message, mend)
    directory = args.artifacts.store or args.artifacts.compile_cache
    if not directory:
        mend = "set artifacts.compile_cache, or artifacts.store to a mount that machines share"
        raise _refusal("artifacts", "what is compiled would be lost with this machine", mend)
    command = _engine_command(plan, model, {})
    return Job(tuple(command), env, directory, family if chip else None, how)


def _engine_command(plan: EnginePlan, model: str, changed: Mapping[str, Any]) -> list[str]:
    engine = {**plan.engine_args, **{name: value for name, value in changed.items() if value}}
    words = replace(plan, engine_args=engine).command(model, "compile")[2:]
    kept = []
    skip = False
    for word in words[1:]:
        if skip:
            skip = False
        elif word.split("=")[0] in _SERVER_ONLY:
            skip = word == "--served-model-name"
        else:
            kept.append(word)
    return ["python", "-c", _WARM_UP, f"--model={words[0]}", *kept]


def _without(plan: EnginePlan, off: Iterable[str]) -> Any:
    extra = plan.engine_args.get("additional_config")
    if not isinstance(extra, Mapping) or not isinstance(extra.get("override_neuron_config"), dict):
        return None
    override = {**extra["override_neuron_config"], **dict.fromkeys(off, False)}
    return {**extra, "override_neuron_config": override}


def _flag(name: str) -> str:
    return _SPELLED.get(name, "--" + name.replace("_", "-"))


def _quoted(value: str) -> str:
    # ${NAME} is filled by the shell; double quotes keep everything else as it is.
    if "${" in value:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`") + '"'
    return shlex.quote(value)


def _wrapped(command: Iterable[str]) -> str:
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(_quoted(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


def _refusal(path: str, message: str, mend: str) -> ConfigError:
    return ConfigError([Finding("compile", Severity.ERROR, message, mend, path)])
