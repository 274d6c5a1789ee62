"""One application with a `prefill` section: what each of its two engines is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.backends import engines, engines_of, make_plan
from serve_app.backends.transfer import NIXL_POLL_US, disaggregated, transfer_env
from serve_app.cli.compiled import tasks
from serve_app.cli.main import app
from serve_app.config import AppArgs, ConfigError, load, parse_args
from serve_app.config.rehearsal import rehearse
from serve_app.config.serve_file import DECODE, ENGINE, PREFILL

ROOT = Path(__file__).parents[2]


def pair(prefill: dict[str, Any] | None = None, **args: Any) -> tuple[AppArgs, AppArgs]:
    """Decode and prefill of an application with these `args:`."""
    given = {"model": {"id": "m"}, "backend": "cpu", **args, "prefill": prefill or {}}
    made = engines(parse_args(given))
    assert list(made) == [DECODE, PREFILL]
    return made[DECODE], made[PREFILL]


def neuron(prefill: dict[str, Any] | None = None, **args: Any) -> tuple[AppArgs, AppArgs]:
    return pair(prefill, backend="neuron", instance="trn2.48xlarge", **args)


def test_without_the_section_there_is_one_engine() -> None:
    args = parse_args({"model": {"id": "m"}})
    assert engines(args) == {ENGINE: args}
    assert not disaggregated(args.engine)


def test_neither_engine_has_the_section() -> None:
    assert [args.prefill for args in pair()] == [None, None]


@pytest.mark.parametrize(
    ("section", "shared", "own", "inherited"),
    [
        ("instance", "trn2.48xlarge", "trn2.3xlarge", True),
        ("resources", {"num_cpus": 8.0}, {"num_cpus": 2.0}, True),
        ("scaling", {"num_replicas": 3}, {"num_replicas": 2}, False),
        ("limits", {"max_ongoing_requests": 9}, {"max_ongoing_requests": 4}, False),
    ],
)
def test_sections(section: str, shared: Any, own: Any, inherited: bool) -> None:
    def value(args: AppArgs) -> Any:
        found = getattr(args, section)
        return found if isinstance(found, str) else found.model_dump(exclude_unset=True)

    decode, prefill = pair(**{section: shared})
    assert value(decode) == shared
    assert value(prefill) == (shared if inherited else {})
    decode, prefill = pair({section: own}, **{section: shared})
    assert (value(decode), value(prefill)) == (shared, own)


@pytest.mark.parametrize("section", ["model", "stack", "artifacts", "startup", "health", "backend"])
def test_what_is_always_shared(section: str) -> None:
    decode, prefill = pair()
    assert getattr(decode, section) == getattr(prefill, section)


def test_engine_arguments_are_merged_and_null_goes_back_to_the_default() -> None:
    given = {"max_model_len": 512, "max_num_seqs": 8, "dtype": "float32"}
    own = {"max_num_seqs": 2, "dtype": None, "block_size": 32}
    decode, prefill = pair({"engine": own}, engine=given)
    decode_args, prefill_args = dict(decode.engine), dict(prefill.engine)
    assert decode_args.pop("kv_transfer_config") != prefill_args.pop("kv_transfer_config")
    assert decode_args == given
    assert prefill_args == {"max_model_len": 512, "max_num_seqs": 2, "block_size": 32}


def test_a_nested_argument_is_replaced_as_a_whole() -> None:
    shared = {"additional_config": {"neuron_config": {"lm_head_dp_size": 4}}}
    own = {"additional_config": {"neuron_config": {"ep_degree": 2}}}
    _, prefill = neuron({"engine": own}, engine=shared)
    assert prefill.engine["additional_config"] == own["additional_config"]


def test_environment_is_merged() -> None:
    decode, prefill = pair({"env": {"B": "3"}}, env={"A": "1", "B": "2"})
    assert (decode.env, prefill.env) == ({"A": "1", "B": "2"}, {"A": "1", "B": "3"})


@pytest.mark.parametrize(
    ("make", "fallback", "role", "policy"),
    [
        (pair, "decode", "kv_consumer", "recompute"),
        (pair, "error", "kv_consumer", "fail"),
        (neuron, "decode", "kv_both", "recompute"),
        (neuron, "error", "kv_consumer", "fail"),
    ],
)
def test_roles(make: Any, fallback: str, role: str, policy: str) -> None:
    configs = [args.engine["kv_transfer_config"] for args in make({"fallback": fallback})]
    assert [config["kv_role"] for config in configs] == [role, "kv_producer"]
    assert {config["kv_load_failure_policy"] for config in configs} == {policy}


def test_the_transfer_section() -> None:
    for make, device, default in ((pair, "cpu", "UCX"), (neuron, "cuda", "LIBFABRIC")):
        for args in make({"transfer": {"lease_s": 60}}):
            config = args.engine["kv_transfer_config"]
            assert config["kv_connector"] == "NixlConnector"
            assert config["kv_buffer_device"] == device
            assert config["kv_connector_extra_config"] == {
                "backends": [default],
                "kv_lease_duration": 60,
            }
    for args in neuron({"transfer": {"connector": "NeuronNixlConnector", "backend": "UCX"}}):
        config = args.engine["kv_transfer_config"]
        assert config["kv_connector"] == "NeuronNixlConnector"
        assert config["kv_connector_extra_config"]["backends"] == ["UCX"]


def test_environment_of_the_transport() -> None:
    assert transfer_env({}) == {}
    assert transfer_env({"kv_transfer_config": {"kv_connector": "OffloadingConnector"}}) == {}
    for args in pair():
        assert transfer_env(args.engine) == {
            NIXL_POLL_US: "1000",
            "UCX_RCACHE_MAX_UNRELEASED": "1024",
        }
        assert transfer_env(args.engine).items() <= make_plan(args).env.items()
    for args in neuron():
        assert transfer_env(args.engine) == {"FI_EFA_ENABLE_SHM_TRANSFER": "0"}
        assert make_plan(args).env["FI_EFA_ENABLE_SHM_TRANSFER"] == "0"


def test_the_users_environment_goes_over_the_transports() -> None:
    decode, prefill = pair({"env": {NIXL_POLL_US: "10"}})
    assert make_plan(decode).env[NIXL_POLL_US] == "1000"
    assert make_plan(prefill).env[NIXL_POLL_US] == "10"


def test_a_kv_transfer_config_beside_the_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="follows from prefill"):
        pair(engine={"kv_transfer_config": {"kv_connector": "NixlConnector"}})
    with pytest.raises(ConfigError, match="follows from prefill"):
        pair({"engine": {"kv_transfer_config": {"kv_connector": "NixlConnector"}}})


def test_decode_limits_count_every_data_parallel_rank() -> None:
    decode, prefill = neuron(
        {"engine": {"data_parallel_size": None, "max_num_seqs": 1}},
        engine={"data_parallel_size": 4, "max_num_seqs": 4},
    )
    assert [make_plan(args).max_num_seqs for args in (decode, prefill)] == [16, 1]


def test_no_prefill_replica_is_refused() -> None:
    """None would ever be started: requests do not wait for a replica that is not there."""
    scaling = {"min_replicas": 0, "max_replicas": 2}
    with pytest.raises(ConfigError, match="at least one prefill replica -> use 1"):
        parse_args({"model": {"id": "m"}, "prefill": {"scaling": scaling}})


@pytest.mark.parametrize(
    ("application", "engines"),
    [
        (None, ["decode", "prefill"]),
        ("llama3-3-70b", ["decode", "prefill"]),
        ("llama3-3-70b prefill", ["prefill"]),
    ],
)
def test_what_is_compiled_of_a_pair(application: str | None, engines: list[str]) -> None:
    document = load(ROOT / "configs/llama3.3-70b-pd-trn2.yaml")
    names = [task.name for task in tasks(document, None, application)]
    assert names == [f"llama3-3-70b {engine}" for engine in engines]


def test_one_script_holds_one_compile(tmp_path: Path) -> None:
    script = tmp_path / "compile.sh"
    config = str(ROOT / "configs/llama3.3-70b-pd-trn2.yaml")
    words = ["compile", "--script", str(script), config]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "--application: 'llama3-3-70b decode', 'llama3-3-70b prefill'" in refused.stderr
    assert not script.exists()
    words += ["--application", "llama3-3-70b prefill"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "kv_producer" in script.read_text()


def test_labels() -> None:
    one = load(ROOT / "configs/local-cpu.yaml")
    assert [(engine.label, engine.deployment) for engine in engines_of(one)] == [("demo", ENGINE)]
    two = load(ROOT / "configs/local-cpu-pd.yaml")
    assert [(engine.label, engine.deployment) for engine in engines_of(two)] == [
        ("demo decode", DECODE),
        ("demo prefill", PREFILL),
    ]


PD = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "-pd" in path.stem]


@pytest.mark.parametrize("config", PD, ids=lambda path: path.stem)
def test_a_rehearsal_keeps_the_pair(config: Path) -> None:
    document = load(config)
    ((_, application),) = document.applications()
    batches = {
        name: make_plan(args).max_num_seqs for name, args in engines(application.args).items()
    }
    rehearsed = rehearse(document, {application.name: batches})
    ((_, typed),) = rehearsed.applications()
    before, after = application.args.prefill, typed.args.prefill
    assert before is not None
    assert after is not None
    for name in ("scaling", "limits", "min_prompt_tokens", "routing", "timeout_s", "fallback"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.transfer.port == before.transfer.port
    assert after.transfer.lease_s == before.transfer.lease_s
    assert after.env == typed.args.env == {}
    made = engines(typed.args)
    assert {name: make_plan(args).max_num_seqs for name, args in made.items()} == batches
    for args in made.values():
        plan = make_plan(args)
        assert plan.backend == "cpu"
        assert plan.actor_options == {"num_cpus": 0.1}
        extra = args.engine["kv_transfer_config"]["kv_connector_extra_config"]
        assert extra["backends"] == ["UCX"]
        assert args.engine["kv_transfer_config"]["kv_connector"] == "NixlConnector"
        assert not {"tensor_parallel_size", "additional_config"} & set(args.engine)


@pytest.mark.parametrize(
    ("file", "name", "known"),
    [
        ("local-cpu", PREFILL, "'engine'"),
        ("local-cpu-pd", ENGINE, "'decode' or 'prefill'"),
        ("local-cpu-pd", PREFILL, None),
    ],
)
def test_overrides_name_a_deployment_that_there_is(
    file: str, name: str, known: str | None, tmp_path: Path
) -> None:
    text = (ROOT / f"configs/{file}.yaml").read_text()
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("    args:", f"    deployments: [{{name: {name}}}]\n    args:"))
    if known is None:
        load(path)
        return
    with pytest.raises(ConfigError, match=f"no deployment '{name}' -> name it {known}"):
        load(path)
