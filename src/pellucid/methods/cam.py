"""Grad-CAM, at any layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..layers import layer_names
from .base import Estimate, Method
from .network import Network, Points


@dataclass(frozen=True)
class GradCAM(Method):
    """Grad-CAM: channel c's share is a_c mean_{h,w}(gradient_c); the sum over channels is the map.

    Not clamped (Smooth Deep Saliency shows the signed map); clamp the heatmap of ``channels="sum"`` for
    Selvaraju et al.'s ReLU. Explains the last block unless layers are named.
    """

    def default_layers(self, model: nn.Module) -> tuple[str, ...]:
        """The last block."""
        return (layer_names(model)[-1],)

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """One pass for all layers."""
        passed = network.gradients(points, layers)
        return {
            layer: Estimate(passed.activations[layer].detach() * gradient.mean((-2, -1), keepdim=True))
            for layer, gradient in passed.gradients.items()
        }
