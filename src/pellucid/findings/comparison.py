"""Two runs compared: what both graded, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import InvalidData
from .intervals import Numbers, interval, mean, rounding_of
from .statistics import WHOLE_VARIANT, Statistics

if TYPE_CHECKING:
    from ..experiments.store import Results

_WORDS = ("not told apart", "better", "worse")


def compare(one: Results, other: Results, layer: str | None = None) -> pd.DataFrame:
    """What two runs measured in common, paired over the images of the same names.

    A row is a model, variant, method and metric of both runs; where each has a single model, they may be called
    differently. ``layer`` is where maps are compared; None is the best layer of each in its own run. Columns:
    ``layer`` and ``other_layer``; the ``images`` that have both values; the means ``one`` and ``other`` of these;
    the ``difference`` other - one and its 95 % interval, ``low`` to ``high``; and in the ``verdict`` whether the
    other is "better", "worse" or "not told apart".

    Raises:
        InvalidData: the runs have no image, or no such row, in common.
    """
    ours, theirs = (_values(results, layer) for results in (one, other))
    models = [rows.index.get_level_values("model").unique() for rows in (ours, theirs)]
    if len(models[0]) == len(models[1]) == 1:
        theirs = theirs.rename(index={models[1][0]: models[0][0]}, level="model")
    images = [name for name in ours.columns if name in set(theirs.columns)]
    places, others = (dict(zip(rows.index.droplevel("layer"), rows.index, strict=True)) for rows in (ours, theirs))
    keys = [key for key in places if key in others]
    if not images or not keys:
        what = "images" if keys else "model, variant, method and metric"
        raise InvalidData(f"the two runs have no {what} in common, so nothing in them is paired")
    rows = pd.DataFrame(
        {
            "layer": [places[key][3] for key in keys],
            "other_layer": [others[key][3] for key in keys],
            **_paired(
                ours.loc[[places[key] for key in keys], images].to_numpy(),
                theirs.loc[[others[key] for key in keys], images].to_numpy(),
            ),
        },
        pd.MultiIndex.from_tuples(keys, names=["model", "variant", "method", "metric"]),
    )
    higher = np.array([one.record.metrics[key[-1]].higher_is_better for key in keys])
    signs = rows.pop("sign") * np.where(higher, 1, -1)
    return rows.assign(verdict=[_WORDS[sign] for sign in signs])


def _values(results: Results, layer: str | None) -> pd.DataFrame:
    """A row of values for each contender: at its best layer, or at the one that is given."""
    statistics = Statistics.of(results)
    if layer is None:
        return statistics.best.values
    layers = statistics.values.index.get_level_values("layer")
    return statistics.values[np.isin(layers, [layer, WHOLE_VARIANT])]


def _paired(ours: Numbers, theirs: Numbers) -> dict[str, object]:
    """The columns that are numbers: means where both have values, their difference, and its sign if it is sure."""
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    ours, theirs = np.where(both, ours, np.nan), np.where(both, theirs, np.nan)
    low, high = interval(theirs - ours)
    least = np.array([rounding_of(np.stack(pair)) for pair in zip(ours, theirs, strict=True)])
    return {
        "images": both.sum(1),
        "one": mean(ours),
        "other": mean(theirs),
        "difference": mean(theirs - ours),
        "low": low,
        "high": high,
        "sign": (low > least).astype(int) - (high < -least).astype(int),
    }
