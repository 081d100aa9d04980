"""Krippendorff's alpha: published values, closed cases, and an interval that covers."""

import math

import numpy as np
import pytest

from pellucid.findings.agreement import alpha, alpha_interval

NAN = math.nan
# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example C: four observers, twelve units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def test_alpha_is_the_published_value_of_ordinal_ratings():
    assert alpha(PUBLISHED) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_two_raters_by_hand():
    # Maps (1, 1), (1, 2), (2, 2): each value 3 times of 6, one mixed pair; D_o / D_e = (2 * 9) / (2 * 9 * 9 / 5).
    assert alpha(np.array([[1.0, 1, 2], [1, 2, 2]])) == pytest.approx(1 - 5 / 9)


def test_alpha_is_one_in_agreement_and_undefined_where_nothing_differs():
    assert alpha(np.array([[1.0, 5, 3], [1, 5, 3]])) == 1
    assert math.isnan(alpha(np.array([[3.0, 3], [3, 3]])))
    assert math.isnan(alpha(np.array([[1.0, NAN], [NAN, 2]])))


def test_alpha_depends_on_the_order_of_values_alone():
    stretched = np.vectorize({1: 1, 2: 10, 3: 11, 4: 40, 5: 100}.get, otypes=[float])
    known = np.isfinite(PUBLISHED)
    other = np.where(known, stretched(np.where(known, PUBLISHED, 1)), NAN)
    assert alpha(other) == pytest.approx(alpha(PUBLISHED))


def test_the_interval_covers_the_alpha_of_many_maps():
    def panel(generator, maps):
        true = generator.integers(1, 6, maps)
        return np.clip(true + generator.integers(-1, 2, (4, maps)), 1, 5).astype(float)

    whole = alpha(panel(np.random.default_rng(0), 20_000))
    ends = [alpha_interval(panel(np.random.default_rng(seed), 30)) for seed in range(1, 101)]
    assert 88 <= sum(low <= whole <= high for low, high in ends) <= 100
    assert np.mean([high - low for low, high in ends]) < 0.4
