"""Faithfulness: how the class's score follows as pixels are inserted or deleted in a map's order (RISE)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..errors import InvalidParameter, brief, require_count
from ..methods.checks import require_images, require_targets
from ..methods.repeatable import warn_of_scored
from ..passes import MaxBatch, placed
from ..variants.base import AnyVariant
from .adaptive import AREA_TOLERANCE, FINEST, everywhere, where_it_bends
from .base import Axis, Case, Measured, SharedMetric
from .perturbation import RISE, Fill, Kind, Perturbation, Queue, Reference
from .scoring import Output, Precision, Scorer

StepCount = int | Literal["auto"]


class Curve(NamedTuple):
    """Scores along the pixels' order: ``fractions`` changed (n+1,), ``scores`` (..., n+1), ``auc`` (...).

    The area is the trapezoid's over the fractions, from 0 to 1, not divided by the first score.
    """

    fractions: Tensor
    scores: Tensor
    auc: Tensor


class Scoring(TypedDict, total=False):
    """How a model is scored: arguments of ``Scorer``."""

    output: Output
    variant: AnyVariant
    max_batch: MaxBatch
    precision: Precision


def insertion(
    model: nn.Module | Scorer,
    images: Tensor,
    targets: Any,
    heatmaps: Tensor,
    steps: StepCount = 28,
    *,
    start: Reference = "blur",
    tolerance: float = AREA_TOLERANCE,
    **scoring: Unpack[Scoring],
) -> Curve:
    """Scores as the pixels of highest heatmap values are put first into a blurred image; a high area is good.

    After step k of n the first ceil(k H W / n) pixels, all channels together, are the image's, the others the
    start's. Where n divides H W that is RISE's step of H W / n pixels and RISE's area. Heatmap values that are
    equal stand in reading order (row by row), so that a constant map inserts from the top.

    Args:
        model: maps images to logits (B, classes); or a ``Scorer``, which brings its own settings.
        images: (B, C, H, W), normalized as the model expects.
        targets: class numbers (B,) or one for all, or ``"auto"``: the class of highest score.
        heatmaps: (B, H, W), or smaller (B, h, w), then up-sampled to the nearest.
        steps: their number n, at most H W (28 in RISE's benchmark and Smooth Deep Saliency); ``"auto"`` scores 14
            steps of equal size, and steps down to 1/224 where the curve bends, until the area's expected error
            is ``tolerance``. It gives all 225 scores; those between scored points are interpolated linearly,
            so that the area is that of the curve through the scored points.
        start: ``"blur"`` (RISE's kernel, ``blur_kernel``), ``"gaussian"``, ``"zero"`` (of normalized
            pixels), ``"mean"`` (each image's own color), a number, or a tensor (C, H, W) or (B, C, H, W).
        tolerance: of ``steps="auto"``, in units of the area: the standard error expected of one image.
        scoring: ``output``: ``"softmax"`` (default), ``"sigmoid"`` or ``"logits"``; ``variant`` of the scored
            model (``"original"``); ``max_batch`` (64), which bounds the rows of a forward pass; ``precision``.

    Raises:
        InvalidModel, InvalidImage, InvalidTarget, InvalidMap, InvalidParameter: as their names say.

    Source: Petsiuk et al., RISE, Sec. 4.2, and its released code; Smooth Deep Saliency, Sec. 4.3.
    """
    return _curve(model, images, targets, heatmaps, Perturbation("insertion", start), steps, tolerance, scoring)


def deletion(
    model: nn.Module | Scorer,
    images: Tensor,
    targets: Any,
    heatmaps: Tensor,
    steps: StepCount = 28,
    *,
    substrate: Reference = "zero",
    tolerance: float = AREA_TOLERANCE,
    **scoring: Unpack[Scoring],
) -> Curve:
    """Scores as the pixels of highest heatmap values are first replaced by a substrate; a low area is good.

    After step k of n the first ceil(k H W / n) pixels are the substrate's: ``"zero"`` (of normalized pixels, as
    in RISE), or whatever ``insertion`` can start from. All else is as there.
    """
    return _curve(model, images, targets, heatmaps, Perturbation("deletion", substrate), steps, tolerance, scoring)


def _curve(
    model: nn.Module | Scorer,
    images: Tensor,
    targets: Any,
    heatmaps: Tensor,
    perturbation: Perturbation,
    steps: StepCount,
    tolerance: float,
    scoring: Scoring,
) -> Curve:
    if isinstance(model, Scorer) and scoring:
        raise InvalidParameter(f"{', '.join(scoring)} given with a Scorer, which has its own; leave one out")
    scorer = model if isinstance(model, Scorer) else Scorer(model, **scoring)
    require_images(images)
    # The caller's own tensor where it will do: a Scorer knows its clean scores.
    images = placed(images.detach() if images.requires_grad else images, scorer.model)
    warn_of_scored(scorer.model, images)
    if isinstance(targets, str) and targets == "auto":
        targets = scorer.of(images).argmax(1)
    targets = require_targets(targets, images)
    (found,) = curves(scorer, images, targets, [heatmaps], (perturbation,), steps, tolerance)
    return Curve(found.fractions, found.scores[0], found.auc[0])


def curves(
    scorer: Scorer,
    images: Tensor,
    targets: Tensor,
    maps: Iterable[Tensor],
    kinds: Sequence[Kind | Perturbation] = ("insertion", "deletion"),
    steps: StepCount = 28,
    tolerance: float = AREA_TOLERANCE,
) -> tuple[Curve, ...]:
    """Curves of every kind, in their order, for K maps (B, h, w) of each image: scores (K, B, n+1), auc (K, B).

    All of them share one queue of full batches (``Queue``): memory does not grow with steps or kinds, and with
    maps only by their ranks. Kinds by name have RISE's references.
    """
    pixels = images[0, 0].numel()
    require_steps(steps, tolerance, pixels)
    n = min(FINEST, pixels) if steps == "auto" else steps
    perturbations = [RISE[kind] if isinstance(kind, str) else kind for kind in kinds]
    with torch.no_grad():
        queue = Queue(scorer, images, targets, maps, perturbations)
        # The ceiling is taken in whole numbers: of a float's k H W / n it may be one too high.
        counts = torch.tensor([-(-k * pixels // n) for k in range(n + 1)], device=images.device)
        # Areas are sums of many scores, for which halves are too coarse.
        start, finish = (end.to(torch.promote_types(end.dtype, torch.float32)) for end in queue.ends())
        fractions = counts.to(start.dtype) / pixels

        def score(curve: Tensor, node: Tensor) -> Tensor:
            return queue.score(curve, counts[node])

        if steps == "auto":
            scores = where_it_bends(score, start, finish, fractions, tolerance)
        else:
            scores = everywhere(score, start, finish, fractions)
        scores = scores.view(*queue.shape, n + 1)
        return tuple(Curve(fractions, each, torch.trapezoid(each, fractions)) for each in scores)


def require_steps(steps: StepCount, tolerance: float, pixels: int | None = None) -> None:
    """Raise ``InvalidParameter`` unless steps are "auto" or a count of at most ``pixels``."""
    if not (isinstance(tolerance, int | float) and tolerance > 0):
        raise InvalidParameter(
            f"tolerance={brief(tolerance)}: give an error of the area above 0, such as {AREA_TOLERANCE}"
        )
    if isinstance(steps, str) and steps == "auto":
        return
    if isinstance(steps, str):
        raise InvalidParameter(f"steps={brief(steps)}: give a whole number or 'auto'")
    require_count("steps", steps)
    if pixels is not None and steps > pixels:
        raise InvalidParameter(f"steps={steps}: the images have only {pixels} pixels; give as many at most")


@dataclass(frozen=True, kw_only=True)
class Faithfulness(SharedMetric):
    """Area under the class's score as pixels change in the map's order; undefined for a map without an order."""

    axis: ClassVar[Axis] = "faithfulness"
    unit = "mean score"
    undefined = "a constant map puts no pixel before another"

    steps: StepCount = 28
    tolerance: float = AREA_TOLERANCE

    def __post_init__(self) -> None:
        require_steps(self.steps, self.tolerance)
        if isinstance(self.perturbation.reference, Tensor):
            raise InvalidParameter(f"{self.name} with a tensor for a reference: give a name or a number")

    @property
    @abstractmethod
    def perturbation(self) -> Perturbation:
        """What happens to the pixels."""

    @property
    def sharing(self) -> Hashable:
        """Metrics of this family with equal steps run as one queue."""
        return "faithfulness", self.steps, self.tolerance if self.steps == "auto" else None

    def measure_all(
        self, case: Case, metrics: Sequence[Faithfulness]
    ) -> Mapping[Faithfulness, dict[str, Measured]]:
        """All layers under all these metrics."""
        maps = [case.heatmaps(layer) for layer in case.layers]
        # The curve of a constant map would only say how reading order fares, which is no finding about the method.
        constant = torch.stack([map_.flatten(1).amax(1) == map_.flatten(1).amin(1) for map_ in maps])
        kinds = [metric.perturbation for metric in metrics]
        found = curves(case.scorer, case.images, case.scored, maps, kinds, self.steps, self.tolerance)
        return {metric: _by_layer(case, curve, constant) for metric, curve in zip(metrics, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Insertion(Faithfulness):
    """Area under the score as a blurred image gets its pixels back, the map's highest first (``insertion``)."""

    name = "insertion"
    higher_is_better = True
    paper = "RISE, Sec. 4.2; Smooth Deep Saliency, Sec. 4.3"

    start: Fill = "blur"

    @property
    def perturbation(self) -> Perturbation:
        """From the start to the image."""
        return Perturbation("insertion", self.start)


@dataclass(frozen=True, kw_only=True)
class Deletion(Faithfulness):
    """Area under the score as pixels are replaced by a substrate, the map's highest first (``deletion``)."""

    name = "deletion"
    higher_is_better = False
    paper = "RISE, Sec. 4.2; Smooth Deep Saliency, Sec. 4.3"

    substrate: Fill = "zero"

    @property
    def perturbation(self) -> Perturbation:
        """From the image to the substrate."""
        return Perturbation("deletion", self.substrate)


def _by_layer(case: Case, curve: Curve, constant: Tensor) -> dict[str, Measured]:
    scores = curve.scores.masked_fill(constant[..., None], torch.nan)
    values, at = curve.auc.masked_fill(constant, torch.nan), curve.fractions.tolist()
    return {layer: Measured(values[row], scores[row], at) for row, layer in enumerate(case.layers)}
