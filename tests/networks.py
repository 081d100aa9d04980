"""Small networks and exact backward passes that several tests share; nothing here uses pellucid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random, non-degenerate normalisation and gains; float64, eval mode, frozen."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if "gain" in name or "layer_scale" in name:
            parameter.uniform_(0.2, 1.0, generator=generator)
    return model


def telling_apart(model: nn.Module, images: Tensor) -> nn.Module:
    """A random network whose head ``fc`` is centered and scaled until its classes differ between images."""
    inside = []
    handle = model.fc.register_forward_hook(lambda _, given, __: inside.append(given[0]))
    model(images)
    handle.remove()
    [hidden] = inside
    model.fc.weight.div_(hidden.std(0).mean() / 2)
    model.fc.bias.sub_(model.fc(hidden.mean(0)))
    return model


class Chain(nn.Module):
    """Convolutions, a max-pool and linear layers with the four given activations between them."""

    def __init__(self, activations: Sequence[Activation], channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.hidden = nn.Linear(channels, 6)
        self.head = nn.Linear(6, 5)
        self.activations = nn.ModuleList(a for a in activations if isinstance(a, nn.Module))
        self.calls = list(activations)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.calls
        x = first(self.conv1(x))
        x = second(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = third(self.conv3(x))
        x = fourth(self.hidden(x.mean((2, 3))))
        return self.head(x)


class SkipFed(nn.Module):
    """A norm-free pre-activation residual network: x + conv(act(x)), so each activation's input feeds a skip."""

    def __init__(self, activations: Sequence[Activation], channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 5)
        self.activations = nn.ModuleList(a for a in activations if isinstance(a, nn.Module))
        self.calls = list(activations)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.calls
        x = self.stem(x)
        x = x + self.block1(first(x))
        x = x + self.block2(second(x))
        x = x + self.block3(third(x))
        return self.head((x + fourth(x)).mean((2, 3)))


class ActivatedSkip(SkipFed):
    """The activation feeds both branch and skip: what an in-place activation makes of ``SkipFed``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for act, conv in zip(self.calls, (self.block1, self.block2, self.block3), strict=False):
            branch = act(x)  # overwrites x, if in place
            x = branch + conv(branch)
        return self.head(self.calls[3](x).mean((2, 3)))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with weights from the seed: two networks of one shape and seed are the same function."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases that matter
                nn.init.normal_(parameter, 0, 0.3)
    return model.double().eval().requires_grad_(False)


def plain(*layers: nn.Module, seed: int = 0, bias: bool = True) -> nn.Sequential:
    """A sequential network, its weights and (unless ``bias=False``) biases drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*layers).double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.3 if bias else 0, generator=generator)
    return model


def images(count: int = 2, size: int = 8, seed: int = 0, channels: int = 3) -> Tensor:
    """Standard normal images in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0, "an all-zero expectation proves nothing"
    return float((found - expected).abs().max() / expected.abs().max())


class ExactGuided(torch.autograd.Function):
    """An activation whose backward pass is Nielsen et al., Eq. 4, written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Activation) -> Tensor:
        y = function(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return torch.where((y > 0) & (gradient > 0), gradient, 0.0), None


class ExactDeconv(torch.autograd.Function):
    """An activation whose backward pass is 1[R > 0] R."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Activation) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return torch.where(gradient > 0, gradient, 0.0), None


class ExactRescale(torch.autograd.Function):
    """DeepLIFT's rescale rule on a batch of images, then references."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Activation) -> Tensor:
        y = function(x)
        ctx.function = function
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        n = len(x) // 2
        difference, middle = x[:n] - x[n:], (x[:n] + x[n:]) / 2
        with torch.enable_grad():  # where image and reference nearly agree: the derivative between them
            middle.requires_grad_()
            (slope,) = torch.autograd.grad(ctx.function(middle).sum(), middle)
        chord = (y[:n] - y[n:]) / difference
        multiplier = gradient[:n] * torch.where(difference.abs() < 1e-5, slope, chord)
        return torch.cat([multiplier, torch.zeros_like(multiplier)]), None


ACTIVATIONS = (
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "hardswish",
    "mish",
    "softplus",
)


@contextmanager
def exactly(rule: type[torch.autograd.Function]) -> Iterator[None]:
    """Patch the activations of ``torch.nn.functional``, which modules call too, with an exact backward pass."""

    def patched(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Tensor:
            return rule.apply(x, lambda t: function(t, *args, **kwargs))

        return call

    # Never in place: F.elu(x, alpha, inplace) and the like, which modules call by position, lose the flag.
    def without_flag(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, *args, **kwargs: function(x, *(a for a in args if not isinstance(a, bool)), **kwargs)

    with mock.patch.multiple(F, **{name: patched(without_flag(getattr(F, name))) for name in ACTIVATIONS}):
        yield


def attributed(
    model: nn.Module, x: Tensor, targets: Tensor | Sequence[int], layers: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Plain autograd: the gradient of the target logits at the input and at named modules' outputs."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers if name != "input"]
    try:
        outputs["input"] = x = x.clone().requires_grad_()
        logits = model(x)
    finally:
        for handle in handles:
            handle.remove()
    targets = torch.as_tensor(targets)
    score = logits[torch.arange(len(targets)), targets].sum()
    return dict(zip(outputs, torch.autograd.grad(score, [*outputs.values()]), strict=True))


def logits_of(model: nn.Module, x: Tensor, targets: Tensor | Sequence[int]) -> Tensor:
    """Each image's target logit."""
    with torch.no_grad():
        return model(x).gather(1, torch.as_tensor(targets)[:, None])[:, 0]


def strided():
    """A strided convolution and a linear layer: (B, 3, 16, 16) -> (B, 3) logits."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))
    return layers.eval()


def photos_for_strided():
    """Three images (3, 3, 16, 16) for it."""
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
