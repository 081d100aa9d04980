"""The model that is scored: its probabilities of many images, in full batches, every pass counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import require_count
from ..methods.checks import not_finite, require_logits
from ..rules.base import Rules
from ..rules.norm import FrozenBatchNorm
from ..rules.variants import Variant, variant_rules

Output = Literal["softmax", "sigmoid", "logits"]


@dataclass(eq=False)
class Scorer:
    """A model under a variant, asked for the scores of images without gradients.

    ``rows`` counts the images that went through the model, ``passes`` its forward passes; none sees more than
    ``max_batch`` images. Clean images asked for again are not run again (``of``).
    """

    model: nn.Module
    variant: Variant = "original"
    output: Output = "softmax"
    max_batch: int = 64
    rows: int = 0
    passes: int = 0
    _known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_count("max_batch", self.max_batch)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W).

        Raises:
            InvalidModel: the output is no finite tensor of logits.
        """
        rules = (*variant_rules(self.variant), FrozenBatchNorm())
        parts = []
        with torch.inference_mode():
            for part in images.split(self.max_batch):
                self.passes += 1
                self.rows += len(part)
                # A clone: the model's first operation may be in place.
                with Rules(rules) as running:
                    parts.append(require_logits(self.model(part.clone())))
                running.require_all_applied()
        logits = torch.cat(parts)
        if not bool(logits.isfinite().all()):
            raise not_finite(self.model, "a logit")
        return logits

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, classes): softmax or sigmoid probabilities, or logits as they are."""
        logits = self.logits(images)
        match self.output:
            case "softmax":
                return logits.softmax(1)
            case "sigmoid":
                return logits.sigmoid()
            case _:
                return logits

    def of(self, images: Tensor) -> Tensor:
        """Scores of images that several ask about: run once for each tensor object."""
        known = self._known.get(id(images))
        if known is None or known[0] is not images:
            known = self._known[id(images)] = (images, self.scores(images))
        return known[1]
