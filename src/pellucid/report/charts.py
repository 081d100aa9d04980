"""Charts of lines and of boxes with their intervals, inside a page that gives colors or as figures in print."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, product
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cbook import contiguous_regions
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.transforms import ScaledTranslation

from ..findings.intervals import Numbers
from .figures import FAINT, FRAME, INK, text_width, wrapped

# In print, which may lack colors, lines are told apart by markers too.
COLORS = ("#0067b0", "#c8500a", "#00805c", "#8b3fa0", "#a87400", "#1597b8", "#b8357a", "#6c5033")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # of the second and third eight lines
FLOOR_DASHES = {"random": "dashed", "edges": "dotted"}  # of methods that know nothing of the network, gray
RULE = "#e2e2ea"
# What a page's style calls these colors, which it may choose otherwise (in the dark).
VARIABLES = {INK: "--ink", FAINT: "--faint", FRAME: "--line", RULE: "--line"}
VARIABLES |= {color: f"--series-{number}" for number, color in enumerate(COLORS, start=1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
    "axes.edgecolor": FRAME,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": FRAME,
    "ytick.color": FRAME,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8.5,
    "lines.markersize": 4,
    "lines.linewidth": 1.6,
}

# Lengths in inches of figures in print.
_WIDTH, _BESIDE = 7.4, 2  # of a figure; panels side by side
_HIGH, _BOX, _NAME = 2.6, 0.27, 1.7  # of a chart, of a box, of a name on the axis
_DOT = 0.035  # radius of a point without neighbors
_DPI = 150
_MARKED = 20  # points of a line that have a marker, about


@dataclass(frozen=True, eq=False)
class Line:
    """Means at places ``x`` with their intervals, all (n,), NaN where there are none.

    ``floor`` is ``"random"`` or ``"edges"`` for methods that know nothing of the network, else empty.
    """

    name: str
    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    floor: str = ""


@dataclass(frozen=True)
class BoxPlot:
    """Quartiles of the images' values, the whiskers' ends, and of how many images."""

    name: str
    low: float
    first: float
    median: float
    third: float
    high: float
    images: int
    floor: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart: lines, or boxes; ``ticks`` names places across, ``up`` says what the values are."""

    title: str
    up: str = ""
    lines: tuple[Line, ...] = ()
    boxes: tuple[BoxPlot, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()

    @property
    def parts(self) -> tuple[Line | BoxPlot, ...]:
        """All lines or boxes."""
        return (*self.lines, *self.boxes)


Look = Mapping[str, Any]  # color, linestyle and marker of a line, as matplotlib takes them


def looks(names: Iterable[tuple[str, str]], markers: Sequence[str] = ("",)) -> dict[str, Look]:
    """How lines or boxes, given as (name, floor), are drawn: floors gray, the others in colors."""
    found: dict[str, Look] = {}
    others = zip(cycle(product(DASHES, COLORS)), cycle(markers), strict=False)
    for name, floor in names:
        if name not in found and floor:
            found[name] = {"color": FAINT, "linestyle": FLOOR_DASHES[floor], "marker": ""}
        elif name not in found:
            (dashes, color), marker = next(others)
            found[name] = {"color": color, "linestyle": dashes, "marker": marker}
    return found


def css_of(look: Look) -> tuple[str, str]:
    """A line's color and border style in the legend of a page."""
    line = look["linestyle"]
    return f"var({VARIABLES[look['color']]})", line if line in FLOOR_DASHES.values() else "solid"


# Inside a page.


def inline_chart(
    panel: Panel,
    looks: Mapping[str, Look],
    description: str,
    across: str = "",
    limits: tuple[float, float] | None = None,
    size: tuple[float, float] = (4.6, 3.0),
) -> Markup:
    """Draw lines as an SVG element for a page that defines --ink, --faint, --line and --series-1 to 8.

    ``description`` says what the chart shows to readers who cannot see it, ``across`` what runs along the axis;
    ``limits`` are those of the axis up, and ``size`` is in inches.
    """
    with rc_context(STYLE):
        figure = Figure(size)
        axes = figure.add_axes(_room(panel, across, size), xlabel=across, ylabel=panel.up, title=panel.title)
        _draw_lines(axes, panel, looks)
        _name_places(axes, panel.ticks, 16, turned=True)
        axes.margins(x=0.02)
        if limits:
            axes.set_ylim(*limits)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(text.getvalue(), description))


def _room(panel: Panel, across: str, size: tuple[float, float]) -> tuple[float, float, float, float]:
    """Where the axes are: left, bottom, width, height as shares. Measured by hand: layout engines draw twice."""
    letters = max((len(_cut(name, 16)) for _, name in panel.ticks), default=0)
    left = 0.5 + 0.16 * bool(panel.up)
    bottom = 0.2 + 0.058 * letters + 0.18 * bool(across)
    top = 0.08 + 0.22 * bool(panel.title)
    width, height = size
    return left / width, bottom / height, (width - left - 0.08) / width, (height - bottom - top) / height


def _inline(svg: str, description: str) -> str:
    """An SVG file as an element of a page: no prologue, no fixed size, colors by variable, short numbers."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # Styles would reach the page, and names meet those of its other charts.
    body = re.sub(r"<(metadata|defs)>.*?</\1>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r' (id|clip-path)="[^"]*"', "", body)
    body = re.sub(r"<g>\s*</g>|<g/>", "", body)
    body = re.sub(r'\b(d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), body)
    for color, name in VARIABLES.items():
        body = body.replace(color, f"var({name})")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = re.sub(r"\n\s*", " ", body)
    return f'<svg role="img" aria-label="{escape(description)}" {box[0]}>{body}'


def _rounded(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", text)


# In print.


def chart_figure(
    panels: Sequence[Panel], looks: Mapping[str, Look], across: str = "", alike: bool = False
) -> Figure:
    """Draw panels of lines or of boxes, a legend below them.

    ``looks`` has each name's, ``across`` is what runs along the axis; ``alike`` gives all panels one scale.
    """
    columns = min(_BESIDE, len(panels))
    rows = -(-len(panels) // columns)
    styles = {part.name: looks[part.name] for panel in panels for part in panel.parts}
    high = max(_HIGH, *(0.9 + _BOX * len(panel.boxes) for panel in panels))
    with rc_context(STYLE):
        figure = Figure(dpi=_DPI, facecolor="white", layout="constrained")
        legend = _legend(figure, styles) if panels[0].lines else 0.0
        figure.set_size_inches(_WIDTH, rows * high + legend)
        grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            if len(panels) > 1:
                axes.set_title(wrapped(panel.title, _WIDTH / columns - 0.8, 10))
            _draw_panel(axes, panel, styles, across if place + columns >= len(panels) else "")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if alike:
            _scale_alike(grid[: len(panels)], "y" if panels[0].lines else "x")
        figure.draw_without_rendering()  # places everything, under this style
        figure.set_layout_engine("none")
    return figure


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Look], across: str) -> None:
    if panel.boxes:
        _draw_boxes(axes, panel.boxes, looks)
        axes.set_xlabel(panel.up or across)
        return
    _draw_lines(axes, panel, looks)
    _name_places(axes, panel.ticks, 18, turned=any(len(name) > 4 for _, name in panel.ticks))
    axes.margins(x=0.03)
    axes.set(xlabel=across, ylabel=wrapped(panel.up, _HIGH - 0.8, 9))


def _scale_alike(grid: Sequence[Axes], axis: str) -> None:
    ends = np.array([getattr(axes, f"get_{axis}lim")() for axes in grid])
    for axes in grid:
        getattr(axes, f"set_{axis}lim")(ends[:, 0].min(), ends[:, 1].max())


def _legend(figure: Figure, looks: Mapping[str, Look]) -> float:
    """Name the lines below the charts; returns the room that takes."""
    widest = max(text_width(name, 8.5) for name in looks) + 0.62
    columns = max(1, min(len(looks), int(_WIDTH / widest)))
    handles = [Line2D([], [], **look) for look in looks.values()]
    names = [wrapped(name, _WIDTH - 0.8, 8.5) for name in looks]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6)
    return 0.2 * -(-len(looks) // columns) + 0.1


# What both draw.


def _draw_lines(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    for line in panel.lines:
        look = looks[line.name]
        # A band stops where there is no interval, rather than leading across.
        for start, end in contiguous_regions(np.isfinite(line.low)):
            x, low, high = (values[start:end] for values in (line.x, line.low, line.high))
            band = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])
            axes.fill(*band, color=look["color"], alpha=0.14, linewidth=0)
        axes.plot(line.x, line.mean, markevery=max(1, len(line.x) // _MARKED), **look)
        _draw_alone(axes, line, look)
    _rule(axes, "y")


def _draw_alone(axes: Axes, line: Line, look: Look) -> None:
    """Mark points without a neighbor, of which a line and its band show nothing."""
    regions = contiguous_regions(np.isfinite(line.mean))
    for place in [start for start, end in regions if end - start == 1]:
        if np.isfinite(line.low[place]):
            axes.vlines(line.x[place], line.low[place], line.high[place], color=look["color"], linewidth=1)
        if not look["marker"]:  # a circle, since markers are defined once for a file, and a page has none of it
            there: Any = axes.transData  # affine on these axes, as a translation wants it
            at = axes.figure.dpi_scale_trans + ScaledTranslation(line.x[place], line.mean[place], there)
            axes.add_artist(Circle((0, 0), _DOT, color=look["color"], linewidth=0, transform=at))


def _rule(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Rules in the place of ticks, of a told size: by that of another style matplotlib would choose others."""
    axes.tick_params(length=0, labelsize=STYLE["font.size"])
    axes.grid(axis=axis)


def _draw_boxes(axes: Axes, boxes: Sequence[BoxPlot], looks: Mapping[str, Look]) -> None:
    """Lay boxes down, so that their names can be read, the first one on top."""
    for y, box in enumerate(boxes):
        color = looks[box.name]["color"]
        axes.hlines(y, box.low, box.high, color=color, linewidth=1, zorder=0.9)
        axes.vlines([box.low, box.high], y - 0.15, y + 0.15, color=color, linewidth=1)
        length = box.third - box.first
        axes.barh(y, length, 0.56, box.first, facecolor="white", edgecolor=color, linewidth=1)  # hides the whisker
        axes.barh(y, length, 0.56, box.first, facecolor=color, alpha=0.22)
        axes.vlines(box.median, y - 0.28, y + 0.28, color=color, linewidth=2)
    axes.set_yticks(range(len(boxes)), [wrapped(box.name, _NAME, 8.5) for box in boxes], color=INK)
    axes.set_ylim(len(boxes) - 0.5, -0.5)
    _rule(axes, "x")


def _name_places(axes: Axes, ticks: Sequence[tuple[float, str]], most: int, turned: bool) -> None:
    """Put names, cut to ``most`` letters, where the axis would have numbers."""
    if not ticks:
        return
    places, names = zip(*ticks, strict=True)
    axes.set_xticks(places, [_cut(name, most) for name in names])
    if turned:
        axes.tick_params("x", rotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
