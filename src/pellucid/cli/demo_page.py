"""The demonstration's page: a run's maps by method, layer and variant, and what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.sources import open_images
from ..errors import percent
from ..experiments.store import Results
from ..files import replace_file
from ..findings.trust import TrustCard
from ..metrics.scoring import Scorer
from ..models.zoo import load_network
from ..report.album import color_key, map_tile, pixels_uri, read_map
from ..report.figures import CaptionedPhoto, Map, Overlay, scaling_note
from ..report.pages import BLANK, MapTable, Page, Section, Table, TableCell, Tile
from .output import origin, write_facts

_WHERE = "layer2.1"  # where methods are compared
_LATTICE = (
    "One column per layer, one row per variant of the same network. Look at layer1.1 and layer2.1: single pixels "
    "stand out on a regular lattice in the original, and not in the others."
)
_OBJECTS = (
    "Every image comes with the exact mask of its object. A map that knew nothing would put as much of its "
    "magnitude on the object as the object has area: the last row."
)
_CLASS = "the photo's class"
_NOTE = scaling_note().capitalize() + "."


@dataclass(frozen=True)
class DemoPage:
    """What the page in ``folder`` shows of a run of one network; ``grades`` is the page of another run."""

    results: Results
    card: TrustCard
    folder: Path
    grades: str

    @cached_property
    def values(self) -> pd.Series[float]:
        """Each image's value by metric, method, variant and layer."""
        keys = ["metric", "method", "variant", "layer", "image"]
        return self.results.table.astype(dict.fromkeys(keys, object)).set_index(keys)["value"].sort_index()

    @cached_property
    def maps(self) -> dict[tuple[str, str, str, str], Map]:
        """The maps by method, variant, layer and image."""
        rows = self.results.pictures[self.results.pictures["kind"] == "map"]
        return {(row.method, row.variant, row.layer, row.image): read_map(row.data) for row in rows.itertuples()}

    @cached_property
    def photos(self) -> dict[str, CaptionedPhoto]:
        """The photos whose maps are drawn, with the probability of the class that is explained."""
        loaded, found = load_network(self.network), {}
        for sample in open_images(f"shapes:{self.results.record.spec['pictures']}"):
            assert loaded.classes is not None
            assert sample.label is not None
            scores = Scorer(loaded.model).scores(loaded.preprocess(sample.image)[None])
            caption = f"{loaded.classes[sample.label]} {percent(float(scores[0, sample.label]))}"
            found[sample.name] = CaptionedPhoto(np.asarray(sample.image), caption, sample.name)
        return found

    @cached_property
    def area(self) -> float:
        """Share of an image that its object covers, mean over images."""
        return float(np.mean([np.asarray(sample.mask) > 0 for sample in open_images(f"shapes:{self.count}")]))

    @property
    def count(self) -> int:
        """How many images were measured."""
        return len(self.results.record.images)

    @property
    def network(self) -> str:
        """The network's name."""
        return next(iter(self.results.record.layers))

    @property
    def layers(self) -> Sequence[str]:
        """The layers explained."""
        return self.results.record.layers[self.network]

    @property
    def methods(self) -> Sequence[str]:
        """The methods."""
        return list(self.results.record.spec["methods"])

    @property
    def variants(self) -> Sequence[str]:
        """The variants."""
        return list(self.results.record.spec["variants"])

    def drop(self, layer: str, variant: str = "backward") -> float:
        """Share of the gradient's total variation that a variant takes away, mean over images."""
        before, after = (self.values["total_variation", "gradient", of, layer] for of in ("original", variant))
        return float((1 - after / before).mean())

    def inside(self, method: str, layer: str = _WHERE) -> float:
        """Share of a map's magnitude on the object in the original network, mean over images."""
        return float(1 - self.values["mass_outside", method, "original", layer].mean())

    def write(self, command: str) -> None:
        """Write the page and run.json."""
        sections = [self.checkerboard(), self.agreement(), *self.figures(), self.trust()]
        page = Page("Saliency maps, layer by layer", self.lead(), sections, self.footer())
        replace_file(self.folder / "report.html", page.html().encode())
        facts = origin(command) | {
            "model": {"name": self.network, "weights": "bundled"},
            "methods": self.methods,
            "layers": self.layers,
            "total_variation_drop": {layer: self.drop(layer) for layer in self.layers},
            "mass_inside_the_object": {method: self.inside(method) for method in self.methods},
        }
        write_facts(self.folder, facts)

    def lead(self) -> list[str]:
        """What to see, in two sentences."""
        shares = [self.inside(method) for method in self.methods]
        above = sum(share > self.area for share in shares)
        return [
            "Strided convolutions print a checkerboard into the maps of hidden layers; the backward variant, "
            "which smooths the gradient where it passes them, removes it: the gradient's total variation falls by "
            f"{_percent(self.drop('layer1.1'))} at layer1.1 and by {_percent(self.drop('layer2.1'))} at layer2.1.",
            f"The methods agree on the object: it covers {_percent(self.area)} of an image, yet {above} of "
            f"{len(shares)} methods put more than that of their map at {_WHERE} on it, "
            f"{_percent(min(shares))} to {_percent(max(shares))}.",
        ]

    def checkerboard(self) -> Section:
        """The gradient under each variant, and how much smoother it gets."""
        changed = [variant for variant in self.variants if variant != "original"]
        rows = [_bars(layer, [self.drop(layer, variant) for variant in changed]) for layer in self.layers]
        caption = f"How far the gradient's total variation falls below the original's, mean of {self.count} images"
        maps = []
        for image, photo in self.photos.items():
            cells = {of: [("gradient", of, layer, image) for layer in self.layers] for of in self.variants}
            maps.append(self.table(photo.caption, self.layers, cells, photo))
        table = Table.of(["layer", *changed], rows, caption)
        return Section(
            "The checkerboard, and how it goes", [_LATTICE], [table], maps=maps, keys=[color_key(True, _CLASS)]
        )

    def agreement(self) -> Section:
        """How much of each method's map lies on the object."""
        rows = [_bars(method, [self.inside(method, layer) for layer in self.layers]) for method in self.methods]
        rows.append(_bars("a uniform map", [self.area] * len(self.layers)))
        caption = f"Share of the map's magnitude on the object, original network, mean of {self.count} images"
        return Section("Where the maps lie", [_OBJECTS], [Table.of(["method", *self.layers], rows, caption)])

    def figures(self) -> list[Section]:
        """Methods x layers for each variant, and images x methods."""
        (first, photo), by_variant = next(iter(self.photos.items())), []
        for of in self.variants:
            cells = {layer: [(method, of, layer, first) for method in self.methods] for layer in self.layers}
            by_variant.append(self.table(of, self.methods, cells, photo))
        shown = {
            photo.caption: [(method, "backward", _WHERE, image) for method in self.methods]
            for image, photo in self.photos.items()
        }
        over = self.table("backward", self.methods, shown, overlay=Overlay())
        return [
            Section(
                "Methods x layers, for each variant", maps=by_variant, keys=[color_key(True, _CLASS)], note=_NOTE
            ),
            Section(f"Methods x images, at {_WHERE}", maps=[over], keys=[color_key(True, _CLASS, Overlay())]),
        ]

    def table(
        self,
        corner: str,
        columns: Sequence[str],
        cells: Mapping[str, Sequence[tuple[str, str, str, str]]],
        photo: CaptionedPhoto | None = None,
        overlay: Overlay | None = None,
    ) -> MapTable:
        """Maps by method, variant, layer and image in rows, behind their photo if one is given, or over theirs."""
        before = [] if photo is None else [Tile(pixels_uri(photo.pixels), photo.name)]
        rows: list[tuple[str, list[Tile | None]]] = []
        for title, row in cells.items():
            tiles = [
                map_tile(self.maps[key], ", ".join(key), True, self.photos[key[-1]].pixels, overlay) for key in row
            ]
            rows.append((title, [*(before if not rows else [BLANK] * len(before)), *tiles]))
        return MapTable([*("photo" for _ in before), *columns], rows, corner)

    def trust(self) -> Section:
        """The trust card, question by question."""
        answers = [
            [one.question, " ".join(filter(None, (one.sentence, one.agreement)))] for one in self.card.findings
        ]
        text = f"{self.grades}, beside this page, has every number, each with its interval, and the curves."
        paragraphs = [self.card.sentence, *self.card.warnings, text]
        return Section("Which maps can be trusted", paragraphs, [Table.of(["question", "answer"], answers)])

    def footer(self) -> str:
        """What made the page."""
        versions = ", ".join(f"{name} {number}" for name, number in self.results.record.versions.items())
        return (
            f"Network: {self.network}; {self.count} procedural images that it was not trained on. "
            f"Made by pellucid demo; {versions}"
        )


def _bars(title: str, shares: Sequence[float]) -> list[str | TableCell]:
    """A table's row of shares, drawn as far as they are above 0."""
    return [title, *(TableCell(_percent(share), bar=max(share, 0)) for share in shares)]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
