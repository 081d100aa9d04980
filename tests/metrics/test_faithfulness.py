"""Insertion and deletion on models whose curves are known."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.errors import InputWarning, InvalidImage, InvalidMap, InvalidModel, InvalidParameter, InvalidTarget
from pellucid.metrics.adaptive import everywhere, where_it_bends
from pellucid.metrics.base import Case
from pellucid.metrics.faithfulness import Curve, Deletion, Insertion, curves, deletion, insertion
from pellucid.metrics.perturbation import Perturbation, blur_kernel, blurred, ranks
from pellucid.metrics.scoring import Scorer

EXACT = {"rtol": 0, "atol": 1e-12}


class Function(nn.Module):
    """Any function of a flat image as a one-class model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.flatten(1))[:, None]


MEAN = Function(lambda x: x.mean(1))
NOT_CONSTANT = torch.linspace(1, 0, 196, dtype=torch.float64).view(1, 14, 14)


def ones(height: int, width: int, count: int = 1) -> Tensor:
    return torch.ones(count, 1, height, width, dtype=torch.float64)


def test_the_kernel_of_rise() -> None:
    kernel = blur_kernel()
    assert kernel.shape == (11, 11)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
    found = [kernel[5, 5].item(), kernel[0, 0].item(), kernel[0, 5].item()]
    assert found == pytest.approx([0.0088326, 0.0077366, 0.0082665], abs=5e-8)
    torch.testing.assert_close(kernel, kernel.flip(0).T, **EXACT)


def test_the_true_gaussian_kernel() -> None:
    kernel = blur_kernel("gaussian")
    assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
    assert [kernel[5, 5].item(), kernel[0, 0].item()] == pytest.approx([0.01196, 0.00440], abs=5e-6)
    assert (kernel[0, 0] / kernel[5, 5]).item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=1e-7)


def test_blur_of_ones_darkens_a_frame_of_five_pixels() -> None:
    found = blurred(ones(30, 24).repeat(2, 3, 1, 1))
    assert found.shape == (2, 3, 30, 24)
    torch.testing.assert_close(found[1, 2, 5:-5, 5:-5], ones(20, 14)[0, 0], **EXACT)
    assert [found[0, 1, 0, 12].item(), found[0, 1, -1, -1].item()] == pytest.approx([0.54699, 0.29920], abs=5e-6)


@pytest.mark.parametrize(("steps", "pixels"), [(28, 1792), (224, 224)])
def test_steps_of_whole_images(steps: int, pixels: int) -> None:
    """224 x 224 in 28 steps of 1792 pixels or 224 of 224: 29 or 225 scores, which fall evenly."""
    found = deletion(MEAN, ones(224, 224), 0, torch.rand(1, 224, 224), steps, output="logits")
    assert found.scores.shape == (1, steps + 1)
    wanted = 1 - torch.arange(steps + 1, dtype=torch.float64) * pixels / 224**2
    torch.testing.assert_close(found.scores[0], wanted, **EXACT)
    torch.testing.assert_close(found.fractions, 1 - wanted, **EXACT)
    assert found.auc.item() == pytest.approx(0.5, abs=1e-12)


def test_a_constant_model_has_its_score_for_an_area() -> None:
    constant = Function(lambda x: torch.full_like(x[:, 0], 0.7))
    for curve in (insertion, deletion):
        assert curve(constant, ones(14, 14), 0, NOT_CONSTANT, output="logits").auc.item() == pytest.approx(
            0.7, abs=1e-12
        )


@pytest.mark.parametrize("place", [0, 195, 101])
def test_a_model_of_one_pixel(place: int) -> None:
    """Put first, the pixel leaves 1 of the 29 scores of deletion, and keeps all but 1 of insertion's."""
    model = Function(lambda x: x[:, place])
    heatmap = NOT_CONSTANT.clone()
    heatmap.view(-1)[place] = 2
    deleted = deletion(model, ones(14, 14), 0, heatmap, output="logits")
    inserted = insertion(model, ones(14, 14), 0, heatmap, start="zero", output="logits")
    assert deleted.scores[0].tolist() == [1.0] + [0.0] * 28
    assert inserted.scores[0].tolist() == [0.0] + [1.0] * 28
    assert deleted.auc.item() == pytest.approx(1 / 56, abs=1e-12)
    assert inserted.auc.item() == pytest.approx(1 - 1 / 56, abs=1e-12)
    last = deletion(model, ones(14, 14), 0, -heatmap, output="logits")
    assert last.auc.item() == pytest.approx(1 - 1 / 56, abs=1e-12)


def test_areas_from_the_zero_start_and_to_another_substrate() -> None:
    """A mean goes linearly from one end to the other: the area is the mean of both."""
    to_three = deletion(MEAN, ones(14, 14), 0, NOT_CONSTANT, substrate=3, output="logits")
    assert to_three.auc.item() == pytest.approx(2, abs=1e-12)
    image = torch.full((1, 14, 14), -5, dtype=torch.float64)
    from_image = insertion(MEAN, ones(14, 14), 0, NOT_CONSTANT, start=image, output="logits")
    assert from_image.auc.item() == pytest.approx(-2, abs=1e-12)


def test_pixels_that_do_not_divide_evenly_give_true_fractions() -> None:
    found = deletion(MEAN, ones(5, 5), 0, torch.rand(1, 5, 5), 4, output="logits")
    assert (found.fractions * 25).tolist() == pytest.approx([0, 7, 13, 19, 25], abs=1e-12)
    torch.testing.assert_close(found.scores[0], 1 - found.fractions, **EXACT)
    assert found.auc.item() == pytest.approx(0.5, abs=1e-12)


def test_a_single_step_scores_the_ends_alone() -> None:
    scorer = Scorer(MEAN, output="logits")
    found = deletion(scorer, ones(5, 5, 3), 0, torch.rand(3, 5, 5), 1)
    assert found.scores.tolist() == [[1.0, 0.0]] * 3
    assert scorer.rows == 3 + 1


def all_orders(pixels: int) -> Tensor:
    """Maps (pixels!, 1, 1, pixels) that put the pixels in every order."""
    orders = torch.tensor(list(itertools.permutations(range(pixels))), dtype=torch.float64)
    return orders[:, None, None]


def test_the_best_order_of_a_linear_model_and_chance() -> None:
    """Of all 720 orders, falling w x is the best for both; over all, each area is the mean of its ends."""
    weight = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.3, 1.2], dtype=torch.float64)
    image = torch.tensor([1.0, 2.0, 0.5, -3.0, 1.5, 1.1], dtype=torch.float64)
    model = Function(lambda x: x @ weight)
    kinds = (Perturbation("insertion", "zero"), Perturbation("deletion", "zero"))

    def of(maps: Tensor) -> tuple[Curve, ...]:
        images, targets = image.view(1, 1, 1, 6), torch.zeros(1, dtype=torch.long)
        return curves(Scorer(model, output="logits"), images, targets, maps, kinds, steps=6)

    inserted, deleted = of(all_orders(6))
    best_inserted, best_deleted = of((weight * image).view(1, 1, 1, 6))
    assert inserted.auc.max().item() == pytest.approx(best_inserted.auc.item(), abs=1e-12)
    assert deleted.auc.min().item() == pytest.approx(best_deleted.auc.item(), abs=1e-12)
    chance = (weight @ image).item() / 2
    assert [inserted.auc.mean().item(), deleted.auc.mean().item()] == pytest.approx([chance] * 2, abs=1e-12)


def test_ties_stand_in_reading_order() -> None:
    found = ranks(torch.tensor([[[1.0, 2.0], [2.0, 0.0]]]), (4, 4))
    assert found[0].tolist() == [[8, 9, 0, 1], [10, 11, 2, 3], [4, 5, 12, 13], [6, 7, 14, 15]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_maps_of_other_types_rank_alike(dtype: torch.dtype) -> None:
    heatmap = torch.randperm(196).view(1, 14, 14)
    model = Function(lambda x: x[:, :50].prod(1) + x[:, 77])
    wanted = deletion(model, ones(14, 14), 0, heatmap.double(), output="logits")
    found = deletion(model, ones(14, 14), 0, heatmap.to(dtype), output="logits")
    torch.testing.assert_close(found, wanted, **EXACT)


def test_outputs_and_targets() -> None:
    model = Function(lambda x: x.mean(1))

    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([model(x), 2 * model(x)], 1)

    fraction = torch.linspace(0, 1, 29, dtype=torch.float64)
    image = ones(14, 14)
    for output, score in [
        ("logits", 2 * fraction),
        ("sigmoid", (2 * fraction).sigmoid()),
        ("softmax", fraction.sigmoid()),
    ]:
        found = insertion(Two(), image, "auto", NOT_CONSTANT, start="zero", output=output)
        torch.testing.assert_close(found.scores[0], score, **EXACT)
    scorer = Scorer(Two(), output="logits")
    torch.testing.assert_close(
        insertion(scorer, image, [0], NOT_CONSTANT, start="zero").scores[0], fraction, **EXACT
    )


def test_what_does_not_fit_is_refused() -> None:
    image, heatmap = ones(14, 14, 2), NOT_CONSTANT.repeat(2, 1, 1)
    broken = heatmap.clone()
    broken[1, 3, 3] = torch.nan
    with pytest.raises(InvalidMap, match="heatmap of image 1 holds NaN"):
        insertion(MEAN, image, 0, broken)
    with pytest.raises(InvalidMap, match="one value per pixel, or fewer"):
        insertion(MEAN, image, 0, torch.rand(2, 15, 14))
    for wrong in (heatmap[:1], heatmap[:, None], heatmap.numpy()):
        with pytest.raises(InvalidMap, match=r"for 2 images; give a tensor \(batch, height, width\)"):
            insertion(MEAN, image, 0, wrong)
    with pytest.raises(InvalidTarget, match="target 1 is out of range"):
        deletion(MEAN, image, [0, 1], heatmap)
    with pytest.raises(InvalidImage, match="image 0"):
        deletion(MEAN, image * torch.nan, 0, heatmap)
    for steps, message in [(0, "at least 1"), (True, "at least 1"), ("fast", "'auto'"), (197, "only 196 pixels")]:
        with pytest.raises(InvalidParameter, match=message):
            deletion(MEAN, image, 0, heatmap, steps)
    with pytest.raises(InvalidParameter, match="tolerance=0"):
        deletion(MEAN, image, 0, heatmap, "auto", tolerance=0)
    for reference in ("grey", True, float("nan")):
        with pytest.raises(InvalidParameter, match="insertion with reference"):
            insertion(MEAN, image, 0, heatmap, start=reference)
    with pytest.raises(InvalidParameter, match="does not fit images"):
        deletion(MEAN, image, 0, heatmap, substrate=torch.zeros(3, 14, 14))
    for held in (torch.zeros(1, 14, 14).to_sparse(), torch.zeros(1, 14, 14, device="meta")):
        with pytest.raises(InvalidParameter, match="give a dense tensor"):
            deletion(MEAN, image, 0, heatmap, substrate=held)
    with pytest.raises(InvalidParameter, match="deletion's reference holds NaN"):
        deletion(MEAN, image, 0, heatmap, substrate=torch.full((1, 14, 14), torch.nan))
    with pytest.raises(InvalidParameter, match="max_batch given with a Scorer"):
        deletion(Scorer(MEAN), image, 0, heatmap, max_batch=3)
    with pytest.raises(InvalidParameter, match="output="):
        deletion(MEAN, image, 0, heatmap, output="probability")
    with pytest.raises(InvalidModel, match="training mode"):
        deletion(nn.Sequential(nn.Dropout(0.5)), image, 0, heatmap)
    with pytest.raises(InvalidModel, match="a logit is not finite"):
        deletion(Function(lambda x: 1 / x[:, 0]), image, 0, heatmap)
    with pytest.raises(InvalidParameter, match="tensor for a reference"):
        Deletion(substrate=torch.zeros(1))


# Adaptive steps


GRID = torch.linspace(0, 1, 225, dtype=torch.float64)


def sampled(scores: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """A table of scores (J, 225) as adaptive steps see it, and how many were looked at (J,)."""
    looked = torch.full((len(scores),), 2)

    def score(curve: Tensor, node: Tensor) -> Tensor:
        looked.index_add_(0, curve, torch.ones_like(curve))
        return scores[curve, node]

    return where_it_bends(score, scores[:, 0], scores[:, -1], GRID, tolerance), looked


def test_everywhere_looks_everywhere() -> None:
    scores = torch.rand(3, 225, dtype=torch.float64)
    found = everywhere(lambda curve, node: scores[curve, node], scores[:, 0], scores[:, -1], GRID)
    assert torch.equal(found, scores)


def test_straight_curves_are_scored_on_the_coarse_grid_alone() -> None:
    scores = torch.stack([torch.full_like(GRID, 0.3), 1 - GRID, 5 * GRID - 2])
    found, looked = sampled(scores, 1e-9)
    assert looked.tolist() == [16] * 3
    torch.testing.assert_close(found, scores, **EXACT)


def test_a_kink_and_a_jump_are_found() -> None:
    """Only the intervals at the bend are halved: the jump's place is known to a step of the grid."""
    scores = torch.stack([(GRID - 100 / 224).clamp_min(0), (GRID > 100.5 / 224).double()])
    found, looked = sampled(scores, 1e-4)
    torch.testing.assert_close(found[1], scores[1], **EXACT)
    wanted = torch.trapezoid(scores, GRID)
    torch.testing.assert_close(torch.trapezoid(found, GRID), wanted, rtol=0, atol=1e-4)
    assert looked.max().item() <= 45


@pytest.mark.parametrize(("tolerance", "most"), [(0.005, 20), (0.002, 40), (0.0005, 140)])
def test_the_error_of_random_walks_follows_the_tolerance(tolerance: float, most: int) -> None:
    """What the estimate takes a curve for: the error is one to two tolerances, on neither side more often."""
    walks = torch.randn(2000, 225, dtype=torch.float64).cumsum(1) / 15 * 0.3
    found, looked = sampled(walks, tolerance)
    error = torch.trapezoid(found - walks, GRID)
    assert tolerance < error.square().mean().sqrt().item() < 2 * tolerance
    assert error.mean().item() == pytest.approx(0, abs=8 * tolerance / 2000**0.5)
    assert looked.double().mean().item() < most


def test_all_nodes_are_scored_before_the_tolerance_is_missed() -> None:
    rough = torch.rand(2, 225, dtype=torch.float64)
    found, looked = sampled(rough, 1e-9)
    assert looked.tolist() == [225, 225]
    assert torch.equal(found, rough)


def test_automatic_steps_of_a_constant_score() -> None:
    """14 forward rows between the ends of each curve, and 225 scores."""
    scorer = Scorer(Function(lambda x: torch.full_like(x[:, 0], 0.4)), output="logits")
    found = deletion(scorer, ones(16, 16, 3), 0, torch.rand(3, 16, 16), "auto")
    assert scorer.rows == 3 * 14 + 3 + 1
    assert found.scores.shape == (3, 225)
    torch.testing.assert_close(found.auc, torch.full((3,), 0.4, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_automatic_steps_of_tiny_images_score_every_pixel(side: int) -> None:
    image = torch.rand(1, 1, side, side, dtype=torch.float64)
    model = Function(lambda x: x.square().sum(1))
    automatic = deletion(model, image, 0, image[:, 0], "auto", output="logits", tolerance=1e-9)
    each = deletion(model, image, 0, image[:, 0], side**2, output="logits")
    torch.testing.assert_close(automatic, each, **EXACT)


# Metrics


def case(maps: Tensor, **settings) -> Case:
    """Random images whose attributions at two layers are the given maps and their negatives."""
    images = torch.rand(len(maps), 1, 14, 14, generator=torch.Generator().manual_seed(1)).double()
    model = Function(lambda x: torch.stack([x[:, :90].prod(1), x.mean(1)], 1)[:, :2].sum(1).sin())
    targets = torch.zeros(len(maps), dtype=torch.long)
    attributions = pl.Attributions({"a": maps[:, None], "b": -maps[:, None]}, targets)
    return Case(pl.Gradient(), model, images, attributions, Scorer(model, output="logits"), targets, **settings)


def mean_color(images: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([torch.full((14, 14), c.mean().item(), dtype=c.dtype) for c in image]) for image in images]
    )


MAPS = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize(
    ("metric", "curve"),
    [
        (Insertion(steps=7), lambda *call: insertion(*call, 7)),
        (Deletion(steps=7, substrate="gaussian"), lambda *call: deletion(*call, 7, substrate="gaussian")),
        (Insertion(steps=7, start="mean"), lambda *call: insertion(*call, 7, start=mean_color(call[1]))),
        (Deletion(steps="auto"), lambda *call: deletion(*call, "auto")),
    ],
)
def test_metrics_are_the_functions_at_every_layer(metric, curve) -> None:
    one = case(MAPS)
    found = metric.measure(one)
    assert list(found) == ["a", "b"]
    for layer, sign in [("a", 1), ("b", -1)]:
        wanted = curve(Scorer(one.explained, output="logits"), one.images, 0, sign * MAPS)
        torch.testing.assert_close(found[layer].values, wanted.auc, **EXACT)
        torch.testing.assert_close(found[layer].curve, wanted.scores, **EXACT)
        assert found[layer].at == pytest.approx(wanted.fractions.tolist(), abs=1e-12)


def test_a_constant_map_is_undefined_and_the_others_are_not() -> None:
    maps = MAPS.clone()
    maps[1] = 0.5
    found = Insertion(steps=7).measure(case(maps))["a"]
    wanted = Insertion(steps=7).measure(case(MAPS))["a"]
    assert found.values.isnan().tolist() == [False, True, False]
    assert found.curve.isnan().all(1).tolist() == [False, True, False]
    torch.testing.assert_close(found.values[[0, 2]], wanted.values[[0, 2]], **EXACT)


def test_metrics_with_equal_steps_share_one_queue() -> None:
    """Clean images once, blurred ones once, zeros once; then 6 rows of each of 3 images x 2 layers x 2 kinds."""
    metrics = (Insertion(steps=7), Deletion(steps=7))
    one = case(MAPS, metrics=metrics)
    first = metrics[0].measure(one)
    assert one.scorer.rows == 3 + 3 + 1 + 3 * 2 * 2 * 6
    second = metrics[1].measure(one)
    assert one.scorer.rows == 3 + 3 + 1 + 3 * 2 * 2 * 6
    for metric, together in zip(metrics, (first, second), strict=True):
        alone = metric.measure(case(MAPS))
        for layer in "ab":
            torch.testing.assert_close(together[layer].values, alone[layer].values, **EXACT)


def test_metrics_run_alone_what_only_they_ask_for() -> None:
    metrics = (Insertion(steps=7), Deletion(steps=14), Deletion(steps=7, substrate="blur"))
    one = case(MAPS, metrics=metrics[:2])
    metrics[0].measure(one)
    assert one.scorer.rows == 3 + 3 + 3 * 2 * 6
    metrics[2].measure(one)  # not among the case's metrics: on its own, but for the clean images
    assert one.scorer.rows == 3 + 3 + 3 * 2 * 6 + 3 + 3 * 2 * 6


def test_a_model_that_views_strides_is_scored_all_the_same() -> None:
    """Scoring prefers channels-last rows; ``.view`` of a convolution's output refuses them."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(len(x), -1))

    model = Viewing().double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    scorer = Scorer(model, max_batch=2)
    torch.testing.assert_close(scorer.logits(images), model(images).detach(), rtol=1e-12, atol=1e-12)
    assert (scorer.rows, scorer.passes) == (3, 2)


def test_a_model_that_reads_by_strides_is_scored_as_it_is() -> None:
    """``as_strided``, and kernels of a model's own, read other pixels where channels lie last, without a word."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.as_strided((len(x), 3, 4, 4), (192, 64, 16, 2)).flatten(1))

    model = Strided().double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = model.head(images[..., ::2, ::2].flatten(1)).detach()
    torch.testing.assert_close(Scorer(model, output="logits").scores(images), expected, rtol=1e-12, atol=1e-12)


def test_scores_are_of_the_images_and_the_weights_as_they_are_now() -> None:
    """A scorer keeps what clean images scored, until somebody overwrites them or the model."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double().eval()
    images, maps = torch.randn(3, 3, 4, 4, dtype=torch.float64), torch.rand(3, 4, 4, dtype=torch.float64)
    scorer = Scorer(model)

    def wrong() -> float:
        found, expected = (insertion(one, images, 1, maps, 4).scores for one in (scorer, Scorer(model)))
        return float((found - expected).abs().max())

    assert wrong() == 0
    rows = scorer.rows
    assert (wrong(), scorer.rows - rows) == (0, 3 + 3 * 3)  # the references and the steps alone
    images.mul_(2)
    assert wrong() == 0
    with torch.no_grad():
        model[1].weight.mul_(3)
    assert wrong() == 0


def test_bfloat16_scores_are_near_and_of_the_images_own_type() -> None:
    network, preprocess = pl.load_model("shapes-resnet")
    images = torch.stack([preprocess(sample.image) for sample in open_images("shapes:3")])
    full, half = Scorer(network).scores(images), Scorer(network, precision="bfloat16").scores(images)
    assert half.dtype == full.dtype == torch.float32
    assert 0 < float((full - half).abs().max()) < 0.02  # 8 bits of mantissa, a few layers deep
    with pytest.raises(InvalidParameter, match="precision='half'"):
        Scorer(network, precision="half")  # type: ignore[arg-type]


def test_models_that_cannot_be_scored_image_by_image_are_refused():
    images, maps = torch.rand(3, 3, 8, 8), torch.rand(3, 8, 8)

    def network(*parts: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    mixing = network(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    random = network(Dropping()).eval()
    for model, what in ((mixing, "depend on the images beside it"), (random, "the model is random")):
        with pytest.raises(InvalidModel, match=what):
            pl.insertion(model, images, 0, maps, steps=4)
        with pytest.raises(InvalidModel, match=what):
            Scorer(model).scores(images)
    assert Scorer(mixing, max_batch=1).scores(images).shape == (3, 4)  # one by one there is nothing to mix
    with pytest.warns(InputWarning, match="explain the model without its last softmax"):
        pl.deletion(nn.Sequential(network(), nn.Softmax(1)).eval(), images, 0, maps, steps=4)
    quantized = network(Steps()).eval()  # has no derivative, which scores do not need
    assert Scorer(quantized).scores(images).shape == (3, 4)


def test_a_scorer_asks_again_of_a_model_that_was_changed():
    torch.manual_seed(0)
    images = torch.rand(3, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    scorer, kept = Scorer(model), model[1].running_mean.clone()
    scorer.scores(images)
    model.train()
    with pytest.raises(InvalidModel, match="training mode"):
        scorer.scores(images)
    assert torch.equal(model[1].running_mean, kept)
    model.eval()[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(InvalidModel, match="depend on the images beside it"):
        scorer.scores(images)


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Steps(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return (8 * x).round() / 8


@pytest.mark.parametrize("overwrite", [lambda x: x.data.neg_(), lambda x: np.negative(x.numpy(), out=x.numpy())])
def test_clean_scores_end_with_what_raises_no_version(overwrite):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for tensor in (images, model.requires_grad_(False)[0].weight):
        scorer = Scorer(model)
        before = scorer.of(images)
        rows = scorer.rows
        assert torch.equal(scorer.of(images), before)
        assert scorer.rows == rows
        overwrite(tensor)
        assert torch.equal(scorer.of(images), Scorer(model).of(images))
        assert not torch.equal(scorer.of(images), before)


def test_what_is_no_bound_of_rows_and_what_takes_no_images_is_told():
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InvalidParameter, match=r"(?s)max_batch=.*give a whole number"):
        Scorer(nn.Flatten().eval(), max_batch=images.numpy()).scores(images)
    with pytest.raises(
        InvalidModel, match=r"fails on images of shape \(1, 3, 8, 8\): RuntimeError: mat1 and mat2"
    ):
        Scorer(nn.Linear(2, 2).eval()).scores(images)
