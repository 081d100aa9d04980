"""Training: seeded, generic, leaving no trace; and what is written beside the weights."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import TensorDataset

from pellucid.data.shapes import SHAPE_NAMES, ShapesDataset
from pellucid.errors import InvalidParameter, OutputNotWritable
from pellucid.models.preprocess import Preprocess
from pellucid.models.train import accuracy, in_memory, random_symmetry, save_weights, train, train_shapes
from pellucid.models.zoo import load_model


def bright_or_dark(count):
    """Two classes that a linear net can tell apart: images above and below grey."""
    labels = torch.arange(count) % 2
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count)) * 0.4
    return TensorDataset(noise + 0.6 * labels[:, None, None, None], labels)


def small_net(seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def test_a_net_learns_and_comes_back_frozen():
    model = small_net()
    report = train(model, bright_or_dark(64), bright_or_dark(40), epochs=3, batch_size=16, learning_rate=1e-2)
    assert report.accuracy == report.accuracies[-1] == accuracy(model, bright_or_dark(40)) == 1.0
    assert len(report.accuracies) == report.epochs == 3
    assert report.images == 64
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state():
    weights = []
    for seed in (5, 5, 6):
        torch.rand(3)  # what happened before must not matter
        model = small_net()
        state = torch.get_rng_state()
        train(
            model,
            bright_or_dark(33),
            bright_or_dark(4),
            epochs=1,
            batch_size=16,
            seed=seed,
            augment=random_symmetry,
        )
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model[4].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_accuracy_is_the_share_of_right_answers():
    class FirstPixel(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.stack([1 - x[:, 0, 0, 0], x[:, 0, 0, 0]], 1) * self.scale

    images = torch.tensor([0.9, 0.8, 0.1, 0.2]).reshape(4, 1, 1, 1)
    state = torch.get_rng_state()
    assert accuracy(FirstPixel(), TensorDataset(images, torch.tensor([1, 0, 0, 0]))) == 0.75
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_counts_every_step():
    seen = []
    train(
        small_net(),
        bright_or_dark(32),
        bright_or_dark(4),
        epochs=2,
        batch_size=16,
        progress=lambda done, steps, loss: seen.append((done, steps, loss > 0)),
    )
    assert seen == [(1, 4, True), (2, 4, True), (3, 4, True), (4, 4, True)]


def test_images_are_normalised_on_the_way():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.seen = []

        def forward(self, x):
            self.seen.append(x.detach().clone())
            return self.linear(x.mean((2, 3)))

    model = Recorder()
    images = TensorDataset(torch.full((4, 3, 2, 2), 0.75), torch.zeros(4, dtype=torch.long))
    preprocess = Preprocess(None, None, (0.5, 0.25, 0.75), (0.25, 0.5, 1.0))
    train(model, images, images, epochs=1, batch_size=4, preprocess=preprocess)
    for batch in model.seen:  # the training step and the validation
        assert torch.equal(batch[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_a_symmetry_moves_pixels_and_changes_none():
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        moved = [random_symmetry(images) for _ in range(100)]
    assert len({tuple(result.flatten().tolist()) for result in moved}) == 8
    assert all(torch.equal(result.flatten(2).sort().values, images.flatten(2)) for result in moved)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidParameter, match=next(iter(settings))):
        train(small_net(), bright_or_dark(8), bright_or_dark(4), **settings)


def test_a_diverging_loss_is_an_error_not_a_result():
    images = TensorDataset(torch.full((4, 3, 8, 8), float("nan")), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InvalidParameter, match="loss is nan at step 1 of 1"):
        train(small_net(), images, images, epochs=1, batch_size=4)


def test_in_memory_holds_what_the_set_draws():
    shapes = ShapesDataset(5, size=16)
    state = torch.get_rng_state()
    images, labels = in_memory(shapes).tensors
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images[4], shapes[4][0])
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_trained_shapes_can_be_loaded_with_their_facts(tmp_path):
    path = tmp_path / "net.safetensors"
    report = train_shapes(ShapesDataset(16, size=16, seed=1), ShapesDataset(8, size=16, seed=2), path, epochs=1)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["classes"] == list(SHAPE_NAMES)
    assert facts["accuracy"] == report.accuracy
    assert facts["training"]["seed"] == 0
    assert facts["training"]["images"] == 16
    assert facts["validation_set"] == "ShapesDataset(count=8, size=16, seed=2)"
    assert torch.__version__.startswith(facts["versions"]["torch"])
    loaded = load_model("shapes-resnet", weights=path)
    assert loaded.classes == SHAPE_NAMES
    assert loaded.preprocess == load_model("shapes-resnet").preprocess
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_saved_weights_are_the_model_s(tmp_path):
    model = small_net()
    save_weights(model, tmp_path / "a.safetensors", {})
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_that_cannot_be_written_say_where(tmp_path):
    with pytest.raises(OutputNotWritable, match=r"missing/a.safetensors"):
        save_weights(small_net(), tmp_path / "missing" / "a.safetensors", {})
    with pytest.raises(InvalidParameter, match="safetensors"):
        save_weights(small_net(), tmp_path / "a.pth", {})
