"""Rules of the native plugin: each has a case that trips it and a near miss that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import serve_app.preflight.rules.native  # noqa: F401  (registers the rules)
from serve_app.config import Severity
from serve_app.neuron import native_config
from serve_app.neuron.model_facts import ModelFacts
from serve_app.preflight.case import RULES, Case
from tests.unit.rule_cases import case, trips

LLAMA, GPT = "meta-llama/Llama-3.1-8B-Instruct", "openai/gpt-oss-20b"
FP8 = "nvidia/Llama-3.3-70B-Instruct-FP8"
PLAIN = {"hf_overrides": {"quantization_config": {}}}
NIXL = {
    "kv_connector": "NeuronNixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cuda",
    "kv_connector_extra_config": {"backends": ["LIBFABRIC"]},
}
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def native(
    engine: dict[str, Any] | None = None,
    neuron: dict[str, Any] | None = None,
    old: bool = False,
    facts: dict[str, Any] | None = None,
    **args: Any,
) -> Case:
    """`old`: the plugin of vLLM 0.21; `facts`: fields of the model."""
    engine = {"max_model_len": 4096, "max_num_seqs": 8, **(engine or {})}
    made = case(backend="neuron", engine=engine, neuron=neuron, **args)
    if old:
        stack = replace(made.target.stack, vllm="0.21")
        made = replace(made, target=replace(made.target, stack=stack))
    if facts is not None:
        assert isinstance(made.model, ModelFacts)
        made = replace(made, model=replace(made.model, **facts))
    return made


def engine(**given: Any) -> dict[str, Any]:
    return {"engine": given}


def neuron(**given: Any) -> dict[str, Any]:
    return {"neuron": given}


def extra(**given: Any) -> dict[str, Any]:
    return {"engine": {"additional_config": given}}


def env(**given: str) -> dict[str, Any]:
    return {"env": given}


def transfer(**given: Any) -> dict[str, Any]:
    config = {name: value for name, value in {**NIXL, **given}.items() if value is not None}
    return {"kv_transfer_config": config}


SHOT = {"max_num_batched_tokens": 4096, "enable_prefix_caching": False}
MOE = {"model": GPT}
OTHER = {"model": "some/other-model"}
VISION = {"facts": {"architectures": ("Qwen3VLForConditionalGeneration",)}}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
WEIGHTS = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"n": 8}}}}
SCALES = {
    "quant_method": "compressed-tensors",
    "config_groups": {"g": {"input_activations": {"n": 8}, "targets": ["LlamaAttention"]}},
}


def both(*parts: dict[str, Any]) -> dict[str, Any]:
    """The parts together; their engine arguments are merged."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            known = merged.get(name)
            merged[name] = {**known, **value} if isinstance(known, dict) else value
    return merged


TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # keys
    ("native-override", extra(override_neuron_config={}), neuron()),
    ("native-override", extra(**{"override-neuron-config": {}}), extra()),
    ("native-additional", extra(**{"neuron-config": {}}), extra(mm_language_model_only=True)),
    ("native-additional", extra(num_seqs_buckets=[8]), neuron(num_seqs_buckets=[8])),
    ("native-additional", extra(neuron_config=[1]), extra(neuron_profiler={})),
    ("native-key", neuron(num_seq_buckets=[8]), neuron(num_seqs_buckets=[8])),
    ("native-key", neuron(**{"ep-degree": 2}), neuron(ep_degree=2)),
    ("native-key", neuron(context_encoding_buckets=[128]), neuron(max_logprobs=0)),
    ("native-key-type", neuron(ep_degree=0), neuron(ep_degree=1)),
    ("native-key-type", neuron(fp8_packed_kv="yes"), neuron(fp8_packed_kv=True)),
    (
        "native-key-type",
        neuron(on_device_sampling_config=True),
        neuron(on_device_sampling_config={}),
    ),
    ("native-towers",
     both(extra(mm_language_model_only=True), engine(mm_encoder_only=True)),
     extra(mm_language_model_only=True)),
    ("native-vision",
     both(VISION, extra(vision_neuron_config={"num_vision_tokens_buckets": [2048],
                                              "max_vision_seq_len": 4096})),
     both(VISION, extra(vision_neuron_config={"num_vision_tokens_buckets": [2048]}))),
    ("native-vision",
     both(VISION, extra(vision_neuron_config={"num_vision_tokens_buckets": [1024]})),
     both(VISION, extra(vision_neuron_config={"num_vision_tokens_buckets": [1024],
                                              "vision_attention_block_size": 1024}))),
    ("native-vision",
     both(VISION, extra(vision_neuron_config={"max_vision_seq_len": 1024})),
     both(VISION, extra(vision_neuron_config={"max_vision_seq_len": 2048}))),
    ("native-vision",
     both(VISION, extra(vision_neuron_config={"tp_size": 2, "dp_size": 2}),
          engine(tensor_parallel_size=8)),
     both(VISION, extra(vision_neuron_config={"tp_size": 2, "dp_size": 4}),
          engine(tensor_parallel_size=8))),
    ("native-vision",
     both(VISION, extra(vision_neuron_config={"dp_size": 3}), engine(tensor_parallel_size=8)),
     both(VISION, extra(vision_neuron_config={"dp_size": 4}), engine(tensor_parallel_size=8))),
    ("native-vision", extra(vision_neuron_config={}), both(VISION, extra(vision_neuron_config={}))),
    # buckets
    ("native-bucket-list", neuron(num_seqs_buckets=[4, 4]), neuron(num_seqs_buckets=[4, 8])),
    ("native-bucket-list", neuron(decode_context_length_buckets=[]), neuron()),
    ("native-bucket-list", neuron(kv_segment_size_buckets=None), neuron()),
    ("native-bucket-tokens",
     neuron(num_batched_tokens_buckets=[1024]), neuron(num_batched_tokens_buckets=[2048])),
    ("native-bucket-tokens",
     both(engine(**SHOT), neuron(num_batched_tokens_buckets=[2048])),
     both(engine(**{**SHOT, "max_num_batched_tokens": 9000}),
          neuron(num_batched_tokens_buckets=[4096]))),
    ("native-bucket-seqs", neuron(num_seqs_buckets=[4]), neuron(num_seqs_buckets=[4, 8])),
    ("native-bucket-decode",
     neuron(decode_context_length_buckets=[1000]), neuron(decode_context_length_buckets=[1024])),
    ("native-bucket-decode",
     neuron(decode_context_length_buckets=[4096]), neuron(decode_context_length_buckets=[3968])),
    ("native-segment-bucket",
     neuron(kv_segment_size_buckets=[256]), neuron(kv_segment_size_buckets=[512])),
    ("native-segment-bucket",
     neuron(kv_segment_size_buckets=[512, 1024]), neuron(kv_segment_size_buckets=[1024])),
    ("native-segment-bucket",
     neuron(kv_segment_size_buckets=[2048], num_batched_tokens_buckets=[1024, 2048]),
     neuron(kv_segment_size_buckets=[2048], num_batched_tokens_buckets=[2048])),
    ("native-segment-auto",
     neuron(num_batched_tokens_buckets=[512, 2048]), neuron(num_batched_tokens_buckets=[2048])),
    ("native-segment-auto",
     neuron(num_batched_tokens_buckets=[512, 2048]),
     both(engine(max_model_len=2048), neuron(num_batched_tokens_buckets=[512, 2048]))),
    ("native-segment-budget",
     neuron(kv_segment_size_buckets=[1024]), neuron(kv_segment_size_buckets=[2048])),
    ("native-segment-block", engine(block_size=48), engine(block_size=64)),
    ("native-segment-block",
     both(MOE, engine(block_size=256)), both(MOE, engine(block_size=128))),
    ("native-bucket-tp",
     engine(**SHOT | {"max_model_len": 1000, "tensor_parallel_size": 16}),
     engine(**SHOT | {"max_model_len": 1000, "tensor_parallel_size": 8})),
    ("native-bucket-tp",
     both(engine(**SHOT | {"tensor_parallel_size": 32}),
          neuron(num_batched_tokens_buckets=[32, 4096])),
     both(engine(**SHOT | {"tensor_parallel_size": 32}),
          neuron(num_batched_tokens_buckets=[64, 4096]))),
    ("native-bucket-dcp",
     engine(**SHOT | {"max_model_len": 1000, "decode_context_parallel_size": 2}),
     engine(decode_context_parallel_size=2)),
    # prefill
    ("native-segment-size",
     engine(max_num_batched_tokens=3000), engine(max_num_batched_tokens=1024)),
    ("native-segment-size",
     engine(max_model_len=16385, max_num_batched_tokens=20000),
     engine(max_model_len=16384, max_num_batched_tokens=20000)),
    ("native-segment-size",
     engine(max_num_batched_tokens=3000),
     both(engine(max_num_batched_tokens=3000), neuron(kv_segment_size_buckets=[2048]))),
    ("native-chunked-off",
     engine(enable_chunked_prefill=False, max_num_batched_tokens=2048),
     engine(enable_chunked_prefill=False, max_num_batched_tokens=4096)),
    ("native-budget-seqs",
     engine(max_num_batched_tokens=512, max_num_seqs=513),
     engine(max_num_batched_tokens=512, max_num_seqs=512)),
    ("native-prefix-caching",
     engine(max_num_batched_tokens=4096), engine(max_num_batched_tokens=2048)),
    ("native-prefix-caching", engine(max_model_len=2048), engine(**SHOT)),
    ("native-segment-vision", VISION, both(VISION, engine(**SHOT))),
    ("native-segment-head", {"facts": {"head_dim": 256}}, {"facts": {"head_dim": 128}}),
    ("native-seqs", engine(max_num_seqs=None), engine(max_num_seqs=256)),
    # vLLM's arguments
    ("native-executor",
     engine(distributed_executor_backend="ray"), engine(distributed_executor_backend="uni")),
    ("native-scheduler",
     engine(scheduler_cls="my.Scheduler"),
     engine(scheduler_cls="vllm.v1.core.sched.scheduler.Scheduler")),
    ("native-scheduling-policy",
     engine(scheduling_policy="priority"), engine(scheduling_policy="fcfs")),
    ("native-optimization-level", engine(optimization_level="2"), engine(optimization_level="3")),
    ("native-block-size", engine(block_size=8), engine(block_size=16)),
    ("native-gpu-blocks", engine(num_gpu_blocks_override=100), engine()),
    ("native-memory-share",
     engine(gpu_memory_utilization=1.2), engine(gpu_memory_utilization=1.0)),
    ("native-kv-budget",
     both(OTHER, engine(gpu_memory_utilization=0.1)),
     both(OTHER, engine(gpu_memory_utilization=0.2))),
    ("native-kv-budget",
     env(VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION="1.5"),
     env(VLLM_NEURON_KV_GMU_BUDGET_CAP_FRACTION="1")),
    ("native-lora", engine(enable_lora=True), engine(enable_lora=False)),
    ("native-pooling-task", engine(convert="classify"), engine(convert="embed")),
    ("native-encoder-only",
     engine(mm_encoder_only=True),
     engine(mm_encoder_only=True, ec_transfer_config={"ec_role": "ec_producer"})),
    # sampling
    ("native-sampling-key",
     neuron(on_device_sampling_config={"dynamic": True}),
     neuron(on_device_sampling_config={"all_greedy": True})),
    ("native-async-sampling",
     neuron(on_device_sampling_config=None),
     both(neuron(on_device_sampling_config=None), engine(async_scheduling=False))),
    ("native-async-sampling",
     neuron(on_device_sampling_config=None),
     both(neuron(on_device_sampling_config=None), engine(runner="pooling"))),
    ("native-async-speculative",
     engine(async_scheduling=True, speculative_config={"method": "eagle3"}),
     engine(speculative_config={"method": "eagle3"})),
    ("native-async-pooling",
     engine(async_scheduling=True, runner="pooling"), engine(runner="pooling")),
    ("native-speculative",
     engine(speculative_config={"method": "ngram"}),
     engine(speculative_config={"method": "eagle3"})),
    ("native-speculative-model",
     engine(speculative_config={"method": "eagle3"}),
     both({"model": LLAMA}, engine(speculative_config={"method": "eagle3"}))),
    ("native-structured",
     engine(tool_call_parser="hermes"),
     both(engine(tool_call_parser="hermes"), neuron(enable_structured_outputs=True))),
    ("native-structured",
     neuron(enable_structured_outputs=True, on_device_sampling_config=None),
     neuron(enable_structured_outputs=True)),
    ("native-greedy",
     neuron(on_device_sampling_config={"all_greedy": "true"}),
     neuron(on_device_sampling_config={"all_greedy": "false"})),
    ("native-logprobs",
     neuron(max_logprobs=0), both(neuron(max_logprobs=0), engine(max_logprobs=0))),
    ("native-snapshot",
     env(VLLM_NEURON_RUNTIME_INPUT_SNAPSHOT_ENABLE="1"),
     both(env(VLLM_NEURON_RUNTIME_INPUT_SNAPSHOT_ENABLE="1"), engine(async_scheduling=False))),
    # parallelism
    ("native-data-llama",
     both({"model": LLAMA}, engine(data_parallel_size=2)), engine(data_parallel_size=2)),
    ("native-expert-flag",
     both(MOE, neuron(ep_degree=2)),
     both(MOE, neuron(ep_degree=2), engine(enable_expert_parallel=True))),
    ("native-expert-degree",
     both(MOE, neuron(ep_degree=4), engine(enable_expert_parallel=True, tensor_parallel_size=2)),
     both(MOE, neuron(ep_degree=2), engine(enable_expert_parallel=True, tensor_parallel_size=2))),
    ("native-expert-degree",
     both(MOE, engine(enable_expert_parallel=True, tensor_parallel_size=64)),
     both(MOE, engine(enable_expert_parallel=True, tensor_parallel_size=32))),
    ("native-expert-span",
     both(MOE, neuron(ep_degree=2),
          engine(enable_expert_parallel=True, tensor_parallel_size=4, data_parallel_size=2)),
     both(MOE, neuron(ep_degree=8),
          engine(enable_expert_parallel=True, tensor_parallel_size=4, data_parallel_size=2))),
    ("native-expert-dense",
     engine(enable_expert_parallel=True), both(MOE, engine(enable_expert_parallel=True))),
    ("native-component-dp",
     both(neuron(mlp_dp_size=2), engine(data_parallel_size=2)),
     both(neuron(mlp_dp_size=2), engine(data_parallel_size=2, **transfer()))),
    ("native-component-dp",
     both(neuron(mlp_dp_size=2), engine(data_parallel_size=2, **transfer(kv_role="kv_producer"))),
     both(neuron(mlp_dp_size=2), engine(data_parallel_size=2, **transfer(kv_role="kv_consumer")))),
    ("native-component-dp",
     both(neuron(mlp_dp_size=2), engine(**transfer())),
     both(neuron(mlp_dp_size=1), engine(**transfer()))),
    ("native-component-size",
     both(neuron(mlp_dp_size=3), engine(data_parallel_size=4)),
     both(neuron(mlp_dp_size=2), engine(data_parallel_size=4))),
    ("native-component-size",
     both(neuron(attention_dp_size=4), engine(data_parallel_size=4, tensor_parallel_size=16)),
     both(neuron(attention_dp_size=4), engine(data_parallel_size=4, tensor_parallel_size=8))),
    ("native-nodes", engine(nnodes=2), engine(nnodes=2, master_addr="10.0.0.1")),
    # context parallelism; Qwen3-8B has 32 heads and 8 KV heads
    ("native-dcp-ranks",
     engine(decode_context_parallel_size=3, tensor_parallel_size=32),
     engine(decode_context_parallel_size=4, tensor_parallel_size=32)),
    ("native-dcp-heads",
     engine(decode_context_parallel_size=4, tensor_parallel_size=16),
     engine(decode_context_parallel_size=2, tensor_parallel_size=16)),
    ("native-dcp-heads",
     engine(decode_context_parallel_size=8, tensor_parallel_size=64),
     engine(decode_context_parallel_size=4, tensor_parallel_size=64)),
    ("native-dcp-connector",
     engine(decode_context_parallel_size=2, **transfer(kv_connector="NixlConnector")),
     engine(decode_context_parallel_size=2, **transfer())),
    ("native-dcp-connector",
     both({"old": True}, engine(decode_context_parallel_size=2)),
     engine(decode_context_parallel_size=2)),
    ("native-dcp-interleave",
     engine(decode_context_parallel_size=2, **transfer()),
     engine(decode_context_parallel_size=2, cp_kv_cache_interleave_size=32, **transfer())),
    ("native-dcp-threshold",
     engine(decode_context_parallel_size=2, long_prefill_token_threshold=100),
     engine(decode_context_parallel_size=2, long_prefill_token_threshold=128)),
    ("native-dcp-attention-dp",
     both(neuron(attention_dp_size=2), engine(decode_context_parallel_size=2)),
     neuron(attention_dp_size=2)),
    ("native-dcp-prefill", neuron(apply_prefill_dcp=True), neuron(apply_prefill_dcp=False)),
    ("native-dcp-prefill",
     both(neuron(apply_prefill_dcp=True), engine(decode_context_parallel_size=2, **transfer())),
     both(neuron(apply_prefill_dcp=True),
          engine(decode_context_parallel_size=2, **transfer(kv_role="kv_producer")))),
    # quantization
    ("native-quantization-flag", engine(quantization="fp8"), engine()),
    ("native-quantization-method", MOE, both(MOE, engine(**PLAIN))),
    ("native-quantization-method", MOE, {**MOE, "old": True}),
    ("native-quantization-method",
     {"facts": {"quantization": {"quant_method": "gptq"}}}, {"facts": {"quantization": MODELOPT}}),
    ("native-compressed-tensors",
     {"facts": {"quantization": WEIGHTS}}, {"facts": {"quantization": SCALES}}),
    ("native-compressed-tensors",
     {"facts": {"quantization": WEIGHTS}},
     both(neuron(quantization="mxfp8"), {"facts": {"quantization": WEIGHTS}})),
    ("native-modelopt",
     {"model": LLAMA, "facts": {"quantization": {**MODELOPT, "quant_algo": "NVFP4"}}},
     {"model": LLAMA, "facts": {"quantization": MODELOPT}}),
    ("native-modelopt",
     {"model": LLAMA, "facts": {"quantization": {**MODELOPT, "kv_cache_quant_algo": "INT8"}}},
     {"model": LLAMA, "facts": {"quantization": {**MODELOPT, "kv_cache_quant_algo": "FP8"}}}),
    ("native-modelopt", {"facts": {"quantization": MODELOPT}}, {"model": FP8}),
    ("native-quantization",
     both(MOE, neuron(quantization="mxfp4")), both(MOE, neuron(quantization="bf16"))),
    ("native-quantization",
     neuron(quantization="int8"), neuron(quantization=None)),
    ("native-kv-type", engine(kv_cache_dtype="fp8_e5m2"), engine(kv_cache_dtype="fp8")),
    ("native-kv-type", engine(kv_cache_dtype="fp8", runner="pooling"), engine(runner="pooling")),
    ("native-fp8-packed",
     both({"model": LLAMA}, engine(kv_cache_dtype="fp8")),
     both({"model": LLAMA}, engine(kv_cache_dtype="fp8"), neuron(fp8_packed_kv=True))),
    ("native-fp8-packed", {"model": FP8}, both({"model": FP8}, engine(**SHOT))),
    ("native-fp8-packed",
     both(engine(kv_cache_dtype="fp8"), neuron(fp8_packed_kv=True)),
     engine(kv_cache_dtype="fp8", **SHOT)),
    ("native-fp8-block",
     both({"model": FP8}, neuron(fp8_packed_kv=True)),
     both({"model": FP8}, neuron(fp8_packed_kv=True), engine(block_size=128))),
    ("native-fp8-block", neuron(fp8_packed_kv=True), neuron(fp8_packed_kv=False)),
    ("native-kv-scales", engine(calculate_kv_scales=True), engine(kv_cache_dtype="auto")),
    ("native-kv-scales",
     engine(kv_cache_dtype="fp8"), both({"model": FP8}, engine(kv_cache_dtype="fp8"))),
    ("native-head-dim", {"facts": {"head_dim": 64}}, {"facts": {"head_dim": 128}}),
    # transfer
    ("native-transfer-connector",
     engine(**transfer(kv_connector="NeuronConnector")), engine(**transfer())),
    ("native-transfer-connector", engine(**transfer(kv_connector=None)), engine()),
    ("native-transfer-role",
     engine(**transfer(kv_role="prefill")), engine(**transfer(kv_role="kv_consumer"))),
    ("native-transfer-role", engine(**transfer(kv_role=None)), engine()),
    ("native-transfer-device", engine(**transfer(kv_buffer_device="cpu")), engine(**transfer())),
    ("native-transfer-backend",
     engine(**transfer(kv_connector_extra_config={"backends": ["UCX"]})), engine(**transfer())),
    ("native-transfer-backend",
     engine(**transfer(kv_connector_extra_config={"backends": ["LIBFABRIC", "UCX"]})),
     engine(**transfer())),
    ("native-transfer-window",
     both(MOE, engine(disable_hybrid_kv_cache_manager=False,
                      **transfer(kv_connector="NixlConnector"))),
     both(MOE, engine(disable_hybrid_kv_cache_manager=False, **transfer()))),
    ("native-transfer-pooling", engine(runner="pooling", **transfer()), engine(**transfer())),
    # environment
    ("native-env-value", env(VLLM_NEURON_CPU_MODE="true"), env(VLLM_NEURON_CPU_MODE="0")),
    ("native-env-value",
     env(VLLM_NEURON_MIN_KV_BUDGET_GIB="1GiB"), env(VLLM_NEURON_MIN_KV_BUDGET_GIB="0.5")),
    ("native-env-unknown",
     env(VLLM_NEURON_BARRIER_TIME="1"), env(VLLM_NEURON_BARRIER_TIMEOUT="7200")),
    ("native-env-unknown",
     env(VLLM_ENGINE_READY_TIMEOUT_SECONDS="9"), env(VLLM_ENGINE_READY_TIMEOUT_S="9")),
    ("native-env-renamed",
     env(VLLM_NEURON_REMOTE_CACHE="/c"),
     env(VLLM_NEURON_REMOTE_CACHE="/c", NEURON_LIBTORCH_REMOTE_CACHE="/c")),
    ("native-env-renamed",
     {"old": True, **env(NEURON_LIBTORCH_COMPILATION_TIMEOUT="9")},
     env(NEURON_LIBTORCH_COMPILATION_TIMEOUT="9")),
    ("native-env-renamed",
     env(VLLM_NEURON_ASSERT_CACHE_HIT="1"), {"old": True, **env(VLLM_NEURON_ASSERT_CACHE_HIT="1")}),
    ("native-env-cpu",
     env(VLLM_NEURON_CPU_MODE="1", VLLM_NEURON_CPU_COMPILE="1"), env(VLLM_NEURON_CPU_MODE="0")),
    ("native-env-warmup",
     env(VLLM_NEURON_DISABLE_WARMUP_COMPILE="1", NEURON_LIBTORCH_DISABLE_COMPILE_CACHE="1"),
     env(VLLM_NEURON_DISABLE_WARMUP_COMPILE="1")),
    ("native-env-v2-runner",
     env(VLLM_USE_V2_MODEL_RUNNER="True"), env(VLLM_USE_V2_MODEL_RUNNER="0")),
    ("native-env-efa",
     {"instance": "trn2.3xlarge"},
     {"instance": "trn2.3xlarge", **env(NEURON_SKIP_EFA_AFFINITY="1")}),
    # keys of one version only
    ("native-key-version", neuron(apply_prefill_dcp=True),
     {"old": True, **neuron(apply_prefill_dcp=True)}),
    ("native-bucket-legacy",
     {"old": True, **neuron(decode_batch_buckets=[8])}, neuron(decode_batch_buckets=[8])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "bad", "good"), TABLE)
def test_trips_and_near_misses(rule: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    tripped = trips(rule, native(**bad))
    assert tripped, "the bad case passes"
    for trip in tripped:
        assert trip.message
        assert trip.mend
        assert trip.path.split(".")[0] in ("engine", "env", "model")
        assert not trip.message.endswith(".")
    assert not trips(rule, native(**good)), "the near miss trips"


def test_every_native_rule_has_a_case() -> None:
    ours = {name for name in RULES if name.startswith("native-")}
    assert ours == {rule for rule, _, _ in TABLE}


@pytest.mark.parametrize(
    ("rule", "given", "severity"),
    [
        # What the documents and the code tell differently may only warn.
        ("native-key", neuron(quantized=True), WARNING),
        ("native-key", neuron(foo_bar_baz=1), WARNING),
        ("native-key", neuron(mm_language_model_only=True), WARNING),
        ("native-additional", extra(zzz=1), WARNING),
        ("native-speculative", engine(speculative_config={"method": "dflash"}), WARNING),
        ("native-quantization-flag", engine(quantization="modelopt"), WARNING),
        ("native-quantization-flag", engine(quantization="awq"), ERROR),
        ("native-gpu-blocks", engine(num_gpu_blocks_override=4096), NOTE),
        ("native-gpu-blocks", engine(num_gpu_blocks_override=10), WARNING),
        ("native-transfer-device", engine(**transfer(kv_buffer_device=None)), WARNING),
        ("native-transfer-connector", engine(**transfer(kv_connector="Mine")), WARNING),
        ("native-env-cpu", env(VLLM_NEURON_CPU_MODE="1"), WARNING),
        ("native-env-v2-runner", {"old": True, **env(VLLM_USE_V2_MODEL_RUNNER="1")}, WARNING),
        ("native-quantization", {"model": LLAMA, **neuron(quantization="int8")}, WARNING),
        (
            "native-bucket-tokens",
            both(neuron(num_batched_tokens_buckets=[128, 4096]), engine(runner="pooling")),
            WARNING,
        ),
        ("native-fp8-block", neuron(fp8_packed_kv=True), NOTE),
        ("native-structured", engine(tool_call_parser="hermes"), NOTE),
        ("native-structured", engine(structured_outputs_config={"backend": "auto"}), WARNING),
    ],
)
def test_severities_of_doubtful_facts(rule: str, given: dict[str, Any], severity: Severity) -> None:
    assert [trip.severity or RULES[rule].severity for trip in trips(rule, native(**given))] == [
        severity
    ]


def test_cpu_compilation_names_all_that_is_missing() -> None:
    given = both(env(VLLM_NEURON_CPU_COMPILE="1"), engine(speculative_config={"method": "eagle3"}))
    messages = [trip.message for trip in trips("native-env-cpu", native(**given))]
    assert len(messages) == 3


def test_a_misspelt_key_names_the_right_one() -> None:
    assert "num_seqs_buckets" in trips("native-key", native(**neuron(num_seq_bucket=[8])))[0].mend
    found = trips("native-key", native(**neuron(context_encoding_buckets=[8])))[0]
    assert "num_batched_tokens_buckets" in found.mend


RECIPES: dict[str, dict[str, Any]] = {
    "tutorial-llama3-70b": {
        "model": FP8,
        "engine": {"tensor_parallel_size": 16, "max_model_len": 16384, "max_num_seqs": 8,
                   "max_num_batched_tokens": 8192, "block_size": 128, "optimization_level": "2"},
        "neuron": {"kv_segment_size_buckets": [8192], "num_batched_tokens_buckets": [8192],
                   "num_seqs_buckets": [8], "fp8_packed_kv": True},
    },
    "migration-guide": {
        "model": GPT,
        "engine": {"tensor_parallel_size": 8, "max_num_batched_tokens": 2048, "max_num_seqs": 4,
                   **PLAIN},
        "neuron": {"on_device_sampling_config": {}},
    },
    "eagle3-gpt-oss": {
        "model": "openai/gpt-oss-120b",
        "engine": {"tensor_parallel_size": 16, "max_num_seqs": 1, "max_model_len": 768,
                   "max_num_batched_tokens": 512, "enable_prefix_caching": False, **PLAIN,
                   "speculative_config": {"method": "eagle3", "model": "draft"}},
        "neuron": {"quantization": "bf16", "num_batched_tokens_buckets": [512],
                   "num_seqs_buckets": [1], "kv_segment_size_buckets": [512]},
    },
    "eagle3-llama": {
        "model": LLAMA,
        "engine": {"tensor_parallel_size": 8, "max_num_seqs": 2, "max_model_len": 2048,
                   "enable_prefix_caching": False,
                   "speculative_config": {"method": "eagle3", "model": "draft"}},
    },
    "prefill-server": {
        "model": GPT,
        "env": {"NEURON_VISIBLE_DEVICES": "0-3"},
        "engine": {"tensor_parallel_size": 4, "enable_expert_parallel": True, "max_num_seqs": 1,
                   "max_model_len": 16384, "max_num_batched_tokens": 8192, **PLAIN,
                   "disable_hybrid_kv_cache_manager": False,
                   **transfer(kv_role="kv_producer")},
        "neuron": {"ep_degree": 2, "kv_segment_size_buckets": [8192],
                   "num_batched_tokens_buckets": [8192], "num_seqs_buckets": [1]},
    },
    "decode-server": {
        "model": GPT,
        "env": {"NEURON_VISIBLE_DEVICES": "32-63"},
        "engine": {"tensor_parallel_size": 8, "data_parallel_size": 4, "max_num_seqs": 4,
                   "enable_expert_parallel": True, "max_logprobs": 0, **PLAIN,
                   "max_model_len": 16384, "max_num_batched_tokens": 8192,
                   "disable_hybrid_kv_cache_manager": False,
                   **transfer(kv_role="kv_consumer")},
        "neuron": {"embedding_dp_size": 4, "lm_head_dp_size": 4, "num_seqs_buckets": [4],
                   "kv_segment_size_buckets": [8192], "num_batched_tokens_buckets": [8192]},
    },
    "embedding": {
        "model": "Qwen/Qwen3-Embedding-8B",
        "engine": {"runner": "pooling", "tensor_parallel_size": 8},
        "neuron": {"num_batched_tokens_buckets": [128, 256, 512, 1024, 2048, 4096]},
    },
    "qwen3-vl": {
        "model": "Qwen/Qwen3-VL-32B-Instruct",
        "engine": {"tensor_parallel_size": 16, "max_model_len": 8192, "max_num_seqs": 4,
                   "max_num_batched_tokens": 8192, "block_size": 16,
                   "enable_chunked_prefill": False, "enable_prefix_caching": False,
                   "additional_config": {"vision_neuron_config": {
                       "num_vision_tokens_buckets": [2048, 4096]}}},
        "neuron": {"quantization": "bf16", "num_batched_tokens_buckets": [8192],
                   "num_seqs_buckets": [4], "on_device_sampling_config": {"all_greedy": True}},
    },
    "long-context": {
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "engine": {"tensor_parallel_size": 32, "max_model_len": 131072,
                   "max_num_batched_tokens": 8192},
    },
}  # fmt: skip
"""What AWS publishes with the native plugin."""


@pytest.mark.parametrize("name", RECIPES)
def test_what_aws_publishes_has_no_error(name: str) -> None:
    made = native(**RECIPES[name])
    errors = [
        f"{rule.id}: {trip.message}"
        for rule in RULES.values()
        if rule.id.startswith("native-")
        for trip in rule.check(made)
        if (trip.severity or rule.severity) is ERROR
    ]
    assert not errors


ODD = (None, "x", "", -1, 0, True, 1.5, [], ["x"], [None], {}, {"a": None}, "16")
TOUCHED = (
    "tensor_parallel_size",
    "data_parallel_size",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "gpu_memory_utilization",
    "kv_transfer_config",
    "speculative_config",
    "hf_overrides",
    "decode_context_parallel_size",
    "num_gpu_blocks_override",
    "quantization",
    "kv_cache_dtype",
    "runner",
    "optimization_level",
    "scheduler_cls",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_rule_raises_on_odd_input(odd: Any) -> None:
    made = native()
    keys = dict.fromkeys((*native_config.KEYS, "unknown", 7), odd)
    engine_args = dict.fromkeys(TOUCHED, odd)
    extras = {"neuron_config": keys, "vision_neuron_config": keys, "x": odd}
    args = made.args.model_copy(update={"engine": {**engine_args, "additional_config": extras}})
    env_args = {name: str(odd) for name in ("NEURON_VISIBLE_DEVICES", "VLLM_NEURON_CPU_MODE")}
    args = args.model_copy(update={"env": env_args})
    plan = replace(made.plan, engine_args=engine_args, env=env_args)
    for model in (made.model, None):
        given = replace(made, args=args, plan=plan, given=keys, effective=keys, model=model)
        for rule in RULES.values():
            if rule.id.startswith(("native-", "argument-", "env-")):
                list(rule.check(given))
