"""Back ends: configuration and machine in, plan out. No vLLM, no Ray."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.backends import BACKENDS, EnginePlan, Machine
from serve_app.config import parse_args

PLAIN = Machine(cores=8, cpu_flags=frozenset({"avx2"}))


def plan(machine: Machine = PLAIN, **args: Any) -> EnginePlan:
    return BACKENDS["cpu"].plan(parse_args({"model": {"id": "m"}, **args}), machine)


@pytest.mark.parametrize(
    ("flag", "dtype"), [("avx2", "float32"), ("avx512_bf16", None), ("amx_bf16", None)]
)
def test_float32_without_native_bf16(flag: str, dtype: str | None) -> None:
    made = plan(Machine(8, frozenset({flag})))
    assert made.engine_args.get("dtype") == dtype
    assert any("dtype" in reason for reason in made.reasons) == (dtype is not None)


def test_a_given_dtype_stays() -> None:
    assert plan(engine={"dtype": "bfloat16"}).engine_args["dtype"] == "bfloat16"


def test_kv_cache_is_bounded_and_cpus_are_a_fraction() -> None:
    made = plan()
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert made.actor_options == {"num_cpus": 0.5}
    made = plan(resources={"kv_cache_gib": 2.5, "num_cpus": 4.0, "memory_gib": 1.0})
    assert made.env["VLLM_CPU_KVCACHE_SPACE"] == "2.5"
    assert made.actor_options == {"num_cpus": 4.0, "memory": 2**30}


@pytest.mark.parametrize(
    ("args", "threads"),
    [
        ({}, "7"),
        ({"scaling": {"num_replicas": 3}}, "2"),
        ({"scaling": {"max_replicas": 100}}, "1"),
        ({"resources": {"num_cpus": 4.0}}, "4"),
    ],
)
def test_the_model_runs_in_the_engines_process(args, threads) -> None:
    made = plan(**args)
    assert made.engine_args["distributed_executor_backend"] == "uni"
    assert made.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert made.env["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("args", "bind", "threads"),
    [
        ({}, "auto", None),
        ({"scaling": {"num_replicas": 3}}, "nobind", "2"),
        ({"resources": {"num_cpus": 4.0}}, "nobind", "4"),
    ],
)
@pytest.mark.parametrize(
    "engine", [{"distributed_executor_backend": "mp"}, {"tensor_parallel_size": 2}]
)
def test_two_engines_with_workers_never_bind_the_same_cores(engine, args, bind, threads) -> None:
    made = plan(engine=engine, **args)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in made.env
    assert made.env["VLLM_CPU_OMP_THREADS_BIND"] == bind
    assert made.env.get("OMP_NUM_THREADS") == threads


def test_the_users_environment_wins() -> None:
    assert plan(env={"VLLM_CPU_KVCACHE_SPACE": "7"}).env["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_options_do_not_depend_on_the_machine() -> None:
    here, there = plan(PLAIN), plan(Machine(1, frozenset({"amx_bf16"})))
    assert here.actor_options == there.actor_options
    assert here.max_num_seqs == there.max_num_seqs


def test_the_command_line_tells_everything() -> None:
    words = plan(engine={"max_num_seqs": 4, "enable_prefix_caching": False}).command("/m", ["name"])
    assert words[:4] == ["vllm", "serve", "/m", "--served-model-name"]
    assert words[4:] == [
        "name",
        "--max-num-seqs=4",
        "--no-enable-prefix-caching",
        "--dtype=float32",
        "--distributed-executor-backend=uni",
    ]
