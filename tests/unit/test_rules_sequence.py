"""Rules about lengths, buckets and batches on NxDI."""

from __future__ import annotations

from typing import Any

from serve_app.config import Severity
from serve_app.preflight.rules import batch, sequence
from tests.unit.rule_cases import rule_tests

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
ON = {"enable_prefix_caching": True, "block_size": 32}
PIXTRAL = {"architectures": ("LlavaForConditionalGeneration",), "model_type": "llava"}
LLAMA4 = {"architectures": ("Llama4ForConditionalGeneration",), "model_type": "llama4"}


def prompt(value: Any, **neuron: Any) -> dict[str, Any]:
    extra = {"max_prompt_length": value, "override_neuron_config": neuron}
    return {"engine": {"additional_config": extra}}


TRIP: list[tuple[str, dict[str, Any], list[Severity]]] = [
    ("max-model-len", {"engine": {"max_model_len": None}}, [E]),
    ("max-model-len", {"engine": {"max_model_len": -1}}, [E]),
    ("max-model-len", {"engine": {"max_model_len": "auto"}}, [E]),
    ("seq-len", {"neuron": {"seq_len": 2048, "max_context_length": 2048}}, [E]),
    ("seq-len", {"neuron": {"seq_len": 8192}}, [W]),
    ("seq-len", {"neuron": {"max_length": 2048, "max_context_length": 2048}}, [E]),
    ("context-length", {"neuron": {"max_context_length": 4097}}, [E]),
    ("context-length", prompt(4097), [E]),
    ("context-length", {"neuron": {"max_context_length": 0}}, [E]),
    ("max-prompt-length", prompt("long"), [E]),
    ("max-prompt-length", prompt(1024, max_context_length=2048), [E]),
    ("max-prompt-length", {**prompt(1024), "facts": LLAMA4}, [E]),
    ("long-prompts", {"neuron": {"max_context_length": 2048}}, [W]),
    ("prompt-budget", {"engine": {"max_model_len": 131073}}, [E]),
    (
        "max-num-batched-tokens",
        {"engine": {"max_num_batched_tokens": 2048, "enable_chunked_prefill": False}},
        [E],
    ),
    (
        "max-num-batched-tokens",
        {"engine": {"max_num_batched_tokens": 4, "enable_chunked_prefill": True}},
        [E],
    ),
    ("bucket-list", {"neuron": {"context_encoding_buckets": []}}, [E]),
    ("bucket-list", {"neuron": {"prefix_buckets": []}}, [W]),
    ("bucket-list", {"neuron": {"token_generation_buckets": [0, 4096]}}, [E]),
    ("bucket-list", {"neuron": {"token_generation_buckets": [4096, 4096]}}, [W]),
    ("bucket-within", {"neuron": {"context_encoding_buckets": [8192, 128]}}, [E]),
    ("bucket-within", {"neuron": {"token_generation_buckets": [4096, 4097]}}, [E]),
    ("bucket-within", {**prompt(1024, context_encoding_buckets=[2048])}, [E]),
    ("bucket-reach", {"neuron": {"token_generation_buckets": [1024, 2048]}}, [E]),
    ("bucket-reach", {"neuron": {"context_encoding_buckets": [4095]}}, [E]),
    (
        "bucket-ignored",
        {"neuron": {"enable_bucketing": False, "context_encoding_buckets": [4096]}},
        [W],
    ),
    (
        "bucket-sequence-parallel",
        {"neuron": {"sequence_parallel_enabled": True}, "engine": {"tensor_parallel_size": 24}},
        [E],
    ),
    (
        "bucket-sequence-parallel",
        {
            "neuron": {
                "sequence_parallel_enabled": True,
                "context_encoding_buckets": [1000, 4096],
            },
            "engine": {"tensor_parallel_size": 64},
        },
        [E],
    ),
    (
        "bucket-sequence-parallel",
        {
            "neuron": {"sequence_parallel_enabled": True, "enable_bucketing": False},
            "engine": {"max_model_len": 4100},
        },
        [E],
    ),
    ("long-context", {"engine": {"max_model_len": 32768}}, [N]),
    (
        "windowed-context",
        {"neuron": {"windowed_context_encoding_size": 256}, "facts": {"sliding_window": 128}},
        [E],
    ),
    ("max-num-seqs", {"engine": {"max_num_seqs": None}}, [W]),
    ("max-num-seqs", {"engine": {"max_num_seqs": 0}}, [E]),
    ("batch-size", {"neuron": {"batch_size": 4}}, [E]),
    ("batch-size", {"neuron": {"batch_size": 16}}, [W]),
    ("batch-size", {"neuron": {"tkg_batch_size": 4}}, [E]),
    ("batch-size", {"neuron": {"tkg_batch_size": 16}}, [E]),
    ("batch-size", {"neuron": {"batch_size": 16}, "engine": {"max_num_seqs": None}}, [E]),
    ("ctx-batch-size", {"neuron": {"ctx_batch_size": 8}}, [E]),
    ("continuous-batching", {"neuron": {"is_continuous_batching": False}}, [E]),
    ("token-generation-batches", {"neuron": {"token_generation_batches": [4, 16]}}, [E]),
    ("token-generation-batches", {"neuron": {"token_generation_batches": 16}}, [E]),
    ("token-generation-batches", {"neuron": {"token_generation_batches": [4]}, "engine": ON}, [E]),
    ("model-batch", {"facts": PIXTRAL, "sdk": "2.27"}, [W]),
]
CLEAN: list[tuple[str, dict[str, Any]]] = [
    ("max-model-len", {"engine": {"max_model_len": "16k"}}),
    ("seq-len", {"neuron": {"seq_len": 4096, "max_length": 4096}}),
    ("seq-len", {"neuron": {"seq_len": 4000}, "engine": {"max_model_len": "4k"}}),
    ("context-length", {"neuron": {"max_context_length": 4096}}),
    ("context-length", {"neuron": {"seq_len": 2048}}),
    ("context-length", prompt(4096)),
    ("max-prompt-length", prompt(1024, max_context_length=1024)),
    ("max-prompt-length", prompt(1024)),
    ("long-prompts", prompt(2048)),
    ("long-prompts", {"neuron": {"max_context_length": 4096}}),
    ("prompt-budget", {"engine": {"max_model_len": 131072}}),
    (
        "prompt-budget",
        {"engine": {"max_model_len": 262144, **prompt(131072)["engine"]}},
    ),
    (
        "max-num-batched-tokens",
        {"engine": {"max_num_batched_tokens": 2048, "enable_chunked_prefill": True}},
    ),
    (
        "max-num-batched-tokens",
        {"engine": {"max_num_batched_tokens": 4096, "enable_chunked_prefill": False}},
    ),
    ("bucket-list", {"neuron": {"context_encoding_buckets": [4096, 128]}}),
    ("bucket-within", {"neuron": {"context_encoding_buckets": [4096, 128]}}),
    ("bucket-reach", {"neuron": {"token_generation_buckets": [4096, 1024]}}),
    ("bucket-reach", prompt(1024, context_encoding_buckets=[256, 1024])),
    (
        "bucket-reach",
        {"neuron": {"token_generation_buckets": [1024], "enable_bucketing": False}},
    ),
    (
        "bucket-reach",
        {"neuron": {"token_generation_buckets": [1024], "allow_input_truncation": True}},
    ),
    ("bucket-ignored", {"neuron": {"context_encoding_buckets": [4096]}}),
    ("bucket-ignored", {"neuron": {"enable_bucketing": False}}),
    (
        "bucket-sequence-parallel",
        {"neuron": {"sequence_parallel_enabled": True}, "engine": {"tensor_parallel_size": 64}},
    ),
    ("bucket-sequence-parallel", {"engine": {"tensor_parallel_size": 24}}),
    (
        "bucket-sequence-parallel",
        {
            "neuron": {
                "sequence_parallel_enabled": True,
                "context_encoding_buckets": [960, 4080],
                "max_context_length": 4080,
            },
            "engine": {"tensor_parallel_size": 24},
        },
    ),
    ("long-context", {"engine": {"max_model_len": 32767}}),
    (
        "windowed-context",
        {"neuron": {"windowed_context_encoding_size": 128}, "facts": {"sliding_window": 128}},
    ),
    ("windowed-context", {"neuron": {"windowed_context_encoding_size": 256}}),
    ("max-num-seqs", {"engine": {"max_num_seqs": 1}}),
    ("batch-size", {"neuron": {"batch_size": 8, "tkg_batch_size": 8, "max_batch_size": 8}}),
    ("batch-size", {"neuron": {"attention_dp_degree": 2, "kv_cache_batch_size": 4}}),
    ("batch-size", {"neuron": {"batch_size": 256}, "engine": {"max_num_seqs": None}}),
    ("ctx-batch-size", {"neuron": {"ctx_batch_size": 1}}),
    ("continuous-batching", {"neuron": {"is_continuous_batching": True}}),
    (
        "continuous-batching",
        {"neuron": {"is_continuous_batching": False}, "engine": {"max_num_seqs": 1}},
    ),
    ("token-generation-batches", {"neuron": {"token_generation_batches": [2, 8]}}),
    (
        "token-generation-batches",
        {"neuron": {"token_generation_batches": [2, 16]}, "sdk": "2.27"},
    ),
    ("model-batch", {"facts": PIXTRAL, "sdk": "2.28"}),
]


test_trips, test_near_misses, test_each_rule_has_both = rule_tests((sequence, batch), TRIP, CLEAN)
