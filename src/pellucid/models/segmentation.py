"""Segmentation models as classifiers, and classifiers as segmentation models; which class to explain."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidImage, InvalidModel, InvalidParameter, InvalidTarget, require_choice
from ..layers import captured, explainable, layer_names
from ..outputs import Sharing, tensor_in
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, fitting
from ..undo import Guard

Pooling = Literal["mean", "predicted"]
_VOID = 255  # torchvision's and Pascal VOC's label of pixels that belong to no class


class Segmentation(Sharing):
    """A dense model (B, C, H, W) -> (B, K, h, w) as a classifier: logits (B, K), pooled over the pixels.

    It shares the dense model's own parts: layers, parameters and state dict are the same, and both are one
    network ever after. The dense model may return logits inside a tuple, mapping or object, under ``"logits"``, or
    ``"out"`` as torchvision's.

    Args:
        model: the dense model, in eval mode.
        background: the class of pixels that belong to no object; None if there is no such class.
        pooling: ``"mean"``, each class's mean logit over all pixels; ``"predicted"``, over the pixels where it
            is the highest, and over all pixels for a class that nowhere is (so that the highest pooled logit is
            always a predicted class's). The choice of pixels has no gradient; and since it is another at a
            reference, DeepLIFT and integrated gradients miss their sums: explain a ``region`` or the mean there.
        region: where to pool, instead: one pixel (row, column), or a mask (H, W), each of the images' size.

    Raises:
        InvalidModel: TorchScript or in training mode; when run, an output that is not (B, K, h, w).
        InvalidParameter: an unknown pooling, a background that is no class number, a region without a pixel or,
            when run, beyond the images.
    """

    background: int | None
    pooling: Pooling
    region: tuple[int, int] | Tensor | None

    def __init__(
        self,
        model: nn.Module,
        background: int | None = 0,
        pooling: Pooling = "mean",
        region: tuple[int, int] | Tensor | None = None,
    ) -> None:
        require_choice("pooling", pooling, Pooling)
        _require_background(background)
        super().__init__(explainable(model))
        region = torch.as_tensor(region) if isinstance(region, Tensor) else region
        self._keep(background=background, pooling=pooling, region=region)
        if isinstance(self.region, Tensor) and (self.region.dim() != 2 or not bool(self.region.any())):
            raise InvalidParameter(
                f"region of shape {tuple(self.region.shape)}: give a mask (H, W) with a pixel in it"
            )

    @property
    def settings(self) -> str:
        """Where logits are pooled, and how."""
        region = self.region.int().tolist() if isinstance(self.region, Tensor) else self.region
        return f"pooled {self.pooling}" + ("" if region is None else f" {region}")

    def dense(self, images: Tensor) -> Tensor:
        """The dense model's logits (B, K, h, w) of images (B, C, H, W)."""
        logits = tensor_in(self._model(images))
        if logits.dim() != 4:
            raise InvalidModel(
                f"the model returns {tuple(logits.shape)}; a segmentation model returns logits "
                "(batch, classes, h, w)"
            )
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Pooled logits (B, K)."""
        logits = self.dense(images)
        if self.region is not None:
            shares = self._shares((images.shape[-2], images.shape[-1]), logits)
            return (logits * shares).sum((2, 3)) / shares.sum()
        if self.pooling == "mean":
            return logits.mean((2, 3))
        highest = logits.detach().argmax(1, keepdim=True)
        chosen = highest == torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        # A class that is nowhere the highest is pooled over all pixels.
        chosen = chosen | ~chosen.any(3, keepdim=True).any(2, keepdim=True)
        return torch.where(chosen, logits, 0).sum((2, 3)) / chosen.sum((2, 3))

    def _shares(self, size: tuple[int, int], logits: Tensor) -> Tensor:
        """How much of each place (h, w) of the logits lies in the region of images of this size."""
        if isinstance(self.region, Tensor):
            if self.region.shape != size:
                raise InvalidParameter(
                    f"region is {tuple(self.region.shape)}, and images are {size}; give one size"
                )
            mask = self.region.to(logits) != 0
        else:
            row, column = self.region or (0, 0)
            if not (0 <= row < size[0] and 0 <= column < size[1]):
                raise InvalidParameter(f"region={self.region}: a pixel (row, column) of images of {size}")
            mask = torch.zeros(size, dtype=torch.bool, device=logits.device)
            mask[row, column] = True
        # Logits may be coarser than the images, so a place counts by the share of it that lies in the region.
        return F.adaptive_avg_pool2d(mask[None].to(logits.dtype), (logits.shape[-2], logits.shape[-1]))[0]

    def targets(self, images: Tensor, max_batch: MaxBatch = DEFAULT_MAX_BATCH) -> Tensor:
        """The class to explain (B,) by the model's own segmentation (``segmentation_targets``)."""

        def targets(most: int) -> Tensor:
            parts = (self.dense(part.clone()) for part in images.split(most))
            return torch.cat([segmentation_targets(part, self.background) for part in parts])

        with torch.no_grad():
            return fitting(self, images, max_batch, targets)


def dense_model(model: nn.Module) -> nn.Module:
    """The dense model inside a :class:`Segmentation`, which is what learns; any other model as it is."""
    return model._model if isinstance(model, Segmentation) else model


class Dense(Sharing):
    """A classifier run at every place: (B, C, H, W) -> logits (B, K, h, w).

    Its global average pooling is taken out, and its linear layer is a 1x1 convolution; so the mean of its logits
    over the places is the classifier's logits. It holds the classifier's own parts, as ``Segmentation`` does.

    Raises:
        InvalidModel: what follows the classifier's last block is not a global ``nn.AdaptiveAvgPool2d`` and one
            ``nn.Linear`` alone.
    """

    def __init__(self, classifier: nn.Module) -> None:
        Sharing.__init__(self, classifier)
        self._block, self._linear = _ends(classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, h, w)."""
        # The classifier runs as it is, and what its last block gives is taken before it is pooled away.
        with Guard(), captured(self._model, [self._block]) as features:
            self._model(images)
        # A linear layer after the mean over places is the mean of the same layer, run at every place.
        linear = self.get_submodule(self._linear)
        assert isinstance(linear, nn.Linear)
        return F.conv2d(features[self._block], linear.weight[:, :, None, None], linear.bias)


_UNCHANGING = (nn.modules.dropout._DropoutNd, nn.Flatten, nn.Identity)  # in eval mode


def _ends(classifier: nn.Module) -> tuple[str, str]:
    """The names of the last block and of the linear layer, between which there is global pooling alone.

    Of a chain that ends with the block, the chain: else its output, which may be explained, would lead nowhere.
    """
    block = layer_names(classifier)[-1]
    leaves = [(name, part) for name, part in classifier.named_modules() if not list(part.children())]
    last = max((place for place, (name, _) in enumerate(leaves) if f"{name}.".startswith(f"{block}.")), default=-1)
    after = [leaf for leaf in leaves[last + 1 :] if not isinstance(leaf[1], _UNCHANGING)]
    kinds = [type(part) for _, part in after]
    if kinds != [nn.AdaptiveAvgPool2d, nn.Linear] or after[0][1].output_size not in (1, (1, 1), [1, 1]):
        raise InvalidModel(
            f"{type(classifier).__name__} cannot be run at every place: its blocks are not followed by a global "
            "average pooling (nn.AdaptiveAvgPool2d) and one nn.Linear alone; take a ResNet or the like"
        )
    chains = [block.rsplit(".", depth)[0] for depth in range(1, block.count(".") + 1)]
    for chain in chains:
        if type(classifier.get_submodule(chain)) is not nn.Sequential or after[0][0].startswith(f"{chain}."):
            break
        block = chain
    return block, after[1][0]


def segmentation_targets(labels: Tensor, background: int | None = 0, ignored: int | None = _VOID) -> Tensor:
    """The class to explain (B,): the majority of the non-background pixels, else the background.

    ``labels`` are class numbers (B, H, W), pixels of the label ``ignored`` left out, or a dense model's logits
    (B, K, H, W), of which the highest counts. The lower class wins a tie (Smooth Deep Saliency, Sec. 3.3).
    ``background`` None is where no class is one.

    Raises:
        InvalidImage: neither labels nor logits, or logits that are not finite.
        InvalidTarget: a label below 0; no labeled pixel, where no class is the background.
        InvalidParameter: a background that is no class number, or no class of the logits.
    """
    _require_background(background)
    if labels.dim() == 4 and labels.is_floating_point():
        if background is not None and background >= labels.shape[1]:
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


def _majority(labels: Tensor, background: int | None, ignored: int | None) -> Tensor:
    kept = labels if ignored is None else labels[labels != ignored]
    kept = kept if background is None else kept[kept != background]
    if len(kept) == 0:
        if background is None:
            raise InvalidTarget(
                "no pixel of a segmentation has a label; leave that image out, or give background="
            )
        return torch.full_like(labels[0], background)
    if bool((kept < 0).any()):
        raise InvalidTarget(
            f"label {int(kept.min())} is no class; give 0 and above, and ignored= for what to leave out"
        )
    return torch.bincount(kept).argmax()


def _require_background(value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidParameter(f"background={value!r}: give a class number, 0 or more, or None")
