"""A benchmark's results as one page: trust card, pictures, tables and curves, for any layer and variant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ..findings.statistics import ALL_LAYERS, Statistics
from ..findings.trust import TrustCard, trust_card
from . import html, tables
from .album import Album
from .curves import Line, chart, style_of

if TYPE_CHECKING:
    from ..experiments.store import Results

ACROSS = {
    "faithfulness": "share of pixels changed",
    "sanity": "layers randomised",
    "occlusion": "share of units blanked",
}
CURVES = {  # what the curves of some metrics are: across, and up where the value is of another unit
    "roar": ("share of pixels removed", "test accuracy"),
    "training_occlusion": ("share of the test images", "attribution in the patch, at most"),
    "kar": ("share of pixels kept", "test accuracy"),
    "random_removal": ("share of pixels removed", "score of the true class"),
}
PANEL = (3.1, 2.5)  # inches of a small chart


def page(results: Results) -> str:
    """Write the report of a run as one HTML page that needs nothing else.

    Raises:
        InvalidData: the results are empty, or hold pictures that cannot be read.
    """
    return html.render(
        "benchmark.html", **Page(results, Statistics.of(results), Album.of(results.pictures)).context()
    )


@dataclass(frozen=True)
class Key:
    """A line's name and look."""

    name: str
    color: str
    line: str  # solid, dashed or dotted


@dataclass(frozen=True)
class Fragment:
    """What fills one part of the page while ``where`` (model, layer, variant, photo) is chosen."""

    slot: str
    where: Mapping[str, int]
    content: Any


@dataclass(frozen=True, eq=False)
class Page:
    """All parts of the page, each for every choice of model, layer and variant."""

    results: Results
    statistics: Statistics
    album: Album

    def context(self) -> dict[str, Any]:
        """What the template draws."""
        facts = self.results.facts
        return {
            "title": facts["spec"].get("name") or "Which map can be trusted?",
            "facts": facts,
            "lead": self.lead(),
            "missing": self.missing(),
            "models": self.models,
            "layers": {model: self.layers(model) for model in self.models},
            "all_layers": ALL_LAYERS,
            "variants": self.variants,
            "photos": self.album.photos,
            "kept": self.album.kept,
            "signed": self.album.signed,
            "methods": self.methods,
            "method_keys": self.keys(self.methods),
            "variant_keys": self.keys(self.variants),
            "fragments": [*self.cards(), *self.scores(), *self.curves(), *self.profiles(), *self.pictures()],
            "maps": Markup(json.dumps({"uris": self.album.maps, "small": self.album.small})),
            "metrics": [tables.column_of(self.statistics, text) for text in self.statistics.metrics],
            "metric_facts": list(self.statistics.metrics.values()),
            "reference": self.statistics.reference,
            "over": self.statistics.over,
            "resamples": len(self.statistics.resamples.counts),
        }

    # What there is.

    @cached_property
    def models(self) -> list[str]:
        """The models graded."""
        return self._unique("model")

    @cached_property
    def variants(self) -> list[str]:
        """The variants graded."""
        return self._unique("variant")

    @cached_property
    def methods(self) -> list[str]:
        """The methods graded."""
        return [method for method in self._unique("method") if method]

    def layers(self, model: str) -> list[str]:
        """The choices of a layer: all, and each; only itself if there is one."""
        layers = self.statistics.layers(model)
        return layers[1:] if len(layers) == 2 else layers

    def _unique(self, level: str) -> list[str]:
        return list(self.statistics.values.index.get_level_values(level).unique())

    def lead(self) -> str:
        """What was graded, in one sentence."""
        counts = [
            (len(self.methods), "method"), (len(self.variants), "variant"), (len(self.models), "network"),
            *self._graded_on(), (len(self.statistics.metrics), "measure"),
        ]  # fmt: skip
        methods, variants, networks, *others = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
        return f"{methods}, {variants} of {networks}, {', '.join(others)}."

    def _graded_on(self) -> list[tuple[int, str]]:
        """How many images, and trainings, the means are over."""
        trained = any(facts.get("by_training") for facts in self.statistics.metrics.values())
        images = set(self.results.facts["images"]) if trained else set(self.statistics.values.columns)
        counted = [name in images for name in self.statistics.values.columns]
        found = [(sum(counted), "image"), (len(counted) - sum(counted), "training")]
        return [entry for entry in found if entry[0]]

    def missing(self) -> str:
        """How much of an unfinished run is not here."""
        missing, cells = (len(self.results.facts.get(key, ())) for key in ("missing", "cells"))
        if not missing:
            return ""
        return (
            f"This run is unfinished: {missing} of {cells} cells are missing, so some methods are graded on fewer "
            "images than others. Run the same benchmark again to finish it."
        )

    def keys(self, names: Sequence[str]) -> list[Key]:
        """How lines are drawn: floors grey, dashed and dotted, the others in colours."""
        colors = self._colors(names)
        return [Key(name, *style_of(colors[name])) for name in names]

    @staticmethod
    def _colors(names: Sequence[str]) -> dict[str, int]:
        floors = [name for name in names if tables.is_floor(name)]
        others = [name for name in names if name not in floors]
        grey = {name: -1 - min(place, 1) for place, name in enumerate(floors)}
        return {name: place for place, name in enumerate(others)} | grey

    # The parts.

    def _places(self) -> Iterator[tuple[int, str, int, str]]:
        for m, model in enumerate(self.models):
            for y, layer in enumerate(self.layers(model)):
                yield m, model, y, layer

    def cards(self) -> Iterator[Fragment]:
        """The trust cards."""
        for m, model, y, layer in self._places():
            card = trust_card(self.results, model, layer, self.statistics)
            yield Fragment("trust", {"model": m, "layer": y}, {"card": card, "rows": self._rows(card)})

    @staticmethod
    def _rows(card: TrustCard) -> list[list[tables.Row]]:
        return [tables.contender_rows(verdict.lead) for verdict in card.verdicts]

    def scores(self) -> Iterator[Fragment]:
        """The tables."""
        for m, model in enumerate(self.models):
            yield Fragment("variants", {"model": m}, tables.of_variants(self.statistics, model))
        for m, model, y, layer in self._places():
            for v, variant in enumerate(self.variants):
                at = (self.statistics, model, variant, layer)
                content = {"overview": tables.overview(*at), "details": tables.details(*at)}
                yield Fragment("scores", {"model": m, "layer": y, "variant": v}, content)

    def curves(self) -> Iterator[Fragment]:
        """The metrics' curves: a line for each method."""
        rows = self.statistics.curves
        groups = dict(iter(rows.groupby(level=["model", "layer", "variant"], sort=False))) if len(rows) else {}
        for m, model, y, layer in self._places():
            for v, variant in enumerate(self.variants):
                here = groups.get((model, layer, variant))
                charts = [] if here is None else self._charts(here, f"{layer}, {variant} variant")
                yield Fragment("curves", {"model": m, "layer": y, "variant": v}, charts)

    def _charts(self, here: pd.DataFrame, where: str) -> list[Markup]:
        found = []
        colors = self._colors(self.methods)
        for metric, rows in here.groupby(level="metric", sort=False):
            facts = self.statistics.metrics[metric]
            steps = rows.index.get_level_values("step")
            named = bool((steps != "").any())
            lines, ticks = [], []
            for method, curve in rows.groupby(level="method", sort=False):
                at = curve.index.get_level_values("at").to_numpy()
                lines.append(_line(at, curve, colors[method]))
                ticks = list(curve.index.get_level_values("step")) if named else []
            label = self.statistics.label(metric)
            words = f"{label} by method at {where}"
            across, up = CURVES.get(facts["name"], (ACROSS.get(facts["axis"], ""), facts["unit"]))
            found.append(Markup(chart(lines, words, label, across, up, ticks)))
        return found

    def profiles(self) -> Iterator[Fragment]:
        """Along the layers: each axis's leading metric, a small chart for each method, a line for each variant."""
        for m, model in enumerate(self.models):
            layers = [layer for layer in self.layers(model) if layer != ALL_LAYERS]
            leading: dict[str, str] = {}
            for text, facts in self.statistics.metrics.items():
                leading.setdefault(facts["axis"], text)
            found = [(text, self._panels(model, text, layers)) for text in leading.values() if len(layers) > 1]
            content = [(tables.column_of(self.statistics, text), panels) for text, panels in found if panels]
            yield Fragment("profiles", {"model": m}, content)

    def _panels(self, model: str, metric: str, layers: Sequence[str]) -> list[Markup]:
        index = self.statistics.summary.index
        chosen = (index.get_level_values("model") == model) & (index.get_level_values("metric") == metric)
        rows = self.statistics.summary[chosen].droplevel(["model", "metric"])
        rows = rows[rows.index.get_level_values("layer").isin(layers)]
        if rows.empty:
            return []
        low, high = rows[["low", "mean"]].min(axis=None), rows[["high", "mean"]].max(axis=None)
        margin = 0.04 * (high - low) or 1.0
        colors = self._colors(self.variants)
        panels = []
        for method, group in rows.groupby(level="method", sort=False):
            lines = []
            for variant, along in group.groupby(level="variant", sort=False):
                along = along.droplevel(["variant", "method"]).reindex(layers)
                lines.append(_line(range(len(layers)), along, colors[variant]))
            words = f"{self.statistics.label(metric)} of {method} along the layers, by variant"
            panels.append(
                Markup(chart(lines, words, method, ticks=layers, limits=(low - margin, high + margin), size=PANEL))
            )
        return panels

    def pictures(self) -> Iterator[Fragment]:
        """Maps as tables: methods x variants at a layer, methods x layers of a variant."""
        for p, photo in enumerate(self.album.photos):
            for m, model, y, layer in self._places():
                cells = [[(model, of, method, layer, photo) for of in self.variants] for method in self.methods]
                yield Fragment("maps", {"photo": p, "model": m, "layer": y}, self._grid(self.variants, cells))
            for m, model in enumerate(self.models):
                layers = [layer for layer in self.layers(model) if layer != ALL_LAYERS]
                for v, of in enumerate(self.variants):
                    cells = [[(model, of, method, layer, photo) for layer in layers] for method in self.methods]
                    yield Fragment("strips", {"photo": p, "model": m, "variant": v}, self._grid(layers, cells))

    def _grid(self, columns: Sequence[str], cells: Sequence[Sequence[tuple[str, ...]]]) -> dict[str, Any] | None:
        places = [[self.album.places.get(key) for key in row] for row in cells]
        if not any(place is not None for row in places for place in row):
            return None
        return {"columns": columns, "rows": list(zip(self.methods, places, strict=True))}


def _line(at: Sequence[float], rows: pd.DataFrame, color: int) -> Line:
    mean, low, high = (rows[key].to_numpy() for key in ("mean", "low", "high"))
    return Line(np.asarray(at, float), mean, low, high, color)
