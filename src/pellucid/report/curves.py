"""Charts of lines with their intervals, as SVG that takes its colours and letters from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

COLORS = 8  # that the page's style defines, as --series-1 and so on
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # of the second and third eight lines
GREY = {-1: "dashed", -2: "dotted"}  # lines that are not among the coloured ones
INK, FAINT, RULE = "#b00001", "#b00002", "#b00003"  # stand for the page's colours until the SVG is text
VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--line"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.edgecolor": RULE, "axes.labelcolor": FAINT, "xtick.color": RULE,
    "ytick.color": RULE, "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT, "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": RULE, "grid.linewidth": 0.6, "axes.titlecolor": INK,
    "axes.titlesize": 10, "axes.titlelocation": "left", "text.parse_math": False, "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Means at places ``x`` with their intervals, all (n,); ``color`` counts from 0; greys: ``GREY``."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    color: int


def chart(
    lines: Sequence[Line],
    description: str,
    title: str = "",
    across: str = "",
    up: str = "",
    ticks: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    size: tuple[float, float] = (4.6, 3.0),
) -> str:
    """Draw lines as an SVG element for a page that defines --ink, --faint, --line and --series-1 to 8.

    Args:
        lines: drawn in this order.
        description: what the chart shows, for who cannot see it.
        title, across, up: the title and the axes' labels.
        ticks: names of the places 0, 1, ... across; numbers if empty.
        limits: of the axis up.
        size: width and height in inches.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=size)
        axes = figure.add_axes(_room(size, title, across, up, ticks), xlabel=across, ylabel=up, title=title)
        axes.grid(axis="y")
        axes.tick_params(length=0)
        for line in lines:
            _draw(axes, line)
        if ticks:
            axes.set_xticks(range(len(ticks)), [_cut(name) for name in ticks])
            axes.tick_params("x", rotation=60)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        if limits:
            axes.set_ylim(*limits)
        axes.margins(x=0.02)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), description)


def style_of(color: int) -> tuple[str, str]:
    """The CSS colour of a line, and whether it is solid, dashed or dotted."""
    return ("var(--faint)", GREY[color]) if color in GREY else (f"var(--series-{color % COLORS + 1})", "solid")


def _room(
    size: tuple[float, float], title: str, across: str, up: str, ticks: Sequence[str]
) -> tuple[float, float, float, float]:
    """Where the axes are: left, bottom, width, height as shares. Measured by hand: layout engines draw twice."""
    letters = max((len(_cut(name)) for name in ticks), default=0)
    left = 0.5 + 0.16 * bool(up)
    bottom = 0.2 + 0.058 * letters + 0.18 * bool(across)
    top = 0.08 + 0.22 * bool(title)
    width, height = size
    return left / width, bottom / height, (width - left - 0.08) / width, (height - bottom - top) / height


def _draw(axes: Axes, line: Line) -> None:
    color = FAINT if line.color in GREY else f"#a000{line.color % COLORS + 1:02d}"
    dashes = GREY.get(line.color) or DASHES[line.color // COLORS % len(DASHES)]
    around = np.concatenate([line.x, line.x[::-1]]), np.concatenate([line.low, line.high[::-1]])
    axes.fill(*around, color=color, alpha=0.14, linewidth=0)
    axes.plot(line.x, line.mean, color=color, linestyle=dashes, linewidth=1.6)


def _cut(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _inline(svg: str, description: str) -> str:
    """An SVG file as an element of a page: no prologue, no fixed size, colours by variable, short numbers."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # Styles would reach the page, and names meet those of its other charts.
    body = re.sub(r"<(metadata|defs)>.*?</\1>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r' (id|clip-path)="[^"]*"', "", body)
    body = re.sub(r"<g>\s*</g>|<g/>", "", body)
    body = re.sub(r'\b(d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), body)
    for color, name in VARIABLES.items():
        body = body.replace(color, f"var({name})")
    body = re.sub(r"#a000(\d\d)", lambda found: f"var(--series-{int(found[1])})", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = re.sub(r"\n\s*", " ", body)
    return f'<svg role="img" aria-label="{escape(description)}" {box[0]}>{body}'


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", text)
