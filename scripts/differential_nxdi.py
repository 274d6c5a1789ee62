#!/usr/bin/env python3
"""Compare our rules with AWS's own code on random configurations.

Runs what can be run without a Neuron device of the public sources: the plugin's platform class
and its checks of the override, the constructor of NeuronConfig, the bucket generation, the shape
of the block KV cache, and the checks of sequence, context and attention data parallelism. The
sources are given, never part of this repository:

    git clone https://github.com/aws-neuron/neuronx-distributed-inference nxdi
    git clone https://github.com/vllm-project/vllm-neuron plugin
    python scripts/differential_nxdi.py --nxdi-src nxdi --plugin-src plugin --number 5000

It needs torch; what else the sources import (torch_neuronx, neuronx_distributed, nkilib, vllm)
is stubbed. Lists every disagreement, grouped; the exit code is 1 when one is not explained.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from enum import Enum, EnumMeta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from serve_app.backends import make_plan
from serve_app.config import Severity, parse_args
from serve_app.preflight.case import RULES, Case
from serve_app.preflight.neuron import case_of, find_model
from serve_app.preflight.rules import keys, quantization

TOPICS = (
    "batch",
    "chunked_prefill",
    "kernels",
    "kernels_attention",
    "keys",
    "lora",
    "parallelism",
    "prefix_caching",
    "quantization",
    "sampling",
    "sequence",
    "speculation",
)
TRACE = "AWS raises while it traces the model, which is not run here"
SERVING = "AWS raises in the running engine, or gives wrong results, which is not run here"
WE_REJECT = {
    r"additional-config-key|neuron-key-hyphen": "AWS ignores it with a log line",
    r"neuron-key-kind": "AWS takes some values of another type by chance",
    r"activation-type .*'static'": "2.27 has dynamic only; the stub has the enum of 2.28",
    r"neuron-key-choice ep_dispatch": TRACE,
    r"neuron-key-choice padding_side": "AWS takes any other text for left",
    r"seq-len|bucket-reach|prompt-budget|batch-size|continuous-batching|block-size-override"
    r"|sampling-top-k|tp-override|speculation-length": SERVING,
    r"block-layout enable_prefix_caching is off": SERVING,
    r"ctx-batch-size|kernel-fused-qkv|kernel-residual|kernel-qwen#-moe|kernel-window"
    r"|speculation-prefix-caching|speculation-sampling|speculation-medusa": TRACE,
    r"kernel-needs qkv_kernel_fuse_residual_add": TRACE,
    r"kernel-strided .* (context bucket|LNC|window)": TRACE,
    r"kernel-k-transposed .* (Medusa|padding_side)": TRACE,
    r"speculation-unasked (speculation_length|medusa|is_)": TRACE,
    r"flash-decoding": TRACE,
    r"bucket-list .* holds": "a bucket below 1 fails when the model is traced",
    r"degree-positive .* is 0": "a degree of 0 fails when the model is traced",
    r"async-mode .* sampling": "a documented condition; AWS's code fails in the running engine",
    r"quantized-environment": "a documented condition",
    r"quantized-type": "AWS raises when it quantizes the checkpoint, before it compiles",
    r"speculation-eagle": "AWS loads the draft as another class and fails on its weights",
    r"chunked-prefill-config NxDI": "AWS raises when it makes the application (model_base:3055)",
    r"world-size": "ranks that vLLM does not reserve",
    r"moe-degrees|moe-hybrid": "AWS makes the process groups when it traces",
    r"kernel-model-fused": "AWS fails on the weights",
    r"kv-quantized-config": "torch refuses the dtype when the cache is made",
    r"lora-config": "vLLM knows nothing of the adapters",
    r"max-num-batched-tokens": "vLLM's own check",
}
"""Rule and message -> why we reject what the part of AWS's code that runs here takes."""
AWS_RAISES = {
    r"not supported between|unsupported operand|not iterable|must be real number"
    r"|cannot be interpreted|list indices|invalid literal|not callable": "a value of a wrong type, "
    "or null for a flag",
}
"""Message -> why we take what AWS's code raises at."""


class _Meta(type):
    """A stub that can be called, subclassed, indexed, used as a decorator."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Meta(name, (_Stub,), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]
        return super().__call__()

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    def __ror__(cls, other: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())


class _Stub(metaclass=_Meta):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Meta(name, (_Stub,), {})


class _Stubs(MetaPathFinder, Loader):
    """Every module below these names exists and has whatever is asked of it."""

    roots = frozenset(
        {"torch_neuronx", "torch_xla", "neuronx_distributed", "neuronxcc", "nkilib", "nki"}
        | {"transformers", "vllm", "libneuronxla", "safetensors", "regex"}
    )

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] not in self.roots:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        class Module(ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return _Meta(name, (_Stub,), {})

        return Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


class _Members(EnumMeta):
    def __contains__(cls, item: object) -> bool:
        try:
            cls(item)
        except ValueError:
            return False
        return True


class _Activation(Enum, metaclass=_Members):
    DYNAMIC = "dynamic"
    STATIC = "static"
    NONE = None


class _Dtype:
    names = frozenset(quantization.DTYPES)

    @classmethod
    def has_dtype(cls, name: str) -> None:
        assert name.lower() in cls.names, f"{name} is not a valid QuantizedDtype."


class _Router:
    def __init__(self, act_fn: str = "softmax", dtype: Any = None) -> None:
        self.act_fn, self.dtype = act_fn, dtype

    @staticmethod
    def from_kwargs(**kwargs: Any) -> _Router:
        return _Router()


class _Hardware(Enum):
    TRN1, TRN2, TRN3 = "trn1", "trn2", "trn3"

    @classmethod
    def _missing_(cls, value: object) -> _Hardware | None:
        return cls.TRN1 if value == "inf2" else None


class Source:
    """AWS's code, imported over stubs."""

    def __init__(self, nxdi: Path, plugin: Path | None) -> None:
        sys.meta_path.insert(0, _Stubs())
        root = nxdi / "src/neuronx_distributed_inference"
        for name in ("", ".models", ".modules", ".modules.attention", ".modules.kvcache", ".utils"):
            package = ModuleType(f"neuronx_distributed_inference{name}")
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[package.__name__] = package
        self.chip = "trn2"
        self._fill("torch_neuronx.utils", get_platform_target=lambda: self.chip)
        self._fill("neuronx_distributed.utils.utils", hardware=_Hardware)
        self._fill(
            "neuronx_distributed.quantization.quantization_config",
            ActivationQuantizationType=_Activation,
            QuantizedDtype=_Dtype,
            KVQuantizationConfig=lambda **kwargs: SimpleNamespace(**kwargs),
        )
        self._fill(
            "neuronx_distributed.modules.moe.moe_configs",
            BlockwiseMatmulConfig=SimpleNamespace(
                from_kwargs=lambda **kwargs: SimpleNamespace(**kwargs)
            ),
            RouterConfig=_Router,
        )
        own = "neuronx_distributed_inference"
        lora_serving = ModuleType(f"{own}.modules.lora_serving")
        lora_serving.__dict__["LoraServingConfig"] = lambda **kwargs: SimpleNamespace(
            **{"dynamic_multi_lora": False, **kwargs}
        )
        registry = ModuleType(f"{own}.utils.tensor_replacement.registry")
        registry.__dict__["TensorReplacementRegister"] = _Stub
        for module in (lora_serving, registry):
            sys.modules[module.__name__] = module
        self.config = importlib.import_module(f"{own}.models.config")
        self.buckets = importlib.import_module(f"{own}.modules.autobucketing")
        self.heads = _functions(root / "modules/attention/utils.py", {"torch": torch})
        process_groups = _functions(root / "modules/attention/attention_process_groups.py", {})
        self.heads |= {"get_tp_cp_group_mesh": process_groups["get_tp_cp_group_mesh"]}
        for function in self.heads.values():
            function.__globals__.update(self.heads)
        self.plugin = _plugin(plugin, self.config) if plugin else None

    @staticmethod
    def _fill(name: str, **attributes: Any) -> None:
        vars(importlib.import_module(name)).update(attributes)


def _functions(file: Path, names: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The plain functions of a file whose imports are not needed."""
    import ast

    tree = ast.parse(file.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in found:
        node.decorator_list = []
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        node.returns = None
    scope: dict[str, Any] = {**names, "logger": _Stub()}
    wanted = re.compile(r"context_parallel|validate_tp_prefill|mesh")
    for node in found:
        if wanted.search(node.name):
            exec(compile(ast.Module([node], []), str(file), "exec"), scope)
    return {
        name: value
        for name, value in scope.items()
        if callable(value) and name in {node.name for node in found}
    }


def _plugin(root: Path, config: ModuleType) -> SimpleNamespace:
    """The plugin's platform class and the helpers of its loader."""
    package = ModuleType("vllm_neuron")
    package.__path__ = [str(root / "vllm_neuron")]
    worker = ModuleType("vllm_neuron.worker")
    worker.__path__ = [str(root / "vllm_neuron/worker")]
    sys.modules |= {"vllm_neuron": package, "vllm_neuron.worker": worker}
    constants = ModuleType("neuronx_distributed_inference.utils.constants")
    constants.__dict__["MODEL_TYPES"] = {}
    adapter = ModuleType("neuronx_distributed_inference.utils.hf_adapter")
    adapter.__dict__["load_pretrained_config"] = _Stub
    sys.modules |= {module.__name__: module for module in (constants, adapter)}
    loader = importlib.import_module("vllm_neuron.worker.neuronx_distributed_model_loader")
    platform = importlib.import_module("vllm_neuron.platform").NeuronPlatform
    for name in dir(platform):
        if name.startswith("_apply") or name.startswith("_ensure"):
            setattr(platform, name, classmethod(lambda cls, *args: None))
    return SimpleNamespace(loader=loader, platform=platform)


class AwsError(Exception):
    """What AWS's code raised."""


def aws(source: Source, case: Case) -> None:
    """Run what can be run.

    Raises:
        AwsError: AWS's code refuses the configuration.
    """
    try:
        config = _given_to_neuron_config(source, case)
        spec = case.engine("speculative_config")
        cls = source.config.NeuronConfig
        if case.model and case.model.experts:
            cls = source.config.MoENeuronConfig
        config.pop("draft_overrides", None)
        neuron = cls(**config)
        if neuron.enable_fused_speculation:
            assert spec is not None, "Must pass speculative_config"
        inference = SimpleNamespace(neuron_config=neuron)
        context = source.buckets.generate_buckets_for_cte(inference)
        source.buckets.generate_buckets_for_tkg(inference)
        _sequence_parallel(neuron, context)
        _heads(source, case, neuron)
        _tiles(neuron)
        _flash(case, neuron)
    except Exception as error:
        raise AwsError(f"{type(error).__name__}: {error}") from error


def _given_to_neuron_config(source: Source, case: Case) -> dict[str, Any]:
    engine, extra = case.plan.engine_args, copy.deepcopy(case.args.engine.get("additional_config"))
    override = (extra or {}).get("override_neuron_config")
    if source.plugin is None:
        return {key: value for key, value in case.effective.items() if value is not None}
    model = SimpleNamespace(
        max_model_len=engine.get("max_model_len"),
        dtype=torch.bfloat16,
        max_prompt_length=None,
    )
    scheduler = SimpleNamespace(
        max_num_seqs=engine.get("max_num_seqs"),
        enable_chunked_prefill=True,
        max_num_batched_tokens=8192,
        scheduler_cls=None,
    )
    cache = SimpleNamespace(
        block_size=engine.get("block_size"),
        enable_prefix_caching=engine.get("enable_prefix_caching"),
        num_gpu_blocks_override=engine.get("num_gpu_blocks_override"),
    )
    parallel = SimpleNamespace(tensor_parallel_size=case.tp, worker_cls="auto", world_size=case.tp)
    spec = case.engine("speculative_config")
    vllm = SimpleNamespace(
        model_config=model,
        scheduler_config=scheduler,
        cache_config=cache,
        parallel_config=parallel,
        additional_config=extra or {},
    )
    source.plugin.platform.check_and_update_config(vllm)
    loader = source.plugin.loader
    default = loader._get_default_neuron_config(
        model,
        cache,
        parallel,
        scheduler,
        None,
        SimpleNamespace(**spec) if isinstance(spec, dict) else None,
    )
    override = loader._validate_override_neuron_config(override or {}, model)
    # In 0.4.1 and later the helper keeps what it takes out of the override for itself.
    config = loader._get_neuron_config_after_override(default, override)
    if config.get("is_block_kv_layout"):
        config = loader._handle_pa_num_blocks(cache, config, override)
    result: dict[str, Any] = loader._validate_neuron_config(cache, scheduler, model, config)
    return result


def _sequence_parallel(neuron: Any, buckets: list[Any]) -> None:
    # models/model_base.py:1471-1480, the one condition
    if neuron.sequence_parallel_enabled:
        for bucket in buckets:
            active = bucket[0] if isinstance(bucket, list) else bucket
            assert active % neuron.tp_degree == 0, "sequence parallel: not divisible by TP"


def _heads(source: Source, case: Case, neuron: Any) -> None:
    # modules/attention/attention_base.py:330-412 chooses between these
    if case.model is None:
        return
    tp, cp, dp = neuron.tp_degree, neuron.cp_degree, neuron.attention_dp_degree
    kv, heads = case.model.kv_heads, source.heads
    if cp == 1 and dp > 1:
        heads["validate_tp_prefill_to_dp_decode"](kv, tp, dp)
    elif cp > 1 and dp == 1:
        mapping = heads["get_kv_head_indices_context_parallel_full_tp_decode"]
        mapping(kv, tp, cp, torch.device("cpu"))
    elif cp > 1 and cp != dp:
        heads["get_kv_head_indices_context_parallel_dp_decode"](kv, tp, cp, dp, torch.device("cpu"))


def _tiles(neuron: Any) -> None:
    # modules/kvcache/block_kv_cache_manager.py:49-77; a tile of no slots cannot hold a token
    if not neuron.is_prefix_caching or neuron.attn_block_tkg_nki_kernel_enabled:
        return
    blocks = (neuron.max_length + neuron.pa_block_size - 1) // neuron.pa_block_size
    tile = 1
    while tile * blocks < 128:
        tile *= 2
    assert neuron.pa_block_size // tile >= 1, "block tiling: no slot per tile"


def _flash(case: Case, neuron: Any) -> None:
    # modules/flashdecode/utils.py:21
    if neuron.flash_decoding_enabled and case.model:
        assert min(neuron.tp_degree, case.model.heads) % case.model.kv_heads == 0, "flash decoding"


def ours(case: Case) -> dict[str, str]:
    """Our errors: rule -> message."""
    own = {f"serve_app.preflight.rules.{topic}" for topic in TOPICS}
    return {
        rule.id: trip.message
        for rule in RULES.values()
        if rule.check.__module__ in own
        for trip in rule.check(case)
        if (trip.severity or rule.severity) is Severity.ERROR
    }


MODELS = (
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-235B-A22B",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
)
_LENGTHS = [64, 100, 128, 512, 1000, 2048, 4096, 4100, 8192, 16384, 32768]
_BUCKETS = [[128, 2048], [512, 4096], [4096, 512], [2048], [1000, 4096], [4096], [8192], [], [16]]
_ENGINE: dict[str, list[Any]] = {
    "max_model_len": _LENGTHS,
    "max_num_seqs": [1, 2, 4, 8, 16, 64],
    "tensor_parallel_size": [1, 2, 4, 8, 16, 24, 32, 64],
    "enable_prefix_caching": [True, False],
    "block_size": [None, 8, 16, 32, 128],
    "num_gpu_blocks_override": [None, 8, 16, 128, 512, 1024, 2048, 4096],
    "speculative_config": [
        None,
        {"method": "eagle", "model": "/d", "num_speculative_tokens": 5},
    ],
}
_SPECIAL: dict[str, list[Any]] = {
    "seq_len": _LENGTHS,
    "max_context_length": _LENGTHS,
    "max_length": _LENGTHS,
    "context_encoding_buckets": _BUCKETS,
    "token_generation_buckets": _BUCKETS,
    "prefix_buckets": _BUCKETS,
    "token_generation_batches": [[1, 4], [8], [64], 4],
    "torch_dtype": ["bfloat16", "float16", "bf16"],
    "attention_dtype": ["bfloat16", "float32"],
    "cast_type": ["config", "as-declared", "declared"],
    "padding_side": ["right", "left"],
    "quantized_checkpoints_path": ["/q"],
    "quantization_dtype": ["int8", "f8e4m3", "fp8"],
    "quantization_type": ["per_tensor_symmetric", "per_channel_symmetric", "rows"],
    "activation_quantization_type": ["dynamic", "static", "DYNAMIC"],
    "modules_to_not_convert": [["lm_head"]],
    "on_device_sampling_config": [None, {}, {"dynamic": True, "global_topk": 64}],
    "ep_dispatch_cc_option": ["AR_AG", "RS_AG"],
    "lora_config": [None],
    "chunked_prefill_config": [{}, {"max_num_seqs": 8, "tkg_model_enabled": False}],
    "tensor_capture_config": [{}, {"modules_to_capture": ["lm_head"]}],
    "tensor_replacement_config": [None],
    "kv_quant_config": [None, {}],
    "blockwise_matmul_config": [{}],
    "router_config": [{}],
    "hybrid_sharding_config": [None],
    "windowed_context_encoding_size": [None, 512],
}
_BATCHES = [1, 2, 4, 8, 16]
_DEGREES = [1, 2, 3, 4, 8, 16, 32]
_NOT_TRIED = {"text_neuron_config", "vision_neuron_config", "buckets", "scratchpad_page_size"}


def values(name: str, kind: str) -> list[Any]:
    """What to try for a key."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if kind.startswith("bool"):
        return [True, True, False]
    if name.endswith("_degree") or name == "tp_degree":
        return _DEGREES
    if "batch" in name or name.startswith("pa_"):
        return [*_BATCHES, 32, 128, 1024, 2048]
    if kind.startswith("int"):
        return [0, 1, 2, 8]
    return []


def configurations(number: int, seed: int, most: int) -> Any:
    """Random engines and overrides; every key of NeuronConfig comes up."""
    choose = random.Random(seed)
    table = {
        name: values(name, key.kind)
        for name, key in keys.keys("neuron", "moe").items()
        if name not in _NOT_TRIED
    }
    table = {name: tries for name, tries in table.items() if tries}
    # What matters together comes up together.
    related = [name for name in table if re.search(r"kernel|fused|quant|degree|bucket", name)]
    for _ in range(number):
        engine = {
            "max_model_len": 4096,
            "max_num_seqs": 8,
            "tensor_parallel_size": choose.choice([8, 16, 32, 64]),
            "enable_prefix_caching": False,
            "dtype": "bfloat16",
        }
        for name in choose.sample(sorted(_ENGINE), choose.choice([0, 0, 1, 2])):
            engine[name] = choose.choice(_ENGINE[name])
        if engine["enable_prefix_caching"] and choose.random() < 0.8:
            engine["block_size"] = choose.choice([16, 32])
        names = choose.sample(sorted(table), choose.choice([0, 1, 1, 2, 3]))
        names += choose.sample(related, choose.choice([0, 1, 2, 3, 4]))
        names = choose.sample(names, min(len(names), most))
        override = {name: copy.deepcopy(choose.choice(table[name])) for name in names}
        if choose.random() < 0.05:
            override[choose.choice(sorted(table))] = choose.choice(["8", None, [1], True])
        extra: dict[str, Any] = {"override_neuron_config": override}
        if choose.random() < 0.1:
            extra["max_prompt_length"] = choose.choice(_LENGTHS)
        engine = {name: value for name, value in engine.items() if value is not None}
        yield choose.choice(MODELS), {**engine, "additional_config": extra}


def build(model: str, engine: dict[str, Any], sdk: str) -> Case:
    args = parse_args(
        {
            "backend": "nxdi",
            "instance": "trn2.48xlarge",
            "model": {"id": model},
            "engine": engine,
            "stack": {"sdk": sdk},
        }
    )
    return case_of(args, make_plan(args), find_model(args, {}))


def shape(message: str) -> str:
    """The message without its numbers, for grouping."""
    return re.sub(r"\[[^\]]*\]|\d+", "#", message)[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nxdi-src", type=Path, required=True)
    parser.add_argument("--plugin-src", type=Path)
    parser.add_argument("--sdk", default="2.29", help="the SDK that the sources are of")
    parser.add_argument("--number", type=int, default=3000)
    parser.add_argument(
        "--most", type=int, default=7, help="keys of an override; 1 or 2 finds more"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("NEURON_PLATFORM_TARGET_OVERRIDE", "NEURON_LOGICAL_NC_CONFIG"):
        os.environ.pop(name, None)
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    source = Source(options.nxdi_src, options.plugin_src)
    taken: dict[str, list[str]] = defaultdict(list)
    rejected: dict[str, list[str]] = defaultdict(list)
    count = Counter[str]()
    for model, engine in configurations(options.number, options.seed, options.most):
        case = build(model, engine, options.sdk)
        errors = ours(case)
        sample = json.dumps({"model": model, **engine})
        try:
            aws(source, case)
        except AwsError as error:
            count["refused by both" if errors else "AWS refuses, we take"] += 1
            if not errors:
                taken[shape(str(error))].append(sample)
            continue
        count["we refuse, AWS takes" if errors else "taken by both"] += 1
        for rule, message in errors.items():
            words = rule if rule == "neuron-key-kind" else f"{rule} {message}"
            rejected[shape(words)].append(sample)
    for words, number in sorted(count.items()):
        print(f"{number:6} {words}")
    unexplained = 0
    print("\nAWS refuses, we take:")
    for message, samples in sorted(taken.items(), key=lambda item: -len(item[1])):
        why = next((why for text, why in AWS_RAISES.items() if re.search(text, message)), "")
        unexplained += not why
        print(f"{len(samples):6} {message}\n       {why or 'UNEXPLAINED'} {samples[0]}")
    print("\nWe refuse, AWS takes:")
    for message, samples in sorted(rejected.items(), key=lambda item: -len(item[1])):
        why = next((why for text, why in WE_REJECT.items() if re.match(text, message)), "")
        unexplained += not why
        print(f"{len(samples):6} {message}\n       {why or 'UNEXPLAINED ' + samples[0]}")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
