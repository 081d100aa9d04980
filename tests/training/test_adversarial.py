"""Adversarial training: the attack by closed forms of linear networks, and what training with it keeps."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pellucid.errors import InvalidParameter
from pellucid.models.preprocess import Preprocess
from pellucid.training.adversarial import attacked, robust_accuracy
from pellucid.training.classifiers import train
from pellucid.training.ensemble import train_ensemble
from pellucid.training.hyperparameters import Hyperparameters

PLAIN = Preprocess(4, 4, (0.0,), (1.0,), 1)
RECIPE = Hyperparameters(
    epochs=2, batch_size=8, learning_rate=1e-2, precision="full", adversarial=0.1, attack_steps=3
)


def linear(weight):
    """A network of two logits, 0 and sum(weight * x)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2)).double().eval()
    model[1].weight.data = torch.stack([torch.zeros_like(weight), weight])
    nn.init.zeros_(model[1].bias)
    return model


def images(count=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, generator=draw, dtype=torch.float64), torch.arange(count) % 2


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_against_a_linear_network_each_pixel_goes_to_the_end_of_its_box(steps):
    weight = torch.randn(16, dtype=torch.float64)
    model, (x, labels) = linear(weight), images()

    def loss(pixels):
        return F.cross_entropy(model(pixels), labels, reduction="sum")

    moved = attacked(x, loss, 0.08, steps, torch.rand_like(x))
    away = (1 - 2 * labels.double())[:, None, None, None] * weight.sign().view(1, 1, 4, 4)
    torch.testing.assert_close(moved, (x + 0.08 * away).clamp(0, 1), rtol=0, atol=1e-12)


def test_no_pixel_leaves_its_box_or_the_range_and_the_loss_grows():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)).double().eval()
    x, labels = images()

    def loss(pixels):
        return F.cross_entropy(model(pixels), labels, reduction="sum")

    moved = attacked(x, loss, 0.2, 5, torch.rand_like(x))
    assert (moved - x).abs().max() <= 0.2 + 1e-12
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert loss(moved) > loss(x)


def test_robust_accuracy_of_a_linear_network_is_the_share_with_a_margin():
    """Where nothing is cut off, an image stays right if its margin exceeds epsilon times the sum of |weight|."""
    weight = torch.randn(16, dtype=torch.float64)
    weight -= weight.mean()  # so that images lie on both sides
    x, labels = images(200)
    x = 0.3 + 0.4 * x
    signed = (2 * labels - 1) * (x.flatten(1) @ weight)
    expected = (signed > 0.02 * weight.abs().sum()).double().mean().item()
    found = robust_accuracy(linear(weight), TensorDataset(x, labels), PLAIN, 0.02)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found < (signed > 0).double().mean()
    some = robust_accuracy(linear(weight), TensorDataset(x, labels), PLAIN, 0.02, count=50)
    assert some == pytest.approx((signed[:50] > 0.02 * weight.abs().sum()).double().mean().item(), abs=1e-12)


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
        )  # fmt: skip


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_training_learns_from_the_moved_images_and_repeats():
    x, labels = images()
    found = []
    for recipe in (RECIPE, RECIPE, replace(RECIPE, adversarial=0.0)):
        model, data = network(0), TensorDataset(x.float(), labels)
        train(model, data, data, recipe, preprocess=PLAIN)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_one_step_by_hand():
    """The first step of stochastic gradient descent is taken on the images that the attack finds."""
    x, labels = images(8)
    recipe = replace(RECIPE, epochs=1, optimizer="sgd", schedule="constant", shuffle=False, weight_decay=0.0)
    trained, by_hand = network(1), network(1)
    data = TensorDataset(x.float(), labels)
    train(trained, data, data, recipe, seed=3, preprocess=PLAIN)

    from pellucid.seeds import fold_in

    start = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(fold_in(3, 0)))
    by_hand.eval()
    moved = attacked(
        x.float(), lambda pixels: F.cross_entropy(by_hand(pixels), labels, reduction="sum"), 0.1, 3, start
    )
    by_hand.train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 1e-2, momentum=0.9, nesterov=True)
    F.cross_entropy(by_hand(moved), labels).backward()
    optimizer.step()
    torch.testing.assert_close(weights(trained), weights(by_hand), rtol=1e-5, atol=1e-6)


def test_networks_trained_as_one_learn_as_if_alone():
    sets = [TensorDataset(images(seed=seed)[0], images()[1]) for seed in (0, 1)]
    found = []
    for way in ("one_by_one", "stacked"):
        models = [network(seed).double() for seed in (0, 1)]
        train_ensemble(models, sets, sets, RECIPE, (5, 6), PLAIN, way=way)
        found.append(torch.stack([weights(model) for model in models]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_bad_settings_are_refused():
    with pytest.raises(InvalidParameter, match="adversarial=8"):
        Hyperparameters(adversarial=8)
    with pytest.raises(InvalidParameter, match="attack_steps=0"):
        Hyperparameters(attack_steps=0)
    data = TensorDataset(*images())
    with pytest.raises(InvalidParameter, match="give a preprocess"):
        train(network(0).double(), data, data, RECIPE)
    with pytest.raises(InvalidParameter, match="epsilon=0"):
        robust_accuracy(network(0).double(), data, PLAIN, 0)
