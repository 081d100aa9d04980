"""Figures of heatmaps: images x methods, or variants x layers, and single maps.

Everything is placed by hand on one canvas measured in pixels, so that a map's pixel covers a whole number of
the picture's: a checkerboard stays a checkerboard.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
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

from ..errors import InvalidParameter
from ..files import replace_file

Map = NDArray[Any]

INK, FAINT, FRAME = "#1b1b1f", "#6b6b76", "#c9c9d2"
_DIVERGING, _SEQUENTIAL = "RdBu_r", "magma"
_PERCENTILE = 99.0  # of |map|: where the colors end, so that one outlier does not turn a map pale

# Lengths in inches; a cell's width in pixels sets the resolution.
_CELL, _GAP, _MARGIN, _BAR = 1.5, 0.1, 0.16, 0.09
_LEAST_PIXELS = 220
_NAME = 1.15  # of a row
_TITLE, _LABEL, _SMALL = 10.5, 8.5, 7.0  # font sizes in points
_LEADING = 1.28  # from line to line, in font sizes


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photo (H, W, 3) uint8 as the model saw it, what it was recognized as, and where it is from."""

    pixels: NDArray[np.uint8]
    caption: str = ""
    name: str = ""


def grid(
    cells: Sequence[Sequence[Map | None]],
    columns: Sequence[str],
    rows: Sequence[str] = (),
    photos: Sequence[CaptionedPhoto] = (),
    title: str = "",
    overlay: bool = False,
    scale: Literal["map", "figure"] = "map",
) -> Figure:
    """Draw maps as a table of cells, photos in the first column, and say what their colors mean.

    Colors are diverging and centered on 0 if some map has negative values. Long titles are wrapped.

    Args:
        cells: for each row, one map (h, w) per column, enlarged to the photo's size without smoothing, or None.
        columns, rows, title: the titles; rows may have none.
        photos: one per row, or one for the whole figure; all of one size.
        overlay: lay the maps over the gray photo.
        scale: whether colors end at each map's own 99th percentile of |value|, or at that of all maps.

    Raises:
        InvalidParameter: ragged rows, titles or photos that do not fit the cells, no map at all.
    """
    _require_table(cells, columns, rows, photos)
    maps = [cell for row in cells for cell in row if cell is not None]
    signed = has_negative(maps)
    limit = _limit(np.concatenate([values.ravel() for values in maps])) if scale == "figure" else None
    size = photos[0].pixels.shape[:2] if photos else max((values.shape for values in maps), key=np.prod)
    across = [wrapped(text, _CELL, _LABEL) for text in columns]
    sheet = _Sheet(size, across, [wrapped(text, _NAME, _LABEL) for text in rows], photos, len(cells), title)
    for r, row in enumerate(cells):
        behind = photos[min(r, len(photos) - 1)].pixels if overlay and photos else None
        for c, values in enumerate(row):
            sheet.draw_cell(r, c, None if values is None else _drawn(scaled(values, limit), behind, signed))
    sheet.draw_photos()
    sheet.draw_titles()
    sheet.draw_legend(signed, "all maps are scaled to their common" if limit else "each map is scaled to its own")
    return sheet.figure


def write_figure(figure: Figure, path: Path, most: float = math.inf) -> None:
    """Write a figure as .png or .svg, in one move; the SVG keeps text as text and pixels as pixels.

    A .png of more than ``most`` bytes is written with fewer colors, down to 32.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    # No date and no random ids: the same maps give the same file.
    metadata = {"Date": None} if kind == "svg" else {"Software": "pellucid"}
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pellucid", "image.composite_image": False}
    buffer = io.BytesIO()
    with rc_context(style):
        figure.savefig(buffer, format=kind, dpi=figure.dpi, metadata=metadata)
    content = buffer.getvalue()
    for colors in (256, 128, 64, 32):
        if len(content) > most:
            content = _reduced(content, colors)
    replace_file(path, content)


def write_map(values: Map, path: Path) -> None:
    """Write one map (H, W) as a .png of its own size, one pixel for each value.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    replace_file(path, encoded(Image.fromarray(colored(scaled(values), has_negative([values]))), "png"))


def encoded(picture: Image.Image, kind: str, **settings: int | bool) -> bytes:
    """The bytes of a file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def _reduced(png: bytes, colors: int) -> bytes:
    """A picture with fewer colors: rare ones stay apart (what is for and against the class), white stays white."""
    whole = Image.open(io.BytesIO(png)).convert("RGB")
    # Not the default, median cut, which splits colors by how many pixels have them and merges dark red and blue.
    few = whole.quantize(colors, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(few.getpalette()).reshape(-1, 3)
    palette[np.asarray(few)[0, 0]] = whole.getpixel((0, 0))
    few.putpalette(palette.ravel().tolist())
    return encoded(few, "png", optimize=True)


# From values to colors.


def has_negative(maps: Iterable[Map]) -> bool:
    """Whether some value is negative, so that colors have to be diverging."""
    return any(bool((values < 0).any()) for values in maps)


def scaled(values: Map, limit: float | None = None) -> Map:
    """Divide by ``limit``, or by the 99th percentile of |values|, and clip to [-1, 1]; 0 stays 0."""
    return np.clip(values / (_limit(values) if limit is None else limit), -1, 1)


def colored(values: Map, signed: bool) -> NDArray[np.uint8]:
    """Color values in [-1, 1] (signed) or [0, 1] as (..., 3) uint8."""
    colors = colormaps[_DIVERGING](values / 2 + 0.5) if signed else colormaps[_SEQUENTIAL](values)
    return _bytes(colors[..., :3] * 255)


def overlaid(values: Map, photo: NDArray[np.uint8], signed: bool) -> NDArray[np.uint8]:
    """Lay colored values (H, W) over the gray photo (H, W, 3): the stronger the value, the less of the photo."""
    gray = photo @ np.array([0.299, 0.587, 0.114])
    # Lighter than it is, for the white middle of the diverging colors; darker for the black end of the others.
    gray = 110 + 0.5 * gray if signed else 0.7 * gray
    share = np.abs(values)[..., None] ** 0.6
    return _bytes(share * colored(values, signed) + (1 - share) * gray[..., None])


def shrunk(pixels: NDArray[Any], times: float) -> NDArray[Any]:
    """A map (H, W) or photo (H, W, 3) with means over squares, ``times`` pixels long, in the place of pixels."""
    if times <= 1:
        return pixels
    height, width = (max(1, round(length / times)) for length in pixels.shape[:2])
    picture = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), pixels.dtype)


def _drawn(shown: Map, behind: NDArray[np.uint8] | None, signed: bool) -> NDArray[np.uint8]:
    """The colors of a scaled map, over the photo ``behind`` it if there is one."""
    if behind is None:
        return colored(shown, signed)
    # As nearest-neighbor up-sampling does.
    down, across = (np.arange(new) * old // new for new, old in zip(behind.shape[:2], shown.shape, strict=True))
    return overlaid(shown[down[:, None], across], behind, signed)


def _bytes(values: Map) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(values).astype(np.uint8)
    return rounded


def _limit(values: Map) -> float:
    magnitude = np.abs(values)
    # Sparse maps may have a percentile of 0.
    return float(np.percentile(magnitude, _PERCENTILE) or magnitude.max() or 1.0)


# Text.


def wrapped(text: str, width: float, points: float, weight: str = "normal") -> str:
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
    return "\n".join(lines)


@lru_cache(maxsize=4096)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width in inches of one line of text."""
    if not text.strip():
        return 0.0
    # TextPath would read a dollar sign as the start of a formula.
    path = TextPath((0, 0), text.replace("$", "S"), size=points, prop=FontProperties(weight=weight))
    return float(path.get_extents().width) / 72


def _height(text: str, points: float) -> float:
    """Height in inches of lines of text."""
    return (text.count("\n") + 1) * points * _LEADING / 72 if text else 0.0


# Where everything goes.


class _Sheet:
    """The canvas of a grid, and where its parts stand: lengths in inches from the upper left corner.

    ``size`` (H, W) is that of a photo in pixels, ``count`` the number of rows; titles are broken into lines, but
    for the figure's.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[CaptionedPhoto],
        count: int,
        title: str,
    ) -> None:
        self.columns, self.rows, self.photos, self.count = columns, rows, photos, count
        times = -(-_LEAST_PIXELS // size[1])
        self.cell = (size[0] * times, size[1] * times)  # height and width, in pixels
        self.dpi = self.cell[1] / _CELL
        names = max((text_width(line, _LABEL) for text in rows for line in text.split("\n")), default=0.0)
        self.left = _MARGIN + (_CELL + 2 * _GAP if photos else 0) + (names + _GAP if names else 0)
        self.width = max(self.left + len(columns) * (_CELL + _GAP) - _GAP, 2 * _CELL + _MARGIN) + _MARGIN
        self.heading = wrapped(title, self.width - 2 * _MARGIN, _TITLE, "bold")
        above = _height(self.heading, _TITLE) + (0.08 if title else 0)
        self.top = _MARGIN + above + max((_height(text, _LABEL) for text in columns), default=0.0) + 0.05
        # A single photo's caption finds its room below it, where the first column is empty.
        captioned = photos if len(photos) == count or count == 1 else ()
        self.pitch = self.cell[0] / self.dpi + _GAP + max(map(_caption_height, captioned), default=0.0)
        self.axes = self._axes()

    def _axes(self) -> Axes:
        """Axes over a whole figure, whose unit is its pixel."""
        legend = 0.06 + _BAR + 0.05 + _height("\n\n" if self.width < 4 else "\n", _SMALL)
        width, height = self.px(self.width), self.px(self.top + self.count * self.pitch + legend + _MARGIN)
        self.figure = Figure((width / self.dpi, height / self.dpi), self.dpi, facecolor="white")
        axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        return axes

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner (x, y) of a cell, in pixels."""
        across = column * (self.cell[1] + self.px(_GAP))
        return self.px(self.left) + across, self.px(self.top) + row * self.px(self.pitch)

    def px(self, inches: float) -> int:
        """Whole pixels of a length."""
        return round(inches * self.dpi)

    # What is drawn there.

    def draw_cell(self, row: int, column: int, picture: NDArray[np.uint8] | None) -> None:
        x, y = self.place(row, column)
        if picture is not None:
            self._draw_picture(x, y, picture)
            return
        height, width = self.cell
        self._frame(x, y, width, height, facecolor="#f3f3f6")
        self._write(x + width / 2, y + height / 2, "no map", _SMALL, FAINT, "center", "center")

    def draw_photos(self) -> None:
        x = self.px(_MARGIN)
        for row, photo in enumerate(self.photos):
            _, y = self.place(row, 0)
            self._draw_picture(x, y, photo.pixels)
            y += self.cell[0] + self.px(0.05)
            caption, name = _caption(photo)
            self._write(x, y, caption, _LABEL, INK, "left", "top")
            self._write(x, y + self.px(_height(caption, _LABEL)), name, _SMALL, FAINT, "left", "top")

    def draw_titles(self) -> None:
        margin = self.px(_MARGIN)
        self._write(margin, margin, self.heading, _TITLE, INK, "left", "top", weight="bold")
        for column, text in enumerate(self.columns):
            x, y = self.place(0, column)
            self._write(x + self.cell[1] / 2, y - self.px(0.05), text, _LABEL, INK, "center", "bottom")
        for row, text in enumerate(self.rows):
            x, y = self.place(row, 0)
            self._write(x - self.px(_GAP), y + self.cell[0] / 2, text, _LABEL, INK, "right", "center")

    def draw_legend(self, signed: bool, whose: str) -> None:
        """A color bar below the maps, what its ends mean, and how maps are scaled."""
        left, y = self.place(self.count, 0)
        x, y = left if self.width >= 4 else self.px(_MARGIN), y + self.px(0.06)
        width, height = self.px(2 * _CELL), self.px(_BAR)
        bar = colored(np.linspace(-1 if signed else 0, 1, 257), signed)[None]
        self.axes.imshow(bar, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none")
        self._frame(x, y, width, height, fill=False)
        ends = ("against the class", "0", "for the class") if signed else ("none", "", "strongest")
        y += height + self.px(0.035)
        for share, text, align in zip((0, 0.5, 1), ends, ("left", "center", "right"), strict=True):
            self._write(x + share * width, y, text, _SMALL, INK, align, "top")
        note = wrapped(f"{whose} 99th percentile of magnitude", 2 * _CELL, _SMALL)
        self._write(x, y + self.px(_height("0", _SMALL)), note, _SMALL, FAINT, "left", "top")

    def _draw_picture(self, x: float, y: float, pixels: NDArray[np.uint8]) -> None:
        height, width = self.cell
        self.axes.imshow(pixels, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none")
        self._frame(x, y, width, height, fill=False)

    def _frame(self, x: float, y: float, width: float, height: float, **fill: Any) -> None:
        self.axes.add_patch(Rectangle((x, y), width, height, edgecolor=FRAME, linewidth=0.5, zorder=3, **fill))

    def _write(
        self, x: float, y: float, text: str, points: float, color: str, align: str, upright: str, **font: Any
    ) -> None:
        """Write lines of text one by one, since matplotlib would move the first of several."""
        lines = text.split("\n")
        above = {"top": 0.0, "center": 0.5, "bottom": 1.0}[upright] * (len(lines) - 1)  # lines above y
        for place, line in enumerate(lines):
            down = self.px((place - above) * points * _LEADING / 72)
            font |= {"fontsize": points, "color": color, "ha": align, "va": upright, "zorder": 4}
            self.axes.text(x, y + down, line, parse_math=False, **font)


def _caption(photo: CaptionedPhoto) -> tuple[str, str]:
    """What a photo was recognized as, and its name, of which two lines are shown."""
    name = wrapped(photo.name, _CELL, _SMALL)
    return wrapped(photo.caption, _CELL, _LABEL), "\n".join(name.split("\n")[:2])


def _caption_height(photo: CaptionedPhoto) -> float:
    caption, name = _caption(photo)
    return _height(caption, _LABEL) + _height(name, _SMALL) + (0.06 if caption or name else 0)


def _require_table(
    cells: Sequence[Sequence[Map | None]],
    columns: Sequence[str],
    rows: Sequence[str],
    photos: Sequence[CaptionedPhoto],
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
