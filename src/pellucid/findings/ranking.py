"""Who is best by one metric: all methods under all variants, and which of them cannot be told from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .digits import shared_decimals
from .intervals import LEAST, Numbers, rounding_of, told_apart
from .statistics import UNCHANGED, Statistics, is_of_variant

# The methods that know nothing of the network, in words.
FLOORS: Mapping[str, str] = {"random": "a random map", "edges": "a plain edge filter"}


def floor_of(method: str) -> str:
    """``"random"`` or ``"edges"`` for the methods that know nothing of the network, else empty."""
    name = method.split("(")[0].strip()
    return name if name in FLOORS else ""


@dataclass(frozen=True)
class Contender:
    """A method under a variant at a layer, and what its maps score: the mean of ``n`` values, its 95 % interval.

    The layer is empty where a variant is graded as a whole.
    """

    method: str
    variant: str
    layer: str
    mean: float
    low: float
    high: float
    n: int

    @property
    def floor(self) -> str:
        """As ``floor_of`` its method."""
        return floor_of(self.method)

    @property
    def of_variant(self) -> bool:
        """Whether a variant is graded as a whole, and no method's maps."""
        return bool(is_of_variant(self.method))


@dataclass(frozen=True)
class Ranking:
    """All contenders by one metric, the best mean first.

    Attributes:
        metric, name: its text and its short name.
        unit, higher_is_better: what the means are.
        contenders: method x variant with at least 3 defined values.
        best: those whose paired difference to the first has an interval that includes 0, at the layers named or
            in the check (``Statistics.best``), or none since too few images are both's; of these the ones whose
            mean no floor exceeds that is told from the first. Where variants are graded
            themselves (contenders without a method), those so near to the original.
        same: every contender has the same values, and mean, so that the metric does not tell maps apart.
        ungraded: methods with fewer defined values under every variant.
        absent: methods that have maps at other layers alone.
        above: those told from the best floor, and better: a tie with the first may hide that some are not.
        counted, most: what a value is of, an image or a training; how many the best known contender has.
    """

    metric: str
    name: str
    unit: str
    higher_is_better: bool
    contenders: tuple[Contender, ...]
    best: tuple[Contender, ...]
    same: bool
    ungraded: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    above: tuple[Contender, ...] = ()
    counted: str = "image"
    most: int = 0

    @property
    def places(self) -> int:
        """The decimals of its numbers: those of a typical interval."""
        return shared_decimals([one.low for one in self.contenders], [one.high for one in self.contenders])

    @property
    def floors(self) -> tuple[str, ...]:
        """The floors among the best: no method is told from these."""
        found = {contender.floor for contender in self.best}
        return tuple(floor for floor in FLOORS if floor in found)

    @property
    def floor(self) -> Contender | None:
        """The floor that methods are compared with: the best random map, or where none is the best edge filter."""
        return next((one for kind in FLOORS for one in self.contenders if one.floor == kind), None)

    @property
    def several_layers(self) -> bool:
        """Whether contenders stand at layers of their own."""
        return len({contender.layer for contender in self.contenders}) > 1

    @property
    def of_variants(self) -> bool:
        """Whether variants were graded rather than maps."""
        return any(contender.of_variant for contender in self.contenders)

    @property
    def decided(self) -> bool:
        """Whether the metric tells maps apart at all, or those of methods from none that know nothing."""
        is_method = any(not contender.floor for contender in self.contenders)
        is_told = len(self.best) < len(self.contenders) or bool(self.floors)
        return is_method and is_told and not self.same and not self.of_variants

    @property
    def is_silent(self) -> bool:
        """Whether it says of no method that it is good: all are the best, or some together with a floor."""
        kinds = {bool(one.floor) for one in self.best}
        is_tie = self.same or len(self.best) == len(self.contenders) or len(kinds) > 1
        return is_tie and len(self.contenders) > 1 and not self.of_variants

    def agrees(self, other: Ranking) -> bool:
        """Whether the best of both share a contender, which beats the floor here unless floors are among both."""
        mine, theirs = ({(one.method, one.variant) for one in ranking.best} for ranking in (self, other))
        common = mine & theirs
        if self.floor is not None and not self.floors:
            common &= {(one.method, one.variant) for one in self.above}
        return bool(common) and bool(self.floors) == bool(other.floors)


def ranking(statistics: Statistics, model: str, layer: str | None, metric: str) -> Ranking | None:
    """Rank all methods under all variants by one metric at a layer, or each at its own best one (None).

    None if nothing was measured there.
    """
    values, checked, summary = statistics.contenders(model, layer, metric)
    if values.empty:
        return None
    known = statistics.metrics[metric]
    higher = known.higher_is_better
    measured = summary.index.get_level_values("method").unique()
    most = int(summary["n"].max())
    summary = summary[summary["n"] >= LEAST].sort_values("mean", ascending=not higher, kind="stable")
    numbers = values.loc[summary.index].to_numpy()
    contenders = tuple(
        Contender(method, variant, at, float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))
        for (variant, method, at), row in summary.iterrows()
    )
    originals = [place for place, one in enumerate(contenders) if one.of_variant and one.variant == UNCHANGED]
    against = originals[0] if originals else 0
    rounding = rounding_of(numbers)
    # Told apart are those that both comparisons tell apart (``Statistics.best``).
    tied = _tied(numbers, against) | _tied(checked.loc[summary.index].to_numpy(), against)
    # Whoever's mean is behind that of a beaten floor is no best, however few images tell it from the first.
    beaten = (place for place, one in enumerate(contenders) if one.floor and not tied[place])
    before = next(beaten, len(contenders))
    best = tuple(one for one, is_tied in zip(contenders[:before], tied, strict=False) if is_tied)
    apart = max(_spread(numbers), float(np.ptp(summary["mean"])) if contenders else 0.0)
    same = len(numbers) > 1 and apart <= rounding
    ungraded = tuple(
        name for name in measured if not is_of_variant(name) and name not in {one.method for one in contenders}
    )
    label = statistics.label(metric)
    absent = tuple(statistics.absent(model, layer, metric))
    found = Ranking(
        metric, label, known.unit, higher, contenders, best, same, ungraded, absent, (), known.counted, most
    )
    if found.floor is None:
        return found
    place = contenders.index(found.floor)
    sure = _better_than(numbers, place, higher) & _better_than(
        checked.loc[summary.index].to_numpy(), place, higher
    )
    return replace(found, above=tuple(one for one, is_sure in zip(contenders, sure, strict=True) if is_sure))


def _tied(numbers: Numbers, against: int) -> NDArray[np.bool_]:
    """Which rows (M, N) cannot be told from one of them, also for want of columns that both have."""
    tied: NDArray[np.bool_] = ~_better_than(numbers, against, True) & ~_better_than(numbers, against, False)
    return tied


def _better_than(numbers: Numbers, against: int, higher: bool) -> NDArray[np.bool_]:
    """Which rows (M, N) are told from one of them, and better."""
    lead = np.broadcast_to(numbers[against : against + 1], numbers.shape)
    above, below = told_apart(numbers, lead, rounding_of(numbers))
    return above if higher else below


def _spread(numbers: Numbers) -> float:
    """How far contenders differ on any image that two have."""
    differences = np.abs(numbers[:, None] - numbers[None])
    return float(np.nan_to_num(differences).max(initial=0))
