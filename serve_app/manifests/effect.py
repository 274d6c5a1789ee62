"""What applying a difference does: in place, by a new Ray cluster, or not at all.

Source: KubeRay 1.7.0, ray-operator/controllers/ray/rayservice_controller.go
(shouldPrepareNewCluster, shouldUpdateCluster, isClusterSpecHashEqual, modifyRayCluster, and
Reconcile for Serve's config) and utils/util.go (GenerateHashWithoutReplicasAndWorkersToDelete).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.manifests.tree import Object

_Path = tuple[str, ...]

SERVE = "in place: Ray Serve updates the replicas"
NEW_CLUSTER = "KubeRay starts a new cluster beside the old one"
WITH_IT = "comes with the new cluster"
DELETE = "nothing until the RayService is deleted and applied again (upgradeStrategy None)"
ADDED = "in place: KubeRay adds the worker group"
WITH_GROUP = "in place, with the added worker group"
NEXT_CLUSTER = "nothing in the cluster that runs: only a new one gets it"
IN_PLACE = "in place: nothing restarts"
NEW_PODS = "in place, for new pods"
GROWS = "in place: the volume grows, if its class can"
REFUSED = "refused: Kubernetes changes no claim but its size, upwards"


def effects(rendered: Object, live: Object, found: Sequence[tuple[_Path, Any, Any]]) -> list[str]:
    """What `kubectl apply` does about each (path, rendered, live) of an object."""
    kind = rendered["kind"]
    if kind == "RayService":
        return _of_service(rendered, live, [path for path, _, _ in found])
    if kind == "PersistentVolumeClaim":
        return [_of_claim(path) for path, _, _ in found]
    return [NEW_PODS if kind == "ServiceAccount" else IN_PLACE] * len(found)


def _of_service(rendered: Object, live: Object, paths: Sequence[_Path]) -> list[str]:
    cluster = [path[2:] for path in paths if path[:2] == ("spec", "rayClusterConfig")]
    added = _added(rendered, live)
    hashed = [path for path in cluster if not _unhashed(path) and path not in added]
    strategy = rendered["spec"].get("upgradeStrategy", {}).get("type", "NewCluster")
    new = bool(hashed) and strategy != "None"

    def of(path: _Path) -> str:
        if path[:2] == ("spec", "serveConfigV2"):
            # Beside a new cluster the old one keeps its config to the end.
            at_start = path[3:4] in (("http_options",), ("proxy_location",))
            return WITH_IT if new else NEXT_CLUSTER if at_start else SERVE
        if path[:2] != ("spec", "rayClusterConfig"):
            return IN_PLACE
        if path[2:] in hashed:
            return NEW_CLUSTER if new else DELETE
        if new:
            return WITH_IT
        if added and not hashed:
            # Then KubeRay writes the whole spec over the old one.
            return ADDED if path[2:] in added else WITH_GROUP
        return DELETE if path[2:] in added else NEXT_CLUSTER

    return [of(path) for path in paths]


def _unhashed(path: _Path) -> bool:
    """Whether KubeRay's hash of the cluster leaves it out. Nothing else reads it either: the
    RayCluster keeps its `maxReplicas` (ray-project/kuberay issues 2331, 4568)."""
    if path[:1] in (("upgradeStrategy",), ("suspend",)):
        return True
    of_group = path[:1] == ("workerGroupSpecs",)
    below = path[2:] if of_group else path[1:]
    if below[:2] == ("template", "spec"):
        return below[2:3] in (("tolerations",), ("schedulingGates",))
    scale = ("replicas", "minReplicas", "maxReplicas", "scaleStrategy")
    return of_group and bool(below) and below[0] in scale


def _added(rendered: Object, live: Object) -> set[_Path]:
    """Worker groups that follow all old ones."""
    new, old = (_groups(thing) for thing in (rendered, live))
    if new[: len(old)] != old:
        return set()
    return {("workerGroupSpecs", f"[{name}]") for name in new[len(old) :]}


def _groups(service: Object) -> list[str]:
    try:
        groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        return [str(group["groupName"]) for group in groups]
    except (KeyError, TypeError):
        return []


def _of_claim(path: _Path) -> str:
    if path == ("spec", "resources", "requests", "storage"):
        return GROWS
    return REFUSED if path[0] == "spec" else IN_PLACE
