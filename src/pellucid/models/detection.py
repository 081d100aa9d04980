"""Detectors as classifiers of given boxes: the score of whatever the detector finds there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from ..errors import InvalidModel, InvalidParameter
from ..layers import explainable
from ..outputs import Sharing

_Found = tuple[Tensor, Tensor, Tensor]  # an image's boxes (n, 4), their scores (n,) and labels (n,)
_LEAST = 1e-6  # of a score: its logit stays finite


class Detection(Sharing):
    """A detector as a classifier of K given boxes: images (B, C, H, W) -> logits (B, K), one for each box.

    The logit is log(p / (1 - p)), p the score of the box found that overlaps the given one most, by intersection
    over union; the choice has no gradient. Where none overlaps it by ``overlap``, p is 1e-6, without a gradient.
    With one box its probability, a sigmoid, is p; score several by ``"sigmoid"``. It shares the detector's parts.

    Args:
        model: the detector, in eval mode. It returns torchvision's list of ``boxes``, ``scores`` and ``labels`` of
            each image, or one tensor (B, 4 + classes, N) as ultralytics' do: center, size, a score for each class.
        boxes: (K, 4), each (x0, y0, x1, y1) in pixels of the images.
        labels: the class of each box; found boxes of others do not count. None: of any class.
        overlap: the least intersection over union.
        read: what the model returns -> (boxes, scores, labels) of each image, where it returns something else.

    Raises:
        InvalidParameter: boxes without an area, as many labels as boxes are not given, an overlap beyond 0 to 1.
        InvalidModel: when run: an output of another kind.
    """

    boxes: Tensor
    labels: Sequence[int] | None
    overlap: float
    read: Callable[[Any], Sequence[_Found]] | None

    def __init__(
        self,
        model: nn.Module,
        boxes: Sequence[Sequence[float]] | Tensor,
        labels: Sequence[int] | None = None,
        overlap: float = 0.1,
        read: Callable[[Any], Sequence[_Found]] | None = None,
    ) -> None:
        given = torch.as_tensor(boxes, dtype=torch.float32)
        if given.dim() != 2 or given.shape[1] != 4 or not bool((given[:, 2:] > given[:, :2]).all()):
            raise InvalidParameter(f"boxes={boxes!r}: give (x0, y0, x1, y1) for each, with x0 < x1 and y0 < y1")
        if labels is not None and len(labels) != len(given):
            raise InvalidParameter(f"{len(labels)} labels for {len(given)} boxes; give one for each")
        if not 0 <= overlap <= 1:
            raise InvalidParameter(f"overlap={overlap}: give the least intersection over union, from 0 to 1")
        super().__init__(explainable(model))
        self._keep(boxes=given, labels=labels, overlap=overlap, read=read)

    @property
    def settings(self) -> str:
        """The boxes, and what counts as found."""
        return f"{super().settings} boxes {self.boxes.tolist()} {self.labels} {self.overlap}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        found = (self.read or _found)(self._model(images))
        return torch.stack([torch.stack([*self._scores(one)]) for one in found]).logit()

    def _scores(self, found: _Found) -> Iterator[Tensor]:
        """The score (0-dim) of what is found at each given box."""
        boxes, scores, labels = found
        # Which box is meant is a choice without a slope; its score is what is explained.
        overlaps = box_iou(self.boxes.to(boxes), boxes.detach())
        for number, here in enumerate(overlaps):
            if self.labels is not None:
                here = here.masked_fill(labels != self.labels[number], -1)  # less than no overlap
            best = int(here.argmax()) if len(here) else 0
            counts = len(here) > 0 and bool(here[best] >= self.overlap)
            score = scores[best] if counts else (scores * 0).sum()  # which carries a gradient of zeros
            yield score.clamp(_LEAST, 1 - _LEAST)


def _found(output: Any) -> list[_Found]:
    """Each image's boxes, scores and labels in torchvision's list or in ultralytics' tensor."""
    if isinstance(output, list) and all(isinstance(one, Mapping) and "boxes" in one for one in output):
        return [(one["boxes"], one["scores"], one["labels"]) for one in output]
    raw = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(raw, Tensor) or raw.dim() != 3 or raw.shape[1] < 5:
        raise InvalidModel(
            f"the model returns {type(output).__name__}, in which no boxes are found; give read=, a function of "
            "the output that gives (boxes, scores, labels) of each image"
        )
    return [_of_classes(one) for one in raw.transpose(1, 2)]


def _of_classes(raw: Tensor) -> _Found:
    """Every box once for each class: raw rows are center, size and a score for each class (N, 4 + classes)."""
    count, classes = len(raw), raw.shape[1] - 4
    boxes = box_convert(raw[:, :4], "cxcywh", "xyxy").repeat_interleave(classes, 0)
    # Of boxes that overlap the given one alike, the first counts: the highest score's.
    scores, order = raw[:, 4:].flatten().sort(descending=True, stable=True)
    labels = torch.arange(classes, device=raw.device).repeat(count)
    return boxes[order], scores, labels[order]
