"""The pictures of a run: single maps, and figures of images x methods and of variants x layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..report.figures import Drawing, Map, grid, write_figure, write_map
from .output import writable
from .photos import Photo
from .request import Request

MOST_PHOTOS, _MOST_COLUMNS = 6, 7  # of the largest figure


@dataclass
class Pictures:
    """Where a run's pictures go, and how many pages of each figure there are."""

    request: Request
    folder: Path
    many: bool  # photos than fit one figure
    drawn: Counter[str] = field(default_factory=Counter)

    def write_map(self, values: Map, photo: str, method: str, name: str) -> None:
        """Write one map as maps/PHOTO/METHOD/NAME.png."""
        folder = self.folder / "maps" / photo / method
        with writable(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_map(values, folder / f"{name}.png")

    def draw(self, photos: Sequence[Photo]) -> None:
        """Draw images x methods at each layer, and variants x layers of each image and method."""
        request = self.request
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

    def draw_methods(self, photos: Sequence[Photo], layer: str | None, variant: str) -> None:
        """Images x methods at one layer; None stands for the layer that each method chose."""
        texts = self.request.texts
        columns = [(name, at) for name, at, of in photos[0].maps if of == variant and layer in (None, at)]
        place = " at their own layers" if layer is None else f" at {layer}"
        figure = f"figure-methods-{layer or 'own'}-{variant}"
        for some in pages(photos, MOST_PHOTOS):
            for part in pages(columns, _MOST_COLUMNS):
                titles = [f"{texts[name]}\n({at})" if layer is None else texts[name] for name, at in part]
                cells = [[photo.maps[name, at, variant] for name, at in part] for photo in some]
                self.drawn[figure] += 1
                # Photos of another size are drawn on their own, and so on a second page even if they are few.
                numbered = self.many or len(columns) > _MOST_COLUMNS or self.drawn[figure] > 1
                page = f"-{self.drawn[figure]}" if numbered else ""
                self.save(figure + page, cells, titles, [], some, f"{place}, {variant}")

    def draw_layers(self, photo: Photo, name: str) -> None:
        """Variants x layers of one image and method."""
        variants = list(self.request.variants)
        layers = list(dict.fromkeys(layer for method, layer, _ in photo.maps if method == name))
        parts = pages(layers, _MOST_COLUMNS)
        for number, part in enumerate(parts, start=1):
            cells = [[photo.maps[name, layer, variant] for layer in part] for variant in variants]
            page = f"-{number}" if len(parts) > 1 else ""
            figure = f"figure-layers-{photo.key}-{name}{page}"
            self.save(figure, cells, part, variants, [photo], f", {self.request.texts[name]}")

    def save(
        self,
        name: str,
        cells: Sequence[Sequence[Map]],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[Photo],
        what: str,
    ) -> None:
        """Draw and write one figure."""
        shown, title = [photo.captioned() for photo in photos], f"{self.request.model}{what}"
        figure = grid(cells, columns, rows, shown, title, overlay=self.request.overlay)
        save_figure(figure, self.folder, name)


def save_figure(figure: Drawing, folder: Path, name: str) -> None:
    """Write a figure as .png and .svg."""
    for suffix in (".png", ".svg"):
        write_figure(figure, folder / f"{name}{suffix}")


def pages(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Split evenly into as few parts as can be of at most ``most``: 13 by 7 is 6 and 7, 8 by 7 is 4 and 4."""
    count = -(-len(items) // most)
    bounds = [round(part * len(items) / count) for part in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds)]
