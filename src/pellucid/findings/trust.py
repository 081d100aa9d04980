"""The trust card: which maps of a model can be trusted for what, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnknownName
from . import wording
from .statistics import ALL_LAYERS, LEAST, ORIGINAL, ROUNDING, Numbers, Statistics

if TYPE_CHECKING:
    from ..experiments.store import Results

FLOORS = ("random", "edges")  # methods that know nothing of the network


def floor_of(method: str) -> str:
    """``"random"`` or ``"edges"`` for the methods that know nothing of the network, else empty."""
    name = method.split("(")[0].strip()
    return name if name in FLOORS else ""


@dataclass(frozen=True)
class Contender:
    """A method under a variant, and what its maps score: the mean of ``n`` values and its 95 % interval."""

    method: str
    variant: str
    mean: float
    low: float
    high: float
    n: int

    @property
    def floor(self) -> str:
        """As ``floor_of`` its method."""
        return floor_of(self.method)


@dataclass(frozen=True)
class Ranking:
    """All contenders by one metric, the best mean first.

    Attributes:
        metric, name: its text and its short name.
        unit, higher_is_better: what the means are.
        contenders: method x variant with at least 3 defined values.
        best: those whose paired difference to the first has an interval that includes 0. Where variants are
            graded themselves (contenders without a method), those so near to the original.
        same: every contender has the same values, so that the metric does not tell maps apart.
        ungraded: methods with fewer defined values under every variant.
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
    counted: str = "image"
    most: int = 0

    @property
    def places(self) -> int:
        """The decimals of its numbers: those of a typical interval."""
        return wording.shared_decimals([one.low for one in self.contenders], [one.high for one in self.contenders])

    @property
    def floors(self) -> tuple[str, ...]:
        """The floors among the best: no method is told from these."""
        found = {contender.floor for contender in self.best}
        return tuple(floor for floor in FLOORS if floor in found)

    @property
    def of_variants(self) -> bool:
        """Whether variants were graded rather than maps."""
        return any(not contender.method for contender in self.contenders)

    @property
    def decided(self) -> bool:
        """Whether the metric tells maps apart at all."""
        return bool(self.contenders) and not self.same and not self.of_variants

    def agrees(self, other: Ranking) -> bool:
        """Whether the best of both have a contender in common, and both or neither beat the floors."""
        mine, theirs = ({(one.method, one.variant) for one in ranking.best} for ranking in (self, other))
        return bool(mine & theirs) and bool(self.floors) == bool(other.floors)


@dataclass(frozen=True)
class Verdict:
    """One axis of a card.

    Attributes:
        axis: what is asked of the maps.
        lead: the ranking by the axis's leading metric, the first listed.
        others: the rankings by its other metrics.
        sentence: the finding, for a reader who is no statistician.
        agreement: whether the other metrics agree; empty if there are none.
    """

    axis: str
    lead: Ranking
    others: tuple[Ranking, ...] = ()
    sentence: str = ""
    agreement: str = ""

    @property
    def question(self) -> str:
        """What the axis asks, in plain words."""
        return wording.QUESTIONS.get(self.axis, self.axis.capitalize())


@dataclass(frozen=True)
class TrustCard:
    """What to trust the maps of a model for, at one layer or on average over its layers (``layer=None``)."""

    model: str
    layer: str | None
    verdicts: tuple[Verdict, ...]
    sentence: str
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        title = f"Trust card of {self.model}, {self.layer or ALL_LAYERS}"
        found = [
            f"{one.question}\n  {' '.join(filter(None, (one.sentence, one.agreement)))}" for one in self.verdicts
        ]
        return "\n".join([title, self.sentence, *self.warnings, *found])


def trust_card(
    results: Results, model: str, layer: str | None = None, statistics: Statistics | None = None
) -> TrustCard:
    """Judge a model's maps at one layer, or on average over its layers (``layer=None``).

    For each axis that was graded, the contenders are all methods under all variants. ``statistics`` of the
    same results saves their computation.

    Raises:
        UnknownName: the results have no such model or layer.
        InvalidData: the results are empty.
    """
    statistics = statistics or Statistics.of(results)
    layers = statistics.layers(model)
    if layer is not None and layer not in layers:
        raise UnknownName("layer", layer, layers)
    axes: dict[str, list[Ranking]] = {}
    for metric, known in statistics.metrics.items():
        found = ranking(statistics, model, layer or ALL_LAYERS, metric)
        if found is not None:
            axes.setdefault(known.axis, []).append(found)
    order = sorted(axes, key=lambda axis: [*wording.QUESTIONS, axis].index(axis))
    verdicts = tuple(_verdict(axis, axes[axis]) for axis in order)
    notes = wording.warnings(verdicts)
    return TrustCard(model, layer, verdicts, wording.overall(verdicts), tuple(notes))


def ranking(statistics: Statistics, model: str, layer: str, metric: str) -> Ranking | None:
    """Rank all methods under all variants by one metric; None if nothing was measured there."""
    values, summary = statistics.contenders(model, layer, metric)
    if values.empty:  # what grades the variant itself stands at no layer
        values, summary = statistics.contenders(model, "", metric)
    if values.empty:
        return None
    known = statistics.metrics[metric]
    higher = known.higher_is_better
    measured = summary.index.get_level_values("method").unique()
    most = int(summary["n"].max())
    summary = summary[summary["n"] >= LEAST].sort_values("mean", ascending=not higher, kind="stable")
    numbers = values.loc[summary.index].to_numpy()
    contenders = tuple(
        Contender(method, variant, float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))
        for (variant, method), row in summary.iterrows()
    )
    keys = [(one.method, one.variant) for one in contenders]
    against = keys.index(("", ORIGINAL)) if ("", ORIGINAL) in keys else 0
    rounding = ROUNDING * np.nan_to_num(np.abs(numbers)).max(initial=0)
    low, high = statistics.resamples.interval(numbers - numbers[against : against + 1])
    best = tuple(
        one for one, tied in zip(contenders, (low <= rounding) & (high >= -rounding), strict=True) if tied
    )
    same = len(numbers) > 1 and _spread(numbers) <= rounding
    ungraded = tuple(name for name in measured if name and name not in {one.method for one in contenders})
    label = statistics.label(metric)
    return Ranking(metric, label, known.unit, higher, contenders, best, same, ungraded, known.counted, most)


def _spread(numbers: Numbers) -> float:
    """How far contenders differ on any image."""
    differences = np.abs(numbers[:, None] - numbers[None])
    return float(np.nan_to_num(differences).max(initial=0))


def _verdict(axis: str, rankings: Sequence[Ranking]) -> Verdict:
    verdict = Verdict(axis, rankings[0], tuple(rankings[1:]))
    return replace(verdict, sentence=wording.finding(verdict.lead), agreement=wording.agreement(verdict))
