"""The head and memory arithmetic, against a count of what each rank really holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.neuron.instances import instances
from serve_app.neuron.memory import (
    GIB,
    Memory,
    WeightBytes,
    estimate,
    kv_heads_per_rank,
    native_kv_heads_per_rank,
    padded_heads,
    weight_bytes_per_rank,
)
from serve_app.neuron.model_facts import ModelFacts, known_models

BF16 = WeightBytes(2, 2, 2)
LLAMA_8B = known_models()["meta-llama/meta-llama-3-8b"]
LLAMA_70B = known_models()["meta-llama/meta-llama-3-70b-instruct"]

degrees = st.sampled_from([1, 2, 4, 8, 12, 16, 24, 32, 64, 128])
shapes = st.tuples(st.sampled_from([1, 2, 3, 4, 8, 10, 16]), st.integers(1, 12)).map(
    lambda pair: (pair[0] * pair[1], pair[0])
)
"""(Q heads, KV heads): the first is a multiple of the second, as in every model."""


def place(heads: int, kv_heads: int, tp: int) -> list[list[int | None]]:
    """The KV heads that lie on each rank, by brute force; None is padding.

    Written from the diagrams in NxDI's gqa.py: Q heads are padded up to a multiple of the ranks.
    KV heads are cut into equal parts if they can be; else each is copied to as many ranks as
    there are per KV head, if that is a whole number; else every Q head gets its own copy.
    """
    total = heads
    while total % tp:
        total += 1
    if heads == kv_heads:
        slots: list[int | None] = [*range(kv_heads), *[None] * (total - heads)]
    elif kv_heads % tp == 0:
        slots = list(range(kv_heads))
    elif tp % kv_heads == 0:
        slots = [head for head in range(kv_heads) for _ in range(tp // kv_heads)]
    else:
        group = heads // kv_heads
        slots = [q // group if q < heads else None for q in range(total)]
    share = len(slots) // tp
    return [slots[rank * share : (rank + 1) * share] for rank in range(tp)]


@given(shapes, degrees)
def test_kv_heads_per_rank_is_what_lies_there(shape: tuple[int, int], tp: int) -> None:
    heads, kv_heads = shape
    ranks = place(heads, kv_heads, tp)
    assert {len(rank) for rank in ranks} == {kv_heads_per_rank(heads, kv_heads, tp)}
    assert {head for rank in ranks for head in rank if head is not None} == set(range(kv_heads))


@given(shapes, degrees)
def test_heads_are_padded_as_little_as_possible(shape: tuple[int, int], tp: int) -> None:
    padded = padded_heads(shape[0], tp)
    assert padded % tp == 0
    assert 0 <= padded - shape[0] < tp


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp", "expected"),
    [
        (32, 32, 24, 2),  # as many KV as Q heads
        (32, 8, 2, 4),  # sharded
        (32, 8, 8, 1),
        (32, 8, 24, 1),  # replicated
        (64, 8, 64, 1),
        (32, 8, 12, 3),  # one for each Q head
    ],
)
def test_the_five_cases(heads: int, kv_heads: int, tp: int, expected: int) -> None:
    assert kv_heads_per_rank(heads, kv_heads, tp) == expected


@given(st.integers(1, 16), degrees)
def test_the_native_plugin_never_holds_less_than_one(kv_heads: int, tp: int) -> None:
    assert native_kv_heads_per_rank(kv_heads, tp) == max(1, kv_heads // tp)


def made(model: ModelFacts = LLAMA_8B, name: str = "inf2.48xlarge", **values: object) -> Memory:
    instance = instances()[name]
    arguments: dict[str, object] = {
        "model": model,
        "instance": instance,
        "lnc": instance.default_lnc,
        "tp": 2,
        "batch": 1,
        "length": 4096,
        "weight_bytes": BF16,
        "kv_bytes": 2,
        **values,
    }
    return estimate(**arguments)  # type: ignore[arg-type]


@given(
    st.sampled_from(list(known_models().values())),
    st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    st.integers(1, 64),
    st.integers(1, 512),
)
def test_the_kv_cache_is_every_element_once(
    model: ModelFacts, tp: int, batch: int, length: int
) -> None:
    heads = len(place(model.heads, model.kv_heads, tp)[0])
    elements = 0
    for layer in range(model.layers):
        kept = length
        if model.model_type == "gpt_oss" and layer % 2 == 0:
            kept = min(128, length)
        for _key_and_value in range(2):
            elements += batch * heads * kept * model.head_dim
    assert made(model, "trn2.48xlarge", tp=tp, batch=batch, length=length).kv_cache == 2 * elements


@given(st.sampled_from(list(known_models().values())), degrees)
def test_no_rank_holds_less_than_its_share_and_none_more_than_all(
    model: ModelFacts, tp: int
) -> None:
    held = weight_bytes_per_rank(model, BF16, tp, (tp,))
    count = model.weights
    everything = 2 * sum(count) + 2 * count.routers  # routers are float32
    assert held >= int(2 * sum(count) / tp) - 1
    if tp == 1:
        assert held == everything
    assert held <= everything


@given(st.sampled_from([1, 2, 4, 8]))
def test_where_nothing_is_padded_the_ranks_together_hold_the_model(tp: int) -> None:
    norms = 2 * LLAMA_70B.weights.norms
    held = weight_bytes_per_rank(LLAMA_70B, BF16, tp, (tp,)) - norms
    assert held * tp == 2 * sum(LLAMA_70B.weights) - norms


@given(st.integers(1, 64), st.integers(1, 8192), st.sampled_from([1, 2]))
def test_more_sequences_or_tokens_never_take_less(batch: int, length: int, kv: int) -> None:
    small = made(batch=batch, length=length, kv_bytes=kv)
    for larger in (
        made(batch=batch + 1, length=length, kv_bytes=kv),
        made(batch=batch, length=length + 1, kv_bytes=kv),
    ):
        assert larger.kv_cache > small.kv_cache
        assert larger.workspace >= small.workspace
        assert larger.weights == small.weights


@pytest.mark.parametrize(
    ("model", "name", "values", "weights", "kv"),
    [
        (LLAMA_8B, "inf2.8xlarge", {"tp": 2, "batch": 10}, 7.5, 2.5),
        (LLAMA_70B, "inf2.24xlarge", {"tp": 8}, 16.4, 0.2),
        (LLAMA_70B, "inf2.48xlarge", {"tp": 24, "batch": 4}, 5.8, 0.6),
        (LLAMA_70B, "trn2.48xlarge", {"tp": 32, "batch": 8, "length": 16384}, 4.3, 5.0),
    ],
)
def test_published_configurations(
    model: ModelFacts, name: str, values: dict[str, object], weights: float, kv: float
) -> None:
    memory = made(model, name, **values)
    assert memory.weights / GIB == pytest.approx(weights, abs=0.06)
    assert memory.kv_cache / GIB == pytest.approx(kv, abs=0.06)


def test_blocks_count_as_they_are_allocated() -> None:
    blocked = made(blocks=100, block_size=32)
    assert blocked.kv_cache == made(batch=1, length=3200).kv_cache
    assert blocked.kv_cache == made(blocks=100, block_size=32, batch=64).kv_cache


def test_attention_data_parallel_shares_out_sequences() -> None:
    model = known_models()["qwen/qwen3-235b-a22b"]
    plain = made(model, "trn2.48xlarge", tp=64, batch=16)
    shared = made(model, "trn2.48xlarge", tp=64, batch=16, attention_dp=8, context_parallel=8)
    assert shared.kv_cache * 8 == plain.kv_cache
    # Eight ranks have the whole of an attention that 64 had.
    assert shared.weights > plain.weights
    both = made(model, "trn2.48xlarge", tp=64, batch=16, attention_dp=8, context_parallel=16)
    assert both.weights > shared.weights  # prefill and decode shard attention differently


def test_a_window_on_every_layer() -> None:
    windowed = replace(LLAMA_8B, sliding_window=1024)
    assert made(windowed, length=4096).kv_cache == made(length=1024).kv_cache
    assert made(windowed, length=512).kv_cache == made(length=512).kv_cache


def test_the_native_pool_is_the_lesser_of_the_rest_and_the_cap() -> None:
    memory = made(LLAMA_70B, "trn2.48xlarge", tp=16, utilization=0.92)
    assert memory.kv_cache == int(int(24 * GIB * 0.92) * 0.30)
    memory = made(LLAMA_70B, "trn2.48xlarge", tp=8, utilization=0.92)
    assert memory.kv_cache == int(24 * GIB * 0.92) - memory.weights
    assert made(LLAMA_70B, "trn2.48xlarge", tp=4, utilization=0.92).kv_cache == 0


def test_sequence_parallel_needs_less_workspace() -> None:
    assert made(sequence_parallel=True).workspace < made().workspace


def test_the_detail_says_every_number() -> None:
    memory = made()
    assert [line.split(":")[0] for line in memory.detail] == ["weights", "KV cache", "workspace"]
    assert memory.total == memory.weights + memory.kv_cache + memory.workspace
