"""Charts and grids of maps on paper: figures that can be read in print, on a phone and by the colour-blind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from ..files import replace_file
from ..findings.statistics import Numbers
from ..report import figures
from .exhibits import Box, Line, Maps, Panel

# The colours of the benchmark page's lines on white; told apart by marker too, for print without colours.
COLORS = ("#0067b0", "#c8500a", "#00805c", "#8b3fa0", "#a87400", "#1597b8", "#b8357a", "#6c5033")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # of the second and third eight lines
FLOORS = {"random": "dashed", "edges": "dotted"}  # methods that know nothing of the network, grey
INK, FAINT, FRAME = figures.INK, figures.FAINT, figures.FRAME
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.edgecolor": FRAME, "axes.labelcolor": FAINT, "xtick.color": FRAME, "ytick.color": FRAME,
    "xtick.labelcolor": FAINT, "ytick.labelcolor": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": "#e2e2ea", "grid.linewidth": 0.6, "axes.titlecolor": INK, "axes.titlesize": 10,
    "axes.titlelocation": "left", "text.parse_math": False, "axes.axisbelow": True, "legend.frameon": False,
    "legend.labelcolor": INK, "legend.fontsize": 8.5, "lines.markersize": 4, "lines.linewidth": 1.6,
}  # fmt: skip

# Lengths in inches.
WIDTH, BESIDE = 7.4, 2  # of a figure; panels side by side
HIGH, BOX, NAME = 2.6, 0.27, 1.7  # of a chart, of a box, of a name on the axis
DPI = 150
MARKED = 20  # points of a line that have a marker, about
SHORT = 4  # letters of names that need not be turned

LARGEST, LARGEST_VECTOR = 300_000, 150_000  # bytes of a .png, of an .svg
MAP_PIXELS = 450_000  # of all maps of a grid: noise that size still fits


def charts(panels: Sequence[Panel], across: str = "", alike: bool = False) -> Figure:
    """Draw panels of lines or of boxes, a legend below them.

    ``across`` is what runs along the axis; ``alike`` gives all panels one scale.
    """
    columns = min(BESIDE, len(panels))
    rows = -(-len(panels) // columns)
    styles = _styles(panels)
    high = max((HIGH, *(0.9 + BOX * len(panel.boxes) for panel in panels if panel.boxes)))
    with rc_context(STYLE):
        figure = Figure(dpi=DPI, facecolor="white", layout="constrained")
        legend = _legend(figure, styles) if panels[0].lines else 0.0
        figure.set_size_inches(WIDTH, rows * high + legend)
        grid: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            if len(panels) > 1:
                axes.set_title("\n".join(figures.wrapped(panel.title, WIDTH / columns - 0.8, 10)))
            lowest = place + columns >= len(panels)
            (_draw_lines if panel.lines else _draw_boxes)(axes, panel, styles, across if lowest else "")
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if alike:
            _scale_alike(grid[: len(panels)], "y" if panels[0].lines else "x")
        figure.draw_without_rendering()  # places everything, under this style
        figure.set_layout_engine("none")
    return figure


def _scale_alike(grid: Sequence[Axes], axis: str) -> None:
    ends = np.array([getattr(axes, f"get_{axis}lim")() for axes in grid])
    for axes in grid:
        getattr(axes, f"set_{axis}lim")(ends[:, 0].min(), ends[:, 1].max())


def grid_of(maps: Maps) -> Figure | None:
    """Draw the maps of a photo; None if the run kept none of them."""
    cells = [cell for row in maps.cells for cell in row if cell is not None]
    if not cells:
        return None
    sizes = [max(cell.shape) for cell in cells]
    times = 1
    while sum((size // times) ** 2 for size in sizes) > MAP_PIXELS:
        times += 1
    shrunk = [[None if cell is None else _shrunk(cell, times) for cell in row] for row in maps.cells]
    photos = [] if maps.photo is None else [figures.Photo(_shrunk_photo(maps.photo, times), name=maps.image)]
    title = maps.image if maps.photo is None else ""
    return figures.grid(shrunk, maps.columns, maps.rows if len(maps.rows) > 1 else (), photos, title)


def save(figure: Figure, folder: Path, name: str, vector: bool = False) -> Path:
    """Write a figure as FOLDER/NAME.png, with as few colours as keep it small; returns the path.

    ``vector``: write NAME.svg beside it, and return that, unless it is large.

    Raises:
        OutputNotWritable: a file cannot be written.
    """
    path = folder / f"{name}.png"
    figures.save(figure, path)
    for colors in (256, 128, 64, 32):
        if path.stat().st_size > LARGEST:
            replace_file(path, _reduced(path, colors))
    drawn = path.with_suffix(".svg")
    if vector:
        figures.save(figure, drawn)
        if drawn.stat().st_size <= LARGEST_VECTOR:
            return drawn
    drawn.unlink(missing_ok=True)
    return path


def _reduced(path: Path, colors: int) -> bytes:
    """A picture with fewer colors: rare ones stay apart (what is for and against the class), white stays white."""
    buffer = io.BytesIO()
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    # Not the default, median cut, which splits colors by how many pixels have them and merges dark red and blue.
    few = whole.quantize(colors, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(few.getpalette()).reshape(-1, 3)
    palette[np.asarray(few)[0, 0]] = whole.getpixel((0, 0))
    few.putpalette(palette.ravel().tolist())
    few.save(buffer, "png", optimize=True)
    return buffer.getvalue()


# Charts.

Styles = dict[str, dict[str, Any]]  # by the name of a line or box


def _styles(panels: Sequence[Panel]) -> Styles:
    """How each name is drawn, the same in all panels; floors take no colour."""
    parts: list[Line | Box] = []
    for panel in panels:
        parts += [*panel.lines, *panel.boxes]
    styles: Styles = {}
    colored = 0
    for part in parts:
        if part.name in styles:
            continue
        if part.floor:
            styles[part.name] = {"color": FAINT, "linestyle": FLOORS[part.floor], "marker": ""}
            continue
        styles[part.name] = {
            "color": COLORS[colored % len(COLORS)],
            "linestyle": DASHES[colored // len(COLORS) % len(DASHES)],
            "marker": MARKERS[colored % len(MARKERS)],
        }
        colored += 1
    return styles


def _legend(figure: Figure, styles: Styles) -> float:
    """Name the lines below the charts; returns the room that takes."""
    widest = max(figures.text_width(name, 8.5) for name in styles) + 0.62
    columns = max(1, min(len(styles), int(WIDTH / widest)))
    handles = [Line2D([], [], **style) for style in styles.values()]
    names = ["\n".join(figures.wrapped(name, WIDTH - 0.8, 8.5)) for name in styles]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6)
    return 0.2 * -(-len(styles) // columns) + 0.1


def _draw_lines(axes: Axes, panel: Panel, styles: Styles, across: str) -> None:
    for line in panel.lines:
        style = styles[line.name]
        axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.14, linewidth=0)
        axes.plot(line.x, line.mean, markevery=max(1, len(line.x) // MARKED), **style)
    if panel.ticks:
        places, names = zip(*panel.ticks, strict=True)
        turned = max(map(len, names)) > SHORT
        axes.set_xticks(places, [_short(name) for name in names])
        axes.tick_params("x", rotation=60 if turned else 0)
        if turned:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(axis="y")
    axes.margins(x=0.03)
    axes.set(xlabel=across, ylabel="\n".join(figures.wrapped(panel.up, HIGH - 0.8, 9)))


def _draw_boxes(axes: Axes, panel: Panel, styles: Styles, across: str) -> None:
    """Boxes that lie, so that their names can be read, the first one on top."""
    for y, box in enumerate(panel.boxes):
        color = styles[box.name]["color"]
        axes.hlines(y, box.low, box.high, color=color, linewidth=1, zorder=0.9)
        axes.vlines([box.low, box.high], y - 0.15, y + 0.15, color=color, linewidth=1)
        length = box.third - box.first
        axes.barh(y, length, 0.56, box.first, facecolor="white", edgecolor=color, linewidth=1)  # hides the whisker
        axes.barh(y, length, 0.56, box.first, facecolor=color, alpha=0.22)
        axes.vlines(box.median, y - 0.28, y + 0.28, color=color, linewidth=2)
    names = ["\n".join(figures.wrapped(box.name, NAME, 8.5)) for box in panel.boxes]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.set(xlabel=panel.up or across)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


# Maps.


def _shrunk(values: Numbers, times: int) -> Numbers:
    """A map with means over squares in the place of its pixels; a small one as it is."""
    if times == 1 or max(values.shape) // times < 28:
        return values
    height, width = (max(1, round(length / times)) for length in values.shape)
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), float)


def _shrunk_photo(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    height, width = (max(1, round(length / times)) for length in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
