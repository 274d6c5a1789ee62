"""What `render` makes against what a cluster holds: what applying it would change, no more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import yaml

from serve_app.manifests.effect import effects
from serve_app.manifests.shown import dotted, short, shown
from serve_app.manifests.tree import Object

KINDS = {
    "RayService": "rayservice",
    "PodDisruptionBudget": "pdb",
    "NetworkPolicy": "networkpolicy",
    "ServiceAccount": "serviceaccount",
    "PersistentVolumeClaim": "pvc",
    "Ingress": "ingress",
}
"""What is compared, as kubectl calls it. A Namespace is, too, where it is given: `kubectl get -n`
does not."""
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_INSTANCE = "app.kubernetes.io/instance"
_SERVE = ("spec", "serveConfigV2")
_CLUSTER = ("spec", "rayClusterConfig")
_NAMES = ("name", "groupName", "mountPath")
"""Keys that tell the items of a list apart."""
_WHOLE = ("tolerations", "args", "command")

Path = tuple[str, ...]
_Found = tuple[Path, Any, Any]
"""Path, rendered and live value."""


@dataclass(frozen=True)
class Difference:
    """One thing that differs. None: it is not there."""

    kind: str
    name: str
    path: str
    """In the object, dotted, for example "spec.serveConfigV2.applications[llama].args.backend";
    empty: the whole object."""
    rendered: Any
    live: Any
    means: str
    """What `kubectl apply` does about it."""

    def __str__(self) -> str:
        values = f"live {short(self.live)}, rendered {short(self.rendered)}"
        path = f" {self.path}" if self.path else ""
        return f"{self.kind}/{self.name}{path}: {values} -> {self.means}"


def differences(rendered: Sequence[Object], live: Sequence[Object]) -> list[Difference]:
    """What differs, sorted; secrets are shown as ***.

    A key that only the cluster has is a difference where the last `kubectl apply` set it: then
    the next one removes it. So is an item of a list: apply replaces lists of custom resources.
    """
    there = {_identity(thing): thing for thing in live}
    found: list[Difference] = []
    for thing in rendered:
        kind, name = _identity(thing)
        if (kind, name) in there:
            found += _of_object(thing, there[kind, name])
        elif kind in KINDS:
            means = "created: a cluster starts" if kind == "RayService" else "created"
            found.append(Difference(kind, name, "", "the object", None, means))
    services = {_labels(thing).get(_INSTANCE) for thing in rendered} - {None}
    known = {_identity(thing) for thing in rendered}
    for (kind, name), thing in there.items():
        owned = thing["metadata"].get("ownerReferences")
        ours = kind in KINDS and not owned and _labels(thing).get(_INSTANCE) in services
        if ours and (kind, name) not in known:
            means = f"stays: apply deletes nothing; kubectl delete {KINDS[kind]} {name} does"
            found.append(Difference(kind, name, "", None, "the object", means))
    return sorted(found, key=lambda one: (one.kind, one.name, one.path))


def _of_object(rendered: Object, live: Object) -> list[Difference]:
    kind, name = _identity(rendered)
    applied, server_side = _last_applied(live)
    skipped = ("apiVersion", "kind")
    bare = {key: value for key, value in rendered.items() if key not in skipped}
    there = {key: value for key, value in live.items() if key not in skipped}
    found = list(_Comparison(server_side).values(bare, there, applied, ()))
    return [
        Difference(kind, name, dotted(path), shown(path, new), shown(path, old), means)
        for (path, new, old), means in zip(found, effects(rendered, live, found), strict=True)
    ]


def _last_applied(live: Object) -> tuple[Any, bool]:
    """What kubectl set when it applied last, and whether it did on the server's side."""
    metadata = live["metadata"]
    try:
        for entry in metadata.get("managedFields") or ():
            if (entry.get("manager"), entry.get("operation")) == ("kubectl", "Apply"):
                return _owned(live, entry["fieldsV1"]), True
        return json.loads(metadata["annotations"][_APPLIED]), False
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, False


def _owned(value: Any, fields: Mapping[str, Any]) -> Any:
    """The part of `value` that the fieldsV1 name (structured-merge-diff, fieldpath/serialize-pe.go:
    `f:` a key, `k:` an item of a list by its keys; no fields below: all of it).

    Of an atomic list only who is in it: defaults within its items are not told from what was set.
    """
    if isinstance(value, dict) and fields:
        named = {key[2:]: below for key, below in fields.items() if key.startswith("f:")}
        return {key: _owned(value[key], named[key]) for key in value.keys() & named.keys()}
    if isinstance(value, list):
        items = [(json.loads(key[2:]), b) for key, b in fields.items() if key.startswith("k:")]
        found = [item for item in value if isinstance(item, dict)]
        if not items:
            return [{key: item[key] for key in _NAMES if key in item} for item in found]
        return [
            _owned(item, below)
            for item in found
            for keys, below in items
            if keys.items() <= item.items()
        ]
    return value


@dataclass(frozen=True)
class _Comparison:
    server_side: bool
    """Of the last apply: then an item of a list stays that another has added."""

    def values(self, new: Any, old: Any, applied: Any, path: Path) -> Iterator[_Found]:
        if path == _SERVE:
            yield from self._serve(new, old)
        elif isinstance(new, dict) and isinstance(old, dict):
            yield from self._keys(new, old, applied, path)
        elif isinstance(new, list) and isinstance(old, list):
            yield from self._items(new, old, applied, path)
        elif not _same(new, old, path):
            yield path, new, old

    def _serve(self, new: str, old: Any) -> Iterator[_Found]:
        """The text as Ray Serve reads it; KubeRay keeps it as it is, so each key counts."""
        parsed, there = yaml.safe_load(new), _parsed(old)
        if isinstance(there, dict):
            yield from self.values(parsed, there, there, (*_SERVE, ""))
        else:
            yield _SERVE, parsed, None if old is None else "text that is no mapping"

    def _keys(self, new: Object, old: Object, applied: Any, path: Path) -> Iterator[_Found]:
        scaled = path[-2:-1] == ("workerGroupSpecs",) and _scales(new)
        for key, value in new.items():
            if not (scaled and key == "replicas"):  # Ray's autoscaler sets it
                yield from self.values(value, old.get(key), _get(applied, key), (*path, key))
        for key, value in old.items():
            if key not in new and _get(applied, key) is not None:
                yield (*path, key), None, value

    def _items(self, new: list[Any], old: list[Any], applied: Any, path: Path) -> Iterator[_Found]:
        key = _name_key(new, old)
        if key is not None and path[-1] not in _WHOLE:
            yield from self._named(new, old, applied, path, key)
            return
        before = applied if isinstance(applied, list) and len(applied) == len(old) else []
        found = [
            one
            for place, pair in enumerate(zip(new, old, strict=False))
            for one in self.values(*pair, _at(before, place), (*path, f"[{place}]"))
        ]
        # Two of one name: only as a whole are their secrets told from the rest.
        structured = all(isinstance(item, dict) and "name" not in item for item in (*new, *old))
        if len(new) == len(old) and structured and path[-1] not in _WHOLE:
            yield from found
        elif found or len(new) != len(old):
            yield path, new, old

    def _named(
        self, new: list[Any], old: list[Any], applied: Any, path: Path, key: str
    ) -> Iterator[_Found]:
        wanted, there = ({item[key]: item for item in items} for items in (new, old))
        listed = applied if isinstance(applied, list) else []
        merged = self.server_side and isinstance(applied, list)
        before = {str(item.get(key)): item for item in listed if isinstance(item, dict)}
        for name, item in wanted.items():
            yield from self.values(item, there.get(name), before.get(name), (*path, f"[{name}]"))
        for name, item in there.items():
            if name not in wanted and (name in before or not merged):
                yield (*path, f"[{name}]"), None, item
        orders = [
            [name for name in items if name in wanted.keys() & there.keys()]
            for items in (wanted, there)
        ]
        # KubeRay's hash is one of JSON text (`effect`): the order of a list starts a new cluster.
        if path[:2] == _CLUSTER and orders[0] != orders[1]:
            yield path, orders[0], orders[1]


def _same(new: Any, old: Any, path: Path) -> bool:
    if isinstance(new, bool) or isinstance(old, bool):
        return new is old
    if new == old:
        return True
    if path[:2] == _SERVE or not isinstance(new, str | int | float):
        return False
    if path[-1:] == ("sizeLimit",) or path[-3:-1] in _QUANTITIES:
        amount = _amount(new)
        return amount is not None and amount == _amount(old)
    # A port or a number in an annotation, as the API server spells it.
    return isinstance(new, str) != isinstance(old, str) and str(new) == str(old)


_QUANTITIES = (("resources", "requests"), ("resources", "limits"))
_SUFFIXES = {"": Fraction(1), "n": Fraction(1, 10**9), "u": Fraction(1, 10**6)}
_SUFFIXES |= {"m": Fraction(1, 1000), "k": Fraction(1000)}
_SUFFIXES |= {letter: Fraction(1000) ** n for n, letter in enumerate("MGTPE", start=2)}
_SUFFIXES |= {f"{letter}i": Fraction(1024) ** n for n, letter in enumerate("KMGTPE", start=1)}


def _amount(quantity: Any) -> Fraction | None:
    """Of "1Gi", "4000m", "1e3" or 4 (apimachinery, pkg/api/resource/quantity.go)."""
    match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([A-Za-z]*)", str(quantity))
    if match is None or match[2] not in _SUFFIXES:
        return None
    return Fraction(match[1]) * _SUFFIXES[match[2]]


def _scales(group: Object) -> bool:
    return bool(group.get("minReplicas") != group.get("maxReplicas"))


def _name_key(new: list[Any], old: list[Any]) -> str | None:
    for key in _NAMES:
        names = [
            [item.get(key) if isinstance(item, dict) else None for item in items]
            for items in (new, old)
        ]
        texts = all(isinstance(name, str) for side in names for name in side)
        if texts and all(len(set(side)) == len(side) for side in names):
            return key
    return None


def _parsed(text: Any) -> Any:
    try:
        return yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return None


def _get(applied: Any, key: str) -> Any:
    return applied.get(key) if isinstance(applied, dict) else None


def _at(items: list[Any], place: int) -> Any:
    return items[place] if place < len(items) else None


def _identity(thing: Object) -> tuple[str, str]:
    return thing["kind"], thing["metadata"]["name"]


def _labels(thing: Object) -> Object:
    return thing["metadata"].get("labels") or {}
