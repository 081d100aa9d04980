"""Every nesting of samplings against plain nested loops, at the input and at a hidden layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.sampling import noise_like
from pellucid.seeds import fold_in
from tests.networks import ExactGuided, attributed, exactly, images, plain, relative_error, seeded

EXACT = 1e-11
SEEDS = [5, 9]
TARGETS = [1, 3]
BASELINE, STD = 0.2, 0.3
SAMPLES, STEPS = 3, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning"),
]


def network() -> nn.Sequential:
    return plain(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.SELU(),
        nn.Conv2d(4, 5, 2),
        nn.GELU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(5, 6),
        nn.Softplus(),
        nn.Linear(6, 5),
    )


class Naive:
    """One image, one layer (the number of modules below it; 0 is the input), no batching, no reuse."""

    def __init__(self, depth: int, target: int, guided: bool = False) -> None:
        model = network()
        self.below, self.above = model[:depth], model[depth:]
        self.target, self.guided = target, guided

    def layer(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.below(image)

    def gradient(self, value: Tensor) -> Tensor:
        """At a value of the layer."""
        if not self.guided:
            return attributed(self.above, value, [self.target])["input"]
        with exactly(ExactGuided):
            return attributed(self.above, value, [self.target])["input"]

    def gradient_at_image(self, image: Tensor) -> Tensor:
        return self.gradient(self.layer(image))


def noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)).to(like)[None]


def legendre(steps: int = STEPS) -> list[tuple[float, float]]:
    places, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(a + 1) / 2, float(w) / 2) for a, w in zip(places, weights, strict=True)]


def mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0]) / len(values)


def path(end: Tensor, start: Tensor, inner: Callable[[Tensor, int], Tensor]) -> Tensor:
    total = sum((w * inner(start + a * (end - start), t) for t, (a, w) in enumerate(legendre())), start=0 * end)
    return (end - start) * total


def reference(x: Tensor) -> Tensor:
    return torch.full_like(x, BASELINE)


def smoothgrad(n: Naive, x: Tensor, seed: int) -> Tensor:
    return mean([n.gradient_at_image(x + STD * noise(x, fold_in(seed, d))) for d in range(SAMPLES)])


def smoothgrad_at_layer(n: Naive, x: Tensor, seed: int) -> Tensor:
    h = n.layer(x)
    return mean([n.gradient(h + STD * noise(h, fold_in(seed, d))) for d in range(SAMPLES)])


def integrated(n: Naive, x: Tensor, seed: int) -> Tensor:
    return path(n.layer(x), n.layer(reference(x)), lambda p, _: n.gradient(p))


def integrated_at_input(n: Naive, x: Tensor, seed: int) -> Tensor:
    """The gradient of the layer along the image's path, times the layer's difference."""
    x0 = reference(x)
    total = sum((w * n.gradient_at_image(x0 + a * (x - x0)) for a, w in legendre()), start=0 * n.layer(x))
    return (n.layer(x) - n.layer(x0)) * total


def smoothed_integrated(n: Naive, x: Tensor, seed: int) -> Tensor:
    """Nielsen et al., Eq. 6: noise at the image, then the path to each noisy image's layer."""
    return mean([integrated(n, x + STD * noise(x, fold_in(seed, d)), 0) for d in range(SAMPLES)])


def integrated_smoothed(n: Naive, x: Tensor, seed: int) -> Tensor:
    """Eq. 8: SmoothGrad at each point of the layer's path, with noise at the layer."""

    def inner(p: Tensor, t: int) -> Tensor:
        return mean([n.gradient(p + STD * noise(p, fold_in(fold_in(seed, t), d))) for d in range(SAMPLES)])

    return path(n.layer(x), n.layer(reference(x)), inner)


def smoothed_smoothed(n: Naive, x: Tensor, seed: int) -> Tensor:
    """Noise upon noise: the second drawn anew for each of the first."""
    return mean(
        [smoothgrad(n, x + STD * noise(x, key), key) for key in (fold_in(seed, d) for d in range(SAMPLES))]
    )


def integrated_integrated(n: Naive, x: Tensor, seed: int) -> Tensor:
    start = n.layer(reference(x))
    return path(n.layer(x), start, lambda p, _: path(p, start, lambda s, _: n.gradient(s)))


def smoothed_integrated_smoothed(n: Naive, x: Tensor, seed: int) -> Tensor:
    keys = [fold_in(seed, d) for d in range(SAMPLES)]
    return mean([integrated_smoothed(n, x + STD * noise(x, key), key) for key in keys])


SMOOTH = {"samples": SAMPLES, "std": STD}
PATH = {"steps": STEPS, "baseline": BASELINE}
NESTINGS: dict[str, tuple[Callable[[pl.Gradient], pl.Method], Callable[[Naive, Tensor, int], Tensor]]] = {
    "smoothed": (lambda g: g.smoothed(**SMOOTH), smoothgrad),
    "smoothed at the layer": (lambda g: g.smoothed(**SMOOTH, space="layer"), smoothgrad_at_layer),
    "integrated": (lambda g: g.integrated(**PATH), integrated),
    "integrated at the input": (lambda g: g.integrated(**PATH, space="input"), integrated_at_input),
    "smoothed(integrated)": (lambda g: g.integrated(**PATH).smoothed(**SMOOTH), smoothed_integrated),
    "integrated(smoothed)": (lambda g: g.smoothed(**SMOOTH).integrated(**PATH), integrated_smoothed),
    "smoothed(smoothed)": (lambda g: g.smoothed(**SMOOTH).smoothed(**SMOOTH), smoothed_smoothed),
    "integrated(integrated)": (lambda g: g.integrated(**PATH).integrated(**PATH), integrated_integrated),
    "smoothed(integrated(smoothed))": (
        lambda g: g.smoothed(**SMOOTH).integrated(**PATH).smoothed(**SMOOTH),
        smoothed_integrated_smoothed,
    ),
}


@pytest.mark.parametrize("guided", [False, True], ids=["gradient", "guided"])
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("max_batch", [1, 5, 64])
def test_a_nesting_of_samplings_is_its_nested_loops(nesting: str, guided: bool, max_batch: int) -> None:
    compose, naive = NESTINGS[nesting]
    x = images(2, 8)
    method = compose(pl.Gradient(rules=(pl.GuidedReLU(),) if guided else ()))
    layers = {"input": 0, "0": 1, "2": 3}
    found = method(network(), x, TARGETS, layers=list(layers), seed=SEEDS, max_batch=max_batch)
    for layer, depth in layers.items():
        expected = torch.cat(
            [naive(Naive(depth, TARGETS[row], guided), x[row : row + 1], SEEDS[row]) for row in range(2)]
        )
        assert relative_error(found[layer], expected) < EXACT, layer


def test_squared_and_variance_are_the_moments_of_the_noisy_gradients() -> None:
    x = images(2, 8)
    for depth, layer in ((0, "input"), (3, "2")):
        draws = [
            torch.cat(
                [
                    Naive(depth, TARGETS[row]).gradient_at_image(
                        x[row : row + 1] + STD * noise(x, fold_in(SEEDS[row], d))
                    )
                    for row in range(2)
                ]
            )
            for d in range(SAMPLES)
        ]
        stacked = torch.stack(draws)
        for moment, expected in (
            ("squared", stacked.square().mean(0)),
            ("variance", stacked.var(0, correction=0)),
        ):
            method = pl.Gradient().smoothed(**SMOOTH, moment=moment)
            found = method(network(), x, TARGETS, layers=layer, seed=SEEDS)[layer]
            assert relative_error(found, expected) < EXACT


def test_relative_noise_is_a_fraction_of_each_images_own_range() -> None:
    x = images(2, 8) * torch.tensor([1.0, 4.0], dtype=torch.float64).view(2, 1, 1, 1)
    n, expected = [Naive(0, target) for target in TARGETS], []
    for row in range(2):
        image = x[row : row + 1]
        std = STD * (image.max() - image.min())
        keys = [fold_in(SEEDS[row], d) for d in range(SAMPLES)]
        expected.append(mean([n[row].gradient(image + std * noise(image, key)) for key in keys]))
    found = pl.Gradient().smoothed(**SMOOTH, relative=True)(network(), x, TARGETS, seed=SEEDS)["input"]
    assert relative_error(found, torch.cat(expected)) < EXACT


@pytest.mark.parametrize("quadrature", ["gauss_legendre", "right", "left", "midpoint", "trapezoid", "linspace"])
def test_a_tensor_baseline_per_image_and_every_quadrature(quadrature: str) -> None:
    n = 5
    rules = {
        "gauss_legendre": legendre(n),
        "right": [((t + 1) / n, 1 / n) for t in range(n)],
        "left": [(t / n, 1 / n) for t in range(n)],
        "midpoint": [((t + 0.5) / n, 1 / n) for t in range(n)],
        "trapezoid": [(t / (n - 1), (0.5 if t in (0, n - 1) else 1) / (n - 1)) for t in range(n)],
        "linspace": [(t / (n - 1), 1 / n) for t in range(n)],
    }
    x, start = images(2, 8), images(2, 8, seed=4)
    method = pl.Gradient().integrated(n, baseline=start, quadrature=quadrature)
    found = method(network(), x, TARGETS, layers=["input", "2"], max_batch=3)
    for layer, depth in (("input", 0), ("2", 3)):
        for row in range(2):
            naive = Naive(depth, TARGETS[row])
            here, there = naive.layer(x[row : row + 1]), naive.layer(start[row : row + 1])
            total = sum(
                (w * naive.gradient(there + a * (here - there)) for a, w in rules[quadrature]), start=0 * here
            )
            assert relative_error(found[layer][row : row + 1], (here - there) * total) < EXACT


def test_integrated_deeplift_and_smoothed_deeplift_nest_like_any_other_method() -> None:
    """Smoothed DeepLIFT is the mean over noisy images; its sums are the mean difference of logits."""
    x = images(2, 8)
    single = pl.DeepLift(baseline=BASELINE)
    draws = []
    for d in range(SAMPLES):
        noisy = torch.cat([x[r : r + 1] + STD * noise(x, fold_in(SEEDS[r], d)) for r in range(2)])
        draws.append(single(network(), noisy, TARGETS, layers=["input", "0"]))
    found = single.smoothed(**SMOOTH)(network(), x, TARGETS, layers=["input", "0"], seed=SEEDS, max_batch=4)
    for layer in ("input", "0"):
        assert relative_error(found[layer], mean([draw[layer] for draw in draws])) < EXACT
        assert float(found.residuals[layer].abs().max()) < 1e-12


def test_noise_of_one_seed_is_the_same_for_every_image_and_every_precision() -> None:
    x = images(3, 8)
    drawn = noise_like(x, [4, 4, 4])
    assert torch.equal(drawn.expand_as(x), noise(x, 4).expand_as(x))
    assert torch.equal(noise_like(x.float(), [4, 5, 6]).double(), noise_like(x, [4, 5, 6]))
    assert not torch.equal(noise_like(x, [4, 5, 6])[0], noise_like(x, [4, 5, 6])[1])


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_integrated_gradients_at_a_layer_of_a_large_network_is_the_loop_over_replaced_activations(
    name: str,
) -> None:
    """The prefix runs once; the naive loop runs the whole network and replaces the layer's output every time."""
    from tests.reference.zoo import ARCHITECTURES, batch
    from tests.reference.zoo import network as large

    model, x, layer = large(name), batch(name), ARCHITECTURES[name][1][1]

    def run(image: Tensor, replace: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = []

        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
            seen.append(output.clone())
            return None if replace is None else replace * 1

        handle = model.get_submodule(layer).register_forward_hook(hook)
        try:
            return seen, model(image)
        finally:
            handle.remove()

    h, h0 = run(x)[0][0], run(torch.full_like(x, BASELINE))[0][0]
    total = torch.zeros_like(h)
    for a, w in legendre(3):
        point = (h0 + a * (h - h0)).requires_grad_()
        score = run(x, point)[1][range(2), TARGETS].sum()
        total += w * torch.autograd.grad(score, point)[0]
    found = pl.Gradient().integrated(3, baseline=BASELINE)(model, x, TARGETS, layers=layer)[layer]
    assert relative_error(found, (h - h0) * total) < EXACT


class ForEachImage(nn.Module):
    """Does for each image that it saw at the input what rows that enter at ``first`` would miss."""

    def __init__(self, by_loop: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.by_loop = by_loop

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.first(x), torch.arange(len(x)))

    def end(self, value: Tensor, rows: Tensor) -> Tensor:
        value = self.second(value)
        if self.by_loop:
            changed = value.clone()
            for row in rows.tolist():
                changed[row] = value[row] * value[row].abs().sum()
        else:
            changed = value.index_add(0, rows, 5 * value[rows].tanh())
        return self.head(changed.tanh().mean((2, 3)))


@pytest.mark.parametrize("by_loop", [True, False])
def test_work_for_each_image_seen_below_a_layer_is_done_for_rows_that_enter_there(by_loop: bool) -> None:
    net, x = seeded(lambda: ForEachImage(by_loop)), images(3, 9)

    def gradient(value: Tensor) -> Tensor:
        value = value.detach().requires_grad_()
        (found,) = torch.autograd.grad(net.end(value, torch.arange(3))[:, 1].sum(), value)
        return found

    end, start = net.first(x), net.first(torch.zeros_like(x))
    still = pl.Gradient().smoothed(samples=2, std=0.0, space="layer")
    torch.testing.assert_close(still(net, x, 1, "first")["first"], gradient(end), rtol=1e-10, atol=1e-15)
    mean = sum(weight * gradient(start + place * (end - start)) for place, weight in legendre())
    found = pl.Gradient().integrated(steps=STEPS)(net, x, 1, "first")["first"]
    torch.testing.assert_close(found, mean * (end - start), rtol=1e-10, atol=1e-15)
