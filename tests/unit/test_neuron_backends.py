"""The Neuron back ends: instance and software in, plan out."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.backends import EnginePlan, choose_backend, make_plan
from serve_app.config import ConfigError, parse_args


def plan(**args: Any) -> EnginePlan:
    return make_plan(parse_args({"model": {"id": "m"}, **args}))


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({}, "cpu"),
        ({"instance": "inf2.8xlarge"}, "nxdi"),
        ({"instance": "trn1.32xlarge"}, "nxdi"),
        ({"instance": "trn2.48xlarge"}, "nxdi"),
        ({"instance": "trn2.48xlarge", "stack": {"sdk": "2.32"}}, "neuron"),
        ({"instance": "trn2.48xlarge", "backend": "neuron"}, "neuron"),
        ({"instance": "inf2.8xlarge", "backend": "cpu"}, "cpu"),
        (
            {
                "instance": "trn2.48xlarge",
                "engine": {"additional_config": {"neuron_config": {}}},
            },
            "neuron",
        ),
    ],
)
def test_choice_of_back_end(args: dict[str, Any], name: str) -> None:
    parsed = parse_args({"model": {"id": "m"}, **args})
    assert choose_backend(parsed)[0] == name
    made = make_plan(parsed)
    assert made.backend == name
    assert made.reasons[0].startswith(f"backend {name}: ")


def test_inf2_gets_the_last_sdk_that_serves_it() -> None:
    made = plan(instance="inf2.8xlarge", engine={"tensor_parallel_size": 2})
    assert made.target is not None
    assert (made.target.stack.sdk, made.vllm) == ("2.28.0", "0.13")
    assert made.actor_options["resources"] == {"neuron_cores": 2}
    assert "NEURON_LOGICAL_NC_CONFIG" not in made.env


def test_what_the_plugin_enforces_is_written_out() -> None:
    engine = {"tensor_parallel_size": 8, "max_num_seqs": 4, "enable_prefix_caching": False}
    made = plan(
        instance="trn2.48xlarge", engine=engine, artifacts={"path": "/a", "compile_cache": "/c"}
    )
    assert made.engine_args == {
        **engine,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 131072,
        "distributed_executor_backend": "uni",
        "num_gpu_blocks_override": 4,
    }
    assert made.env["NEURON_LOGICAL_NC_CONFIG"] == "2"
    assert made.env["NEURON_COMPILED_ARTIFACTS"] == "/a"
    assert made.env["NEURON_COMPILE_CACHE_URL"] == "/c"
    command = made.command("/weights", ["name"])
    assert "--no-enable-chunked-prefill" in command
    assert "--tensor-parallel-size=8" in command


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"backend": "nxdi"}, "needs to know the instance"),
        ({"instance": "inf2.9xlarge"}, "known: inf2.xlarge, inf2.8xlarge, inf2.24xlarge"),
        ({"instance": "inf2.8xlarge", "stack": {"sdk": "9.9"}}, "no SDK 9.9"),
    ],
)
def test_unknown_targets(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**args)


def test_lnc_and_devices() -> None:
    made = plan(
        instance="trn2.48xlarge",
        engine={"tensor_parallel_size": 6},
        resources={"logical_nc_config": 1},
    )
    assert made.target is not None
    assert made.target.lnc == 1
    assert made.target.devices == 1
    assert plan(instance="trn2.48xlarge", engine={"tensor_parallel_size": 6}).target.devices == 2
