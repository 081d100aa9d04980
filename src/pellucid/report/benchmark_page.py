"""A benchmark's results as one page: trust card, pictures, tables and curves, for any layer and variant."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..errors import counted
from ..findings.ranking import floor_of
from ..findings.statistics import Statistics, is_of_variant, rows_at
from ..findings.trust import trust_card
from ..findings.wording import FEW, ended, joined, judged_at, results_notes
from . import tables
from .album import Album, color_key, signs
from .charts import Line, Look, Panel, css_of, inline_chart, looks
from .figures import Speaks
from .pages import ColorKey, MapTable, Table, Tile, render

if TYPE_CHECKING:
    from ..experiments.record import RunRecord
    from ..experiments.store import Results

# What runs along a metric's curve, by its axis, or for some metrics with the unit of the curve.
ACROSS = {
    "faithfulness": "share of pixels changed",
    "sanity": "layers randomised",
    "occlusion": "share of units blanked",
}
CURVES = {
    "roar": ("share of pixels removed", "test accuracy"),
    "training_occlusion": ("share of the test images", "attribution in the patch, at most"),
    "kar": ("share of pixels kept", "test accuracy"),
    "random_removal": ("share of pixels removed", "score of the true class"),
}

Fragment = tuple[str, Mapping[str, int], Any]
"""What fills one part of the page: its slot, for which model, layer, variant and photo, and the content."""


def benchmark_page(results: Results) -> str:
    """Write the report of a run as one HTML page that needs nothing else.

    Raises:
        InvalidData: the results are empty, or hold pictures that cannot be read.
    """
    page = _BenchmarkPage(results, Statistics.of(results), Album.of(results.pictures))
    return render("benchmark.html", page=page)


@dataclass(frozen=True, eq=False)
class _BenchmarkPage:
    """All parts of the page, each for every choice of model, layer and variant."""

    results: Results
    statistics: Statistics
    album: Album

    # What there is.

    @property
    def record(self) -> RunRecord:
        return self.results.record

    @cached_property
    def models(self) -> list[str]:
        return self._unique("model")

    @cached_property
    def variants(self) -> list[str]:
        return self._unique("variant")

    @cached_property
    def methods(self) -> list[str]:
        return [method for method in self._unique("method") if not is_of_variant(method)]

    def layers(self, model: str) -> list[str | None]:
        """The choices of a layer: each method's own best (None), and each; only itself if there is one."""
        layers = self.statistics.layers(model)
        return [None, *layers] if len(layers) > 1 else [*layers]

    @staticmethod
    def layer_title(layer: str | None) -> str:
        """What a choice of a layer is called."""
        return layer or judged_at(layer)

    def _unique(self, level: str) -> list[str]:
        return list(self.statistics.values.index.get_level_values(level).unique())

    @property
    def lead(self) -> str:
        """What was graded, in one sentence."""
        methods = counted(len(self.methods), "method")
        variants, networks = counted(len(self.variants), "variant"), counted(len(self.models), "network")
        others = [*self._graded_on(), counted(len(self.statistics.metrics), "measure")]
        return f"{methods}, {variants} of {networks}, {', '.join(others)}."

    def _graded_on(self) -> list[str]:
        """How many images, and trainings, the means are over."""
        known = [isinstance(name, str) for name in self.statistics.values.columns]
        counts = {"image": sum(known), "training": len(known) - sum(known)}
        return [counted(number, noun) for noun, number in counts.items() if number]

    @property
    def missing(self) -> str:
        """How much of an unfinished run is not here."""
        missing, cells = len(self.results.missing), len(self.record.cells)
        if not missing:
            return ""
        return (
            f"This run is unfinished: {missing} of {cells} cells are missing, so some methods are graded on fewer "
            "images than others. Run the same benchmark again to finish it."
        )

    @property
    def notes(self) -> list[str]:
        """What is to be known about the methods' maps."""
        return [ended(told) for told in results_notes(self.results)]

    @property
    def measures(self) -> Table:
        """The metrics."""
        return tables.measures(self.statistics)

    @property
    def colors(self) -> ColorKey:
        """What the colors of the maps mean."""
        return color_key(self.album.signed, self._signs[0])

    @property
    def signless(self) -> str:
        """Of which methods' maps a sign says nothing, as a sentence; empty where none has one, or all do."""
        note = self._signs[1]
        return f"{note[0].upper()}{note[1:]}." if note and self.album.signed else ""

    @cached_property
    def _signs(self) -> tuple[Speaks, str]:
        return signs(self.methods, "the class", self.album.below_zero)

    @cached_property
    def explained(self) -> Mapping[str, str]:
        """The classes explained of each image, as far as they are known."""
        table = self.results.table
        if "target" not in table:
            return defaultdict(str)
        pairs = table[["image", "target"]].astype(object).drop_duplicates().dropna()
        found = pairs.groupby("image", sort=False)["target"].agg(joined)
        return defaultdict(str, found.items())

    @cached_property
    def method_looks(self) -> dict[str, Look]:
        return looks((method, floor_of(method)) for method in self.methods)

    @cached_property
    def variant_looks(self) -> dict[str, Look]:
        return looks((variant, "") for variant in self.variants)

    @staticmethod
    def legend(looks: Mapping[str, Look]) -> list[tuple[str, str, str]]:
        """Names, colors and border styles of lines."""
        return [(name, *css_of(look)) for name, look in looks.items()]

    @cached_property
    def unbanded(self) -> list[str]:
        """The metrics of whose curves each has so few values that the bands of several would hide all lines."""
        most = self.statistics.curves["n"].groupby(level="metric", sort=False).max()
        return [text for text, n in most.items() if n < FEW[self.statistics.metrics[text].counted]]

    @property
    def bands(self) -> str:
        """What a curve's band means, and where there is none."""
        told = f"The mean over {self.statistics.over}, with its 95 % interval as a band."
        if not self.unbanded:
            return told
        few = f"Where fewer than {FEW['image']} images have a value there is no band: it would hide the lines."
        return f"{told} {few}"

    # The parts.

    def fragments(self) -> Iterator[Fragment]:
        """What the page may show."""
        for part in (self._cards, self._scores, self._curves, self._profiles, self._pictures):
            yield from part()

    @property
    def maps(self) -> Markup:
        """The pictures that fragments name by their place, as JSON."""
        return Markup(json.dumps({"uris": self.album.maps, "small": self.album.small}))

    def _places(self) -> Iterator[tuple[int, str, int, str | None]]:
        for m, model in enumerate(self.models):
            for y, layer in enumerate(self.layers(model)):
                yield m, model, y, layer

    def _cards(self) -> Iterator[Fragment]:
        for m, model, y, layer in self._places():
            card = trust_card(self.results, model, layer, self.statistics)
            rows = [tables.contender_rows(finding.lead) for finding in card.findings]
            yield "trust", {"model": m, "layer": y}, {"card": card, "rows": rows}

    def _scores(self) -> Iterator[Fragment]:
        for m, model in enumerate(self.models):
            yield "variants", {"model": m}, tables.of_variants(self.statistics, model)
        for m, model, y, layer in self._places():
            for v, variant in enumerate(self.variants):
                at = (self.statistics, model, variant, layer)
                content = {"overview": tables.overview(*at), "details": tables.details(*at)}
                yield "scores", {"model": m, "layer": y, "variant": v}, content

    def _curves(self) -> Iterator[Fragment]:
        for m, model, y, layer in self._places():
            for v, variant in enumerate(self.variants):
                here = self.statistics.drawn(model, variant, layer).groupby(level="metric", sort=False)
                where = f"{self.layer_title(layer)}, {variant} variant"
                charts = [self._curve(metric, some, where) for metric, some in here]
                yield "curves", {"model": m, "layer": y, "variant": v}, charts

    def _curve(self, metric: str, rows: pd.DataFrame, where: str) -> Markup:
        """A metric's curve at one place, a line for each method."""
        known, label = self.statistics.metrics[metric], self.statistics.label(metric)
        across, up = CURVES.get(known.name, (ACROSS.get(known.axis, ""), known.unit))
        steps = zip(rows.index.get_level_values("at"), rows.index.get_level_values("step"), strict=True)
        ticks = sorted({(float(at), step) for at, step in steps if step})
        if metric in self.unbanded:
            rows = rows.assign(low=np.nan, high=np.nan)
        lines = [
            _line(method, curve.index.get_level_values("at"), curve)
            for method, curve in rows.groupby(level="method", sort=False)
        ]
        panel = Panel(label, up, tuple(lines), ticks=tuple(ticks))
        return inline_chart(panel, self.method_looks, f"{label} by method at {where}", across)

    def _profiles(self) -> Iterator[Fragment]:
        """Along the layers: for each metric a small chart of each method, a line for each variant."""
        places = self.statistics.values.index.droplevel(["variant", "method"]).unique()
        several = places.get_level_values("metric").value_counts() > 1
        along = [text for text in self.statistics.metrics if several.get(text, False)]
        for m, model in enumerate(self.models):
            layers = self.statistics.layers(model)
            found = [(text, self._panels(model, text, layers)) for text in along if len(layers) > 1]
            content = [(tables.column_of(self.statistics, text), panels) for text, panels in found if panels]
            yield "profiles", {"model": m}, content

    def _panels(self, model: str, metric: str, layers: Sequence[str]) -> list[Markup]:
        rows = rows_at(self.statistics.summary, model=model, metric=metric)
        rows = rows[rows.index.get_level_values("layer").isin(layers)]
        low, high = rows[["low", "mean"]].min(axis=None), rows[["high", "mean"]].max(axis=None)
        margin = 0.04 * (high - low) or 1.0
        panels = []
        for method, group in rows.groupby(level="method", sort=False):
            lines = [
                _line(variant, range(len(layers)), along.droplevel(["variant", "method"]).reindex(layers))
                for variant, along in group.groupby(level="variant", sort=False)
            ]
            panel = Panel(method, lines=tuple(lines), ticks=tuple(enumerate(layers)))
            words = f"{self.statistics.label(metric)} of {method} along the layers, by variant"
            limits = (low - margin, high + margin)
            panels.append(inline_chart(panel, self.variant_looks, words, limits=limits, size=(3.1, 2.5)))
        return panels

    def _pictures(self) -> Iterator[Fragment]:
        """Maps as tables: methods x variants at a layer, methods x layers of a variant."""
        for p, photo in enumerate(self.album.photos):
            for m, model, y, layer in self._places():
                cells = [
                    [(model, of, method, layer or "", photo) for of in self.variants] for method in self.methods
                ]
                yield "maps", {"photo": p, "model": m, "layer": y}, self._grid(photo, self.variants, cells)
            for m, model in enumerate(self.models):
                layers = self.statistics.layers(model)
                # A single layer's maps are those that stand above, by variant.
                for v, of in enumerate(self.variants if len(layers) > 1 else ()):
                    cells = [[(model, of, method, layer, photo) for layer in layers] for method in self.methods]
                    yield "strips", {"photo": p, "model": m, "variant": v}, self._grid(photo, layers, cells)

    def _grid(
        self, photo: str, columns: Sequence[str], cells: Sequence[Sequence[tuple[str, ...]]]
    ) -> MapTable | None:
        rows = [[self._tile(key, column) for key, column in zip(row, columns, strict=True)] for row in cells]
        if not any(tile for row in rows for tile in row):
            return None
        return MapTable(columns, list(zip(self.methods, rows, strict=True)), "Method", self.album.ratios[photo])

    def _tile(self, key: tuple[str, ...], column: str) -> Tile | None:
        place = self.album.places.get(key)
        if place is None:
            return None
        return Tile("", f"Map of {key[2]}, {column}", place=place, note=self.album.notes[place])


def _line(name: str, at: Sequence[float], rows: pd.DataFrame) -> Line:
    return Line(name, np.asarray(at, float), *(rows[key].to_numpy() for key in ("mean", "low", "high")))
