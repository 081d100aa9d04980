"""What a results table says and how sure that is: means, intervals, paired differences, ranks.

Everything is over images, and what is compared is compared image by image. A value that is undefined (NaN)
enters no mean; it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import InvalidData, UnknownName
from .intervals import (
    Numbers,
    best_row,
    deviation,
    interval,
    mean,
    paired_interval,
    paired_ranks,
    share_interval,
)

if TYPE_CHECKING:
    from ..experiments.record import MetricRecord
    from ..experiments.store import Results

GROUP = ["model", "variant", "method", "layer", "metric"]
CONTENDER = ["model", "variant", "method", "metric"]
UNCHANGED = "original"  # the variant that the others are compared with, where no method is graded
AT_INPUT = "input"
POINTS = 57  # of a curve that are kept at most
WHOLE_VARIANT = ""  # the null method and layer of what grades a variant as a whole: an index takes no null


def is_of_variant(method: Any) -> Any:
    """Whether the row of a method, or each row of a column of them, grades a variant as a whole."""
    return method == WHOLE_VARIANT


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of one results table.

    Attributes:
        metrics: what each says about itself, by text.
        reference: the method that the others are compared with, if any.
        values: one row per (model, variant, method, layer, metric), one column per image, by its name, or
            training, by its number; NaN where undefined or not measured.
        missing: like ``values``: whether the image was measured without a defined value.
        points: the curves, like ``values`` with the levels ``at`` and ``step`` added.
        checked: where each row has a layer of its own (``best``), the values by which differences are checked.
        hidden: methods whose maps at the input are the image's own, which is no layer to be best at.
    """

    metrics: Mapping[str, MetricRecord]
    reference: str | None
    values: pd.DataFrame
    missing: pd.DataFrame
    points: pd.DataFrame
    checked: pd.DataFrame | None = None
    hidden: tuple[str, ...] = ()

    @classmethod
    def of(cls, results: Results) -> Statistics:
        """Arrange a results table.

        Raises:
            InvalidData: the table is empty, or has two values for one place.
        """
        table = results.table
        if not len(table):
            raise InvalidData(
                "no cell of the run has finished; the benchmark's command goes on, or says why they fail"
            )
        # Values of a training have no image; its number takes the place of a name, so that both can be columns.
        names = table["image"].astype(object)
        table = table.assign(image=names.where(names.notna(), table["training"].astype(object)))
        images = list(dict.fromkeys(table["image"]))
        whole = table["at"].isna()
        long = _plain(table[whole], [*GROUP, "image"])
        curves = _plain(_thinned(table[~whole]), [*GROUP, "at", "step", "image"])
        gone = long.assign(value=long["value"].isna().astype(float))
        return cls(
            results.record.metrics,
            results.record.reference,
            _wide(long, GROUP, images),
            _wide(gone, GROUP, images) == 1,
            _wide(curves, [*GROUP, "at", "step"], images),
            hidden=results.record.hidden,
        )

    @cached_property
    def best(self) -> Statistics:
        """Each method under each variant at the layer at which a metric finds it best, which its row names.

        What is chosen by values is flattered by them, the more, the more layers there are. So who is better is
        told by two comparisons that must agree: at the layers named, and where each half of the images is judged
        at the layer that is best on the other half (``checked``), which is no more often wrong than for one layer.
        Grad-CAM's map at the input, which is the image, is no choice beside others.
        A layer is a choice where at least nine tenths as many images are defined as at the best known one.
        """
        keys = self.values.index.to_frame(index=False)
        values = self.values.to_numpy()
        named, chosen = [], []
        for key, group in keys.groupby(CONTENDER, sort=False):
            if key[2] in self.hidden and (group["layer"] != AT_INPUT).any():
                group = group[group["layer"] != AT_INPUT]
            place, each = best_row(values[group.index], self.metrics[key[-1]].higher_is_better)
            named.append(group.index[place])
            chosen.append(group.index.to_numpy()[each])
        index = self.values.index[named]
        return replace(
            self,
            values=self.values.iloc[named],
            missing=self.missing.iloc[named],
            points=self.points[self.points.index.droplevel(["at", "step"]).isin(index)],
            # In row i and column j stands image j's value at the
            # layer that the other half of the images chose for i.
            checked=pd.DataFrame(values[np.array(chosen), np.arange(self.images)], index, self.values.columns),
        )

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.values.columns)

    def layers(self, model: str) -> list[str]:
        """The layers of a model at which maps were graded.

        Raises:
            UnknownName: the results have no such model.
        """
        models = self.values.index.get_level_values("model")
        if model not in models:
            raise UnknownName("model", model, models)
        index = rows_at(self.values, model=model).index
        return list(index[~is_of_variant(index.get_level_values("method"))].get_level_values("layer").unique())

    def absent(self, model: str, layer: str | None, metric: str) -> list[str]:
        """The methods that a metric grades at other layers of a model alone."""
        index = rows_at(self.values, model=model, metric=metric).index
        here = _at_layer(rows_at(self.values, model=model, metric=metric), layer).index
        every, some = (list(found.get_level_values("method").unique()) for found in (index, here))
        return [method for method in every if method not in some]

    def label(self, metric: str) -> str:
        """A metric's name in words; its whole text if another has the same name."""
        name = self.metrics[metric].name
        alone = [known.name for known in self.metrics.values()].count(name) == 1
        return name.replace("_", " ") if alone else metric

    @property
    def over(self) -> str:
        """What the means are over, as in a sentence: ``"images"``, ``"trainings"``, or both."""
        return " or ".join(sorted({f"{metric.counted}s" for metric in self.metrics.values()}))

    def contenders(
        self, model: str, layer: str | None, metric: str
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The values of one metric at a layer, or at each row's best; what they are checked by; and their summary.

        There is a row for each (variant, method, layer), or none. What grades variants as a whole stands at no
        layer, and is the same at all.
        """
        here = self if layer is not None else self.best
        checked = here.values if here.checked is None else here.checked
        values, checked, summary = (
            _at_layer(rows_at(rows, model=model, metric=metric), layer)
            for rows in (here.values, checked, here.summary)
        )
        return values, checked, summary

    def scores(self, model: str, variant: str | None, layer: str | None) -> pd.DataFrame:
        """The summary of maps by (method, metric) at a layer, or at each one's best, which ``layer`` says.

        None for ``variant`` are all variants, by which the rows are told then, too.
        """
        at = {"model": model} if variant is None else {"model": model, "variant": variant}
        rows = rows_at((self if layer is not None else self.best).summary, **at)
        rows = _at_layer(rows[~is_of_variant(rows.index.get_level_values("method"))], layer)
        return rows.reset_index("layer")

    def drawn(self, model: str, variant: str, layer: str | None) -> pd.DataFrame:
        """The mean curves at a layer, or of each method at its best one, by (method, metric, at, step)."""
        rows = rows_at((self if layer is not None else self.best).curves, model=model, variant=variant)
        return _at_layer(rows, layer).droplevel("layer")

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
        ``rank`` among the methods of the same variant: 1 + how many are better (``intervals.told_apart``); and
        whether it is ``shared``. Rows that grade a variant are compared with the original.
        """
        values, ends = self.values.to_numpy(), self._ends(self.values)
        references = self._references()
        differences = values - references
        low, high = paired_interval(values, references)
        return pd.DataFrame(
            {
                "n": (~np.isnan(values)).sum(1),
                "undefined": self.missing.sum(axis=1).to_numpy(),
                **_means(values, *ends, _are_hits(values, *ends)),
                "std": deviation(values),
                "difference": mean(differences),
                "difference_low": low,
                "difference_high": high,
                "paired": (~np.isnan(differences)).sum(1),
                **self._ranks(),
            },
            self.values.index,
        )

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The mean of ``n`` values and its interval at each point of each curve, indexed as ``points``."""
        values = self.points.to_numpy()
        means = _means(values, *self._ends(self.points))
        return pd.DataFrame({"n": (~np.isnan(values)).sum(1), **means}, index=self.points.index)

    def _ends(self, rows: pd.DataFrame) -> tuple[Numbers, Numbers]:
        """The least and the greatest value there can be in each row."""
        metrics = [self.metrics[name].ends for name in rows.index.get_level_values("metric")]
        least = np.array([-np.inf if low is None else low for low, _ in metrics], float)
        return least, np.array([np.inf if high is None else high for _, high in metrics], float)

    def _references(self) -> Numbers:
        """The values that each row is compared with."""
        rows = self.values.index.to_frame(index=False)[self._compared]
        of_variant = is_of_variant(rows["method"])
        rows["variant"] = rows["variant"].where(~of_variant, UNCHANGED)
        # Where no reference is named no row has this key, and all differences are NaN.
        rows["method"] = rows["method"].where(of_variant, self.reference or "no reference")
        values = self.values if self.checked is None else self.values.droplevel("layer")
        found: Numbers = values.reindex(pd.MultiIndex.from_frame(rows)).to_numpy()
        return found

    @property
    def _compared(self) -> list[str]:
        """What tells rows apart that are compared."""
        return GROUP if self.checked is None else CONTENDER

    def _ranks(self) -> dict[str, Any]:
        # Variants compete where they are graded themselves, methods within their variant.
        rows = self.values.index.to_frame(index=False)
        rows["variant"] = rows["variant"].mask(is_of_variant(rows["method"]), "")
        ranks, shared = np.full(len(rows), np.nan), np.zeros(len(rows), bool)
        values = [rows.to_numpy() for rows in (self.values, self.checked) if rows is not None]
        for key, group in rows.groupby([name for name in self._compared if name != "method"], sort=False):
            some = [numbers[group.index] for numbers in values]
            found = paired_ranks(some[0], self.metrics[key[-1]].higher_is_better, *some[1:])
            ranks[group.index] = found
            shared[group.index] = (found[:, None] == found).sum(1) > 1
        return {"rank": ranks, "shared": shared}


def _at_layer(rows: pd.DataFrame, layer: str | None) -> pd.DataFrame:
    """The rows at a layer, if one is given, and those at none."""
    return rows if layer is None else rows[np.isin(rows.index.get_level_values("layer"), [layer, WHOLE_VARIANT])]


def rows_at(rows: pd.DataFrame, **asked: str) -> pd.DataFrame:
    """The rows that have these names in their index, without the levels of the names."""
    found = [rows.index.get_level_values(level) == name for level, name in asked.items()]
    return rows[np.logical_and.reduce(found)].droplevel(list(asked))


def _plain(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Keys as plain values (the file's are categories), infinite values as undefined."""
    text = [key for key in keys if key != "at"]
    plain = table[[*keys, "value"]].astype(dict.fromkeys(text, object) | {"value": float})
    plain["value"] = plain["value"].where(np.isfinite(plain["value"]))
    plain[text] = plain[text].where(plain[text].notna(), "")
    if plain.duplicated(list(keys)).any():
        twice = plain[plain.duplicated(list(keys))].iloc[0]
        raise InvalidData(
            f"the results table has two values of {twice['metric']} for {twice['image']} "
            f"({twice['model']}, {twice['variant']}, {twice['method']}, {twice['layer']}); run it in a new folder"
        )
    return plain


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


def _are_hits(values: Numbers, least: Numbers, most: Numbers) -> NDArray[np.bool_]:
    """Which rows have no value but the ends 0 and 1 of what they can have, so that their mean is a share."""
    found = (np.isnan(values) | np.isin(values, (0, 1))).all(1) & (least == 0) & (most == 1)
    return np.asarray(found)


def _means(
    values: Numbers, least: Numbers, most: Numbers, hits: NDArray[np.bool_] | None = None
) -> dict[str, Numbers]:
    """The mean and its interval of each row, never where no value can be; of ``hits`` that of a share."""
    low, high = interval(values)
    if hits is not None and hits.any():
        low[hits], high[hits] = share_interval(values[hits])
    return {"mean": mean(values), "low": np.maximum(low, least), "high": np.minimum(high, most)}
