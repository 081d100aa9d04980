"""Floors that every method must beat: a random map, and the image's edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import INPUT
from ..sampling import noise_like
from .attributions import Estimate
from .base import Method
from .network import Network, Points


@dataclass(frozen=True)
class Random(Method):
    """Standard normal noise of the layer's shape, from the image's seed."""

    has_sign: ClassVar[bool] = False

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """The model only tells the shapes."""
        return {
            layer: Estimate(noise_like(like, points.keys).expand_as(like).clone())
            for layer, like in _like(network, points, layers).items()
        }


@dataclass(frozen=True)
class Edges(Method):
    """The Sobel gradient magnitude of the image, blind to the model; averaged down to a layer's size."""

    has_sign: ClassVar[bool] = False
    reads_below_zero: ClassVar[bool] = False

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """The same edges in every channel of a hidden layer."""
        edges = sobel(network.images[points.origin])
        total = edges.mean(1, keepdim=True)
        return {
            layer: Estimate(edges if layer == INPUT else _pooled(network, layer, total, like))
            for layer, like in _like(network, points, layers).items()
        }


def _pooled(network: Network, layer: str, edges: Tensor, like: Tensor) -> Tensor:
    """Edges (n, 1, H, W) averaged down to a layer's places, the same in all channels; none on prefix tokens."""
    maps, prefix = network.split(layer, like)
    pooled = F.adaptive_avg_pool2d(edges, (maps.shape[-2], maps.shape[-1])).expand_as(maps)
    return network.join(layer, pooled, torch.zeros_like(prefix)).clone()


def _like(network: Network, points: Points, layers: Sequence[str]) -> dict[str, Tensor]:
    if tuple(layers) == (points.layer,):
        return {points.layer: points.values}
    activations = network.forward(points, layers).activations | {INPUT: points.values}
    return {layer: activations[layer] for layer in layers if layer in activations}


def sobel(images: Tensor) -> Tensor:
    """Sobel gradient magnitude of each channel (B, C, H, W), borders replicated."""
    smooth, slope = images.new_tensor([1.0, 2.0, 1.0]) / 4, images.new_tensor([-1.0, 0.0, 1.0]) / 2
    flat = F.pad(images.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    kernels = torch.stack([smooth.outer(slope), slope.outer(smooth)]).unsqueeze(1)
    with torch.autocast(images.device.type, enabled=False):
        return F.conv2d(flat, kernels).square().sum(1).sqrt().view_as(images)
