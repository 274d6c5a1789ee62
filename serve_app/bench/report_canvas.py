"""Panels as PNG, and as SVG whose colours are CSS variables of the page, for light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, GRID, BAD = "#1d2530", "#667184", "#e3e7ed", "#c8322b"
P50, P90, P99 = "#2463b4", "#158a7c", "#c26a12"
LIGHT = "#bcd3ee"
COLOURS = {
    "ink": INK,
    "faint": FAINT,
    "grid": GRID,
    "bad": BAD,
    "p50": P50,
    "p90": P90,
    "p99": P99,
    "light": LIGHT,
}
"""CSS variable -> its colour in the light."""

_STYLE: Any = {
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "font.family": "DejaVu Sans",  # matplotlib's own: the same letters on every machine
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": FAINT,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "neuron-serve",  # the same report twice is the same file
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelsize": 9,
    "ytick.color": FAINT,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
}
_INCHES = (4.6, 3.1)


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    told: str
    """One sentence below it, also for those who do not see it."""
    draw: Callable[[Axes], None]


def png(charts: Sequence[Panel], file: Path) -> None:
    """Writes the panels beside each other, light, 160 dots per inch."""
    with rc_context(_STYLE):
        width, height = _INCHES
        figure = Figure((width * len(charts), height + 0.25), dpi=160, layout="constrained")
        for at, chart in enumerate(charts, 1):
            axes = figure.add_subplot(1, len(charts), at)
            chart.draw(axes)
            axes.set_title(chart.title, pad=22)
        figure.savefig(file, metadata={"Software": None})


def svg(chart: Panel, prefix: str) -> str:
    """An inline <svg>; its ids begin with the prefix, as a page holds several."""
    with rc_context(_STYLE):
        figure = Figure(_INCHES, layout="constrained")
        chart.draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text)
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text).strip()
