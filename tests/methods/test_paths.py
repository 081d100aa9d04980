"""Integrated gradients and SmoothGrad on functions whose answers are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pellucid as pl
from pellucid.sampling import noise_like
from pellucid.seeds import fold_in
from tests.networks import images, relative_error, seeded


class Function(nn.Module):
    """Any function of a flat image as a one-class model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.flatten(1))[:, None]


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, len(values), 1, 1)


@pytest.mark.parametrize(
    ("power", "quadrature", "expected"),
    [
        (2, "right", 51 / 50),
        (2, "left", 49 / 50),
        (2, "linspace", 1.0),
        (2, "trapezoid", 1.0),
        (2, "midpoint", 1.0),
        (2, "gauss_legendre", 1.0),
        (3, "right", 1.0302),
        (3, "linspace", 99 / 98),
        (3, "trapezoid", 1 + 1 / (2 * 49**2)),
        (3, "midpoint", 1 - 1 / (4 * 50**2)),
        (3, "gauss_legendre", 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_quadratures_on_powers(power: int, quadrature: str, expected: float) -> None:
    model = Function(lambda x: x[:, 0] ** power)
    found = pl.Gradient().integrated(50, quadrature=quadrature)(model, image(1.0), 0)
    assert found["input"].item() == pytest.approx(expected, rel=1e-12)
    assert found.residuals["input"].item() == pytest.approx(expected - 1, abs=1e-12)


A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
SIGMA = 0.15


def quadratic() -> Function:
    return Function(lambda x: 0.5 * ((x @ A) * x).sum(1))


def test_integrated_gradients_of_a_quadratic_form() -> None:
    found = pl.method("integrated_gradients")(quadratic(), image(1, 2), 0)["input"].flatten()
    torch.testing.assert_close(found, torch.tensor([2.0, 7.0], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smoothed(gradient, samples=20000)", (4.0, 7.0)),
        ("integrated(smoothed(gradient, samples=2000), steps=10)", (2.0, 7.0)),
        ("smoothed(integrated(gradient, steps=2), samples=20000)", (2.0225, 7.03375)),
        ("smoothed(input_x_gradient, samples=20000)", (4 + SIGMA**2 * 2, 14 + SIGMA**2 * 3)),
    ],
)
def test_expectations_of_the_combinations_of_a_quadratic_form(text: str, expected: tuple[float, float]) -> None:
    """Smoothed IG and Integrated SmoothGrad differ by half sigma^2 diag A: the noisy x multiplies."""
    found = pl.method(text)(quadratic(), image(1, 2), 0, max_batch=4096)["input"].flatten()
    # Five standard errors: the gradient's spread is about sigma |A| |x|, the products' a few times that.
    tolerance = 5 * SIGMA * 8 / math.sqrt(20000)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


def test_moments_of_the_noise() -> None:
    """The gradient of x^2 / 2 is x: its samples are N(x, std^2)."""
    model = Function(lambda x: 0.5 * x.square().sum(1))
    x = image(1.0, -2.0)
    variance = pl.Gradient().smoothed(20000, 0.3, moment="variance")(model, x, 0, max_batch=4096)["input"]
    squared = pl.Gradient().smoothed(20000, 0.3, moment="squared")(model, x, 0, max_batch=4096)["input"]
    mean = pl.Gradient().smoothed(20000, 0.3)(model, x, 0, max_batch=4096)["input"]
    torch.testing.assert_close(squared - mean.square(), variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, torch.full_like(variance, 0.09), rtol=0.05, atol=0)


def test_relative_noise_scales_with_the_range_of_each_image() -> None:
    model = Function(lambda x: 0.5 * x.square().sum(1))
    x = torch.cat([image(0, 1), image(0, 10)])
    absolute = pl.Gradient().smoothed(7, 0.2)(model, x, 0)["input"] - x
    relative = pl.Gradient().smoothed(7, 0.2, relative=True)(model, x, 0)["input"] - x
    torch.testing.assert_close(relative[0], absolute[0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(relative[1], 10 * absolute[1], rtol=1e-12, atol=1e-15)


def test_baselines() -> None:
    model = Function(lambda x: 3 * x[:, 0] - x[:, 1])
    x = image(1, 2)
    for baseline, reference in [
        ("zero", (0, 0)),
        (0.5, (0.5, 0.5)),
        (image(3, -1)[0], (3, -1)),
        (image(3, 1), (3, 1)),
    ]:
        found = pl.Gradient().integrated(3, baseline=baseline)(model, x, 0)["input"].flatten().tolist()
        assert found == pytest.approx([3 * (1 - reference[0]), -(2 - reference[1])], rel=1e-12)


def test_saliency_is_signed_unless_asked() -> None:
    model = Function(lambda x: 2 * x[:, 0] - x[:, 1])
    assert pl.method("gradient")(model, image(0, 0), 0)["input"].flatten().tolist() == [2, -1]
    assert pl.method("gradient", absolute=True)(model, image(0, 0), 0)["input"].flatten().tolist() == [2, 1]


def test_residual_over_tolerance_warns_with_its_size() -> None:
    model = Function(lambda x: x[:, 0] ** 3)
    with pytest.warns(
        pl.CompletenessWarning,
        match=r"sums to 0\.75, not to the logits' difference 1: off by -0\.25, 25\.0% of this difference",
    ):
        pl.Gradient().integrated(1, quadrature="midpoint")(model, image(1.0), 0)


class Skipping(nn.Module):
    """An inner layer that a skip passes by; bright images alone take an extra branch past it, if there is one."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.extra, self.head = nn.Linear(4, 4) if extra else None, nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.relu(self.low(x))
        if self.extra is None:
            return self.head(F.relu(F.relu(self.high(low)) + 1.5 * low - 1).mean((2, 3)))
        features = F.relu(self.high(low)).mean((2, 3))
        bright = (x.mean((1, 2, 3)) > 0).nonzero()[:, 0]
        if len(bright):
            features = features.index_add(0, bright, self.extra(low[bright].amax((2, 3)))).relu()
        return self.head(features)


@pytest.mark.parametrize("inner", ["path", "noise", "guided path"])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_a_skip_past_the_layer_begins_at_the_noisy_image(inner: str) -> None:
    gradient, net, x = pl.Gradient(), seeded(Skipping), images(2, 12)
    method = {
        "path": gradient.integrated(3),
        "noise": gradient.smoothed(2, space="layer"),
        "guided path": pl.Gradient(rules=(pl.GuidedReLU(),)).integrated(3),
    }[inner]
    found = method.smoothed(3, std=0.5)(net, x, 1, ["high"], seed=4)["high"]
    keys = [fold_in(4, draw) for draw in range(3)]
    each = [method(net, x + 0.5 * noise_like(x, [key] * 2), 1, ["high"], seed=key)["high"] for key in keys]
    assert relative_error(found, sum(each) / 3) < 1e-12


@pytest.mark.parametrize("baseline", ["zero", "blur"])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_deeplift_compares_a_layer_without_noise_as_it_does_without_a_sampling(baseline: str) -> None:
    net, x, deeplift = seeded(Skipping), images(2, 12), pl.DeepLift(baseline=baseline)
    found = deeplift.smoothed(2, std=0.0, space="layer")(net, x, 1, ["high"])["high"]
    assert relative_error(found, deeplift(net, x, 1, ["high"])["high"]) < 1e-12


@pytest.mark.parametrize("max_batch", [1, 2])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_what_passes_the_layer_for_later_images_alone_is_part_of_their_maps(max_batch: int) -> None:
    net, x = seeded(lambda: Skipping(extra=True)), images(4, 12)
    x = x - x.mean((1, 2, 3), keepdim=True)
    x[:2] -= 0.5
    x[2:] += 0.5
    for method in (pl.Gradient().smoothed(3, space="layer"), pl.Gradient().integrated(4)):
        found = method(net, x, 1, ["high"], max_batch=max_batch)["high"]
        assert relative_error(found, method(net, x, 1, ["high"], max_batch=4)["high"]) < 1e-12
