"""Rules about cores: each trips on one configuration, and not on its neighbour."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config import Severity
from serve_app.preflight.rules import cores
from tests.unit.rule_cases import case, trips

LLAMA_8B = "meta-llama/Meta-Llama-3-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"


def severities(rule: str, **arguments: Any) -> list[Severity | None]:
    return [trip.severity for trip in trips(rule, case(**arguments))]


def tp(degree: int, **more: Any) -> dict[str, Any]:
    return {"tensor_parallel_size": degree, "max_num_seqs": 4, "max_model_len": 4096, **more}


@pytest.mark.parametrize(
    ("instance", "degree", "named"),
    [
        ("inf2.48xlarge", 16, "use 24 or 8"),
        ("inf2.48xlarge", 12, "use 24 or 8"),
        ("inf2.24xlarge", 12, "use 8"),
        ("trn1.32xlarge", 4, "use 8 or 2"),
        ("trn1n.32xlarge", 24, "use 32 or 16"),
        ("trn2.48xlarge", 12, "use 16 or 8"),
        ("trn2.3xlarge", 3, "use 4 or 2"),
    ],
)
def test_a_degree_that_the_runtime_does_not_support(instance: str, degree: int, named: str) -> None:
    [trip] = trips("tp-degree", case(instance, model=LLAMA_8B, engine=tp(degree)))
    assert trip.severity is None
    assert trip.mend == named
    assert str(degree) in trip.message


@pytest.mark.parametrize(
    ("instance", "degree"),
    [
        ("inf2.xlarge", 2),
        ("inf2.24xlarge", 8),
        ("inf2.48xlarge", 24),
        ("trn1.2xlarge", 2),
        ("trn1.32xlarge", 8),
        ("trn1n.32xlarge", 32),
        ("trn2.3xlarge", 4),
        ("trn2.48xlarge", 64),
        ("trn2u.48xlarge", 1),
        ("trn3", 64),
    ],
)
def test_a_degree_that_the_runtime_supports(instance: str, degree: int) -> None:
    made = case(instance, model=LLAMA_8B, engine=tp(degree))
    assert trips("tp-degree", made) == []
    assert trips("core-count", made) == []


def test_where_no_degrees_are_documented() -> None:
    assert severities("tp-degree", instance="trn3", engine=tp(12)) == [Severity.WARNING]
    lnc = {"resources": {"logical_nc_config": 1}}
    assert severities("tp-degree", engine=tp(12), **lnc) == [Severity.WARNING]
    assert severities("tp-degree", engine=tp(128), **lnc) == []


def test_more_cores_than_there_are() -> None:
    for instance, degree in (("inf2.24xlarge", 24), ("trn2.3xlarge", 8), ("trn1.2xlarge", 8)):
        made = case(instance, model=LLAMA_8B, engine=tp(degree))
        assert len(trips("core-count", made)) == 1
        assert trips("tp-degree", made) == []
    native = {"backend": "neuron", "model": LLAMA_70B}
    [trip] = trips("core-count", case(engine=tp(32, data_parallel_size=4), **native))
    assert "tensor_parallel_size 32 x data_parallel_size 4" in trip.message
    assert severities("core-count", engine=tp(32, data_parallel_size=2), **native) == []


def test_lnc() -> None:
    one = {"resources": {"logical_nc_config": 1}, "engine": tp(8)}
    two = {"resources": {"logical_nc_config": 2}, "engine": tp(2)}
    assert len(severities("lnc-one", **one)) == 1
    assert severities("lnc-one", engine=tp(8)) == []
    assert severities("lnc-one", instance="inf2.8xlarge", engine=tp(2)) == []
    assert len(severities("lnc-chip", instance="inf2.8xlarge", **two)) == 1
    assert severities("lnc-chip", instance="trn2.48xlarge", **two) == []


def test_lnc_in_the_environment() -> None:
    name = "NEURON_LOGICAL_NC_CONFIG"
    [trip] = trips("lnc-environment", case(engine=tp(8), env={name: "1"}))
    assert trip.mend.endswith("logical_nc_config: 1")
    assert trip.path == f"env.{name}"
    assert severities("lnc-environment", engine=tp(8), env={name: "2"}) == []
    assert len(severities("lnc-environment", env={"NEURON_RT_VIRTUAL_CORE_SIZE": "3"})) == 1
    inf2 = {"instance": "inf2.8xlarge", "engine": tp(2)}
    assert len(severities("lnc-environment", env={name: "2"}, **inf2)) == 1
    assert severities("lnc-environment", env={name: "1"}, **inf2) == []


def test_lnc_in_neuron_config() -> None:
    assert len(severities("lnc-neuron-config", neuron={"logical_nc_config": 1})) == 1
    assert len(severities("lnc-neuron-config", neuron={"logical_neuron_cores": 1})) == 1
    assert severities("lnc-neuron-config", neuron={"logical_nc_config": 2}) == []
    assert severities("lnc-neuron-config", neuron={"logical_nc_config": "one"}) == []


def test_idle_cores() -> None:
    inf2 = {"instance": "inf2.24xlarge", "model": LLAMA_8B}
    [trip] = trips("core-idle", case(engine=tp(8), **inf2))
    assert "4 of the 12 cores" in trip.message
    assert severities("core-idle", engine=tp(4), scaling={"num_replicas": 3}, **inf2) == []
    [trip] = trips("core-idle", case(engine=tp(4), **inf2))
    assert "3 replicas fit" in trip.mend
    assert severities("core-idle", engine=tp(64), model=LLAMA_70B) == []


def test_devices_that_a_pod_can_get() -> None:
    [trip] = trips("device-count", case(engine=tp(8)))
    assert "asks for 4" in trip.message
    assert severities("device-count", engine=tp(4)) == []
    assert severities("device-count", engine=tp(16)) == []
    assert severities("device-count", instance="inf2.24xlarge", engine=tp(4)) == []


@pytest.mark.parametrize("name", cores.CORE_VARIABLES)
def test_cores_by_hand(name: str) -> None:
    [trip] = trips("core-environment", case(env={name: "0-31"}))
    assert "contiguous" not in trip.message
    [trip] = trips("core-environment", case(env={name: "0,2"}))
    assert "contiguous" in trip.message
    assert trips("core-environment", case(env={"NEURON_RT_LOG_LEVEL": "INFO"})) == []


def test_a_number_of_cores_by_hand_has_no_effect() -> None:
    assert len(severities("core-number-environment", env={"NEURON_RT_NUM_CORES": "8"})) == 1
    assert severities("core-number-environment") == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("0", True),
        ("0-31", True),
        ("3,4,5", True),
        ("3-5,6", True),
        ("3,5,6", False),
        ("5,4", False),
        ("7-3", False),
        ("", False),
        ("a-b", False),
        ("0-99999999999", True),
    ],
)
def test_contiguous(text: str, good: bool) -> None:
    assert cores.contiguous(text) is good


def test_padded_heads() -> None:
    inf2 = {"instance": "inf2.48xlarge"}
    [trip] = trips("heads-padding", case(model=LLAMA_8B, engine=tp(24), **inf2))
    assert "padded to 48" in trip.message
    assert "1.50" in trip.message
    assert trip.severity is None
    # AWS published numbers for this one.
    assert severities("heads-padding", model=LLAMA_70B, engine=tp(24), **inf2) == [Severity.NOTE]
    assert severities("heads-padding", model=LLAMA_8B, engine=tp(8), **inf2) == []
    [trip] = trips("heads-padding", case(model="Qwen/Qwen3-8B", engine=tp(64)))
    assert "32 ranks hold padding only" in trip.message


def test_heads_on_the_native_plugin() -> None:
    native = {"backend": "neuron"}
    [trip] = trips("heads-divisible", case(model="Qwen/Qwen3-14B", engine=tp(16), **native))
    assert "40 attention heads" in trip.message
    assert severities("heads-divisible", model="Qwen/Qwen3-14B", engine=tp(8), **native) == []


def test_kv_heads() -> None:
    [trip] = trips("heads-kv", case(model=LLAMA_70B, engine=tp(64)))
    assert "8 times" in trip.message
    assert trip.severity is None
    assert severities("heads-kv", model=LLAMA_70B, engine=tp(8)) == []
    [trip] = trips("heads-kv", case("inf2.24xlarge", model=LLAMA_8B, engine=tp(12)))
    assert trip.severity is Severity.WARNING
    assert "4.5 times" in trip.message
    dp = {"attention_dp_degree": 8}
    assert severities("heads-kv", model=LLAMA_70B, engine=tp(64), neuron=dp) == []


@pytest.mark.parametrize("backend", ["nxdi", "neuron"])
def test_pipelines(backend: str) -> None:
    staged = tp(8, pipeline_parallel_size=2)
    assert len(severities("pipeline-parallel", backend=backend, engine=staged)) == 1
    one = tp(8, pipeline_parallel_size=1)
    assert severities("pipeline-parallel", backend=backend, engine=one) == []


def test_data_parallel_is_for_replicas() -> None:
    [trip] = trips("data-parallel", case(engine=tp(8, data_parallel_size=2)))
    assert "num_replicas: 2" in trip.mend
    assert severities("data-parallel", engine=tp(8)) == []
