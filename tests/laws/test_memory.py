"""Nothing outlives a call: no activation, no graph, no copy of the model."""

import gc
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")  # of LRP on a network with biases


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """In-place ReLUs, shared ReLUs, strided convolutions, in-place sums."""
    return torchvision.models.resnet18(weights=None).eval().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def only_what_is_new() -> Iterator[None]:
    """Leave all that lived before out of the counts: after many tests it takes seconds to go through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def alive() -> int:
    """Tensors that live; a graph that holds itself keeps what Python's collector cannot free."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


SHORT = {"samples": 2, "steps": 2}


def short(name: str) -> pl.Method:
    return pl.method(name, **{key: value for key, value in SHORT.items() if key in repr(pl.method(name))})


@pytest.mark.parametrize("variant", ["original", "backward", "forward"])
@pytest.mark.parametrize("name", pl.METHODS)
def test_no_tensor_outlives_a_call(network: nn.Module, name: str, variant: str) -> None:
    images, method = torch.randn(1, 3, 32, 32), short(name)

    def call() -> None:
        method(network, images, 0, ["layer1.0", "layer3.0"], variant=variant)

    call()  # what is made once, such as caches
    before = alive()
    call()
    call()
    assert alive() == before


def test_no_tensor_outlives_a_failed_call(network: nn.Module) -> None:
    images = torch.randn(1, 3, 32, 32)

    def call() -> None:
        with pytest.raises(pl.PellucidError):
            pl.method("guided_backprop")(network, images, 1000, "layer1.0")

    call()
    before = alive()
    call()
    call()
    assert alive() == before


class Attending(nn.Module):
    """Attention, a normalization, a gate in place and an activation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x).flatten(2).mT)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = tokens * torch.sigmoid(tokens)
        tokens *= tokens.mean(1, keepdim=True).sigmoid()
        return self.fc(torch.relu(tokens).mean(1))


@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "deeplift", "lrp_epsilon", "attnlrp"])
def test_no_tensor_of_an_attention_outlives_a_call(name: str) -> None:
    network, images = Attending().eval(), torch.randn(1, 3, 16, 16)

    def call() -> None:
        pl.method(name)(network, images, 0, ["input", "conv"])

    call()
    before = alive()
    call()
    call()
    assert alive() == before
