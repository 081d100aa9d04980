"""The pictures of a run: single maps, and figures of images x methods and of variants x layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .output import writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..report.figures import Map
    from .photos import Photo
    from .request import Request

T = TypeVar("T")

ROWS, COLUMNS = 6, 7  # of the largest figure


@dataclass
class Pictures:
    """Where a run's pictures go, and how many pages of each figure there are."""

    request: Request
    folder: Path
    many: bool  # photos than fit one figure
    drawn: Counter[str] = field(default_factory=Counter)

    def write_map(self, values: Map, photo: str, method: str, name: str) -> None:
        """Write one map as maps/PHOTO/METHOD/NAME.png."""
        from ..report.figures import write_map

        folder = self.folder / "maps" / photo / method
        with writable(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_map(values, folder / f"{name}.png")

    def draw(self, chunk: Sequence[Photo]) -> None:
        """Draw images x methods at each layer, and variants x layers of each image and method."""
        request = self.request
        places = list(dict.fromkeys((layer, variant) for _, layer, variant in chunk[0].maps))
        alone = len(request.methods) == 1 and len(chunk) == 1
        if request.layers is None:
            for variant in request.variants:
                self.draw_methods(chunk, None, variant)
        elif not (alone and len(places) > 1):
            for layer, variant in places:
                self.draw_methods(chunk, layer, variant)
        several_layers = request.layers is not None and len({layer for layer, _ in places}) > 1
        if several_layers or len(request.variants) > 1:
            for photo in chunk:
                for name in request.methods:
                    self.draw_layers(photo, name)

    def draw_methods(self, chunk: Sequence[Photo], layer: str | None, variant: str) -> None:
        """Images x methods at one layer; None stands for the layer that each method chose."""
        texts = self.request.texts
        columns = [(name, at) for name, at, of in chunk[0].maps if of == variant and layer in (None, at)]
        place = " at their own layers" if layer is None else f" at {layer}"
        figure = f"figure-methods-{layer or 'own'}-{variant}"
        for photos in pages(chunk, ROWS):
            for part in pages(columns, COLUMNS):
                titles = [f"{texts[name]}\n({at})" if layer is None else texts[name] for name, at in part]
                cells = [[photo.maps[name, at, variant] for name, at in part] for photo in photos]
                self.drawn[figure] += 1
                # Photos of another size come in a chunk of their own, and so as a second page of few.
                numbered = self.many or len(columns) > COLUMNS or self.drawn[figure] > 1
                page = f"-{self.drawn[figure]}" if numbered else ""
                title = f"{self.request.model}{place}, {variant}"
                self.save(figure + page, cells, titles, [], photos, title)

    def draw_layers(self, photo: Photo, name: str) -> None:
        """Variants x layers of one image and method."""
        variants = list(self.request.variants)
        layers = list(dict.fromkeys(layer for method, layer, _ in photo.maps if method == name))
        parts = pages(layers, COLUMNS)
        for number, part in enumerate(parts, start=1):
            cells = [[photo.maps[name, layer, variant] for layer in part] for variant in variants]
            page = f"-{number}" if len(parts) > 1 else ""
            title = f"{self.request.model}, {self.request.texts[name]}"
            self.save(f"figure-layers-{photo.key}-{name}{page}", cells, part, variants, [photo], title)

    def save(
        self,
        name: str,
        cells: Sequence[Sequence[Map]],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[Photo],
        title: str,
    ) -> None:
        """Draw and write one figure."""
        from ..report import figures

        shown = [
            figures.CaptionedPhoto(photo.picture, caption(photo.facts), photo.sample.name) for photo in photos
        ]
        save_figure(
            figures.grid(cells, columns, rows, shown, title, overlay=self.request.overlay), self.folder, name
        )


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as .png and .svg."""
    from ..report import figures

    for suffix in (".png", ".svg"):
        figures.write_figure(figure, folder / f"{name}{suffix}")


def pages(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Split evenly into as few parts as can be of at most ``most``: 13 by 7 is 6 and 7, 8 by 7 is 4 and 4."""
    count = -(-len(items) // most)
    bounds = [round(part * len(items) / count) for part in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds)]


def caption(facts: Mapping[str, Any]) -> str:
    """The explained class and its probability, and the predicted one if it is another."""
    target, predicted = facts["target"], facts["predicted"]
    text = f"{target['name']} {percent(target['probability'])}"
    if predicted["class"] != target["class"]:
        text += f"\n(predicted: {predicted['name']} {percent(predicted['probability'])})"
    return text


def percent(share: float) -> str:
    """A share in [0, 1] as text, never rounded to a certainty."""
    return f"{min(100 * share, 99.9):.1f} %" if share > 0.0005 else "< 0.1 %"
