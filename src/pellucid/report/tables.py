"""The tables of a benchmark's page: means at a glance, and all statistics of one metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..findings.statistics import ALL_LAYERS, LEAST, ORIGINAL, Statistics
from ..findings.trust import FLOORS, Contender, Ranking
from ..findings.wording import decimals, joined, number


@dataclass(frozen=True)
class Whisker:
    """An interval and its mean as shares of 100 of the width it is drawn in."""

    left: float
    width: float
    at: float


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table: its text, a fainter note, what it is sorted by (None: last), how it looks."""

    text: str
    note: str = ""
    by: float | None = None
    best: bool = False
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Column:
    """A column's title, what it is measured in, and whether a first click sorts the highest to the top."""

    title: str
    note: str = ""
    descending: bool = False


@dataclass(frozen=True)
class Row:
    """A row's title, whether it is a floor (random, edges), and its cells."""

    title: str
    floor: bool
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Scores:
    """A sortable table, its title and the lines below it."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    metric: str = ""


def overview(statistics: Statistics, model: str, variant: str, layer: str) -> Scores | None:
    """Methods x metrics: the mean and its rank."""
    summary = rows_at(statistics, model, variant, layer)
    if summary.empty:
        return None
    index = summary.index
    methods, metrics = (list(index.get_level_values(key).unique()) for key in ("method", "metric"))
    places = {metric: _places(summary.xs(metric, level="metric")) for metric in metrics}
    found = dict(zip(index, summary.to_dict("records"), strict=True))
    rows = [
        Row(method, is_floor(method), [_mean_cell(found.get((method, one)), places[one]) for one in metrics])
        for method in methods
    ]
    columns = [Column("Method"), *(column_of(statistics, metric) for metric in metrics)]
    return Scores(f"{variant}, {layer}", columns, rows)


def details(statistics: Statistics, model: str, variant: str, layer: str) -> list[Scores]:
    """For each metric, a table of all its statistics by method."""
    summary = rows_at(statistics, model, variant, layer)
    metrics = summary.index.get_level_values("metric").unique()
    tables = [(metric, summary.xs(metric, level="metric")) for metric in metrics]
    left_out = {metric: statistics.left_out(model, metric) for metric in metrics if layer == ALL_LAYERS}
    found = [_detail(statistics, metric, rows, "Method", statistics.reference) for metric, rows in tables]
    return [replace(one, notes=[*one.notes, *_layers_note(left_out.get(one.metric, []))]) for one in found]


def of_variants(statistics: Statistics, model: str) -> list[Scores]:
    """The metrics that grade variants, by variant."""
    summary = statistics.summary
    index = summary.index
    rows = summary[(index.get_level_values("model") == model) & (index.get_level_values("method") == "")]
    rows = rows.droplevel(["model", "method", "layer"])
    metrics = rows.index.get_level_values("metric").unique()
    return [_detail(statistics, one, rows.xs(one, level="metric"), "Variant", ORIGINAL) for one in metrics]


def rows_at(statistics: Statistics, model: str, variant: str, layer: str) -> pd.DataFrame:
    """The summary of all methods at one place, indexed by (method, metric)."""
    summary = statistics.summary
    index = summary.index
    asked = {"model": model, "variant": variant, "layer": layer}
    chosen = np.logical_and.reduce([index.get_level_values(key) == value for key, value in asked.items()])
    return summary[chosen].droplevel(list(asked))


def is_floor(method: str) -> bool:
    """Whether a method knows nothing of the network."""
    return method.split("(")[0].strip() in FLOORS


def column_of(statistics: Statistics, metric: str) -> Column:
    """A metric as a column's title."""
    facts = statistics.metrics[metric]
    higher = bool(facts["higher_is_better"])
    return Column(
        statistics.label(metric), f"{facts['unit']}, {'higher' if higher else 'lower'} is better", higher
    )


def contender_rows(ranking: Ranking) -> list[Row]:
    """A ranking's first methods, each under its best variant, and what knows nothing, drawn on one scale."""
    shown = ranking.contenders if ranking.of_variants else _first(ranking)
    scale = _scale([one.low for one in shown], [one.high for one in shown], [one.mean for one in shown])
    several = len({one.variant for one in ranking.contenders}) > 1
    rows = []
    for one in shown:
        title = (one.method or one.variant) + (f" ({one.variant})" if one.method and several else "")
        whisker = _whisker(scale, one.low, one.high, one.mean)
        text = number(one.mean, ranking.places)
        rows.append(Row(title, bool(one.floor), [Cell(text, best=one in ranking.best, whisker=whisker)]))
    return rows


def _first(ranking: Ranking, most: int = 4) -> list[Contender]:
    leading: dict[str, Contender] = {}
    for one in sorted(ranking.contenders, key=lambda one: one not in ranking.best):
        leading.setdefault(one.method, one)
    shown = [one for one in ranking.contenders if leading[one.method] is one]
    methods = [one for one in shown if not one.floor][:most]
    return [one for one in shown if one in methods or one.floor]


def _detail(statistics: Statistics, metric: str, rows: pd.DataFrame, what: str, reference: str | None) -> Scores:
    column = column_of(statistics, metric)
    known = reference in rows.index
    columns = [
        Column(what), Column("Rank"), Column("Mean", column.note, column.descending), Column("95 % interval"),
        Column("Std"), *([Column(f"Difference to {reference}", "paired", column.descending)] if known else []),
        Column("Images"), Column("Undefined"),
    ]  # fmt: skip
    places = _places(rows)
    scale = _scale(rows["low"], rows["high"], rows["mean"])
    lines = [
        Row(name, is_floor(name), _detail_cells(row, places, scale, name == reference, known))
        for name, row in zip(rows.index, rows.to_dict("records"), strict=True)
    ]
    return Scores(column.title, columns, lines, _notes(statistics, metric, rows), metric)


def _detail_cells(
    row: dict[str, Any], places: int, scale: tuple[float, float], itself: bool, known: bool
) -> list[Cell]:
    low, high, mean = row["low"], row["high"], row["mean"]
    cells = [
        _rank_cell(row),
        Cell(number(mean, places), by=_known(mean)),
        Cell(_ends(low, high, places), by=_known(low), whisker=_whisker(scale, low, high, mean)),
        Cell(number(row["std"], places), by=_known(row["std"])),
    ]
    if known:
        difference = row["difference"]
        note = "" if itself else _ends(row["difference_low"], row["difference_high"], places)
        text = "–" if itself else number(difference, places)
        cells.append(Cell(text, note, 0.0 if itself else _known(difference)))
    counts = [Cell(str(int(row[key])), by=float(row[key])) for key in ("n", "undefined")]
    return [*cells, *counts]


def _notes(statistics: Statistics, metric: str, rows: pd.DataFrame) -> list[str]:
    facts = statistics.metrics[metric]
    notes = [f"{facts['paper']}."] if facts.get("paper") else []
    undefined = int(rows["undefined"].sum())
    if undefined:
        why = facts.get("undefined") or "the map is not one that it can grade"
        notes.append(f"{undefined} value{'s are' if undefined > 1 else ' is'} undefined, and in no mean: {why}.")
    if (rows["n"] < LEAST).any():
        notes.append(f"Fewer than {LEAST} values give neither an interval nor a rank.")
    return notes


def _layers_note(left_out: Sequence[str]) -> list[str]:
    if not left_out:
        return []
    return [f"The mean leaves out {joined(left_out)}, where some method is undefined on most images."]


def _mean_cell(row: dict[str, Any] | None, places: int) -> Cell:
    if row is None:
        return Cell("–")
    rank = _rank_cell(row)
    return Cell(number(row["mean"], places), rank.text.rstrip("–"), _known(row["mean"]), rank.best)


def _rank_cell(row: dict[str, Any]) -> Cell:
    rank = row["rank"]
    return Cell("–") if math.isnan(rank) else Cell(f"{rank:.0f}", by=float(rank), best=rank == 1)


def _ends(low: float, high: float, places: int) -> str:
    return f"{number(low, places)} to {number(high, places)}" if math.isfinite(low) else "–"


def _places(rows: pd.DataFrame) -> int:
    """The decimals of a column: those of its typical interval."""
    halves = ((rows["high"] - rows["low"]) / 2).to_numpy()
    halves = halves[np.isfinite(halves) & (halves > 0)]
    return decimals(float(np.median(halves)) if len(halves) else math.nan)


def _scale(lows: Sequence[float], highs: Sequence[float], means: Sequence[float]) -> tuple[float, float]:
    ends = np.concatenate([np.asarray(one, float) for one in (lows, highs, means)])
    ends = ends[np.isfinite(ends)]
    return (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)


def _whisker(scale: tuple[float, float], low: float, high: float, mean: float) -> Whisker | None:
    if not math.isfinite(low):
        return None
    first, length = scale[0], scale[1] - scale[0] or 1.0
    left, right, at = (100 * (value - first) / length for value in (low, high, mean))
    return Whisker(left, right - left, at)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
