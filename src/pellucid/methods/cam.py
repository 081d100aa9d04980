"""Grad-CAM, at any layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import SkippedLayerWarning
from ..layouts import Layout, last_map
from .attributions import Estimate
from .base import Method
from .network import Network, Points


@dataclass(frozen=True)
class GradCAM(Method):
    """Grad-CAM: channel c's share is a_c mean_{h,w}(gradient_c); the sum over channels is the map.

    Not clamped (Smooth Deep Saliency shows the signed map); clamp the heatmap of ``channels="sum"`` for
    Selvaraju et al.'s ReLU. Explains the last block that gives a map unless layers are named. Prefix tokens, which
    have no place, neither weigh nor get a share.
    """

    is_for_hidden: ClassVar[bool] = True

    def default_layers(
        self, model: nn.Module, images: Tensor, declared: Mapping[str, Layout], max_batch: int
    ) -> tuple[str, ...]:
        """The last block that gives a map (``last_map``)."""
        last, passed_over = last_map(model, images, declared, max_batch)
        for block in passed_over:
            message = (
                f"{last!r} is explained: of {block!r} after it nobody can tell where its dimensions look, or it "
                "gives several tensors; declare its layout, or name a layer"
            )
            warnings.warn(SkippedLayerWarning(message, block), stacklevel=6)
        return (last,)

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """One pass for all layers."""
        passed = network.gradients(points, layers)
        return {
            layer: Estimate(_weighted(network, layer, passed.activations[layer].detach(), gradient))
            for layer, gradient in passed.gradients.items()
        }


def _weighted(network: Network, layer: str, activation: Tensor, gradient: Tensor) -> Tensor:
    maps, prefix = network.split(layer, activation)
    # The gradient has the layer's own layout, so both are split alike before places are averaged.
    weights, _ = network.split(layer, gradient)
    places = tuple(range(2, weights.dim()))
    if places:
        weights = weights.mean(places, keepdim=True)
    return network.join(layer, maps * weights, torch.zeros_like(prefix))
