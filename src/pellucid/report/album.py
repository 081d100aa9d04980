"""The maps and photos that a run kept, as small pictures inside a page."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidData, PellucidError
from ..findings.wording import joined_some
from .figures import (
    Map,
    Overlay,
    Speaks,
    color_bar,
    colored,
    encoded,
    has_negative,
    meanings,
    overlaid,
    sameness,
    scaled,
    shrunk,
    upsampled,
)
from .pages import ColorKey, Tile, data_uri

LONGEST_SIDE = 256  # pixels of a picture
BUDGET = 6_000_000  # bytes of all pictures: photos beyond are left out
LEVELS = 127  # colors of a map; odd, so that 0 has one of its own
_NAMED = 3  # methods without a sign; the others are counted
MAP_KEY = ["model", "variant", "method", "layer", "image"]
_METHOD = MAP_KEY.index("method")


@dataclass(frozen=True)
class Album:
    """Pictures as data URIs.

    Attributes:
        photos: by image, those shown.
        ratios: the width of each by its height.
        kept: how many images the run has pictures of.
        places: (model, variant, method, layer, image) -> the map's place in ``maps``.
        maps: all maps, each in colors that end at its own 99th percentile of |value|.
        small: for each map, whether it is so small that its pixels are to be seen as squares.
        signed: whether maps have negative values, so that colors are centered on 0.
        notes: for each map, what is said of it if it tells no place from another.
        below_zero: the methods of which some map has negative values.
    """

    photos: Mapping[str, str]
    ratios: Mapping[str, float]
    kept: int
    places: Mapping[tuple[str, ...], int]
    maps: Sequence[str]
    small: Sequence[bool]
    signed: bool
    notes: Sequence[str] = ()
    below_zero: Collection[str] | None = None

    @classmethod
    def of(cls, pictures: pd.DataFrame) -> Album:
        """Draw a run's pictures, whole photos with all their maps, as many as fit into a page.

        Raises:
            InvalidData: a picture cannot be read.
        """
        photo_rows, map_rows = (pictures[pictures["kind"] == kind] for kind in ("photo", "map"))
        seen = {row.image: read_photo(row.data) for row in photo_rows.itertuples()}
        photos = {image: pixels_uri(np.asarray(photo)) for image, photo in seen.items()}
        keys = map_rows[MAP_KEY].itertuples(index=False, name=None)
        values = {key: _known(data) for key, data in zip(keys, map_rows["data"], strict=True)}
        signed = has_negative(values.values())
        uris = {key: map_uri(one, signed) for key, one in values.items()}
        shown = _fitting(photos, uris)
        kept = [key for key in uris if key[-1] in shown]
        return cls(
            {image: photos[image] for image in shown},
            {image: seen[image].width / seen[image].height for image in shown},
            len(photos),
            {key: place for place, key in enumerate(kept)},
            [uris[key] for key in kept],
            [max(values[key].shape) < LONGEST_SIDE // 2 for key in kept],
            signed,
            [sameness(values[key]) for key in kept],
            {key[_METHOD] for key, one in values.items() if has_negative([one])},
        )


def read_map(data: bytes) -> Map:
    """The values (h, w) of a map that a run kept.

    Raises:
        InvalidData: it cannot be read.
    """
    try:
        values: Map = np.load(io.BytesIO(data), allow_pickle=False).astype(float)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidData(f"a map among the run's pictures cannot be read: {error}; run it again") from error
    return values


def read_photo(data: bytes) -> Image.Image:
    """A photo that a run kept, in RGB.

    Raises:
        InvalidData: it cannot be read.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise InvalidData(f"a photo among the run's pictures cannot be read: {error}; run it again") from error


def map_uri(values: Map, signed: bool, side: int = LONGEST_SIDE) -> str:
    """A map (h, w) as a PNG of its own size, or of ``side`` pixels if it is larger."""
    values = scaled(shrunk(values, max(values.shape) / side))
    shares = (values + 1) / 2 if signed else values
    picture = Image.fromarray(np.rint(shares * (LEVELS - 1)).astype(np.uint8), "P")
    picture.putpalette(_palette(signed))
    return data_uri(encoded(picture, "png", optimize=True), "png")


def photo_uri(data: bytes) -> str:
    """A photo as a JPEG of at most 256 pixels."""
    return pixels_uri(np.asarray(read_photo(data)))


def pixels_uri(pixels: NDArray[np.uint8], side: int = LONGEST_SIDE) -> str:
    """Pixels (H, W, 3) as a JPEG of at most ``side`` pixels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return data_uri(encoded(picture, "jpeg", quality=88), "jpeg")


def map_tile(
    values: Map,
    words: str,
    signed: bool,
    photo: NDArray[np.uint8],
    overlay: Overlay | None,
    side: int = LONGEST_SIDE,
) -> Tile:
    """A map for a page, alone or over its photo (H, W, 3)."""
    note = sameness(values)
    words = f"{words}: {note}" if note else words
    if overlay is None:
        return Tile(map_uri(values, signed, side), words, max(values.shape) < side // 2, note=note)
    behind = shrunk(photo, max(photo.shape) / side)
    over = overlaid(scaled(upsampled(values, behind.shape[:2])), behind, signed, overlay)
    return Tile(pixels_uri(over, side), words, note=note)


def color_key(signed: bool, explained: Speaks = "the class", overlay: Overlay | None = None) -> ColorKey:
    """What the colors of a page's maps mean."""
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in color_bar(signed, overlay, 9)[0]]
    return ColorKey(colors, meanings(signed, explained))


def signs(
    methods: Iterable[str], explained: Speaks, below_zero: Collection[str] | None = None
) -> tuple[Speaks, str]:
    """What the ends of a color bar speak for, of maps by methods; and of which of them a sign says nothing.

    ``below_zero`` are the methods of which some map has negative values, where that is known. Of a user's function
    without one nobody knows whether its maps have a sign at all.
    """
    methods = list(methods)
    unknown = [one for one in methods if ".py:" in one and below_zero is not None and one not in below_zero]
    told, note = signs_told({text: has_sign(text) for text in methods if text not in unknown}, explained)
    positive = f"no value of {joined_some(unknown, _NAMED)} is negative" if unknown else ""
    return told, "; ".join(filter(None, (note, positive)))


def signs_told(has_sign: Mapping[str, bool], explained: Speaks) -> tuple[Speaks, str]:
    """As ``signs``, of maps by name, of which it is known; where none has a sign, the ends speak for nothing."""
    without = [name for name, has in has_sign.items() if not has]
    if len(without) == len(has_sign):
        return None, ""
    return explained, f"the sign of {joined_some(without, _NAMED)} says nothing" if without else ""


def has_sign(text: str) -> bool:
    """Whether the signs of a method's maps say something, given as text; of any other name they may."""
    from ..catalog import method  # with torch, which whoever only opens a run does not wait for

    with suppress(PellucidError):
        return ".py:" in text or method(text).has_sign  # a user's file is not run to draw its maps
    return True


def _known(data: bytes) -> Map:
    values: Map = np.nan_to_num(read_map(data).astype(np.float32))
    return values


def _fitting(photos: Mapping[str, str], maps: Mapping[tuple[str, ...], str]) -> list[str]:
    """The first photos that fit into the budget with their maps; at least one."""
    sizes = {image: len(uri) for image, uri in photos.items()}
    for key, uri in maps.items():
        sizes[key[-1]] = sizes.get(key[-1], 0) + len(uri)
    totals = np.cumsum([sizes[image] for image in photos])
    return [image for image, total in zip(photos, totals, strict=True) if total <= BUDGET] or list(photos)[:1]


@lru_cache(maxsize=2)
def _palette(signed: bool) -> bytes:
    return colored(np.linspace(-1 if signed else 0, 1, LEVELS), signed).tobytes()
