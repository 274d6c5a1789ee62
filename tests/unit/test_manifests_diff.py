"""What `neuron-serve diff` calls a difference, and what it says that applying one does."""

from __future__ import annotations

import copy
import functools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import load
from serve_app.manifests import effect
from serve_app.manifests.diff import KINDS, differences
from serve_app.manifests.render import render

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
CPU, NO_QUOTA, SCALED = "local-cpu", "llama3.3-70b-pd-trn2", "scaled"
"""Upgrade strategies NewCluster, None and NewCluster; the last scales by itself."""

Change = Callable[[dict[str, Any]], None]


@functools.cache
def _made(stem: str) -> list[dict[str, Any]]:
    if stem != SCALED:
        return render(load(ROOT / f"configs/{stem}.yaml")).objects()
    made = copy.deepcopy(_made(CPU))
    service(made)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"] = 3
    return made


def made(stem: str) -> list[dict[str, Any]]:
    return copy.deepcopy(_made(stem))


def service(things: list[dict[str, Any]]) -> dict[str, Any]:
    return next(thing for thing in things if thing["kind"] == "RayService")


def groups(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return service(things)["spec"]["rayClusterConfig"]["workerGroupSpecs"]


def container(things: list[dict[str, Any]]) -> dict[str, Any]:
    return groups(things)[0]["template"]["spec"]["containers"][0]


def head(things: list[dict[str, Any]]) -> dict[str, Any]:
    group = service(things)["spec"]["rayClusterConfig"]["headGroupSpec"]
    return group["template"]["spec"]["containers"][0]


def live(things: list[dict[str, Any]], server_side: bool = False) -> list[dict[str, Any]]:
    """As an API server gives them back after `kubectl apply`, and as KubeRay changes them."""
    return [_stored(thing, server_side) for thing in things if thing["kind"] != "Namespace"]


def _stored(thing: dict[str, Any], server_side: bool) -> dict[str, Any]:
    there = _normal(thing, ())
    applied = json.dumps({"annotations": {}, **thing})
    there["metadata"] |= {"uid": "6f9c", "generation": 4, "resourceVersion": "812"}
    there["metadata"]["managedFields"] = [
        {"manager": "kuberay-operator", "operation": "Update", "fieldsV1": {"f:status": {}}}
    ]
    if server_side:
        entry = {"manager": "kubectl", "operation": "Apply", "fieldsV1": fields(thing)}
        there["metadata"]["managedFields"].append(entry)
    else:
        note = {"kubectl.kubernetes.io/last-applied-configuration": applied}
        there["metadata"]["annotations"] = {**there["metadata"].get("annotations", {}), **note}
    there["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    match thing["kind"]:
        case "RayService":
            there["metadata"]["finalizers"] = ["ray.io/rayservice-finalizer"]
            there["spec"]["serveConfigV2"] = yaml.safe_dump(serve(thing))
            for group in there["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
                group |= {"numOfHosts": 1, "priority": 0, "scaleStrategy": {}}
                group["template"]["metadata"]["creationTimestamp"] = None
                if group["minReplicas"] != group["maxReplicas"]:
                    group |= {"replicas": 2, "scaleStrategy": {"workersToDelete": ["w-1"]}}
        case "PersistentVolumeClaim":
            there["spec"] |= {"volumeMode": "Filesystem", "volumeName": "pvc-6f9c"}
        case "ServiceAccount":
            there["secrets"] = [{"name": "neuron-serve-token-x"}]
    return there


def _normal(value: Any, path: tuple[str, ...]) -> Any:
    """A copy with defaults in lists, and quantities in another spelling."""
    if isinstance(value, dict):
        return {key: _normal(below, (*path, key)) for key, below in value.items()}
    if isinstance(value, list):
        items = [_normal(item, path) for item in value]
        return [{"protocol": "TCP", **i} if "containerPort" in i else i for i in items]
    if path[-1] == "sizeLimit" or path[-2:-1] in (("requests",), ("limits",)):
        return f"{int(value[:-2]) * 1024}Mi" if str(value).endswith("Gi") else f"{value}000m"
    return value


MAP_KEYS = {
    "containers": ("name",),
    "env": ("name",),
    "ports": ("containerPort", "protocol"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""x-kubernetes-list-map-keys of KubeRay's CRD; all other lists are atomic, worker groups, too."""


def fields(value: Any, name: str = "") -> dict[str, Any]:
    """managedFields' fieldsV1 of all that stands in `value`."""
    if isinstance(value, dict):
        return {f"f:{key}": fields(below, key) for key, below in value.items()} | {".": {}}
    if name in MAP_KEYS:
        keys = [{k: i.get(k, "TCP") for k in MAP_KEYS[name]} for i in value]
        return {f"k:{json.dumps(k)}": fields(i) for k, i in zip(keys, value, strict=True)}
    return {}


def serve(thing: dict[str, Any]) -> Any:
    return yaml.safe_load(thing["spec"]["serveConfigV2"])


def change_serve(thing: dict[str, Any], change: Change) -> None:
    config = serve(thing)
    change(config)
    thing["spec"]["serveConfigV2"] = yaml.safe_dump(config)


# What is no difference.


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize("stem", [*CONFIGS, SCALED])
def test_what_was_applied_is_no_difference(stem: str, server_side: bool) -> None:
    assert differences(made(stem), live(made(stem), server_side)) == []


@pytest.mark.parametrize("stem", CONFIGS)
def test_the_tree_in_the_repository_is_what_would_be_applied(stem: str) -> None:
    files = [*(ROOT / "kuberay/base").iterdir(), *(ROOT / "kuberay/storage").iterdir()]
    files += (ROOT / "kuberay/overlays" / stem).glob("*.yaml")
    things = [thing for file in files for thing in yaml.safe_load_all(file.read_text())]
    applied = [thing for thing in things if thing["kind"] != "Kustomization"]
    assert differences(made(stem), applied) == []


def test_every_kind_that_is_rendered_is_asked_for() -> None:
    kinds = {thing["kind"] for stem in CONFIGS for thing in made(stem)}
    assert kinds <= {*KINDS, "Namespace"}


def test_order_outside_the_ray_cluster_is_no_difference() -> None:
    there = live(made("local-cpu-models"))
    change_serve(service(there), lambda config: config["applications"].reverse())
    assert differences(made("local-cpu-models"), there) == []


def test_objects_that_kuberay_made_are_not_ours() -> None:
    wanted = made(CPU)
    labels = service(wanted)["metadata"]["labels"]
    owner = {"ownerReferences": [{"kind": "RayService", "controller": True}]}
    own = {"kind": "NetworkPolicy", "metadata": {"name": "x", "labels": labels, **owner}}
    pod = {"kind": "Pod", "metadata": {"name": "y", "labels": labels}}
    assert differences(wanted, [*live(wanted), own, pod]) == []


# What is one, and what it means.


def only(stem: str, change: Change | None = None, wanted: Change | None = None) -> Any:
    """The one difference after a change of the live or of the rendered RayService."""
    [found] = several(stem, change, wanted)
    return found


def several(stem: str, change: Change | None = None, wanted: Change | None = None) -> list[Any]:
    there, new = live(made(stem)), made(stem)
    if change:
        change(service(there))
    if wanted:
        wanted(service(new))
    return differences(new, there)


def put(value: Any, *path: str | int) -> Change:
    def change(thing: dict[str, Any]) -> None:
        for key in path[:-1]:
            thing = thing[key]
        thing[path[-1]] = value

    return change


GROUP = ("spec", "rayClusterConfig", "workerGroupSpecs", 0)
POD = (*GROUP, "template", "spec")


@pytest.mark.parametrize(
    ("stem", "path", "value", "means"),
    [
        (CPU, (*POD, "containers", 0, "image"), "old:1", effect.NEW_CLUSTER),
        (NO_QUOTA, (*POD, "containers", 0, "image"), "old:1", effect.DELETE),
        (CPU, (*POD, "volumes", 0, "emptyDir", "sizeLimit"), "1Gi", effect.NEW_CLUSTER),
        (CPU, ("spec", "rayClusterConfig", "rayVersion"), "2.50.0", effect.NEW_CLUSTER),
        (CPU, (*GROUP, "minReplicas"), 7, effect.NEXT_CLUSTER),
        (CPU, (*GROUP, "maxReplicas"), 7, effect.NEXT_CLUSTER),
        (CPU, (*GROUP, "replicas"), 7, effect.NEXT_CLUSTER),
        (NO_QUOTA, (*GROUP, "maxReplicas"), 7, effect.NEXT_CLUSTER),
        (NO_QUOTA, (*POD, "tolerations"), [], effect.NEXT_CLUSTER),
        (CPU, ("spec", "rayClusterDeletionDelaySeconds"), 7, effect.IN_PLACE),
        (CPU, ("spec", "upgradeStrategy", "type"), "None", effect.IN_PLACE),
        (CPU, ("metadata", "labels", "app.kubernetes.io/name"), "x", effect.IN_PLACE),
    ],
)
def test_what_applying_does(stem: str, path: tuple[Any, ...], value: Any, means: str) -> None:
    assert only(stem, put(value, *path)).means == means


def test_serves_config_alone_is_updated_in_place() -> None:
    for stem in (CPU, NO_QUOTA):
        found = only(
            stem,
            lambda s: change_serve(s, lambda c: c["applications"][0].update(route_prefix="/x")),
        )
        name = serve(service(made(stem)))["applications"][0]["name"]
        assert found.path == f"spec.serveConfigV2.applications[{name}].route_prefix"
        assert (found.rendered, found.live, found.means) == ("/", "/x", effect.SERVE)


def test_http_options_wait_for_a_cluster() -> None:
    found = only(CPU, lambda s: change_serve(s, lambda c: c["http_options"].update(port=1)))
    assert (found.path, found.means) == (
        "spec.serveConfigV2.http_options.port",
        effect.NEXT_CLUSTER,
    )


def test_with_a_new_cluster_all_else_comes_with_it() -> None:
    def change(thing: dict[str, Any]) -> None:
        change_serve(thing, lambda c: c["applications"][0].update(route_prefix="/x"))
        put("old:1", *POD, "containers", 0, "image")(thing)
        put(9, *GROUP, "maxReplicas")(thing)

    means = {one.path.split(".")[-1]: one.means for one in several(CPU, change)}
    assert means == {
        "route_prefix": effect.WITH_IT,
        "maxReplicas": effect.WITH_IT,
        "image": effect.NEW_CLUSTER,
    }
    means = {one.path.split(".")[-1]: one.means for one in several(NO_QUOTA, change)}
    assert means == {
        "route_prefix": effect.SERVE,
        "maxReplicas": effect.NEXT_CLUSTER,
        "image": effect.DELETE,
    }


def test_a_worker_group_at_the_end_is_added_in_place_and_another_is_not() -> None:
    def add(place: int) -> Change:
        def change(thing: dict[str, Any]) -> None:
            listed = thing["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            listed.insert(place, {**copy.deepcopy(listed[0]), "groupName": "more"})

        return change

    for stem in (CPU, NO_QUOTA):
        found = only(stem, wanted=add(1))
        assert found.path == "spec.rayClusterConfig.workerGroupSpecs[more]"
        assert (found.live, found.means) == (None, effect.ADDED)
    assert only(CPU, wanted=add(0)).means == effect.NEW_CLUSTER
    assert only(CPU, change=add(1)).means == effect.NEW_CLUSTER  # only the cluster has it
    found = several(CPU, put(7, *GROUP, "maxReplicas"), add(1))
    assert {one.means for one in found} == {effect.ADDED, effect.WITH_GROUP}


def test_the_order_within_the_ray_cluster_is_hashed() -> None:
    found = only(
        CPU,
        lambda s: s["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][
            0
        ]["env"].reverse(),
    )
    assert found.path.endswith("containers[ray-head].env")
    assert found.live == found.rendered[::-1]
    assert found.means == effect.NEW_CLUSTER


def test_replicas_of_a_group_that_scales_are_the_autoscalers() -> None:
    assert several(SCALED, put(3, *GROUP, "replicas")) == []
    assert only(SCALED, put(3, *GROUP, "minReplicas")).path.endswith("[cpu].minReplicas")


@pytest.mark.parametrize("server_side", [False, True])
def test_what_the_last_apply_set_and_is_rendered_no_more(server_side: bool) -> None:
    before = made(CPU)
    service(before)["metadata"]["annotations"]["example.com/note"] = "old"
    service(before)["spec"]["serveService"] = {"metadata": {"name": "x"}}
    head(before)["imagePullPolicy"] = "Always"
    there = live(before, server_side)
    # Somebody else's keys stay.
    service(there)["metadata"]["annotations"]["example.com/other"] = "theirs"
    head(there)["terminationMessagePath"] = "/dev/termination-log"
    found = differences(made(CPU), there)
    assert [(one.path, one.rendered, one.live) for one in found] == [
        ("metadata.annotations[example.com/note]", None, "old"),
        (
            "spec.rayClusterConfig.headGroupSpec.template.spec.containers[ray-head].imagePullPolicy",
            None,
            "Always",
        ),
        ("spec.serveService", None, {"metadata": {"name": "x"}}),
    ]


def test_an_item_that_somebody_added_goes_where_apply_replaces_the_list() -> None:
    # Server-side, a list of the head is merged, and the list of worker groups replaced.
    for server_side, of, count in (
        (False, head, 1),
        (False, container, 1),
        (True, head, 0),
        (True, container, 1),
    ):
        there = live(made(CPU), server_side)
        of(there)["env"].append({"name": "EXTRA", "value": "1"})
        found = differences(made(CPU), there)
        assert len(found) == count
        for one in found:
            assert one.path.endswith("env[EXTRA]")
            assert one.rendered is None


def test_an_object_that_is_missing_and_one_that_is_too_many() -> None:
    wanted = made(CPU)
    there = [thing for thing in live(wanted) if thing["kind"] != "PodDisruptionBudget"]
    labels = {"app.kubernetes.io/instance": service(wanted)["metadata"]["name"]}
    there.append({"kind": "Ingress", "metadata": {"name": "old", "labels": labels}})
    other = {"app.kubernetes.io/instance": "another"}
    there.append({"kind": "Ingress", "metadata": {"name": "other", "labels": other}})
    found = differences(wanted, there)
    assert [(one.kind, one.name, one.path, one.means) for one in found] == [
        ("Ingress", "old", "", "stays: apply deletes nothing; kubectl delete ingress old does"),
        ("PodDisruptionBudget", "local-cpu", "", "created"),
    ]
    assert len(differences(wanted, [])) == len(wanted) - 1  # no Namespace is asked for


def test_claims_and_accounts() -> None:
    def means(kind: str, *path: Any, to: Any) -> str:
        there = live(made(NO_QUOTA))
        put(to, *path)(next(thing for thing in there if thing["kind"] == kind))
        [found] = differences(made(NO_QUOTA), there)
        return str(found.means)

    claim = "PersistentVolumeClaim"
    assert means(claim, "spec", "resources", "requests", "storage", to="1Gi") == effect.GROWS
    assert means(claim, "spec", "accessModes", to=["ReadWriteOnce"]) == effect.REFUSED
    account = means("ServiceAccount", "automountServiceAccountToken", to=True)
    assert account == effect.NEW_PODS
    assert means("NetworkPolicy", "spec", "ingress", to=[]) == effect.IN_PLACE


@pytest.mark.parametrize(
    ("new", "old", "equal"),
    [
        ("1Gi", "1024Mi", True),
        ("1Gi", "1G", False),
        ("4", 4, True),
        ("4", "4000m", True),
        ("0.5", "500m", True),
        ("1k", "1e3", True),
        ("4", "5", False),
        ("4", "four", False),
        ("4", None, False),
        ("4", True, False),
    ],
)
def test_quantities(new: Any, old: Any, equal: bool) -> None:
    wanted, there = made(CPU), live(made(CPU))
    container(wanted)["resources"]["requests"]["cpu"] = new
    container(there)["resources"]["requests"]["cpu"] = old
    assert (differences(wanted, there) == []) is equal
    # A variable is text: 1Gi is not 1024Mi there.
    wanted, there = made(CPU), live(made(CPU))
    container(wanted)["env"][0]["value"] = "1Gi"
    container(there)["env"][0]["value"] = "1024Mi"
    assert len(differences(wanted, there)) == 1


def test_secrets_are_not_shown() -> None:
    def leak(thing: dict[str, Any]) -> None:
        env = {"name": "MY_API_KEY", "value": "hunter2"}
        held = thing["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
        held["containers"][0]["env"].append(env)
        head = thing["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
        token = next(e for e in head["containers"][0]["env"] if e["name"] == "HOME")
        token |= {"name": "HF_TOKEN", "value": "hunter2"}
        variables = {"env_vars": {"HF_TOKEN": "hunter2"}}
        change_serve(thing, lambda c: c["applications"][0].update(runtime_env=variables))
        redis = {"redisAddress": "redis://me:hunter2@r:6379", "redisPassword": {"value": "hunter2"}}
        thing["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] = redis
        note = thing["metadata"]["annotations"]
        applied = json.loads(note["kubectl.kubernetes.io/last-applied-configuration"])
        applied["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] = {}
        note["kubectl.kubernetes.io/last-applied-configuration"] = json.dumps(applied)

    found = several(CPU, leak)
    text = "\n".join(map(str, found)) + json.dumps([vars(one) for one in found])
    assert "hunter2" not in text
    assert text.count("***") >= 8
    assert "redis://***@r:6379" in text


@pytest.mark.parametrize(("name", "shown"), [("MY_TOKEN", "***"), ("HF_TOKEN", None)])
def test_a_secret_that_is_rendered_is_not_shown_either(name: str, shown: str | None) -> None:
    def secret(value: str) -> Change:
        return put({"name": name, "value": value}, *POD, "containers", 0, "env", 0)

    found = only(CPU, secret("hunter1"), secret("hunter2"))
    assert "hunter" not in f"{found} {vars(found)}"
    if shown:
        assert (found.rendered, found.live) == (shown, shown)
    else:  # the second of that name
        assert found.path.endswith(".env")


# A random change is found, and nothing else is.

Leaf = tuple[tuple[Any, ...], str]
"""Keys down to a value, and the path that a difference there has."""


def leaves(value: Any, keys: tuple[Any, ...] = (), path: str = "") -> Iterator[Leaf]:
    if isinstance(value, dict):
        for key, below in value.items():
            step = f"[{key}]" if "." in key or "/" in key else f".{key}"
            yield from leaves(below, (*keys, key), path + step)
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        name = next((k for k in ("name", "groupName", "mountPath") if _tells(value, k)), "")
        for place, item in enumerate(value):
            step = f"[{item[name] if name else place}]"
            for below, where in leaves(item, (*keys, place), path + step):
                identity = below[-1] == name and len(below) == len(keys) + 2
                yield below, path if identity or keys[-1] == "tolerations" else where
    elif isinstance(value, list):
        yield from (((*keys, place), path) for place in range(len(value)))
    else:
        yield keys, path


def _tells(items: list[dict[str, Any]], key: str) -> bool:
    return len({item.get(key) for item in items} - {None}) == len(items)


def other(value: Any, draw: Callable[[Any], Any]) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + draw(st.integers(1, 9))
    if value.endswith(("Gi", "Mi")):
        return f"{int(value[:-2]) + draw(st.integers(1, 9))}{value[-2:]}"
    return value + draw(st.sampled_from(["x", " ", "-1"]))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_leaf_is_found_and_nothing_else(data: st.DataObject) -> None:
    wanted = made(data.draw(st.sampled_from([CPU, NO_QUOTA, SCALED, "qwen3-8b-trn2-precompiled"])))
    there = live(wanted, data.draw(st.booleans()))
    thing = data.draw(st.sampled_from([thing for thing in wanted if thing["kind"] != "Namespace"]))
    stored = next(t for t in there if t["kind"] == thing["kind"])
    inside = thing["kind"] == "RayService" and data.draw(st.booleans())
    source = serve(thing) if inside else thing
    fixed = ("apiVersion", "kind", ".metadata.name", ".metadata.namespace", ".spec.serveConfigV2")
    own = [leaf for leaf in leaves(source) if not leaf[1].lstrip(".").startswith(fixed[:2])]
    own = [leaf for leaf in own if leaf[1] not in fixed]
    if len(groups(wanted)) and groups(wanted)[0]["maxReplicas"] > groups(wanted)[0]["replicas"]:
        own = [leaf for leaf in own if leaf[0][-1] != "replicas"]
    keys, path = data.draw(st.sampled_from(own))
    target = serve(stored) if inside else stored
    for key in keys[:-1]:
        target, source = target[key], source[key]
    value = other(source[keys[-1]], data.draw)
    if inside:
        change_serve(stored, put(value, *keys))
        path = f".spec.serveConfigV2{path}"
    else:
        target[keys[-1]] = value
    found = differences(wanted, there)
    assert found, path
    named = keys[-1] in ("name", "groupName", "mountPath") and isinstance(keys[-2], int)
    for one in found:
        assert (one.kind, one.name) == (thing["kind"], thing["metadata"]["name"])
        assert f".{one.path}".startswith(path) if named else f".{one.path}" == path
    # Another name is one item less, and one more where apply replaces the list; else one thing.
    assert len(found) <= 2 if named else len(found) == 1
    if thing["kind"] == "RayService" and not inside:
        starts = {effect.NEW_CLUSTER, effect.DELETE} & {one.means for one in found}
        assert bool(starts) is (kuberay_hash(thing) != kuberay_hash(changed(thing, keys, value)))


def changed(thing: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copied = copy.deepcopy(thing)
    put(value, *keys)(copied)
    return copied


def kuberay_hash(thing: dict[str, Any]) -> str:
    """As GenerateHashWithoutReplicasAndWorkersToDelete of KubeRay 1.7.0, utils/util.go."""
    config = copy.deepcopy(thing["spec"]["rayClusterConfig"])
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        for key in ("tolerations", "schedulingGates"):
            group["template"]["spec"].pop(key, None)
    for group in config["workerGroupSpecs"]:
        for key in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(key, None)
        group.get("scaleStrategy", {}).pop("workersToDelete", None)
    config.pop("upgradeStrategy", None)
    return json.dumps(config, sort_keys=True)


# The command.


def diff(text: str | bytes, *words: str, stem: str = CPU) -> Any:
    return CliRunner().invoke(app, ["diff", str(ROOT / f"configs/{stem}.yaml"), *words], input=text)


def listed(things: list[dict[str, Any]]) -> str:
    return json.dumps({"kind": "List", "apiVersion": "v1", "items": things}, indent=4)


@pytest.mark.parametrize(
    "text",
    [
        listed(live(made(CPU))),
        "\n".join(json.dumps(thing, indent=4) for thing in live(made(CPU))),
        "".join(json.dumps(thing) for thing in live(made(CPU))),
        yaml.safe_dump({"kind": "List", "items": live(made(CPU))}),
        "---\n" + yaml.safe_dump_all(live(made(CPU))),
        listed([*live(made(CPU)), {"kind": "Pod", "metadata": {"name": "p", "namespace": "x"}}]),
    ],
    ids=["list", "documents", "adjacent", "yaml", "yaml-documents", "all-namespaces"],
)
def test_forms_of_input(text: str) -> None:
    done = diff(text)
    assert (done.exit_code, done.output) == (0, "local-cpu: no difference in 5 objects\n")


def test_a_line_for_each_difference_and_a_summary() -> None:
    there = live(made(CPU))
    container(there)["image"] = "old:1"
    done = diff(listed(there))
    line, summary = done.stdout.splitlines()
    assert done.exit_code == 1
    assert line.startswith("RayService/local-cpu spec.rayClusterConfig.workerGroupSpecs[cpu].")
    assert line.endswith(f" -> {effect.NEW_CLUSTER}")
    assert 'live "old:1", rendered "neuron-serve:' in line
    assert summary == f"local-cpu: 1 difference in 1 objects: 1 x {effect.NEW_CLUSTER}"
    done = diff(listed(there), "--format", "json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["service"], len(report["differences"])) == (1, "local-cpu", 1)
    assert {*report["differences"][0]} == {"kind", "name", "path", "rendered", "live", "means"}


def test_nothing_there_yet() -> None:
    done = diff(listed([]))
    assert done.exit_code == 1
    assert "RayService/local-cpu: live none, rendered the object -> created: a cluster starts" in (
        done.stdout
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing there; did kubectl fail?"),
        (" \n", "nothing there; did kubectl fail?"),
        ("Error from server (Forbidden): x", "no Kubernetes object"),
        ("{", "neither JSON nor YAML"),
        (b"\xff\xfe\x00", "neither JSON nor YAML"),
        ("[1, 2]", "no Kubernetes object"),
        ("{}", "no Kubernetes object"),
        ('{"kind": 3}', "no Kubernetes object"),
        ('{"kind": "List", "items": [3]}', "no Kubernetes object"),
        ('{"kind": "RayService"}', "an object of kind RayService without a name"),
        (
            '{"kind": "RayService", "metadata": {"name": "x", "labels": 3}}',
            "RayService/x has labels or annotations that are no mapping",
        ),
        ('{"kind": "Pod", "metadata": {"name": "x"}}', "only objects of kind Pod"),
        (
            '{"kind": "RayService", "metadata": {"name": "x", "namespace": "there"}}',
            "objects of the namespace there, and the file's is neuron-serve",
        ),
    ],
)
def test_bad_input_in_one_line(text: str | bytes, said: str) -> None:
    done = diff(text)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"neuron-serve: standard input: {said}" in done.stderr
    assert "kubectl get rayservice,pdb" in done.stderr


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [3], {"x": 3}])
@pytest.mark.parametrize(
    "path",
    [
        ("spec",),
        ("spec", "serveConfigV2"),
        ("spec", "rayClusterConfig"),
        ("spec", "rayClusterConfig", "workerGroupSpecs"),
        (*POD, "containers"),
        (*POD, "containers", 0, "env", 0),
        ("metadata", "managedFields"),
        ("metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"),
    ],
)
def test_odd_objects_are_differences_at_most(path: tuple[Any, ...], value: Any) -> None:
    there = live(made(CPU))
    put(value, *path)(service(there))
    found = differences(made(CPU), there)
    assert bool(found) is (path[0] == "spec")
    assert all(one.kind == "RayService" and str(one) for one in found)


def test_a_faulty_config_is_no_difference(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("applications: 3\n")
    for path in (broken, tmp_path / "none.yaml"):
        done = CliRunner().invoke(app, ["diff", str(path)], input=listed([]))
        assert (done.exit_code, done.stdout) == (2, "")
    assert diff(listed([]), "--format", "xml").exit_code == 2


def test_a_terminal_gets_the_command_to_pipe_in() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serve_app", "diff", "configs/local-cpu.yaml"]
    try:
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    finally:
        os.close(ours)
        os.close(theirs)
    kinds = "rayservice,pdb,networkpolicy,serviceaccount,pvc,ingress"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "neuron-serve: no cluster's objects on standard input -> "
        f"kubectl get {kinds} -n neuron-serve -o json | neuron-serve diff configs/local-cpu.yaml\n"
    )
