"""Maps by Captum, for pellucid to grade beside its own: --methods examples/captum_maps.py:occlusion."""

from captum.attr import Occlusion, Saliency
from torch import Tensor, nn


def saliency(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The absolute gradient (n, C, H, W)."""
    return Saliency(model).attribute(images, target=targets)


def occlusion(model: nn.Module, images: Tensor, targets: Tensor, window: int = 16, stride: int = 8) -> Tensor:
    """How far the logit falls when a square window is blanked (n, C, H, W)."""
    channels = images.shape[1]
    return Occlusion(model).attribute(
        images, (channels, window, window), (channels, stride, stride), target=targets, baselines=0
    )
