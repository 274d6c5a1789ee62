"""The fleet on a terminal, as wide as that is, and as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from serve_app.top.figures import Reading, figures, front_door
from serve_app.top.fleet import ELSEWHERE, READY, Fleet, Group, Source
from serve_app.top.history import RATE_S, WINDOW_S

_FULL = 0.95
_MODEL = 14
"""Columns of a model's name before others make room for it."""


def _number(value: float) -> str:
    if value >= 99_950:
        return f"{value / 1000:.0f}k"
    if value >= 9_995:
        return f"{value / 1000:.1f}k"
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"


def _whole(value: float) -> str:
    return f"{value:.0f}" if value < 99_950 else _number(value)


def _seconds(value: float) -> str:
    if value < 0.9995:
        return f"{value * 1000:.0f}ms" if value >= 0.00995 else f"{value * 1000:.1f}ms"
    return f"{value:.1f}s" if value < 99.95 else f"{value:.0f}s"


def _percent(value: float) -> str:
    return f"{value * 100:.0f}%"


class _Column(NamedTuple):
    title: str
    shown: Callable[[float], str] | None = None
    """None: words."""
    dropped: int = 0
    """In which order, where there is no room; 0 never."""
    only_if_any: bool = False
    """Not where every row has nothing or 0."""


COLUMNS = {
    "model": _Column("model"),
    "application": _Column("application", None, 6, True),
    "ready": _Column("ready"),
    "phase": _Column("phase", None, 0, True),
    "cores": _Column("cores", _whole, 7, True),
    "running": _Column("run", _whole),
    "waiting": _Column("wait", _whole),
    "tokens_out": _Column("out\ntok/s", _number),
    "tokens_in": _Column("in\ntok/s", _number, 4),
    "requests": _Column("\nreq/s", _number, 2),
    "ttft_p50": _Column("TTFT\np50", _seconds),
    "ttft_p99": _Column("TTFT\np99", _seconds),
    "itl_p50": _Column("ITL\np50", _seconds, 3),
    "kv": _Column("KV", _percent),
    "errors": _Column("err", _whole),
    "aborted": _Column("abort", _whole, 1, True),
    "refused": _Column("refused", _whole, 5, True),
}


@dataclass
class _Row:
    cells: dict[str, Text]
    away: bool
    empty: set[str] = field(default_factory=set)


def page(fleet: Fleet, now: float, clock: str, width: int, every_replica: bool) -> Lines:
    """Everything. `clock` is the time of day; `now` is of the clock that fed the fleet."""
    rows = [row for group in fleet.groups() for row in _rows(group, now, every_replica)]
    hint = f"rates of {RATE_S:.0f} s, the rest of {WINDOW_S:.0f} s; dim: since the start   q ends"
    foot = [*_notes(fleet), Text(hint, "dim")]
    table = _table(rows, width) if rows else Text("no model is seen here yet", "dim")
    return Lines(*_header(fleet, now, clock, width), Text(), table, Text(), *foot)


def data(fleet: Fleet, now: float) -> dict[str, Any]:
    """The same for scripts. Latencies in s, rates per s, KV use from 0 to 1; null: not known."""
    return {
        "rates_of_s": RATE_S,
        "counts_of_s": WINDOW_S,
        "endpoints": [
            {
                "url": url,
                "age_s": None if one.answered is None else round(now - one.answered, 1),
                "error": one.fault or None,
            }
            for url, one in fleet.endpoints.items()
        ],
        "models": [
            {
                "model": group.model,
                "application": group.application,
                "deployment": group.deployment,
                "ready": sum(source.phase()[0] == READY for source in group.replicas),
                "phase": group.status if not group.replicas else None,
                **_plain(figures(group, group.replicas)),
                "replicas": [
                    {
                        "replica": source.place.replica,
                        "node": source.node,
                        "endpoint": source.url,
                        "phase": source.phase()[0],
                        "phase_s": source.phase()[1],
                        "stuck_s": source.stuck_s(now),
                        **_plain(figures(group, [source])),
                    }
                    for source in group.replicas
                ],
            }
            for group in fleet.groups()
        ],
        "front_door": front_door(fleet.sources.values()),
        "unseen_replicas": fleet.unseen(),
    }


def _plain(readings: dict[str, Reading]) -> dict[str, Any]:
    known = {name: reading.value for name, reading in readings.items()}
    old = [name for name, one in readings.items() if not one.recent and one.value is not None]
    return known | {"since_start": old}


def _header(fleet: Fleet, now: float, clock: str, width: int) -> list[Text]:
    urls = list(fleet.endpoints)
    shown = urls[0] if len(urls) == 1 else f"{len(urls)} endpoints"
    ages = [now - one.answered for one in fleet.endpoints.values() if one.answered is not None]
    age = f", {max(0.0, min(ages)):.0f} s ago" if ages else ""
    head = Text.assemble((f"neuron-serve top  {clock}", "bold"), f"  {shown}{age}")
    head.truncate(width, overflow="ellipsis")
    lines = [head]
    for url, one in fleet.endpoints.items():
        if one.fault:
            since = "" if one.answered is None else f" for {now - one.answered:.0f} s"
            lines.append(Text(f"{url}: no answer{since} ({one.fault})", "yellow"))
    return lines


def _notes(fleet: Fleet) -> Iterable[Text]:
    if door := front_door(fleet.sources.values()):
        models = {name: value for name, value in door.items() if name.startswith("models_")}
        parts = [
            f"{name} {'-' if door[name] is None else _number(door[name] or 0.0)}/s"
            for name in door
            if name not in models
        ]
        parts += [
            f"models {name.removeprefix('models_')} {value:.0f}" for name, value in models.items()
        ]
        yield Text(f"front door: {', '.join(parts)}")
    for application, count in fleet.unseen().items():
        what = "replica runs" if count == 1 else "replicas run"
        yield Text(f"{application}: {count} more {what} on nodes not asked -> --metrics of theirs")


def _rows(group: Group, now: float, every_replica: bool) -> Iterable[_Row]:
    ready = sum(source.phase()[0] == READY for source in group.replicas)
    name = group.model or f"({group.application})"
    if group.deployment in ("prefill", "decode"):
        name += f" {group.deployment}"
    words = {"model": Text(name), "application": Text(group.application if group.model else "")}
    words["ready"] = Text(f"{ready}/{len(group.replicas)}" if group.replicas else "-")
    words["phase"] = _phases(group, now)
    yield _row(group, group.replicas, words)
    if every_replica or len(group.replicas) > 1:
        for source in group.replicas:
            words = {"model": Text(f"  {source.place.replica}"), "application": Text(source.node)}
            words["phase"] = _phase(source, now)
            yield _row(group, [source], words)


def _row(group: Group, replicas: list[Source], words: dict[str, Text]) -> _Row:
    readings = figures(group, replicas)
    cells = {name: words.get(name, Text()) for name, one in COLUMNS.items() if one.shown is None}
    empty = {name for name, text in cells.items() if not text}
    for name, column in COLUMNS.items():
        if column.shown is None:
            continue
        value, recent = readings[name]
        cells[name] = Text("-" if value is None else column.shown(value), "" if recent else "dim")
        if not value:
            empty.add(name)
    if any(source.queue_grows for source in replicas):
        cells["waiting"].style = "yellow"
    if (readings["kv"].value or 0) > _FULL:
        cells["kv"].style = "red"
    if readings["errors"].value and readings["errors"].recent:
        cells["errors"].style = "red"
    away = bool(replicas) and all(source.away or not source.healthy for source in replicas)
    return _Row(cells, away, empty)


def _phases(group: Group, now: float) -> Text:
    """The one that takes longest, and how many there are beside it."""
    if not group.replicas:
        styles = {"deploy failed": "red", ELSEWHERE: ""}
        return Text(group.status, styles.get(group.status, "yellow"))
    told = [(source.phase()[1] or 0.0, _phase(source, now)) for source in group.replicas]
    told = [one for one in told if one[1]]
    if not told:
        return Text()
    text = max(told, key=lambda one: one[0])[1]
    return text.append(f" +{len(told) - 1}") if len(told) > 1 else text


def _phase(source: Source, now: float) -> Text:
    """Nothing where a replica serves."""
    name, seconds = source.phase()
    if name != READY:
        style = "red" if name in ("engine dead", "unhealthy") else "yellow"
        return Text(name if seconds is None else f"{name} {seconds:.0f} s", style)
    stuck = source.stuck_s(now)
    return Text() if stuck is None else Text(f"stuck {stuck:.0f} s", "yellow")


def _table(rows: list[_Row], width: int) -> Table:
    shown = [
        name
        for name, column in COLUMNS.items()
        if not column.only_if_any or any(name not in row.empty for row in rows)
    ]
    widths = {
        name: max(
            *(row.cells[name].cell_len for row in rows), *map(len, COLUMNS[name].title.split("\n"))
        )
        for name in shown
    }

    def room(names: list[str], gap: int, model: int) -> bool:
        needed = sum(widths[name] for name in names) - widths["model"] + model
        return needed + gap * (len(names) - 1) <= width

    gap = 2 if room(shown, 2, widths["model"]) else 1
    least = min(widths["model"], _MODEL)
    for name in sorted((n for n in shown if COLUMNS[n].dropped), key=lambda n: COLUMNS[n].dropped):
        if not room(shown, gap, least):
            shown.remove(name)
    others = sum(widths[name] for name in shown if name != "model")
    model = max(least, min(widths["model"], width - others - gap * (len(shown) - 1)))
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for name in shown:
        column = COLUMNS[name]
        table.add_column(
            column.title,
            justify="left" if column.shown is None else "right",
            vertical="bottom",
            no_wrap=True,
            width=model if name == "model" else None,
        )
    for row in rows:
        row.cells["model"] = _cut(row.cells["model"], model)
        table.add_row(*(row.cells[name] for name in shown), style="dim" if row.away else "")
    return table


def _cut(name: Text, width: int) -> Text:
    """The end of a model's name says more than the owner's."""
    if name.cell_len > width and "/" in name.plain:
        name = name[name.plain.index("/") + 1 :]
    name.truncate(width, overflow="ellipsis")
    return name
