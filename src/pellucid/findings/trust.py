"""The trust card: which maps of a model can be trusted for what, in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import UnknownName
from . import wording
from .ranking import Ranking, ranking
from .statistics import ALL_LAYERS, Statistics

if TYPE_CHECKING:
    from ..experiments.store import Results


@dataclass(frozen=True)
class Finding:
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
    findings: tuple[Finding, ...]
    sentence: str
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        title = f"Trust card of {self.model}, {self.layer or ALL_LAYERS}"
        found = [
            f"{one.question}\n  {' '.join(filter(None, (one.sentence, one.agreement)))}" for one in self.findings
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
    axes = dict(sorted(axes.items(), key=lambda entry: [*wording.QUESTIONS, entry[0]].index(entry[0])))
    leads = {axis: rankings[0] for axis, rankings in axes.items()}
    findings = tuple(_finding(axis, *rankings) for axis, rankings in axes.items())
    return TrustCard(model, layer, findings, wording.overall(leads), tuple(wording.warnings([*leads.values()])))


def _finding(axis: str, lead: Ranking, *others: Ranking) -> Finding:
    return Finding(axis, lead, others, wording.finding(lead), wording.agreement(lead, others))
