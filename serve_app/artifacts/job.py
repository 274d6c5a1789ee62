"""The command that compiles what a configuration wants, and nothing else decides its fields.

`nxdi`: AWS's `inference_demo`, because each field of NeuronConfig stands in its command line and
can be compared, and it ends when the compile ends. What it cannot express (models that it does not
know, LoRA, speculation, keys without a flag) goes through vLLM's plugin itself, with the very
arguments that the replica serves with. Either way a chip of the family is needed: NxDI reads the
platform from it.

`neuron`: a start of vLLM that ends when everything is compiled. With `chip=False` it runs on any
machine (vllm-neuron docs/design/compilation/cpu_compilation.md).

The flags are in `inference_demo.json`: keys of NeuronConfig with a switch or a value, those of
on_device_sampling_config, and the two that are spelled otherwise. Source:
neuronx-distributed-inference inference_demo.py (2.29).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from serve_app.artifacts.recipe import RUNTIME, Recipe
from serve_app.backends.effective import neuron_configuration
from serve_app.backends.neuron import FROZEN
from serve_app.backends.nxdi import VARIABLE
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

WARM_UP = (
    "import sys; from vllm.engine.arg_utils import EngineArgs; "
    "from vllm.entrypoints.openai.cli_args import make_arg_parser; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser; "
    "from vllm.v1.engine.llm_engine import LLMEngine; "
    "a = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:]); "
    "LLMEngine.from_engine_args(EngineArgs.from_cli_args(a))"
)
"""Starts the engine with the arguments of `vllm serve` and ends; vLLM's plugin compiles on the way.
The arguments stay in sys.argv, where the native plugin looks for --optimization-level."""


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
    directory = directory or plan.env.get(VARIABLE)
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
    env = {name: value for name, value in plan.env.items() if name != VARIABLE}
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
    env[VARIABLE] = directory
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
        elif name in _flags()["switches"]:
            flags += [_flag(name)] if value else []
        elif name in _flags()["values"]:
            flags += [_flag(name), *map(str, value if isinstance(value, list) else [value])]
        else:
            silent.append(name)
    return flags, silent


@cache
def _flags() -> Mapping[str, Any]:
    text = files("serve_app.artifacts").joinpath("inference_demo.json").read_text()
    table: dict[str, Any] = json.loads(text)
    return table


def _sampling(config: Mapping[str, Any]) -> list[str]:
    defaults = nxdi_config.keys("on_device_sampling_config")
    flags = ["--on-device-sampling"]
    flags += [_flag(name) for name in _flags()["sampling_switches"] if config.get(name)]
    for name in _flags()["sampling_values"]:
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
    _, _, where, *arguments = replace(plan, engine_args=engine).command(model, [model])
    return ["python", "-c", WARM_UP, f"--model={where}", *arguments]


def _without(plan: EnginePlan, off: Iterable[str]) -> Any:
    extra = plan.engine_args.get("additional_config")
    if not isinstance(extra, Mapping) or not isinstance(extra.get("override_neuron_config"), dict):
        return None
    override = {**extra["override_neuron_config"], **dict.fromkeys(off, False)}
    return {**extra, "override_neuron_config": override}


def _flag(name: str) -> str:
    spelled: str = _flags()["spelled"].get(name, "--" + name.replace("_", "-"))
    return spelled


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
