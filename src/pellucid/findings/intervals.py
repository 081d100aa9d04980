"""How sure a mean is: intervals that also cover few or skewed values, and how many would decide."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LEAST = 3  # values for an interval: one or two do not tell how skewed they are
COVERAGE = 0.95
ROUNDING = 1e-6  # of the largest value: a difference below it is float32 rounding, not a finding
POWER = 0.8416  # the normal quantile of 80 %: how often as many values as ``deciding`` says would decide
MOST = 1_000_000  # values, above which no number of them is told
_FURTHEST = 2.0  # times Student's reach, beyond which skewness carries no end of an interval
_MOST_EXACT = 1000  # unequal pairs of 0 and 1; of more, the interval says the same
_ANGLES = np.linspace(0, math.pi / 2, 50_001)


def interval(values: Numbers, coverage: float = COVERAGE) -> tuple[Numbers, Numbers]:
    """Where the mean of each row of values (K, N) lies for other values of the same kind: low (K,), high (K,).

    Student's interval and that of Hall's transformation together, which carries the skewness g over: with
    T = (mean - mu) / s, q = t / sqrt(n) and h(T) = T + g T^2 / 3 + g^2 T^3 / 27 + g / (6n), the ends are
    mean - s h^-1(q) and mean - s h^-1(-q). Neither lies further from the mean than twice Student's: the inverse is
    a cube root, steep where q is near 3 / g, and g of few values is unsure, so that it would reach beyond
    all of them. Simulated, the limit costs 0.6 % of coverage at most from five values on, of whichever kind,
    and takes away up to a third of the width. Of normal values the ends hold the mean somewhat more often than
    95 %, of skewed ones (gamma, shape 2) 94 % of the time from three values on. NaN is left out; the ends are NaN
    for rows of fewer than 3 known values. (P. Hall, On the removal of skewness by transformation, JRSS B 1992.)
    """
    n = (~np.isnan(values)).sum(1)
    means = mean(values)
    apart = values - means[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # fewer than two values, or all alike
        deviations = np.sqrt(np.nansum(apart**2, 1) / (n - 1))
        # It is the third moment over the 3/2-th power of the second, both taken with n.
        skewness = np.nansum(apart**3, 1) / n / (np.nansum(apart**2, 1) / n) ** 1.5
        within = np.array([quantile(int(count), coverage) for count in n]) / np.sqrt(n)
        # The inverse divides by g; for a g of nearly 0 it tends to Student's interval.
        skewness = np.where(np.abs(skewness) > 1e-6, skewness, 1e-6)
        above, below = (_untransformed(side * within, skewness, n) for side in (1, -1))
        # Whichever of both intervals reaches further counts, at each end, up to the limit.
        down, up = (np.clip(reach, within, _FURTHEST * within) for reach in (above, -below))
        low, high = means - deviations * down, means + deviations * up
    return low, high


def _untransformed(y: Numbers, g: Numbers, n: NDArray[np.int64]) -> Numbers:
    """The inverse of Hall's h."""
    # h(T) = ((1 + g T / 3)^3 - 1) / g + g / (6n), so a cube root undoes it, of numbers below 0, too.
    roots: Numbers = 3 * (np.cbrt(1 + g * (y - g / (6 * n))) - 1) / g
    return roots


def share_interval(hits: Numbers, coverage: float = COVERAGE) -> tuple[Numbers, Numbers]:
    """Where the share of ones lies, of rows (K, N) of 0 and 1 and NaN: low (K,), high (K,).

    Clopper and Pearson's interval: the shares under which neither so many nor so few ones are rarer than
    (1 - coverage) / 2, which hold it at least as often as they say, also where all values are alike. The ends are
    NaN for rows of fewer than 3 known values. (Biometrika 1934.)
    """
    known = (~np.isnan(hits)).sum(1)
    ones = np.nansum(hits, 1)
    ends = [_share_ends(int(k), int(n), coverage) for k, n in zip(ones, known, strict=True)]
    low, high = np.array(ends, float).reshape(-1, 2).T
    return low, high


@lru_cache(maxsize=4096)
def _share_ends(ones: int, n: int, coverage: float) -> tuple[float, float]:
    if n < LEAST:
        return math.nan, math.nan
    low = 0.0 if ones == 0 else _share_of(ones, n, (1 - coverage) / 2)
    return low, 1.0 if ones == n else 1 - _share_of(n - ones, n, (1 - coverage) / 2)


def _share_of(ones: int, n: int, chance: float) -> float:
    """The share under which at least so many ones have this chance: it grows with the share, so it is bisected."""
    number = np.arange(ones, n + 1)
    # They are logarithms, since binomial coefficients of many values overflow.
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in number]
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        found = np.exp(ways + number * math.log(share) + (n - number) * math.log1p(-share)).sum()
        low, high = (low, share) if found > chance else (share, high)
    return low


@lru_cache(maxsize=4096)
def quantile(n: int, coverage: float) -> float:
    """Within which t the share ``coverage`` of Student's distribution of ``n`` values lies; NaN for fewer than 3.

    With t = sqrt(f) tan(a), f = n - 1, the density of a is proportional to cos(a)^(f - 1).
    """
    if n < LEAST:
        return math.nan
    freedom = min(n, MOST) - 1
    density = np.cos(_ANGLES) ** (freedom - 1)
    # This is the trapezoid rule, up to a factor that the division by the last share takes away.
    shares = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(coverage, shares / shares[-1], _ANGLES))


def deciding(values: Numbers, bound: float, coverage: float = COVERAGE) -> float:
    """How many such values (N,) would tell their mean from a bound four times out of five; infinite if unknown.

    That is where the mean and the spread stay as they are: ((z + 0.84) s / (mean - bound))^2 with the normal
    quantile z of the coverage. More than a million are infinite, too.
    """
    known = values[~np.isnan(values)]
    if len(known) < LEAST:
        return math.inf
    distance = abs(float(known.mean()) - bound)
    if distance <= ROUNDING * max(abs(bound), float(np.abs(known).max())):
        return math.inf
    wanted = ((quantile(MOST, coverage) + POWER) * float(known.std(ddof=1)) / distance) ** 2
    return max(math.ceil(wanted), len(known) + 1) if wanted <= MOST else math.inf


def better(values: Numbers, higher: bool, *others: Numbers) -> NDArray[np.bool_]:
    """Which row of values (M, N) is better than which: (M, M), True where row i is better than row j.

    That is where they are ``told_apart``; and where they are so in each of ``others``, other values of the same
    rows.
    """
    found = _better(values, higher)
    for other in others:
        found &= _better(other, higher)
    return found


def _better(values: Numbers, higher: bool) -> NDArray[np.bool_]:
    # Each pair is compared once: the other way round it is the same comparison with its sides exchanged.
    first, second = np.triu_indices(len(values), 1)
    above, below = told_apart(values[first], values[second], rounding_of(values))
    wins, losses = (above, below) if higher else (below, above)
    found = np.zeros((len(values), len(values)), bool)
    found[first, second], found[second, first] = wins, losses
    return found


def told_apart(
    one: Numbers, other: Numbers, rounding: Numbers | float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each row (K, N) is above, or below, the same row of ``other``; neither where that cannot be asked.

    It is where the interval of their paired difference, over the images that both have, leaves out 0, or where all
    lie to one side of one value (``to_one_side``). Values of 0 and 1 alone are told apart by the exact sign test
    (McNemar's) instead: of few images their interval is as wide as that of any values so skewed.
    """
    differences = one - other
    low, high = interval(differences)
    all_above, all_below = to_one_side(one, other, rounding)
    above, below = (low > rounding) | all_above, (high < -rounding) | all_below
    are_hits = (np.isnan(differences) | (np.isin(one, (0, 1)) & np.isin(other, (0, 1)))).all(1)
    for row in np.flatnonzero(are_hits):
        up, down = (int((differences[row] == side).sum()) for side in (1, -1))
        if up + down <= _MOST_EXACT:
            is_sure = sign_test(up, down) <= 1 - COVERAGE
            above[row], below[row] = is_sure and up > down, is_sure and down > up
    return above, below


def to_one_side(
    one: Numbers, other: Numbers, rounding: Numbers | float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether all of a row (K, N) are above, or below, the same row of ``other``, where one of both has one value.

    That is a bound, as 0 is of distances: the interval of values so skewed may reach beyond it, which they cannot.
    Differences to one side alone are told from chance by the exact sign test, from six on; ``rounding`` is none.
    """
    differences = one - other
    both = ~np.isnan(differences)
    rounding = np.reshape(rounding, (-1, 1))
    ups, downs = (differences > rounding).sum(1), (differences < -rounding).sum(1)
    has_one_value = np.logical_or(*(_has_one_value(side, both) for side in (one, other)))
    above, below = (
        # n equal signs have the two-sided chance 2 / 2^n, which is below 5 % from n = 6 on.
        has_one_value & (others == 0) & (2.0 ** (1 - some) <= 1 - COVERAGE)
        for some, others in ((ups, downs), (downs, ups))
    )
    return above, below


def paired_interval(one: Numbers, other: Numbers) -> tuple[Numbers, Numbers]:
    """The interval of each row's mean difference one - other, not beyond 0 where all lie ``to_one_side``."""
    low, high = interval(one - other)
    above, below = to_one_side(one, other, roundings(one, other))
    return np.where(above, np.maximum(low, 0), low), np.where(below, np.minimum(high, 0), high)


def roundings(one: Numbers, other: Numbers) -> Numbers:
    """For each row (K,) of two the largest difference that is rounding."""
    largest: Numbers = np.nan_to_num(np.maximum(np.abs(one), np.abs(other))).max(1, initial=0)
    return ROUNDING * largest


def _has_one_value(values: Numbers, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the known values of each row (K, N) are one and the same."""
    least, most = np.where(known, values, np.inf).min(1), np.where(known, values, -np.inf).max(1)
    same: NDArray[np.bool_] = least == most
    return same


@lru_cache(maxsize=4096)
def sign_test(up: int, down: int) -> float:
    """How often chance alone would part so many unequal pairs at least as unevenly, whichever way."""
    fewer, count = min(up, down), up + down
    ways = sum(math.comb(count, number) for number in range(fewer + 1))
    return min(1.0, float(2 * ways / 2**count))


def paired_ranks(values: Numbers, higher: bool, *others: Numbers) -> Numbers:
    """1 + how many rows are better, for each row of values (M, N); NaN for rows without an interval."""
    found: Numbers = 1.0 + better(values, higher, *others).sum(0)
    found[(~np.isnan(values)).sum(1) < LEAST] = np.nan
    return found


def rounding_of(values: Numbers) -> float:
    """The largest difference between such values that is rounding."""
    return float(ROUNDING * np.nan_to_num(np.abs(values)).max(initial=0))


def mean(values: Numbers) -> Numbers:
    """The mean of each row's known values, NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # no known value: 0 / 0
        means: Numbers = np.where(known, values, 0).sum(1) / known.sum(1)
    return means


def deviation(values: Numbers) -> Numbers:
    """The standard deviation of each row as a sample, NaN for a single value."""
    known = ~np.isnan(values)
    squares = np.where(known, values - mean(values)[:, None], 0) ** 2
    with np.errstate(invalid="ignore"):  # one known value: 0 / 0
        deviations: Numbers = np.sqrt(squares.sum(1) / np.maximum(known.sum(1) - 1, 0))
    return deviations


def without_each(values: Numbers, spread: bool = False) -> Numbers:
    """Each row's mean without each of its values in turn, or its deviation: (K, N)."""
    known = ~np.isnan(values)
    n = known.sum(1, keepdims=True)
    means = mean(values)[:, None]
    apart = np.where(known, values - means, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing left
        if not spread:
            # The mean without x is m - (x - m) / (n - 1): no sum is taken anew.
            left: Numbers = means - apart / (n - 1)
            return left
        # Without x the squares around the new mean are S - (x - m)^2 n / (n - 1), the spread's divisor one less.
        squares = (apart**2).sum(1, keepdims=True) - apart**2 * n / (n - 1)
        spreads: Numbers = np.sqrt(np.maximum(squares, 0) / (n - 1 - known))
    return spreads


def best_row(values: Numbers, higher: bool) -> tuple[int, NDArray[np.intp]]:
    """Which row of values (K, N) has the best mean; and for each column which has it in the other half (N,).

    Halves are every second column. Rows with fewer than nine tenths of the known values of the best known one
    are not chosen: their mean is over other images.
    """
    known = (~np.isnan(values)).sum(1)
    ranked = np.where((10 * known >= 9 * known.max())[:, None], values if higher else -values, np.nan)
    best, each = int(_ranked_mean(ranked).argmax()), np.empty(values.shape[1], np.intp)
    for half in (0, 1):
        # The columns of this half are judged at the row that the other half chose, so no value chooses for itself.
        means = _ranked_mean(ranked[:, 1 - half :: 2])
        # Layers may have equal maps: rounding does not choose among them.
        each[half::2] = best if means.max() <= means[best] + rounding_of(values) else means.argmax()
    return best, each


def _ranked_mean(values: Numbers) -> Numbers:
    """The mean of each row, where none is known the least."""
    return np.nan_to_num(mean(values), nan=-np.inf)
