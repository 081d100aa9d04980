"""Identities between methods (facts.md, C26 to C28 and C30): one method is the oracle of another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.sampling import noise_like
from pellucid.seeds import fold_in
from tests.networks import images, logits_of, plain, relative_error

TARGETS = [0, 2]


def relu_network(bias: bool, pool: bool, seed: int) -> nn.Sequential:
    return plain(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if pool else [nn.AvgPool2d(2)]),
        nn.Conv2d(4, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
        seed=seed,
        bias=bias,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pool", [False, True])
def test_c26_without_biases_all_complete_methods_are_input_x_gradient(seed: int, pool: bool) -> None:
    """Positively homogeneous: the gradient is constant along the path from 0, except at 0 itself."""
    model, x = relu_network(False, pool, seed), images(2, 8, seed)
    expected = pl.method("input_x_gradient")(model, x, TARGETS)["input"]
    assert torch.allclose(expected.sum((1, 2, 3)), logits_of(model, x, TARGETS), rtol=1e-12, atol=1e-14)
    assert relative_error(pl.DeepLift()(model, x, TARGETS)["input"], expected) < 1e-12
    lrp = pl.method("lrp_epsilon", epsilon=1e-15)(model, x, TARGETS)["input"]
    assert relative_error(lrp, expected) < 1e-9
    for quadrature in ("gauss_legendre", "right", "midpoint"):  # the others take the gradient at 0, too
        for steps in (1, 7):
            found = pl.Gradient().integrated(steps, quadrature=quadrature)(model, x, TARGETS)["input"]
            assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pool", [False, True])
def test_c27_with_biases_deeplift_is_complete_at_every_layer_with_and_without_max_pools(
    seed: int, pool: bool
) -> None:
    model, x = relu_network(True, pool, seed), images(2, 8, seed)
    reference = images(1, 8, seed + 100)[0]
    layers = ["input", *(str(i) for i in range(len(model) - 1))]
    difference = logits_of(model, x, TARGETS) - logits_of(model, reference.expand_as(x), TARGETS)
    found = pl.DeepLift(baseline=reference)(model, x, TARGETS, layers=layers)
    for layer in layers:
        residual = found[layer].flatten(1).sum(1) - difference
        assert float((residual / difference).abs().max()) < 1e-11


def test_c27_native_max_pool_gradient_is_not_complete_and_says_so() -> None:
    model, x = relu_network(True, True, 1), images(2, 8, 1)
    reference = images(1, 8, 101)[0]
    method = pl.DeepLift(baseline=reference, max_pool="gradient")
    with pytest.warns(pl.CompletenessWarning, match="gradient of a max-pool keeps no sum"):
        found = method(model, x, TARGETS)
    difference = logits_of(model, x, TARGETS) - logits_of(model, reference.expand_as(x), TARGETS)
    missing = found["input"].sum((1, 2, 3)) - difference
    assert float((missing / difference).abs().max()) > 1e-3
    torch.testing.assert_close(found.residuals["input"], missing, rtol=1e-12, atol=1e-12)
    complete = method(relu_network(True, False, 1), x, TARGETS)
    assert float(complete.residuals["input"].abs().max()) < 1e-12


def test_c27_a_window_of_maxima_carries_its_whole_difference() -> None:
    """Image [1, 2, 3, 4], reference [5, 0, 0, 0]: y - y' = -1, carried by the reference's arg-max."""
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double().eval()
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).view(1, 1, 2, 2)
    reference = torch.tensor([5.0, 0, 0, 0], dtype=torch.float64).view(1, 2, 2)
    found = pl.DeepLift(baseline=reference)(model, x, 0)["input"]
    assert found.flatten().tolist() == [-1, 0, 0, 0]
    turned = pl.DeepLift(baseline=x[0])(model, reference[None], 0)["input"]
    assert turned.flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")  # a large epsilon keeps some
def test_c28_epsilon_lrp_tends_to_input_x_gradient_linearly_in_epsilon() -> None:
    """|a / (z + eps) - 1| = eps / (z + eps): halving a small epsilon halves the difference."""
    model, x = relu_network(False, False, 0), images(2, 8, 0)
    limit = pl.method("input_x_gradient")(model, x, TARGETS)["input"]
    errors = [
        relative_error(pl.method("lrp_epsilon", epsilon=epsilon)(model, x, TARGETS)["input"], limit)
        for epsilon in (1e-2, 1e-4, 1e-6, 1e-8, 5e-9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3
    assert errors[3] / errors[4] == pytest.approx(2, rel=1e-3)
    assert errors[2] / errors[3] == pytest.approx(100, rel=1e-2)


class Quadratic(nn.Module):
    """f(x) = x A x / 2 with A = [[2, 1], [1, 3]], as a module of images (B, 1, 1, 2)."""

    matrix = torch.tensor([[2.0, 1], [1, 3]], dtype=torch.float64)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return torch.einsum("bi,ij,bj->b", rows, self.matrix, rows)[:, None] / 2


def test_c30_smoothing_inside_and_outside_the_path_differ_by_half_the_noises_variance() -> None:
    """E[smoothed(integrated)] - E[integrated(smoothed)] = sigma^2 diag(A) / 2, (0.0225, 0.03375) at 0.15.

    With the draws' own sums instead of expectations the identities are exact: gradients are linear here.
    """
    model, std, samples = Quadratic().eval(), 0.15, 8
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 2)
    found = {
        text: pl.method(text, **settings)(model, x, 0)["input"].flatten()
        for text, settings in {
            "gradient": {},
            "integrated(gradient)": {"steps": 1},
            "smoothed(gradient)": {"samples": samples, "std": std},
            "smoothed(integrated(gradient))": {"steps": 1, "samples": samples, "std": std},
        }.items()
    }
    n = std * torch.cat([noise_like(x, [fold_in(0, d)]).view(1, 2) for d in range(samples)])
    a, p = Quadratic.matrix, x.flatten()
    assert found["gradient"].tolist() == [4, 7]
    # the gradient is linear along the path, so that one Gauss node integrates it
    assert found["integrated(gradient)"].tolist() == pytest.approx([2, 7], rel=1e-15)
    assert torch.allclose(found["smoothed(gradient)"], a @ (p + n.mean(0)), rtol=1e-14)
    noisy = p + n
    assert torch.allclose(found["smoothed(integrated(gradient))"], (noisy * (noisy @ a)).mean(0) / 2, rtol=1e-13)
    # integrated(smoothed): (x) (A x / 2 + A mean noise), fresh noise at every node
    inside = pl.method("integrated(smoothed(gradient))", steps=1, samples=samples, std=std)(model, x, 0)["input"]
    drawn = torch.cat([noise_like(x, [fold_in(fold_in(0, 0), d)]).view(1, 2) for d in range(samples)])
    assert torch.allclose(inside.flatten(), p * (a @ (p / 2 + std * drawn.mean(0))), rtol=1e-13)


def test_c30_expectations() -> None:
    """20 000 draws: within five standard errors of (4, 7), (2, 7) and (2.0225, 7.03375)."""
    model, std, samples = Quadratic().eval(), 0.15, 20_000
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 1, 1, 2)
    settings = {"samples": samples, "std": std, "max_batch": 5000}
    expected = {
        "smoothed(gradient)": ([4.0, 7.0], [0.34, 0.48]),
        "smoothed(integrated(gradient, steps=1))": ([2.0225, 7.03375], [0.4, 1.0]),
        "integrated(smoothed(gradient), steps=1)": ([2.0, 7.0], [0.34, 0.96]),
    }
    max_batch = settings.pop("max_batch")
    for text, (means, deviations) in expected.items():
        found = pl.method(text, **settings)(model, x, 0, max_batch=max_batch)["input"].flatten()
        for value, wanted, deviation in zip(found.tolist(), means, deviations, strict=True):
            assert abs(value - wanted) < 5 * deviation / samples**0.5


def test_c30_for_a_linear_function_all_of_them_agree() -> None:
    """Its gradient is constant wherever it is taken."""
    model = plain(nn.Flatten(), nn.Linear(12, 3))
    x = images(2, 2)
    expected = pl.method("input_x_gradient")(model, x, TARGETS)["input"]
    for text in ("integrated(gradient)", "integrated(smoothed(gradient), steps=5)", "integrated(smoothgrad)"):
        assert relative_error(pl.method(text)(model, x, TARGETS)["input"], expected) < 1e-13
    # a path around a path: the inner map is p w at each point p, of which the outer takes the mean
    twice = pl.method("integrated(integrated(gradient, steps=1))")(model, x, TARGETS)["input"]
    assert relative_error(twice, x * expected / 2) < 1e-13
