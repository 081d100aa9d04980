"""The pictures of a run: a page's, single maps, and figures of images x methods and of variants x layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import replace_file, writable
from ..findings.wording import at_layer
from ..report.album import LONGEST_SIDE, map_tile, pixels_uri, signs
from ..report.figures import Map, grid, upsampled, write_figure, write_map
from ..report.pages import Tile
from .output import UNFINISHED
from .photos import Photo
from .request import Request

MOST_PHOTOS, _MOST_COLUMNS = 6, 7  # of the largest figure
_FEW = 40  # maps of a page whose pictures may be large
_LARGE_SIDE, _FULL_SIDE = 448, 1536  # of these, and of what a click shows of them


@dataclass(frozen=True)
class Card:
    """What a page shows of a photo: itself, its maps by method, layer and variant, and its width by its height."""

    photo: Tile
    maps: dict[tuple[str, str, str], Tile]
    ratio: float

    @classmethod
    def read(cls, folder: Path, key: str) -> Card:
        """A photo's card in a draft folder."""
        told = json.loads((folder / UNFINISHED / f"{key}.card").read_text())
        maps = {(method, layer, variant): Tile(**tile) for method, layer, variant, tile in told["maps"]}
        return cls(Tile(**told["photo"]), maps, told["ratio"])


@dataclass
class Pictures:
    """Where a run's pictures go, how many pages of each figure there are, and about how many maps it has."""

    request: Request
    folder: Path
    drawn: dict[str, int]
    count: int
    kinds: Sequence[str] = ()  # the formats of files beside the page
    below_zero: list[str] = field(default_factory=list)  # methods with maps of negative values, so far

    @property
    def side(self) -> int:
        """The longest side of a page's pictures, in pixels."""
        return _LARGE_SIDE if self.count <= _FEW else LONGEST_SIDE

    @property
    def full_side(self) -> int:
        """The longest side of what a click shows: the fewer pictures, the more of each may be inside the page."""
        few = self.count <= _FEW
        return min(_FULL_SIDE, int(_LARGE_SIDE * math.sqrt(_FEW / max(1, self.count)))) if few else self.side

    def tile(self, values: Map, words: str, picture: NDArray[np.uint8]) -> Tile:
        """A map as a page shows it; and whole, where it is larger than that."""
        signed, overlay = self.request.signed, self.request.overlay
        small = map_tile(values, words, signed, picture, overlay, self.side)
        if self.full_side == self.side or max(values.shape if overlay is None else picture.shape[:2]) <= self.side:
            return small
        # Not one large picture: the screen would average colors, red and blue to violet, and not values.
        return replace(small, full=map_tile(values, words, signed, picture, overlay, self.full_side).uri)

    def write_card(self, photo: Photo) -> None:
        """Write what a page shows of a photo, so that an interrupted run need not draw it again."""
        request, maps = self.request, []
        for (method, layer, variant), values in photo.maps.items():
            words = f"{request.texts[method]} {at_layer(layer)}, {variant}"
            maps.append([method, layer, variant, asdict(self.tile(values, words, photo.picture))])
        seen = Tile(pixels_uri(photo.picture, self.full_side), photo.sample.name)
        with writable(self.folder):
            (self.folder / UNFINISHED).mkdir(exist_ok=True)
        height, width = photo.picture.shape[:2]
        told = {"photo": asdict(seen), "maps": maps, "ratio": width / height}
        replace_file(self.folder / UNFINISHED / f"{photo.key}.card", json.dumps(told).encode())

    def draw(self, photos: Sequence[Photo]) -> None:
        """Draw single maps, images x methods at each layer, and variants x layers of each image and method."""
        request = self.request
        if not self.kinds:
            return
        if "png" in self.kinds:
            self.write_maps(photos)
        places = list(dict.fromkeys((layer, variant) for _, layer, variant in photos[0].maps))
        alone = len(request.methods) == 1 and len(photos) == 1
        if request.layers is None:
            for variant in request.variants:
                self.draw_methods(photos, None, variant)
        elif not (alone and len(places) > 1):
            for layer, variant in places:
                self.draw_methods(photos, layer, variant)
        several_layers = request.layers is not None and len({layer for layer, _ in places}) > 1
        if several_layers or len(request.variants) > 1:
            for photo in photos:
                for name in request.methods:
                    self.draw_layers(photo, name)

    def write_maps(self, photos: Sequence[Photo]) -> None:
        """Write each map as maps/PHOTO/METHOD/LAYER-VARIANT.png, of its photo's size."""
        with writable(self.folder):
            for photo in photos:
                for (method, layer, variant), values in photo.maps.items():
                    folder = self.folder / "maps" / photo.key / method
                    folder.mkdir(parents=True, exist_ok=True)
                    enlarged = upsampled(values, photo.picture.shape[:2])
                    write_map(enlarged, folder / f"{_plain(layer)}-{variant}.png", self.request.signed)

    def draw_methods(self, photos: Sequence[Photo], layer: str | None, variant: str) -> None:
        """Images x methods at one layer; None stands for the layer that each method chose."""
        texts = self.request.texts
        columns = [(name, at) for name, at, of in photos[0].maps if of == variant and layer in (None, at)]
        place = " at their own layers" if layer is None else f" {at_layer(layer)}"
        for some in pages(photos, MOST_PHOTOS):
            for part in pages(columns, _MOST_COLUMNS):
                titles = [f"{texts[name]}\n({at})" if layer is None else texts[name] for name, at in part]
                cells = [[photo.maps[name, at, variant] for name, at in part] for photo in some]
                figure = f"figure-methods-{layer or 'own'}-{variant}"
                methods = list(dict.fromkeys(name for name, _ in part))
                self.save(figure, cells, titles, [], some, f"{place}, {variant}", methods, variant)

    def draw_layers(self, photo: Photo, name: str) -> None:
        """Variants x layers of one image and method."""
        variants = list(self.request.variants)
        layers = list(dict.fromkeys(layer for method, layer, _ in photo.maps if method == name))
        for part in pages(layers, _MOST_COLUMNS):
            cells = [[photo.maps[name, layer, variant] for layer in part] for variant in variants]
            figure = f"figure-layers-{photo.key}-{name}"
            titles = [self.answered(photo, variant) for variant in variants]
            self.save(figure, cells, part, titles, [photo], f", {self.request.texts[name]}", [name])

    @staticmethod
    def answered(photo: Photo, variant: str) -> str:
        """A variant's name, with what it makes of the explained class where that may be something else."""
        of = photo.facts.variants.get(variant)
        return variant if of is None else f"{variant}\n({of.target.name} {of.target})"

    def save(
        self,
        name: str,
        cells: Sequence[Sequence[Map]],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[Photo],
        what: str,
        methods: Sequence[str],
        variant: str = "",
    ) -> None:
        """Draw and write a figure, of one ``variant`` if named, numbered so that names sort as they were drawn."""
        request = self.request
        shown, title = [photo.captioned(variant) for photo in photos], f"{request.model}{what}"
        classes = {photo.facts.target.speaks for photo in photos}
        explained = classes.pop() if len(classes) == 1 else "the photo's class"
        told, note = signs([request.texts[method] for method in methods], explained, self.below_zero)
        note = note if request.signed else ""
        clip, over = request.heatmap["clip"], request.overlay or False
        figure = grid(cells, columns, rows, shown, title, over, "map", told, clip, note, request.signed)
        self.drawn[name] = self.drawn.get(name, 0) + 1
        for suffix in self.kinds:
            write_figure(figure, self.folder / f"{_plain(name)}-{self.drawn[name]:03d}.{suffix}")


def _plain(name: str) -> str:
    """A file's name that leads nowhere else, whatever a module is called, and no other's."""
    return re.sub(r"[%/\\\x00-\x1f]", lambda found: f"%{ord(found[0]):02X}", name)


def pages(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Split evenly into as few parts as can be of at most ``most``: 13 by 7 is 6 and 7, 8 by 7 is 4 and 4."""
    count = -(-len(items) // most)
    bounds = [round(part * len(items) / count) for part in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds)]
