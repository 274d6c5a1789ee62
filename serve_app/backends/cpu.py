"""The `cpu` back end: vLLM 0.29 on any x86-64 processor."""

from __future__ import annotations

from typing import Any

from serve_app.backends.plan import EnginePlan
from serve_app.backends.processor import Machine
from serve_app.backends.transfer import disaggregated, transfer_env
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
            **self._processes(args, engine_args, machine, reasons),
            **transfer_env(engine_args),
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

    def _processes(
        self, args: AppArgs, engine_args: dict[str, Any], machine: Machine, reasons: list[str]
    ) -> dict[str, str]:
        """Where the model runs, and on how many OpenMP threads.

        With a worker process beside the engine's, both wait for each other by spinning on
        sched_yield: on 2 cores that took a third of the throughput (13 against 20 requests per
        second at concurrency 8) and starved every other process for up to 0.4 s at a time.
        """
        parallel = ("tensor_parallel_size", "pipeline_parallel_size")
        if any(engine_args.get(name, 1) != 1 for name in parallel):
            return self._threads_of_worker(args, machine, reasons)
        if engine_args.setdefault("distributed_executor_backend", "uni") != "uni":
            return self._threads_of_worker(args, machine, reasons)
        threads = int(args.resources.num_cpus) or _share(args, machine)
        reasons.append(
            f"distributed_executor_backend uni with {threads} OpenMP thread(s): the model runs in "
            "the engine's process (mp gives it one of its own, with threads bound to cores)"
        )
        if machine.engine_cpus:
            cpus = ", ".join(map(str, sorted(machine.engine_cpus)))
            reasons.append(f"engines run on processors {cpus}, all else on the others")
        # vLLM 0.24 and later turn uni into mp on a processor unless this is 0 (platforms/cpu.py).
        # The engine has a process of its own all the same: AsyncLLM does not read it.
        return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)}

    def _threads_of_worker(
        self, args: AppArgs, machine: Machine, reasons: list[str]
    ) -> dict[str, str]:
        """vLLM binds a worker's threads to fixed cores, the same ones in every engine of a
        machine; that is right for one engine and wrong for two."""
        if args.resources.num_cpus < 1 and args.scaling.most == 1:
            return {"VLLM_CPU_OMP_THREADS_BIND": "auto"}
        threads = int(args.resources.num_cpus) or _share(args, machine)
        reasons.append(f"{threads} OpenMP thread(s), not bound: other engines may share the cores")
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _share(args: AppArgs, machine: Machine) -> int:
    """OpenMP threads of one replica: one core is left to the processes that serve. Engines that
    send each other KV caches run on the same machine, so half is the other kind's."""
    engines = args.scaling.most * (2 if disaggregated(args.engine) else 1)
    return max(1, (machine.cores - 1) // engines)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
