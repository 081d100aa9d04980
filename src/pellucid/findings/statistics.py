"""What a results table says and how sure that is: means, bootstrap intervals, paired differences, ranks.

Everything is over images. One set of resampled images serves all methods, so that what is compared stays
paired. A value that is undefined (NaN) enters no mean; it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InvalidData, UnknownName, require_count

if TYPE_CHECKING:
    from ..experiments.record import MetricRecord
    from ..experiments.store import Results

Numbers = NDArray[np.float64]

GROUP = ["model", "variant", "method", "layer", "metric"]
ALL_LAYERS = "all layers"  # the layer of an image's mean over its layers
ORIGINAL = "original"  # the variant that the others are compared with, where no method is graded
RESAMPLES = 2000
LEAST = 3  # images for an interval: from one or two, resampling says nothing
COVERAGE = 0.95
ROUNDING = 1e-6  # of the largest value: a difference below it is float32 rounding, not a finding
POINTS = 57  # of a curve that are kept at most
CHUNK = 1024  # rows resampled at once


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each of N images is in each of R resamples: ``counts`` (R, N), rows that sum to N."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, images: int, number: int = RESAMPLES, seed: int = 0) -> Resamples:
        """Draw N of N images with replacement, ``number`` times."""
        require_count("resamples", number)
        shares = np.full(images, 1 / images) if images else np.empty(0)
        return cls(np.random.default_rng(seed).multinomial(images, shares, size=number))

    def interval(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """The 95 % percentile-bootstrap interval of each row's mean, values (K, N) -> low (K,), high (K,).

        A resample's mean leaves out NaN, as the mean does. Rows of fewer than 3 known values have none: NaN.
        """
        ends = [self._quantiles(values[start : start + CHUNK]) for start in range(0, len(values), CHUNK)]
        low, high = np.concatenate(ends).T if ends else np.empty((2, 0))
        return low, high

    def _quantiles(self, values: Numbers) -> Numbers:
        known = ~np.isnan(values)
        counts = self.counts.T.astype(float)
        with np.errstate(invalid="ignore"):  # a resample that drew no known value: 0 / 0
            means = (np.where(known, values, 0) @ counts) / (known @ counts)
        means.sort(axis=1)  # NaN last
        last = np.maximum((~np.isnan(means)).sum(1, keepdims=True) - 1, 0)
        place = np.array([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) * last
        below = np.floor(place).astype(int)
        lower, upper = (np.take_along_axis(means, at, 1) for at in (below, np.minimum(below + 1, last)))
        ends: Numbers = lower + (place - below) * (upper - lower)
        ends[known.sum(1) < LEAST] = np.nan
        return ends

    def better(self, values: Numbers, higher: bool) -> NDArray[np.bool_]:
        """Which row of values (M, N) is better than which: (M, M), True where row i is better than row j.

        That is where the interval of their paired difference, over the images that both have, leaves out 0.
        """
        first, second = np.triu_indices(len(values), 1)
        low, high = self.interval(values[first] - values[second])
        least = ROUNDING * np.nan_to_num(np.abs(values)).max(initial=0)
        wins, losses = (low > least, high < -least) if higher else (high < -least, low > least)
        found = np.zeros((len(values), len(values)), bool)
        found[first, second], found[second, first] = wins, losses
        return found

    def ranks(self, values: Numbers, higher: bool) -> Numbers:
        """1 + how many rows are better, for each row of values (M, N); NaN for rows without an interval."""
        ranks: Numbers = 1.0 + self.better(values, higher).sum(0)
        ranks[(~np.isnan(values)).sum(1) < LEAST] = np.nan
        return ranks


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of one results table.

    Attributes:
        metrics: what each says about itself, by text.
        reference: the method that the others are compared with, if any.
        values: one row per (model, variant, method, layer, metric), one column per image; NaN where undefined
            or not measured. The layer ``"all layers"`` holds each image's mean over the shared layers.
        undefined: how many images were measured without a defined value, for each row of ``values``.
        points: the curves, like ``values`` with the levels ``at`` and ``step`` added.
        resamples: of the images.
        shared: the layers (model, metric, layer) that ``"all layers"`` are the mean of: those at which every
            method is defined for at least half of the images.
    """

    metrics: Mapping[str, MetricRecord]
    reference: str | None
    values: pd.DataFrame
    undefined: pd.Series[int]
    points: pd.DataFrame
    resamples: Resamples
    shared: pd.DataFrame

    @classmethod
    def of(cls, results: Results, resamples: int = RESAMPLES, seed: int = 0) -> Statistics:
        """Arrange a results table.

        Raises:
            InvalidData: the table is empty, or has two values for one place.
        """
        table = results.table
        if not len(table):
            raise InvalidData("the results table is empty: no cell has finished; run the benchmark first")
        images = list(dict.fromkeys(table["image"].astype(object)))
        whole = table["at"].isna()
        long = _plain(table[whole], [*GROUP, "image"])
        shared = _shared_layers(long)
        long = _with_all_layers(long, shared)
        curves = _with_all_layers(_plain(_thinned(table[~whole]), [*GROUP, "at", "step", "image"]), shared)
        missing = long["value"].isna().groupby([long[key] for key in GROUP], sort=False).sum()
        values = _wide(long, GROUP, images)
        return cls(
            results.record.metrics,
            results.record.reference,
            values,
            missing.reindex(values.index),
            _wide(curves, [*GROUP, "at", "step"], images),
            Resamples.of(len(images), resamples, seed),
            shared,
        )

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.values.columns)

    def layers(self, model: str) -> list[str]:
        """The layers of a model that were graded, after ``"all layers"``.

        Raises:
            UnknownName: the results have no such model.
        """
        index = self.values.index
        models = index.get_level_values("model")
        if model not in models:
            raise UnknownName("model", model, models)
        names = index[models == model].get_level_values("layer").unique()
        return [ALL_LAYERS, *(name for name in names if name not in ("", ALL_LAYERS))]

    def left_out(self, model: str, metric: str) -> list[str]:
        """The layers that are no part of a metric's mean over all layers."""
        index = self.values.index.to_frame(index=False)
        index = index[(index["model"] == model) & (index["metric"] == metric)]
        shared = self.shared[(self.shared["model"] == model) & (self.shared["metric"] == metric)]["layer"]
        return [layer for layer in index["layer"].unique() if layer not in {"", ALL_LAYERS, *shared}]

    def label(self, metric: str) -> str:
        """A metric's name in words; its whole text if another has the same name."""
        name = self.metrics[metric].name
        alone = [known.name for known in self.metrics.values()].count(name) == 1
        return name.replace("_", " ") if alone else metric

    @property
    def over(self) -> str:
        """What the means are over, as in a sentence: ``"images"``, ``"trainings"``, or both."""
        return " or ".join(sorted({f"{metric.counted}s" for metric in self.metrics.values()}))

    def contenders(self, model: str, layer: str, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The values of one metric and their summary, a row for each (variant, method); may be empty."""
        index = self.values.index
        asked = {"model": model, "layer": layer, "metric": metric}
        rows = np.logical_and.reduce([index.get_level_values(key) == value for key, value in asked.items()])
        keys = list(asked)
        return self.values[rows].droplevel(keys), self.summary[rows].droplevel(keys)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each row of ``values``, indexed alike.

        Columns: ``n`` known values, ``undefined`` ones, ``mean``, ``std`` (of the sample, NaN for one value),
        ``low`` and ``high`` of the mean's 95 % interval; ``difference`` to the reference method of the same
        variant over the ``paired`` images that both have, with ``difference_low`` and ``difference_high``;
        ``rank`` among the methods of the same variant: 1 + how many are better, that is, whose paired
        difference has an interval without 0. Rows that grade a variant are compared with the original.
        """
        values = self.values.to_numpy()
        differences = values - self.values.reindex(self._references()).to_numpy()
        columns = {"n": (~np.isnan(values)).sum(1), "undefined": self.undefined.to_numpy()}
        columns |= _moments(values, self.resamples, ("mean", "low", "high"))
        columns["std"] = _deviation(values)
        columns |= _moments(differences, self.resamples, ("difference", "difference_low", "difference_high"))
        columns["paired"] = (~np.isnan(differences)).sum(1)
        return pd.DataFrame(columns, index=self.values.index).assign(rank=self._ranks())

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The mean and its interval at each point of each curve, indexed as ``points``."""
        values = self.points.to_numpy()
        columns = _moments(values, self.resamples, ("mean", "low", "high"))
        return pd.DataFrame(columns, index=self.points.index)

    def _references(self) -> pd.MultiIndex:
        """The row that each row is compared with."""
        rows = self.values.index.to_frame(index=False)
        of_model = rows["method"] == ""
        rows["variant"] = rows["variant"].where(~of_model, ORIGINAL)
        rows["method"] = rows["method"].where(of_model, self.reference or "no reference")
        return pd.MultiIndex.from_frame(rows)

    def _ranks(self) -> pd.Series[float]:
        # Variants compete where they are graded themselves, methods within their variant.
        rows = self.values.index.to_frame(index=False)
        rows["variant"] = rows["variant"].where(rows["method"] != "", "")
        ranks = np.full(len(rows), np.nan)
        values = self.values.to_numpy()
        for key, group in rows.groupby(["model", "variant", "layer", "metric"], sort=False):
            ranks[group.index] = self.resamples.ranks(values[group.index], self.metrics[key[-1]].higher_is_better)
        return pd.Series(ranks, index=self.values.index)


def _plain(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Keys as plain values (the file's are categories), infinite values as undefined."""
    text = [key for key in keys if key != "at"]
    plain = table[[*keys, "value"]].astype(dict.fromkeys(text, object) | {"value": float})
    plain["value"] = plain["value"].where(np.isfinite(plain["value"]))
    if "step" in text:
        plain["step"] = plain["step"].where(plain["step"].notna(), "")
    if plain.duplicated(list(keys)).any():
        twice = plain[plain.duplicated(list(keys))].iloc[0]
        raise InvalidData(
            f"the results table has two values of {twice['metric']} for {twice['image']} "
            f"({twice['model']}, {twice['variant']}, {twice['method']}, {twice['layer']}); run it in a new folder"
        )
    return plain


def _shared_layers(values: pd.DataFrame) -> pd.DataFrame:
    """The layers to take the mean over, a row for each (model, metric, layer): those at which every method,
    under every variant, is defined for at least half of its images.

    A gradient below global pooling, for one, is constant, and most metrics of it undefined: means over
    different layers would not be comparable. Methods without maps at some layer have no part in this.
    """
    at_layers = values[values["layer"] != ""]
    known = at_layers["value"].notna().groupby([at_layers[key] for key in GROUP], sort=False).mean()
    shares = known.unstack("layer")
    found = []
    for (model, metric), group in shares.groupby(level=["model", "metric"], sort=False):
        everywhere = group.dropna(axis="columns", how="all").dropna()
        found += [(model, metric, layer) for layer in everywhere.columns[everywhere.min() >= 0.5]]
    return pd.DataFrame(found, columns=["model", "metric", "layer"])


def _with_all_layers(table: pd.DataFrame, shared: pd.DataFrame) -> pd.DataFrame:
    """Add each image's mean over the shared layers, for the methods that have them all.

    It is undefined if it is so at one of them.
    """
    keys = [key for key in table.columns if key not in ("layer", "value")]
    chosen = table.merge(shared, on=["model", "metric", "layer"])
    every = shared.groupby(["model", "metric"]).size().rename("every")
    means = chosen.groupby(keys, sort=False)["value"].agg(["mean", "count", "size"]).reset_index()
    means = means.join(every, on=["model", "metric"])
    means["value"] = means["mean"].where(means["count"] == means["size"])
    means = means[means["size"] == means["every"]].assign(layer=ALL_LAYERS)
    return pd.concat([table, means[table.columns]], ignore_index=True) if len(means) else table


def _thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """At most 57 points of each curve, evenly chosen, both ends among them; named steps are all kept."""
    kept = []
    for _, curve in curves.groupby("metric", sort=False, observed=True):
        places = np.sort(curve["at"].unique())
        if len(places) > POINTS and not curve["step"].notna().any():
            places = places[np.rint(np.linspace(0, len(places) - 1, POINTS)).astype(int)]
            kept.append(curve[curve["at"].isin(places)])
        else:
            kept.append(curve)
    return pd.concat(kept) if kept else curves


def _wide(long: pd.DataFrame, keys: Sequence[str], images: Sequence[str]) -> pd.DataFrame:
    """One row per key in order of appearance, one column per image."""
    order = pd.MultiIndex.from_frame(long[list(keys)].drop_duplicates())
    wide = long.set_index([*keys, "image"])["value"].unstack("image")
    return wide.reindex(index=order, columns=list(images)).astype(float)


def _moments(values: Numbers, resamples: Resamples, names: Sequence[str]) -> dict[str, Numbers]:
    """Mean, low and high of each row."""
    low, high = resamples.interval(values)
    return dict(zip(names, (_mean(values), low, high), strict=True))


def _mean(values: Numbers) -> Numbers:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # no known value: 0 / 0
        mean: Numbers = np.where(known, values, 0).sum(1) / known.sum(1)
    return mean


def _deviation(values: Numbers) -> Numbers:
    known = ~np.isnan(values)
    squares = np.where(known, values - _mean(values)[:, None], 0) ** 2
    with np.errstate(invalid="ignore"):  # one known value: 0 / 0
        deviation: Numbers = np.sqrt(squares.sum(1) / np.maximum(known.sum(1) - 1, 0))
    return deviation
