"""What is trained: one network in place, or several of one architecture stacked into one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ..errors import InvalidData
from ..outputs import tensor_in


class Networks:
    """A network trained in place; batches and states lead with a dimension of networks, here of one."""

    count = 1

    def __init__(self, model: nn.Module) -> None:
        self.base = model

    def parameters(self) -> dict[str, Tensor]:
        """What the optimizer changes, by name."""
        return dict(self.base.named_parameters())

    def logits(self, images: Tensor) -> Tensor:
        """Logits (networks, B, classes), or (networks, B, classes, H, W), of images (networks, B, C, H, W)."""
        batch = images[0]
        if torch.is_autocast_enabled(batch.device.type):  # bfloat16 convolves fastest channels-last
            batch = batch.contiguous(memory_format=torch.channels_last)
        return tensor_in(self.base(batch))[None]

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers by name, each (networks, ...); what is returned may change later."""
        return {name: value[None] for name, value in self.base.state_dict().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights and buffers of :meth:`state`."""
        self.base.load_state_dict({name: value[0] for name, value in state.items()})

    def finish(self) -> None:
        """Leave every network in eval mode with frozen parameters."""
        self.base.eval().requires_grad_(False)


class Stacked(Networks):
    """Networks of one architecture as one: parameters (networks, ...), every operation once for all of them.

    Convolutions become grouped ones. Optimizers work value by value, so each network learns as if alone;
    dropout draws other numbers than it would alone.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = [model.requires_grad_(True) for model in models]
        self.count = len(models)
        # Only its structure is used; its own weights are replaced by those of each network.
        self.base = copy.deepcopy(models[0])
        try:
            self.weights, self.buffers = stack_module_state(self.models)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidData(f"these networks differ and cannot be trained as one: {error}") from error

    def parameters(self) -> dict[str, Tensor]:
        """The stacked ones."""
        return dict(self.weights)

    def logits(self, images: Tensor) -> Tensor:
        """All networks at once, each on its own images."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.base, (weights, buffers), (images,))
            return logits

        # By vmap the networks stay independent: no gradient of one reaches another's weights.
        logits: Tensor = vmap(one, randomness="different")(self.weights, self.buffers, images)
        return logits

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers, stacked."""
        return {**self.weights, **self.buffers}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights and buffers into the stacked ones."""
        with torch.no_grad():
            for name, value in self.state().items():
                value.copy_(state[name])

    def finish(self) -> None:
        """Give every network its own weights back."""
        state = self.state()
        for network, model in enumerate(self.models):
            model.load_state_dict({name: state[name].detach()[network] for name in model.state_dict()})
            model.eval().requires_grad_(False)
