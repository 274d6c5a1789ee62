"""Compile on one machine, serve on another: command line, S3, and the replica's look.

The compiler is a stand-in that writes the real library's files (stand_in_compiler.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from serve_app.artifacts import manifest as manifests
from serve_app.backends import make_plan
from serve_app.config import load
from serve_app.engine.artifact import VARIABLE, CompiledModel
from serve_app.engine.errors import StartupError
from serve_app.engine.phases import Phases

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_environment")
FACTS = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(FACTS))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (directory / "model.safetensors").write_bytes(weights)
    return directory


def config(directory: Path, model: Path, engine: dict[str, Any], **artifacts: Any) -> Path:
    """configs/qwen3-8b-trn2-precompiled.yaml with another model directory and artifacts."""
    document = yaml.safe_load((ROOT / "configs/qwen3-8b-trn2-precompiled.yaml").read_text())
    args = document["applications"][0]["args"]
    args["model"]["source"] = str(model)
    args["engine"].update(engine)
    args["artifacts"] = {k: str(v) if isinstance(v, Path) else v for k, v in artifacts.items()}
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory for PATH in which the stand-in is called inference_demo."""
    directory = tmp_path / "bin"
    directory.mkdir()
    command = directory / "inference_demo"
    stand_in = Path(__file__).with_name("stand_in_compiler.py")
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    command.chmod(0o755)
    return directory


def cli(*words: str | Path, path: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    search = f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": search, "COLUMNS": "200", **env},
        timeout=60,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def replica(file: Path, phases: Phases | None = None) -> CompiledModel:
    """What a replica does about its artifact, up to the engine."""
    ((_, app),) = load(file).applications()
    return CompiledModel(app.args, make_plan(app.args), app.args.model.where, phases or Phases())


def prepared(file: Path) -> Path:
    environment: dict[str, str] = {}
    start = replica(file)
    try:
        start.prepare(environment)
    finally:
        start.close()
    return Path(environment[VARIABLE])


@pytest.mark.timeout(120)
def test_one_machine_compiles_another_serves(
    tmp_path: Path, model: Path, tools: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    file = config(first, model, {}, path=first / "llm", store=bucket)
    log = ("--log", first / "log")
    done = cli("compile", file, *log, path=tools)
    assert done.returncode == 0, done.stderr
    key = manifests.read(first / "llm").key  # type: ignore[union-attr]
    assert f"published to {bucket}" in done.stdout
    assert "token_generation_model, bucket 1 of" in done.stderr
    assert "serves it: nothing to do" in cli("compile", file, *log, path=tools).stdout

    # Another machine: an empty disk, the same file, no tool chain, and compiling is forbidden.
    second = tmp_path / "second"
    second.mkdir()
    monkeypatch.setenv("HOME", str(second))
    file = config(second, model, {}, path=second / "llm", store=bucket, frozen=True)
    found = prepared(file)
    assert found == second / ".cache/neuron-serve/artifacts" / key
    assert cli("artifact", "verify", found, "--config", file).returncode == 0

    # A digit of the shapes, changed in the store: a third machine refuses.
    third = tmp_path / "third"
    third.mkdir()
    monkeypatch.setenv("HOME", str(third))
    filesystem, _ = fsspec.url_to_fs(bucket, skip_instance_cache=True)
    (place,) = (f for f in filesystem.find(bucket) if f.endswith("neuron-serve.json"))
    text = filesystem.cat_file(place).decode()
    filesystem.pipe_file(place, re.sub(r'("tp_degree": )32', r"\g<1>16", text).encode())
    file = config(third, model, {}, path=third / "llm", store=bucket, frozen=True)
    with pytest.raises(StartupError, match="unsafe; tp_degree is 16 in the artifact and 32 here"):
        prepared(file)


def test_a_frozen_replica_never_compiles(tmp_path: Path, model: Path) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm", frozen=True)
    with pytest.raises(StartupError, match=r"nothing is compiled at .*llm and artifacts\.frozen"):
        prepared(file)


def test_a_publish_that_failed_is_made_up_for(tmp_path: Path, model: Path, tools: Path) -> None:
    log = ("--log", tmp_path / "log")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the store should be")
    file = config(tmp_path, model, {}, path=tmp_path / "llm", store=blocked / "store")
    done = cli("compile", file, *log, path=tools)
    assert done.returncode == 1
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    assert cli("compile", file, *log, path=tools).returncode == 0
    store = tmp_path / "store"
    file = config(tmp_path, model, {}, path=tmp_path / "llm", store=store)
    assert f"published to {store}" in cli("compile", file, *log, path=tools).stdout
    again = cli("compile", file, *log, path=tools)
    assert f"{store} has" in again.stdout


def test_an_unknown_builtin_model_is_one_finding(tmp_path: Path) -> None:
    file = config(tmp_path, Path("builtin:none"), {}, path=tmp_path / "llm")
    done = cli("check", file)
    assert done.returncode == 1
    assert "no model 'builtin:none'" in done.stderr


def test_frozen_needs_a_place_to_load_from(tmp_path: Path, model: Path) -> None:
    done = cli("check", config(tmp_path, model, {}, frozen=True))
    assert done.returncode == 1
    assert "nowhere to load from -> set artifacts.path or artifacts.store" in done.stderr


def test_a_store_of_no_known_kind_is_one_line(tmp_path: Path, model: Path) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm", store="s4://bucket")
    with pytest.raises(StartupError, match="s4"):
        prepared(file)
    done = cli("compile", file)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("neuron-serve: ")


def test_what_a_replica_compiles_gets_its_name_when_the_engine_runs(
    tmp_path: Path, model: Path, tools: Path
) -> None:
    store = tmp_path / "store"
    file = config(tmp_path, model, {}, path=tmp_path / "llm", store=store)
    environment: dict[str, str] = {}
    told = Phases()
    start = replica(file, told)
    start.prepare(environment)
    assert (told.verdicts, told.compile_seconds) == (set(), None)
    draft = Path(environment[VARIABLE])
    assert draft.parent == tmp_path
    draft_made = draft.stat().st_mtime
    assert not (tmp_path / "llm").exists()
    compiled_by_the_plugin(file, draft, tools)
    last = draft / "model.pt"
    os.utime(last, (0, draft_made + 1800))
    start.keep()
    start.close()
    assert told.compile_seconds == pytest.approx(1800)
    assert not draft.exists()
    made = manifests.read(tmp_path / "llm")
    assert made is not None
    assert made.recipe.model.config_sha256
    assert prepared(file) == tmp_path / "llm"
    told = Phases()
    replica(file, told).prepare({})
    assert (told.verdicts, told.compile_seconds) == ({"usable"}, 0)
    # A store in a directory is used in place by a machine that has nothing.
    other = tmp_path / "other"
    other.mkdir()
    found = prepared(config(other, model, {}, path=other / "llm", store=store))
    assert found.is_relative_to(store)


def compiled_by_the_plugin(file: Path, draft: Path, tools: Path) -> None:
    """Fill the draft with what NxDI writes."""
    dry = cli("compile", "--dry-run", file)
    command = dry.stdout.split("inference_demo \\\n")[1].split("\n# and")[0]
    words = command.replace("\\\n", " ").split()
    words[words.index("--compiled-model-path") + 1] = str(draft)
    subprocess.run([tools / "inference_demo", *words], check=True, capture_output=True)


def test_a_replica_that_dies_leaves_nothing_that_looks_whole(tmp_path: Path, model: Path) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    draft = prepared(file)  # and closed, as if it had died
    (draft / "model.pt").write_bytes(b"half")
    (draft / "neuron_config.json").write_text("{}")
    assert not (tmp_path / "llm").exists()
    assert prepared(file).name.startswith(".llm.draft-")


def test_replicas_of_a_node_compile_once(tmp_path: Path, model: Path, tools: Path) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    environment: dict[str, str] = {}
    start = replica(file)
    start.prepare(environment)
    waiting: list[Path] = []
    other = threading.Thread(target=lambda: waiting.append(prepared(file)))
    other.start()
    other.join(0.5)
    assert other.is_alive()
    compiled_by_the_plugin(file, Path(environment[VARIABLE]), tools)
    start.keep()
    other.join(20)
    assert waiting == [tmp_path / "llm"]


def test_what_does_not_fit_is_refused_or_compiled_beside(
    tmp_path: Path, model: Path, tools: Path
) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    assert cli("compile", file, "--log", tmp_path / "log", path=tools).returncode == 0
    file = config(tmp_path, model, {"max_num_seqs": 4}, path=tmp_path / "llm")
    with pytest.raises(StartupError, match=r"unsafe; batch_size is 2 .* engine\.max_num_seqs: 2"):
        prepared(file)
    done = cli("check", file)
    assert done.returncode == 1
    assert "batch_size is 2 in the artifact and 4 here" in done.stderr
    assert cli("compile", file, path=tools).returncode == 1
    anew = {"path": tmp_path / "llm", "on_mismatch": "compile"}
    file = config(tmp_path, model, {"max_num_seqs": 4}, **anew)
    assert cli("check", file).returncode == 0
    assert prepared(file).name.startswith(".llm-")
    assert (tmp_path / "llm/model.pt").exists()


def test_the_dry_run_says_the_guides_recipe() -> None:
    """The two-step recipe of AWS's guide for Qwen3-8B on trn2, kernels off, field by field.

    Sampling is the exception: the guide freezes top-k 20, here each request brings its own.
    """
    done = cli("compile", "--dry-run", "configs/qwen3-8b-trn2-precompiled.yaml")
    assert done.returncode == 0
    said = re.sub(r"\s*\\\n\s*", " ", done.stdout)
    for words in (
        "--model-type qwen3 --task-type causal-lm run",
        "--torch-dtype bfloat16",
        "--tp-degree 32",
        "--batch-size 2",
        "--ctx-batch-size 1 --tkg-batch-size 2 --is-continuous-batching",
        "--max-context-length 16384 --seq-len 16896",
        "--enable-bucketing",
        "--context-encoding-buckets 2048 4096 8192 16384",
        "--token-generation-buckets 2048 4096 8192 16384 16896",
        "--sequence-parallel-enabled",
        "--on-device-sampling --dynamic",
        "--compile-only",
    ):
        assert words in said, words
    compile_line = said.split("# and it is served with")[0]
    for flag in ("kernel-enabled", "fused-qkv", "prefix-caching"):
        assert flag not in compile_line.replace("--top-k-kernel-enabled", ""), flag
    serve = said.split("# and it is served with")[1]
    for words in ("--tensor-parallel-size=32", "--max-num-seqs=2", "--max-model-len=16896"):
        assert words in serve
    assert "--no-enable-prefix-caching" in serve
    assert '"max_prompt_length": 16384' in serve


def test_the_script_leaves_a_whole_artifact_or_none(
    tmp_path: Path, model: Path, tools: Path
) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    script = tmp_path / "compile.sh"
    assert cli("compile", "--script", script, file).returncode == 0
    env = {**os.environ, "PATH": f"{tools}:/usr/bin:/bin"}
    failing = {**env, "STAND_IN_REFUSES": "sequence_parallel_enabled"}
    assert subprocess.run([script], env=failing, capture_output=True).returncode != 0
    assert not (tmp_path / "llm").exists()
    subprocess.run([script], env=env, check=True, capture_output=True)
    done = cli("artifact", "adopt", tmp_path / "llm", "--instance", "trn2.48xlarge")
    assert done.returncode == 0
    assert "unknown: model.id, model.config_sha256, sdk" in done.stdout
    assert cli("artifact", "verify", tmp_path / "llm", "--config", file).returncode == 0
    assert "chip: trn2" in cli("artifact", "show", tmp_path / "llm").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compile", "configs/local-cpu.yaml"], "has nothing to compile"),
        (["artifact", "show", "docs"], "holds no compiled model: neuron_config.json: No such file"),
        (["artifact", "adopt", "docs"], "holds no compiled model"),
        (["artifact", "adopt", "docs", "--instance", "inf3.huge"], "known: inf2.xlarge"),
    ],
)
def test_one_line_when_something_is_wrong(words: list[str], said: str) -> None:
    done = cli(*words)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_without_the_tool_chain_it_says_so(tmp_path: Path, model: Path) -> None:
    file = config(tmp_path, model, {}, path=tmp_path / "llm")
    done = cli("compile", file, "--log", tmp_path / "log")
    assert done.returncode == 1
    assert "inference_demo is not installed here -> run it where" in done.stderr
    assert not (tmp_path / "llm").exists()


def test_the_native_back_end_compiles_without_a_chip_and_serves_frozen() -> None:
    name = "configs/llama3.3-70b-fp8-trn2.yaml"
    said = cli("compile", "--dry-run", "--no-chip", name).stdout
    assert "needs no chip" in said
    assert "export VLLM_NEURON_CPU_COMPILE=1" in said
    assert "export NEURON_PLATFORM_TARGET_OVERRIDE=trn2" in said
    assert "VLLM_NEURON_DISABLE_WARMUP_COMPILE" not in said
    args = yaml.safe_load((ROOT / name).read_text())["applications"][0]["args"]
    from serve_app.config import parse_args

    args["artifacts"] |= {"frozen": True, "store": "/fsx/cache"}
    env = make_plan(parse_args(args)).env
    assert env["VLLM_NEURON_DISABLE_WARMUP_COMPILE"] == "1"
    assert env["NEURON_LIBTORCH_DISABLE_GRAPH_CAPTURE_BACKEND"] == "1"
    assert env["NEURON_LIBTORCH_REMOTE_CACHE"] == "/fsx/cache"
