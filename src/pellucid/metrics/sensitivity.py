"""Does the map follow the decision? Its change under an attack that flips the class, and for another class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidModel, InvalidParameter, require_choice
from ..methods.attributions import Attributions
from ..methods.checks import require_in_range
from ..outputs import logits_in
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, count_rows, fitting
from ..rules.base import Rules
from ..rules.norm import FrozenBatchNorm
from ..seeds import fold_in
from .base import Axis, Case, Measured, Metric
from .scoring import Scorer
from .similarity import spearman

_Similarity = Literal["spearman", "cosine"]
_Other = Literal["second", "least", "random"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between maps (B, ...), one value per image (B,) in [-1, 1]; NaN where a map is zero."""
    # Scaled first, so that no square of a small gradient underflows.
    x, y = (rows / rows.abs().amax(1, keepdim=True) for rows in (a.flatten(1), b.flatten(1)))
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


_SIMILARITIES: Mapping[_Similarity, Callable[[Tensor, Tensor], Tensor]] = {"spearman": spearman, "cosine": cosine}


@dataclass(frozen=True, kw_only=True)
class _Change(Metric):
    """1 - similarity of each heatmap and another of the same image: 0 if nothing changed, at most 2."""

    axis: ClassVar[Axis] = "sensitivity"
    unit = "1 - similarity"
    ends = (0, 2)
    higher_is_better = True
    similarity: _Similarity = "spearman"

    def __post_init__(self) -> None:
        require_choice("similarity", self.similarity, _Similarity)

    def changes(self, case: Case, before: Attributions, after: Attributions, valid: Tensor) -> dict[str, Measured]:
        """The change at each layer, NaN where not ``valid`` (B,)."""
        found = {}
        for layer in case.layers:
            alike = _SIMILARITIES[self.similarity](case.heatmap(before[layer]), case.heatmap(after[layer]))
            values = (1 - alike).to(case.images.dtype).masked_fill(~valid, torch.nan)
            found[layer] = Measured(values, compared=after[layer])
        return found


def _logits(case: Case, images: Tensor) -> Tensor:
    """Logits of the explained model as it is, without variant."""
    return Scorer(case.explained, output="logits", max_batch=case.max_batch).logits(images)


def _clean_logits(case: Case) -> Tensor:
    """Logits of the case's images, shared by the metrics of this file."""
    return case.once("explained logits", lambda: _logits(case, case.images))


def fgsm(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    epsilon: Tensor | float,
    max_batch: MaxBatch = DEFAULT_MAX_BATCH,
) -> Tensor:
    """Images (B, C, H, W) moved by one step of the fast gradient sign method, away from ``classes`` (B,).

    x + epsilon sign(d loss / d x), loss the cross-entropy of the class (Goodfellow et al., Sec. 4). ``epsilon``
    is in the images' units, one number or one per image (B,). Nothing is clipped; the model is unchanged.
    """

    def signs(rows: Tensor, labels: Tensor) -> Tensor:
        points = rows.detach().clone().requires_grad_()
        # A clone: the model's first operation may be in place.
        with Rules((FrozenBatchNorm(),), model=model):
            logits = logits_in(model(points.clone()))
        count_rows(len(logits))
        require_in_range(labels, logits.shape[1])
        # By the sum the gradient of an image does not shrink, and underflow, with the size of its batch.
        loss = F.cross_entropy(logits, labels.clone(), reduction="sum")
        return torch.autograd.grad(loss, points)[0].sign()

    def all_signs(most: int) -> Tensor:
        return torch.cat(list(map(signs, images.split(most), classes.split(most))))

    step = torch.as_tensor(epsilon, dtype=images.dtype, device=images.device).view(-1, 1, 1, 1)
    with torch.inference_mode(False), torch.enable_grad():
        return images + step * fitting(model, images, max_batch, all_signs)


@dataclass(frozen=True, kw_only=True)
class AdversarialChange(_Change):
    """How much the map changes when an attack that the eye cannot see changes the class.

    1 - similarity(map of x for its predicted class, map of x' for its own), 0 to 2, where
    x' = clip(x + epsilon sign(d loss / d x)) (``fgsm``). Only images whose predicted class the attack changed
    count. A map that does not change shows the picture and not the decision. The explained model is attacked
    and asked as it is, so that all methods and variants see the same pairs.

    ``epsilon`` is a fraction of each image's max - min (0.005, the paper's 0.01 for pixels in [-1, 1]), or in
    the model's input units if not ``relative``. ``bounds`` are the lowest and highest pixel, in those units, to
    which x' is clipped; None is each image's own. ``similarity``: ``"spearman"`` or ``"cosine"``.
    """

    name = "adversarial_change"
    paper = "Kim et al., Why are Saliency Maps Noisy? (RectGrad), Sec. 5.2, Fig. 5b"
    undefined = "the attack did not change the predicted class, or a map is constant"

    epsilon: float = 0.005
    relative: bool = True
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _Change.__post_init__(self)
        if not 0 < self.epsilon < float("inf"):
            raise InvalidParameter(f"epsilon={self.epsilon}: give the attack's step, above 0")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise InvalidParameter(f"bounds={self.bounds}: give (lowest, highest)")

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image and layer; two explanations at most, shared by all settings of one attack."""
        key = (self.epsilon, self.relative, self.bounds)
        classes, attacked, flipped = case.once(("attack", key), lambda: self._attack(case))
        before = _for_classes(case, "predicted", classes)
        if torch.equal(attacked, classes):  # nothing to compare
            return self.changes(case, before, before, attacked != classes)
        after = case.once(("attacked maps", key), lambda: case.explain(images=flipped, targets=attacked))
        return self.changes(case, before, after, attacked != classes)

    def _attack(self, case: Case) -> tuple[Tensor, Tensor, Tensor]:
        """The predicted classes before and after, and the attacked images."""
        logits = _clean_logits(case)
        if logits.shape[1] < 2:
            raise InvalidModel("the model has one class, which no attack can change")
        classes = logits.argmax(1)
        rows = case.images.flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        epsilon = self.epsilon * (high - low if self.relative else torch.ones_like(low))
        if self.bounds is not None:
            low, high = (torch.full_like(low, bound) for bound in self.bounds)
        images = fgsm(case.explained, case.images, classes, epsilon, case.max_batch)
        # It is clipped here and not in ``fgsm``, since only the metric knows which pixels there can be.
        images = images.clamp(low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1))
        return classes, _logits(case, images).argmax(1), images


@dataclass(frozen=True, kw_only=True)
class ClassChange(_Change):
    """How much the map changes when another class is explained: 1 - similarity of the two heatmaps, 0 to 2.

    ``other``: ``"second"``, the highest logit but the explained class's; ``"least"``, the lowest; ``"random"``,
    any other class, from the case's seed; or a class number. Logits are those of the explained model as it is.
    A map that is the same for every class cannot explain why this one was chosen.
    """

    name = "class_change"
    paper = "Kim et al., Why are Saliency Maps Noisy? (RectGrad), Sec. 5.2: class sensitivity"
    undefined = "a map is constant, or the other class is the explained one"

    other: _Other | int = "second"

    def __post_init__(self) -> None:
        _Change.__post_init__(self)
        if isinstance(self.other, bool) or not isinstance(self.other, int):
            require_choice("other", self.other, _Other)
        elif self.other < 0:
            raise InvalidParameter(f"other={self.other}: give a class number, 0 or more, or a name")

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image and layer; one more explanation, shared by all settings of one other class."""
        classes = self.others(case)
        after = _for_classes(case, self.other, classes)
        return self.changes(case, case.attributions, after, classes != case.targets)

    def others(self, case: Case) -> Tensor:
        """The other class of each image (B,)."""
        logits, targets = _clean_logits(case), case.targets
        if logits.shape[1] < 2:
            raise InvalidModel("the model has one class, so there is no other whose map could differ")
        if isinstance(self.other, int):
            others = torch.full_like(targets, self.other)
            require_in_range(others, logits.shape[1])
            return others
        if self.other == "random":
            # The same step from every class: an image's other class depends on its own and the seed alone.
            generator = torch.Generator().manual_seed(fold_in(case.seed, 0))
            step = int(torch.randint(1, logits.shape[1], (), generator=generator))
            return (targets + step) % logits.shape[1]
        # The explained class is put out of the running at -inf, whether the highest or the lowest is sought.
        sign = 1 if self.other == "second" else -1
        return (sign * logits).scatter(1, targets[:, None], -torch.inf).argmax(1)


def _for_classes(case: Case, key: Any, classes: Tensor) -> Attributions:
    """The attributions of the case's images for other classes, computed once."""
    if torch.equal(classes, case.targets):
        return case.attributions
    return case.once(("maps of classes", key), lambda: case.explain(targets=classes))
