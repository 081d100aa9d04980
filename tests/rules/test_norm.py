"""A frozen batch normalisation is one multiplication and addition, and its gradient one multiplication."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.metrics.sensitivity import fgsm
from pellucid.rules.base import Rules
from pellucid.rules.norm import FrozenBatchNorm
from tests.networks import attributed, images, relative_error, seeded


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_same_function_and_same_gradient(affine: bool, dims: int) -> None:
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims - 1](4, affine=affine, eps=1e-3).double().eval()
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    plain = norm(x)
    (expected,) = torch.autograd.grad(plain, x, cotangent)
    with Rules([FrozenBatchNorm()]) as rules:
        fast = norm(x)
    assert FrozenBatchNorm() in rules.met
    (found,) = torch.autograd.grad(fast, x, cotangent)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_batch_statistics_and_other_precisions_are_left_alone() -> None:
    x = torch.randn(6, 4, 3, 3)
    with Rules([FrozenBatchNorm()]):
        untracked = F.batch_norm(x, None, None, training=True)
        half = F.batch_norm(x.bfloat16(), torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(untracked.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-6)
    assert half.dtype == torch.bfloat16


def test_torch_batch_norm_orders_its_arguments_otherwise() -> None:
    x, w, b, mean, var = torch.randn(2, 4, 3, 3), *torch.rand(4, 4).add(0.5).unbind()
    expected = F.batch_norm(x, mean, var, w, b)
    with Rules([FrozenBatchNorm()]):
        found = torch.batch_norm(x, w, b, mean, var, False, 0.1, 1e-5, False)
    torch.testing.assert_close(found, expected)


def test_a_module_of_it_may_be_explained_and_followed_in_place() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    x = torch.randn(2, 3, 6, 6)
    found = pl.Gradient()(net, x, 0, ["input", "1"])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(found["input"], expected, rtol=1e-5, atol=1e-7)


class Conditional(nn.Module):
    """A batch normalization whose weight, bias or statistics are made of the image, for each of its channels."""

    def __init__(self, of_image: str, trained: bool = False, by_hand: bool = False) -> None:
        super().__init__()
        self.of_image, self.trained, self.by_hand = of_image, trained, by_hand
        self.conv, self.made, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("stored", torch.rand(4, 4) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, made = self.conv(x), self.made(x.mean((2, 3))).sigmoid() + 0.2
        values = dict(zip(("weight", "bias", "running_mean", "running_var"), self.stored, strict=True))
        values = {name: value.repeat(len(x)) for name, value in values.items()} | {self.of_image: made.flatten()}
        if self.trained:
            values |= {"running_mean": None, "running_var": None}
        rows = h.reshape(1, -1, *h.shape[2:])
        if self.by_hand:
            weight, bias, mean, var = (value.view(*h.shape[:2], 1, 1) for value in values.values())
            return self.fc(((h - mean) * (var + 1e-5).rsqrt() * weight + bias).relu().mean((2, 3)))
        return self.fc(F.batch_norm(rows, **values, training=self.trained).view_as(h).relu().mean((2, 3)))


@pytest.mark.parametrize("of_image", ["weight", "bias", "running_mean", "running_var"])
def test_what_depends_on_the_image_keeps_its_gradient(of_image: str) -> None:
    """Autograd's own has no gradient for the statistics, so the formula by hand has the last word."""
    model, by_hand = (seeded(lambda way=way: Conditional(of_image, by_hand=way)) for way in (False, True))
    x = images(2, 8)
    expected = attributed(by_hand, x, [1, 2])["input"]
    assert relative_error(pl.Gradient()(model, x, [1, 2])["input"], expected) < 1e-12


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("of_image", ["weight", "bias", "running_mean", "running_var"])
def test_deeplift_is_complete_where_it_depends_on_the_image(of_image: str, trained: bool) -> None:
    found = pl.DeepLift()(seeded(lambda: Conditional(of_image, trained)), images(2, 8), [1, 2])
    assert float(found.residuals["input"].abs().max()) < 1e-12


def test_statistics_of_more_precision_give_the_inputs_own() -> None:
    x, mean, var = torch.randn(2, 4, 3, 3).bfloat16(), torch.rand(4), torch.rand(4) + 0.5
    with Rules([pl.NormalizationLRP()]):
        found = F.batch_norm(x, mean, var)
    torch.testing.assert_close(found, F.batch_norm(x, mean, var))


class Tokens(nn.Module):
    """A normalization whose places become tokens, so that gradients come back in another order of memory."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.mix, self.head = (
            nn.Conv2d(3, 8, 3, 2, 1),
            norm,
            nn.Linear(8, 8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head((x + self.mix(x).tanh()).tanh().mean(1))


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(8, affine=True),
        nn.InstanceNorm2d(8, track_running_stats=True),
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8, track_running_stats=False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_single_image_has_its_own_gradient_through_tokens(norm: nn.Module, dtype: torch.dtype) -> None:
    """Torch's own backward pass of these gives another image's there: by all of it, not by rounding."""
    net, x = seeded(lambda: Tokens(norm)), images(1, 16)
    step, direction = 1e-5, images(2, 16)[1:]
    change = (net(x + step * direction) - net(x - step * direction))[0, 1] / (2 * step)
    one = x.to(dtype)
    found = pl.Gradient()(net.to(dtype), one, 1, max_batch=1)["input"].double()
    assert float((found * direction).sum()) == pytest.approx(
        float(change), rel=1e-8 if dtype == torch.float64 else 1e-4
    )
    classes = torch.tensor([1, 1])
    assert torch.equal(fgsm(net, one, classes[:1], 0.25)[0], fgsm(net, torch.cat([one, one]), classes, 0.25)[0])
