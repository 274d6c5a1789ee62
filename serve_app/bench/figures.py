"""The charts of a sweep. Each is a panel that is drawn once for the page and once for a PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from serve_app.bench.report_canvas import BAD, FAINT, INK, LIGHT, P50, P90, P99, Panel
from serve_app.bench.report_sums import Knee, Targets, failed, goodput
from serve_app.bench.report_text import percent, seconds
from serve_app.bench.results import Latency, Point, per_token, quantile

_LOADS = ("#1f9e89", "#2f87a8", "#4a72b8", "#7461b3", "#9d4f9b", "#be4577", "#d1513f", "#d9822b")
_DASHES = (0, (4, 3))
_STEPS = [1, 2, 2.5, 5, 10]
NAMES: dict[Latency, str] = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "End to end",
}


def panels(points: Sequence[Point], knee: Knee, targets: Targets) -> dict[str, list[Panel]]:
    """Name of a PNG -> its panels, side by side. Those without data are left out."""
    per = per_token(points)
    latencies: tuple[Latency, ...] = ("ttft_s", per, "e2e_s")
    target = {"ttft_s": targets.ttft_s, per: targets.tpot_s}
    made = {
        "throughput": [_tokens(points, knee), *_requests(points)],
        "latency": [
            _latency(points, latency, target.get(latency))
            for latency in latencies
            if any(point.quantile(latency, 50) is not None for point in points)
        ],
        "knee": [_curve(points, knee)] if sum(bool(p.mean("e2e_s")) for p in points) > 1 else [],
        "distribution": [
            _distribution(points, latency, target.get(latency))
            for latency in latencies
            if any(point.values(latency) for point in points)
        ],
        "goodput": [_goodput(points, targets, per)]
        if any(goodput(point, targets, per) for point in points)
        else [],
    }
    return {name: charts for name, charts in made.items() if charts}


def _loads(axes: Axes, points: Sequence[Point]) -> None:
    """The x axis: concurrency, or rate."""
    loads = [point.load for point in points]
    if min(loads) > 0 and max(loads) / min(loads) >= 8:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(loads))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(load_name(points))
    axes.grid(axis="x", visible=False)


def load_name(points: Sequence[Point]) -> str:
    return "requests sent per second" if points[0].open_loop else "concurrent requests"


def _from_zero(axes: Axes, unit: str = "", time: bool = False) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    if time:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_ylabel(unit)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


def _mark_failed(axes: Axes, points: Iterable[Point], height: Callable[[Point], float]) -> None:
    bad = [point for point in points if failed(point)]
    if bad:
        axes.plot(
            [p.load for p in bad],
            [height(p) for p in bad],
            "X",
            color=BAD,
            markersize=9,
            label="errors",
            zorder=4,
        )
        _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=5,
        handlelength=1.1,
        handletextpad=0.5,
        columnspacing=1.1,
        borderpad=0.2,
    )


def _tokens(points: Sequence[Point], knee: Knee) -> Panel:
    def draw(axes: Axes) -> None:
        axes.plot([p.load for p in points], [p.tokens_per_s for p in points], "o-", color=P50)
        if knee.point:
            _ring(axes, knee.point.load, knee.point.tokens_per_s)
        _from_zero(axes, "tokens per second")
        _loads(axes, points)
        _mark_failed(axes, points, lambda p: p.tokens_per_s)

    return Panel("Output tokens per second", "Of all requests together, by load.", draw)


def _requests(points: Sequence[Point]) -> list[Panel]:
    known = [(p, rate) for p in points if (rate := p.requests_per_s) is not None]

    def draw(axes: Axes) -> None:
        axes.plot([p.load for p, _ in known], [rate for _, rate in known], "o-", color=P90)
        _from_zero(axes, "requests per second")
        _loads(axes, points)
        _mark_failed(axes, [p for p, _ in known], lambda p: p.requests_per_s or 0.0)

    told = "Completed without an error, by load."
    return [Panel("Requests per second", told, draw)] if known else []


def _latency(points: Sequence[Point], latency: Latency, target: float | None) -> Panel:
    def draw(axes: Axes) -> None:
        for percent_, colour in ((50, P50), (90, P90), (99, P99)):
            known = [(p.load, q) for p in points if (q := p.quantile(latency, percent_))]
            xs, ys = [load for load, _ in known], [q for _, q in known]
            axes.plot(xs, ys, "o-", color=colour, label=f"p{percent_}")
        if target is not None:
            axes.axhline(target, color=INK, linestyle=_DASHES, linewidth=1, label="target")
        _from_zero(axes, time=True)
        _loads(axes, points)
        _legend(axes)
        _mark_failed(axes, points, lambda p: p.quantile(latency, 50) or 0.0)

    return Panel(NAMES[latency], _TOLD[latency], draw)


_TOLD: dict[Latency, str] = {
    "ttft_s": "Time to the first token, by load.",
    "tpot_s": "Time per output token after the first, mean of each request, by load.",
    "itl_s": "LLMPerf's: end-to-end time over output tokens, so TTFT is in it; by load.",
    "e2e_s": "From the request to its last token, by load.",
}


def _curve(points: Sequence[Point], knee: Knee) -> Panel:
    known = [(p, mean) for p in points if (mean := p.mean("e2e_s"))]

    def draw(axes: Axes) -> None:
        means, rates = [mean for _, mean in known], [p.tokens_per_s for p, _ in known]
        axes.plot(means, rates, "-", color=LIGHT, zorder=2)
        for (point, mean), rate in zip(known, rates, strict=True):
            style = ("X", BAD) if failed(point) else ("o", P50)
            axes.plot([mean], [rate], style[0], color=style[1], zorder=3)
            axes.annotate(
                point.label, (mean, rate), (6, -11), textcoords="offset points", color=FAINT
            )
        _from_zero(axes, "output tokens per second")
        top, right = max(rates) * 1.12, max(means) * 1.08
        if knee.point:
            mean = next(mean for point, mean in known if point is knee.point)
            rate = knee.point.tokens_per_s
            end = min(right, mean * top / rate)
            axes.plot([0, end], [0, rate * end / mean], color=P99, linewidth=1, linestyle=_DASHES)
            _ring(axes, mean, rate)
            axes.annotate(
                "knee", (mean, rate), (-8, 6), textcoords="offset points", color=P99, ha="right"
            )
        axes.set(xlim=(0, right), ylim=(0, top))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axes.set_xlabel("mean end-to-end latency")

    told = f"Each dot is a load. Knee: {knee.reason}."
    if knee.point is None:
        told = f"Each dot is a load. {knee.reason.capitalize()}."
    return Panel("Throughput against latency", told, draw)


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], "o", markersize=12, fillstyle="none", color=P99, markeredgewidth=1.8)


def _distribution(points: Sequence[Point], latency: Latency, target: float | None) -> Panel:
    known = [(p, values) for p in points if (values := p.values(latency))]

    def draw(axes: Axes) -> None:
        steps = [*range(100), 99.5, 100.0]
        for at, (point, values) in enumerate(known):
            colour = _LOADS[round(at * (len(_LOADS) - 1) / max(1, len(known) - 1))]
            curve = [quantile(values, step) for step in steps]
            axes.plot(curve, steps, color=colour, linewidth=1.6, label=point.label)
        lows = [min(values) for _, values in known]
        highs = [max(values) for _, values in known]
        if min(lows) > 0 and max(highs) / min(lows) >= 8:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if target is not None:
            axes.axvline(target, color=INK, linestyle=_DASHES, linewidth=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axes.set(ylim=(0, 101), xlabel=NAMES[latency])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.legend(loc="lower right", title=None, handlelength=1.2, labelspacing=0.25)

    told = "Share of requests that were at least this fast; a line per load."
    if target is not None:
        told += " Dashed: the target."
    return Panel(f"{NAMES[latency]}, all requests", told, draw)


def _goodput(points: Sequence[Point], targets: Targets, per: Latency) -> Panel:
    wanted = [(NAMES["ttft_s"], targets.ttft_s), (NAMES[per], targets.tpot_s)]
    words = " and ".join(f"{name} ≤ {seconds(value)}" for name, value in wanted if value)

    def draw(axes: Axes) -> None:
        for at, point in enumerate(points):
            good = goodput(point, targets, per)
            if good is None:
                continue
            colour = BAD if failed(point) else P50
            axes.bar(at, point.requests_per_s or 0.0, width=0.62, color=LIGHT)
            axes.bar(at, good.per_s, width=0.62, color=colour)
            axes.annotate(
                percent(good.share),
                (at, max(point.requests_per_s or 0.0, good.per_s)),
                (0, 4),
                textcoords="offset points",
                ha="center",
                color=FAINT,
                fontsize=8,
            )
        axes.set_xticks(range(len(points)), [point.label for point in points])
        axes.margins(y=0.12)
        _from_zero(axes, "requests per second")
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(load_name(points))

    told = f"Strong: requests within {words}, and their share of all. Pale: all completed ones."
    return Panel("Goodput", told, draw)
