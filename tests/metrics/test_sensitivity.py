"""Class sensitivity on linear models whose maps, attacks and similarities are known by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidModel, InvalidParameter, InvalidTarget
from pellucid.metrics.base import Case
from pellucid.metrics.scoring import Scorer
from pellucid.metrics.sensitivity import AdversarialChange, ClassChange, cosine, fgsm
from tests.networks import images as random_images
from tests.networks import plain

# Class k's logit is the sum of row k times the four pixels; its map, under the gradient, is row k.
ROWS = torch.tensor(
    [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0], [-0.1, -0.1, -0.1, -0.5]],
    dtype=torch.float64,
)


def linear(rows: Tensor = ROWS) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(rows.shape[1], len(rows), bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(rows)
    return model


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float64).view(1, 1, 2, 2)


def case(model: nn.Module, images: Tensor, targets="auto", layers="input", method=None, **settings) -> Case:
    method = method or pl.Gradient()
    attributions = method(model, images, targets, layers)
    return Case(method, model, images, attributions, Scorer(model), attributions.targets, **settings)


def value(metric, one: Case) -> float:
    (found,) = metric.measure(one)["input"].values.tolist()
    return found


X = image(0.0, 0.0, 0.1, 1.0)  # logits 4.3, 1.2, 3.4, -0.51: order 0, 2, 1, 3


def test_class_change_by_hand() -> None:
    """Class 2 swaps two neighbouring ranks of class 0: Spearman 1 - 6 * 2 / (4 * 15) = 0.8; class 1 reverses."""
    one = case(linear(), X)
    assert value(ClassChange(), one) == pytest.approx(0.2, rel=1e-12)
    assert value(ClassChange(other=1), one) == pytest.approx(2, rel=1e-12)
    assert value(ClassChange(other=2), one) == pytest.approx(0.2, rel=1e-12)
    assert value(ClassChange(similarity="cosine"), one) == pytest.approx(1 - 29 / 30, rel=1e-12)
    assert value(ClassChange(other=1, similarity="cosine"), one) == pytest.approx(1 - 20 / 30, rel=1e-12)


def test_the_second_class_is_the_highest_but_the_explained() -> None:
    """If class 2, the second, is explained, the other is class 0, the first."""
    model = linear()
    assert ClassChange().others(case(model, X)).tolist() == [2]
    assert ClassChange().others(case(model, X, 2)).tolist() == [0]
    assert ClassChange(other="least").others(case(model, X)).tolist() == [3]
    assert ClassChange(other="least").others(case(model, X, 3)).tolist() == [1]


def test_what_explains_no_class_has_no_other_one() -> None:
    """Else the maps of a difference would be compared with those of the classes 0 and another."""
    one = case(linear(), X, "2 - 1")
    with pytest.raises(InvalidTarget, match="explain '2 - 1', which is no class"):
        ClassChange().measure(one)
    with pytest.raises(InvalidTarget, match="no class of the model"):
        pl.metric("cascade_ssim").measure(one)


def test_random_classes_are_others_depend_on_the_seed_alone_and_are_reproducible() -> None:
    model = linear()
    images = X.expand(4, 1, 2, 2)
    chosen = {
        seed: ClassChange(other="random").others(case(model, images, [0, 1, 2, 3], seed=seed)).tolist()
        for seed in range(20)
    }
    for classes in chosen.values():
        assert all(other != target for target, other in enumerate(classes))
        steps = {(other - target) % 4 for target, other in enumerate(classes)}
        assert len(steps) == 1
    assert {classes[0] for classes in chosen.values()} == {1, 2, 3}
    again = ClassChange(other="random").others(case(model, images, [0, 1, 2, 3], seed=5)).tolist()
    assert again == chosen[5]


@pytest.mark.filterwarnings("ignore::pellucid.EmptyMapWarning")
def test_maps_without_a_change_to_measure_are_nan() -> None:
    one = case(linear(torch.cat([ROWS[:3], torch.zeros(1, 4, dtype=torch.float64)])), X)
    assert math.isnan(value(ClassChange(other=0), one))  # the explained class itself
    assert math.isnan(value(ClassChange(other=3), one))  # a map of zeros
    assert math.isnan(value(ClassChange(other=3, similarity="cosine"), one))
    assert ClassChange.undefined
    assert AdversarialChange.undefined


def test_a_map_blind_to_the_class_does_not_change() -> None:
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    model = plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    blind = case(model, images, method=pl.method("edges"))
    assert ClassChange().measure(blind)["input"].values.tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_cosine_of_maps_whose_squares_underflow() -> None:
    a, b = torch.tensor([[[3.0, 4.0]]]) * 1e-30, torch.tensor([[[4.0, 3.0]]]) * 1e-30
    assert cosine(a, b).item() == pytest.approx(24 / 25, rel=1e-6)
    assert cosine(a, -a).item() == pytest.approx(-1, rel=1e-6)
    assert cosine(a, 0 * b).isnan().item()


def test_fgsm_by_hand() -> None:
    """The loss's gradient of class 0 is sum_k p_k w_k - w_0: its sign, pixel by pixel."""
    model = linear()
    logits = (ROWS * X.flatten()).sum(1)
    gradient = logits.softmax(0) @ ROWS - ROWS[0]
    found = fgsm(model, X, torch.tensor([0]), 0.25)
    torch.testing.assert_close(found, X + 0.25 * gradient.sign().view_as(X), rtol=1e-15, atol=0)


def test_fgsm_raises_the_loss_of_each_image_whatever_the_batch() -> None:
    model = plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model.requires_grad_(True)
    images, classes = random_images(5, 8), torch.tensor([0, 1, 2, 0, 1])
    epsilon = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3, 5e-3], dtype=torch.float64)
    attacked = fgsm(model, images, classes, epsilon, max_batch=2)
    for i in range(5):
        alone = images[i : i + 1].clone().requires_grad_()
        F.cross_entropy(model(alone), classes[i : i + 1]).backward()
        expected = alone.detach() + epsilon[i] * alone.grad.sign()
        torch.testing.assert_close(attacked[i : i + 1], expected, rtol=1e-14, atol=0)
    model.zero_grad()
    with torch.no_grad():
        before = F.cross_entropy(model(images), classes, reduction="none")
        after = F.cross_entropy(model(attacked), classes, reduction="none")
    assert bool((after > before).all())
    with torch.inference_mode():
        torch.testing.assert_close(fgsm(model, images, classes, epsilon), attacked, rtol=1e-15, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


# Two classes whose difference is the first pixel minus the second: an attack moves both against it.
DUEL = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.5, 0.2]], dtype=torch.float64)


def test_adversarial_change_by_hand() -> None:
    """The first pixel leads by 0.04, and the attack takes 2 epsilon of it: it flips above 0.02, not below."""
    one = case(linear(DUEL), image(0.54, 0.5, 1.0, 0.0))
    cosine_ = 1 - 0.25 / math.sqrt(1.25 * 1.29)
    for settings in ({"relative": False}, {}, {"relative": False, "bounds": (0.0, 1.0)}):
        metric = AdversarialChange(epsilon=0.021, similarity="cosine", **settings)
        assert value(metric, one) == pytest.approx(cosine_, rel=1e-12)
        assert math.isnan(value(AdversarialChange(epsilon=0.015, similarity="cosine", **settings), one))
    # Ranks of (1, 0, 0.5, 0) are (3, 0.5, 2, 0.5), of (0, 1, 0.5, 0.2) (0, 3, 2, 1).
    a, b = [1.5, -1, 0.5, -1], [-1.5, 1.5, 0.5, -0.5]
    spearman = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(4.5 * 5)
    assert value(AdversarialChange(epsilon=0.021), one) == pytest.approx(1 - spearman, rel=1e-12)


def test_epsilon_is_relative_to_each_images_own_range() -> None:
    """Ten times the image, ten times the lead: a relative attack flips both or none, an absolute one the first."""
    x = image(0.54, 0.5, 1.0, 0.0)
    both = case(linear(DUEL), torch.cat([x, 10 * x]))

    def flipped(**settings) -> list[bool]:
        return (~AdversarialChange(**settings).measure(both)["input"].values.isnan()).tolist()

    assert flipped(epsilon=0.024) == [True, True]
    assert flipped(epsilon=0.015) == [False, False]
    assert flipped(epsilon=0.024, relative=False) == [True, False]


def test_attacked_pixels_are_clipped() -> None:
    """Lead 0.54 - 0.3 - 0.2; the last pixel stands at the maximum, and only beyond it does the class flip."""
    one = case(linear(DUEL), image(0.54, 0.3, 0.0, 1.0))
    for epsilon, bounds, flips in (
        (0.019, (0.0, 2.0), True),  # 0.04 - 2.2 epsilon < 0
        (0.019, None, False),  # 0.04 - 2 epsilon > 0
        (0.019, (0.0, 1.0), False),
        (0.021, None, True),
    ):
        metric = AdversarialChange(epsilon=epsilon, relative=False, bounds=bounds)
        assert math.isnan(value(metric, one)) is not flips


def test_each_image_is_explained_for_its_own_predicted_class() -> None:
    """Whatever class the case explains, before and after are the predicted ones."""
    x = image(0.54, 0.5, 1.0, 0.0)
    for target in (0, 1):
        one = case(linear(DUEL), x, target)
        found = value(AdversarialChange(epsilon=0.021, similarity="cosine"), one)
        assert found == pytest.approx(1 - 0.25 / math.sqrt(1.25 * 1.29), rel=1e-12)


def test_agrees_with_a_loop_over_images_at_every_layer() -> None:
    model = plain(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    images, layers = random_images(6, 8), ["input", "0", "2"]
    several = case(model, images, layers=layers, max_batch=4)
    metric = AdversarialChange(epsilon=0.02, similarity="cosine")
    found, second = metric.measure(several), ClassChange(similarity="cosine").measure(several)
    flips = 0
    for i in range(6):
        x = images[i : i + 1].clone().requires_grad_()
        logits = model(x)
        order = logits[0].detach().argsort(descending=True)
        F.cross_entropy(logits, order[:1]).backward()
        low, high = float(images[i].min()), float(images[i].max())
        attacked = (images[i : i + 1] + 0.02 * (high - low) * x.grad.sign()).clamp(low, high)
        after = model(attacked).argmax(1)
        flips += int(after[0] != order[0])
        for layer in layers:

            def map_of(picture: Tensor, target: Tensor, layer: str = layer) -> Tensor:
                return several.heatmap(pl.Gradient()(model, picture, target, [layer])[layer]).flatten()

            before = map_of(images[i : i + 1], order[:1])
            other = F.cosine_similarity(before, map_of(images[i : i + 1], order[1:2]), 0)
            assert float(second[layer].values[i]) == pytest.approx(1 - float(other), abs=1e-12)
            if after[0] == order[0]:
                assert found[layer].values[i].isnan()
            else:
                changed = F.cosine_similarity(before, map_of(attacked, after), 0)
                assert float(found[layer].values[i]) == pytest.approx(1 - float(changed), abs=1e-12)
    assert 0 < flips < 6


def test_explanations_are_shared() -> None:
    class Counted(pl.Gradient):
        calls = 0

        def leaf(self, *given):
            Counted.calls += 1
            return pl.Gradient.leaf(self, *given)

    one = case(linear(DUEL), image(0.54, 0.5, 1.0, 0.0), method=Counted())
    for metric in (
        AdversarialChange(epsilon=0.021),
        AdversarialChange(epsilon=0.021, similarity="cosine"),
        ClassChange(),
        ClassChange(similarity="cosine"),
    ):
        metric.measure(one)
    assert Counted.calls == 3  # the case's own, the attacked image, the second class


def test_bad_settings_are_refused() -> None:
    for settings in ({"epsilon": 0}, {"epsilon": float("nan")}, {"bounds": (1, 0)}, {"similarity": "ssim"}):
        with pytest.raises(InvalidParameter):
            AdversarialChange(**settings)
    for other in ("first", -1, True, 1.5):
        with pytest.raises(InvalidParameter, match="other="):
            ClassChange(other=other)
    with pytest.raises(InvalidTarget, match="target 9 is out of range"):
        ClassChange(other=9).measure(case(linear(), X))
    with pytest.raises(InvalidModel, match="one class"):
        ClassChange().measure(case(linear(ROWS[:1]), X))
    with pytest.raises(InvalidModel, match="one class, which no attack can change"):
        AdversarialChange().measure(case(linear(ROWS[:1]), X))
