"""Does a variant still predict as the original does? Top-1, and the difference of the probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidData, InvalidModel, require_choice
from ..methods.checks import require_in_range, require_targets
from ..variants.base import ORIGINAL, Variant
from .base import Axis, Case, Need, VariantMetric
from .scoring import Output, Scorer

_At = Literal["auto", "label", "explained"]
_SMOOTH = "Smooth Deep Saliency"


def _probabilities(case: Case, variant: Variant) -> Tensor:
    """Probabilities (B, classes) of the explained model, as it is or under the case's variant.

    Softmax, or sigmoid where the case is scored by it, in full precision: the rounding of a faster one would pass
    for a difference. Where the scorer's model is the same, its own passes serve.
    """
    scorer = case.scorer
    same = scorer.model is case.explained and scorer.variant == variant
    if not same or scorer.output == "logits" or scorer.precision != "full":
        output: Output = "sigmoid" if scorer.output == "sigmoid" else "softmax"
        scorer = Scorer(case.explained, variant, output, case.max_batch)
    return case.once(("probabilities", variant == ORIGINAL), lambda: scorer.of(case.images))


def _labels(case: Case) -> Tensor:
    """The true classes (B,); ``InvalidData`` where they are not known."""
    if case.labels is None:
        raise InvalidData("the images' true classes are not known; give labels, or leave out this metric")
    known = require_targets(case.labels, case.images)
    require_in_range(known, _probabilities(case, ORIGINAL).shape[1])
    return known


@dataclass(frozen=True, kw_only=True)
class _Fidelity(VariantMetric):
    """How far the variant's answers are from the original's, or from the truth."""

    axis: ClassVar[Axis] = "fidelity"
    unit = "100 x probability"
    higher_is_better = False
    ends = (0, 100)


@dataclass(frozen=True, kw_only=True)
class Top1(_Fidelity):
    """Whether the variant's highest probability is the true class's: 1 or 0; their mean is the top-1 accuracy."""

    name = "top1"
    unit = "correct"
    ends = (0, 1)
    higher_is_better = True
    paper = f"{_SMOOTH}, Sec. 4.1, Table 2"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    def values(self, case: Case) -> Tensor:
        """Whether the true class wins."""
        probabilities = _probabilities(case, case.variant)
        if probabilities.shape[1] < 2:
            told = "the model has one class, so that none is wrong; give it two answers: "
            error = InvalidModel(f"{told}pellucid.Classifier(model, pellucid.two_answers)")
            error.command = f"{told}--classes no,yes"
            raise error
        return (probabilities.argmax(1) == _labels(case)).to(probabilities.dtype)


@dataclass(frozen=True, kw_only=True)
class PredictionDifference(_Fidelity):
    """100 sum_k |p_k - p'_k| over all classes, p the original's softmax and p' the variant's: 0 to 200."""

    name = "prediction_difference"
    ends = (0, 200)
    paper = f"{_SMOOTH}, Sec. 3.2, Table 3: all classes"

    def values(self, case: Case) -> Tensor:
        """The sum over all classes."""
        return 100 * (_probabilities(case, ORIGINAL) - _probabilities(case, case.variant)).abs().sum(1)


@dataclass(frozen=True, kw_only=True)
class TargetDifference(_Fidelity):
    """100 |p_y - p'_y| at one class y, p the original's softmax and p' the variant's: 0 to 100.

    ``at``: ``"label"`` is the true class (the paper), ``"explained"`` the class of the map, ``"auto"`` the
    true class where labels are known, else the explained one.
    """

    name = "target_difference"
    paper = f"{_SMOOTH}, Sec. 3.2, Table 3: target class"

    at: _At = "auto"

    def __post_init__(self) -> None:
        require_choice("at", self.at, _At)

    def values(self, case: Case) -> Tensor:
        """The difference at the class."""
        explained = self.at == "explained" or (self.at == "auto" and case.labels is None)
        classes = (case.targets if explained else _labels(case))[:, None]
        both = torch.stack([_probabilities(case, ORIGINAL), _probabilities(case, case.variant)])
        chosen = both.gather(2, classes.expand(2, -1, -1))[..., 0]
        return 100 * (chosen[0] - chosen[1]).abs()
