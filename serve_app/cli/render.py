"""`neuron-serve render`: a config file as Kubernetes manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.config import ConfigError, Document, load

if TYPE_CHECKING:  # the other commands start without them
    from serve_app.manifests.pools import Pool
    from serve_app.manifests.render import Rendering

ConfigFile = Annotated[Path, typer.Argument(help="A Ray Serve config file, as in configs/.")]
ModelFacts = Annotated[
    Path | None,
    typer.Option(
        help="A config.json that stands in for the model's own.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
    ),
]


def render(
    config: ConfigFile,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a kustomize tree: base/, components/ and overlays/NAME/. Default: all "
            "objects to standard output, for `kubectl apply -f -`.",
            metavar="DIR",
            file_okay=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Render what `check` rejects, and say so in the files."),
    ] = False,
    model_facts: ModelFacts = None,
) -> None:
    """Make Kubernetes manifests of a config file: a RayService and all around it.

    Example: [bold]neuron-serve render configs/llama3-8b-inf2.yaml --out kuberay[/bold]
    """
    from serve_app.manifests.tree import dump, write

    document, made = made_of(config, force, model_facts)
    if out is None:
        typer.echo("---\n".join(dump(thing) for thing in made.objects()), nl=False)
    else:
        try:
            _same_base(made, out)
            paths = write(made.files, out)
        except OSError as error:
            typer.echo(f"neuron-serve: cannot write to {out}: {error.strerror}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"{len(paths)} files in {out}", err=True)
    _say(document, made, out)


def _same_base(made: Rendering, out: Path) -> None:
    """What all services of a tree share cannot be two things."""
    for file in made.base:
        there = out / file.path
        if there.exists() and there.read_text(encoding="utf-8") != file.text():
            typer.echo(
                f"neuron-serve: {there} is not what this file needs -> give all files of a tree "
                f"the same `cluster` (namespace, storage, role), or remove {there} first",
                err=True,
            )
            raise typer.Exit(1)


def made_of(
    config: Path, force: bool = False, model_facts: Path | None = None
) -> tuple[Document, Rendering]:
    """The file rendered, or the end of the program with every fault in a line of its own."""
    from serve_app.manifests.render import render as rendered

    code = 2
    try:
        document = load(config)
        code = 1
        return document, rendered(document, force, model_facts)
    except ConfigError as error:
        for finding in error.findings:
            typer.echo(f"{config}: error: {finding}", err=True)
        raise typer.Exit(code) from None


def _say(document: Document, made: Rendering, out: Path | None) -> None:
    """What it comes to, to standard error."""
    image = document.serve.cluster.image
    lines = [("pods", _pods(pool)) for pool in made.pools]
    lines += [("why", pool.reason) for pool in made.pools]
    tags = dict.fromkeys(image.tag or pool.image_tag for pool in made.pools)
    lines += [("image", f"{image.repository}:{tag}") for tag in tags]
    lines += [("first start", str(made.budget))]
    lines += [("upgrade", f"{made.upgrade.type}: {made.upgrade.reason}")]
    lines += [("secret", secret) for secret in made.secrets]
    if out is not None:
        once = sorted({file.path.partition("/")[0] for file in made.base})
        lines += [("once", f"kubectl apply -k {out}/{folder}") for folder in once]
        if made.compile:
            lines += [("compile", f"kubectl apply -k {out}/{made.folder}/compile")]
        lines += [("then", f"kubectl apply -k {out}/{made.folder}")]
    elif made.compile:
        lines += [("compile", "the compile Job is left out here -> --out DIR")]
    for key, value in lines:
        typer.echo(f"{key:>12}  {value}", err=True)


def _pods(pool: Pool) -> str:
    count = str(pool.pods) if not pool.autoscaling else f"{pool.pods} to {pool.most_pods}"
    size = [f"{pool.cpus} CPUs", f"{pool.memory_gib} GiB"]
    if pool.devices:
        size.insert(0, f"{pool.devices} Neuron devices ({pool.cores} cores)")
    if pool.efa:
        size.append(f"{pool.efa} EFA interfaces")
    where = pool.instance.name if pool.instance else "any amd64 node"
    return f"{count} on {where}: {', '.join(size)}"
