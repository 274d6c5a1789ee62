"""Does an artifact serve a configuration: every field, every mend, every kind of damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.artifacts import manifest as manifests
from serve_app.artifacts.manifest import ArtifactError, Manifest
from serve_app.artifacts.recipe import RUNTIME, Model, Recipe, recipe_of
from serve_app.artifacts.verdict import _NXDI, Judgement, Verdict, compare, judge
from serve_app.backends import make_plan
from serve_app.config import parse_args
from serve_app.neuron import nxdi_config
from serve_app.preflight.neuron import find_model

CONFIGS = Path(__file__).parents[2] / "configs"

OTHER: dict[str, Any] = {
    "tp_degree": 16,
    "batch_size": 4,
    "tkg_batch_size": 4,
    "max_batch_size": 4,
    "ctx_batch_size": 8,
    "seq_len": 4096,
    "max_context_length": 4096,
    "torch_dtype": "float16",
    "is_continuous_batching": False,
    "is_prefix_caching": True,
    "is_block_kv_layout": True,
    "pa_block_size": 64,
    "pa_num_blocks": 100,
    "kv_cache_batch_size": 2,
    "on_device_sampling_config": {"dynamic": False},
    "output_logits": True,
    "speculation_length": 5,
    "enable_fused_speculation": True,
    "enable_eagle_speculation": True,
    "apply_seq_ids_mask": True,
    "quantized": True,
    "quantization_dtype": "f8e4m3",
    "logical_nc_config": 1,
    "enable_bucketing": False,
    "context_encoding_buckets": [4096, 16384],
    "token_generation_buckets": [16384],
    "prefix_buckets": [512],
    "token_generation_batches": [1, 8],
    "fused_qkv": False,
    "sequence_parallel_enabled": True,
    "attn_kernel_enabled": True,
    "lora_config": {"max_loras": 2},
}
"""A value that configs/qwen3-8b-trn2.yaml does not have, for each field that must match."""


def args_of(name: str = "qwen3-8b-trn2.yaml", **engine: Any) -> dict[str, Any]:
    args = yaml.safe_load((CONFIGS / name).read_text())["applications"][0]["args"]
    args["engine"].update(engine)
    return args


def recipe(args: dict[str, Any] | None = None, directory: str | None = None) -> Recipe:
    typed = parse_args(args or args_of())
    return recipe_of(typed, make_plan(typed), find_model(typed, {}), directory)


def manifest(wanted: Recipe, **neuron: Any) -> Manifest:
    compiled = replace(wanted, neuron={**wanted.neuron, **neuron})
    return Manifest(compiled, wanted.key, {}, weights_in_artifact=False)


def artifact(directory: Path, wanted: Recipe, neuron: Mapping[str, Any] | None = None) -> Path:
    """What NxDI leaves behind."""
    directory.mkdir(exist_ok=True)
    config = {**wanted.architecture, "neuron_config": {**wanted.neuron, **(neuron or {})}}
    (directory / "neuron_config.json").write_text(json.dumps(config))
    (directory / "model.pt").write_bytes(b"graphs" * 1000)
    return directory


def fields(judged: Judgement) -> list[str]:
    return [difference.field for difference in judged.differences]


def test_what_was_compiled_for_a_configuration_serves_it() -> None:
    assert compare(manifest(recipe()), recipe()) == Judgement(Verdict.USABLE)


@pytest.mark.parametrize("name", [*_NXDI, *(name for name in OTHER if name not in _NXDI)])
def test_each_field_that_differs_changes_the_verdict_and_is_named(name: str) -> None:
    caching = {"enable_prefix_caching": True, "block_size": 32, "num_gpu_blocks_override": 4096}
    wanted = recipe(args_of(**caching)) if name.startswith("pa_") else recipe()
    judged = compare(manifest(wanted, **{name: OTHER[name]}), wanted)
    assert judged.verdict is not Verdict.USABLE
    assert name in fields(judged)
    (difference,) = (d for d in judged.differences if d.field == name)
    assert difference.artifact == OTHER[name]
    assert difference.why


def test_no_key_of_neuronconfig_is_overlooked() -> None:
    wanted = recipe()
    known = nxdi_config.keys("neuron", "moe")
    for name in known.keys() - RUNTIME - {"pa_num_blocks", "pa_block_size"}:
        value = wanted.neuron.get(name)
        other = OTHER.get(name, 77 if not value else None if value is not True else False)
        if other is None:
            other = f"not {value}"
        judged = compare(manifest(wanted, **{name: other}), wanted)
        assert judged.verdict is not Verdict.USABLE, name


@pytest.mark.parametrize(
    "change",
    [
        {"tensor_parallel_size": 16},
        {"max_num_seqs": 4},
        {"max_model_len": 8192},
        {"dtype": "float16"},
        {"enable_prefix_caching": True, "block_size": 32},
        {"additional_config": {"max_prompt_length": 8192}},
        {"additional_config": {"override_neuron_config": {"fused_qkv": False}}},
        {"additional_config": {"override_neuron_config": {"sequence_parallel_enabled": True}}},
    ],
)
def test_the_mends_make_it_usable(change: dict[str, Any]) -> None:
    """Compile with one configuration, ask with another, do what the verdict says: it fits."""
    compiled = args_of(**change)
    found = manifest(recipe(compiled))
    args = args_of()
    for _ in range(4):
        judged = compare(found, recipe(args))
        if judged.verdict is Verdict.USABLE:
            break
        for difference in judged.differences:
            apply(args, difference.mend)
    assert compare(found, recipe(args)).verdict is Verdict.USABLE


def apply(args: dict[str, Any], mend: str) -> None:
    path, _, value = mend.partition(": ")
    *parents, last = path.split(".")
    place = args
    for name in parents:
        place = place.setdefault(name, {})
    if value == "not set":
        place.pop(last, None)
    else:
        place[last] = yaml.safe_load(value)


def test_more_than_compiled_is_unsafe_and_less_is_a_waste() -> None:
    wanted = recipe()
    assert compare(manifest(wanted, seq_len=8192), wanted).verdict is Verdict.UNSAFE
    assert compare(manifest(wanted, seq_len=32768), wanted).verdict is Verdict.REBUILD


def test_blocks_do_not_matter_when_a_sequence_is_one_block() -> None:
    wanted = recipe()
    assert compare(manifest(wanted, pa_num_blocks=1), wanted).verdict is Verdict.USABLE


@pytest.mark.parametrize(
    ("change", "verdict", "field"),
    [
        ({"sdk": "2.28.0"}, Verdict.REBUILD, "sdk"),
        ({"platform": "inf2"}, Verdict.REBUILD, "platform"),
        ({"backend": "neuron"}, Verdict.REBUILD, "backend"),
        ({"model": Model("other/model")}, Verdict.UNSAFE, "model.id"),
        ({"architecture": {"model_type": "llama"}}, Verdict.UNSAFE, "model_type"),
    ],
)
def test_other_software_chip_or_model(change: dict[str, Any], verdict: Verdict, field: str) -> None:
    wanted = recipe()
    judged = compare(replace(manifest(wanted), recipe=replace(wanted, **change)), wanted)
    assert judged.verdict is verdict
    assert field in fields(judged)


def test_another_model_with_the_same_shapes() -> None:
    """Same shapes, another config.json: what it says of RoPE is in the graphs."""
    wanted = replace(recipe(), model=Model("Qwen/Qwen3-8B", None, "a" * 64, "b" * 64))
    other = replace(wanted, model=Model("Qwen/Qwen3-8B", None, "c" * 64, "b" * 64))
    assert compare(manifest(other), wanted).verdict is Verdict.UNSAFE
    # The same graphs serve other weights, unless the artifact holds the weights.
    tuned = replace(wanted, model=Model("me/tuned", None, "a" * 64, "d" * 64))
    assert compare(manifest(tuned), wanted).verdict is Verdict.USABLE
    sharded = replace(manifest(tuned), weights_in_artifact=True)
    assert fields(compare(sharded, wanted)) == ["weights"]


def test_flags_that_the_compiler_refused_do_not_ask_for_a_rebuild() -> None:
    wanted = recipe()
    found = replace(manifest(wanted, fused_qkv=False), dropped=("fused_qkv",))
    judged = compare(found, wanted)
    assert judged.verdict is Verdict.USABLE
    assert judged.notes == ("compiled without fused_qkv: the compiler refused",)


def test_the_key_follows_the_shapes_and_nothing_else() -> None:
    key = recipe().key
    assert recipe(args_of(tensor_parallel_size=16)).key != key
    assert recipe(args_of(max_num_seqs=4)).key != key
    assert recipe(args_of("qwen3-8b-trn2-precompiled.yaml")).key != key
    serving = args_of(enable_auto_tool_choice=False)
    serving["artifacts"] = {"path": "/elsewhere"}
    serving["scaling"] = {"num_replicas": 8}
    assert recipe(serving).key == key


def test_a_sealed_directory(tmp_path: Path) -> None:
    wanted = recipe()
    assert judge(tmp_path / "none", wanted) is None
    directory = artifact(tmp_path / "a", wanted)
    made = manifests.seal(directory, wanted)
    assert set(made.files) == {"neuron_config.json", "model.pt"}
    assert manifests.read(directory) == made
    judged = judge(directory, wanted, deep=True)
    assert judged is not None
    assert judged.verdict is Verdict.USABLE


def test_what_a_compile_that_did_not_end_leaves_is_nothing(tmp_path: Path) -> None:
    wanted = recipe()
    directory = artifact(tmp_path / "a", wanted)
    (directory / "model.pt").unlink()
    assert judge(directory, wanted) is None
    with pytest.raises(ArtifactError, match=r"model\.pt is not there: the compile did not end"):
        manifests.seal(directory, wanted)
    assert not (directory / "neuron-serve.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.pt").unlink(), "model.pt is not there"),
        (lambda d: (d / "model.pt").write_bytes(b"graphs"), "model.pt has 6 bytes, not 6000"),
        (lambda d: (d / "model.pt").write_bytes(b"GRAPHS" * 1000), "model.pt has other content"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Any, message: str) -> None:
    wanted = recipe()
    directory = artifact(tmp_path / "a", wanted)
    manifests.seal(directory, wanted)
    damage(directory)
    judged = judge(directory, wanted, deep=True)
    assert judged is not None
    assert judged.verdict is Verdict.REBUILD
    assert message in judged.faults[0]


def test_a_missing_shard(tmp_path: Path) -> None:
    wanted = recipe()
    sharded = {"save_sharded_checkpoint": True, "start_rank_id": 0, "local_ranks_size": 8}
    directory = artifact(tmp_path / "a", wanted, sharded)
    (directory / "weights").mkdir()
    for rank in range(7):
        (directory / f"weights/tp{rank}_sharded_checkpoint.safetensors").write_bytes(b"w")
    judged = judge(directory, wanted)
    assert judged is not None
    shard = "weights/tp7_sharded_checkpoint.safetensors is not there, of 8 shards"
    assert judged.faults == (shard,)
    (directory / "weights/tp7_sharded_checkpoint.safetensors").write_bytes(b"w")
    assert manifests.seal(directory, wanted).weights_in_artifact


@pytest.mark.parametrize("cut", [0, 1, 300, -3])
def test_a_cut_off_manifest_is_one_line(tmp_path: Path, cut: int) -> None:
    wanted = recipe()
    directory = artifact(tmp_path / "a", wanted)
    manifests.seal(directory, wanted)
    file = directory / "neuron-serve.json"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match="is no manifest of a compiled model") as error:
        judge(directory, wanted)
    assert "\n" not in str(error.value)


def test_an_artifact_without_a_manifest_is_judged_by_nxdis_record(tmp_path: Path) -> None:
    wanted = recipe()
    record = {
        # As NxDI writes enums and classes.
        "quantization_type": {"_value_": "per_tensor_symmetric", "_name_": "PER_TENSOR"},
        "attn_cls": {"__module__": "a.b", "__name__": "NeuronLlamaAttention"},
        "tp_degree": 16,
    }
    directory = artifact(tmp_path / "a", wanted, record)
    judged = judge(directory, wanted)
    assert judged is not None
    assert "tp_degree" in fields(judged)
    assert "quantization_type" not in fields(judged)
    assert "the artifact does not tell its sdk" in judged.notes


def test_adopting_marks_what_it_cannot_know(tmp_path: Path) -> None:
    wanted = recipe()
    directory = artifact(tmp_path / "a", wanted)
    found, unknown = manifests.adopted(directory, Model("Qwen/Qwen3-8B"), platform="trn2")
    assert unknown == ("model.config_sha256", "sdk")
    manifests.seal(directory, found, unknown=unknown)
    judged = judge(directory, wanted)
    assert judged is not None
    assert judged.verdict is Verdict.USABLE
    assert judged.notes


def test_the_native_cache_never_loads_what_does_not_fit() -> None:
    wanted = recipe(args_of("llama3.3-70b-fp8-trn2.yaml"))
    found = Manifest(wanted, wanted.key, {}, weights_in_artifact=False)
    assert compare(found, wanted).verdict is Verdict.USABLE
    other = recipe(args_of("llama3.3-70b-fp8-trn2.yaml", max_num_seqs=4))
    judged = compare(found, other)
    assert judged.verdict is Verdict.REBUILD
    assert "max_num_seqs" in fields(judged)
