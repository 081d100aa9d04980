"""Models that are random, that running changes, or that mix a batch's images are refused, by the module's name."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from tests.networks import images, seeded


class Bottom(nn.Module):
    """A convolution, one module or function in between, and a head."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(3, 4, 3), between or nn.Identity(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(F.relu(self.conv(x))).mean((2, 3)))


class Always(nn.Module):
    """Random, though no module says so and eval mode does not help."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class LastHidden(nn.Module):
    """An LSTM over rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 12, num_layers=2, batch_first=True, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(1, 2))[0][:, -1, :, None, None]


class Counting(nn.Module):
    """Keeps a statistic of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x


def found(between: nn.Module, training: bool = False) -> str:
    net = seeded(lambda: Bottom(between))
    net.between.train(training)
    with pytest.raises(pl.PellucidError) as refused:
        pl.Gradient()(net, images(2, 14), 0)
    return str(refused.value)


RANDOM = {
    "dropout": Always(lambda x: F.dropout(x, 0.5, training=True)),
    "drop path": Always(lambda x: x * (torch.rand(len(x), 1, 1, 1) > 0.5)),
    "rare": Always(lambda x: x * (torch.rand(1) > 0.1)),
    "noise": Always(lambda x: x + 0.01 * torch.randn_like(x)),
    "rrelu": Always(lambda x: F.rrelu(x - 1, training=True)),
    "attention": Always(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
}


@pytest.mark.parametrize("between", RANDOM.values(), ids=RANDOM)
def test_a_random_model_is_refused(between: nn.Module) -> None:
    assert re.search(r"random.*first at 'between' \(Always\)", found(between))


def test_random_numbers_without_effect_are_no_randomness() -> None:
    net, x = seeded(lambda: Bottom(Always(lambda x: x + 0 * torch.rand_like(x)))), images(2, 14)
    assert torch.equal(pl.Gradient()(net, x, 0)["input"], pl.Gradient()(seeded(Bottom), x, 0)["input"])


def test_what_stays_in_training_mode_is_refused() -> None:
    net = seeded(lambda: Bottom(LastHidden()))
    net.head = nn.Linear(12, 5).double()
    net.between.lstm.train()
    with pytest.raises(pl.PellucidError, match=r"random.*first at 'between'"):
        pl.Gradient()(net, images(2, 14), 0)
    assert "between" in found(nn.InstanceNorm2d(4, track_running_stats=True), training=True)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
    assert "changes when the model runs" in found(spectral, training=True)
    assert "'between.seen' changes" in found(Counting())


def test_an_image_whose_logits_depend_on_its_batch_is_refused() -> None:
    batch_statistics = nn.BatchNorm2d(4, track_running_stats=False)
    assert re.search(r"beside it, first at 'between' \(BatchNorm2d\)", found(batch_statistics))
    assert "beside it" in found(Always(lambda x: x - x.mean(0, keepdim=True)))


def test_a_repeatable_model_is_tried_once() -> None:
    net, x = seeded(Bottom), images(2, 14)
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    method = pl.Gradient()
    method(net, x, 0)
    first = len(runs)
    method(net, x, 0)
    assert len(runs) - first == first - 3 == 1
    net.between = Always(torch.nn.Dropout(0.5).train())
    with pytest.raises(pl.PellucidError, match="training mode"):
        method(net, x, 0)


def test_a_model_for_single_images_passes() -> None:
    class One(Bottom):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(1, 3, 14, 14))

    net, x = seeded(One), images(2, 14)
    one_by_one = pl.Gradient()(net, x, 0, max_batch=1)["input"]
    assert torch.equal(one_by_one, pl.Gradient()(seeded(Bottom), x, 0)["input"])


def test_the_precision_is_that_of_most_weights() -> None:
    net = seeded(Bottom).float()
    net.register_parameter("a_half", nn.Parameter(torch.ones(1).half()))
    net._parameters = {"a_half": net._parameters.pop("a_half"), **net._parameters}
    net.register_parameter("index", nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False))
    net.register_parameter("phase", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    x = images(2, 14)
    result = pl.Gradient()(net, x, 0)["input"]
    assert result.dtype == torch.float32
    assert torch.equal(result, pl.Gradient()(seeded(Bottom).float(), x, 0)["input"])


def test_noise_does_not_depend_on_the_default_precision() -> None:
    net, x = seeded(Bottom), images(2, 14)
    expected = pl.Gradient().smoothed(3)(net, x, 0)["input"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pl.Gradient().smoothed(3)(net, x, 0)["input"], expected)
    finally:
        torch.set_default_dtype(before)
