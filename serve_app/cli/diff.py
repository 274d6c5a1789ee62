"""`neuron-serve diff`: what `neuron-serve render` makes against what a cluster holds."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from serve_app.cli.render import ConfigFile, ModelFacts, made_of

if TYPE_CHECKING:  # the other commands start without them
    from serve_app.manifests.diff import Difference


def diff(
    config: ConfigFile,
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
    force: Annotated[
        bool, typer.Option("--force", help="Compare what `check` rejects, as `render --force`.")
    ] = False,
    model_facts: ModelFacts = None,
) -> None:
    """Compare what `render` makes with what runs: `kubectl get` on standard input.

    Exit codes: 0 no difference, 1 differences, 2 the file or the input does not do.

    Example: [bold]kubectl get rayservice,pdb,networkpolicy,serviceaccount,pvc,ingress
    -n neuron-serve -o json | neuron-serve diff configs/local-cpu.yaml[/bold]
    """
    from serve_app.manifests.diff import differences

    if format not in ("text", "json"):
        raise typer.BadParameter("text or json", param_hint="--format")
    try:
        document, made = made_of(config, force, model_facts)
    except typer.Exit:
        raise typer.Exit(2) from None
    namespace = document.serve.cluster.namespace
    if sys.stdin.isatty():
        _refuse(f"no cluster's objects on standard input -> {_command(namespace, config)}")
    rendered = made.objects()
    try:
        live = live_objects(sys.stdin.buffer.read(), namespace)
    except ValueError as error:
        _refuse(f"standard input: {error} -> {_command(namespace, config)}")
    found = differences(rendered, live)
    if format == "json":
        report = {"service": made.name, "differences": [vars(one) for one in found]}
        typer.echo(json.dumps(report, indent=1, default=str))
    else:
        for one in found:
            typer.echo(str(one))
        typer.echo(f"{made.name}: {_summary(found, len(rendered))}")
    raise typer.Exit(1 if found else 0)


def live_objects(text: bytes, namespace: str) -> list[dict[str, Any]]:
    """The objects of `kubectl get -o json` or `-o yaml` that can be compared: of a List, of one
    object, or of several after each other.

    Raises:
        ValueError: it is something else, or of another namespace.
    """
    from serve_app.manifests.diff import KINDS

    things = [thing for document in _documents(text) for thing in _things(document)]
    kinds = {*KINDS, "Namespace"}
    known = [thing for thing in things if thing["kind"] in kinds]
    if things and not known:
        found = ", ".join(sorted({thing["kind"] for thing in things}))
        raise ValueError(f"only objects of kind {found}")
    here = [thing for thing in known if _place(thing) == namespace]
    if known and not here:
        places = ", ".join(sorted({_place(thing) for thing in known}))
        raise ValueError(f"objects of the namespace {places}, and the file's is {namespace}")
    return here


def _documents(text: bytes) -> list[Any]:
    """JSON documents after each other, or YAML's."""
    import yaml

    try:
        rest = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("neither JSON nor YAML") from None
    if not rest:
        raise ValueError("nothing there; did kubectl fail?")
    found, decoder = [], json.JSONDecoder()
    try:
        left = rest
        while left:
            document, end = decoder.raw_decode(left)
            found.append(document)
            left = left[end:].lstrip()
        return found
    except ValueError:
        pass  # YAML, then
    try:
        return [one for one in yaml.safe_load_all(rest) if one is not None]
    except yaml.YAMLError:
        raise ValueError("neither JSON nor YAML") from None


def _things(document: Any) -> list[dict[str, Any]]:
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        raise ValueError("no Kubernetes object or List of them")
    if kind.endswith("List") and isinstance(document.get("items"), list):
        return [thing for item in document["items"] for thing in _things(item)]
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ValueError(f"an object of kind {kind} without a name")
    if not all(isinstance(metadata.get(key) or {}, dict) for key in ("labels", "annotations")):
        raise ValueError(f"{kind}/{metadata['name']} has labels or annotations that are no mapping")
    return [document]


def _place(thing: dict[str, Any]) -> str:
    metadata = thing["metadata"]
    own = metadata["name"] if thing["kind"] == "Namespace" else "default"
    return str(metadata.get("namespace", own))


def _summary(found: list[Difference], objects: int) -> str:
    if not found:
        return f"no difference in {objects} objects"
    changed = len({(one.kind, one.name) for one in found})
    counts = Counter(one.means for one in found)
    said = "; ".join(f"{count} x {means}" for means, count in sorted(counts.items()))
    return f"{len(found)} difference{'s' * (len(found) > 1)} in {changed} objects: {said}"


def _command(namespace: str, config: Path) -> str:
    from serve_app.manifests.diff import KINDS

    kinds = ",".join(KINDS.values())
    return f"kubectl get {kinds} -n {namespace} -o json | neuron-serve diff {config}"


def _refuse(message: str) -> NoReturn:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(2)
