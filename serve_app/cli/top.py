"""`neuron-serve top`: what serves and how it goes, live, from metrics endpoints alone."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # the other commands start without it
    from serve_app.top.watch import Watch

_DRAW_S = 1.0
Key = Callable[[float], str]
"""The key that is pressed within so many seconds; "" for none."""


def top(
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="A node's metrics, as after `kubectl port-forward pod/NAME 8080`; again for "
            "further nodes. Default: those of the Ray that runs here, else 127.0.0.1:8080.",
            metavar="HOST:PORT",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One view, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts, with --once.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            help="Seconds between two looks (2). With --once: seconds to look for before the "
            "view; rates need 40, as replicas report every 10.",
            min=0.2,
            max=600,
        ),
    ] = None,
    replicas: Annotated[
        bool, typer.Option("--replicas", help="A line per replica, also where there is one.")
    ] = False,
) -> None:
    """Models and replicas, live: phase, cores, requests, tokens/s, TTFT, KV cache, errors.

    Example: [bold]neuron-serve top --metrics 127.0.0.1:8080[/bold]
    """
    from serve_app.top.endpoints import NoMetrics, url_of
    from serve_app.top.watch import LOOK_S, Watch

    if as_json and not once:
        raise typer.BadParameter("goes with --once", param_hint="--json")
    try:
        watch = Watch([url_of(text) for text in metrics or ()])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--metrics") from None
    try:
        watch.first()
        if once:
            _once(watch, interval or 0.0, as_json, replicas)
        elif sys.stdout.isatty():
            _live(watch, interval or LOOK_S, replicas)
        else:
            _once(watch, 0.0, False, replicas)
    except NoMetrics as error:
        typer.echo(f"neuron-serve: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130 if once else 0) from None


def _once(watch: Watch, look_for_s: float, as_json: bool, every_replica: bool) -> None:
    from rich.console import Console

    from serve_app.top.view import data, page
    from serve_app.top.watch import LOOK_S

    end = time.monotonic() + look_for_s
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(LOOK_S, left))
        watch.again()
    now, console = time.monotonic(), Console()
    if as_json:
        typer.echo(json.dumps(data(watch.fleet, now), indent=1))
    else:
        clock = time.strftime("%H:%M:%S")
        console.print(page(watch.fleet, now, clock, console.width, every_replica))


def _live(watch: Watch, interval: float, every_replica: bool) -> None:
    """Until q or Ctrl-C; the terminal is then as it was."""
    from rich.console import Console
    from rich.live import Live

    from serve_app.top.view import page

    console = Console()
    watch.start(interval)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            watch.take()
            clock = time.strftime("%H:%M:%S")
            shown = page(watch.fleet, time.monotonic(), clock, console.width, every_replica)
            live.update(shown, refresh=True)
            if pressed(_DRAW_S) in ("q", "Q"):
                return


@contextmanager
def _keys() -> Iterator[Key]:
    """Keys as they are pressed, unseen. Where there is no keyboard there are none."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield lambda seconds: _key(keyboard, seconds)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _key(keyboard: int, seconds: float) -> str:
    if not select.select([keyboard], [], [], seconds)[0]:
        return ""
    # Without anything to read the terminal has gone.
    return os.read(keyboard, 1).decode(errors="replace") or "q"


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
