"""Laws of samplings, rules and reductions, over drawn networks, images and parameters."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pellucid as pl
from pellucid.rules.conv import rolled_mean
from pellucid.rules.relu import percentile
from pellucid.sampling import noise_like
from pellucid.seeds import fold_in
from tests.networks import images, logits_of, plain, relative_error

few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
pytestmark = pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning", "ignore::pellucid.EmptyMapWarning")

seeds = st.integers(0, 10_000)
QUADRATURES = ["gauss_legendre", "right", "left", "midpoint", "trapezoid", "linspace"]
METHODS = [
    "gradient",
    "guided_backprop",
    "deconvnet",
    "rectgrad(q=60.0)",
    "rectgrad_prr(q=60.0)",
    "deeplift",
    "lrp_epsilon",
    "gradcam",
    "smoothgrad(samples=3)",
    "integrated_gradients(steps=3)",
    "smoothed(integrated(guided_backprop, steps=2), samples=2)",
    "integrated(smoothgrad(samples=2), steps=2)",
    "smoothed(deeplift, samples=2)",
    "random",
    "edges",
]
# Without noise of their own, which would be drawn anew under other seeds.
UNSEEDED = [text for text in METHODS if text != "random" and "smooth" not in text]


def smooth_network(seed: int) -> nn.Sequential:
    return plain(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Softplus(),
        nn.Conv2d(4, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 4),
        seed=seed,
    )


def relu_network(seed: int) -> nn.Sequential:
    return plain(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 4),
        seed=seed,
    )


# ------------------------------------------------------------------ the gradient


@few
@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_the_gradient_is_linear_in_the_logits_weights(seed: int, a: float, b: float) -> None:
    """Explaining a * logit 0 + b * logit 1 explains each and adds, at every layer."""
    model, x = relu_network(seed), images(2, 8, seed)
    combined = relu_network(seed)
    combined[-1].weight[2] = a * model[-1].weight[0] + b * model[-1].weight[1]
    layers = ["input", "0", "3"]
    first, second, both = (
        pl.Gradient()(net, x, target, layers=layers) for net, target in ((model, 0), (model, 1), (combined, 2))
    )
    for layer in layers:
        assert torch.allclose(both[layer], a * first[layer] + b * second[layer], rtol=1e-11, atol=1e-13)


@few
@given(seeds, st.floats(0.1, 5))
def test_rules_are_positively_homogeneous_in_the_logits_weight(seed: int, scale: float) -> None:
    """Guided, deconvolution, percentile and epsilon rules scale with what arrives; a fixed tau would not."""
    model, scaled, x = relu_network(seed), relu_network(seed), images(2, 8, seed)
    scaled[-1].weight.mul_(scale)
    for text in [*METHODS[1:5], "lrp_epsilon"]:
        method = pl.method(text)
        found, expected = method(scaled, x, 1)["input"], method(model, x, 1)["input"] * scale
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------ samplings


@pytest.mark.slow
@few
@given(seeds)
def test_integrated_gradients_completeness_error_shrinks_with_steps(seed: int) -> None:
    """At a smooth network, by the quadrature's order: twice the steps, half (right) or a quarter (midpoint)."""
    model, x, targets = smooth_network(seed), images(4, 8, seed), [0, 1, 2, 3]
    difference = logits_of(model, x, targets) - logits_of(model, torch.zeros_like(x), targets)

    def error(steps: int, quadrature: str) -> float:
        method = pl.Gradient().integrated(steps, quadrature=quadrature)  # type: ignore[arg-type]
        found = method(model, x, targets)
        missing = found["input"].sum((1, 2, 3)) - difference
        assert torch.allclose(found.residuals["input"], missing, rtol=1e-9, atol=1e-12)
        return float(missing.abs().mean())

    finest = error(256, "right")
    assert finest == pytest.approx(error(128, "right") / 2, rel=0.1)
    assert error(256, "midpoint") == pytest.approx(error(128, "midpoint") / 4, rel=0.1)
    assert error(64, "gauss_legendre") < 1e-6 * error(1, "gauss_legendre")
    assert finest < error(8, "right") / 8


@few
@given(seeds, st.sampled_from(UNSEEDED), st.integers(1, 4))
def test_smoothing_without_noise_changes_nothing(seed: int, text: str, samples: int) -> None:
    model, x = relu_network(seed), images(2, 8, seed)
    expected = pl.method(text)(model, x, [0, 1], layers=["input", "3"])
    found = pl.method(text).smoothed(samples, 0.0)(model, x, [0, 1], layers=["input", "3"])
    for layer in expected:
        assert torch.allclose(found[layer], expected[layer], rtol=1e-12, atol=1e-15)


@few
@given(seeds, st.sampled_from(QUADRATURES), st.integers(2, 9))
def test_a_path_through_a_linear_model_is_input_x_gradient(seed: int, quadrature: str, steps: int) -> None:
    model, x = plain(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3), seed=seed), images(2, 8, seed)
    expected = pl.method("input_x_gradient")(model, x, [0, 2], layers="input")
    method = pl.Gradient().integrated(steps, quadrature=quadrature)  # type: ignore[arg-type]
    assert relative_error(method(model, x, [0, 2])["input"], expected["input"]) < 1e-12


@few
@given(seeds, st.sampled_from(QUADRATURES), st.integers(2, 60))
def test_quadrature_weights_sum_to_one_and_integrate_constants_exactly(
    seed: int, quadrature: str, steps: int
) -> None:
    places, weights = pl.Path(steps, quadrature=quadrature).nodes  # type: ignore[arg-type]
    assert len(places) == len(weights) == steps
    assert weights.sum() == pytest.approx(1, rel=1e-13)
    assert places.min() >= 0
    assert places.max() <= 1
    assert (np.diff(places) > 0).all()
    path = pl.Path(steps, quadrature=quadrature)  # type: ignore[arg-type]
    constant = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (terms,) = path.terms(constant.expand(steps, -1, -1, -1), torch.arange(steps))
    assert torch.allclose(terms.sum(0), constant[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("quadrature", "degree"), [("gauss_legendre", 9), ("midpoint", 1), ("trapezoid", 1), ("linspace", 1)]
)
def test_quadratures_are_exact_to_their_degree_and_no_further(quadrature: str, degree: int) -> None:
    """Five nodes: Gauss-Legendre integrates polynomials of degree 9."""
    places, weights = pl.Path(5, quadrature=quadrature).nodes  # type: ignore[arg-type]
    for power in range(degree + 1):
        assert (weights * places**power).sum() == pytest.approx(1 / (power + 1), rel=1e-13)
    assert (weights * places ** (degree + 1)).sum() != pytest.approx(1 / (degree + 2), rel=1e-7)


@few
@given(seeds, st.integers(0, 100), st.integers(0, 100))
def test_folded_seeds_do_not_collide(seed: int, first: int, second: int) -> None:
    assert (fold_in(seed, first) == fold_in(seed, second)) == (first == second)
    assert fold_in(fold_in(seed, first), second) != fold_in(fold_in(seed, second), first) or first == second


@few
@given(seeds)
def test_noise_has_the_moments_of_a_standard_normal(seed: int) -> None:
    drawn = noise_like(torch.zeros(2, 1, 100, 100, dtype=torch.float64), [seed, fold_in(seed, 1)])
    for row in drawn:
        assert abs(float(row.mean())) < 5 / 100
        assert abs(float(row.var()) - 1) < 5 * (2 / 10_000) ** 0.5
    assert abs(float((drawn[0] * drawn[1]).mean())) < 5 / 100


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("text", METHODS)
def test_an_images_map_does_not_depend_on_its_batch_or_on_max_batch(text: str) -> None:
    model, x = relu_network(3), images(4, 8, 3)
    method, layers = pl.method(text), ["input", "0", "3"]
    given_seeds, targets = [11, 5, 11, 7], [0, 1, 2, 3]
    whole = method(model, x, targets, layers=layers, seed=given_seeds)
    for max_batch in (2, 3, 7):
        found = method(model, x, targets, layers=layers, seed=given_seeds, max_batch=max_batch)
        for layer in layers:
            assert torch.allclose(found[layer], whole[layer], rtol=1e-11, atol=1e-14)
    for row in range(4):
        alone = method(model, x[row : row + 1], targets[row], layers=layers, seed=given_seeds[row])
        for layer in layers:
            assert torch.allclose(alone[layer][0], whole[layer][row], rtol=1e-11, atol=1e-14)
    order = [2, 0, 3, 1]
    shuffled = method(
        model, x[order], [targets[i] for i in order], layers=layers, seed=[given_seeds[i] for i in order]
    )
    for layer in layers:
        assert torch.allclose(shuffled[layer], whole[layer][order], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("text", METHODS)
def test_layers_together_are_the_layers_one_by_one(text: str) -> None:
    model, x, layers = relu_network(4), images(2, 8, 4), ["input", "0", "2", "3"]
    together = pl.method(text)(model, x, [0, 1], layers=layers, seed=3)
    for layer in layers:
        alone = pl.method(text)(model, x, [0, 1], layers=layer, seed=3)[layer]
        assert torch.allclose(alone, together[layer], rtol=1e-11, atol=1e-14)


# ------------------------------------------------------------------ rolled means


@few
@given(
    seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, -1]), st.integers(-3, 3), st.integers(-3, 3)
)
def test_rolled_mean_is_the_average_of_explicit_rolls(
    seed: int, height: int, width: int, direction: int, down: int, right: int
) -> None:
    x = images(2, 7, seed)
    found = rolled_mean(x, (height, width), direction)  # type: ignore[arg-type]
    rolls = [x.roll((direction * h, direction * w), (-2, -1)) for h in range(height) for w in range(width)]
    assert torch.allclose(found, torch.stack(rolls).mean(0), rtol=1e-13, atol=1e-15)
    # it preserves sums, commutes with rolls, and the other direction is its adjoint
    assert torch.allclose(found.sum((-2, -1)), x.sum((-2, -1)), rtol=1e-12, atol=1e-12)
    rolled = rolled_mean(x.roll((down, right), (-2, -1)), (height, width), direction)  # type: ignore[arg-type]
    assert torch.allclose(rolled, found.roll((down, right), (-2, -1)), rtol=1e-13, atol=1e-15)
    other, y = rolled_mean(images(2, 7, seed + 1), (height, width), -direction), images(2, 7, seed + 1)  # type: ignore[arg-type]
    assert torch.allclose((found * y).sum(), (x * other).sum(), rtol=1e-11, atol=1e-12)


# ------------------------------------------------------------------ percentiles


@few
@given(seeds, st.lists(st.floats(0, 100), min_size=2, max_size=6), st.integers(1, 12))
def test_the_nearest_percentile_is_an_element_and_monotone_in_q(seed: int, qs: list[float], size: int) -> None:
    x = images(2, size, seed)
    found = [percentile(x, q) for q in sorted(qs)]
    for value in found:
        assert value.shape == (2, 1, 1, 1)
        assert (x == value).flatten(1).any(1).all()
    for lower, upper in pairwise(found):
        assert (lower <= upper).all()
    assert torch.equal(percentile(x, 0).flatten(), x.flatten(1).amin(1))
    assert torch.equal(percentile(x, 100).flatten(), x.flatten(1).amax(1))


@few
@given(seeds, st.floats(0, 100), st.integers(1, 12))
def test_the_linear_percentile_is_numpys_and_within_an_element_of_the_nearest(
    seed: int, q: float, size: int
) -> None:
    x = images(2, size, seed)
    expected = np.percentile(x.flatten(1).numpy(), q, axis=1)
    linear = percentile(x, q, "linear").flatten()
    assert np.allclose(linear.numpy(), expected, rtol=1e-10, atol=1e-12)
    below, above = (np.percentile(x.flatten(1).numpy(), q, axis=1, method=m) for m in ("lower", "higher"))
    nearest = percentile(x, q).flatten().numpy()
    assert ((nearest == below) | (nearest == above)).all()


# ------------------------------------------------------------------ heatmaps


@few
@given(seeds, st.integers(1, 4))
def test_channel_reductions_keep_their_identities(seed: int, channels: int) -> None:
    x = images(2, 5, seed, channels)
    maps = {how: pl.heatmap(x, channels=how) for how in ("sum", "mean", "abs_sum", "abs_max", "positive_sum")}  # type: ignore[arg-type]
    assert torch.allclose(maps["mean"] * channels, maps["sum"], rtol=1e-13)
    assert (maps["abs_sum"] >= maps["sum"].abs() - 1e-12).all()
    assert (maps["abs_max"] <= maps["abs_sum"] + 1e-12).all()
    assert (maps["abs_sum"] <= channels * maps["abs_max"] + 1e-12).all()
    negative = pl.heatmap(-x, channels="positive_sum")
    assert torch.allclose(maps["positive_sum"] + negative, maps["abs_sum"], rtol=1e-12)
    assert torch.allclose(maps["positive_sum"] - negative, maps["sum"], rtol=1e-11, atol=1e-13)
    nearest = pl.heatmap(x, (10, 15), "sum")
    assert torch.equal(nearest, maps["sum"].repeat_interleave(2, 1).repeat_interleave(3, 2))


@few
@given(seeds, st.floats(0, 100), st.floats(0, 100))
def test_clipping_between_percentiles_keeps_what_lies_between(seed: int, first: float, second: float) -> None:
    low, high = sorted((first, second))
    maps = images(3, 6, seed)[:, 0]
    clipped = pl.clip_percentiles(maps, low, high)
    for before, after in zip(maps.numpy(), clipped.numpy(), strict=True):
        floor, ceiling = np.percentile(before, [low, high])
        inside = (before > floor + 1e-9) & (before < ceiling - 1e-9)
        assert np.array_equal(after[inside], before[inside])
        assert after.max() <= max(ceiling, 0) + 1e-9
        below = before < floor - 1e-9
        assert np.allclose(after[below], min(floor, 0) if ceiling >= 0 else min(floor, ceiling), atol=1e-9)
    # whole range: nothing happens; a ceiling alone and clipping again with the whole range change nothing more
    assert torch.equal(pl.clip_percentiles(maps, 0, 100), maps)
    assert torch.equal(pl.clip_percentiles(clipped, 0, 100), clipped)


@few
@given(seeds, st.integers(0, 35), st.integers(0, 35))
def test_clipping_twice_at_elements_of_the_map_is_clipping_once(seed: int, first: int, second: int) -> None:
    """Percentiles that fall on elements (of 36, k/35) and a floor that is not positive: idempotent."""
    low, high = (100 * k / 35 for k in sorted((first, second)))
    maps = -images(3, 6, seed)[:, 0].abs() - 1  # all negative: the floor clips instead of setting to zero
    once = pl.clip_percentiles(maps, low, high)
    assert torch.allclose(pl.clip_percentiles(once, low, high), once, rtol=1e-12)


@few
@given(seeds, st.floats(0.1, 10), st.sampled_from(["absolute", "diverging"]))
def test_display_scaling_is_bounded_and_ignores_the_maps_scale(seed: int, scale: float, display: str) -> None:
    maps = images(3, 6, seed)[:, 0]
    shown = pl.normalize(maps, display)  # type: ignore[arg-type]
    assert shown.max() <= 1
    assert shown.min() >= (0 if display == "absolute" else -1)
    assert torch.allclose(pl.normalize(maps * scale, display), shown, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]
    if display == "diverging":
        assert torch.equal(shown.sign(), maps.sign())
        assert torch.equal(pl.normalize(-maps, display), -shown)


def row_sums(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)


@few
@given(seeds, st.sampled_from(["zero", "blur", 0.3]))
def test_deeplift_residuals_say_what_the_attribution_misses(seed: int, baseline: object) -> None:
    """And they are nothing but rounding."""
    model, x = relu_network(seed), images(2, 8, seed)
    found = pl.DeepLift(baseline=baseline)(model, x, [0, 3], layers=["input", "0", "3"])  # type: ignore[arg-type]
    for layer in found:
        assert found[layer].shape[0] == 2
        assert float(found.residuals[layer].abs().max()) < 1e-12
        difference = row_sums(found[layer]) - found.residuals[layer]
        assert torch.allclose(difference, row_sums(found["input"]), rtol=1e-9, atol=1e-11)


def test_completeness_is_promised_only_where_the_path_lies_at_the_layer() -> None:
    """Along the image's path, a hidden layer's gradient times its difference sums to nothing in particular."""
    model, x = smooth_network(0), images(2, 8)
    at_layer = pl.Gradient().integrated(200)(model, x, [0, 1], layers=["input", "0"])
    at_input = pl.Gradient().integrated(200, space="input")(model, x, [0, 1], layers=["input", "0"])
    assert set(at_layer.residuals) == {"input", "0"}
    assert set(at_input.residuals) == {"input"}
    assert float(torch.stack([*at_layer.residuals.values()]).abs().max()) < 1e-8


@few
@given(seeds)
def test_deeplift_of_a_network_without_non_linearities_is_input_x_weight(seed: int) -> None:
    model, x = plain(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3), seed=seed), images(2, 8, seed)
    expected = pl.method("input_x_gradient")(model, x, [0, 2])["input"]
    assert relative_error(pl.DeepLift()(model, x, [0, 2])["input"], expected) < 1e-13
