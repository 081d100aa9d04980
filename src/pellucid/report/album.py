"""The maps and photos that a run kept, as small pictures inside a page."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import InvalidData
from .figures import Map, coloured, scaled

LARGEST = 256  # pixels of a picture's longer side
BUDGET = 6_000_000  # bytes of all pictures: photos beyond are left out
LEVELS = 127  # colours of a map; odd, so that 0 has one of its own
KEY = ["model", "variant", "method", "layer", "image"]


@dataclass(frozen=True)
class Album:
    """Pictures as data URIs.

    Attributes:
        photos: by image, those shown.
        kept: how many images the run has pictures of.
        places: (model, variant, method, layer, image) -> the map's place in ``maps``.
        maps: all maps, each in colours that end at its own 99th percentile of |value|.
        small: for each map, whether it is so small that its pixels are to be seen as squares.
        signed: whether maps have negative values, so that colours are centred on 0.
    """

    photos: Mapping[str, str]
    kept: int
    places: Mapping[tuple[str, ...], int]
    maps: Sequence[str]
    small: Sequence[bool]
    signed: bool

    @classmethod
    def of(cls, pictures: pd.DataFrame) -> Album:
        """Draw a run's pictures, whole photos with all their maps, as many as fit into a page.

        Raises:
            InvalidData: a picture cannot be read.
        """
        photo_rows, map_rows = (pictures[pictures["kind"] == kind] for kind in ("photo", "map"))
        photos = {row.image: photo_uri(row.data) for row in photo_rows.itertuples()}
        values = {tuple(getattr(row, key) for key in KEY): _values(row.data) for row in map_rows.itertuples()}
        signed = any(bool((one < 0).any()) for one in values.values())
        uris = {key: map_uri(one, signed) for key, one in values.items()}
        shown = _fitting(photos, uris)
        keys = [key for key in uris if key[-1] in shown]
        small = [max(values[key].shape) < LARGEST // 2 for key in keys]
        places = {key: place for place, key in enumerate(keys)}
        return cls(
            {image: photos[image] for image in shown},
            len(photos),
            places,
            [uris[key] for key in keys],
            small,
            signed,
        )


def map_uri(values: Map, signed: bool) -> str:
    """A map (h, w) as a PNG of its own size, or of 256 pixels if it is larger."""
    if max(values.shape) > LARGEST:
        height, width = (max(1, round(length * LARGEST / max(values.shape))) for length in values.shape)
        values = np.asarray(
            Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        )
    shares = (scaled(values) + 1) / 2 if signed else scaled(values)
    picture = Image.fromarray(np.rint(shares * (LEVELS - 1)).astype(np.uint8), "P")
    picture.putpalette(_palette(signed))
    return _uri(picture, "png", optimize=True)


def photo_uri(data: bytes) -> str:
    """A photo as a JPEG of at most 256 pixels."""
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise InvalidData(
            f"a photo among the pictures of the run cannot be read: {error}; run it again"
        ) from error
    picture.thumbnail((LARGEST, LARGEST))
    return _uri(picture, "jpeg", quality=88)


def _values(data: bytes) -> Map:
    try:
        values: Map = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidData(f"a map among the pictures of the run cannot be read: {error}; run it again") from error
    known: Map = np.nan_to_num(values)
    return known


def _fitting(photos: Mapping[str, str], maps: Mapping[tuple[str, ...], str]) -> list[str]:
    """The first photos that fit into the budget with their maps; at least one."""
    sizes = {image: len(uri) for image, uri in photos.items()}
    for key, uri in maps.items():
        sizes[key[-1]] = sizes.get(key[-1], 0) + len(uri)
    totals = np.cumsum([sizes[image] for image in photos])
    return [image for image, total in zip(photos, totals, strict=True) if total <= BUDGET] or list(photos)[:1]


@lru_cache(maxsize=2)
def _palette(signed: bool) -> bytes:
    steps = np.linspace(-1 if signed else 0, 1, LEVELS)
    return coloured(steps, signed).tobytes()


def _uri(picture: Image.Image, kind: str, **settings: int | bool) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"
