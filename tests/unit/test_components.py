"""`kuberay/components/`: kustomize builds them, and Kubernetes takes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serve_app.config import load
from serve_app.config.cluster import Ingress
from serve_app.manifests import components
from serve_app.manifests.components import karpenter, neuron_monitor
from serve_app.manifests.components.kustomize import SERVICE
from serve_app.manifests.ingress import ingress
from serve_app.manifests.lint import lint
from serve_app.manifests.render import render
from serve_app.manifests.tree import write
from serve_app.neuron.instances import instances

KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ONCE = ["cpu-nodes", "karpenter-inf2", "karpenter-trn1", "karpenter-trn2", "neuron-monitor"]
TAKEN_IN = ["alb-ingress", "monitoring", "open-webui"]
OTHERS = [
    {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": "of-the-overlay", "namespace": "chat"},
        "spec": {},
    }
    for kind in ("Service", "PersistentVolumeClaim")
]

Objects = list[dict[str, Any]]


def overlay_objects() -> Objects:
    """An overlay in a namespace of its own name, with objects of the user's beside it."""
    document = load(Path(__file__).parents[2] / "configs/llama3-8b-inf2.yaml")
    cluster = document.serve.cluster.model_copy(update={"namespace": "chat"})
    serve = document.serve.model_copy(update={"cluster": cluster})
    return [*render(replace(document, serve=serve)).objects(), *OTHERS]


OVERLAY = overlay_objects()
Build = Callable[..., Objects]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """`kubectl kustomize` of a component by itself, or of an overlay that takes some in."""
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")
    write(components.files(), tmp_path)

    def run(*names: str, overlay: bool = False) -> Objects:
        place = tmp_path / "components" / names[0]
        if overlay:
            place = tmp_path / "overlays" / "toy"
            place.mkdir(parents=True, exist_ok=True)
            (place / "objects.yaml").write_text(yaml.safe_dump_all(OVERLAY))
            kustomization = {
                "resources": ["objects.yaml"],
                "components": [f"../../components/{name}" for name in names],
            }
            (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        assert KUBECTL is not None
        done = subprocess.run([KUBECTL, "kustomize", place], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return run


def only(objects: Iterable[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (
        thing
        for thing in objects
        if thing["kind"] == kind and name in ("", thing["metadata"]["name"])
    )
    return found


def test_each_file_says_what_it_is_and_is_listed() -> None:
    files = components.files()
    assert len({file.path for file in files}) == len(files)
    for file in files:
        assert file.comment, file.path
        assert max(len(line) for line in file.comment.splitlines()) <= 100, file.path
    for kustomization in files:
        if kustomization.path.endswith("/kustomization.yaml"):
            folder = kustomization.path.rpartition("/")[0]
            beside = [f.path.rpartition("/")[2] for f in files if f.path.startswith(f"{folder}/")]
            assert ["kustomization.yaml", *kustomization.objects[0]["resources"]] == beside


@pytest.mark.parametrize("name", ONCE)
def test_a_component_for_the_cluster_is_valid(name: str, build: Build) -> None:
    objects = build(name)
    assert "ConfigMap" not in {thing["kind"] for thing in objects}
    assert list(map(str, lint(objects))) == []


@pytest.mark.parametrize("name", TAKEN_IN)
def test_a_component_for_an_overlay_is_valid(name: str, build: Build) -> None:
    objects = build(name, overlay=True)
    assert all(thing in objects for thing in OVERLAY)
    added = [thing for thing in objects if thing not in OVERLAY]
    assert added
    assert list(map(str, lint([thing for thing in objects if thing not in OTHERS]))) == []
    for thing in added:
        assert thing["metadata"]["namespace"] == "chat"
    assert SERVICE not in yaml.safe_dump(added)


@pytest.mark.parametrize("pool", karpenter.FAMILIES)
def test_a_node_pool_takes_each_instance_of_its_families(pool: str, build: Build) -> None:
    nodepool = only(build(f"karpenter-{pool}"), "NodePool")
    spec = nodepool["spec"]["template"]["spec"]
    allowed = {each["key"]: each["values"] for each in spec["requirements"]}
    wanted = [name for name, known in instances().items() if known.family.startswith(pool)]
    assert allowed["node.kubernetes.io/instance-type"] == wanted
    assert spec["expireAfter"] == "Never"
    assert [taint["key"] for taint in spec["taints"]] == ["aws.amazon.com/neuron"]
    assert nodepool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"


def test_every_neuron_instance_has_a_node_pool_and_a_monitor() -> None:
    pooled = {known.name for pool in karpenter.FAMILIES for known in karpenter.members(pool)}
    assert {name for name in instances() if not name.startswith("trn3")} == pooled
    assert pooled <= set(neuron_monitor.instance_types())


def test_the_cluster_is_named_in_one_place(build: Build, tmp_path: Path) -> None:
    settings = tmp_path / "components/eks-cluster/cluster.yaml"
    # As the comment's sed does it.
    lines = settings.read_text().splitlines()
    edited = [line.removesuffix("CLUSTER") + "blue-1" * line.endswith("CLUSTER") for line in lines]
    settings.write_text("\n".join(edited))
    for name in ONCE[:-1]:
        spec = only(build(name), "EC2NodeClass")["spec"]
        assert spec["role"] == "KarpenterNodeRole-blue-1"
        for terms in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
            assert spec[terms] == [{"tags": {"karpenter.sh/discovery": "blue-1"}}]
        assert "CLUSTER" not in yaml.safe_dump(spec)


def test_the_ingress_of_the_component_is_the_one_of_a_config(build: Build) -> None:
    made = only(build("alb-ingress", overlay=True), "Ingress")
    assert made == ingress("llama3-8b-inf2", "chat", Ingress())
    (path,) = made["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": "llama3-8b-inf2-serve-svc",
        "port": {"number": 8000},
    }


def test_an_ingress_with_a_certificate_speaks_tls() -> None:
    arn = "arn:aws:acm:us-west-2:123456789012:certificate/1"
    settings = Ingress(host="chat.example", certificate_arn=arn, scheme="internet-facing")
    made = ingress("a", "b", settings)
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
    says = {key.partition("/")[2]: value for key, value in made["metadata"]["annotations"].items()}
    assert says["scheme"] == "internet-facing"
    assert says["ssl-redirect"] == "443"
    assert says["listen-ports"] == '[{"HTTP": 80}, {"HTTPS": 443}]'
    assert says["certificate-arn"] == arn
    assert says["ssl-policy"].startswith("ELBSecurityPolicy-TLS13-1-2-")
    assert made["spec"]["rules"][0]["host"] == "chat.example"


def test_open_webui_finds_its_service_its_volume_and_its_pods(build: Build) -> None:
    # All components at once: none renames what another brought.
    objects = build(*TAKEN_IN, overlay=True)
    name = "llama3-8b-inf2-open-webui"
    deployment = only(objects, "Deployment", name)
    pod = deployment["spec"]["template"]
    environment = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
    assert environment["SERVE_SERVICE"] == "llama3-8b-inf2-serve-svc"
    assert environment["OPENAI_API_BASE_URL"] == "http://$(SERVE_SERVICE):8000/v1"
    assert list(environment).index("SERVE_SERVICE") < list(environment).index("OPENAI_API_BASE_URL")
    labels = pod["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "llama3-8b-inf2"
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert only(objects, "Service", name)["spec"]["selector"] == labels
    claims = [each.get("persistentVolumeClaim") for each in pod["spec"]["volumes"]]
    assert {"claimName": name} in claims
    assert only(objects, "PersistentVolumeClaim", name)
