"""How sure a mean is: the percentile bootstrap over images, one set of resamples for all that is compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import require_count

Numbers = NDArray[np.float64]

RESAMPLES = 2000
LEAST = 3  # images for an interval: from one or two, resampling says nothing
COVERAGE = 0.95
ROUNDING = 1e-6  # of the largest value: a difference below it is float32 rounding, not a finding
_ROWS_AT_ONCE = 1024


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

        A resample's mean leaves out NaN, as the mean does. The ends are NaN for rows of fewer than 3 known values.
        """
        ends = [
            percentiles(moments(part, self.counts.T.astype(float)))
            for part in np.split(values, range(_ROWS_AT_ONCE, len(values), _ROWS_AT_ONCE))
        ]
        low, high = np.concatenate(ends).T
        unsure = (~np.isnan(values)).sum(1) < LEAST
        low[unsure] = high[unsure] = np.nan
        return low, high

    def better(self, values: Numbers, higher: bool) -> NDArray[np.bool_]:
        """Which row of values (M, N) is better than which: (M, M), True where row i is better than row j.

        That is where the interval of their paired difference, over the images that both have, leaves out 0.
        """
        first, second = np.triu_indices(len(values), 1)
        low, high = self.interval(values[first] - values[second])
        least = rounding_of(values)
        wins, losses = (low > least, high < -least) if higher else (high < -least, low > least)
        found = np.zeros((len(values), len(values)), bool)
        found[first, second], found[second, first] = wins, losses
        return found

    def ranks(self, values: Numbers, higher: bool) -> Numbers:
        """1 + how many rows are better, for each row of values (M, N); NaN for rows without an interval."""
        ranks: Numbers = 1.0 + self.better(values, higher).sum(0)
        ranks[(~np.isnan(values)).sum(1) < LEAST] = np.nan
        return ranks


def rounding_of(values: Numbers) -> float:
    """The largest difference between such values that is rounding."""
    return float(ROUNDING * np.nan_to_num(np.abs(values)).max(initial=0))


def moments(values: Numbers, weights: Numbers, deviation: bool = False) -> Numbers:
    """The mean of each row (K, N) under each weighting (N, R): (K, R), or the sample's standard deviation.

    NaN enters neither. A weighting without a known value, or for a deviation with a single one, gives NaN.
    """
    known = ~np.isnan(values)
    total = known @ weights
    plain = np.where(known, values, 0)
    with np.errstate(invalid="ignore"):  # no known value: 0 / 0
        if not deviation:
            means: Numbers = (plain @ weights) / total
            return means
        # About the plain mean, so that squares of large values do not cancel.
        plain = np.where(known, values - (plain.sum(1) / known.sum(1))[:, None], 0)
        squares = plain**2 @ weights - (plain @ weights) ** 2 / total
        spread: Numbers = np.sqrt(np.maximum(squares, 0) / (total - 1))
    return spread


def percentiles(draws: Numbers) -> Numbers:
    """The ends (K, 2) of the middle 95 % of each row (K, R), interpolated linearly; undefined draws are left out.

    The same as ``np.nanquantile``, which is slow because it takes the rows one by one.
    """
    draws = np.sort(np.where(np.isfinite(draws), draws, np.nan), axis=1)  # NaN last
    last = np.maximum((~np.isnan(draws)).sum(1, keepdims=True) - 1, 0)
    place = np.array([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) * last
    below = np.floor(place).astype(int)
    lower, upper = (np.take_along_axis(draws, at, 1) for at in (below, np.minimum(below + 1, last)))
    ends: Numbers = lower + (place - below) * (upper - lower)
    return ends
