"""Rules of both Neuron back ends about vLLM's arguments and the other back end's variables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import serve_app.preflight.rules.arguments  # noqa: F401  (registers the rules)
from serve_app.config import Severity
from serve_app.preflight.case import RULES, Case
from tests.unit.rule_cases import case, trips


def made(backend: str = "nxdi", vllm: str | None = None, **given: Any) -> Case:
    result = case(backend=backend, **given)
    if vllm is None:
        return result
    stack = replace(result.target.stack, vllm=vllm)
    return replace(result, target=replace(result.target, stack=stack))


def nxdi(engine: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return {"engine": engine, **given}


def native(engine: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    return {"backend": "neuron", "engine": engine, **given}


TABLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "argument-unknown",
        native({"swap_space": 4.0}),
        nxdi({"swap_space": 4.0}),
    ),
    (
        "argument-unknown",
        nxdi({"mm_encoder_only": True}, stack={"sdk": "2.28"}),
        nxdi({"mm_encoder_only": True}, stack={"sdk": "2.29"}),
    ),
    (
        "argument-value",
        nxdi({"kv_cache_dtype": "float16"}),
        nxdi({"kv_cache_dtype": "bfloat16"}),
    ),
    (
        "argument-overwritten-nxdi",
        nxdi({"distributed_executor_backend": "mp", "tensor_parallel_size": 2}),
        nxdi({"distributed_executor_backend": "uni", "tensor_parallel_size": 2}),
    ),
    (
        "argument-overwritten-nxdi",
        nxdi({"gpu_memory_utilization": 0.9}),
        nxdi({"max_num_batched_tokens": 131072}),
    ),
    (
        "argument-overwritten-native",
        native({"worker_cls": "my.Worker"}),
        native({"worker_cls": "auto"}),
    ),
    (
        "argument-overwritten-native",
        native({"enable_chunked_prefill": True}),
        native({"gpu_memory_utilization": 0.9}),
    ),
    (
        "env-of-native",
        nxdi(env={"VLLM_NEURON_CPU_MODE": "1"}),
        nxdi(env={"NEURON_CC_FLAGS": "-O1"}),
    ),
    (
        "env-of-nxdi",
        native(env={"NEURON_COMPILED_ARTIFACTS": "/a"}),
        native(env={"VLLM_CACHE_ROOT": "/a"}),
    ),
    (
        "env-framework",
        nxdi(env={"VLLM_NEURON_FRAMEWORK": "transformers-neuronx"}),
        nxdi(env={"VLLM_NEURON_FRAMEWORK": "neuronx-distributed-inference"}),
    ),
    ("env-v0", nxdi(env={"VLLM_USE_V1": "0"}), nxdi(env={"VLLM_USE_V1": "1"})),
    ("env-v0", native(env={"VLLM_USE_V1": "0"}), native()),
]


@pytest.mark.parametrize(("rule", "bad", "good"), TABLE)
def test_trips_and_near_misses(rule: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    tripped = trips(rule, made(**bad))
    assert tripped, "the bad case passes"
    assert all(trip.message and trip.mend for trip in tripped)
    assert all(trip.path.startswith(("engine.", "env.")) for trip in tripped)
    assert not trips(rule, made(**good)), "the near miss trips"


def test_every_rule_has_a_case() -> None:
    module = "serve_app.preflight.rules.arguments"
    ours = {name for name, rule in RULES.items() if rule.check.__module__ == module}
    assert ours == {rule for rule, _, _ in TABLE}


def test_an_unknown_argument_tells_which_version_has_it() -> None:
    [trip] = trips("argument-unknown", made(**native({"swap_space": 4.0})))
    assert trip.message == "vLLM 0.24 has no argument 'swap_space'; 0.13 and 0.16 have it"
    assert trip.path == "engine.swap_space"


def test_a_version_without_a_table_only_warns_or_rests() -> None:
    [trip] = trips("argument-unknown", made(**native({"swap_space": 4.0}), vllm="0.21"))
    assert trip.severity is Severity.WARNING
    assert not trips("argument-unknown", made(**nxdi({"swap_space": 4.0}), vllm="0.11"))
    assert not trips("argument-value", made(**nxdi({"kv_cache_dtype": "float16"}), vllm="0.11"))


def test_the_v0_switches_say_what_took_their_place() -> None:
    given = made()
    engine = {"device": "neuron", "use_v2_block_manager": True, "override_neuron_config": {}}
    given = replace(given, args=given.args.model_copy(update={"engine": engine}))
    mends = {trip.path: trip.mend for trip in trips("argument-unknown", given)}
    assert mends["engine.device"].startswith("remove it")
    assert "additional_config" in mends["engine.override_neuron_config"]


def test_the_native_rules_speak_of_kv_cache_dtype() -> None:
    assert not trips("argument-value", made(**native({"kv_cache_dtype": "nvfp4"})))


def test_the_framework_variable_is_a_note_on_native() -> None:
    [trip] = trips("env-of-nxdi", made(**native(env={"VLLM_NEURON_FRAMEWORK": "x"})))
    assert trip.severity is Severity.NOTE
