"""`neuron-serve keys`: make, list and revoke API keys in the file that replicas follow."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:  # as in main.py: `check` has half a second
    from serve_app.access.keyring import Key, Keyring

keys = typer.Typer(
    no_args_is_help=True, help="Make, list or revoke API keys.", rich_markup_mode="rich"
)

File = Annotated[
    Path,
    typer.Option(
        help="The file of API keys, as in access.keys.",
        envvar="NEURON_SERVE_KEYS",
        metavar="FILE",
        dir_okay=False,
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, max=2**31 - 1, metavar="N")]

_HEADER = (
    "# Written by `neuron-serve keys`, which keeps no comments. "
    "Here are no keys, only the SHA-256 of each.\n"
)


@keys.command()
def new(
    file: File,
    name: Annotated[str, typer.Option(help="Whose it is: shown in logs, metrics and usage.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model that it may use; give it again for more. Default: all."),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="In days (30d) or a date, UTC. Default: never.", metavar="WHEN"),
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may use the admin routes.")] = False,
    priority: Annotated[
        int | None, typer.Option(help="As in vLLM: lower is served earlier.", metavar="N")
    ] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**31 - 1, metavar="N", help="The most that one request may generate."
        ),
    ] = None,
) -> None:
    """Add a key to the file and print it, this once: the file holds only its hash.

    Running replicas take it within seconds.

    Example: [bold]neuron-serve keys new --file keys.yaml --name alice --expires 30d[/bold]
    """
    from serve_app.access.keyring import Keyring, issue
    from serve_app.config.findings import ConfigError

    given = {
        "name": name,
        "models": model or None,
        "expires": _future(expires) if expires is not None else None,
        "admin": admin or None,
        "priority": priority,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
        "max_tokens": max_tokens,
    }
    fields = {field: value for field, value in given.items() if value is not None}
    path = _real(file)
    with _locked(path):
        keyring = _load(path) if path.exists() else Keyring()
        taken = {word for key in keyring.keys for word in (key.name, key.id)}
        try:
            key, text = issue(fields, taken)
        except ConfigError as error:
            raise typer.BadParameter(str(error).removeprefix("keys[0].")) from None
        if key.name in taken:
            _fail(f"{path} has a key called {key.name!r} -> revoke it, or choose another name")
        _write(path, [*keyring.keys, key])
    typer.echo(f"{path}: added {key.name} ({key.id}); the key is shown only now:", err=True)
    typer.echo(text)


@keys.command("list")
def show(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="JSON instead.")] = False
) -> None:
    """The keys of the file: whose they are, what they may, whether they are still good.

    Example: [bold]neuron-serve keys list --file keys.yaml[/bold]
    """
    keyring, now = _load(file), datetime.now(UTC)
    if as_json:
        typer.echo(json.dumps([_as_dict(key, now) for key in keyring.keys], indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("name", "id", "models", "expires", "limits", "state"):
        table.add_column(title, overflow="fold")
    for key in keyring.keys:
        state = Text("expired", "red") if key.expired(now) else Text("good", "green")
        table.add_row(
            key.name,
            key.id,
            Text("all" if key.models is None else "\n".join(key.models)),
            f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never",
            "\n".join(_limits(key)) or "none",
            state,
        )
    Console().print(table)


@keys.command()
def revoke(
    file: File, key: Annotated[str, typer.Argument(help="Its name or its id.", metavar="NAME|ID")]
) -> None:
    """Take a key out of the file. Running replicas refuse it within seconds.

    Example: [bold]neuron-serve keys revoke --file keys.yaml alice[/bold]
    """
    from serve_app.access.keyring import KEY

    # Who finds a key in the wild may paste it. Such a word is never repeated.
    match = KEY.fullmatch(key)
    word = match["id"] if match else key
    path = _real(file)
    with _locked(path):
        keyring = _load(path)
        gone = next((one for one in keyring.keys if word in (one.name, one.id)), None)
        if gone is None:
            names = [known for one in keyring.keys for known in (one.name, one.id)]
            near = get_close_matches(word, names, n=1)
            mend = f"did you mean {near[0]!r}?" if near else "see neuron-serve keys list"
            _fail(f"{path} has no such key -> {mend}")
        _write(path, [one for one in keyring.keys if one is not gone])
    typer.echo(f"{path}: revoked {gone.name} ({gone.id})", err=True)


def _future(text: str) -> datetime:
    """`30d` or a date of the future."""
    from serve_app.access.keyring import instant

    now = datetime.now(UTC).replace(microsecond=0)
    try:
        if days := re.fullmatch(r"(\d+)d", text):
            when = now + timedelta(days=int(days[1]))
        else:
            when = instant(text)
    except (ValueError, OverflowError):
        message = "write a number of days as in 30d, or a date as in 2027-01-01"
        raise typer.BadParameter(message, param_hint="--expires") from None
    if when <= now:
        raise typer.BadParameter("that is in the past", param_hint="--expires")
    return when


def _limits(key: Key) -> Iterator[str]:
    """What a key may, in the words of its options."""
    if key.admin:
        yield "admin"
    if key.priority:
        yield f"priority {key.priority}"
    for field in (*vars(key.quota), "max_tokens"):
        value = getattr(key, field)
        if value is not None:
            yield f"{field.replace('_', ' ')} {value}"


def _as_dict(key: Key, now: datetime) -> dict[str, object]:
    shown = key.model_dump(mode="json", exclude={"sha256"})
    return {**shown, "state": "expired" if key.expired(now) else "good"}


def _load(path: Path) -> Keyring:
    """The file's keys, or the end of the program with a line for each fault."""
    from serve_app.access.key_file import KeyFile
    from serve_app.config.findings import ConfigError

    try:
        return KeyFile(path).load()
    except ConfigError as error:
        for finding in error.findings:
            typer.echo(f"neuron-serve: {path}: {finding}", err=True)
    raise typer.Exit(2)


def _real(file: Path) -> Path:
    """Where the file is: replaced by its name, a symlink would become a file."""
    try:
        return file.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        _fail(f"{file} leads nowhere")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. A file of its own: the lock on a file that is replaced is no lock."""
    with _written(path):
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _write(path: Path, kept: Iterable[Key]) -> None:
    """Replaces the file as a whole, for good; its owner and mode stay, a new one's is 0600."""
    from serve_app.access.keyring import dump
    from serve_app.artifacts.store.directory import sync_directory

    ours = _HEADER + dump(kept)
    with _written(path):
        before = path.stat() if path.exists() else None
        comments = before is not None and re.search(
            r"(^|\s)#", path.read_text(encoding="utf-8").replace(_HEADER, "")
        )
        descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                if before is not None:
                    os.fchmod(descriptor, before.st_mode & 0o7777)
                    if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(descriptor, before.st_uid, before.st_gid)
                file.write(ours)
                file.flush()
                os.fsync(descriptor)
            Path(fresh).replace(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    if comments:
        typer.echo(f"{path}: its comments are not kept", err=True)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """A disk that refuses ends the program in one line."""
    try:
        yield
    except OSError as error:
        _fail(f"cannot write {path}: {error.strerror}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"neuron-serve: {message}", err=True)
    raise typer.Exit(1)
