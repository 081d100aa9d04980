"""Insertion and deletion on small networks: against a loop over single images, and what must not matter."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.metrics.faithfulness import Curve, curves, deletion, insertion
from pellucid.metrics.perturbation import blur_kernel
from pellucid.metrics.scoring import Scorer
from pellucid.rules.base import Rules
from pellucid.variants.base import FORWARD

from ..networks import Chain, randomise

EXACT = {"rtol": 0, "atol": 1e-12}


class Watched(nn.Module):
    """A network that records how many rows each forward pass has, and spoils its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.batches = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.network(x.add_(0.5).sub_(0.5))


@pytest.fixture
def net() -> nn.Module:
    return Watched(randomise(Chain([nn.ReLU(), F.elu, nn.ReLU(inplace=True), torch.tanh])))


IMAGES = torch.randn(3, 3, 16, 14, generator=torch.Generator().manual_seed(3)).double()
# At three sizes, with ties: 7 values on 224 pixels.
MAPS = [
    torch.randint(-3, 4, (3, height, width), generator=torch.Generator().manual_seed(height)).double()
    for height, width in [(16, 14), (8, 7), (4, 3)]
]
TARGETS = torch.tensor([4, 0, 2])


def by_hand(
    net: nn.Module, image: Tensor, target: int, heatmap: Tensor, pixels: int, inserting: bool
) -> list[float]:
    """RISE's loop: one image (C, H, W), one forward pass for each step of so many pixels."""
    height, width = image.shape[1:]
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(impulse, sigma=5)).expand(3, 1, 11, 11)
    start = F.conv2d(image[None], kernel, padding=5, groups=3)[0] if inserting else image.clone()
    finish = image if inserting else torch.zeros_like(image)
    heatmap = heatmap[
        torch.arange(height)[:, None] * heatmap.shape[0] // height, torch.arange(width) * heatmap.shape[1] // width
    ]
    order = np.argsort(-heatmap.flatten().numpy(), kind="stable")
    scores = []
    for step in range(math.ceil(height * width / pixels) + 1):
        with torch.no_grad():
            scores.append(net(start[None].clone()).softmax(1)[0, target].item())
        for place in order[step * pixels : (step + 1) * pixels]:
            start[:, place // width, place % width] = finish[:, place // width, place % width]
    return scores


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(("steps", "pixels"), [(28, 8), (7, 32), (224, 1)])
def test_the_curves_are_those_of_a_loop_over_single_images(
    net: nn.Module, steps: int, pixels: int, which: int
) -> None:
    for curve, inserting in ((insertion, True), (deletion, False)):
        found = curve(net, IMAGES, TARGETS, MAPS[which], steps, max_batch=7)
        for row in range(3):
            scores = by_hand(net, IMAGES[row], int(TARGETS[row]), MAPS[which][row], pixels, inserting)
            torch.testing.assert_close(found.scores[row], torch.tensor(scores, dtype=torch.float64), **EXACT)
            area = (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)
            assert found.auc[row].item() == pytest.approx(area, abs=1e-12)


def test_the_kernel_is_scipys() -> None:
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    np.testing.assert_allclose(blur_kernel().numpy(), gaussian_filter(impulse, sigma=5), rtol=1e-13)


def test_all_maps_and_both_kinds_share_one_queue(net: nn.Module) -> None:
    """Clean images, blurred images and zeros once; every other row once, in full batches across all of them."""
    scorer = Scorer(net, max_batch=10)
    inserted, deleted = curves(scorer, IMAGES, TARGETS, MAPS, steps=28)
    perturbed = 3 * 3 * 2 * 27
    assert scorer.rows == 3 + (3 + 1) + perturbed
    # Whether the model answers the same again, beside others, and where channels lie last.
    tried = [1, 1, 4, 4, 1, 1]
    assert sorted(net.batches) == sorted(tried + [3, 4] + [10] * (perturbed // 10) + [perturbed % 10])
    assert inserted.scores.shape == deleted.scores.shape == (3, 3, 29)
    for which, heatmaps in enumerate(MAPS):
        for curve, found in ((insertion, inserted), (deletion, deleted)):
            alone = curve(net, IMAGES, TARGETS, heatmaps)
            torch.testing.assert_close(found.scores[which], alone.scores, **EXACT)
            torch.testing.assert_close(found.auc[which], alone.auc, **EXACT)


def test_references_alike_are_scored_once(net: nn.Module) -> None:
    scorer = Scorer(net)
    insertion(scorer, IMAGES, TARGETS, MAPS[0], 7, start=0)
    assert scorer.rows == 3 + 1 + 3 * 6
    # The same tensor of images: their clean scores are known.
    deletion(scorer, IMAGES, TARGETS, MAPS[1], 7, substrate=IMAGES.flip(0))
    assert scorer.rows == 3 + 1 + 3 * 6 + 3 + 3 * 6


CURVES: list[Callable[..., Curve]] = [insertion, deletion]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("steps", [7, "auto"])
def test_neither_batch_nor_max_batch_matter(net: nn.Module, curve: Callable[..., Curve], steps) -> None:
    together = curve(net, IMAGES, TARGETS, MAPS[0], steps)
    narrow = curve(net, IMAGES, TARGETS, MAPS[0], steps, max_batch=1)
    torch.testing.assert_close(narrow, together, **EXACT)
    for row in range(3):
        one = slice(row, row + 1)
        alone = curve(net, IMAGES[one], TARGETS[one], MAPS[0][one], steps)
        torch.testing.assert_close(alone.scores, together.scores[one], **EXACT)
        torch.testing.assert_close(alone.auc, together.auc[one], **EXACT)


@pytest.mark.parametrize("max_batch", [1, 5])
def test_no_forward_pass_exceeds_max_batch(net: nn.Module, max_batch: int) -> None:
    curves(Scorer(net, max_batch=max_batch), IMAGES, TARGETS, MAPS, steps="auto")
    assert max(net.batches) == max_batch


def test_nothing_else_changes(net: nn.Module) -> None:
    images, heatmaps, before = IMAGES.clone(), MAPS[0].clone(), copy.deepcopy(net.state_dict())
    random = torch.get_rng_state()
    found = insertion(net, images.requires_grad_(), TARGETS, heatmaps, "auto")
    assert torch.equal(images, IMAGES)
    assert torch.equal(heatmaps, MAPS[0])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in found)


def test_the_area_of_means_is_the_mean_of_areas(net: nn.Module) -> None:
    found = deletion(net, IMAGES, TARGETS, MAPS[0])
    mean = torch.trapezoid(found.scores.mean(0), found.fractions)
    assert mean.item() == pytest.approx(found.auc.mean().item(), abs=1e-12)


def test_a_variant_is_scored_as_it_runs() -> None:
    model, images, targets = _shapes(2)
    heatmaps = images.sum(1)
    with Rules(FORWARD.rules), torch.no_grad():
        changed = model(images).softmax(1)[torch.arange(2), targets]
    found = deletion(model, images, targets, heatmaps, 2, variant="forward")
    torch.testing.assert_close(found.scores[:, 0], changed, rtol=0, atol=1e-6)
    original = deletion(model, images, targets, heatmaps, 2)
    assert (original.scores - found.scores).abs().max() > 1e-3


def _shapes(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, preprocess = pl.load_model("shapes-resnet")
    source = open_images(f"shapes:{count}")
    images = torch.stack([preprocess(source[row].image) for row in range(count)])
    with torch.no_grad():
        return model, images, model(images).argmax(1)


@pytest.mark.slow
def test_automatic_steps_on_a_trained_network() -> None:
    """Within 0.01 of each area of 224 steps, in the mean within 0.001, from a fifth of the forward passes."""
    model, images, targets = _shapes(4)
    maps = pl.heatmap(pl.Gradient()(model, images, targets)["input"], channels="abs_sum")[None]
    scorer, full = Scorer(model), Scorer(model)
    found = curves(scorer, images, targets, maps, steps="auto", tolerance=0.001)
    wanted = curves(full, images, targets, maps, steps=224)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.fractions, other.fractions, rtol=0, atol=0)
        error = one.auc - other.auc
        assert error.abs().max() < 0.01
        assert error.mean().abs() < 0.001
    assert scorer.rows * 5 < full.rows


def test_a_larger_tolerance_takes_fewer_forward_passes() -> None:
    model, images, targets = _shapes(2)
    rows = []
    for tolerance in (0.05, 0.01, 0.003):
        scorer = Scorer(model)
        deletion(scorer, images, targets, images.sum(1), "auto", tolerance=tolerance)
        rows.append(scorer.rows)
    assert rows[0] == 2 * 14 + 2 + 1
    assert rows[0] < rows[1] < rows[2]
