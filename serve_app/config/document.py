"""Read a Ray Serve config file: YAML in, typed document or findings with line numbers out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.config.faults import Faults
from serve_app.config.findings import ConfigError, Finding, Severity, did_you_mean
from serve_app.config.front_door import FrontDoorArgs
from serve_app.config.model import AppArgs
from serve_app.config.serve_file import Application, FrontDoorApplication, ServeFile

Location = tuple[str | int, ...]
_Args = TypeVar("_Args", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A valid config file: its path, the plain data for Ray Serve, and the typed form."""

    file: str
    data: dict[str, Any]
    serve: ServeFile
    root: yaml.Node = field(repr=False, compare=False)

    def line(self, path: str) -> int:
        """Line (from 1) of a dotted path, or of the deepest part of it that the file has."""
        parts = re.findall(r"[^.\[\]]+", path)
        return _line(self.root, tuple(int(part) if part.isdigit() else part for part in parts))

    def applications(self) -> Iterator[tuple[str, Application]]:
        """Each application that serves a model, with its path in the document."""
        for index, application in enumerate(self.serve.applications):
            if isinstance(application, Application):
                yield f"applications[{index}]", application

    def front_doors(self) -> Iterator[tuple[str, FrontDoorApplication]]:
        """Each front door, with its path in the document."""
        for index, application in enumerate(self.serve.applications):
            if isinstance(application, FrontDoorApplication):
                yield f"applications[{index}]", application


def load(file: str | Path) -> Document:
    """Read and check the config file.

    Raises:
        ConfigError: the file is missing, is no YAML, or breaks the schema; holds every fault.
    """
    name = str(file)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        mend = _like_it(Path(file)) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError([_error("file", f"cannot read it: {reason}", mend)], name) from None
    return parse(text, name)


def _like_it(missing: Path) -> str:
    """A file with nearly that name, beside it or in configs/."""
    folders = [missing.parent, Path("configs")]
    there = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    near = get_close_matches(missing.stem or missing.name, there, n=1)
    return f"did you mean {there[near[0]]}?" if near else ""


def parse(text: str, name: str) -> Document:
    """Check the text of a config file; `name` is what findings call it.

    Raises:
        ConfigError: it is no YAML, or breaks the schema; holds every fault.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_fault(error)], name) from None
    if not isinstance(data, dict) or root is None:
        mend = "start from one of configs/*.yaml"
        raise ConfigError([_error("file", "it is not a Ray Serve config file", mend)], name)
    findings = [*_duplicate_keys(root)]
    try:
        serve = ServeFile.model_validate(data)
    except ValidationError as error:
        findings += [f for fault in error.errors() for f in _findings(fault, ServeFile, root)]
    if findings:
        raise ConfigError(sorted(findings, key=lambda finding: finding.line or 0), name)
    return Document(name, data, serve, root)


def parse_args(args: dict[str, Any]) -> AppArgs:
    """The typed `args:` of one application, as Ray Serve hands them to `build_app`.

    Raises:
        ConfigError: with every fault, paths starting at `args`.
    """
    return _parse_args(args, AppArgs)


def parse_front_door_args(args: dict[str, Any]) -> FrontDoorArgs:
    """The same for `build_front_door`."""
    return _parse_args(args, FrontDoorArgs)


def _parse_args(args: dict[str, Any], kind: type[_Args]) -> _Args:
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        found = [f for fault in error.errors() for f in _findings(fault, kind, None)]
        raise ConfigError(finding.under("args") for finding in found) from None


def _findings(fault: Any, model: type[BaseModel], root: yaml.Node | None) -> Iterator[Finding]:
    """One finding for a pydantic error, several where a validator collected several."""
    # pydantic names the chosen kind of application, too, which is no key of the document.
    location: Location = tuple(part for part in fault["loc"] if not _is_tag(part))
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, Faults):
        for key, message, mend in cause.faults:
            yield _error("schema", message, mend, (*location, key) if key else location, root)
    elif fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        mend = "serve_app:build_app for a model, serve_app:build_front_door for the front door"
        message = "it is no builder of this package"
        yield _error("schema", message, mend, (*location, "import_path"), root)
    elif fault["type"] == "extra_forbidden":
        mend = did_you_mean(str(location[-1]), _known_keys(model, location[:-1]))
        yield _error("schema", f"unknown key {location[-1]!r}", mend, location, root)
    elif fault["type"] == "missing":
        yield _error("schema", f"{location[-1]!r} is missing", "add it", location[:-1], root)
    elif isinstance(cause, ValueError):
        yield _error("schema", str(cause), "", location, root)
    else:
        message = fault["msg"].removeprefix("Input ")
        given = fault["input"]
        shown = "" if isinstance(given, dict | list) else f", not {given!r}"
        yield _error("schema", f"{message}{shown}", "", location, root)


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and part.startswith("serve_app:")


def _error(
    rule: str,
    message: str,
    mend: str = "",
    location: Location = (),
    root: yaml.Node | None = None,
) -> Finding:
    line = _line(root, location) if root is not None and location else None
    return Finding(rule, Severity.ERROR, message, mend, dotted(location), line)


def dotted(location: Sequence[str | int]) -> str:
    """`("applications", 0, "args")` -> `applications[0].args`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the models at `location` below `model` have."""
    models = [model]
    for part in location:
        if isinstance(part, int):
            continue
        fields = [kind.model_fields[part] for kind in models if part in kind.model_fields]
        models = [kind for field in fields for kind in _models_in(field.annotation)]
    return [name for kind in models for name in kind.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation such as `list[A | B] | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _line(node: yaml.Node, location: Location) -> int:
    """Line (from 1) of the deepest part of `location` that the document has."""
    line = node.start_mark.line + 1
    for part in location:
        following: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, following = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            following = node.value[part]
            line = following.start_mark.line + 1
        if following is None:
            break
        node = following
    return line


def _duplicate_keys(node: yaml.Node, location: Location = ()) -> Iterator[Finding]:
    """YAML lets a key stand twice and drops the first; nobody means that."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicate_keys(item, (*location, index))
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            where = (*location, str(key.value))
            if key.value in seen:
                yield Finding(
                    "yaml",
                    Severity.ERROR,
                    f"the key {key.value!r} stands twice",
                    "keep one",
                    dotted(where),
                    key.start_mark.line + 1,
                )
            seen.add(key.value)
            yield from _duplicate_keys(value, where)


def _yaml_fault(error: yaml.YAMLError) -> Finding:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    message = f"it is not valid YAML: {problem}"
    line = mark.line + 1 if mark else None
    return Finding("yaml", Severity.ERROR, message, "mend the indentation or quotes", "", line)
