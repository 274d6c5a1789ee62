"""`neuron-serve lint-manifests`, what it goes by, and the near misses of its rules."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from scripts.update_crds import TARGET, definitions
from serve_app.cli.main import app
from serve_app.manifests.lint import lint
from serve_app.manifests.lint.quantity import quantity
from serve_app.manifests.lint.rules import RULES, shapes
from serve_app.manifests.lint.rules.kuberay import _seconds
from serve_app.manifests.lint.rules.references import matches
from tests.unit.manifest_defects import DATA, good

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "k8s-schemas"


def run(*args: str, input: str | bytes | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["lint-manifests", *args], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_good_manifests_from_a_file_a_directory_and_standard_input(tmp_path: Path) -> None:
    for args, given in (([str(DATA)], None), (["-"], DATA.read_text())):
        code, output = run(*args, input=given)
        assert (code, "14 objects, no fault" in output) == (0, True), output
    for index, thing in enumerate(good()):
        (tmp_path / f"{index}.yaml").write_text(yaml.safe_dump(thing))
    kustomize = "kustomize.config.k8s.io/v1beta1"
    others = [{"apiVersion": kustomize, "kind": "Kustomization"}, {"replicaCount": 3}, None]
    others[0:0] = [{"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/values.yml").write_text(yaml.safe_dump_all(others))
    assert run(str(tmp_path)) == (0, f"{tmp_path}: 14 objects, no fault\n")


def test_each_fault_is_one_line_with_its_rule() -> None:
    objects = good()
    objects[4]["metadata"]["annotations"]["ray.io/initializing-timeout"] = "60"
    code, output = run("-", input=yaml.safe_dump_all(objects))
    assert code == 1
    assert output.splitlines() == [
        "RayService/neuron-serve/llama3-8b-inf2: metadata.annotations[ray.io/initializing-timeout]:"
        " after 60 the service fails for good, and a cold start with a compile may take 3 h"
        " -> leave it out, or set hours [ray-initializing-timeout]",
        "stdin: 14 objects, 1 fault",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "no Kubernetes object in -"),
        ("a: 1\n---\n- b\n", "no Kubernetes object in -"),
        ("a: [\n", "stdin:2: it is not valid YAML"),
        ("a: !!python/object:os.system {}\n", "it is not valid YAML"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {creationTimestamp: 2026-13-45}", "not valid YAML"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
    ],
)
def test_bad_input_is_one_line(given: str | bytes, said: str) -> None:
    code, output = run("-", input=given)
    assert code == 2
    assert output.startswith("neuron-serve: ")
    assert output.count("\n") == 1
    assert said in output


def test_missing_files_and_no_arguments(tmp_path: Path) -> None:
    code, output = run(str(tmp_path / "none.yaml"))
    assert (code, output.count("\n")) == (2, 1)
    assert "cannot read it: No such file or directory" in output
    assert run(str(tmp_path)) == (2, f"neuron-serve: no Kubernetes object in {tmp_path}\n")
    assert run()[0] == 2


@pytest.mark.parametrize("package", ["jsonschema", "kubernetes_validate", "celpy"])
def test_a_missing_extra_is_one_line(package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"sys.argv = ['neuron-serve', 'lint-manifests', {str(DATA)!r}]\n"
        "from serve_app.cli.main import app\n"
        "app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2, done.stderr
    said = f"checking manifests needs {package}: pip install 'neuron-serve[k8s]'"
    assert done.stderr == f"neuron-serve: {said}\n"


def test_the_table_of_rules_is_written_anew() -> None:
    assert run("--rules") == (0, (ROOT / "docs/lint.md").read_text())


def test_schemas_are_small_and_carry_no_prose() -> None:
    sizes = [file.stat().st_size for file in TARGET.iterdir()]
    assert sum(sizes) < 200_000
    for file in TARGET.glob("*.json.gz"):
        definition = json.loads(gzip.decompress(file.read_bytes()))
        assert file.name == f"{definition['kind'].lower()}.json.gz"


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no definitions at {CRDS.relative_to(ROOT.parent)}")
def test_schemas_are_the_pruned_definitions() -> None:
    vendored = {}
    for file in TARGET.glob("*.json.gz"):
        definition = json.loads(gzip.decompress(file.read_bytes()))
        vendored[definition["kind"]] = definition
    assert vendored == definitions(CRDS)


def rules_of(objects: list[dict[str, Any]]) -> set[str]:
    return {fault.rule for fault in lint(objects)}


def ray_job(**spec: Any) -> list[dict[str, Any]]:
    cluster = deepcopy(good()[4]["spec"]["rayClusterConfig"])
    own = {"entrypoint": "python x.py", "rayClusterSpec": cluster, **spec}
    metadata = {
        "name": "job",
        "namespace": "neuron-serve",
        "annotations": {"neuron-serve/secrets": "hugging-face, neuron-serve-keys"},
    }
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": own}
    return [*good(), job]


def test_ray_jobs() -> None:
    assert rules_of(ray_job()) == set()
    assert rules_of(ray_job(shutdownAfterJobFinishes=True, ttlSecondsAfterFinished=60)) == set()
    for spec in (
        {"ttlSecondsAfterFinished": 60},
        {"suspend": True},
        {"backoffLimit": -1},
        {"backoffLimit": 1, "submissionMode": "InteractiveMode"},
        {"runtimeEnvYAML": "a: ["},
        {"activeDeadlineSeconds": 0},
    ):
        assert rules_of(ray_job(**spec)) == {"ray-job"}, spec


def test_pods_inside_ray_objects_are_looked_at_as_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = good()
    group = objects[4]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    group["template"]["spec"]["nodeSelectr"] = {}
    monkeypatch.setattr(shapes, "custom_misfits", lambda thing: [])
    faults = list(map(str, RULES["pod-schema"].faults(shapes.Manifests(objects))))
    assert len(faults) == 1
    assert "workerGroupSpecs[0].template.spec.nodeSelectr: there is no field" in faults[0]
    assert "did you mean nodeSelector?" in faults[0]


def on(instance: str, devices: int, cores: int, config: str, **pod: Any) -> set[str]:
    """The rules that speak when the service is on another instance."""
    objects = good()
    service, pool = objects[4], objects[-2]
    objects = [thing for thing in objects if thing["kind"] != "Job"]
    cluster = service["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    spec = group["template"]["spec"]
    group["resources"]["neuron_cores"] = str(cores)
    spec["nodeSelector"] = {"node.kubernetes.io/instance-type": instance}
    spec.update(pod)
    container = spec["containers"][0]
    container["image"] = "registry.example/neuron-serve:0.1.0"
    for side in ("requests", "limits"):
        container["resources"][side]["aws.amazon.com/neuron"] = devices
    pool["spec"]["limits"] = {}
    pool["spec"]["template"]["spec"]["requirements"][0]["values"] = [instance]
    service["spec"]["serveConfigV2"] = (ROOT / "configs" / config).read_text()
    return rules_of(objects)


def test_other_instances() -> None:
    # Only CPUs are short: the files ask for more than the 24 of the worker here.
    assert on("trn2.48xlarge", 16, 64, "qwen3-32b-trn2.yaml") <= {"serve-capacity"}
    assert "neuron-cores" in on("trn2.48xlarge", 16, 128, "qwen3-32b-trn2.yaml")
    assert "neuron-devices" in on("trn2.48xlarge", 2, 8, "qwen3-8b-trn2.yaml")
    assert "neuron-scheduler" in on("trn2.48xlarge", 4, 16, "qwen3-8b-trn2.yaml")
    own = {"schedulerName": "my-scheduler"}
    assert "neuron-scheduler" not in on("trn2.48xlarge", 4, 16, "qwen3-8b-trn2.yaml", **own)
    assert "neuron-instance" in on("trn1.2xlarge", 1, 2, "llama3-8b-inf2.yaml")


def test_a_service_on_the_processor() -> None:
    objects = [t for t in good() if t["kind"] not in ("NodePool", "EC2NodeClass", "Job")]
    group = objects[4]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    spec = group["template"]["spec"]
    del group["resources"]["neuron_cores"], spec["nodeSelector"], spec["tolerations"]
    for side in spec["containers"][0]["resources"].values():
        del side["aws.amazon.com/neuron"]
    spec["containers"][0]["image"] = "registry.example/neuron-serve:0.1.0-cpu"
    config = (ROOT / "configs/local-cpu.yaml").read_text()
    config = config.replace("127.0.0.1", "0.0.0.0").replace("HeadOnly", "EveryNode")
    config = config.partition("cluster:")[0]
    objects[4]["spec"]["serveConfigV2"] = config
    assert list(map(str, lint(objects))) == []


def test_what_the_machine_has_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_FILE", "")
    monkeypatch.chdir(tmp_path)
    assert lint(good()) == []


def test_defaults_of_the_definitions_count() -> None:
    objects = good()
    group = objects[4]["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    del group["maxReplicas"], group["minReplicas"]  # required, and filled in
    assert lint(objects) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("1e3", "1000"), ("16Gi", str(16 * 2**30)), (1, "1"), (".5", "0.5")],
)
def test_quantities(text: object, value: str) -> None:
    assert float(quantity(text) or 0) == float(value)


@pytest.mark.parametrize("text", ["", "16GB", "1 Gi", "x", None, True, "1e", "--1"])
def test_no_quantities(text: object) -> None:
    assert quantity(text) is None


def test_durations_of_go() -> None:
    assert (_seconds("1h30m"), _seconds("90"), _seconds("1.5h"), _seconds("500ms")) == (
        5400,
        90,
        5400,
        0.5,
    )
    assert [_seconds(text) for text in ("", "1d", "h", "1h x", "2 hours")] == [None] * 5


def test_label_selectors() -> None:
    labels = {"a": "1", "b": "2"}
    assert matches({}, labels)
    assert matches({"matchLabels": {"a": "1"}}, labels)
    assert not matches({"matchLabels": {"a": "2"}}, labels)
    for operator, values, holds in (
        ("In", ["1"], True),
        ("In", ["2"], False),
        ("NotIn", ["1"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ):
        expression = {"key": "a", "operator": operator, "values": values}
        assert matches({"matchExpressions": [expression]}, labels) is holds
