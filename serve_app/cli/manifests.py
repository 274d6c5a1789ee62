"""`neuron-serve lint-manifests`: what a cluster would refuse, before it is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

_HEAD = """# Rules about manifests

What `neuron-serve lint-manifests` looks at: everything here is refused by a cluster, stays pending
in it, or cuts streams. The first rules are about the shape of single objects; while one of them is
broken the others wait. Written by `neuron-serve lint-manifests --rules > docs/lint.md`.

```
neuron-serve lint-manifests kuberay/overlays/llama3-8b-inf2/
kubectl kustomize kuberay/overlays/llama3-8b-inf2 | neuron-serve lint-manifests -
```

Lint what is applied together, and what kustomize has built: a name or a patch that only comes with
the overlay is missing before. It needs `pip install 'neuron-serve[k8s]'`, no
cluster and no network.

| Rule | What it asks | Source |
|---|---|---|
"""


def lint_manifests(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="YAML files, directories of them, or - for standard input.", metavar="PATH...|-"
        ),
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="List every rule with its source, as Markdown.")
    ] = False,
) -> None:
    """Say what is wrong with Kubernetes manifests, all of it, without a cluster.

    Exit codes: 0 no fault, 1 faults, 2 nothing to look at.

    Example: [bold]kubectl kustomize DIR | neuron-serve lint-manifests -[/bold]
    """
    from serve_app.manifests.lint import BadInput, lint, read
    from serve_app.manifests.lint.schemas import MissingExtra

    if rules:
        typer.echo(as_markdown(), nl=False)
        return
    if not paths:
        raise typer.BadParameter("name files or directories, or - for standard input")
    try:
        objects = read(paths, sys.stdin.buffer)
        faults = lint(objects)
    except (BadInput, MissingExtra) as error:
        typer.echo(f"neuron-serve: {error}", err=True)
        raise typer.Exit(2) from None
    for fault in faults:
        typer.echo(fault, err=True)
    said = f"{len(faults)} fault{'s' if len(faults) != 1 else ''}" if faults else "no fault"
    shown = ", ".join("stdin" if path == "-" else str(Path(path)) for path in paths)
    typer.echo(f"{shown}: {len(objects)} objects, {said}")
    if faults:
        raise typer.Exit(1)


def as_markdown() -> str:
    """The table of rules."""
    from serve_app.manifests.lint import RULES

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    return _HEAD + "".join(
        f"| `{rule.id}` | {cell(rule.title)} | {cell(rule.source)} |\n" for rule in RULES.values()
    )
