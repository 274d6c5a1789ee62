"""What the native Neuron plugin derives by itself."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.neuron import native_config as config

BUCKETS = ("num_batched_tokens_buckets", "num_seqs_buckets", "kv_segment_size_buckets")


def effective(engine: dict[str, Any], **given: Any) -> dict[str, Any]:
    return config.effective(engine, given, tp=4, generation=2)


@pytest.mark.parametrize(
    ("first", "last", "made"),
    [
        (128, 2048, [128, 256, 512, 1024, 2048]),
        (128, 3000, [128, 256, 512, 1024, 2048, 3000]),
        (128, 100, [100]),
        (1, 8, [1, 2, 4, 8]),
        (1, 6, [1, 2, 4, 6]),
        (1, 1, [1]),
    ],
)
def test_powers_of_two_end_with_the_limit(first: int, last: int, made: list[int]) -> None:
    assert config.powers_of_two(first, last) == made


@pytest.mark.parametrize(
    ("engine", "given", "segmented", "buckets"),
    [
        # vLLM's default budget of 2048 is below: segments, without being asked.
        ({"max_model_len": 4096, "max_num_seqs": 2}, {}, True, ([2048], [1, 2], [2048])),
        (
            {"max_model_len": 1024, "max_num_seqs": 1},
            {},
            False,
            ([128, 256, 512, 1024], [1], None),
        ),
        (
            {"max_model_len": 16384, "max_num_batched_tokens": 8192, "max_num_seqs": 1},
            {},
            True,
            ([8192], [1], [8192]),
        ),
        (
            {"max_model_len": 4096, "max_num_seqs": 4},
            {"kv_segment_size_buckets": [512]},
            True,
            ([512], [1, 2, 4], [512]),
        ),
        (
            {"max_model_len": 2048, "max_num_seqs": 4},
            {"num_batched_tokens_buckets": [2048], "num_seqs_buckets": [4]},
            False,
            ([2048], [4], None),
        ),
        # Without chunked prefill vLLM's default budget is max_model_len.
        (
            {"max_model_len": 4096, "max_num_seqs": 1, "enable_chunked_prefill": False},
            {},
            False,
            ([128, 256, 512, 1024, 2048, 4096], [1], None),
        ),
        ({"max_num_seqs": 1}, {}, True, (None, [1], None)),
    ],
)
def test_buckets_follow_vllm_unless_given(engine, given, segmented, buckets) -> None:
    made = effective(engine, **given)
    assert made["segmented_prefill"] is segmented
    assert tuple(made.get(name) for name in BUCKETS) == buckets


def test_max_num_seqs_is_vllms_default_when_it_is_left_out() -> None:
    assert effective({})["num_seqs_buckets"][-1] == 256


def test_on_device_sampling_is_on_unless_null() -> None:
    assert effective({})["on_device_sampling_config"]["max_top_k"] == 256
    assert effective({}, on_device_sampling_config=None)["on_device_sampling_config"] is None
    given = effective({}, on_device_sampling_config={"all_greedy": True})
    assert given["on_device_sampling_config"] == {**config.SAMPLING_KEYS, "all_greedy": True}


def test_defaults_are_those_of_the_dataclass() -> None:
    made = effective({})
    assert made["ep_degree"] == made["attention_dp_size"] == 1
    assert made["fp8_packed_kv"] is made["enable_structured_outputs"] is False
    assert "quantization" not in made


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ([1, 2], True),
        ([5], True),
        ([], False),
        ([2, 1], False),
        ([1, 1], False),
        ([0, 1], False),
        ([True, 2], False),
        (["1"], False),
        (None, False),
        (4, False),
    ],
)
def test_buckets_ascend_and_are_positive(value: Any, good: bool) -> None:
    assert config.is_buckets(value) is good


@pytest.mark.parametrize("odd", [None, "x", -1, 0, True, 1.5, [], {}])
def test_odd_values_do_not_raise(odd: Any) -> None:
    engine = dict.fromkeys(("max_model_len", "max_num_seqs", "max_num_batched_tokens"), odd)
    config.effective(engine, dict.fromkeys(config.KEYS, odd), tp=1, generation=3)


def test_every_key_of_nxdi_is_unknown_here() -> None:
    assert not {*config.FROM_NXDI, *config.ONLY_NXDI} & config.KEYS.keys()
    there = {name for name in config.FROM_NXDI.values() if not name.startswith("engine.")}
    assert there <= config.KEYS.keys()
