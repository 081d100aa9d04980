"""What is trained: one network in place, behind the face that several stacked ones share (``ensemble.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Networks(ABC):
    """What is trained: one network, or several at once; batches and states lead with a dimension of networks."""

    base: nn.Module  # whose mode decides, and whose name is said
    count: int

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """What the optimizer changes, by name."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Logits (networks, B, classes) of images (networks, B, C, H, W)."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Weights and buffers by name, each (networks, ...); what is returned may change later."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights and buffers of :meth:`state`."""

    @abstractmethod
    def finish(self) -> None:
        """Leave every network in eval mode with frozen parameters."""


class One(Networks):
    """A single network, trained in place."""

    count = 1

    def __init__(self, model: nn.Module) -> None:
        self.base = model

    def parameters(self) -> dict[str, Tensor]:
        """The network's own."""
        return dict(self.base.named_parameters())

    def logits(self, images: Tensor) -> Tensor:
        """The network's own."""
        batch = images[0]
        if torch.is_autocast_enabled(batch.device.type):  # bfloat16 convolves fastest channels-last
            batch = batch.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.base(batch)
        return logits[None]

    def state(self) -> dict[str, Tensor]:
        """The network's own."""
        return {name: value[None] for name, value in self.base.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Give it to the network."""
        self.base.load_state_dict({name: value[0] for name, value in state.items()})

    def finish(self) -> None:
        """Freeze the network."""
        self.base.eval().requires_grad_(False)
