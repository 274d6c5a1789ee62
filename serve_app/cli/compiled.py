"""What `neuron-serve compile` and `neuron-serve artifact` do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import typer
from rich.markup import escape

from serve_app.artifacts import manifest as manifests
from serve_app.artifacts.compile_log import Progress
from serve_app.artifacts.draft import only_one
from serve_app.artifacts.job import Job, compile_job
from serve_app.artifacts.manifest import ArtifactError, Manifest
from serve_app.artifacts.recipe import (
    Model,
    Recipe,
    model_of,
    platform_of,
    recipe_of,
    with_versions,
)
from serve_app.artifacts.runner import CompileError, compile_into, run_job
from serve_app.artifacts.store import Store, StoreError, open_store
from serve_app.artifacts.verdict import Verdict, judge
from serve_app.backends import EnginePlan, engines_of, make_plan
from serve_app.backends.nxdi import VARIABLE
from serve_app.config import AppArgs, Document
from serve_app.config.environment import expand
from serve_app.config.sources import is_directory
from serve_app.engine.errors import StartupError
from serve_app.neuron.instances import instances
from serve_app.preflight.artifact import model_directory
from serve_app.preflight.neuron import find_model


@dataclass(frozen=True)
class Task:
    """One application to compile."""

    name: str
    args: AppArgs
    plan: EnginePlan
    recipe: Recipe

    def job(
        self,
        model: str,
        chip: bool = True,
        directory: str | None = None,
        without: tuple[str, ...] = (),
    ) -> Job:
        """The compile, into `directory` and without some kernel flags."""
        return compile_job(
            self.args,
            self.plan,
            self.recipe,
            model,
            chip=chip,
            directory=directory,
            without=without,
        )

    def seal(self, draft: Path, model: str, dropped: tuple[str, ...]) -> Manifest:
        """Write the manifest, with all that is known here."""
        named = model_of(self.args.model.id, self.args.model.revision, model)
        recipe = with_versions(replace(self.recipe, model=named))
        return manifests.seal(draft, recipe, dropped)


def tasks(document: Document, facts: Path | None, application: str | None = None) -> list[Task]:
    """What there is to compile in a file, or for that application, or that engine of it, alone.

    Raises:
        ValueError: nothing, or no such application.
    """
    names, chosen = [], []
    for engine in engines_of(document):
        args, plan = engine.args, make_plan(engine.args)
        if plan.target is None:
            continue
        model = find_model(args, os.environ, facts)
        recipe = recipe_of(args, plan, model, model_directory(args, os.environ))
        names.append(engine.label)
        if application in (None, engine.application, engine.label):
            chosen.append(Task(engine.label, args, plan, recipe))
    if not names:
        raise ValueError(
            f"{document.file} has nothing to compile -> back ends nxdi and neuron compile"
        )
    if not chosen:
        raise ValueError(f"no application {application!r} to compile -> known: {', '.join(names)}")
    return chosen


def describe(task: Task, chip: bool) -> str:
    """What `compile --dry-run` prints: the compile, and the serving that goes with it."""
    job = task.job(task.args.model.where, chip)
    needs = f"a chip of {job.chip}" if job.chip else "no chip"
    model = task.args.model
    serve = task.plan.command(model.where, model.names, model.tokenizer)
    return "\n".join(
        [
            f"# {task.name}: key {task.recipe.key}, SDK {task.recipe.sdk}, needs {needs}",
            f"# {job.how}",
            job.shell(),
            "# and it is served with",
            f"# {shlex.join(serve)}",
        ]
    )


def write_script(task: Task, chip: bool, file: Path) -> None:
    """Write a shell script for a machine without this package, which fetches the model itself."""
    file.write_text(script(task, chip))
    file.chmod(0o755)
    typer.echo(f"{file}: run it on {task.args.instance if chip else 'any machine'}")


def script(task: Task, chip: bool) -> str:
    """The text of that script. It leaves a whole artifact or none."""
    where = task.args.model.where
    fetched = not is_directory(where) and "${" not in where
    native = task.plan.backend == "neuron"
    job = task.job("${MODEL}" if fetched else where, chip, None if native else "${DRAFT}")
    revision = f" --revision {task.args.model.revision}" if task.args.model.revision else ""
    lines = [
        "#!/usr/bin/env bash",
        f"# Compiles {task.args.model.id} for {task.recipe.platform}, SDK {task.recipe.sdk}.",
        f"# {job.how}",
        "set -euo pipefail",
    ]
    if fetched:
        lines.append(f"MODEL=$(hf download {shlex.quote(where)}{revision} | tail -n 1)")
    if native:
        return "\n".join([*lines, job.shell(), ""])
    target = shlex.quote(task.args.artifacts.path or "")
    if "${" in (task.args.artifacts.path or ""):
        target = f'"{task.args.artifacts.path}"'
    lines += [
        f"TARGET={target}",
        'if [ -e "$TARGET/model.pt" ]; then echo "$TARGET is compiled already"; exit 0; fi',
        'DRAFT="$TARGET.draft-$$"',
        "trap 'rm -rf \"$DRAFT\"' EXIT",
        'mkdir -p "$DRAFT"',
        job.shell(),
        '[ -s "$DRAFT/model.pt" ] || { echo "no model.pt: the compile did not end" >&2; exit 1; }',
        'mv "$DRAFT" "$TARGET"',
        'echo "compiled into $TARGET; next: neuron-serve artifact adopt $TARGET"',
        "",
    ]
    return "\n".join(lines)


def show(directory: Path) -> None:
    """Print what a compiled model is."""
    found = _manifest(directory)
    recipe = found.recipe
    weights = "in the artifact" if found.weights_in_artifact else "read from the model at each load"
    rows = {
        "model": f"{recipe.model.id or 'unknown'} {recipe.model.revision or ''}".strip(),
        "back end": recipe.backend,
        "chip": recipe.platform or "unknown",
        "SDK": recipe.sdk or "unknown",
        "key": found.key,
        "created": found.created or "unknown",
        "weights": weights,
        "dropped flags": ", ".join(found.dropped) or "none",
        "size": f"{sum(file.size for file in found.files.values()) / 2**30:.2f} GiB",
    }
    for name, value in {**rows, **{k: v for k, v in recipe.versions.items() if v}}.items():
        typer.echo(f"{name}: {value}")
    for name, value in sorted(recipe.neuron.items()):
        if value not in (None, False, [], {}):
            typer.echo(f"  {name}: {value}")


def verify(directory: Path, config: Path | None, application: str | None) -> None:
    """Read every file, and compare with a configuration when one is given."""
    found = _manifest(directory)
    faults = manifests.verify(directory, found, deep=True)
    for fault in faults:
        typer.echo(f"{directory}: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    if config is not None:
        _compare(directory, config, application)
    typer.echo(f"{directory}: {len(found.files)} files, whole")


def adopt(
    directory: Path,
    model: str | None,
    model_files: Path | None,
    sdk: str | None,
    instance: str | None,
) -> None:
    """Write the manifest of a model that was compiled elsewhere."""
    if instance is not None and instance not in instances():
        raise typer.BadParameter(f"known: {', '.join(instances())}", param_hint="--instance")
    platform = platform_of(instances()[instance].family) if instance else None
    named = model_of(model, None, str(model_files)) if model_files else Model(model)
    try:
        recipe, unknown = manifests.adopted(directory, named, sdk, platform)
        made = manifests.seal(directory, recipe, unknown=unknown)
    except (ArtifactError, OSError) as error:
        _fail(str(error))
    typer.echo(f"{directory}: {len(made.files)} files, key {made.key}")
    if made.unknown:
        typer.echo(f"unknown: {', '.join(made.unknown)}")


def _compare(directory: Path, config: Path, application: str | None) -> None:
    from serve_app.config import load

    try:
        found = tasks(load(config), None, application)
    except ValueError as error:
        _fail(str(error))
    if len(found) != 1:
        _fail(f"{config} has {len(found)} applications to compile -> name one with --application")
    (task,) = found
    judged = judge(directory, task.recipe)
    if judged is not None and judged.verdict is not Verdict.USABLE:
        for reason in (*judged.faults, *judged.differences):
            typer.echo(f"{directory}: {reason}", err=True)
        typer.echo(f"{directory}: {judged.verdict} for {task.name}", err=True)
        raise typer.Exit(1)


def _manifest(directory: Path) -> Manifest:
    try:
        found = manifests.read(directory)
        if found is None:
            recipe, unknown = manifests.adopted(directory)
            found = Manifest(recipe, recipe.key, {}, False, unknown=("files", *unknown))
            typer.echo(
                f"{directory} has no manifest: this is what NxDI recorded -> write one with "
                "`neuron-serve artifact adopt`",
                err=True,
            )
    except ArtifactError as error:
        _fail(str(error))
    return found


def compile_here(task: Task, chip: bool, fall_back: bool, log: Path) -> None:
    """Compile, with progress, unless an equal artifact is there or in the store.

    Raises:
        ValueError: one line with what is in the way.
        CompileError: the compiler failed; names the log.
    """
    from serve_app.engine.phases import Phases
    from serve_app.engine.weights import fetch

    if task.plan.backend == "neuron":
        model = fetch(task.args.model.where, task.args.model.revision, "model.source", Phases())
        with progress(task.name) as report:
            run_job(task.job(model, chip), log, report)
        typer.echo(f"{task.name}: the compile cache is filled")
        return
    url = task.args.artifacts.store
    store = open_store(expand(url, os.environ, "artifacts.store")) if url else None
    with ExitStack() as held:
        held.enter_context(only_one(_place(task)))
        target, ready = _target(task)
        if ready:
            typer.echo(f"{task.name}: {target} serves it: nothing to do")
            if store is not None and manifests.read(target) is not None:
                # An earlier run may have compiled for an hour and failed to publish.
                _publish(task, store, target)
            return
        if store is not None and not held.enter_context(
            store.claim(task.recipe.key, report=lambda s, who: _waits(task.name, s, who))
        ):
            typer.echo(f"{task.name}: {store.name} has {task.recipe.key}: nothing to do")
            return
        model = fetch(task.args.model.where, task.args.model.revision, "model.source", Phases())
        dropped = compile_into(
            lambda draft, off: task.job(model, chip, draft, off),
            target,
            lambda draft, off: task.seal(draft, model, off),
            log,
            held.enter_context(progress(task.name)),
            fall_back,
        )
        if dropped:
            typer.echo(f"{task.name}: compiled without {', '.join(dropped)}", err=True)
        typer.echo(f"{task.name}: compiled into {target}, key {task.recipe.key}")
        if store is not None:
            _publish(task, store, target)


def _publish(task: Task, store: Store, directory: Path) -> None:
    with transfer(f"{task.name}: publishing") as moved:
        first = store.publish(task.recipe.key, directory, moved)
    if first:
        typer.echo(f"{task.name}: published to {store.name}")
    else:
        typer.echo(f"{task.name}: {store.name} has {task.recipe.key} already")


def _target(task: Task) -> tuple[Path, bool]:
    """Where to compile to, and whether what is there serves.

    Raises:
        ValueError: what is there does not fit, and is not to be replaced.
    """
    target = _place(task)
    judged = judge(target, task.recipe)
    if judged is not None and judged.verdict is not Verdict.USABLE:
        if task.args.artifacts.on_mismatch == "fail":
            raise ValueError(f"{target}: {judged}")
        target = target.with_name(f"{target.name}-{task.recipe.key}")
        judged = judge(target, task.recipe)
        if judged is not None and judged.verdict is not Verdict.USABLE:
            raise ValueError(f"{target}: {judged}")
    return target, judged is not None


def _waits(name: str, seconds: float, holder: str) -> None:
    typer.echo(f"{name}: {seconds:.0f} s: {holder} compiles it, waits", err=True)


def _place(task: Task) -> Path:
    path = task.plan.env.get(VARIABLE)
    if path is None:
        raise ValueError("there is nowhere to put the compiled model -> set artifacts.path")
    return Path(expand(path, os.environ, "artifacts.path"))


@contextmanager
def progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """A line that follows the compile: sub-model, bucket of how many, elapsed, last word."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:  # a pod's log: a line per change, not per second
        said = [""]

        def line(step: Progress) -> None:
            text = describe_progress(step)
            if text != said[0]:
                said[0] = text
                console.print(f"{name}: {step.elapsed:.0f} s {text}", highlight=False)

        yield line
        return
    with console.status(f"{name}: compiling") as status:

        def show_progress(step: Progress) -> None:
            text = f"{name}: {step.elapsed:.0f} s {describe_progress(step)}"
            status.update(f"{text}  [dim]{escape(step.line[-console.width // 2 :])}[/dim]")

        yield show_progress


@contextmanager
def transfer(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for bytes that go to a store."""
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.DownloadColumn())
    with rich.Progress(*columns, rich.TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        row = bar.add_task(title, total=None)

        def moved(done: int, total: int, path: str) -> None:
            bar.update(row, completed=done, total=total)

        yield moved


def describe_progress(step: Progress) -> str:
    """`token_generation_model, bucket 2 of 5; 3 of 10 compiled`."""
    if not step.submodel:
        return step.line if step.line.startswith("the compiler refused") else "starts"
    bucket = f", bucket {step.bucket} of {step.buckets}" if step.buckets else ""
    return f"{step.submodel}{bucket}; {step.done} of {step.total} compiled"


FAILURES = (ValueError, OSError, CompileError, StoreError, StartupError)


def _fail(message: str) -> NoReturn:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(1)
