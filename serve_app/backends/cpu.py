"""The `cpu` back end: vLLM 0.29 on any x86-64 processor."""

from __future__ import annotations

from typing import Any

from serve_app.backends.plan import EnginePlan, Machine
from serve_app.config import AppArgs

_VLLM = "0.29"
_MAX_NUM_SEQS = 128
"""vLLM 0.29's default on CPU behind the API server (a test holds the parity)."""
_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


class CpuBackend:
    """Plans for the processor. Needs no accelerator; `pip install neuron-serve[cpu]`."""

    name = "cpu"

    def plan(self, args: AppArgs, machine: Machine) -> EnginePlan:
        reasons: list[str] = []
        engine_args: dict[str, Any] = dict(args.engine)
        if "dtype" not in engine_args and not (_NATIVE_BF16 & machine.cpu_flags):
            # Measured: bf16 decode is 1.6 times slower than float32 without these instructions.
            engine_args["dtype"] = "float32"
            reasons.append("dtype float32: this processor has no native bf16")
        env = {
            "VLLM_CPU_KVCACHE_SPACE": _number(args.resources.kv_cache_gib),
            # As the `vllm` command does: fork is unsafe in a process with threads.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            **self._threads(args, machine, reasons),
            **args.env,
        }
        actor_options: dict[str, Any] = {"num_cpus": args.resources.num_cpus}
        if args.resources.memory_gib is not None:
            actor_options["memory"] = int(args.resources.memory_gib * 2**30)
        return EnginePlan(
            backend=self.name,
            vllm=_VLLM,
            engine_args=engine_args,
            env=env,
            actor_options=actor_options,
            max_num_seqs=engine_args.get("max_num_seqs") or _MAX_NUM_SEQS,
            reasons=tuple(reasons),
        )

    def _threads(self, args: AppArgs, machine: Machine, reasons: list[str]) -> dict[str, str]:
        """OpenMP threads. vLLM binds them to fixed cores, the same ones in every engine of a
        machine; that is right for one engine and wrong for two."""
        if args.resources.num_cpus >= 1:
            threads = int(args.resources.num_cpus)
            reasons.append(f"{threads} OpenMP threads: resources.num_cpus")
        elif args.scaling.most > 1:
            threads = max(1, machine.cpus // args.scaling.most)
            reasons.append(f"{threads} OpenMP threads: {args.scaling.most} replicas share the CPUs")
        else:
            return {"VLLM_CPU_OMP_THREADS_BIND": "auto"}
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
