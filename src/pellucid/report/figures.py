"""Figures of heatmaps: images x methods, or variants x layers, and single maps.

Everything is placed by hand on one canvas measured in pixels, so that a map's pixel covers a whole number of
the picture's: a checkerboard stays a checkerboard.
"""

from __future__ import annotations

import io
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import InvalidParameter
from ..files import replace_file
from .pages import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Map = NDArray[Any]

INK, FAINT, FRAME = "#1b1b1f", "#6b6b76", "#c9c9d2"
_DIVERGING, _SEQUENTIAL = "RdBu_r", "magma"
_FOR, _AGAINST, _STRONG = (178, 24, 43), (33, 102, 172), (230, 97, 0)  # of overlays: one hue for each meaning
_HALF = 0.5  # of the strongest: what contours enclose
_ROUNDING = 1e-6  # of the largest magnitude: how far values that are one may be apart, as where they were enlarged
_PERCENTILE = 99.0  # of |map|: where the colors end, so that one outlier does not turn a map pale

# Lengths in inches; a cell's width in pixels sets the resolution.
_CELL, _GAP, _MARGIN, _BAR = 1.5, 0.1, 0.16, 0.09
_LEGEND = 2 * _CELL  # the width of its color bar
_LEAST_PIXELS = 220
_NAME = 1.15  # of a row
_TITLE, _LABEL, _SMALL = 10.5, 8.5, 7.0  # font sizes in points
_LEADING = 1.28  # from line to line, in font sizes
_WIDEST = 4000  # pixels of a figure
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LINE_ENDS = re.compile("[\n\r\x1c-\x1e\x85\u2029]")  # within a line Pillow refuses to draw them
_LONGEST_LINE = 1000  # characters, which no width here holds

Speaks = str | tuple[str, str] | None
"""What positive values speak for; of a difference, and what negative ones do; None where a sign says nothing."""


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photo (H, W, 3) uint8 as the model saw it, what it was recognized as, and where it is from."""

    pixels: NDArray[np.uint8]
    caption: str = ""
    name: str = ""


@dataclass(frozen=True)
class Overlay:
    """How a map lies over the gray photo: the stronger a value, the less of the photo is seen.

    ``alpha`` in [0, 1] is how much the strongest value hides; ``contours`` encloses what is half as strong.
    """

    alpha: float = 0.6
    contours: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InvalidParameter(f"alpha={self.alpha}: give a number from 0, the photo alone, to 1")


def grid(
    cells: Sequence[Sequence[Map | None]],
    columns: Sequence[str],
    rows: Sequence[str] = (),
    photos: Sequence[CaptionedPhoto] = (),
    title: str = "",
    overlay: bool | Overlay = False,
    scale: Literal["map", "figure"] = "map",
    explained: Speaks = "the class",
    clip: tuple[float, float] | None = None,
    note: str = "",
    signed: bool | None = None,
) -> Drawing:
    """Draw maps as a table of cells, photos in the first column, and say what their colors mean.

    Colors are diverging and centered on 0 if maps are ``signed``. Long titles are wrapped.

    Args:
        cells: for each row, one map (h, w) per column, enlarged to the photo's size without smoothing, or None.
        columns, rows, title: the titles; rows may have none.
        photos: one per row, or one for the whole figure; all of one size.
        overlay: lay the maps over the gray photo; True is ``Overlay()``.
        scale: whether colors end at each map's own 99th percentile of |value|, or at that of all maps.
        explained: what positive values speak for, as the legend names it; of a difference also what negative
            ones speak for; None where a sign says nothing.
        clip: the percentiles at which the maps were clipped, for the legend.
        note: what else the legend says.
        signed: whether values may be negative; None asks these maps. Figures that stand together say it, so that
            one method has one scale in all of them.

    Raises:
        InvalidParameter: ragged rows, titles or photos that do not fit the cells, no map at all.
    """
    _require_table(cells, columns, rows, photos)
    maps = [cell for row in cells for cell in row if cell is not None]
    signed = has_negative(maps) if signed is None else signed
    limit = _limit(np.concatenate([values.ravel() for values in maps])) if scale == "figure" else None
    size = photos[0].pixels.shape[:2] if photos else max((values.shape for values in maps), key=np.prod)
    across = [wrapped(text, _CELL, _LABEL) for text in columns]
    over = (Overlay() if overlay else None) if isinstance(overlay, bool) else overlay
    sheet = _Sheet(size, across, [wrapped(text, _NAME, _LABEL) for text in rows], photos, len(cells), title)
    for r, row in enumerate(cells):
        behind = photos[min(r, len(photos) - 1)].pixels if photos else None
        for c, values in enumerate(row):
            if values is None:
                sheet.draw_empty(r, c)
            else:
                sheet.draw_cell(r, c, drawn_map(scaled(values, limit), signed, behind, over), sameness(values))
    sheet.draw_photos()
    sheet.draw_titles()
    sheet.draw_legend(
        signed,
        explained,
        "; ".join(filter(None, (note, scaling_note(clip, limit is not None, over if photos else None)))),
        over if photos else None,
    )
    return sheet.drawing


def scaling_note(
    clip: tuple[float, float] | None = None, shared: bool = False, overlay: Overlay | None = None
) -> str:
    """How maps became colors, and what lines enclose, in one line."""
    enclosed = (
        "lines enclose what is at least half as strong as the strongest; " if overlay and overlay.contours else ""
    )
    which, whose = ("all maps are", "their common") if shared else ("each map is", "its own")
    if clip is None:
        return f"{enclosed}{which} scaled to {whose} 99th percentile of magnitude"
    clipped = f"clipped at percentiles {clip[0]:g} and {clip[1]:g}"
    return f"{enclosed}{which} {clipped}, then scaled to {whose} 99th percentile of the magnitudes that are left"


def write_figure(figure: Figure | Drawing, path: Path, most: float = math.inf) -> None:
    """Write a figure as .png or .svg, in one move; the SVG keeps text as text and pixels as pixels.

    A .png of more than ``most`` bytes is written with fewer colors, down to 32.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    content = figure.file(kind) if isinstance(figure, Drawing) else _saved(figure, kind)
    for colors in (256, 128, 64, 32):
        if len(content) > most:
            content = _reduced(content, colors)
    replace_file(path, content)


def _saved(figure: Figure, kind: str) -> bytes:
    """A chart as a file without date and random ids: the same numbers give the same file."""
    metadata = {"Date": None} if kind == "svg" else {"Software": "pellucid"}
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pellucid", "image.composite_image": False}
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format=kind, dpi=figure.dpi, metadata=metadata)
    return buffer.getvalue()


def write_map(values: Map, path: Path, signed: bool | None = None) -> None:
    """Write one map (H, W) as a .png of its own size, one pixel for each value; ``signed`` as ``grid`` has it.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    signed = has_negative([values]) if signed is None else signed
    replace_file(path, encoded(Image.fromarray(colored(scaled(values), signed)), "png"))


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
    # The upper left pixel is of the canvas, whose white an octree's mean may have tinted.
    palette[np.asarray(few)[0, 0]] = whole.getpixel((0, 0))
    few.putpalette(palette.ravel().tolist())
    return encoded(few, "png", optimize=True)


# From values to colors.


def has_negative(maps: Iterable[Map]) -> bool:
    """Whether some value is negative, so that colors have to be diverging."""
    return any(bool((values < 0).any()) for values in maps)


def sameness(values: Map) -> str:
    """What is said of a map that tells no place from another, in words; empty for all others."""
    least, greatest = float(values.min()), float(values.max())
    if least == greatest == 0:
        return "zero everywhere"
    return "one value" if greatest - least <= _ROUNDING * max(abs(least), abs(greatest)) else ""


def scaled(values: Map, limit: float | None = None) -> Map:
    """Divide by ``limit``, or by the 99th percentile of |values|, and clip to [-1, 1]; 0 stays 0.

    By itself a map of one value says nothing of places, so it gets the color of 0, not that of the strongest.
    """
    if limit is None and sameness(values):
        return np.zeros(values.shape)
    return np.clip(values / (_limit(values) if limit is None else limit), -1, 1)


def colored(values: Map, signed: bool) -> NDArray[np.uint8]:
    """Color values in [-1, 1] (signed) or [0, 1] as (..., 3) uint8."""
    colors = colormaps[_DIVERGING](values / 2 + 0.5) if signed else colormaps[_SEQUENTIAL](values)
    return _bytes(colors[..., :3] * 255)


def overlaid(
    values: Map, photo: NDArray[np.uint8], signed: bool, overlay: Overlay = Overlay()
) -> NDArray[np.uint8]:
    """Lay values (H, W) in [-1, 1] over the gray photo (H, W, 3) in one hue for each sign.

    How much of the photo is hidden grows in proportion to |value|: where signs change the photo alone is seen.
    """
    # The photo is gray beneath, so that all color is the map's.
    gray = np.repeat((photo @ np.array([0.299, 0.587, 0.114]))[..., None], 3, -1)
    hues = np.where(values[..., None] < 0, _AGAINST, _FOR if signed else _STRONG)
    share = overlay.alpha * np.abs(values)[..., None]
    if overlay.contours:
        share = np.where(_outline(np.abs(values) >= _HALF)[..., None], 1.0, share)
    return _bytes(share * hues + (1 - share) * gray)


def _outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rim of a region (H, W), two pixels wide, inside it; the picture's border is none."""
    # By repeating its edge the picture's border counts as inside.
    kept = np.pad(region, 2, mode="edge")
    height, width = region.shape
    moved = [kept[2 + down : 2 + down + height, 2 + across : 2 + across + width] for down, across in _NEAR]
    rim: NDArray[np.bool_] = region & ~np.logical_and.reduce(moved)
    return rim


_NEAR = [(down, across) for down in range(-2, 3) for across in range(-2, 3) if abs(down) + abs(across) == 2]


def shrunk(pixels: NDArray[Any], times: float) -> NDArray[Any]:
    """A map (H, W) or photo (H, W, 3) with means over squares, ``times`` pixels long, in the place of pixels."""
    if times <= 1:
        return pixels
    height, width = (max(1, round(length / times)) for length in pixels.shape[:2])
    picture = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), pixels.dtype)


def drawn_map(
    shown: Map, signed: bool, behind: NDArray[np.uint8] | None = None, overlay: Overlay | None = None
) -> NDArray[np.uint8]:
    """The colors of a scaled map, over the photo ``behind`` it if an overlay is asked for."""
    if behind is None or overlay is None:
        return colored(shown, signed)
    return overlaid(upsampled(shown, behind.shape[:2]), behind, signed, overlay)


def upsampled(values: Map, size: tuple[int, ...]) -> Map:
    """A map (h, w) of another size, as nearest-neighbor up-sampling makes it."""
    # This is nearest as torch has it: row floor(i h / H), in whole numbers.
    down, across = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    larger: Map = values[down[:, None], across]
    return larger


def color_bar(signed: bool, overlay: Overlay | None = None, count: int = 257) -> NDArray[np.uint8]:
    """All colors of maps from left to right, (1, count, 3); of an overlay on gray."""
    bar = np.linspace(-1 if signed else 0, 1, count)[None]
    # Contours lie where a value is half of the strongest: a bar of values has no such rim.
    return drawn_map(bar, signed, np.full((1, count, 3), 160, np.uint8), overlay and Overlay(overlay.alpha))


def meanings(signed: bool, explained: Speaks = "the class") -> tuple[str, str, str]:
    """What the colors mean at the left, in the middle and at the right."""
    if not signed:
        return "none", "", "strongest"
    if explained is None:
        return "negative", "0", "positive"
    if isinstance(explained, str):
        return f"against {explained}", "0", f"for {explained}"
    one, other = explained
    return f"for {other}", "0", f"for {one}"


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
        if len(line) > _LONGEST_LINE:
            return False
        return len(line) < 2 or text_width(line.rstrip(), points, weight) <= width

    def overflows(line: str, end: int) -> bool:
        return not fits(line[:end])

    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in re.split(r"(?<=[\s_.,(/-])", paragraph):
            if line and not fits(line + piece):
                lines.append(line.rstrip())
                line = ""
            line += piece
            while not fits(line):
                ends = range(1, min(len(line), _LONGEST_LINE + 1))
                # A longer beginning is never narrower, so the first that does not fit is found by bisection.
                end = max(1, bisect_left(ends, True, key=partial(overflows, line)))
                lines.append(line[:end])
                line = line[end:]
        lines.append(line.rstrip())
    return "\n".join(lines)


@lru_cache(maxsize=65536)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width in inches of one line of text."""
    return float(_font(100, weight).getlength(_LINE_ENDS.sub("\ufffd", text))) * points / 100 / 72


@lru_cache(maxsize=64)
def _font(size: float, weight: str) -> ImageFont.FreeTypeFont:
    """The one font of all figures, which comes with matplotlib, in pixels."""
    name = "DejaVuSans-Bold.ttf" if weight == "bold" else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def _height(text: str, points: float) -> float:
    """Height in inches of lines of text."""
    return (text.count("\n") + 1) * points * _LEADING / 72 if text else 0.0


# What is drawn.


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    size: float  # in pixels
    color: str
    anchor: str  # Pillow's: across l, m or r; upright a, m or d
    weight: str = "normal"


@dataclass(repr=False)
class Drawing:
    """Pictures, frames and lines of text on a white canvas measured in pixels, as a .png or .svg file."""

    width: int
    height: int
    pictures: list[tuple[int, int, int, int, NDArray[np.uint8]]] = field(default_factory=list)
    frames: list[tuple[int, int, int, int, str]] = field(default_factory=list)  # x, y, width, height, filling
    texts: list[_Text] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Drawing of {self.width} x {self.height} pixels"

    def file(self, kind: str) -> bytes:
        """The content of a file, the same for the same drawing."""
        return self._repr_svg_().encode(errors="replace") if kind == "svg" else self._repr_png_()

    def save(self, path: str | Path) -> None:
        """Write a .png or .svg file, as the path's ending says.

        Raises:
            InvalidParameter: another ending.
            OutputNotWritable: the file cannot be written.
        """
        place = Path(path).expanduser()
        if place.suffix not in (".png", ".svg"):
            raise InvalidParameter(f"{place}: give a file ending in .png or .svg")
        write_figure(self, place)

    def _repr_png_(self) -> bytes:
        canvas = Image.new("RGB", (self.width, self.height), "white")
        pen = ImageDraw.Draw(canvas)
        for x, y, width, height, pixels in self.pictures:
            canvas.paste(_resized(pixels, width, height), (x, y))
        for x, y, width, height, filling in self.frames:
            pen.rectangle((x, y, x + width - 1, y + height - 1), filling or None, FRAME)
        for one in self.texts:
            text = _LINE_ENDS.sub("\ufffd", one.text)
            pen.text((one.x, one.y), text, one.color, _font(one.size, one.weight), one.anchor)
        return encoded(canvas, "png", compress_level=1)

    def _repr_svg_(self) -> str:
        size = f'width="{self.width}" height="{self.height}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width} {self.height}" '
            'font-family="DejaVu Sans, Verdana, sans-serif">',
            f'<rect {size} fill="white"/>',
            *(_svg_picture(*picture) for picture in self.pictures),
            *(_svg_frame(*frame) for frame in self.frames),
            *map(_svg_text, self.texts),
        ]
        return "\n".join([*parts, "</svg>\n"])


def _resized(pixels: NDArray[np.uint8], width: int, height: int) -> Image.Image:
    """Enlarged without smoothing; made smaller by means over what falls into a pixel."""
    smaller = pixels.shape[0] > height or pixels.shape[1] > width
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX if smaller else 0)


def _svg_picture(x: int, y: int, width: int, height: int, pixels: NDArray[np.uint8]) -> str:
    uri = data_uri(encoded(Image.fromarray(pixels), "png"), "png")
    place = f'x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {place} style="image-rendering: pixelated" href="{uri}"/>'


def _svg_frame(x: int, y: int, width: int, height: int, filling: str) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {place} fill="{filling or "none"}" stroke="{FRAME}"/>'


def _svg_text(one: _Text) -> str:
    ascent, descent = _font(one.size, one.weight).getmetrics()
    down = {"a": ascent, "m": (ascent - descent) / 2, "d": -descent}[one.anchor[1]]
    anchor = {"l": "start", "m": "middle", "r": "end"}[one.anchor[0]]
    style = f'font-size="{one.size:.2f}" font-weight="{one.weight}" fill="{one.color}" text-anchor="{anchor}"'
    text = escape(_NOT_IN_XML.sub("\ufffd", one.text))
    return f'<text x="{one.x:.1f}" y="{one.y + down:.1f}" {style}>{text}</text>'


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
        names = max((text_width(line, _LABEL) for text in rows for line in text.split("\n")), default=0.0)
        self.left = _MARGIN + (_CELL + 2 * _GAP if photos else 0) + (names + _GAP if names else 0)
        self.width = max(self.left + len(columns) * (_CELL + _GAP) - _GAP, _LEGEND + _MARGIN) + _MARGIN
        times = -(-_LEAST_PIXELS // size[1])
        self.dpi = min(size[1] * times / _CELL, _WIDEST / self.width)
        self.cell = (max(1, round(size[0] / size[1] * self.dpi * _CELL)), round(self.dpi * _CELL))  # in pixels
        self.heading = wrapped(title, self.width - 2 * _MARGIN, _TITLE, "bold")
        above = _height(self.heading, _TITLE) + (0.08 if title else 0)
        self.top = _MARGIN + above + max((_height(text, _LABEL) for text in columns), default=0.0) + 0.05
        # A single photo's caption finds its room below it, where the first column is empty.
        captioned = photos if len(photos) == count or count == 1 else ()
        self.pitch = self.cell[0] / self.dpi + _GAP + max(map(_caption_height, captioned), default=0.0)
        legend = 0.06 + _BAR + 0.05 + 3 * _height(" ", _SMALL)
        self.drawing = Drawing(self.px(self.width), self.px(self.top + self.count * self.pitch + legend + _MARGIN))

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner (x, y) of a cell, in pixels."""
        across = column * (self.cell[1] + self.px(_GAP))
        return self.px(self.left) + across, self.px(self.top) + row * self.px(self.pitch)

    def px(self, inches: float) -> int:
        """Whole pixels of a length."""
        return round(inches * self.dpi)

    # What is drawn there.

    def draw_cell(self, row: int, column: int, picture: NDArray[np.uint8], words: str = "") -> None:
        """A map, and words on it if there are any."""
        x, y = self.place(row, column)
        self._draw_picture(x, y, picture)
        if words:
            height, width = self.px(_height(words, _SMALL)), self.px(text_width(words, _SMALL) + _GAP)
            x, y = x + (self.cell[1] - width) // 2, y + (self.cell[0] - height) // 2
            self._draw_label(x, y, width, height, words, "white")

    def draw_empty(self, row: int, column: int) -> None:
        """A cell without a map."""
        height, width = self.cell
        self._draw_label(*self.place(row, column), width, height, "no map", "#f3f3f6")

    def _draw_label(self, x: int, y: int, width: int, height: int, words: str, filling: str) -> None:
        self.drawing.frames.append((x, y, width, height, filling))
        self._write(x + width / 2, y + height / 2, words, _SMALL, FAINT, "mm")

    def draw_photos(self) -> None:
        x = self.px(_MARGIN)
        for row, photo in enumerate(self.photos):
            _, y = self.place(row, 0)
            self._draw_picture(x, y, photo.pixels)
            y += self.cell[0] + self.px(0.05)
            caption, name = _caption(photo)
            self._write(x, y, caption, _LABEL, INK, "la")
            self._write(x, y + self.px(_height(caption, _LABEL)), name, _SMALL, FAINT, "la")

    def draw_titles(self) -> None:
        margin = self.px(_MARGIN)
        self._write(margin, margin, self.heading, _TITLE, INK, "la", "bold")
        for column, text in enumerate(self.columns):
            x, y = self.place(0, column)
            self._write(x + self.cell[1] / 2, y - self.px(0.05), text, _LABEL, INK, "md")
        for row, text in enumerate(self.rows):
            x, y = self.place(row, 0)
            self._write(x - self.px(_GAP), y + self.cell[0] / 2, text, _LABEL, INK, "rm")

    def draw_legend(self, signed: bool, explained: Speaks, note: str, overlay: Overlay | None) -> None:
        """A color bar below the maps, what its ends mean, and how maps are scaled."""
        left, y = self.place(self.count, 0)
        width, height = self.px(_LEGEND), max(self.px(_BAR), 1)
        # It stands below the maps where that leaves it room, else it begins at the figure's left end.
        x = left if left + width + self.px(_MARGIN) <= self.drawing.width else self.px(_MARGIN)
        y += self.px(0.06)
        self.drawing.pictures.append((x, y, width, height, color_bar(signed, overlay)))
        self.drawing.frames.append((x, y, width, height, ""))
        ends = meanings(signed, explained)
        if max(text_width(end, _SMALL) for end in ends) > 0.9 * _CELL:  # a name too long to stand beside the other
            of = explained if isinstance(explained, str) else " rather than ".join(explained or ())
            ends, note = ("against", "0", "for") if signed else ends, f"for or against {of}; {note}"
        y += height + self.px(0.035)
        for share, text, align in zip((0, 0.5, 1), ends, "lmr", strict=True):
            self._write(x + share * width, y, text, _SMALL, INK, f"{align}a")
        room = self.width - x / self.dpi - _MARGIN
        self._write(x, y + self.px(_height("0", _SMALL)), wrapped(note, room, _SMALL), _SMALL, FAINT, "la")

    def _draw_picture(self, x: int, y: int, pixels: NDArray[np.uint8]) -> None:
        height, width = self.cell
        self.drawing.pictures.append((x, y, width, height, pixels))
        self.drawing.frames.append((x, y, width, height, ""))

    def _write(
        self, x: float, y: float, text: str, points: float, color: str, anchor: str, weight: str = "normal"
    ) -> None:
        """Write lines of text one by one; ``anchor``: Pillow's."""
        lines = text.split("\n")
        above = {"a": 0.0, "m": 0.5, "d": 1.0}[anchor[1]] * (len(lines) - 1)  # lines above y
        for place, line in enumerate(lines):
            down = self.px((place - above) * points * _LEADING / 72)
            size = points * self.dpi / 72
            if line:
                self.drawing.texts.append(_Text(x, y + down, line, size, color, anchor, weight))


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
