"""Rules about a prefill and a decode engine together: each trips once, in one line, on a wrong
file and stays quiet on a near miss."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.backends import target
from serve_app.config import ConfigError, Finding, Severity, load, parse_args
from serve_app.neuron.instances import instances
from serve_app.neuron.stacks import release, stacks
from serve_app.preflight import check_application, check_document, disaggregation
from serve_app.preflight.case import RULES, Pair

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
Changes = dict[str, Any]

NEURON: Changes = {
    "backend": "neuron",
    "instance": "trn2.48xlarge",
    "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
    "engine": {
        "tensor_parallel_size": 32,
        "max_model_len": 4096,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 8,
        "block_size": 32,
    },
    "prefill": {},
}
CPU: Changes = {
    "backend": "cpu",
    "model": {"id": "demo", "source": "builtin:demo"},
    "engine": {"max_model_len": 1024, "block_size": 32},
    "prefill": {},
}
NXDI: Changes = {
    "backend": "nxdi",
    "instance": "trn2.48xlarge",
    "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
    "engine": {
        "tensor_parallel_size": 8,
        "max_model_len": 4096,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
        "dtype": "bfloat16",
    },
    "prefill": {},
}
EIGHT = {"engine": {"tensor_parallel_size": 8}}
GPT = {
    "model": {"id": "openai/gpt-oss-20b"},
    "engine": {
        "tensor_parallel_size": 8,
        "disable_hybrid_kv_cache_manager": False,
        "hf_overrides": {"quantization_config": {}},
    },
    "prefill": {"transfer": {"connector": "NeuronNixlConnector"}},
}
DCP = {
    "engine": {
        "tensor_parallel_size": 32,
        "decode_context_parallel_size": 4,
        "cp_kv_cache_interleave_size": 32,
    },
    "prefill": {"transfer": {"connector": "NeuronNixlConnector"}},
}
EAGLE = {
    "speculative_config": {"method": "eagle3", "model": "org/draft", "num_speculative_tokens": 3}
}
PORT, HOST = "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST"
SKIP = "VLLM_NEURON_SKIP_PREFILL_WARMUP"


def over(base: Changes, *changes: Changes) -> Changes:
    """`base` with `changes` merged in; None removes a key."""
    merged = dict(base)
    for change in changes:
        for name, value in change.items():
            old = merged.get(name)
            both = isinstance(value, dict) and isinstance(old, dict)
            merged[name] = over(old, value) if both else value
    return {name: value for name, value in merged.items() if value is not None}


def prefill(**section: Any) -> Changes:
    return {"prefill": section}


def prefill_engine(**arguments: Any) -> Changes:
    return prefill(engine=arguments)


def prefill_neuron(**keys: Any) -> Changes:
    return prefill_engine(additional_config={"neuron_config": keys})


def env(**variables: str) -> Changes:
    return {"env": variables}


def written(folder: Path, *applications: Changes, port: int = 8000) -> Path:
    """A file with these `args:`."""
    data = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": f"app{number}",
                "route_prefix": f"/{number}",
                "import_path": "serve_app:build_app",
                "args": args,
            }
            for number, args in enumerate(applications)
        ],
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def check(folder: Path, *applications: Changes, port: int = 8000) -> list[Finding]:
    """What is said beside notes."""
    findings = check_document(load(written(folder, *applications, port=port)), {})
    return [finding for finding in findings if finding.severity is not NOTE]


TRIPS: list[tuple[str, Severity, Changes, tuple[Changes, ...]]] = [
    ("pd-backend", ERROR, NXDI, ()),
    ("pd-backend", ERROR, NXDI, ({"backend": "auto", "instance": "inf2.48xlarge"},)),
    ("pd-backend", ERROR, NEURON, ({"backend": "auto"}, prefill(instance="inf2.48xlarge"))),
    ("pd-kv-cache", ERROR, NEURON, (prefill_engine(dtype="float16"),)),
    ("pd-kv-cache", ERROR, CPU, (prefill_engine(kv_cache_dtype="fp8"),)),
    ("pd-kv-cache", ERROR, NEURON, (prefill_engine(disable_hybrid_kv_cache_manager=True),)),
    ("pd-kv-cache", ERROR, CPU, (prefill_engine(hf_overrides={"num_key_value_heads": 1}),)),
    ("pd-kv-layout", ERROR, NEURON, (prefill_neuron(fp8_packed_kv=True),)),
    ("pd-kv-layout", ERROR, CPU, (prefill(env={"VLLM_KV_CACHE_LAYOUT": "HND"}),)),
    ("pd-prompt", ERROR, CPU, (prefill_engine(chat_template="{{ messages }}"),)),
    ("pd-speculation", ERROR, CPU, ({"engine": EAGLE}, prefill_engine(speculative_config=None))),
    ("pd-block-size", ERROR, NEURON, (prefill_engine(block_size=64),)),
    ("pd-block-size", ERROR, CPU, (prefill_engine(block_size=64),)),
    ("pd-length", ERROR, NEURON, (prefill_engine(max_model_len=3072),)),
    ("pd-length", ERROR, CPU, (prefill_engine(max_model_len=512),)),
    ("pd-tensor-parallel", ERROR, NEURON, (EIGHT, prefill_engine(tensor_parallel_size=16))),
    ("pd-connector", ERROR, CPU, (prefill(transfer={"connector": "NeuronNixlConnector"}),)),
    ("pd-connector", ERROR, CPU, (prefill(transfer={"backend": "LIBFABRIC"}),)),
    ("native-transfer-backend", ERROR, NEURON, (prefill(transfer={"backend": "UCX"}),)),
    ("native-transfer-window", WARNING, NEURON, (
        GPT, prefill(transfer={"connector": "NixlConnector"}))),
    ("pd-context-parallel", WARNING, NEURON, (
        DCP, prefill_engine(decode_context_parallel_size=2))),
    ("pd-context-parallel", WARNING, NEURON, (
        DCP, prefill_engine(decode_context_parallel_size=1, tensor_parallel_size=8))),
    ("pd-lease", WARNING, CPU, (prefill(transfer={"lease_s": 18}),)),
    ("pd-lease", WARNING, NEURON, ({"health": {"probe_period_s": 60.0}},)),
    ("pd-session", WARNING, CPU, (
        {"engine": {"enable_prefix_caching": False}}, prefill(routing="session"))),
    ("pd-warm-up", ERROR, NEURON, (env(VLLM_NEURON_SKIP_DECODE_WARMUP="1"),)),
    ("pd-warm-up", ERROR, NEURON, (env(**{SKIP: "1"}), prefill(env={SKIP: "0"}))),
    ("pd-warm-up", ERROR, NEURON, (prefill(fallback="error", env={SKIP: "1"}),)),
    ("pd-bidirectional", WARNING, NEURON, (env(VLLM_NEURON_BIDIRECTIONAL_KV="1"),)),
    ("pd-efa", WARNING, NEURON, (
        {"instance": "trn2.3xlarge", "env": {"NEURON_SKIP_EFA_AFFINITY": "1"}},
        {"engine": {"tensor_parallel_size": 4}})),
    ("pd-shared-memory", ERROR, NEURON, (env(FI_EFA_ENABLE_SHM_TRANSFER="1"),)),
    ("pd-shared-memory", ERROR, NEURON, (prefill(env={"FI_EFA_ENABLE_SHM_TRANSFER": "1"}),)),
    ("pd-side-channel", ERROR, CPU, (env(**{PORT: "5600"}),)),
    ("pd-side-channel", ERROR, NEURON, (
        EIGHT, prefill(env={PORT: "5600"}, scaling={"num_replicas": 2}))),
    ("pd-side-channel", WARNING, NEURON, (env(**{HOST: "0.0.0.0"}),)),
    ("pd-side-channel", ERROR, NEURON, (
        env(**{HOST: "0.0.0.0"}), {"engine": {"tensor_parallel_size": 64},
                                   "model": {"id": "meta-llama/Llama-3.3-70B-Instruct"}})),
    ("pd-ports", ERROR, CPU, (prefill(transfer={"port": 65000}, scaling={"num_replicas": 300}),)),
    ("pd-ports", ERROR, CPU, (prefill(transfer={"port": 8264}),)),
    ("pd-ports", ERROR, CPU, (prefill(transfer={"port": 6378}),)),
    ("pd-ports", ERROR, CPU, (prefill(transfer={"port": 7998}),)),
]  # fmt: skip

CLEAN: list[tuple[str, Changes, tuple[Changes, ...]]] = [
    ("pd-backend", NEURON, ({"backend": "auto"},)),
    ("pd-nixl", CPU, ()),
    ("pd-kv-cache", NEURON, (prefill_engine(kv_cache_dtype="auto"),)),
    ("pd-kv-cache", CPU, ({"engine": {"dtype": "float32"}},)),
    ("pd-kv-layout", NEURON, (env(VLLM_KV_CACHE_LAYOUT="HND"), prefill_neuron())),
    ("pd-prompt", CPU, ({"engine": {"tokenizer_mode": "auto"}},)),
    ("pd-speculation", CPU, (
        prefill_engine(speculative_config=None),
        {"engine": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}})),
    ("pd-block-size", NEURON, ({"engine": {"block_size": None}}, prefill_engine(block_size=32))),
    ("pd-block-size", CPU, ({"engine": {"block_size": 128}}, prefill_engine(block_size=None))),
    ("pd-length", NEURON, (prefill_engine(max_model_len=8192),)),
    ("pd-tensor-parallel", NEURON, (prefill_engine(tensor_parallel_size=8),)),
    ("pd-tensor-parallel", NEURON, (
        {"engine": {"tensor_parallel_size": 4}}, prefill_engine(tensor_parallel_size=8))),
    ("pd-tensor-parallel", NEURON, ()),  # 8 KV heads copied alike on both
    ("pd-connector", CPU, (prefill(transfer={"backend": "UCX"}),)),
    ("pd-context-parallel", NEURON, (DCP,)),
    ("pd-context-parallel", NEURON, (DCP, prefill_engine(decode_context_parallel_size=1))),
    ("pd-lease", CPU, (prefill(transfer={"lease_s": 20}),)),
    ("pd-session", CPU, (prefill(routing="session"),)),
    ("pd-warm-up", NEURON, (
        env(**{SKIP: "1"}), prefill(fallback="error", env={SKIP: "0"}))),
    ("pd-bidirectional", NEURON, (env(VLLM_NEURON_BIDIRECTIONAL_KV="0"),)),
    ("pd-plan", NEURON, ()),
    ("pd-efa", NEURON, (prefill(scaling={"num_replicas": 3}),)),
    ("pd-shared-memory", NEURON, (
        {"engine": {"tensor_parallel_size": 64}}, env(FI_EFA_ENABLE_SHM_TRANSFER="1"),
        {"model": {"id": "meta-llama/Llama-3.3-70B-Instruct"}})),
    ("pd-side-channel", CPU, (prefill(env={PORT: "5600"}),)),
    ("pd-side-channel", NEURON, (env(**{HOST: "10.0.0.1"}),)),
    ("pd-ports", CPU, (prefill(transfer={"port": 8266}),)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "severity", "base", "changes"), TRIPS)
def test_a_wrong_file_is_told_in_one_line(
    rule: str, severity: Severity, base: Changes, changes: tuple[Changes, ...], tmp_path: Path
) -> None:
    (finding,) = check(tmp_path, over(base, *changes))
    assert (finding.rule, finding.severity) == (rule, severity)
    line = (tmp_path / "c.yaml").read_text().splitlines()[(finding.line or 0) - 1]
    assert line.strip().partition(":")[0] in finding.path.split("."), finding
    assert finding.mend
    assert finding.source


@pytest.mark.parametrize(("rule", "base", "changes"), CLEAN)
def test_a_near_miss_is_quiet(
    rule: str, base: Changes, changes: tuple[Changes, ...], tmp_path: Path
) -> None:
    assert [str(finding) for finding in check(tmp_path, over(base, *changes))] == []


def test_each_rule_has_both() -> None:
    pairs = {rule.id for rule in RULES.values() if rule.subject is Pair}
    elsewhere = {"pd-plan", "pd-nixl"}
    assert {id for id in pairs if not id.startswith("pd-")} == set()
    assert pairs - {row[0] for row in TRIPS} == elsewhere
    assert pairs - {row[0] for row in CLEAN} == set()


def plan_of(folder: Path, *changes: Changes) -> list[Finding]:
    findings = check_document(load(written(folder, over(NEURON, *changes))), {})
    return [finding for finding in findings if finding.rule in ("pd-plan", "core-idle")]


def test_the_plan_counts_the_cores_of_both_kinds(tmp_path: Path) -> None:
    assert plan_of(tmp_path) == []  # 32 and 32 fill the instance
    (idle,) = plan_of(tmp_path, prefill_engine(tensor_parallel_size=8))
    assert "1 decode x 32 and 1 prefill x 8 cores take 1 trn2.48xlarge" in idle.message
    assert "24 of 64 cores stay idle" in idle.message
    (many,) = plan_of(tmp_path, prefill(scaling={"num_replicas": 3}))
    assert "take 2 trn2.48xlarge" in many.message
    assert "placement group" in many.mend
    assert many.severity is NOTE


def test_nixl_is_asked_for_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disaggregation, "find_spec", lambda name: None)
    (missing,) = check(tmp_path, CPU)
    assert (missing.rule, missing.severity) == ("pd-nixl", ERROR)
    assert "neuron-serve[pd]" in missing.mend
    assert check(tmp_path, NEURON) == []  # not the machine that serves
    chip = tmp_path / "neuron0"
    chip.touch()
    monkeypatch.setattr(disaggregation, "_CHIP", chip)
    (missing,) = check(tmp_path, NEURON)
    assert (missing.rule, missing.severity) == ("pd-nixl", WARNING)


def test_nixl_is_looked_for_and_not_loaded(tmp_path: Path) -> None:
    assert disaggregation.find_spec is importlib.util.find_spec


def test_ports_of_two_applications(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, CPU, CPU)
    assert finding.rule == "pd-ports"
    assert finding.path.startswith("applications[1]")
    assert "5600 to 5603 is of application app0" in finding.message
    moved = over(CPU, prefill(transfer={"port": 5604}))
    assert check(tmp_path, CPU, moved) == []
    assert check(tmp_path, CPU, over(CPU, {"prefill": None})) == []


def test_an_http_port_among_the_side_channels(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, CPU, port=5602)
    assert "http_options.port" in finding.message


def test_an_inherited_fault_is_told_once_and_an_own_one_too(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, over(NEURON, env(VLLM_NEURON_BARRIER_TIME="1")))
    assert finding.path == "applications[0].args.env.VLLM_NEURON_BARRIER_TIME"
    own = over(NEURON, prefill_engine(max_num_batched_tokens=1000))
    (finding,) = check(tmp_path, own)
    assert finding.path == "applications[0].args.prefill.engine.max_num_batched_tokens"


ODD = (None, 0, -1, 3, True, "x", [1], {"a": None}, {"neuron_config": []})


@pytest.mark.parametrize("base", [CPU, NEURON, NXDI], ids=["cpu", "neuron", "nxdi"])
def test_no_value_makes_a_rule_raise(base: Changes) -> None:
    names = (*disaggregation._SHAPES, *disaggregation._PROMPT, *disaggregation._ADAPTERS)
    names += ("block_size", "max_model_len", "tensor_parallel_size", "data_parallel_size")
    names += ("decode_context_parallel_size", "speculative_config", "additional_config")
    for name in names:
        for value in ODD:
            try:
                args = parse_args(over(base, prefill_engine(**{name: value})))
            except ConfigError:
                continue
            check_application(args, {})


def test_an_unknown_instance_is_told_once(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, over(NEURON, {"instance": "trn2.none"}))
    assert finding.path == "applications[0].args.instance"
    (finding,) = check(tmp_path, over(NEURON, prefill(instance="trn2.none")))
    assert finding.path == "applications[0].args.prefill.instance"


def test_inf2_is_told_what_can(tmp_path: Path) -> None:
    (finding,) = check(tmp_path, over(NXDI, {"backend": "auto", "instance": "inf2.48xlarge"}))
    assert "inf2.48xlarge" in finding.message
    assert "trn2" in finding.mend
    assert "trn3" in finding.mend


def test_every_stack_that_transfers_renews_leases() -> None:
    """vLLM has heartbeats since NIXL_CONNECTOR_VERSION 4, which 0.24 has."""
    native = [stack for stack in stacks() if stack.backend == "neuron"]
    assert all(release(stack.vllm) >= (0, 24) for stack in native)


def test_nodes_without_efa_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(instances()["trn2.48xlarge"], efa_interfaces=0)
    monkeypatch.setattr(target, "instances", lambda: {bare.name: bare})
    assert check(tmp_path, NEURON) == []  # both on one
    (finding,) = check(tmp_path, over(NEURON, prefill(scaling={"num_replicas": 2})))
    assert (finding.rule, finding.severity) == ("pd-efa", ERROR)
