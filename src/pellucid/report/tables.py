"""The tables of a benchmark's page: means at a glance, and all statistics of one metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..findings.digits import interval_ends, number, shared_decimals
from ..findings.intervals import LEAST
from ..findings.ranking import Contender, Ranking, floor_of
from ..findings.statistics import UNCHANGED, Statistics
from ..findings.wording import at_layer, joined, judged_at
from .pages import Table, TableCell, TableColumn, TableRow, Whisker


def overview(
    statistics: Statistics, model: str, variant: str, layer: str | None, intervals: bool = False
) -> Table | None:
    """Methods x metrics: the mean, its rank, and the layer where each has its own (``layer=None``).

    All variants have as many decimals, so that they can be read beside each other; with ``intervals`` each mean's
    95 % interval follows.
    """
    summary = statistics.scores(model, variant, layer)
    if summary.empty:
        return None
    methods, metrics = (list(summary.index.get_level_values(key).unique()) for key in ("method", "metric"))
    of_all = _by_metric(statistics.scores(model, None, layer))
    places = {metric: shared_decimals(rows["low"], rows["high"]) for metric, rows in of_all}
    found = dict(zip(summary.index, summary.to_dict("records"), strict=True))
    kinds = {"own_layer": layer is None, "interval": intervals}
    rows = [
        _row(method, [_mean_cell(found.get((method, metric)), places[metric], **kinds) for metric in metrics])
        for method in methods
    ]
    columns = [TableColumn("Method"), *(column_of(statistics, metric) for metric in metrics)]
    return Table(columns, rows, title=f"{variant}, {judged_at(layer)}", sortable=True)


def variants_overview(statistics: Statistics, model: str, intervals: bool = False) -> Table:
    """Variants x the metrics that grade them as a whole: the mean and its rank, as ``overview`` has them."""
    summary = statistics.of_variants(model)
    columns: list[TableColumn] = [TableColumn("Variant")]
    cells: dict[str, dict[str, TableCell]] = {}
    for metric, rows in _by_metric(summary):
        columns.append(column_of(statistics, metric))
        places = shared_decimals(rows["low"], rows["high"])
        for variant, row in zip(rows.index, rows.to_dict("records"), strict=True):
            cells.setdefault(variant, {})[metric] = _mean_cell(row, places, interval=intervals)
    metrics = [metric for metric, _ in _by_metric(summary)]
    rows = [_row(name, [of.get(metric, TableCell("–")) for metric in metrics]) for name, of in cells.items()]
    return Table(columns, rows)


def details(statistics: Statistics, model: str, variant: str, layer: str | None) -> list[Table]:
    """For each metric, a table of all its statistics by method."""
    found = []
    for metric, rows in _by_metric(statistics.scores(model, variant, layer)):
        scores = _detail(statistics, metric, rows, "Method", statistics.reference, layer is None)
        absent = statistics.absent(model, layer, metric)
        if absent:
            note = f"Not here, since they have maps at other layers alone: {joined(absent)}."
            scores = replace(scores, notes=[*scores.notes, note])
        found.append(scores)
    return found


def of_variants(statistics: Statistics, model: str) -> list[Table]:
    """The metrics that grade variants, by variant."""
    rows = statistics.of_variants(model)
    return [_detail(statistics, metric, some, "Variant", UNCHANGED, False) for metric, some in _by_metric(rows)]


def measures(statistics: Statistics) -> Table:
    """What each metric asks, and where it is from."""
    told = [(column_of(statistics, text), metric) for text, metric in statistics.metrics.items()]
    rows = [[column.title, metric.axis, column.note, metric.paper] for column, metric in told]
    return Table.of(["Measure", "Asks about", "Unit", "Source"], rows, "The measures")


def column_of(statistics: Statistics, metric: str) -> TableColumn:
    """A metric as a column's title."""
    known = statistics.metrics[metric]
    return TableColumn(statistics.label(metric), known.direction, known.higher_is_better)


def contender_rows(ranking: Ranking) -> list[TableRow]:
    """A ranking's first methods, each under its best variant, and its floors, drawn on one scale."""
    shown = ranking.contenders if ranking.of_variants else _first(ranking)
    whiskers = _whiskers([one.low for one in shown], [one.high for one in shown], [one.mean for one in shown])
    several = len({one.variant for one in ranking.contenders}) > 1
    rows = []
    for one, whisker in zip(shown, whiskers, strict=True):
        title = (one.method or one.variant) + (f" ({one.variant})" if one.method and several else "")
        title += f" {at_layer(one.layer)}" if ranking.several_layers else ""
        is_best = one in ranking.best
        beaten = ("not beaten" if is_best else "beaten") if one.floor else ""
        score = TableCell(number(one.mean, ranking.places), beaten, best=is_best, whisker=whisker)
        rows.append(TableRow(title, [score], bool(one.floor)))
    return rows


def _first(ranking: Ranking, most: int = 4) -> list[Contender]:
    leading: dict[str, Contender] = {}
    for one in sorted(ranking.contenders, key=lambda one: one not in ranking.best):
        leading.setdefault(one.method, one)
    shown = [one for one in ranking.contenders if leading[one.method] is one]
    methods = [one for one in shown if not one.floor][:most]
    return [one for one in shown if one in methods or one.floor]


def _by_metric(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    metrics = rows.index.get_level_values("metric").unique()
    return [(metric, rows.xs(metric, level="metric")) for metric in metrics]


def _row(title: str, cells: Sequence[TableCell]) -> TableRow:
    return TableRow(title, cells, bool(floor_of(title)))


def _detail(
    statistics: Statistics, metric: str, rows: pd.DataFrame, what: str, reference: str | None, own_layers: bool
) -> Table:
    column = column_of(statistics, metric)
    known = reference in rows.index
    difference = [TableColumn(f"Difference to {reference}", "paired", column.descending)] if known else []
    columns = [
        TableColumn(what),
        TableColumn("Rank"),
        replace(column, title="Mean"),
        TableColumn("95 % interval"),
        TableColumn("Std"),
        *difference,
        TableColumn("Images"),
        TableColumn("Undefined"),
        *([TableColumn("Best layer")] if own_layers else []),
    ]
    places = shared_decimals(rows["low"], rows["high"])
    whiskers = _whiskers(rows["low"], rows["high"], rows["mean"])
    lines = [
        _row(name, _detail_cells(row, places, whisker, name == reference, known, own_layers))
        for name, row, whisker in zip(rows.index, rows.to_dict("records"), whiskers, strict=True)
    ]
    notes = _notes(statistics, metric, rows)
    return Table(columns, lines, title=column.title, notes=notes, metric=metric, sortable=True)


def _detail_cells(
    row: dict[str, Any], places: int, whisker: Whisker | None, itself: bool, known: bool, own_layers: bool
) -> list[TableCell]:
    low, high = row["low"], row["high"]
    cells = [
        _rank_cell(row),
        _number_cell(row["mean"], places),
        TableCell(_ends(low, high, places), by=_sortable(low), whisker=whisker),
        _number_cell(row["std"], places),
    ]
    if known and itself:
        cells.append(TableCell("–", by=0.0))
    elif known:
        ends = _ends(row["difference_low"], row["difference_high"], places)
        cells.append(replace(_number_cell(row["difference"], places), note=ends))
    cells += [TableCell(str(int(row[key])), by=float(row[key])) for key in ("n", "undefined")]
    return [*cells, TableCell(row["layer"])] if own_layers else cells


def _notes(statistics: Statistics, metric: str, rows: pd.DataFrame) -> list[str]:
    known = statistics.metrics[metric]
    notes = [f"{known.paper}."] if known.paper else []
    undefined = int(rows["undefined"].sum())
    if undefined:
        why = known.undefined or "the map is not one that it can grade"
        notes.append(f"{undefined} value{'s are' if undefined > 1 else ' is'} undefined, and in no mean: {why}.")
    if (rows["n"] < LEAST).any():
        notes.append(f"Fewer than {LEAST} values give neither an interval nor a rank.")
    return notes


def _mean_cell(
    row: dict[str, Any] | None, places: int, own_layer: bool = False, interval: bool = False
) -> TableCell:
    if row is None:
        return TableCell("–")
    rank, cell = _rank_cell(row), _number_cell(row["mean"], places)
    at = at_layer(row["layer"]) if own_layer and row["layer"] else ""
    place = " ".join(filter(None, [rank.text.rstrip("–"), at]))
    note = ", ".join(filter(None, [place, known_text(row)]))
    if interval and math.isfinite(row["low"]):
        cell = replace(cell, text=f"{cell.text} [{', '.join(interval_ends(row['low'], row['high'], places))}]")
    return replace(cell, note=note, best=rank.best)


def known_text(row: Mapping[Any, Any]) -> str:
    """Of how many values a mean of ``Statistics.summary`` is, where some are undefined."""
    return f"{row['n']:.0f} of {row['n'] + row['undefined']:.0f}" if row["n"] and row["undefined"] else ""


def rank_text(row: Mapping[Any, Any]) -> str:
    """A rank of ``Statistics.summary`` as text: one that several share with ``=`` before it, none as a dash."""
    return "–" if math.isnan(row["rank"]) else f"{'=' if row['shared'] else ''}{row['rank']:.0f}"


def _rank_cell(row: dict[str, Any]) -> TableCell:
    rank = row["rank"]
    return TableCell("–") if math.isnan(rank) else TableCell(rank_text(row), by=float(rank), best=rank == 1)


def _number_cell(value: float, places: int) -> TableCell:
    return TableCell(number(value, places), by=_sortable(value))


def _sortable(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ends(low: float, high: float, places: int) -> str:
    return " to ".join(interval_ends(low, high, places)) if math.isfinite(low) else "–"


def _whiskers(lows: Sequence[float], highs: Sequence[float], means: Sequence[float]) -> list[Whisker | None]:
    """Intervals and means drawn on one scale, which all of them span; None where there is no interval.

    Where all are one number, it stands in the middle: neither end is its own.
    """
    ends = np.array([lows, highs, means], float)
    known = ends[np.isfinite(ends)]
    first, last = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if first == last:
        first, last = first - 1, last + 1
    shares = 100 * (ends - first) / (last - first)
    return [
        Whisker(float(left), float(right - left), float(at)) if math.isfinite(left) else None
        for left, right, at in shares.T
    ]
