"""Files of a kustomize tree: what stands in them, as text, and written out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
"""A Kubernetes object, or the data of a kustomization or of helm values."""


@dataclass(frozen=True)
class File:
    """One YAML file of a tree."""

    path: str
    """Relative to the tree, for example "overlays/llama3-8b-inf2/rayservice.yaml"."""
    objects: tuple[Object, ...]
    comment: str = ""
    """Why it is as it is: lines at the top of the file, without `#`."""

    def text(self) -> str:
        """The bytes of the file, the same on each machine."""
        head = "".join(f"# {line}".rstrip() + "\n" for line in self.comment.splitlines())
        return head + "---\n".join(dump(thing) for thing in self.objects)


def dump(thing: Object) -> str:
    """YAML in the order of the keys given; text of several lines as a block."""
    return yaml.dump(thing, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def write(files: Iterable[File], directory: Path) -> list[Path]:
    """Write the files below `directory`; returns their paths."""
    paths = []
    for file in files:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text(), encoding="utf-8")
        paths.append(path)
    return paths


class _Dumper(yaml.SafeDumper):
    """No anchors, and lists indented below their key, as Kubernetes' own examples are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
