"""A benchmark's run as a page: any of its maps, values and disagreements, read when asked for; needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InvalidData, counted
from ..experiments.ratings import QUESTIONS_OF_RATERS, RATINGS
from ..experiments.record import MetricRecord, RunRecord, cell_digest
from ..experiments.store import PICTURE_ROWS, PICTURES, Results, Store, one_table
from ..findings.ranking import floor_of
from ..findings.statistics import Statistics, rows_at
from ..findings.trust import trust_card
from ..findings.wording import joined
from ..report.album import photo_uri, read_map
from ..report.figures import Map, has_negative, shrunk
from .page import Asked, Tick, asked_key, explorer, map_told, named

_CELLS = 64  # whose pictures stay in memory
_COMPARED = 32  # pixels a side at which maps are compared: their order there is that of their parts
_MOST_KEPT = 40_000_000  # bytes of a page that keeps its maps


@dataclass(frozen=True, eq=False)
class RunView:
    """A run that kept pictures, and the ``images`` that are shown of it."""

    store: Store
    record: RunRecord
    images: Sequence[str]

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> RunView:
        """Open a run, finished or not; nothing is read but its run.json and the names of its photos.

        Raises:
            InvalidData: there is no run of ``pellucid benchmark``, or it kept no pictures.
        """
        store = Store(url)
        record = store.record()
        if record is None:
            raise InvalidData(f"there is no run of pellucid benchmark in {url}; give its output folder, or photos")
        store.run = record.hash
        names = store.photographed()
        if not names:
            raise InvalidData(
                f"the run in {url} kept no pictures; run it again in a new folder with pictures = 20"
            )
        return cls(store, record, [name for name in record.images if name in names])

    # What the page is told.

    @property
    def models(self) -> list[str]:
        """The networks' names."""
        return list(self.record.layers)

    @property
    def methods(self) -> list[str]:
        """The methods' names."""
        return list(self.record.spec["methods"])

    @property
    def variants(self) -> list[str]:
        """The variants' names."""
        return list(self.record.spec["variants"])

    @property
    def answers(self) -> Mapping[str, Asked]:
        """What the page may ask."""
        asked = (self.photo, self.maps, self.values, self.disagreement, self.card)
        return {answer.__name__: answer for answer in asked}

    def html(self) -> str:
        """The page, which asks for what it shows."""
        return explorer(self.told())

    def told(self) -> dict[str, Any]:
        """What there is to choose from."""
        metrics = {
            text: {"direction": metric.direction, "higher": metric.higher_is_better}
            for text, metric in (self._rated | dict(self.record.metrics)).items()
            if not metric.of_model and not metric.by_training
        }
        shown, graded = counted(len(self.images), "image"), counted(len(self.record.images), "image")
        return {
            "mode": "run",
            "title": f"Maps of {joined(self.models)}",
            "lead": f"{self.record.name}: {counted(len(self.methods), 'method')}, {graded}; maps of {shown}.",
            "models": self.models,
            "variants": self.variants,
            "methods": self.methods,
            "first": next((place for place, name in enumerate(self.methods) if not floor_of(name)), 0),
            "images": self.images,
            "layers": [list(layers) for layers in self.record.layers.values()],
            "metrics": metrics,
        }

    def exported(self, budget: int = _MOST_KEPT) -> str:
        """The page with all its answers inside: the first images whose maps fit into so many bytes, or one."""
        kept: dict[str, Any] = {}
        size = count = 0
        while count < len(self.images):
            found = self._kept_of(count)
            size += sum(len(one) for answer in found.values() for one in _texts(answer))
            if count and size > budget:
                break
            kept |= found
            count += 1
        shown = replace(self, images=self.images[:count])
        for model, variant in product(range(len(self.models)), range(len(self.variants))):
            kept[asked_key("disagreement", model, variant)] = shown.disagreement(_nobody, model, variant)
            for method in range(len(self.methods)):
                kept[asked_key("values", model, variant, method)] = shown.values(_nobody, model, variant, method)
        kept |= {asked_key("card", model): self.card(_nobody, model) for model in range(len(self.models))}
        return explorer(shown.told(), kept)

    def _kept_of(self, image: int) -> dict[str, Any]:
        """All answers about one image."""
        models, variants, methods = (range(len(of)) for of in (self.models, self.variants, self.methods))
        found = {asked_key("photo", model, image): self.photo(_nobody, model, image) for model in models}
        for place in product(models, variants, methods):
            found[asked_key("maps", *place, image)] = self.maps(_nobody, *place, image)
        return found

    # What it asks.

    def photo(self, tick: Tick, model: int, image: int) -> dict[str, Any]:
        """A photo as a model saw it."""
        rows = self.store.photos_of(named(self.images, image, "image"))
        rows = rows[rows["model"].isin([named(self.models, model, "model"), ""])]
        if rows.empty:
            raise InvalidData(f"the run kept no photo of {self.images[image]}")
        return {"uri": photo_uri(rows["data"].iloc[0])}

    def maps(self, tick: Tick, model: int, variant: int, method: int, image: int) -> dict[str, Any]:
        """The maps of an image at all layers."""
        found = self.kept_maps(model, variant, method, image)
        return {
            "layers": list(found),
            "maps": {layer: map_told(values) for layer, values in found.items()},
            "signed": has_negative(found.values()),
        }

    def values(self, tick: Tick, model: int, variant: int, method: int) -> dict[str, Any]:
        """Each metric's value of each image by layer, None where it is undefined; and the classes explained."""
        name = named(self.models, model, "model")
        place = name, named(self.variants, variant, "variant"), named(self.methods, method, "method")
        table = self._statistics.values
        if place[:3] not in table.index.droplevel(["layer", "metric"]):
            return {"layers": {}, "explained": []}
        rows = rows_at(table, model=place[0], variant=place[1], method=place[2]).reindex(columns=self.images)
        layers: dict[str, dict[str, Any]] = {}
        for (layer, metric), numbers in zip(rows.index, rows.to_numpy(), strict=True):
            layers.setdefault(layer, {})[metric] = _plain(numbers)
        return {"layers": layers, "explained": [self._explained.get((name, image), "") for image in self.images]}

    def disagreement(self, tick: Tick, model: int, variant: int) -> dict[str, Any]:
        """How far methods' maps of each image disagree by layer: 1 - the mean rank correlation of magnitudes."""
        found: dict[str, list[float]] = {}
        names = self.record.layers[named(self.models, model, "model")]
        for image in range(len(self.images)):
            tick(f"comparing maps, {image + 1} of {len(self.images)} images")
            every = [self.kept_maps(model, variant, method, image) for method in range(len(self.methods))]
            for layer in names:
                maps = [one[layer] for one in every if layer in one]
                found.setdefault(layer, []).append(_disagreement(maps))
        return {layer: _plain(np.array(values)) for layer, values in found.items()}

    def card(self, tick: Tick, model: int) -> str:
        """The trust card, as HTML."""
        return trust_card(self._results, named(self.models, model, "model"), None, self._statistics)._repr_html_()

    # What is read.

    def kept_maps(self, model: int, variant: int, method: int, image: int) -> dict[str, Map]:
        """The maps (h, w) that were kept of one image, by layer, in the model's order."""
        return {layer: read_map(data) for layer, data in self.stored_maps(model, variant, method, image).items()}

    def stored_maps(self, model: int, variant: int, method: int, image: int) -> dict[str, bytes]:
        """The same as the run stored them, for ``read_map``."""
        place = self.record.images.index(named(self.images, image, "image"))
        cut = self.record.spec.get("images_per_cell") or len(self.record.images)
        start = place // cut * cut
        of, under, by = (
            named(self.models, model, "model"),
            named(self.variants, variant, "variant"),
            named(self.methods, method, "method"),
        )
        stop = min(start + cut, len(self.record.images))
        files = {**self.record.method_files.get(by, {}), **self.record.variant_files.get(under, {})}
        digest = cell_digest(self.record.hash, of, under, by, start, stop, files)
        found = self._pictures(self._cells.get(digest, digest)).get(self.images[image], {})
        return {layer: found[layer] for layer in self.record.layers[of] if layer in found}

    @property
    def _rated(self) -> dict[str, MetricRecord]:
        """The questions that raters were asked, if there were any."""
        return dict(QUESTIONS_OF_RATERS) if self.store.folder.read(RATINGS) else {}

    @cached_property
    def _cells(self) -> dict[str, str]:
        """The names of the parts by how they end."""
        return {cell.rpartition("_")[2]: cell for cell in self.record.cells}

    @cached_property
    def _pictures(self) -> Any:
        return lru_cache(_CELLS)(self._read)

    def _read(self, cell: str) -> dict[str, dict[str, bytes]]:
        """A cell's maps as they are stored, by image and layer."""
        rows = one_table(self.store.whole(PICTURES, [cell], PICTURE_ROWS), PICTURE_ROWS)
        rows = rows[rows["kind"] == "map"]
        found: dict[str, dict[str, bytes]] = {}
        for image, layer, data in zip(rows["image"], rows["layer"], rows["data"], strict=True):
            found.setdefault(image, {})[layer] = data
        return found

    @cached_property
    def _results(self) -> Results:
        return Results.read(self.store.url, pictures=False)

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics.of(self._results)

    @cached_property
    def _explained(self) -> dict[tuple[str, str], str]:
        """The class explained of each image, by model."""
        pairs = self._results.table[["model", "image", "target"]].astype(object).drop_duplicates().dropna()
        return {(model, image): target for model, image, target in pairs.itertuples(index=False)}


def _nobody(what: str) -> None:
    """Nobody waits for it."""


def _plain(numbers: Any) -> list[float | None]:
    return [float(f"{one:.6g}") if np.isfinite(one) else None for one in numbers]


def _disagreement(maps: Sequence[Map]) -> float:
    """1 - the mean of Spearman's correlations of all pairs of maps of one size; NaN for a single one."""
    small = [np.abs(shrunk(one, max(one.shape) / _COMPARED)).ravel() for one in maps]
    ranks = pd.DataFrame(dict(enumerate(small))).rank()
    correlations = ranks.corr().to_numpy()[np.triu_indices(len(maps), 1)]
    known = correlations[np.isfinite(correlations)]  # a map that is the same everywhere has no order
    return 1 - float(known.mean()) if len(known) else math.nan


def _texts(answer: Any) -> list[str]:
    """The long texts of an answer: a photo, or the numbers of maps."""
    return [answer["uri"]] if "uri" in answer else [one["values"] for one in answer["maps"].values()]
