"""`neuron-serve doctor`: what is wrong with this machine, or behind a log."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

if TYPE_CHECKING:  # the other commands start without them
    from serve_app.doctor.check import Answer, Check
    from serve_app.doctor.log import Found, Report

_GZIP = b"\x1f\x8b"
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "magenta"}
_MORE = (
    "for more: NEURON_RT_LOG_LEVEL=INFO (runtime), VLLM_LOGGING_LEVEL=DEBUG (engine), "
    "/tmp/ray/session_latest/logs (Ray), kubectl logs --previous (a pod that ended)"
)


def doctor(
    log: Annotated[
        str | None,
        typer.Argument(help="A log, also .gz, or - for standard input. Left out: this machine."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    known: Annotated[
        bool, typer.Option("--known", help="Print every known failure and check, as Markdown.")
    ] = False,
) -> None:
    """Name what is wrong, why, and the mend: of this machine, or in a log.

    Exit codes: 0 nothing known is wrong, 1 something is, 2 the log cannot be read.

    Example: [bold]kubectl logs POD --previous | neuron-serve doctor -[/bold]
    """
    if known:
        from serve_app.doctor.page import markdown

        typer.echo(markdown(), nl=False)
    elif log is None:
        raise typer.Exit(_machine(as_json))
    else:
        raise typer.Exit(_log(log, as_json))


def _machine(as_json: bool) -> int:
    from serve_app.doctor.checks import look_at
    from serve_app.doctor.machine import Machine

    answers = look_at(Machine())
    failed = any(answer.status == "fail" for _, answer in answers)
    if as_json:
        rows = [{"check": check.id, **asdict(answer)} for check, answer in answers]
        typer.echo(json.dumps({"ok": not failed, "checks": rows}, indent=1))
    else:
        _show_answers(answers)
    return int(failed)


def _show_answers(answers: list[tuple[Check, Answer]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for check, answer in answers:
        line = Text(f"{answer.status:7} ", _STYLES[answer.status])
        line.append(f"{check.id:16} ", "bold").append(answer.line, "default")
        console.print(line, soft_wrap=True)
        if answer.mend:
            console.print(Text(f"{'':25}-> {answer.mend}"), soft_wrap=True)


def _log(name: str, as_json: bool) -> int:
    from serve_app.doctor.log import Reader, blocks

    reader = Reader()
    cut = ""
    try:
        with _opened(name) as file:
            for block in blocks(file):
                reader.read(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        cut = "the compressed file is cut off or damaged: read as far as it goes"
    except OSError as error:
        mend = "give one file" if Path(name).is_dir() else "give a file that can be read, or -"
        typer.echo(f"neuron-serve: {name}: {error.strerror or error} -> {mend}", err=True)
        return 2
    report = reader.report
    if as_json:
        typer.echo(json.dumps(_as_dict(name, report, cut), indent=1))
    else:
        _show_report(name, report)
        if cut:
            typer.echo(f"{name}: {cut}")
    return int(bool(report.found))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The log's bytes, unpacked when they are packed."""
    with sys.stdin.buffer if name == "-" else Path(name).open("rb") as file:
        packed = cast(BufferedReader, file).peek(2)[:2] == _GZIP
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file) if packed else file)


def _show_report(name: str, report: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    for found in report.causes:
        say(f"line {found.line}: {found.failure.id}{_times(found)}", "bold red")
        say(f"  | {found.text}", "dim")
        say(f"  why   {found.cause}")
        say(f"  mend  {found.mend}")
        say(f"  from  {found.failure.source}", "dim")
    for found in report.consequences:
        head = "and then " if report.causes else ""
        say(f"{head}line {found.line}: {found.failure.id}{_times(found)}: {found.cause}", "yellow")
        if not report.causes:
            say(f"  | {found.text}", "dim")
            say(f"  mend  {found.mend}")
    counted = f"{name}: {report.lines} lines"
    if report.causes:
        say(f"{counted}; known causes: {len(report.causes)}; the first one counts most")
        return
    what = "only consequences of something" if report.consequences else "nothing"
    say(f"{counted}; {what} that is known here")
    if report.last_error:
        number, text = report.last_error
        say(f"the last error, line {number}: {text}")
        say(_MORE)


def _times(found: Found) -> str:
    return f" (x {found.count})" if found.count > 1 else ""


def _as_dict(name: str, report: Report, cut: str) -> dict[str, Any]:
    found = [
        {
            "id": one.failure.id,
            "rank": "consequence" if one.failure.consequence else "cause",
            "line": one.line,
            "count": one.count,
            "text": one.text,
            "cause": one.cause,
            "mend": one.mend,
            "source": one.failure.source,
        }
        for one in (*report.causes, *report.consequences)
    ]
    last = report.last_error and {"line": report.last_error[0], "text": report.last_error[1]}
    return {"log": name, "lines": report.lines, "found": found, "last_error": last, "note": cut}
