"""A recipe's quantities as numbers: chosen rows of a results table, compared, with intervals; and verdicts."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ..findings.intervals import (
    COVERAGE,
    LEAST,
    ROUNDING,
    Numbers,
    deciding,
    deviation,
    interval,
    mean,
    without_each,
)
from ..findings.statistics import GROUP, Statistics
from .recipe import Claim, How, Quantity, RowFilter, Test, matches


@dataclass(frozen=True, eq=False)
class Found:
    """A number, over how many images and rows it is, and what each image adds to it.

    ``values`` (N,) are the jackknife's: n times the number less n - 1 times that without the image, moved so that
    their mean is the number. Of a plain mean they are the images' own values. NaN where there is no interval.
    """

    value: float
    values: Numbers
    images: int
    rows: int

    def interval(self, coverage: float = COVERAGE) -> tuple[float, float]:
        """The ends of its interval, NaN from fewer than 3 images."""
        low, high = interval(self.values[None], coverage)
        return float(low[0]), float(high[0])

    @cached_property
    def low(self) -> float:
        """The lower end of its 95 % interval."""
        return self.interval()[0]

    @cached_property
    def high(self) -> float:
        """The upper end of its 95 % interval."""
        return self.interval()[1]

    def times(self, factor: float) -> Found:
        """The number in another unit."""
        return Found(self.value * factor, self.values * factor, self.images, self.rows)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: ``"holds"``, ``"does not hold"``, ``"undecided"`` or ``"not tested"``, and why.

    ``tests`` are the claim's, one for each name that it asks for; ``sides`` says of each whether its number lies
    on the claimed side of its bound (1), on the other (-1), or whether that is open (0). The verdict hangs on the
    test at ``place``.
    """

    claim: Claim
    word: str
    tests: tuple[Test, ...] = ()
    found: tuple[Found | None, ...] = ()
    sides: tuple[int, ...] = ()
    place: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


def selected(rows: pd.DataFrame, where: RowFilter) -> pd.DataFrame:
    """The rows of ``Statistics.values`` or ``.points`` that match."""
    index = rows.index
    kept = np.ones(len(rows), bool)
    for key in GROUP:
        level = index.names.index(key)
        names, patterns = index.levels[level], getattr(where, key)
        known = np.array([matches(name, patterns) for name in names], bool)
        # Each name is matched once, however many rows have it.
        kept &= known[index.codes[level]]
    return rows[kept]


def compared_with(quantity: Quantity) -> Quantity:
    """The rows that a comparison is made with, as a quantity."""
    against = quantity.against.items()
    return quantity.model_copy(update={str(key): names[0] if key == "step" else names for key, names in against})


def found(statistics: Statistics, quantity: Quantity) -> Found | None:
    """The number and its interval; None if the results have no such rows, or no value is defined in them."""
    return found_in(rows_of(statistics, quantity), quantity, rows_of(statistics, compared_with(quantity)))


def found_in(rows: pd.DataFrame, quantity: Quantity, others: pd.DataFrame | None = None) -> Found | None:
    """As ``found``, in rows of one (model, variant, method, layer, metric) each, a column for each image.

    What it is compared with is in ``others``, if not in the same rows.
    """
    ours, theirs = _sides(rows, rows if others is None else others, quantity)
    known = ~np.isnan(ours)
    if not known.any():
        return None
    defined = known.any(1)
    ours, known, theirs = ours[defined], known[defined], None if theirs is None else theirs[defined]
    spread = quantity.how == "std"
    whole = deviation(ours) if spread else mean(ours)
    each = without_each(ours, spread)
    if theirs is not None:
        whole = _compared(whole, mean(theirs), quantity.how)
        each = _compared(each, without_each(theirs), quantity.how)
    value, images = float(whole.mean()), int(known.sum(1).min())
    # The jackknife's n a - (n - 1) a_i is a + (n - 1) (a - a_i); what bias it shows is taken off below.
    values = np.where(known.any(0) & (images >= LEAST), (known.any(0).sum() - 1) * (value - each.mean(0)), np.nan)
    return Found(value, value + values - mean(values[None]), images, len(ours))


def per_image(statistics: Statistics, quantity: Quantity) -> Numbers | None:
    """Each image's own number (N,), NaN where a row has none for it; None if the results have no such rows.

    Comparisons are made for each image and row, and then averaged; a deviation has no sense here.
    """
    assert quantity.how != "std"
    rows = rows_of(statistics, quantity)
    ours, theirs = _sides(rows, rows, quantity)
    if not len(ours):
        return None
    values = ours if theirs is None else _compared(ours, theirs, quantity.how)
    means: Numbers = values.mean(0)
    return means


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


def _sides(rows: pd.DataFrame, others: pd.DataFrame, quantity: Quantity) -> tuple[Numbers, Numbers | None]:
    """The values (K, N), and those they are compared with, undefined for the same images.

    Rows are compared that are alike but for ``against``; what it makes several is averaged first.
    """
    ours = selected(rows, quantity)
    if not quantity.against:
        return ours.to_numpy(float), None
    mine, against = (_averaged(side, quantity) for side in (ours, selected(others, compared_with(quantity))))
    shared = [place for place in mine if place in against]
    if not shared:
        return np.empty((0, rows.shape[1])), None
    values, theirs = (np.stack([side[place] for place in shared]) for side in (mine, against))
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

    It holds if every interval lies on the claimed side of its bound, and does not hold if one lies on the other
    side: by Holm's correction, so that of several tests none does by chance. It is undecided where the images do
    not tell, and not tested where numbers are missing.
    """
    if not claim.tests:
        return Verdict(claim, "not tested", reason=claim.because)
    tests = tuple(one for test in claim.tests for one in _each(test, statistics))
    numbers = tuple(
        found(statistics[test.experiment], test) if test.experiment in statistics else None for test in tests
    )
    sides = tuple(_sides_of(tests, numbers))
    judged = tests, numbers, sides
    if -1 in sides:
        return Verdict(claim, "does not hold", *judged, sides.index(-1))
    if None in numbers:
        return Verdict(claim, "not tested", *judged, numbers.index(None), "this run has no such results")
    undefined = [math.isnan(one.value) for one in numbers if one is not None]
    if any(undefined):
        return Verdict(claim, "not tested", *judged, undefined.index(True), "the number is undefined")
    if all(side == 1 for side in sides):
        return Verdict(claim, "holds", *judged)
    return Verdict(claim, "undecided", *judged, *_lacking(*judged))


def _each(test: Test, statistics: Mapping[str, Statistics]) -> list[Test]:
    """The test for each name that it asks for, in the results' order; the test itself if there is none."""
    if not test.each or test.experiment not in statistics:
        return [test]
    index = selected(rows_of(statistics[test.experiment], test), test).index
    places = dict.fromkeys(zip(*(index.get_level_values(key) for key in test.each), strict=True))
    chosen = [
        {str(key): (glob.escape(name),) for key, name in zip(test.each, place, strict=True)} for place in places
    ]
    return [test.model_copy(update={**names, "each": ()}) for names in chosen] or [test]


def _sides_of(tests: Sequence[Test], numbers: Sequence[Found | None]) -> list[int]:
    """On which side of its bound each number lies; on the other than claimed by Holm's steps."""
    sides = [max(_side(test, number, COVERAGE), 0) for test, number in zip(tests, numbers, strict=True)]
    while True:
        # By Holm's step, with r tests refuted so far, each other
        # one is held to a level of 5 % over how many are left.
        level = (1 - COVERAGE) / (len(tests) - sides.count(-1) or 1)
        refuted = [_side(test, number, 1 - level) == -1 for test, number in zip(tests, numbers, strict=True)]
        if sum(refuted) == sides.count(-1):
            return sides
        sides = [-1 if other else side for side, other in zip(sides, refuted, strict=True)]


def _lacking(tests: Sequence[Test], numbers: Sequence[Found | None], sides: Sequence[int]) -> tuple[int, str]:
    """The place of the open test that needs the most values, how many there are, and how many would decide it."""
    strict = 1 - (1 - COVERAGE) / len(tests)  # what refutes one of several
    wanted = {
        place: deciding(one.values, test.bound, COVERAGE if _claimed(test, one.value) else strict)
        for place, (test, one, side) in enumerate(zip(tests, numbers, sides, strict=True))
        if one is not None and not side
    }
    place = max(wanted, key=lambda place: wanted[place])
    one, bound = numbers[place], f"{tests[place].bound:g}".replace("-", "−")
    assert one is not None
    if math.isnan(one.low):
        return place, f"{one.images} {'value is' if one.images == 1 else 'values are'} too few for an interval"
    told = f"{one.images} values do not tell it from {bound}"
    if math.isinf(wanted[place]):
        return place, f"{told}, nor would a million"
    return place, f"{told}; about {float(f'{wanted[place]:.2g}'):,.0f} would"


def _claimed(test: Test, value: float) -> bool:
    return value > test.bound if test.above is not None else value < test.bound


def _side(test: Test, number: Found | None, coverage: float) -> int:
    """1 on the claimed side of the bound, -1 on the other, 0 if that is open."""
    if number is None:
        return 0
    low, high = number.interval(coverage)
    # An interval that ends so near the bound leaves it open.
    room = ROUNDING * max(abs(number.value), abs(test.bound))
    sign = 1 if test.above is not None else -1
    return sign * (int(low > test.bound + room) - int(high < test.bound - room))
