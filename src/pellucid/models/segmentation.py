"""Segmentation models as classifiers: dense logits pooled over the pixels, and which class to explain."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from ..errors import InvalidImage, InvalidModel, InvalidParameter, InvalidTarget, require_choice, require_count
from ..layers import require_explainable

Pooling = Literal["mean", "predicted"]
VOID = 255  # torchvision's and Pascal VOC's label of pixels that belong to no class


class Segmentation(nn.Module):
    """A dense model (B, C, H, W) -> (B, K, h, w) as a classifier: logits (B, K), pooled over the pixels.

    It holds the dense model's own parts under their own names: layers, parameters and state dict are the same,
    and both are the same network ever after. The dense model may return torchvision's dict with ``"out"``.

    Args:
        model: the dense model, in eval mode.
        background: the class of pixels that belong to no object.
        pooling: ``"mean"``, each class's mean logit over all pixels; ``"predicted"``, over the pixels where it
            is the highest, and over all pixels for a class that nowhere is (so that the highest pooled logit is
            always a predicted class's). The choice of pixels has no gradient.

    Raises:
        InvalidModel: TorchScript, compiled or in training mode; when run, an output that is not (B, K, h, w).
        InvalidParameter: an unknown pooling, a background that is no class number.
    """

    _model: nn.Module

    def __init__(self, model: nn.Module, background: int = 0, pooling: Pooling = "mean") -> None:
        nn.Module.__init__(self)
        require_choice("pooling", pooling, Pooling)
        _require_class("background", background)
        require_explainable(model)
        self.background = background
        self.pooling = pooling
        # The same dicts: what is moved, loaded or replaced here is so in the dense model, which is no part itself.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        object.__setattr__(self, "_model", model)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the dense model, too."""
        self._model.training = mode
        nn.Module.train(self, mode)
        return self

    def dense(self, images: Tensor) -> Tensor:
        """The dense model's logits (B, K, h, w) of images (B, C, H, W)."""
        output = self._model(images)
        logits = output.get("out") if isinstance(output, dict) else output
        if not isinstance(logits, Tensor) or logits.dim() != 4:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise InvalidModel(
                f"the model returns {shape}; a segmentation model returns logits (batch, classes, h, w), or a "
                "dict with them under 'out'"
            )
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Pooled logits (B, K)."""
        logits = self.dense(images)
        if self.pooling == "mean":
            return logits.mean((2, 3))
        highest = logits.detach().argmax(1, keepdim=True)
        chosen = highest == torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        chosen = chosen | ~chosen.any(3, keepdim=True).any(2, keepdim=True)
        return torch.where(chosen, logits, 0).sum((2, 3)) / chosen.sum((2, 3))

    def targets(self, images: Tensor, max_batch: int = 64) -> Tensor:
        """The class to explain (B,) by the model's own segmentation (``segmentation_targets``)."""
        require_count("max_batch", max_batch)
        with torch.no_grad():
            parts = [
                segmentation_targets(self.dense(part.clone()), self.background) for part in images.split(max_batch)
            ]
        return torch.cat(parts)


def segmentation_targets(labels: Tensor, background: int = 0, ignored: int | None = VOID) -> Tensor:
    """The class to explain (B,): the majority of the non-background pixels, else the background.

    ``labels`` are class numbers (B, H, W), pixels of the label ``ignored`` left out, or a dense model's logits
    (B, K, H, W), of which the highest counts. The lower class wins a tie (Smooth Deep Saliency, Sec. 3.3).

    Raises:
        InvalidImage: neither labels nor logits, or logits that are not finite.
        InvalidTarget: a label below 0.
        InvalidParameter: a background that is no class number, or no class of the logits.
    """
    _require_class("background", background)
    if labels.dim() == 4 and labels.is_floating_point():
        if background >= labels.shape[1]:
            raise InvalidParameter(f"background={background}: the logits have classes 0 to {labels.shape[1] - 1}")
        if not bool(labels.isfinite().all()):
            raise InvalidImage("the segmentation's logits hold NaN or infinite values")
        labels, ignored = labels.argmax(1), None
    if labels.dim() != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidImage(
            f"a segmentation of shape {tuple(labels.shape)} {labels.dtype}; give whole numbers (batch, height, "
            "width) or logits (batch, classes, height, width)"
        )
    return torch.stack([_majority(picture.flatten().long(), background, ignored) for picture in labels])


def _majority(labels: Tensor, background: int, ignored: int | None) -> Tensor:
    kept = labels if ignored is None else labels[labels != ignored]
    kept = kept[kept != background]
    if len(kept) == 0:
        return torch.full_like(labels[0], background)
    if bool((kept < 0).any()):
        raise InvalidTarget(
            f"label {int(kept.min())} is no class; give 0 and above, and ignored= for what to leave out"
        )
    return torch.bincount(kept).argmax()


def _require_class(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidParameter(f"{name}={value!r}: give a class number, 0 or more")
