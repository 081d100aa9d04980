"""Maps whose places are not the image's are found by where they change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.layouts import Layout
from pellucid.methods.places import astray
from tests.networks import seeded

SIDE = 64


class Between(nn.Module):
    """Two convolutions, and a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], kernel: int = 3) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, kernel, padding=kernel // 2), nn.Conv2d(4, 4, 3, padding=1)
        self.between, self.head = between, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(self.between(F.relu(self.one(x))))).mean((2, 3)))


def exchanged(x: Tensor, at: int, dim: int) -> Tensor:
    """The part of a map from a place on, before the part until there."""
    first, second = x.split([at, x.shape[dim] - at], dim)
    return torch.cat([second, first], dim)


MOVES = {
    "halves beside each other": lambda x: exchanged(x, SIDE // 2, 3),
    "halves above each other": lambda x: exchanged(x, SIDE // 2, 2),
    "a quarter around": lambda x: exchanged(x, SIDE // 4, 3),
    "an eighth around": lambda x: exchanged(x, SIDE // 8, 2),
    "stacked": lambda x: torch.stack([x[..., SIDE // 2 :], x[..., : SIDE // 2]], 3).flatten(3),
    "interleaved": lambda x: torch.stack([x[..., : SIDE // 2], x[..., SIDE // 2 :]], 4).flatten(3),
    "shifted": lambda x: F.pad(x, (SIDE // 4, -SIDE // 4, 0, 0)),
    "cut": lambda x: x[..., SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4],
    "enlarged": lambda x: F.interpolate(x, scale_factor=2)[..., SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2],
}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_maps_that_lie_elsewhere_are_said(move: Callable[[Tensor], Tensor], kernel: int) -> None:
    model, x = seeded(lambda: Between(move, kernel)).float(), torch.randn(2, 3, SIDE, SIDE)
    for _ in range(2):
        with pytest.warns(
            pl.DisplacedMapWarning, match=r"'two' lies up to \d\d% .* moves what it sees on the way"
        ) as said:
            pl.method("gradcam")(model, x, 0, ["one", "two"])
        assert [one.message.layer for one in said] == ["two"]


@pytest.mark.parametrize(
    "stay",
    [
        lambda x: x,
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: F.conv2d(x, torch.ones(4, 1, 9, 9).to(x) / 81, groups=4),  # without padding
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),  # each place looks at all of the image
        lambda x: torch.zeros_like(x) * x,  # nothing changes anything
    ],
)
def test_maps_that_lie_in_place_are_not_warned_of(stay: Callable[[Tensor], Tensor]) -> None:
    for side in (SIDE, 28):
        images = torch.randn(2, 3, side, side)
        assert astray(seeded(lambda: Between(stay)).float(), {"one": Layout(), "two": Layout()}, images, 64) == {}


def test_a_layer_is_passed_once_and_in_parts_as_large_as_allowed() -> None:
    model, images, rows = seeded(lambda: Between(MOVES["shifted"])).float(), torch.randn(1, 3, SIDE, SIDE), []
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    found = [astray(model, {"two": Layout()}, images, 2) for _ in range(2)]
    assert rows == [2, 2, 1]
    assert found[0] == found[1] == {"two": pytest.approx(0.25, abs=0.03)}
