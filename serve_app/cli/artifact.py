"""`neuron-serve artifact`: look at a compiled model, verify it, adopt one made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

artifact = typer.Typer(
    no_args_is_help=True, help="Look at, verify or adopt a compiled model.", rich_markup_mode="rich"
)

Directory = Annotated[
    Path, typer.Argument(help="Directory of a compiled model.", exists=True, file_okay=False)
]


@artifact.command()
def show(directory: Directory) -> None:
    """What a compiled model is: model, chip, SDK, shapes.

    Example: [bold]neuron-serve artifact show /var/lib/neuron-serve/llama[/bold]
    """
    from serve_app.cli import compiled

    compiled.show(directory)


@artifact.command()
def verify(
    directory: Directory,
    config: Annotated[
        Path | None, typer.Option(help="Also compare with this config file.", exists=True)
    ] = None,
    application: Annotated[
        str | None, typer.Option(help="Which one, when the file has several.")
    ] = None,
) -> None:
    """Read every file of a compiled model and compare it with its manifest.

    Exit code 0: whole, and usable for --config; 1: not.

    Example: [bold]neuron-serve artifact verify DIR --config configs/llama3-8b-inf2.yaml[/bold]
    """
    from serve_app.cli import compiled

    compiled.verify(directory, config, application)


@artifact.command()
def adopt(
    directory: Directory,
    model: Annotated[str | None, typer.Option(help="Its name, as in model.id.")] = None,
    model_files: Annotated[
        Path | None, typer.Option(help="Directory of the model: its digests are recorded.")
    ] = None,
    sdk: Annotated[str | None, typer.Option(help="Neuron SDK that compiled it.")] = None,
    instance: Annotated[str | None, typer.Option(help="Instance type it is for.")] = None,
) -> None:
    """Write the manifest of a model that was compiled elsewhere (inference_demo, the plugin).

    What neither NxDI's record nor an option tells is marked as unknown.

    Example: [bold]neuron-serve artifact adopt DIR --sdk 2.28.0 --instance inf2.8xlarge[/bold]
    """
    from serve_app.cli import compiled

    compiled.adopt(directory, model, model_files, sdk, instance)
