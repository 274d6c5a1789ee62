"""Write the schemas of custom resources that `neuron-serve lint-manifests` goes by.

    python scripts/update_crds.py DIR

DIR holds CustomResourceDefinitions as YAML, at any depth. Each becomes one file below
serve_app/manifests/lint/schemas, without its descriptions. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = (
    "RayService", "RayCluster", "RayJob",
    "NodePool", "NodeClaim", "EC2NodeClass",
    "PodMonitor", "ServiceMonitor", "PrometheusRule",
)  # fmt: skip
TARGET = Path(__file__).parents[1] / "serve_app" / "manifests" / "lint" / "schemas"


def prune(node: Any, named: bool = False) -> Any:
    """The schema without descriptions; `named`: the keys of `node` are names of fields."""
    if isinstance(node, list):
        return [prune(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: prune(value, named=key == "properties" and not named)
        for key, value in node.items()
        if named or not (key == "description" and isinstance(value, str))
    }


def definitions(directory: Path) -> dict[str, Any]:
    """The pruned schemas of every known kind in the directory, by kind."""
    found = {}
    for file in sorted(directory.rglob("*.yaml")):
        for crd in yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader):
            if not isinstance(crd, dict) or crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            kind = spec["names"]["kind"]
            if kind in KINDS:
                stored = next(version for version in spec["versions"] if version["storage"])
                found[kind] = {
                    "apiVersion": f"{spec['group']}/{stored['name']}",
                    "kind": kind,
                    "namespaced": spec["scope"] == "Namespaced",
                    "schema": prune(stored["schema"]["openAPIV3Schema"]),
                }
    return found


def main(directory: Path) -> None:
    found = definitions(directory)
    if missing := [kind for kind in KINDS if kind not in found]:
        sys.exit(f"{directory} has no definition of {', '.join(missing)}")
    for kind, definition in found.items():
        text = json.dumps(definition, separators=(",", ":"), sort_keys=True)
        file = TARGET / f"{kind.lower()}.json.gz"
        file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        print(f"{file.stat().st_size:7} {file.relative_to(TARGET.parents[3])}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python scripts/update_crds.py DIR")
    main(Path(sys.argv[1]))
