"""NeuronConfig of NxDI: its keys, and what the vLLM plugin fills in.

The keys are in `nxdi_keys.json`: `[kind, default]` or `[kind, default, first NxDI release]`, by
the class that takes them. A default of "=name" is the value of that other key; a kind that ends
with "?" may be null. Source: neuronx-distributed-inference models/config.py and
modules/lora_serving/config.py (2.27, 2.28, 2.29), neuronx-distributed
quantization/quantization_config.py and modules/moe/moe_configs.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any, NamedTuple

MAX_NUM_SEQS = 256
"""What vLLM runs at a time behind the API server when max_num_seqs is not given."""

LONG_CONTEXT = 32 * 1024
"""max_context_length from which on NxDI compiles and runs in its long-context mode."""

TEXT, VISION = "text_neuron_config", "vision_neuron_config"
"""The only two keys of the override of an image model."""

DTYPES = {"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}
"""Names that NxDI knows (float8 from 0.8 on)."""

_DTYPE = {
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_ATTENTION_BLOCK_ALIASES = ("attn_tkg_nki_kernel_enabled", "attn_tkg_builtin_kernel_enabled")
CTE_BLOCK_FLAGS = (
    "qkv_kernel_enabled",
    "qkv_nki_kernel_enabled",
    "attn_kernel_enabled",
    "out_proj_kernel_enabled",
)
"""What the deprecated attn_block_cte_nki_kernel_enabled stands for from NxDI 0.9 on."""


class Key(NamedTuple):
    """A key of a configuration class."""

    kind: str
    default: Any = None
    since: str = "0"
    """First NxDI release that reads it."""


@cache
def tables() -> Mapping[str, Mapping[str, Key]]:
    """The keys by class: neuron, moe (beside those of neuron), vision, plugin (what the plugin
    takes out before NeuronConfig), and the nested mappings by their key."""
    text = files("serve_app.neuron").joinpath("nxdi_keys.json").read_text()
    return {
        table: {name: Key(*fields) for name, fields in keys.items()}
        for table, keys in json.loads(text).items()
    }


def keys(*names: str) -> dict[str, Key]:
    """The keys of some tables together."""
    return {name: key for table in names for name, key in tables()[table].items()}


_FITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "text": ("a text", lambda v: isinstance(v, str)),
    "dtype": (f"one of {', '.join(sorted(DTYPES))}", lambda v: isinstance(v, str) and v in DTYPES),
    "ints": (
        "a list of whole numbers",
        lambda v: isinstance(v, list) and all(whole(item) is not None for item in v),
    ),
    "texts": (
        "a list of texts",
        lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v),
    ),
    "mapping": ("a mapping", lambda v: isinstance(v, Mapping)),
    "any": ("", lambda v: True),
}


def refuses(kind: str, value: Any) -> str | None:
    """What a key of this kind takes, in words, when `value` is of another."""
    if value is None and (kind.endswith("?") or kind == "bool"):
        return None  # null is as good as false
    words, fits = _FITS[kind.rstrip("?")]
    return None if fits(value) else words


def whole(value: Any) -> int | None:
    """A whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def integer(config: Mapping[str, Any], key: str) -> int | None:
    """The whole number under `key`; None when it is absent or something else."""
    return whole(config.get(key))


def integers(config: Mapping[str, Any], key: str) -> list[int] | None:
    """The whole numbers under `key`, ascending (NxDI sorts); None when it is something else."""
    value = config.get(key)
    if not isinstance(value, list) or any(whole(item) is None for item in value):
        return None
    return sorted(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Whether NxDI takes what is under `key` for switched on."""
    return bool(config.get(key))


def flags(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the names that are switched on."""
    return [name for name in names if flag(config, name)]


def mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key`; empty when it is absent or something else."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def length(value: Any) -> int | None:
    """max_model_len as vLLM's parser reads it: 16384, "16384", "16k" (16000) or "16K" (16384)."""
    number = whole(value)
    if isinstance(value, str):
        digits, unit = (value[:-1], value[-1:]) if value[-1:] in _UNITS else (value, "")
        try:
            number = int(float(digits) * _UNITS[unit]) if unit else int(digits)
        except (ValueError, OverflowError):
            return None
    return number if number is not None and number > 0 else None


def written(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the user wrote for the decoder: those of an image model are nested."""
    plain = {key: value for key, value in given.items() if key not in (TEXT, VISION)}
    return plain | dict(mapping(given, TEXT))


def powers(least: int, most: int) -> list[int]:
    """Buckets that NxDI makes by itself: powers of two, then the length
    (modules/autobucketing.py, generate_buckets)."""
    if most < 1 or least == most:
        return [most]
    return [2**n for n in range(int(log2(least)), round(log2(most)))] + [most]


def context_buckets(config: Mapping[str, Any]) -> list[int]:
    """Token counts that context encoding is compiled for; empty when they are not known
    (modules/autobucketing.py, generate_buckets_for_cte)."""
    context = integer(config, "max_context_length")
    if context is None:
        return []
    if not flag(config, "enable_bucketing"):
        return [context]
    if config.get("context_encoding_buckets") is not None:
        return integers(config, "context_encoding_buckets") or []
    return powers(512 if flag(config, "is_prefix_caching") else 128, context)


def cached(engine: Mapping[str, Any]) -> bool:
    """Whether vLLM caches prefixes; that is its default."""
    value = engine.get("enable_prefix_caching")
    return True if value is None else bool(value)


def sequences(engine: Mapping[str, Any]) -> int:
    """max_num_seqs, or vLLM's default."""
    value = integer(engine, "max_num_seqs")
    return MAX_NUM_SEQS if value is None else value


def speculation_method(config: Mapping[str, Any]) -> Any:
    """The method of a speculative_config, or the one that vLLM reads from the draft's name."""
    method, draft = config.get("method"), str(config.get("model") or "").lower()
    if method is not None:
        return method
    return "eagle" if "eagle-" in draft else "eagle3" if "eagle3" in draft else None


def effective(
    engine: Mapping[str, Any], given: Mapping[str, Any], tp: int, generation: int
) -> dict[str, Any]:
    """What NeuronConfig holds in the end.

    Three layers, each over the next (vllm-neuron worker/neuronx_distributed_model_loader.py,
    get_neuron_model; neuronx-distributed-inference models/config.py, NeuronConfig.__init__):

    - `given`, the override. `additional_config.max_prompt_length` sets max_context_length.
    - what the plugin derives from vLLM's arguments (_get_default_neuron_config): tp_degree,
      batch_size = max_num_seqs, ctx_batch_size 1, seq_len = max_context_length =
      max_model_len, enable_bucketing, is_continuous_batching from two sequences on,
      torch_dtype, the block layout when prefixes are cached, sampling on the device,
      speculation and LoRA when vLLM has them.
    - NeuronConfig's own defaults.

    Then what the constructor makes of them: a deprecated flag sets its successors, activation
    quantization turns fused_qkv off, data parallel attention divides the KV cache's batch.

    A value that cannot be known is absent: seq_len without max_model_len, torch_dtype when vLLM
    takes it from the checkpoint. A value of a wrong type stays as it is.
    """
    known = keys("neuron", "moe", "vision")
    override = {key: value for key, value in written(given).items() if key in known}
    derived = _plugin(engine, tp)
    config = derived | override
    prompt = mapping(engine, "additional_config").get("max_prompt_length")
    if prompt is not None:
        config["max_context_length"] = prompt
    if not config.get("chunked_prefill_config"):
        config["chunked_prefill_config"] = None  # the plugin drops an empty one
    config = _defaults(config, known, derived)
    _block_count(config, engine)
    _derive(config, generation)
    return config


def _plugin(engine: Mapping[str, Any], tp: int) -> dict[str, Any]:
    seqs, tokens = sequences(engine), length(engine.get("max_model_len"))
    block = integer(engine, "block_size") if cached(engine) else tokens
    config: dict[str, Any] = {
        "tp_degree": tp,
        "ctx_batch_size": 1,
        "batch_size": seqs,
        "max_context_length": tokens,
        "seq_len": tokens,
        "enable_bucketing": True,
        "is_continuous_batching": seqs > 1,
        "quantized": False,
        "torch_dtype": _DTYPE.get(str(engine.get("dtype"))),
        "padding_side": "right",
        "on_device_sampling_config": {"dynamic": True, "deterministic": False},
        "pa_num_blocks": _blocks(engine, tokens, block, seqs),
        "pa_block_size": block,
        "is_block_kv_layout": cached(engine),
        "is_prefix_caching": cached(engine),
    }
    if flag(engine, "enable_lora"):
        config["lora_config"] = {
            name: engine[name]
            for name in ("max_loras", "max_lora_rank", "max_cpu_loras")
            if engine.get(name) is not None
        }
    if engine.get("speculative_config") is not None:
        speculation = mapping(engine, "speculative_config")
        config["enable_fused_speculation"] = True
        config["speculation_length"] = speculation.get("num_speculative_tokens", 0)
        config["enable_eagle_speculation"] = speculation_method(speculation) == "eagle"
    return config


def _blocks(
    engine: Mapping[str, Any], tokens: int | None, block: int | None, seqs: int
) -> int | None:
    given = integer(engine, "num_gpu_blocks_override")
    if given is not None:
        return given + 1  # the platform class adds vLLM's null block
    return tokens // block * seqs if tokens and block and block > 0 else None


def _block_count(config: dict[str, Any], engine: Mapping[str, Any]) -> None:
    # The user writes the same number twice; the plugin adds the null block to both.
    given = integer(engine, "num_gpu_blocks_override")
    if given is not None and config.get("pa_num_blocks") == given:
        config["pa_num_blocks"] = given + 1


def _defaults(
    config: dict[str, Any], known: Mapping[str, Key], derived: Mapping[str, Any]
) -> dict[str, Any]:
    # What the plugin passes without our knowing its value must not get NeuronConfig's default.
    unknown = {key for key, value in derived.items() if value is None and config[key] is None}
    config = {key: value for key, value in config.items() if key not in unknown}
    for name, key in known.items():
        if name in config or name in unknown:
            continue
        if not (isinstance(key.default, str) and key.default.startswith("=")):
            config[name] = key.default
        elif key.default[1:] in config:
            config[name] = config[key.default[1:]]
    return config


def _derive(config: dict[str, Any], generation: int) -> None:
    _derive_flags(config)
    sampling = config.get("on_device_sampling_config")
    if isinstance(sampling, Mapping):
        table = {name: key.default for name, key in keys("on_device_sampling_config").items()}
        # The rotated top-k kernel is on by default where there is one.
        config["on_device_sampling_config"] = {
            **table,
            "top_k_kernel_enabled": generation > 1,
            **sampling,
        }
    dp, batch = integer(config, "attention_dp_degree"), integer(config, "tkg_batch_size")
    if dp is not None and dp > 1 and batch is not None:
        config["kv_cache_batch_size"] = batch // dp
    degrees = [integer(config, name) for name in ("tp_degree", "pp_degree", "ep_degree")]
    if config.get("world_size") is None and None not in degrees:
        config["world_size"] = (degrees[0] or 0) * (degrees[1] or 0) * (degrees[2] or 0)
    if config.get("local_ranks_size") is None:
        config["local_ranks_size"] = config.get("world_size")
    for name in ("logical_nc_config", "logical_neuron_cores"):
        if config.get("logical_nc_config") is None:
            config["logical_nc_config"] = config.get(name)
    if config["logical_nc_config"] is None:
        config["logical_nc_config"] = 2 if generation > 1 else 1
    if config.get("lm_head_pad") is None:
        config["lm_head_pad"] = config["logical_nc_config"] == 2
    context = integer(config, "max_context_length")
    if config.get("scratchpad_page_size") is None and context and context >= LONG_CONTEXT:
        config["scratchpad_page_size"] = 1024


def _derive_flags(config: dict[str, Any]) -> None:
    if flag(config, "enable_eagle_speculation"):
        config["enable_fused_speculation"] = True
    if flag(config, "mlp_tkg_nki_kernel_enabled"):
        config["mlp_kernel_enabled"] = True
    if flags(config, _ATTENTION_BLOCK_ALIASES):
        config["attn_block_tkg_nki_kernel_enabled"] = True
    if flag(config, "attn_block_cte_nki_kernel_enabled"):
        config |= dict.fromkeys(CTE_BLOCK_FLAGS, True)
    if config.get("activation_quantization_type") is not None:
        config["fused_qkv"] = False
    if flag(config, "quantized_mlp_kernel_enabled") or flag(config, "activation_quantization_type"):
        config["quantization_type"] = "per_channel_symmetric"
        config["quantization_dtype"] = "f8e4m3"
