"""Does a variant still predict as the original does? Top-1, and the difference of the probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidData, require_choice
from ..methods.checks import require_in_range, require_targets
from ..variants.base import ORIGINAL, Variant
from .base import Axis, Case, Measured, Metric, Need
from .scoring import Output, Scorer

At = Literal["auto", "label", "explained"]
SMOOTH = "Smooth Deep Saliency"


def original_probabilities(case: Case) -> Tensor:
    """Probabilities (B, classes) of the explained model as it is."""
    return case.once("original probabilities", lambda: _probabilities(case, ORIGINAL))


def variant_probabilities(case: Case) -> Tensor:
    """Probabilities (B, classes) of the explained model under the case's variant."""
    if case.variant == ORIGINAL:
        return original_probabilities(case)
    return case.once("variant probabilities", lambda: _probabilities(case, case.variant))


def _probabilities(case: Case, variant: Variant) -> Tensor:
    """Softmax, or sigmoid where the case is scored by it; the scorer's own passes where it is the same model.

    In full precision: the rounding of a faster one would pass for a difference.
    """
    scorer = case.scorer
    same = scorer.model is case.explained and scorer.variant == variant
    if not same or scorer.output == "logits" or scorer.precision != "full":
        output: Output = "sigmoid" if scorer.output == "sigmoid" else "softmax"
        scorer = Scorer(case.explained, variant, output, case.max_batch)
    return scorer.of(case.images)


def labels(case: Case) -> Tensor:
    """The true classes (B,).

    Raises:
        InvalidData: they are not known.
        InvalidTarget: they do not fit the images or the model.
    """
    if case.labels is None:
        raise InvalidData("the images' true classes are not known; give labels, or leave out this metric")
    known = require_targets(case.labels, case.images)
    require_in_range(known, original_probabilities(case).shape[1])
    return known


@dataclass(frozen=True, kw_only=True)
class Top1(Metric):
    """Whether the variant's highest probability is the true class's: 1 or 0; their mean is the top-1 accuracy."""

    name = "top1"
    axis: ClassVar[Axis] = "fidelity"
    unit = "correct"
    higher_is_better = True
    paper = f"{SMOOTH}, Sec. 4.1, Table 2"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    of_model = True

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image.

        Raises:
            InvalidData: the true classes are not known.
            InvalidTarget: they do not fit the images or the model.
        """
        probabilities = variant_probabilities(case)
        return {"": Measured((probabilities.argmax(1) == labels(case)).to(probabilities.dtype))}


@dataclass(frozen=True, kw_only=True)
class PredictionDifference(Metric):
    """100 sum_k |p_k - p'_k| over all classes, p the original's softmax and p' the variant's: 0 to 200."""

    name = "prediction_difference"
    axis: ClassVar[Axis] = "fidelity"
    unit = "100 x probability"
    higher_is_better = False
    paper = f"{SMOOTH}, Sec. 3.2, Table 3: all classes"
    of_model = True

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image."""
        return {"": Measured(100 * (original_probabilities(case) - variant_probabilities(case)).abs().sum(1))}


@dataclass(frozen=True, kw_only=True)
class TargetDifference(Metric):
    """100 |p_y - p'_y| at one class y, p the original's softmax and p' the variant's: 0 to 100.

    ``at``: ``"label"`` is the true class (the paper), ``"explained"`` the class of the map, ``"auto"`` the
    true class where labels are known, else the explained one.

    Raises:
        InvalidParameter: an unknown choice of the class.
    """

    name = "target_difference"
    axis: ClassVar[Axis] = "fidelity"
    unit = "100 x probability"
    higher_is_better = False
    paper = f"{SMOOTH}, Sec. 3.2, Table 3: target class"
    of_model = True

    at: At = "auto"

    def __post_init__(self) -> None:
        require_choice("at", self.at, At)

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image.

        Raises:
            InvalidData: ``at="label"`` and the true classes are not known.
            InvalidTarget: they do not fit the images or the model.
        """
        explained = self.at == "explained" or (self.at == "auto" and case.labels is None)
        classes = (case.targets if explained else labels(case))[:, None]
        both = torch.stack([original_probabilities(case), variant_probabilities(case)])
        chosen = both.gather(2, classes.expand(2, -1, -1))[..., 0]
        return {"": Measured(100 * (chosen[0] - chosen[1]).abs())}
