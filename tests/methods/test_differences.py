"""What hides from gradients is found by comparing them with what the answer changes by."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import GradientWarning
from pellucid.methods.differences import missed_by_gradients
from tests.networks import images, seeded


class Branched(nn.Module):
    """Two branches of one convolution, of which the second is run by a function."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 3)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        other = self.run(x)
        return (self.one(x).tanh() + other.repeat(1, 2, 1, 1)[:, :5, 1:-1, 1:-1].tanh()).mean((2, 3))


def mapped(x: Tensor) -> Tensor:
    """Rows by vmap, within which no graph is built."""

    def row(one: Tensor) -> Tensor:
        with torch.no_grad():
            return one * one

    return torch.vmap(row)(x)


def _squared(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * x


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and still in use
    scripted = torch.jit.script(_squared)


def elsewhere(x: Tensor) -> Tensor:
    """In another thread, of which no mode and no gradient of this one knows."""
    found: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            found.append(x * x)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


class Other(torch.autograd.Function):
    """A square, and the gradient of x itself."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def written(x: Tensor) -> Tensor:
    y = x * 1
    y.data.mul_(x.data)
    return y


def hooked(x: Tensor) -> Tensor:
    y = x * x
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient / 3)
    return y


HIDING = {
    "detached": lambda x: x.detach() * x.detach(),
    "vmap": mapped,
    "scripted": scripted,
    "thread": elsewhere,
    "parameter": lambda x: nn.Parameter(x.detach() * 1) * x.detach(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() ** 2),
    "dlpack": lambda x: torch.from_dlpack(x.detach()) ** 2,
    "set": lambda x: torch.empty(0).to(x).set_(x.detach()) ** 2,
    "other gradient": Other.apply,
    "data": written,
    "hook": hooked,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("hide", HIDING.values(), ids=list(HIDING))
def test_what_hides_from_gradients_is_said(hide: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    model, x = seeded(lambda: Branched(hide)).to(dtype), images(2, 16).to(dtype)
    for max_batch in (1, 64):
        with pytest.warns(GradientWarning, match="otherwise than its gradient tells, by .* %"):
            pl.Gradient()(model, x, 0, max_batch=max_batch)
    with pytest.warns(GradientWarning):  # it is tried once, and said each time
        pl.method("smoothgrad(samples=2)")(model, x, 0)
    with warnings.catch_warnings():  # which looks at no gradient
        warnings.simplefilter("error")
        pl.Random()(model, x, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "run",
    [
        lambda x: x * x,
        lambda x: (x - x.amax(1, keepdim=True).detach()).softmax(1),  # the maximum changes nothing
        lambda x: x * (x > x.mean()).to(x),
        lambda x: F.max_pool2d(x, 3, 1, 1).clamp(0, 0.1),
    ],
)
def test_whole_gradients_are_not_said_to_miss_anything(
    run: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    model = seeded(lambda: Branched(run)).to(dtype)
    for image in (*images(4, 16).split(1), torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.4)):
        assert missed_by_gradients(model, image.to(dtype), 64) == 0


def test_the_share_is_that_of_what_is_missed() -> None:
    """Of a linear model whose gradient is a third of its own, two thirds are missed, along every direction."""

    class Third(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 8 * 8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((x / 3 + 2 / 3 * x.detach()).flatten(1))

    assert missed_by_gradients(seeded(Third), images(1, 8), 64) == pytest.approx(2 / 3, rel=1e-6)


def test_models_for_single_images_and_functions_of_them_are_compared() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 8 * 8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x[:1].flatten(1).square())

    assert missed_by_gradients(seeded(Single), images(1, 8), 64) == 0
    model, x = seeded(lambda: Branched(lambda x: x * x)), images(2, 16)
    pl.Gradient()(model, x, lambda output: output[:, 0] * output[:, 1])
    with pytest.warns(GradientWarning):
        pl.Gradient()(model, x, lambda output: output[:, 0] * output[:, 1].detach())


def test_layers_above_a_frozen_stem_are_not_warned_of() -> None:
    model = seeded(lambda: Branched(lambda x: x * x))
    model.conv.register_forward_hook(lambda module, given, output: output.detach())
    pl.Gradient()(model, images(2, 16), 0, ["one"])


@pytest.mark.parametrize("layer", ["layer1.0", "layer3.1"])
def test_of_a_trained_network_a_part_is_told_from_kinks_and_roundings(layer: str) -> None:
    loaded = pl.load_model("shapes-resnet")
    photos = [loaded.preprocess(one.image)[None] for one in pl.open_images("shapes:6")]
    assert [missed_by_gradients(loaded.model, one, 64) for one in photos] == [0] * 6
    block = loaded.model.get_submodule(layer)
    with block.register_forward_hook(lambda module, given, output: 0.3 * output + 0.7 * output.detach()):
        shares = [missed_by_gradients(loaded.model, one, 64) for one in photos]
    assert shares == pytest.approx([0.7] * 6, abs=0.03)
