"""Good manifests have no fault; each defect made by hand is found by its rule, and by no other."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest

from serve_app.manifests.lint import RULES, lint
from tests.unit.manifest_defects import DEFECTS, GONE, Defect, broken, good

GOOD = good()


def test_the_good_manifests_have_no_fault() -> None:
    assert list(map(str, lint(GOOD))) == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.rule}: {d.what}")
def test_a_defect_is_found_by_its_rule_alone(defect: Defect) -> None:
    faults = lint(broken(GOOD, defect))
    assert {fault.rule for fault in faults} == {defect.rule}, "\n".join(map(str, faults))
    for fault in faults:
        assert fault.path
        assert fault.message
        assert not fault.message.endswith(".")
        assert fault.source == RULES[fault.rule].source
        assert "\n" not in str(fault)


def test_every_rule_has_a_defect() -> None:
    # A RayJob is not in the good set, and what pod-schema finds crd-schema finds first, while
    # KubeRay's own copy of the pod is as new as the one here.
    assert RULES.keys() - {defect.rule for defect in DEFECTS} == {"ray-job", "pod-schema"}


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def test_no_input_raises() -> None:
    everywhere = [
        (thing["kind"], thing["metadata"]["name"], *path)
        for thing in GOOD
        for path in places(thing)
    ]
    chosen = random.Random(6).sample(everywhere, 80)
    for index, where in enumerate(chosen):
        change = (GONE, None, "", "x", -1, True, [], {}, [None], {"a": None})[index % 10]
        if where[2:] in (("kind",), ("apiVersion",)) and change in (GONE, None):
            continue  # no object any more: `read` passes it over
        defect = Defect("", "", where, deepcopy(change) if change is not GONE else GONE)
        lint(broken(GOOD, defect))


def test_objects_that_are_hardly_objects() -> None:
    for kind in ("RayService", "RayJob", "RayCluster", "NodePool", "Pod", "Ingress", "X"):
        for version in ("v1", "ray.io/v1", "karpenter.sh/v1", "x.example/v1"):
            lint([{"apiVersion": version, "kind": kind}])
            lint([{"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": []}])
    assert lint([]) == []


def test_what_schemas_let_through_does_not_raise() -> None:
    for where, change in (
        (("PodDisruptionBudget", "llama3-8b-inf2", "spec", "maxUnavailable"), "one"),
        (("Job", "llama3-8b-inf2-compile", "spec", "template", "spec", "containers"), [None]),
        (("Deployment", "open-webui", "spec", "replicas"), None),
        (("Service", "open-webui", "spec", "ports"), [None]),
    ):
        lint(broken(GOOD, Defect("", "", where, change)))
