"""What a table or figure shows, as plain data: numbers by rows and columns, lines, boxes, maps."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..experiments.store import Results
from ..findings.intervals import Numbers
from ..findings.ranking import floor_of
from ..findings.statistics import GROUP, Statistics
from ..heatmap import clip_percentiles
from ..report.album import read_map, read_photo
from ..report.charts import BoxPlot, Line, Panel
from .quantities import Found, found, found_in, per_image, rows_of, selected
from .recipe import BoxesExhibit, CurvesExhibit, Exhibit, Key, MapsExhibit, Quantity, Recipe, TableExhibit, matches

WHISKER = 1.5  # times the box: where whiskers end at the latest


@dataclass(frozen=True)
class Compared:
    """Our number, and the paper's; None where there is none."""

    found: Found | None
    paper: float | None


@dataclass(frozen=True)
class ComparedTable:
    """Numbers: ``cells[row][column]``; rows that only the paper has come last."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Compared, ...], ...]


@dataclass(frozen=True, eq=False)
class MapGrid:
    """The maps (h, w) of one photo (H, W, 3) by ``methods``: ``cells[row][column]``, None where none was kept."""

    image: str
    methods: tuple[str, ...]
    photo: NDArray[np.uint8] | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Numbers | None, ...], ...]


Shown = ComparedTable | tuple[Panel, ...] | tuple[MapGrid, ...]
Entries = Mapping[str, tuple[str, ...]]  # what it is called -> the names that are called so


def exhibited(exhibit: Exhibit, recipe: Recipe, results: Results, statistics: Statistics) -> Shown:
    """What an exhibit shows of an experiment's results; empty where they have nothing of it.

    Raises:
        InvalidData: a kept picture cannot be read.
    """
    content = _Content(recipe, results, statistics)
    match exhibit:
        case TableExhibit():
            return content.table(exhibit)
        case CurvesExhibit():
            return tuple(content.curves(exhibit))
        case BoxesExhibit():
            return tuple(content.boxes(exhibit))
        case MapsExhibit():
            return tuple(content.maps(exhibit))


@dataclass(frozen=True, eq=False)
class _Content:
    """What an experiment's results have for exhibits."""

    recipe: Recipe
    results: Results
    statistics: Statistics

    def entries(self, names: Iterable[str], where: Quantity, key: Key) -> Entries:
        """What is shown of one key, in the order of its patterns in ``where``, then of appearance."""
        unique = dict.fromkeys(names)
        ordered = [name for pattern in getattr(where, key) for name in unique if matches(name, (pattern,))]
        called: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys(ordered):
            label = self.recipe.label(name)
            called[label] = (*called.get(label, ()), name)
        return called

    def parts(self, rows: pd.DataFrame, where: Quantity, key: Key) -> Iterator[tuple[str, Quantity]]:
        """Each entry of a key and the quantity of it alone."""
        for label, names in self.entries(_names(selected(rows, where), key), where, key).items():
            yield label, _narrowed(where, **{key: names})

    def unit(self, rows: pd.DataFrame, where: Quantity) -> str:
        """What the values are, if all are of one unit."""
        if where.how in ("ratio", "reduction"):
            return where.how
        units = {self.statistics.metrics[metric].unit for metric in _names(selected(rows, where), "metric")}
        return units.pop() if len(units) == 1 else ""

    # Tables.

    def table(self, exhibit: TableExhibit) -> ComparedTable:
        """Our numbers beside the paper's, times ``by``."""
        where, paper = exhibit.where, exhibit.paper
        kept = selected(rows_of(self.statistics, where), where)
        rows, columns = (self.entries(_names(kept, key), where, key) for key in (exhibit.rows, exhibit.columns))

        def compared(row: str, column: str) -> Compared:
            ours = None
            if row in rows and column in columns:
                place = {exhibit.rows: rows[row], exhibit.columns: columns[column]}
                ours = found(self.statistics, _narrowed(where, **place))
            ours = ours and ours.times(exhibit.by)
            theirs = paper.get(row, {})
            # What people rate and what stands in for that are held against one order, the paper's.
            alone = next(iter(theirs.values())) if exhibit.orders and len(theirs) == 1 else None
            return Compared(ours, theirs.get(column, alone))

        names = tuple(dict.fromkeys([*rows, *paper]))
        across = tuple(dict.fromkeys([*columns, *(column for numbers in paper.values() for column in numbers)]))
        return ComparedTable(names, across, tuple(tuple(compared(row, to) for to in across) for row in names))

    # Curves.

    def curves(self, exhibit: CurvesExhibit) -> Iterator[Panel]:
        """Lines along the layers, in the order of the models', or along the metric's own curve."""
        along = exhibit.across == "layer"
        rows = rows_of(self.statistics, exhibit.where) if along else self.statistics.points
        for title, where in self.parts(rows, exhibit.where, exhibit.panels):
            order = self.layers(selected(rows, where)) if along else []
            lines, ticks = [], {float(x): self.recipe.label(layer) for x, layer in enumerate(order)}
            for name, inside in self.parts(rows, where, exhibit.lines):
                places = list(self.at_layers(order, inside) if along else self.on_curve(inside))
                if line := self.line(name, places, inside, _floor(selected(rows, inside))):
                    lines.append(line)
                    ticks |= {place.x: self.recipe.label(place.name) for place in places if place.name}
            if lines:
                # A metric's unit is that of its value; its curve may be of another.
                up = exhibit.y or (self.unit(rows, where) if along else "")
                yield Panel(title, up, tuple(lines), ticks=tuple(sorted(ticks.items())))

    def layers(self, rows: pd.DataFrame) -> list[str]:
        """The rows' layers as the models have them, the image first."""
        names, models = [name for name in _names(rows, "layer") if name], set(_names(rows, "model"))
        known = self.results.record.layers.items()
        ordered = [name for model, layers in known if model in models for name in layers if name in names]
        return list(dict.fromkeys([*ordered, *names]))

    def at_layers(self, order: Sequence[str], where: Quantity) -> Iterator[_Place]:
        rows = rows_of(self.statistics, where)
        for x, layer in enumerate(order):
            yield _Place(x, layer, rows, _narrowed(where, layer=(layer,)))

    def on_curve(self, where: Quantity) -> Iterator[_Place]:
        """The places at which the rows have points; others, to compare with, are looked up there."""
        points = self.statistics.points
        index = selected(points, where).index
        places = dict(zip(index.get_level_values("at"), index.get_level_values("step"), strict=True))
        for at in sorted(places):
            rows = points[points.index.get_level_values("at") == at].droplevel(["at", "step"])
            yield _Place(float(at), places[at], rows, where)

    def line(self, name: str, places: Sequence[_Place], where: Quantity, floor: str) -> Line | None:
        numbers = [found_in(place.rows, place.quantity) for place in places]
        if not any(numbers):
            return None
        ends = [(np.nan,) * 3 if one is None else (one.value, one.low, one.high) for one in numbers]
        mean, low, high = np.array(ends, float).T
        return Line(name, np.array([place.x for place in places], float), mean, low, high, floor)

    # Boxes.

    def boxes(self, exhibit: BoxesExhibit) -> Iterator[Panel]:
        """A box of the images' own values for each entry; those of which no value is defined are left out."""
        rows = rows_of(self.statistics, exhibit.where)
        for title, where in self.parts(rows, exhibit.where, exhibit.panels):
            drawn = []
            for name, inside in self.parts(rows, where, exhibit.boxes):
                values = per_image(self.statistics, inside)
                if values is not None and np.isfinite(values).any():
                    drawn.append(_box(name, values[np.isfinite(values)], _floor(selected(rows, inside))))
            if drawn:
                yield Panel(title, exhibit.y or self.unit(rows, where), boxes=tuple(drawn))

    # Maps.

    def maps(self, exhibit: MapsExhibit) -> Iterator[MapGrid]:
        """The first photos of those with most maps, and for each row and column the first map that matches."""
        kept = self.kept_maps(exhibit)
        rows, columns = (
            self.entries(kept[key].unique(), exhibit.where, key) for key in (exhibit.rows, exhibit.columns)
        )
        whole_first = kept["image"].value_counts(sort=False).sort_values(ascending=False, kind="stable").index
        for image in list(whole_first)[: exhibit.photos]:
            of_image = kept[kept["image"] == image]
            by_row = [of_image[of_image[exhibit.rows].isin(names)] for names in rows.values()]
            cells = [
                tuple(_first_map(some[some[exhibit.columns].isin(names)], exhibit) for names in columns.values())
                for some in by_row
            ]
            methods, photo = tuple(of_image["method"].unique()), self.photo(image, exhibit.where)
            yield MapGrid(image, methods, photo, tuple(rows), tuple(columns), tuple(cells))

    def kept_maps(self, exhibit: MapsExhibit) -> pd.DataFrame:
        pictures = self.results.pictures
        kept = pictures[pictures["kind"] != "photo"].rename(columns={"kind": "metric"})
        kept = kept.astype(dict.fromkeys([*GROUP, "image"], object))
        for key in GROUP:
            patterns = getattr(exhibit.where, key)
            if key == "metric" and key not in (exhibit.rows, exhibit.columns):
                patterns = ("map",)  # not those it was compared with
            known = {name: matches(name, patterns) for name in kept[key].unique()}
            kept = kept[kept[key].map(known).astype(bool)]
        return kept

    def photo(self, image: str, where: Quantity) -> NDArray[np.uint8] | None:
        """The photo as the first of the models that are shown sees it."""
        pictures = self.results.pictures
        rows = pictures[(pictures["kind"] == "photo") & (pictures["image"] == image)]
        fitting = [row.data for row in rows.itertuples() if not row.model or matches(row.model, where.model)]
        return np.asarray(read_photo(fitting[0])) if fitting else None


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a line has a point, how the place is called, and the quantity there of some rows."""

    x: float
    name: str
    rows: pd.DataFrame
    quantity: Quantity


def _narrowed(where: Quantity, **names: tuple[str, ...]) -> Quantity:
    """A quantity of some names alone."""
    return where.model_copy(update={key: tuple(map(glob.escape, some)) for key, some in names.items()})


def _names(rows: pd.DataFrame, key: Key) -> list[str]:
    return list(rows.index.get_level_values(key).unique())


def _floor(rows: pd.DataFrame) -> str:
    """Which floor the rows' methods are, if all are one."""
    floors = {floor_of(name) for name in _names(rows, "method")}
    return floors.pop() if len(floors) == 1 else ""


def _box(name: str, values: Numbers, floor: str) -> BoxPlot:
    first, median, third = map(float, np.percentile(values, [25, 50, 75]))
    reach = WHISKER * (third - first)
    # A quartile lies between two values: the last value within reach may lie inside the box.
    low = min(float(values[values >= first - reach].min()), first)
    high = max(float(values[values <= third + reach].max()), third)
    return BoxPlot(name, low, first, median, third, high, len(values), floor)


def _first_map(rows: pd.DataFrame, exhibit: MapsExhibit) -> Numbers | None:
    """The first map of these rows, after the exhibit's final threshold."""
    if not len(rows):
        return None
    values, method = read_map(rows["data"].iloc[0]), rows["method"].iloc[0]
    clip = next((ends for pattern, ends in exhibit.clip.items() if matches(method, (pattern,))), None)
    return values if clip is None else clip_percentiles(torch.from_numpy(values)[None], *clip)[0].numpy()
