"""`neuron-serve bench`: load on any OpenAI endpoint, measured as LLMPerf does."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from serve_app.cli.bench_report import compare, report

if TYPE_CHECKING:
    from serve_app.bench.sweep import Point, Sweep

bench = typer.Typer(
    invoke_without_command=True, rich_markup_mode="rich", subcommand_metavar="[COMMAND]"
)

bench.command()(report)
bench.command()(compare)

_NEEDED = ("httptools", "msgspec", "tokenizers", "uvloop")
Tokens = Annotated[int, typer.Option(min=1, metavar="N")]
Stddev = Annotated[int, typer.Option(min=0, metavar="N")]


@bench.callback()
def run(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(help="The endpoint, with or without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Default: the endpoint's only one.", metavar="NAME")
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency",
            "--num-concurrent-requests",
            help="Closed loop: so many users, each with one request at a time. Default: 10.",
            metavar="N,N,...",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: so many requests per second, Poisson, whatever the server does.",
            metavar="X,X,...",
        ),
    ] = None,
    mean_input_tokens: Tokens = 550,
    stddev_input_tokens: Stddev = 150,
    mean_output_tokens: Tokens = 150,
    stddev_output_tokens: Stddev = 80,
    max_num_completed_requests: Annotated[
        int, typer.Option(min=1, help="Requests of each point.", metavar="N")
    ] = 10,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds in which each point may begin requests.")
    ] = 90.0,
    additional_sampling_params: Annotated[
        str, typer.Option(help="Further keys of every request, JSON.", metavar="JSON")
    ] = "{}",
    metadata: Annotated[str, typer.Option(help="Put into the summaries.", metavar="K=V,K=V")] = "",
    results_dir: Annotated[
        Path, typer.Option(help="Two files per point, with LLMPerf's names.", file_okay=False)
    ] = Path("bench-results"),
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Directory, tokenizer.json or hub repository. Default: the model's own, if it is "
            "here.",
            metavar="WHERE",
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="random words, conversations, or a file: a prompt per line, or .jsonl with "
            "prompt or messages.",
            metavar="random|conversations|FILE",
        ),
    ] = "random",
    turns: Annotated[int, typer.Option(min=1, help="Of each conversation.", metavar="N")] = 4,
    shared_prefix_tokens: Annotated[
        int, typer.Option(min=1, help="System prompt of all conversations.", metavar="N")
    ] = 128,
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests before each point, not counted. Default: one per user.",
            metavar="N",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, words and arrivals.")] = 0,
) -> None:
    """Put load on an OpenAI endpoint and measure it, with LLMPerf's parameters and results.

    A key is taken from OPENAI_API_KEY only.

    Example: [bold]neuron-serve bench --concurrency 1,2,4 --results-dir results[/bold]
    """
    if context.invoked_subcommand is not None:
        return
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        _fail(f"no {', '.join(missing)} here -> pip install 'neuron-serve[bench]'")
    from serve_app.bench.endpoint import EndpointError, look
    from serve_app.bench.load import Load
    from serve_app.bench.prompts import Lengths, PromptsError
    from serve_app.bench.sweep import Dataset, Sweep
    from serve_app.bench.tokens import TokenizerError, find

    if concurrency is not None and rate is not None:
        raise typer.BadParameter("give users or a rate, not both", param_hint="--rate")
    extra, given = _object(additional_sampling_params), _pairs(metadata)
    points = (
        [(None, x) for x in _numbers(rate, float, "--rate")]
        if rate is not None
        else [(n, None) for n in _numbers(concurrency or "10", int, "--concurrency")]
    )
    loads = [Load(n, x, max_num_completed_requests, timeout) for n, x in points]
    key = os.environ.get("OPENAI_API_KEY") or None
    if key and not (key.isascii() and key.isprintable()):
        _fail("OPENAI_API_KEY is no key: it has characters that no header may have")
    try:
        endpoint = look(url, model, key)
        found, where = find(tokenizer, endpoint.model, endpoint.root)
        sizes = (mean_input_tokens, stddev_input_tokens, mean_output_tokens, stddev_output_tokens)
        asked = Dataset(dataset, turns, shared_prefix_tokens)
        asked.check(Lengths(*sizes, endpoint.max_model_len))
        # All turns of a conversation share the context, and only their means are checked.
        context_of_one = None if dataset == "conversations" else endpoint.max_model_len
        lengths = Lengths(*sizes, context_of_one)
        sweep = Sweep(endpoint, found, where, loads, lengths, asked, seed, warm_up, extra, given)
        code = _measure(sweep, results_dir, key)
    except (EndpointError, PromptsError, TokenizerError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or results_dir}: {error.strerror or error} -> --results-dir")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def _measure(sweep: Sweep, results_dir: Path, key: str | None) -> int:
    from rich.console import Console

    from serve_app.bench.sweep import run as points_of
    from serve_app.bench.view import bar, remarks, table

    results_dir.mkdir(parents=True, exist_ok=True)
    console, points, stopped = Console(stderr=True), list[Any](), False
    console.print(_headline(sweep), highlight=False, soft_wrap=True)
    try:
        with bar(sweep.loads, console) as tell:
            for point in points_of(sweep, results_dir, key, tell):
                points.append(point)
    except KeyboardInterrupt:
        stopped = True
    if points:
        Console().print(table(points))
    for line in remarks(points):
        typer.echo(line, err=True)
    typer.echo(f"{len(points)} of {len(sweep.loads)} points in {results_dir}", err=True)
    if stopped:
        return 130
    _report(results_dir)
    return 1 if any(_all_failed(point) for point in points) else 0


def _report(results_dir: Path) -> None:
    if find_spec("matplotlib") is None:
        typer.echo("no report: no matplotlib here -> pip install 'neuron-serve[bench]'", err=True)
        return
    from serve_app.bench.report import write
    from serve_app.bench.results import ResultsError

    try:
        typer.echo(f"report: {write(results_dir, results_dir / 'report.html')}", err=True)
    except (ResultsError, OSError) as error:  # results of other runs in the folder; files stand
        typer.echo(f"no report: {error}", err=True)


def _headline(sweep: Sweep) -> str:
    endpoint, lengths = sweep.endpoint, sweep.lengths
    exact = "" if endpoint.vllm else " at the most"
    return (
        f"{endpoint.model} at {endpoint.url}: {sweep.dataset.name}, {lengths.mean_input} ± "
        f"{lengths.stddev_input} tokens in, {lengths.mean_output} ± {lengths.stddev_output} "
        f"out{exact}; tokenizer {sweep.tokenizer_name}"
    )


def _all_failed(point: Point) -> bool:
    return not point.summary["results_num_completed_requests"]


def _numbers(text: str, kind: type[Any], option: str) -> list[Any]:
    """Positive numbers, each once."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < 1e6 for number in found):
        raise typer.BadParameter(f"{text!r} is no list such as 1,2,4", param_hint=option)
    return list(dict.fromkeys(found))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        message = f'{text!r} is no JSON object such as {{"temperature": 0}}'
        raise typer.BadParameter(message, param_hint="--additional-sampling-params")
    return found


def _pairs(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",") if part]
    if not all(name and mark for name, mark, _ in parts):
        raise typer.BadParameter(f"{text!r} is not as in name=foo,bar=1", param_hint="--metadata")
    return {name.strip(): value.strip() for name, _, value in parts}


def _fail(message: str) -> NoReturn:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(1)
