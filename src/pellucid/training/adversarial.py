"""Adversarial training: images are moved against the network before it learns from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import InvalidParameter, require_count
from ..models.preprocess import Preprocess
from ..seeds import fold_in
from .batches import fetch, image_count, prepared

_STEP = 2.5  # of epsilon, over the number of steps: from any start the whole of the box is in reach
_SCORED = 256  # images attacked at a time


def attacked(
    pixels: Tensor, loss: Callable[[Tensor], Tensor], epsilon: float, steps: int, start: Tensor
) -> Tensor:
    """What projected gradient ascent on the loss finds within epsilon of each pixel (Madry et al., Sec. 2.1).

    x_0 = x + epsilon (2 u - 1) and x_{t+1} = Pi(x_t + 2.5 epsilon / steps sign(grad loss(x_t))), where Pi clips to
    [x - epsilon, x + epsilon] and to [0, 1].

    Args:
        pixels: (..., C, H, W) in [0, 1].
        loss: of such images: a sum of one value for each, so that none depends on the others.
        epsilon: above 0, in the pixels' units; steps: how many gradients are taken.
        start: u, random numbers in [0, 1] of the images' shape.
    """
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    x = (pixels + epsilon * (2 * start - 1)).clamp(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x), x)
        x = (x.detach() + _STEP * epsilon / steps * gradient.sign()).clamp(low, high)
    return x


def robust_accuracy(
    model: nn.Module,
    images: Dataset[object],
    preprocess: Preprocess,
    epsilon: float,
    steps: int = 20,
    count: int | None = None,
    seed: int = 0,
) -> float:
    """The share in [0, 1] of images that a network knows after each was moved against it (``attacked``).

    ``count`` takes the first images alone. Set eval mode before; the attack sees frozen parameters, too.

    Raises:
        InvalidParameter: epsilon is not above 0, or steps below 1.
    """
    require_count("steps", steps)
    if not epsilon > 0:
        raise InvalidParameter(f"epsilon={epsilon}: give a number above 0, such as 8 / 255")
    like, right = next(model.parameters()), 0
    total = min(image_count(images), count or image_count(images))
    for rows in torch.arange(total).split(_SCORED):
        pixels, labels = fetch(images, rows)
        pixels, labels = prepared(pixels, None, like), labels.to(like.device)
        start = torch.rand(pixels.shape, generator=Generator().manual_seed(fold_in(seed, int(rows[0])))).to(pixels)

        def loss(x: Tensor, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(model(preprocess.normalize(x)), labels, reduction="sum")

        moved = attacked(pixels, loss, epsilon, steps, start)
        with torch.no_grad():
            right += int((model(preprocess.normalize(moved)).argmax(1) == labels).sum())
    return right / (total * labels[0].numel())  # of pixels, where these are labeled
