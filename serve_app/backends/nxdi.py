"""The `nxdi` back end: vLLM's plugin over NeuronX Distributed Inference (inf2, trn1, trn2).

The plugin overwrites several of vLLM's arguments (vllm-neuron, platform.py,
check_and_update_config). They are set here to the values that it enforces, so that the printed
command line is what runs.
"""

from __future__ import annotations

from serve_app.backends.plan import EnginePlan
from serve_app.backends.processor import Machine
from serve_app.backends.shared import MAX_NUM_SEQS, fill, neuron_plan, stack_reason
from serve_app.backends.target import find_target, world_size
from serve_app.config import AppArgs

OVERRIDE = "override_neuron_config"
"""Key of `additional_config` that the plugin reads; with hyphens it is ignored."""

VARIABLE = "NEURON_COMPILED_ARTIFACTS"
"""Where the plugin loads from, and compiles into when nothing is there."""

_BATCHED_TOKENS = 131072
"""What the plugin overwrites max_num_batched_tokens with."""


class NxdiBackend:
    """Plans for NxDI. One process of the replica drives all ranks."""

    name = "nxdi"

    def plan(self, args: AppArgs, machine: Machine) -> EnginePlan:
        target = find_target(args, self.name)
        reasons = [stack_reason(args, target)]
        engine = dict(args.engine)
        seqs = fill(engine, "max_num_seqs", MAX_NUM_SEQS, "vLLM's default", reasons)
        cached = fill(engine, "enable_prefix_caching", True, "vLLM's default", reasons)
        # With a budget of the user's own, vLLM checks the pair before the plugin sets either.
        if engine.get("max_num_batched_tokens") is None:
            fill(engine, "enable_chunked_prefill", False, "the plugin turns it off", reasons)
            length = engine.get("max_model_len")
            budget = max(_BATCHED_TOKENS, length if isinstance(length, int) else 0)
            fill(engine, "max_num_batched_tokens", budget, "the plugin's value", reasons)
        if world_size(engine) > 1:
            why = "one process drives all ranks"
            fill(engine, "distributed_executor_backend", "uni", why, reasons)
        if cached is False:
            why = "one block holds a whole sequence"
            fill(engine, "num_gpu_blocks_override", seqs, why, reasons)
            if "block_size" not in engine:
                # vLLM's own parser takes 1 to 256 only, so it cannot be written out.
                reasons.append("block_size: the plugin makes it max_model_len")
        env = {"VLLM_NEURON_FRAMEWORK": "neuronx-distributed-inference"}
        if args.artifacts.path:
            env[VARIABLE] = args.artifacts.path
        if args.artifacts.compile_cache:
            env["NEURON_COMPILE_CACHE_URL"] = args.artifacts.compile_cache
        return neuron_plan(self.name, args, target, engine, env, seqs, reasons)
