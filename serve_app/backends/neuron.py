"""The `neuron` back end: vLLM's native Neuron plugin (trn2, trn3).

What the plugin would fill in by itself (vllm-neuron 0.24, platform.py) is filled in here, so
that the printed command line is what runs.
"""

from __future__ import annotations

from serve_app.backends.plan import EnginePlan
from serve_app.backends.processor import Machine
from serve_app.backends.shared import MAX_NUM_SEQS, fill, neuron_plan, stack_reason
from serve_app.backends.target import find_target, world_size
from serve_app.backends.transfer import transfer_env
from serve_app.config import AppArgs

CONFIG = "neuron_config"
"""Key of `additional_config` that the plugin reads."""

_BATCHED_TOKENS = 2048
"""vLLM's default behind the API server when chunked prefill is on."""
_BLOCK_SIZE = 32
FROZEN = {
    "NEURON_LIBTORCH_DISABLE_GRAPH_CAPTURE_BACKEND": "1",
    "VLLM_NEURON_DISABLE_WARMUP_COMPILE": "1",
}
"""Serve from the cache or refuse (vllm-neuron docs/design/compilation/cpu_compilation.md,
Preventing Compilation on Production Instances)."""
_MEMORY = 0.92
"""vLLM 0.24's gpu_memory_utilization (config/cache.py)."""


class NeuronBackend:
    """Plans for the native plugin. Each rank is a process of its own."""

    name = "neuron"

    def plan(self, args: AppArgs, machine: Machine) -> EnginePlan:
        target = find_target(args, self.name)
        reasons = [stack_reason(args, target)]
        engine = dict(args.engine)
        # Of each data-parallel rank (vllm-neuron docs/tutorials/tutorial-gpt-oss.md).
        seqs = fill(engine, "max_num_seqs", MAX_NUM_SEQS, "vLLM's default", reasons)
        ranks = engine.get("data_parallel_size")
        if isinstance(seqs, int) and isinstance(ranks, int):
            seqs *= max(1, ranks)
        if engine.get("enable_chunked_prefill") is not False:
            fill(engine, "max_num_batched_tokens", _BATCHED_TOKENS, "vLLM's default", reasons)
        fill(engine, "enable_prefix_caching", True, "vLLM's default", reasons)
        fill(engine, "block_size", _BLOCK_SIZE, "the plugin's default", reasons)
        fill(engine, "gpu_memory_utilization", _MEMORY, "vLLM's default", reasons)
        executor = "mp" if world_size(engine) > 1 else "uni"
        why = "the plugin takes mp or uni"
        fill(engine, "distributed_executor_backend", executor, why, reasons)
        env = transfer_env(engine)
        if args.artifacts.compile_cache:
            env["VLLM_CACHE_ROOT"] = args.artifacts.compile_cache
        if args.artifacts.store:
            renamed = target.stack.vllm != "0.21"
            prefix = "NEURON_LIBTORCH" if renamed else "VLLM_NEURON"
            env[f"{prefix}_REMOTE_CACHE"] = args.artifacts.store
        if args.artifacts.frozen:
            env |= FROZEN
            reasons.append("frozen: a graph that is not in the cache is an error, not a compile")
        return neuron_plan(self.name, args, target, engine, env, seqs, reasons)
