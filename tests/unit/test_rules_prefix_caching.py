"""Rules about prefix caching and chunked prefill on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import chunked_prefill, prefix_caching
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
ON = {"enable_prefix_caching": True, "block_size": 32, "num_gpu_blocks_override": 1024}
LLAMA4 = {"architectures": ("Llama4ForConditionalGeneration",), "model_type": "llama4"}
BOTH = {"is_prefix_caching": True, "is_block_kv_layout": True}
CHUNKED = {"chunked_prefill_config": {"max_num_seqs": 8}}
SWITCH = {"DISABLE_NEURON_CUSTOM_SCHEDULER": "1"}


def on(neuron: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    return {"engine": {**ON, **engine}, "neuron": neuron}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("block-size", {"engine": {"enable_prefix_caching": True}}, [E]),
    ("block-size", {"engine": {"enable_prefix_caching": None}}, [E]),
    ("block-size", on(block_size=128), [N]),
    ("block-count", on(num_gpu_blocks_override=1023), [E]),
    ("block-count", on(num_gpu_blocks_override=None, max_model_len=4100), [E]),
    ("block-count-given", on(num_gpu_blocks_override=None), [W]),
    ("block-count-contiguous", {"engine": {"num_gpu_blocks_override": 16}}, [W]),
    ("block-count-override", on({"pa_num_blocks": 1025}), [E]),
    ("block-count-override", on({"pa_num_blocks": 1024}, num_gpu_blocks_override=None), [E]),
    ("block-size-override", on({"pa_block_size": 16}), [E]),
    ("block-layout", on({"is_prefix_caching": False}), [E]),
    ("block-layout", on({"is_prefix_caching": False, "is_block_kv_layout": False}), [E]),
    ("block-layout", {"neuron": BOTH}, [E]),
    ("block-layout", {"neuron": {"is_block_kv_layout": True}}, [E]),
    ("block-tiling", on(max_model_len=64), [E]),
    ("block-tiling", on(block_size=1, max_model_len=64, num_gpu_blocks_override=512), [E]),
    ("prefix-buckets", on({"context_encoding_buckets": [512, 4096]}), [E]),
    ("prefix-buckets", on({"prefix_buckets": [512, 4096]}), [W]),
    ("prefix-buckets-idle", {"neuron": {"prefix_buckets": [512]}}, [W]),
    (
        "prefix-bucket-reach",
        on({"context_encoding_buckets": [512, 4096], "prefix_buckets": [512, 1024]}),
        [W],
    ),
    ("prefix-bucket-least", on({"token_generation_buckets": [128, 4096]}), [W]),
    (
        "prefix-bucket-least",
        on({"context_encoding_buckets": [256, 4096], "prefix_buckets": [256, 4096]}),
        [W, W],
    ),
    ("prefix-bucket-blocks", on({"token_generation_buckets": [1000, 4096]}), [W]),
    ("prefix-bucket-blocks", on(max_model_len=4100, num_gpu_blocks_override=1032), [W]),
    ("prefix-image", {**on(), "facts": LLAMA4}, [E]),
    ("chunked-prefill-config", {"neuron": CHUNKED}, [E]),
    ("chunked-prefill-config", {"neuron": CHUNKED, "sdk": "2.27"}, [E]),
    ("chunked-prefill-config", {**on(CHUNKED), "sdk": "2.27"}, [E]),
    ("chunked-prefill-scheduler", {"env": SWITCH}, [E]),
    ("chunked-prefill-scheduler", {**on(CHUNKED), "env": SWITCH, "sdk": "2.27"}, [W]),
    ("chunked-prefill", {"engine": {"enable_chunked_prefill": True}}, [N]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("block-size", on()),
    ("block-size", {}),
    ("block-count", on()),
    ("block-count", on(num_gpu_blocks_override=None)),
    ("block-count", on(max_model_len=4100, num_gpu_blocks_override=1032)),
    ("block-count-given", on()),
    ("block-count-contiguous", {"engine": {"num_gpu_blocks_override": 8}}),
    ("block-count-contiguous", {}),
    ("block-count-override", on({"pa_num_blocks": 1024})),
    ("block-count-override", {"neuron": {"pa_num_blocks": 3}}),
    ("block-size-override", on({"pa_block_size": 32})),
    ("block-layout", on(BOTH)),
    ("block-layout", {"neuron": {"is_prefix_caching": False}}),
    ("block-tiling", on(max_model_len=128)),
    ("block-tiling", on({"attn_tkg_nki_kernel_enabled": True}, max_model_len=64)),
    (
        "prefix-buckets",
        on({"context_encoding_buckets": [512, 4096], "prefix_buckets": [512, 4096]}),
    ),
    ("prefix-buckets", {"neuron": {"context_encoding_buckets": [512, 4096]}}),
    ("prefix-buckets", on({"context_encoding_buckets": [4096], "enable_bucketing": False})),
    ("prefix-buckets-idle", on({"prefix_buckets": [512]})),
    (
        "prefix-bucket-reach",
        on({"context_encoding_buckets": [512, 4096], "prefix_buckets": [512, 3584]}),
    ),
    ("prefix-bucket-least", on({"token_generation_buckets": [256, 4096]})),
    ("prefix-bucket-least", {"neuron": {"context_encoding_buckets": [128, 4096]}}),
    ("prefix-bucket-blocks", on({"token_generation_buckets": [1024, 4096]})),
    ("prefix-image", {"facts": LLAMA4}),
    ("prefix-image", on()),
    ("chunked-prefill-config", {"neuron": {"chunked_prefill_config": {}}}),
    ("chunked-prefill-config", {**on(CHUNKED), "sdk": "2.27", "env": SWITCH}),
    ("chunked-prefill-scheduler", {"env": {"DISABLE_NEURON_CUSTOM_SCHEDULER": "0"}}),
    ("chunked-prefill", {"engine": {"enable_chunked_prefill": False}}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests(
    (prefix_caching, chunked_prefill), TRIP, CLEAN
)
