"""What a results table says and how sure that is: means, intervals, paired differences, ranks.

Everything is over images, and what is compared is compared image by image. A value that is undefined (NaN)
enters no mean; it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InvalidData, UnknownName
from ..experiments.store import is_of_variant
from .intervals import Numbers, deviation, interval, mean, paired_ranks

if TYPE_CHECKING:
    from ..experiments.record import MetricRecord
    from ..experiments.store import Results

GROUP = ["model", "variant", "method", "layer", "metric"]
ALL_LAYERS = "all layers"  # the layer of an image's mean over its layers
UNCHANGED = "original"  # the variant that the others are compared with, where no method is graded
POINTS = 57  # of a curve that are kept at most


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
        shared: the layers (model, metric, layer) that ``"all layers"`` are the mean of: those at which every
            method is defined for at least half of the images.
    """

    metrics: Mapping[str, MetricRecord]
    reference: str | None
    values: pd.DataFrame
    undefined: pd.Series[int]
    points: pd.DataFrame
    shared: pd.DataFrame

    @classmethod
    def of(cls, results: Results) -> Statistics:
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
        models = self.values.index.get_level_values("model")
        if model not in models:
            raise UnknownName("model", model, models)
        return [ALL_LAYERS, *self._layers(model=model)]

    def left_out(self, model: str, metric: str) -> list[str]:
        """The layers that are no part of a metric's mean over all layers."""
        shared = self.shared[(self.shared["model"] == model) & (self.shared["metric"] == metric)]["layer"]
        return [layer for layer in self._layers(model=model, metric=metric) if layer not in set(shared)]

    def _layers(self, **asked: str) -> list[str]:
        """The layers at which such rows grade maps."""
        index = rows_at(self.values, **asked).index
        names = index[~is_of_variant(index.get_level_values("method"))].get_level_values("layer").unique()
        return [name for name in names if name != ALL_LAYERS]

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
        """The values of one metric and their summary, a row for each (variant, method); may be empty.

        What grades variants as a whole stands at no layer, and is the same at all.
        """
        asked = {"model": model, "metric": metric}
        if not self.metrics[metric].of_model:
            asked["layer"] = layer
        found = rows_at(self.values, **asked), rows_at(self.summary, **asked)
        return found if "layer" in asked else tuple(rows.droplevel("layer") for rows in found)

    def of_variants(self, model: str) -> pd.DataFrame:
        """The summary of what grades a model's variants as a whole, a row for each (variant, metric)."""
        rows = rows_at(self.summary, model=model)
        of_variant = is_of_variant(rows.index.get_level_values("method"))
        return rows[of_variant].droplevel(["method", "layer"])

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
        return pd.DataFrame(
            {
                "n": (~np.isnan(values)).sum(1),
                "undefined": self.undefined,
                **_means(values, "mean", "low", "high"),
                "std": deviation(values),
                **_means(differences, "difference", "difference_low", "difference_high"),
                "paired": (~np.isnan(differences)).sum(1),
                "rank": self._ranks(),
            }
        )

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The mean and its interval at each point of each curve, indexed as ``points``."""
        return pd.DataFrame(_means(self.points.to_numpy(), "mean", "low", "high"), index=self.points.index)

    def _references(self) -> pd.MultiIndex:
        """The row that each row is compared with."""
        rows = self.values.index.to_frame(index=False)
        of_variant = is_of_variant(rows["method"])
        rows["variant"] = rows["variant"].where(~of_variant, UNCHANGED)
        rows["method"] = rows["method"].where(of_variant, self.reference or "no reference")
        return pd.MultiIndex.from_frame(rows)

    def _ranks(self) -> pd.Series[float]:
        # Variants compete where they are graded themselves, methods within their variant.
        rows = self.values.index.to_frame(index=False)
        rows["variant"] = rows["variant"].mask(is_of_variant(rows["method"]), "")
        found = np.full(len(rows), np.nan)
        values = self.values.to_numpy()
        for key, group in rows.groupby(["model", "variant", "layer", "metric"], sort=False):
            found[group.index] = paired_ranks(values[group.index], self.metrics[key[-1]].higher_is_better)
        return pd.Series(found, index=self.values.index)


def rows_at(rows: pd.DataFrame, **asked: str) -> pd.DataFrame:
    """The rows that have these names in their index, without the levels of the names."""
    found = [rows.index.get_level_values(level) == name for level, name in asked.items()]
    return rows[np.logical_and.reduce(found)].droplevel(list(asked))


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
    at_layers = values[~is_of_variant(values["method"])]
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


def _means(values: Numbers, name: str, low: str, high: str) -> dict[str, Any]:
    """The mean and its interval of each row, by these names."""
    ends = interval(values)
    return {name: mean(values), low: ends[0], high: ends[1]}
