"""A recipe's quantities as numbers: chosen rows of a results table, compared, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..findings.intervals import LEAST, ROUNDING, Numbers, Resamples, moments, percentiles
from ..findings.statistics import ALL_LAYERS, GROUP, Statistics
from .recipe import Claim, How, Quantity, RowFilter, Test, matches


@dataclass(frozen=True)
class Found:
    """A number, its 95 % interval (NaN from fewer than 3 images), and over how many images and rows it is."""

    value: float
    low: float
    high: float
    images: int
    rows: int


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: ``"holds"``, ``"does not hold"`` or ``"not tested"``, and why."""

    claim: Claim
    word: str
    found: tuple[Found | None, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word}, because {self.reason}" if self.reason else self.word


def selected(rows: pd.DataFrame, where: RowFilter) -> pd.DataFrame:
    """The rows of ``Statistics.values`` or ``.points`` that match; never those of all layers."""
    index = rows.index
    kept = np.ones(len(rows), bool)
    for key in GROUP:
        level = index.names.index(key)
        names, patterns = index.levels[level], getattr(where, key)
        known = np.array([name != ALL_LAYERS and matches(name, patterns) for name in names], bool)
        kept &= known[index.codes[level]]
    return rows[kept]


def compared_with(quantity: Quantity) -> Quantity:
    """The rows that a comparison is made with, as a quantity."""
    return quantity.model_copy(update={str(key): patterns for key, patterns in quantity.against.items()})


def found(statistics: Statistics, quantity: Quantity) -> Found | None:
    """The number and its interval; None if the results have no such rows, or no value is defined in them.

    The interval is the percentile bootstrap's over images, all rows resampled together.
    """
    return found_in(rows_of(statistics, quantity), statistics.resamples, quantity)


def found_in(rows: pd.DataFrame, resamples: Resamples, quantity: Quantity) -> Found | None:
    """As ``found``, in rows of one (model, variant, method, layer, metric) each, a column for each image."""
    ours, theirs = _sides(rows, quantity)
    defined = ~np.isnan(ours).all(1)
    if not defined.any():
        return None
    ours, theirs = ours[defined], None if theirs is None else theirs[defined]
    weights = np.vstack([np.ones(ours.shape[1]), resamples.counts]).T
    drawn = moments(ours, weights, quantity.how == "std")
    if theirs is not None:
        drawn = _compared(drawn, moments(theirs, weights), quantity.how)
    means = drawn.mean(0)
    images = int((~np.isnan(ours)).sum(1).min())
    sure = images >= LEAST and math.isfinite(means[0])
    low, high = map(float, percentiles(means[None, 1:])[0]) if sure else (math.nan, math.nan)
    return Found(float(means[0]), low, high, images, len(ours))


def per_image(statistics: Statistics, quantity: Quantity) -> Numbers | None:
    """Each image's own number (N,), NaN where a row has none for it; None if the results have no such rows.

    Comparisons are made for each image and row, and then averaged; a deviation has no sense here.
    """
    assert quantity.how != "std"
    ours, theirs = _sides(rows_of(statistics, quantity), quantity)
    if not len(ours):
        return None
    values = ours if theirs is None else _compared(ours, theirs, quantity.how)
    mean: Numbers = values.mean(0)
    return mean


def rows_of(statistics: Statistics, quantity: Quantity) -> pd.DataFrame:
    """All rows that a quantity is chosen from: values, or the points of curves at its step or level."""
    if quantity.step is None and quantity.at is None:
        return statistics.values
    rows = statistics.points
    if quantity.step is not None:
        rows = rows[rows.index.get_level_values("step") == quantity.step]
    if quantity.at is not None:
        rows = rows[np.isclose(rows.index.get_level_values("at").astype(float), quantity.at)]
    return rows.droplevel(["at", "step"])


def _sides(rows: pd.DataFrame, quantity: Quantity) -> tuple[Numbers, Numbers | None]:
    """The values (K, N), and those they are compared with, undefined for the same images.

    Rows are compared that are alike but for ``against``; what it makes several is averaged first.
    """
    ours = selected(rows, quantity)
    if not quantity.against:
        return ours.to_numpy(float), None
    mine, others = (_averaged(side, quantity) for side in (ours, selected(rows, compared_with(quantity))))
    shared = [place for place in mine if place in others]
    if not shared:
        return np.empty((0, rows.shape[1])), None
    values, theirs = (np.stack([side[place] for place in shared]) for side in (mine, others))
    unknown = np.isnan(values) | np.isnan(theirs)
    values[unknown] = theirs[unknown] = np.nan
    return values, theirs


def _averaged(rows: pd.DataFrame, quantity: Quantity) -> dict[tuple[str, ...], Numbers]:
    """By what ``against`` leaves alone, the mean (N,) of the rows: undefined where one of them is."""
    kept = [level for level, key in enumerate(GROUP) if key not in quantity.against]
    groups: dict[tuple[str, ...], list[Numbers]] = {}
    for place, values in zip(rows.index, rows.to_numpy(float), strict=True):
        groups.setdefault(tuple(place[level] for level in kept), []).append(values)
    return {place: np.mean(values, 0) for place, values in groups.items()}


def _compared(ours: Numbers, theirs: Numbers, how: How) -> Numbers:
    if how == "difference":
        return ours - theirs
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(theirs == 0, np.nan, ours / theirs)
    return 1 - ratio if how == "reduction" else ratio


# Claims.


def verdict(claim: Claim, statistics: Mapping[str, Statistics]) -> Verdict:
    """Judge a claim by its tests.

    It holds if every interval lies on the claimed side of its bound, does not hold if one lies on the other side,
    and is not tested where the images do not decide, or results are missing.
    """
    if not claim.tests:
        return Verdict(claim, "not tested", reason=claim.because)
    numbers = tuple(
        found(statistics[test.experiment], test) if test.experiment in statistics else None for test in claim.tests
    )
    sides = [_side(test, number) for test, number in zip(claim.tests, numbers, strict=True)]
    if all(side == 1 for side in sides):
        return Verdict(claim, "holds", numbers)
    if -1 in sides:
        return Verdict(claim, "does not hold", numbers)
    if None in numbers:
        return Verdict(claim, "not tested", numbers, "this run has no such results")
    open_ = [(test, number) for test, number, side in zip(claim.tests, numbers, sides, strict=True) if not side]
    return Verdict(claim, "not tested", numbers, _undecided(*open_[0]))


def _undecided(test: Test, number: Found | None) -> str:
    """Why a number does not decide its test."""
    assert number is not None
    if number.images < LEAST:
        return f"{number.images} {'value is' if number.images == 1 else 'values are'} too few for an interval"
    if math.isnan(number.low):
        return "the number is undefined"
    bound = test.above if test.above is not None else test.below
    return f"{number.images} values do not decide it: its interval includes {bound:g}"


def _side(test: Test, number: Found | None) -> int:
    """1 on the claimed side of the bound, -1 on the other, 0 if that is open."""
    if number is None or math.isnan(number.low):
        return 0
    bound, sign = (test.above, 1) if test.above is not None else (test.below, -1)
    assert bound is not None
    # An interval that ends so near the bound leaves it open.
    room = ROUNDING * max(abs(number.value), abs(bound))
    if sign * (number.low if sign > 0 else number.high) > sign * bound + room:
        return 1
    return -1 if sign * (number.high if sign > 0 else number.low) < sign * bound - room else 0
