"""The trust card: which maps of a model can be trusted for what, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import escape

from ..errors import InvalidParameter, UnknownName
from ..experiments.ratings import RATED
from . import wording
from .agreement import raters_told
from .ranking import Ranking, ranking
from .statistics import Statistics

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
    """What to trust a model's maps for: at one layer, or each method's at its own best one (``layer=None``)."""

    model: str
    layer: str | None
    findings: tuple[Finding, ...]
    sentence: str
    warnings: tuple[str, ...] = field(default=())
    explained: str = ""

    @property
    def title(self) -> str:
        """What was judged, and where."""
        return f"Trust card of {self.model}, {wording.judged_at(self.layer)}"

    def __str__(self) -> str:
        found = [
            f"{one.question}\n  {' '.join(filter(None, (one.sentence, one.agreement)))}" for one in self.findings
        ]
        told = [text for text in (self.sentence, self.explained) if text]
        return "\n".join([self.title, *told, *self.warnings, *found])

    def _repr_html_(self) -> str:
        """The card in a notebook."""
        warned = "".join(f"<p>&#9888; {escape(text)}</p>" for text in self.warnings)
        rows = "".join(
            f"<dt><b>{escape(one.question)}</b></dt><dd>{escape(one.sentence)} {escape(one.agreement)}</dd>"
            for one in self.findings
        )
        head = f"<h4>{escape(self.title)}</h4><p>{escape(self.sentence)} {escape(self.explained)}</p>"
        return f"<div style='max-width:50em'>{head}{warned}<dl>{rows}</dl></div>"


def trust_card(
    results: Results, model: str | None = None, layer: str | None = None, statistics: Statistics | None = None
) -> TrustCard:
    """Judge a model's maps at one layer, or each method's at its own best one (``layer=None``).

    For each axis that was graded, the contenders are all methods under all variants. A method's best layer is that
    of each metric by itself (``Statistics.best``). ``model`` may be left out where there is one; ``statistics`` of
    the same results saves their computation.

    Raises:
        UnknownName: the results have no such model or layer.
        InvalidParameter: several models, and none is named.
        InvalidData: the results are empty.
    """
    statistics = statistics or Statistics.of(results)
    model = model or _only(statistics)
    layers = statistics.layers(model)
    if layer is not None and layer not in layers:
        raise UnknownName("layer", layer, layers)
    axes: dict[str, list[Ranking]] = {}
    for metric, known in statistics.metrics.items():
        found = ranking(statistics, model, layer, metric)
        if found is not None:
            axes.setdefault(known.axis, []).append(found)
    axes = dict(sorted(axes.items(), key=lambda entry: [*wording.QUESTIONS, entry[0]].index(entry[0])))
    poor = results.record.poor.get(model, ())
    findings = tuple(_finding(results, axis, poor, *rankings) for axis, rankings in axes.items())
    leads = [rankings[0] for rankings in axes.values()]
    return TrustCard(
        model,
        layer,
        findings,
        wording.overall(axes, poor),
        (*wording.warnings(leads), *map(wording.as_sentence, results.record.noticed.get(model, ()))),
        wording.explained(_explained(results, model)),
    )


def _explained(results: Results, model: str) -> dict[str, int]:
    """The classes that a model's maps explain, each with its number of images, the most first."""
    table = results.table
    if "target" not in table:
        return {}
    pairs = table.loc[table["model"] == model, ["image", "target"]].astype(object).drop_duplicates().dropna()
    return {str(name): int(count) for name, count in pairs["target"].value_counts().items()}


def _only(statistics: Statistics) -> str:
    """The one model that was graded."""
    models = list(statistics.values.index.get_level_values("model").unique())
    if len(models) > 1:
        raise InvalidParameter(f"the results are of {len(models)} models; name one: {', '.join(models)}")
    return str(models[0])


def _finding(results: Results, axis: str, poor: Sequence[str], lead: Ranking, *others: Ranking) -> Finding:
    rated = [one for one in (lead, *others) if one.metric.startswith(RATED)]
    told = [wording.agreement(lead, others)]
    told += [f"{wording.begun(one.name)}: {raters_told(results, one.metric)}" for one in rated]
    return Finding(axis, lead, others, wording.finding(lead, poor), " ".join(filter(None, told)))
