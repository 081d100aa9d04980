"""What a table or figure shows, as plain data: numbers by rows and columns, lines, boxes, maps."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ..errors import InvalidData
from ..experiments.store import Results
from ..findings.statistics import GROUP, Numbers, Statistics
from ..findings.trust import FLOORS
from .quantities import Found, chosen, found, found_in, per_image, rows_of
from .recipe import (
    BoxesExhibit,
    CurvesExhibit,
    Exhibit,
    Key,
    MapsExhibit,
    Quantity,
    Recipe,
    TableExhibit,
    matches,
)

WHISKER = 1.5  # times the box: where whiskers end at the latest


@dataclass(frozen=True)
class Cell:
    """Our number, and the paper's; None where there is none."""

    found: Found | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """Numbers: ``cells[row][column]``; rows that only the paper has come last."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, eq=False)
class Line:
    """Means at places ``x`` with their intervals, all (n,), NaN where there are none.

    ``floor`` is ``"random"`` or ``"edges"`` for methods that know nothing of the network, else empty.
    """

    name: str
    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    floor: str = ""


@dataclass(frozen=True)
class Box:
    """Quartiles of the images' values, the whiskers' ends, and of how many images."""

    name: str
    low: float
    first: float
    median: float
    third: float
    high: float
    images: int
    floor: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart: lines, or boxes; ``ticks`` names places across, ``up`` says what the values are."""

    title: str
    up: str
    lines: tuple[Line, ...] = ()
    boxes: tuple[Box, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps (h, w) of one photo (H, W, 3): ``cells[row][column]``, None where the run kept none."""

    image: str
    photo: NDArray[np.uint8] | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Numbers | None, ...], ...]


Shown = Table | tuple[Panel, ...] | tuple[Maps, ...]


def shown(exhibit: Exhibit, recipe: Recipe, results: Results, statistics: Statistics) -> Shown:
    """What an exhibit shows of an experiment's results; empty where they have nothing of it."""
    match exhibit:
        case TableExhibit():
            return table(exhibit, recipe, statistics)
        case CurvesExhibit():
            return curves(exhibit, recipe, statistics, results.facts["layers"])
        case BoxesExhibit():
            return boxes(exhibit, recipe, statistics)
        case MapsExhibit():
            return maps(exhibit, recipe, results)


# What there is of each key.

Entries = Mapping[str, tuple[str, ...]]  # what it is called -> the names that are called so


def entries(names: Iterable[str], where: Quantity, key: Key, recipe: Recipe) -> Entries:
    """What is shown of one key, in the order of its patterns in ``where``, then of appearance."""
    patterns = getattr(where, key)
    unique = dict.fromkeys(names)
    ordered = [name for pattern in patterns for name in unique if matches(name, (pattern,))]
    called: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(ordered):
        label = recipe.label(name)
        called[label] = (*called.get(label, ()), name)
    return called


def narrowed(where: Quantity, **names: tuple[str, ...]) -> Quantity:
    """A quantity of some names alone."""
    return where.model_copy(update={key: tuple(map(glob.escape, some)) for key, some in names.items()})


def _names(rows: pd.DataFrame, key: Key) -> list[str]:
    return list(rows.index.get_level_values(key).unique())


# Tables.


def table(exhibit: TableExhibit, recipe: Recipe, statistics: Statistics) -> Table:
    """Our numbers beside the paper's, times ``by``."""
    where, paper = exhibit.where, exhibit.paper
    kept = chosen(rows_of(statistics, where), where)
    rows, columns = (entries(_names(kept, key), where, key, recipe) for key in (exhibit.rows, exhibit.columns))
    cells = {
        (row, column): found(statistics, narrowed(where, **{exhibit.rows: some, exhibit.columns: others}))
        for row, some in rows.items()
        for column, others in columns.items()
    }
    names = tuple(dict.fromkeys([*rows, *paper]))
    across = tuple(dict.fromkeys([*columns, *(column for numbers in paper.values() for column in numbers)]))
    return Table(
        names,
        across,
        tuple(
            tuple(
                Cell(_times(cells.get((row, column)), exhibit.by), paper.get(row, {}).get(column))
                for column in across
            )
            for row in names
        ),
    )


def _times(number: Found | None, factor: float) -> Found | None:
    if number is None:
        return None
    low, high = sorted((number.low * factor, number.high * factor))
    return replace(number, value=number.value * factor, low=low, high=high)


# Curves.


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a line has a point: what is looked at there, and how the place is called."""

    x: float
    name: str
    rows: pd.DataFrame
    layer: tuple[str, ...] = ()


def curves(
    exhibit: CurvesExhibit, recipe: Recipe, statistics: Statistics, layers: Mapping[str, Sequence[str]]
) -> tuple[Panel, ...]:
    """Lines along the layers, in the order of the models' ``layers``, or along the metric's own curve."""
    along = exhibit.across == "layer"
    rows = rows_of(statistics, exhibit.where) if along else statistics.points
    panels = []
    for title, where in _parts(rows, exhibit.where, exhibit.panels, recipe):
        order = _layers(chosen(rows, where), layers) if along else []
        lines, ticks = [], {float(place): recipe.label(layer) for place, layer in enumerate(order)}
        for name, inside in _parts(rows, where, exhibit.lines, recipe):
            places = list(_at_layers(statistics, order, inside) if along else _on_curve(statistics, inside))
            if line := _line(name, places, inside, statistics, _floor(chosen(rows, inside))):
                lines.append(line)
                ticks |= {place.x: recipe.label(place.name) for place in places if place.name and not along}
        if lines:
            # A metric's unit is that of its value; its curve may be of another.
            up = exhibit.y or ("" if not along else _unit(chosen(rows, where), where, statistics))
            panels.append(Panel(title, up, tuple(lines), ticks=tuple(sorted(ticks.items()))))
    return tuple(panels)


def _parts(rows: pd.DataFrame, where: Quantity, key: Key, recipe: Recipe) -> Iterator[tuple[str, Quantity]]:
    """Each entry of a key and the quantity of it alone."""
    for label, names in entries(_names(chosen(rows, where), key), where, key, recipe).items():
        yield label, narrowed(where, **{key: names})


def _layers(rows: pd.DataFrame, layers: Mapping[str, Sequence[str]]) -> list[str]:
    """The rows' layers as the models have them, the image first."""
    names = [name for name in _names(rows, "layer") if name]
    ordered = [name for of_model in layers.values() for name in of_model if name in names]
    return list(dict.fromkeys([*ordered, *names]))


def _at_layers(statistics: Statistics, order: Sequence[str], where: Quantity) -> Iterator[_Place]:
    rows = rows_of(statistics, where)
    for x, layer in enumerate(order):
        yield _Place(x, layer, rows, (layer,))


def _on_curve(statistics: Statistics, where: Quantity) -> Iterator[_Place]:
    """The places at which the rows have points; others, to compare with, are looked up there."""
    index = chosen(statistics.points, where).index
    levels = statistics.points.index.get_level_values("at")
    places = dict(zip(index.get_level_values("at"), index.get_level_values("step"), strict=True))
    for at in sorted(places):
        yield _Place(float(at), places[at], statistics.points[levels == at].droplevel(["at", "step"]))


def _line(name: str, places: Sequence[_Place], where: Quantity, statistics: Statistics, floor: str) -> Line | None:
    asked = [(place, narrowed(where, layer=place.layer) if place.layer else where) for place in places]
    numbers = [found_in(place.rows, statistics.resamples, quantity) for place, quantity in asked]
    if not any(numbers):
        return None
    ends = [(np.nan,) * 3 if one is None else (one.value, one.low, one.high) for one in numbers]
    mean, low, high = np.array(ends, float).T
    return Line(name, np.array([place.x for place in places], float), mean, low, high, floor)


def _unit(rows: pd.DataFrame, where: Quantity, statistics: Statistics) -> str:
    """What the values are, if all are of one unit."""
    if where.how in ("ratio", "reduction"):
        return where.how
    units = {str(statistics.metrics[metric]["unit"]) for metric in _names(rows, "metric")}
    return units.pop() if len(units) == 1 else ""


def _floor(rows: pd.DataFrame) -> str:
    """Which floor the rows' methods are, if all are one."""
    first = {name.partition("(")[0].strip() for name in _names(rows, "method")}
    return next((floor for floor in FLOORS if first == {floor}), "")


# Boxes.


def boxes(exhibit: BoxesExhibit, recipe: Recipe, statistics: Statistics) -> tuple[Panel, ...]:
    """A box of the images' own values for each entry; those of which no value is defined are left out."""
    rows = rows_of(statistics, exhibit.where)
    panels = []
    for title, where in _parts(rows, exhibit.where, exhibit.panels, recipe):
        drawn = []
        for name, inside in _parts(rows, where, exhibit.boxes, recipe):
            values = per_image(statistics, inside)
            if values is not None and np.isfinite(values).any():
                drawn.append(_box(name, values[np.isfinite(values)], _floor(chosen(rows, inside))))
        if drawn:
            up = exhibit.y or _unit(chosen(rows, where), where, statistics)
            panels.append(Panel(title, up, boxes=tuple(drawn)))
    return tuple(panels)


def _box(name: str, values: Numbers, floor: str) -> Box:
    first, median, third = map(float, np.percentile(values, [25, 50, 75]))
    reach = WHISKER * (third - first)
    # A quartile lies between two values: the last value within reach may lie inside the box.
    low = min(float(values[values >= first - reach].min()), first)
    high = max(float(values[values <= third + reach].max()), third)
    return Box(name, low, first, median, third, high, len(values), floor)


# Maps.


def maps(exhibit: MapsExhibit, recipe: Recipe, results: Results) -> tuple[Maps, ...]:
    """The first photos of those with most maps, and for each row and column the first map that matches."""
    kept = _kept_maps(results.pictures, exhibit)
    rows, columns = (
        entries(kept[key].unique(), exhibit.where, key, recipe) for key in (exhibit.rows, exhibit.columns)
    )
    found_maps = []
    whole_first = kept["image"].value_counts(sort=False).sort_values(ascending=False, kind="stable").index
    for image in list(whole_first)[: exhibit.photos]:
        of_image = kept[kept["image"] == image]
        cells = tuple(
            tuple(
                _map(of_image[of_image[exhibit.rows].isin(some) & of_image[exhibit.columns].isin(others)], exhibit)
                for others in columns.values()
            )
            for some in rows.values()
        )
        photo = _photo(results.pictures, image, exhibit.where)
        found_maps.append(Maps(image, photo, tuple(rows), tuple(columns), cells))
    return tuple(found_maps)


def _kept_maps(pictures: pd.DataFrame, exhibit: MapsExhibit) -> pd.DataFrame:
    maps_alone = pictures[pictures["kind"] != "photo"].rename(columns={"kind": "metric"})
    maps_alone = maps_alone.astype(dict.fromkeys([*GROUP, "image"], object))
    for key in GROUP:
        patterns = getattr(exhibit.where, key)
        if key == "metric" and key not in (exhibit.rows, exhibit.columns):
            patterns = ("map",)  # not those it was compared with
        known = {name: matches(name, patterns) for name in maps_alone[key].unique()}
        maps_alone = maps_alone[maps_alone[key].map(known).astype(bool)]
    return maps_alone


def _map(rows: pd.DataFrame, exhibit: MapsExhibit) -> Numbers | None:
    """The first map of these rows, after the exhibit's final threshold."""
    if not len(rows):
        return None
    try:
        values: Numbers = np.load(io.BytesIO(rows["data"].iloc[0]), allow_pickle=False).astype(float)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidData(f"a map among the run's pictures cannot be read: {error}; run it again") from error
    method = rows["method"].iloc[0]
    clip = next((ends for pattern, ends in exhibit.clip.items() if matches(method, (pattern,))), None)
    return values if clip is None else _clipped(values, clip)


def _clipped(values: Numbers, clip: tuple[float, float]) -> Numbers:
    import torch  # `pellucid reproduce --list` needs none

    from ..heatmap import clip_percentiles

    return np.asarray(clip_percentiles(torch.from_numpy(values)[None], *clip)[0])


def _photo(pictures: pd.DataFrame, image: str, where: Quantity) -> NDArray[np.uint8] | None:
    """The photo as the first of the models that are shown sees it."""
    rows = pictures[(pictures["kind"] == "photo") & (pictures["image"] == image)]
    fitting = [row.data for row in rows.itertuples() if not row.model or matches(row.model, where.model)]
    if not fitting:
        return None
    try:
        return np.asarray(Image.open(io.BytesIO(fitting[0])).convert("RGB"))
    except OSError as error:
        raise InvalidData(f"a photo among the run's pictures cannot be read: {error}; run it again") from error
