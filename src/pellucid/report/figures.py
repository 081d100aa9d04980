"""Figures of heatmaps: images x methods, or variants x layers, and single maps.

Everything is placed by hand on one canvas measured in pixels, so that a map's pixel covers a whole number of
the picture's: a checkerboard stays a checkerboard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidParameter, OutputNotWritable

Map = NDArray[Any]
Scale = Literal["map", "figure"]

DIVERGING, SEQUENTIAL = "RdBu_r", "magma"
PERCENTILE = 99.0  # of |map|: where the colours end, so that one outlier does not turn a map pale

# Lengths in inches; a cell's width in pixels sets the resolution.
CELL, GAP, MARGIN, BAR = 1.5, 0.1, 0.16, 0.09
LEAST_PIXELS = 220
ROW_TITLE_WIDTH = 1.15
TITLE, LABEL, SMALL = 10.5, 8.5, 7.0  # font sizes in points
LEADING = 1.28
INK, FAINT, FRAME = "#1b1b1f", "#6b6b76", "#c9c9d2"


@dataclass(frozen=True)
class Photo:
    """A photo (H, W, 3) uint8 as the model saw it, what it was recognised as, and where it is from."""

    pixels: NDArray[np.uint8]
    caption: str = ""
    name: str = ""


def grid(
    cells: Sequence[Sequence[Map | None]],
    columns: Sequence[str],
    rows: Sequence[str] = (),
    photos: Sequence[Photo] = (),
    title: str = "",
    overlay: bool = False,
    scale: Scale = "map",
    signed: bool | None = None,
) -> Figure:
    """Draw maps as a table of cells, photos in the first column, and say what their colours mean.

    Args:
        cells: for each row, one map (h, w) per column, or None for an empty cell. Maps smaller than the photo
            are enlarged without smoothing.
        columns: the columns' titles; long ones are wrapped.
        rows: the rows' titles; none if empty.
        photos: one per row, or one for the whole figure; all of one size.
        title: of the figure.
        overlay: lay the maps over the grey photo.
        scale: whether colours end at each map's own 99th percentile of |value|, or at that of all maps.
        signed: diverging colours centred on 0; None means that some map has negative values.

    Raises:
        InvalidParameter: ragged rows, titles or photos that do not fit the cells, no map at all.
    """
    _require_table(cells, columns, rows, photos)
    maps = [cell for row in cells for cell in row if cell is not None]
    if signed is None:
        signed = any(bool((values < 0).any()) for values in maps)
    shared = _limit(np.concatenate([values.ravel() for values in maps])) if scale == "figure" else None
    size = photos[0].pixels.shape[:2] if photos else max((values.shape for values in maps), key=np.prod)
    layout = Layout.of(size, columns, rows, photos, len(cells), title)
    figure, axes = layout.canvas()
    for r, row in enumerate(cells):
        behind = photos[min(r, len(photos) - 1)].pixels if overlay and photos else None
        for c, values in enumerate(row):
            _draw_cell(axes, layout, (r, c), values, behind, shared, signed)
    _draw_photos(axes, layout, photos)
    _draw_titles(axes, layout, columns, rows, title)
    _draw_legend(axes, layout, signed, scale)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png or .svg, in one move; the SVG keeps text as text and pixels as pixels.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    # No date and no random ids: the same maps give the same file.
    metadata = {"Date": None} if kind == "svg" else {"Software": "pellucid"}
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pellucid", "image.composite_image": False}
    with rc_context(style), _replaced(path) as draft:
        figure.savefig(draft, format=kind, dpi=figure.dpi, metadata=metadata)


def map_png(values: Map, path: str | Path, signed: bool | None = None) -> None:
    """Write one map (H, W) as a .png of its own size, one pixel for each value.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    if signed is None:
        signed = bool((values < 0).any())
    picture = Image.fromarray(coloured(scaled(values), signed))
    with _replaced(Path(path)) as draft:
        picture.save(draft, format="png")


# From values to colours.


def scaled(values: Map, limit: float | None = None) -> Map:
    """Divide by ``limit``, or by the 99th percentile of |values|, and clip to [-1, 1]; 0 stays 0."""
    return np.clip(values / (_limit(values) if limit is None else limit), -1, 1)


def coloured(values: Map, signed: bool) -> NDArray[np.uint8]:
    """Colour values in [-1, 1] (signed) or [0, 1] as (..., 3) uint8."""
    colours = colormaps[DIVERGING](values / 2 + 0.5) if signed else colormaps[SEQUENTIAL](values)
    return _bytes(colours[..., :3] * 255)


def overlaid(values: Map, photo: NDArray[np.uint8], signed: bool) -> NDArray[np.uint8]:
    """Lay coloured values (H, W) over the grey photo (H, W, 3): the stronger the value, the less of the photo."""
    grey = photo @ np.array([0.299, 0.587, 0.114])
    # Lighter than it is, for the white middle of the diverging colours; darker for the black end of the others.
    grey = 110 + 0.5 * grey if signed else 0.7 * grey
    share = np.abs(values)[..., None] ** 0.6
    return _bytes(share * coloured(values, signed) + (1 - share) * grey[..., None])


def enlarged(values: Map, size: tuple[int, int]) -> Map:
    """Repeat pixels to ``size`` (H, W), as nearest-neighbour up-sampling does."""
    down, across = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    larger: Map = values[down[:, None], across]
    return larger


def _bytes(values: Map) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(values).astype(np.uint8)
    return rounded


def _limit(values: Map) -> float:
    magnitude = np.abs(values)
    # Sparse maps may have a percentile of 0.
    return float(np.percentile(magnitude, PERCENTILE) or magnitude.max() or 1.0)


# Where everything goes.


@dataclass(frozen=True)
class Layout:
    """Places on the canvas, in pixels from its upper left corner."""

    dpi: float
    cell: tuple[int, int]  # height, width
    left: int  # of the first map
    top: int  # of the first row
    row_pitch: int
    width: int
    height: int
    rows: int
    columns: int
    has_photos: bool
    title_lines: tuple[str, ...]

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[Photo],
        count: int,
        title: str,
    ) -> Layout:
        """Lay out cells of photos of ``size`` (H, W)."""
        times = -(-LEAST_PIXELS // size[1])
        cell = (size[0] * times, size[1] * times)
        dpi = cell[1] / CELL
        names = max((text_width(line, LABEL) for text in rows for line in _row_lines(text)), default=0.0)
        left = MARGIN + (CELL + 2 * GAP if photos else 0) + (names + GAP if names else 0)
        width = max(left + len(columns) * (CELL + GAP) - GAP + MARGIN, 2 * CELL + 2 * MARGIN)
        title_lines = tuple(wrapped(title, width - 2 * MARGIN, TITLE, "bold")) if title else ()
        above = max((len(_column_lines(text)) for text in columns), default=0) * _line(LABEL) + 0.05
        top = MARGIN + len(title_lines) * _line(TITLE) + (0.08 if title else 0) + above
        below = max((_caption_height(photo) for photo in photos), default=0.0)
        # A single photo's caption finds its room below it, where the first column is empty.
        pitch = cell[0] / dpi + GAP + (below if len(photos) == count or count == 1 else 0)
        legend = 0.06 + BAR + 2 * _line(SMALL) + 0.05 + (_line(SMALL) if width < 4 else 0)
        height = top + count * pitch + legend + MARGIN
        return cls(
            dpi, cell, round(left * dpi), round(top * dpi), round(pitch * dpi), round(width * dpi),
            round(height * dpi), count, len(columns), bool(photos), title_lines,
        )  # fmt: skip

    def canvas(self) -> tuple[Figure, Axes]:
        """Make the figure, and axes whose unit is its pixel."""
        figure = Figure(figsize=(self.width / self.dpi, self.height / self.dpi), dpi=self.dpi, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        return figure, axes

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner (x, y) of a cell."""
        return self.left + column * (self.cell[1] + self.px(GAP)), self.top + row * self.row_pitch

    def px(self, inches: float) -> int:
        """Whole pixels of a length."""
        return round(inches * self.dpi)


def _column_lines(text: str) -> list[str]:
    return wrapped(text, CELL, LABEL)


def _row_lines(text: str) -> list[str]:
    return wrapped(text, ROW_TITLE_WIDTH, LABEL)


def _caption_lines(photo: Photo) -> list[tuple[str, float, str]]:
    """The lines below a photo: text, size and colour."""
    lines = [(line, LABEL, INK) for line in (wrapped(photo.caption, CELL, LABEL) if photo.caption else [])]
    return lines + [(line, SMALL, FAINT) for line in (wrapped(photo.name, CELL, SMALL)[:2] if photo.name else [])]


def _caption_height(photo: Photo) -> float:
    lines = _caption_lines(photo)
    return sum(_line(size) for _, size, _ in lines) + (0.06 if lines else 0)


def _line(points: float) -> float:
    return points * LEADING / 72


def wrapped(text: str, width: float, points: float, weight: str = "normal") -> list[str]:
    """Break text into lines of at most ``width`` inches: at its own line breaks, then after spaces,
    underscores, dots and brackets, and only where that is not enough inside a word.
    """

    def fits(line: str) -> bool:
        return len(line) < 2 or text_width(line.rstrip(), points, weight) <= width

    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in re.split(r"(?<=[\s_.,(/-])", paragraph):
            if line and not fits(line + piece):
                lines.append(line.rstrip())
                line = ""
            line += piece
            while not fits(line):
                end = next(n for n in range(len(line) - 1, 0, -1) if fits(line[:n]))
                lines.append(line[:end])
                line = line[end:]
        lines.append(line.rstrip())
    return lines


@lru_cache(maxsize=4096)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width in inches of one line of text."""
    if not text.strip():
        return 0.0
    # TextPath would read a dollar sign as the start of a formula.
    path = TextPath((0, 0), text.replace("$", "S"), size=points, prop=FontProperties(weight=weight))
    return float(path.get_extents().width) / 72


# What is drawn there.


def _draw_cell(
    axes: Axes,
    layout: Layout,
    place: tuple[int, int],
    values: Map | None,
    behind: NDArray[np.uint8] | None,
    limit: float | None,
    signed: bool,
) -> None:
    x, y = layout.place(*place)
    if values is None:
        _frame(axes, layout, x, y, "#f3f3f6")
        _write(axes, x + layout.cell[1] / 2, y + layout.cell[0] / 2, "no map", SMALL, FAINT, "center", "center")
        return
    shown = scaled(values, limit)
    if behind is None:
        picture = coloured(shown, signed)
    else:
        picture = overlaid(enlarged(shown, behind.shape[:2]), behind, signed)
    _picture(axes, layout, x, y, picture)


def _draw_photos(axes: Axes, layout: Layout, photos: Sequence[Photo]) -> None:
    x = layout.px(MARGIN)
    for r, photo in enumerate(photos):
        y = layout.place(r, 0)[1]
        _picture(axes, layout, x, y, photo.pixels)
        y += layout.cell[0] + layout.px(0.05)
        for line, size, colour in _caption_lines(photo):
            _write(axes, x, y, line, size, colour, "left", "top")
            y += layout.px(_line(size))


def _draw_titles(axes: Axes, layout: Layout, columns: Sequence[str], rows: Sequence[str], title: str) -> None:
    for index, line in enumerate(layout.title_lines):
        y = layout.px(MARGIN + index * _line(TITLE))
        _write(axes, layout.px(MARGIN), y, line, TITLE, INK, "left", "top", weight="bold")
    for c, text in enumerate(columns):
        lines = _column_lines(text)
        middle = layout.place(0, c)[0] + layout.cell[1] / 2
        for index, line in enumerate(reversed(lines)):
            y = layout.top - layout.px(0.05 + index * _line(LABEL))
            _write(axes, middle, y, line, LABEL, INK, "center", "bottom")
    for r, text in enumerate(rows):
        lines = _row_lines(text)
        first = layout.place(r, 0)[1] + layout.cell[0] / 2 - layout.px((len(lines) - 1) / 2 * _line(LABEL))
        for index, line in enumerate(lines):
            at = first + layout.px(index * _line(LABEL))
            _write(axes, layout.left - layout.px(GAP), at, line, LABEL, INK, "right", "center")


def _draw_legend(axes: Axes, layout: Layout, signed: bool, scale: Scale) -> None:
    """A colour bar below the maps, what its ends mean, and how maps are scaled."""
    wide = layout.width / layout.dpi >= 4
    x = layout.left if wide else layout.px(MARGIN)
    y = layout.top + layout.rows * layout.row_pitch + layout.px(0.06)
    width, height = layout.px(2 * CELL), layout.px(BAR)
    steps = np.linspace(-1, 1, 257) if signed else np.linspace(0, 1, 257)
    axes.imshow(
        coloured(steps, signed)[None], extent=(x, x + width, y + height, y), aspect="auto", interpolation="none"
    )
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=FRAME, linewidth=0.5))
    ends = ("against the class", "0", "for the class") if signed else ("none", "", "strongest")
    below = y + height + layout.px(0.035)
    for share, text, align in zip((0, 0.5, 1), ends, ("left", "center", "right"), strict=True):
        _write(axes, x + share * width, below, text, SMALL, INK, align, "top")
    whose = "each map is scaled to its own" if scale == "map" else "all maps are scaled to their common"
    note = wrapped(f"{whose} 99th percentile of magnitude", 2 * CELL, SMALL)
    for index, line in enumerate(note):
        _write(axes, x, below + layout.px((index + 1) * _line(SMALL)), line, SMALL, FAINT, "left", "top")


def _picture(axes: Axes, layout: Layout, x: float, y: float, pixels: NDArray[np.uint8]) -> None:
    height, width = layout.cell
    axes.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none")
    _frame(axes, layout, x, y)


def _frame(axes: Axes, layout: Layout, x: float, y: float, fill: str | None = None) -> None:
    height, width = layout.cell
    axes.add_patch(
        Rectangle(
            (x, y), width, height, fill=fill is not None, facecolor=fill, edgecolor=FRAME, linewidth=0.5, zorder=3
        )
    )


def _write(
    axes: Axes, x: float, y: float, text: str, points: float, colour: str, align: str, upright: str, **font: Any
) -> None:
    axes.text(x, y, text, fontsize=points, color=colour, ha=align, va=upright, parse_math=False, zorder=4, **font)


def _require_table(
    cells: Sequence[Sequence[Map | None]], columns: Sequence[str], rows: Sequence[str], photos: Sequence[Photo]
) -> None:
    ragged = [len(row) for row in cells if len(row) != len(columns)]
    if ragged:
        raise InvalidParameter(f"a row of {ragged[0]} cells for {len(columns)} columns; give one cell per column")
    if not any(cell is not None for row in cells for cell in row):
        raise InvalidParameter("a figure without any map; give at least one")
    for what, count in (("row titles", len(rows)), ("photos", len(photos) if len(photos) != 1 else 0)):
        if count not in (0, len(cells)):
            raise InvalidParameter(f"{count} {what} for {len(cells)} rows; give one per row or none")
    sizes = {photo.pixels.shape[:2] for photo in photos}
    if len(sizes) > 1:
        raise InvalidParameter(f"photos of sizes {sorted(sizes)}; a figure takes one size")


class _replaced:  # noqa: N801 - used as a statement
    """A draft beside ``path`` that takes its place if all went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.draft

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        try:
            if error is None:
                os.replace(self.draft, self.path)
                return
        except OSError as failed:
            error = failed
        self.draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputNotWritable(
                f"cannot write {self.path}: {error.strerror}; choose a folder you may write to"
            ) from error
