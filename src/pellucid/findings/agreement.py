"""How far raters agree with each other, and computed stand-ins with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import counted
from ..experiments.ratings import RATED
from .digits import interval_ends, number
from .intervals import Numbers, interval

if TYPE_CHECKING:
    from ..experiments.store import Results

_MAP = ["model", "variant", "method", "layer", "image"]


def alpha(ratings: Numbers) -> float:
    """Krippendorff's alpha of ordinal ratings (raters, maps), NaN where a rater gave none: 1 - D_o / D_e.

    D_o sums the distances between the ratings of one map, each map's pairs weighted by 1 / (its ratings - 1), D_e
    those between all ratings that have another, by 1 / (their number - 1). The distance of two ratings is the
    square of how many ratings lie between them, half of those of either's own value counted. 1 is agreement, 0
    what chance gives; NaN where all ratings are one value, or no map has two. (K. Krippendorff, Computing
    Krippendorff's Alpha-Reliability, 2011.)
    """
    return _alpha(_counts(ratings))


def alpha_interval(ratings: Numbers) -> tuple[float, float]:
    """The 95 % interval of ``alpha`` over maps, from the pseudo-values of leaving out each map in turn."""
    counts = _counts(ratings)
    n = len(counts)
    whole = _alpha(counts)
    others = np.array([_alpha(np.delete(counts, place, 0)) for place in range(n)])
    # The jackknife's pseudo-values n a - (n - 1) a_i behave as n independent values whose mean is alpha.
    low, high = interval((n * whole - (n - 1) * others)[None])
    return float(low[0]), float(high[0])


def _counts(ratings: Numbers) -> Numbers:
    """How often each map (rows) was given each value (columns), of maps with two ratings at least."""
    values = np.unique(ratings[np.isfinite(ratings)])
    counts: Numbers = (ratings.T[:, :, None] == values).sum(1).astype(float)
    of_pairs: Numbers = counts[counts.sum(1) > 1]
    return of_pairs


def _alpha(counts: Numbers) -> float:
    of_value, n = counts.sum(0), counts.sum()
    # These are each value's mean rank among all ratings, whose differences are Krippendorff's ordinal distances.
    ranks = np.cumsum(of_value) - of_value / 2
    distance = (ranks[:, None] - ranks) ** 2
    # Pairs of a rating with itself lie on the diagonal, whose distance is 0, so they need not be taken off.
    pairs = counts[:, :, None] * counts[:, None, :] / (counts.sum(1) - 1)[:, None, None]
    expected = float((np.outer(of_value, of_value) * distance).sum())
    return 1 - float((pairs.sum(0) * distance).sum()) * (float(n) - 1) / expected if expected else math.nan


def raters_told(results: Results, metric: str) -> str:
    """How many rated what and how far they agree, and how far the stand-in's order of methods is theirs."""
    table = results.table[results.table["metric"] == metric]
    of_raters = table[table["at"].notna()].astype(dict.fromkeys([*_MAP, "step"], object))
    ratings = of_raters.pivot(index="step", columns=_MAP, values="value").to_numpy(float)
    found, (low, high) = alpha(ratings), alpha_interval(ratings)
    raters, maps = ratings.shape
    told = f"{counted(raters, 'rater')} rated {counted(maps, 'map')}"
    if math.isfinite(found):
        ends = f" (95 % interval {' to '.join(interval_ends(low, high, 2))})" if math.isfinite(low) else ""
        told += f"; Krippendorff's alpha, their agreement, is {number(found, 2)}{ends}"
    correlation = _of_stand_in(results, metric)
    if math.isfinite(correlation):
        told += f"; Spearman's correlation with the computed stand-in, over methods, is {number(correlation, 2)}"
    return f"{told}."


def _of_stand_in(results: Results, metric: str) -> float:
    """Spearman's correlation of methods' mean ratings with their stand-ins'; NaN for fewer than 3 methods."""
    names = {known.name: text for text, known in results.record.metrics.items()}
    stand_in = names.get(metric.removeprefix(RATED))
    table = results.table[results.table["at"].isna()].astype(dict.fromkeys([*_MAP, "metric"], object))
    means = table.pivot_table(index=_MAP[:-1], columns="metric", values="value")
    if stand_in not in means or len(both := means[[metric, stand_in]].dropna()) < 3:
        return math.nan
    ranks = both.rank().to_numpy()
    return math.nan if (ranks.std(0) == 0).any() else float(np.corrcoef(ranks.T)[0, 1])
