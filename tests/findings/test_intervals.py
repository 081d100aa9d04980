"""Intervals: closed forms, and how often they hold the mean that they are of."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats

from pellucid.findings.intervals import (
    better,
    deciding,
    deviation,
    interval,
    mean,
    paired_interval,
    paired_ranks,
    quantile,
    share_interval,
    sign_test,
    to_one_side,
    told_apart,
    without_each,
)
from tests.tables import NAN

# What values may be like: their mean, and how to draw them.
KINDS = {
    "normal": (0.0, lambda rng, size: rng.normal(size=size)),
    "flat": (0.5, lambda rng, size: rng.uniform(size=size)),
    "gamma": (2.0, lambda rng, size: rng.gamma(2, size=size)),
    "lognormal": (math.exp(0.125), lambda rng, size: np.exp(0.5 * rng.normal(size=size))),
    "heavy tails": (0.0, lambda rng, size: rng.standard_t(3, size=size)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [3, 10, 30, 100])
def test_the_interval_holds_the_mean_as_often_as_it_says(kind, n):
    expected, draw = KINDS[kind]
    low, high = interval(draw(np.random.default_rng(n), (10_000, n)))
    held = np.mean((low <= expected) & (expected <= high))
    assert 0.93 <= held <= 0.985, held  # the standard error of 10 000 such trials is 0.2 %


@pytest.mark.parametrize("n", [10, 30, 100])
def test_it_holds_the_mean_of_exponential_values_too(n):
    low, high = interval(np.random.default_rng(n).exponential(size=(10_000, n)))
    assert np.mean((low <= 1) & (high >= 1)) >= 0.93


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("n", [3, 10, 30, 100])
def test_the_interval_of_a_share_holds_it_at_least_as_often_as_it_says(share, n):
    ones = np.arange(n + 1)
    rows = np.where(np.arange(n) < ones[:, None], 1.0, 0.0)  # of each number of ones
    low, high = share_interval(rows)
    held = (low <= share) & (share <= high)
    assert scipy.stats.binom.pmf(ones, n, share)[held].sum() >= 0.95


@pytest.mark.parametrize(("ones", "n"), [(37, 40), (0, 8), (8, 8), (1, 3), (500, 1000), (9_998, 10_000)])
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(ones, n):
    row = np.full((1, n + 2), NAN)
    row[0, :n] = np.arange(n) < ones
    expected = scipy.stats.binomtest(ones, n).proportion_ci(0.95, "exact")
    assert [end[0] for end in share_interval(row)] == pytest.approx([expected.low, expected.high], rel=1e-9)


def test_a_share_of_fewer_than_three_has_no_interval():
    assert np.isnan(share_interval(np.array([[1.0, 0.0, NAN], [NAN] * 3]))).all()


def test_the_percentiles_of_resamples_would_not():
    """Why there is no bootstrap here: of three values it is their range."""
    values = np.random.default_rng(0).normal(size=(10_000, 3))
    low, high = values.min(1), values.max(1)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("coverage", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [3, 4, 10, 1000])
def test_quantiles_are_students(n, coverage):
    assert quantile(n, coverage) == pytest.approx(scipy.stats.t.ppf((1 + coverage) / 2, n - 1), rel=1e-6)


def test_of_symmetric_values_the_interval_is_students():
    values = np.array([[1.0, 2.0, 4.0, 6.0, 7.0]])
    low, high = interval(values)
    expected = scipy.stats.t.interval(0.95, 4, 4, scipy.stats.sem(values[0]))
    assert (low[0], high[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("coverage", [0.9, 0.99])
def test_of_skewed_values_the_interval_reaches_to_where_halls_transformation_ends(coverage):
    values = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 1.1])  # so skewed that the limit is not met
    n, g, t = 7, scipy.stats.skew(values), scipy.stats.t.ppf((1 + coverage) / 2, 6) / math.sqrt(7)

    def transformed(x):
        return x + g * x**2 / 3 + g**2 * x**3 / 27 + g / (6 * n)

    low, high = (end[0] for end in interval(values[None], coverage))
    s = values.std(ddof=1)
    assert (values.mean() - low) / s == pytest.approx(t, rel=1e-6)  # Hall's end lies inside
    assert transformed((values.mean() - high) / s) == pytest.approx(-t, rel=1e-6)
    mirrored = [end[0] for end in interval(-values[None], coverage)]
    assert mirrored == pytest.approx([-high, -low], rel=1e-12)


@pytest.mark.parametrize("n", [8, 10, 30])
def test_an_outlier_carries_no_end_beyond_all_values(n):
    """The transformation alone would: of ten values it reached 1.6 times as far as the one far out."""
    values = np.array([*np.linspace(0.1, 0.5, n - 1), 1.2])
    low, high = (end[0] for end in interval(values[None]))
    _, student = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    assert values.min() < low < student < high < values.max()
    assert high - values.mean() <= 2 * (student - values.mean()) * (1 + 1e-6)


def test_undefined_values_are_left_out_and_constant_ones_have_no_width():
    low, high = interval(np.array([[1.0, NAN, 2.0, 7.0], [0.3] * 4, [1.0, 2.0, NAN, NAN], [NAN] * 4]))
    alone = interval(np.array([[1.0, 2.0, 7.0]]))
    assert (low[0], high[0]) == (alone[0][0], alone[1][0])
    assert (low[1], high[1]) == pytest.approx((0.3, 0.3), rel=1e-12)
    assert np.isnan([*low[2:], *high[2:]]).all()


def test_as_many_values_as_said_decide_four_times_out_of_five():
    known = np.random.default_rng(0).normal(size=40)
    known = (known - known.mean()) / known.std(ddof=1)
    wanted = deciding(known + 0.4, 0.0)
    normal = NormalDist().inv_cdf
    assert wanted == math.ceil(((normal(0.975) + normal(0.8)) / 0.4) ** 2)
    low, _ = interval(np.random.default_rng(1).normal(0.4, 1, size=(20_000, wanted)))
    assert np.mean(low > 0) == pytest.approx(0.8, abs=0.03)


def test_no_number_of_values_decides_what_lies_at_the_bound():
    assert deciding(np.array([1.0, 2.0, 3.0]), 2.0) == math.inf
    assert deciding(np.array([-1.0, 0.0, 1.001]), 0.0) == math.inf  # more than a million
    assert deciding(np.array([1.0, NAN, 1.1, 1.2]), 0.0) == 4  # at least one more


@pytest.mark.parametrize("spread", [False, True])
def test_what_is_left_without_each_value(spread):
    values = np.array([[1.0, 2.0, 6.0, NAN, 8.0], [3.0, 1.0, 4.0, 1.0, 5.0]])
    found = without_each(values, spread)
    for row, left in zip(values, found, strict=True):
        for place in range(5):
            rest = np.delete(row, place)[None]
            expected = deviation(rest)[0] if spread else mean(rest)[0]
            assert left[place] == pytest.approx(expected, rel=1e-12)


def test_better_and_ranks_of_paired_rows():
    noise = np.array([0.2, -0.2, 0.1, -0.1, 0.05, -0.05])
    values = np.stack([5 + noise, 5 - noise, 4 + noise])
    assert better(values, True).tolist() == [[False, False, True], [False, False, True], [False] * 3]
    assert paired_ranks(values, True).tolist() == [1, 1, 3]
    assert paired_ranks(values, False).tolist() == [2, 2, 1]
    assert np.isnan(paired_ranks(np.array([[1.0, 2.0, NAN]]), True)).all()


def test_hits_are_told_apart_by_the_exact_sign_test():
    """Of 8 images one method hits all and the other one: 7 unequal pairs one way, p = 2 / 2^7."""
    every, one, none = np.ones(8), np.array([1.0, 0, 0, 0, 0, 0, 0, 0]), np.zeros(8)
    assert sign_test(7, 0) == 2 / 2**7
    assert sign_test(1, 9) == pytest.approx(scipy.stats.binomtest(1, 10).pvalue, rel=1e-12)
    assert sign_test(3, 3) == 1
    assert sign_test(500, 500) == 1
    assert better(np.stack([every, one, none]), True).tolist() == [[False, True, True], [False] * 3, [False] * 3]
    assert paired_ranks(np.stack([every, one, none]), True).tolist() == [1, 2, 2]
    assert paired_ranks(np.stack([every, one, none]), False).tolist() == [3, 1, 1]
    few = np.stack([np.ones(5), np.zeros(5)])  # p = 2 / 2^5, however alike the differences are
    assert paired_ranks(few, True).tolist() == [1, 1]
    assert paired_ranks(np.stack([np.ones(6), np.zeros(6)]), True).tolist() == [1, 2]
    gaps = np.stack([[1.0] * 7 + [NAN], [0.0] * 6 + [NAN, 0.0]])
    assert paired_ranks(gaps, True).tolist() == [1, 2]  # the 6 that both have


def test_no_more_hits_than_chance_are_told_apart():
    hits = np.random.default_rng(0).integers(0, 2, (2, 4000, 12)).astype(float)
    above, below = told_apart(*hits, 0.0)
    assert np.mean(above | below) <= 0.05


def test_distances_that_cannot_be_negative_are_told_from_none():
    """The interval of values so skewed reaches below 0, their bound."""
    bound = np.zeros((1, 8))
    distances = np.array([[0.01] * 7 + [60.0]])
    low, high = interval(distances)
    assert low[0] < 0 < high[0]
    assert [side.tolist() for side in told_apart(distances, bound, 1e-6)] == [[True], [False]]
    assert [side.tolist() for side in told_apart(bound, distances, 1e-6)] == [[False], [True]]
    assert [end.tolist() for end in paired_interval(distances, bound)] == [[0.0], high.tolist()]
    assert [end.tolist() for end in paired_interval(bound, distances)] == [(-high).tolist(), [0.0]]


@pytest.mark.parametrize(
    ("distances", "is_told"),
    [
        ([0.01] * 5 + [60.0], True),  # chance parts 6 so in 1 of 32 cases
        ([0.01] * 4 + [60.0], False),  # and 5 in 1 of 16
        ([0.01] * 7 + [-1e-3, 60.0], False),
        ([0.01] * 5 + [1e-9, 60.0], True),  # rounding is no difference
        ([0.01] * 4 + [1e-9, 60.0], False),
        ([0.01] * 5 + [NAN, 60.0], True),
    ],
)
def test_differences_to_one_side_are_told_from_chance_from_six_on(distances, is_told):
    one, bound = np.array([distances]), np.zeros((1, len(distances)))
    above, below = to_one_side(one, bound, 1e-6)
    assert (above.tolist(), below.tolist()) == ([is_told], [False])


def test_only_what_has_one_value_is_a_bound():
    distances = np.array([[0.01] * 7 + [60.0]])
    moved = np.arange(8.0)[None]
    assert not told_apart(distances + moved, moved, 1e-6)[0].any()
