"""The report of a sweep: one HTML page that needs no network, and its charts as PNG beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from serve_app.bench.figures import NAMES, panels
from serve_app.bench.report_canvas import COLOURS, Panel, png, svg
from serve_app.bench.report_facts import about, alerts, chip, facts
from serve_app.bench.report_sums import (
    Goodput,
    Knee,
    Price,
    Targets,
    failed,
    goodput,
    knee,
    price,
)
from serve_app.bench.report_text import dollars, figure, percent, seconds
from serve_app.bench.results import Latency, Point, one_sweep, per_token
from serve_app.version import VERSION

_PERCENTS = (50, 90, 99)
_SECTIONS = {
    "throughput": "Throughput",
    "latency": "Latency",
    "knee": "The knee",
    "distribution": "Distribution of latency",
    "goodput": "Goodput",
}


def write(
    results_dir: Path,
    out: Path,
    ttft_target_s: float | None = None,
    tpot_target_s: float | None = None,
    price_per_hour: float | None = None,
) -> Path:
    """Writes `out` and, beside it, `<stem>-<chart>.png`; returns `out`.

    Raises:
        ResultsError: the directory does not hold one sweep.
        OSError: the report cannot be written.
    """
    points = one_sweep(results_dir)
    targets = Targets(ttft_target_s, tpot_target_s)
    at_knee = knee(points)
    charts = panels(points, at_knee, targets)
    page = html(points, at_knee, charts, targets, price_per_hour)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    for name, shown in charts.items():
        png(shown, out.with_name(f"{out.stem}-{name}.png"))
    return out


def html(
    points: Sequence[Point],
    at_knee: Knee,
    charts: Mapping[str, Sequence[Panel]],
    targets: Targets,
    price_per_hour: float | None,
) -> str:
    """The page; every word from a file is escaped."""
    summary = points[0].summary
    model = str(summary.get("model") or "unknown model")
    sections = [_section(name, shown) for name, shown in charts.items()]
    told = facts(points)
    if price_per_hour is not None:
        told["price"] = f"{dollars(price_per_hour)} per hour"
    template = Template(files("serve_app.bench").joinpath("report.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{model}: benchmark"),
        model=escape(model),
        light=" ".join(f"--{name}: {value};" for name, value in COLOURS.items()),
        sub=escape(f"{about(points)} · {chip(points)}"),
        alerts=_alerts(alerts(points, targets)),
        tiles="\n".join(_tiles(points, at_knee, targets, price_per_hour)),
        charts="\n".join(sections),
        table=_table(points, at_knee, targets, price_per_hour),
        errors=_errors(points),
        notes="\n".join(f"<li>{escape(n)}</li>" for n in _notes(points, at_knee, price_per_hour)),
        facts="\n".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
            for name, value in told.items()
        ),
        made=escape(f"Made by neuron-serve {VERSION} on {datetime.now(UTC):%d %b %Y %H:%M} UTC."),
    )


def _alerts(lines: Iterable[tuple[bool, str]]) -> str:
    items = [f"<li{' class=bad' if bad else ''}>{escape(line)}</li>" for bad, line in lines]
    return "<ul class=alerts>" + "\n".join(items) + "</ul>" if items else ""


def _tiles(
    points: Sequence[Point], at_knee: Knee, targets: Targets, price_per_hour: float | None
) -> Iterable[str]:
    """The answers that people come for: how much, where, within the targets, at what price."""
    able = [point for point in points if not failed(point)]
    if not able:
        return
    most = max(able, key=lambda point: point.tokens_per_s)
    yield _tile("Most output tokens", figure(most.tokens_per_s), "tok/s", _at(most))
    point = at_knee.point
    if point is None:
        yield _tile("Knee", "-", "", at_knee.reason)
    else:
        told = f"{_at(point)}, TTFT p90 {seconds(point.quantile('ttft_s', 90))}"
        yield _tile("Knee", figure(point.tokens_per_s), "tok/s", told)
    per = per_token(points)
    goods = [(good, p) for p in able if (good := goodput(p, targets, per))]
    if goods:
        good, best = max(goods, key=lambda pair: pair[0].per_s)
        told = f"{_at(best)}, {percent(good.share)} within the targets"
        yield _tile("Best goodput", figure(good.per_s), "req/s", told)
    if price_per_hour is not None and (cost := price(most, price_per_hour)):
        told = f"output, {_at(most)}; {dollars(cost.total)} over all tokens"
        yield _tile("A million tokens", dollars(cost.output), "", told)


def _tile(name: str, value: str, unit: str, told: str) -> str:
    small = f" <small>{unit}</small>" if unit else ""
    return (
        f'<div class="tile"><p class="name">{escape(name)}</p><b>{escape(value)}{small}</b>'
        f'<p class="told">{escape(told)}</p></div>'
    )


def _at(point: Point) -> str:
    return f"at {point.load:g} " + ("req/s sent" if point.open_loop else "concurrent")


def _section(name: str, charts: Sequence[Panel]) -> str:
    shown = "\n".join(
        f"<figure><figcaption><h3>{escape(panel.title)}</h3><p>{escape(panel.told)}</p>"
        f"</figcaption>{svg(panel, f'{name}{at}')}</figure>"
        for at, panel in enumerate(charts)
    )
    one = " one" if len(charts) == 1 else ""
    return f'<h2>{_SECTIONS[name]}</h2>\n<div class="charts{one}">\n{shown}\n</div>'


def _table(
    points: Sequence[Point], at_knee: Knee, targets: Targets, price_per_hour: float | None
) -> str:
    per = per_token(points)
    shown: tuple[Latency, ...] = ("ttft_s", per, "e2e_s")
    goods = [goodput(point, targets, per) for point in points]
    top = [f"<th rowspan=2>{'Rate' if points[0].open_loop else 'Concurrency'}</th>"]
    top += [f"<th rowspan=2>{name}</th>" for name in ("Completed", "Errors", "tok/s", "req/s")]
    top += [f"<th colspan={len(_PERCENTS)}>{NAMES[latency]}</th>" for latency in shown]
    low = [f"<th>p{percent_}</th>" for _ in shown for percent_ in _PERCENTS]
    if any(goods):
        top.append("<th colspan=2>Goodput</th>")
        low += ["<th>req/s</th>", "<th>share</th>"]
    if price_per_hour is not None:
        top.append("<th colspan=2>Per million tokens</th>")
        low += ["<th>output</th>", "<th>all</th>"]
    rows = []
    for point, good in zip(points, goods, strict=True):
        cells = [
            figure(point.completed) if point.completed >= 1000 else str(point.completed),
            f"{point.errors} ({percent(point.error_rate)})" if point.errors else "0",
            figure(point.tokens_per_s),
            figure(point.requests_per_s),
            *(seconds(point.quantile(latency, p)) for latency in shown for p in _PERCENTS),
        ]
        if any(goods):
            cells += _goodput_cells(good)
        if price_per_hour is not None:
            cells += _price_cells(price(point, price_per_hour))
        rows.append(_row(point, at_knee, cells))
    head = f"<thead><tr>{''.join(top)}</tr><tr>{''.join(low)}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _goodput_cells(good: Goodput | None) -> list[str]:
    return [figure(good.per_s), percent(good.share)] if good else ["-", "-"]


def _price_cells(cost: Price | None) -> list[str]:
    return [dollars(cost.output), dollars(cost.total)] if cost else ["-", "-"]


def _row(point: Point, at_knee: Knee, cells: Iterable[str]) -> str:
    kind, tag = "", ""
    if failed(point):
        kind, tag = ' class="bad"', '<span class="tag">errors</span>'
    elif point is at_knee.point:
        kind, tag = ' class="knee"', '<span class="tag">knee</span>'
    shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr{kind}><th>{escape(point.label)}{tag}</th>{shown}</tr>"


def _errors(points: Sequence[Point]) -> str:
    """By load and code; nothing where there are none."""
    rows = [
        f"<tr><th>{escape(point.label)}</th><td>{escape(code)}</td><td>{count:,}</td>"
        f"<td>{percent(count / (point.completed + point.errors))}</td></tr>"
        for point in points
        for code, count in sorted(point.errors_by_code.items())
    ]
    if not rows:
        return ""
    head = "<thead><tr><th>Load</th><th>Code</th><th>Requests</th><th>Share</th></tr></thead>"
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Errors by code</h2>\n<div class="sheet">{table}</div>'


def _notes(points: Sequence[Point], at_knee: Knee, price_per_hour: float | None) -> Iterable[str]:
    yield "TTFT: from the request to its first token. End to end: to its last token."
    if per_token(points) == "tpot_s":
        yield (
            "TPOT: time per output token after the first, (end to end - TTFT) / (tokens - 1), "
            "a mean for each request. LLMPerf's inter-token latency has TTFT in it and is not "
            "shown."
        )
    else:
        yield (
            "ITL: LLMPerf's inter_token_latency_s, end-to-end time over output tokens. TTFT is in "
            "it, so it is longer than TPOT, which these files do not have."
        )
    yield "p50, p90, p99: half, nine in ten, 99 in 100 of the requests without error were faster."
    yield (
        "Knee: the load with the greatest throughput over mean end-to-end latency (Kleinrock's "
        f"power, 1979), among points with at most 1 % errors. Here: {at_knee.reason}."
    )
    yield "Goodput: requests per second that met every target; its share is of all requests sent."
    if price_per_hour is not None:
        yield (
            "Price: the hour's price over the tokens of an hour at this load without a pause. "
            "'All' spreads it over input and output tokens alike."
        )
