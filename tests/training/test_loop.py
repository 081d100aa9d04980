"""Training: seeded, generic, leaving no trace; and what is written beside the weights."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from pellucid.data.labeled import LabeledImages, load_images
from pellucid.data.shapes import SHAPE_NAMES, ShapesDataset
from pellucid.data.sources import open_images
from pellucid.errors import InvalidData, InvalidParameter, OutputNotWritable
from pellucid.models.preprocess import Preprocess
from pellucid.models.small import PAPER_MODELS
from pellucid.models.zoo import load_model
from pellucid.training.batches import preprocess_of
from pellucid.training.checkpoints import Checkpoint, Checkpoints, remove_checkpoints
from pellucid.training.classifiers import accuracy, save_weights, train
from pellucid.training.from_source import train_network
from pellucid.training.hyperparameters import (
    AUGMENTATIONS,
    HYPERPARAMETERS,
    LARGE,
    Hyperparameters,
    hyperparameters_of,
    random_symmetry,
)


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
    recipe = Hyperparameters(epochs=3, batch_size=16, learning_rate=1e-2)
    report = train(model, bright_or_dark(64), bright_or_dark(40), recipe)
    assert report.accuracy == report.accuracies[-1] == accuracy(model, bright_or_dark(40)) == 1.0
    assert len(report.accuracies) == report.recipe.epochs == 3
    assert report.images == 64
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state():
    weights = []
    for seed in (5, 5, 6):
        torch.rand(3)  # what happened before must not matter
        model = small_net()
        state = torch.get_rng_state()
        recipe = Hyperparameters(epochs=1, batch_size=16, augmentation="symmetry")
        train(model, bright_or_dark(33), bright_or_dark(4), recipe, seed)
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
    recipe = Hyperparameters(epochs=2, batch_size=16)
    train(
        small_net(),
        bright_or_dark(32),
        bright_or_dark(4),
        recipe,
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
    train(model, images, images, Hyperparameters(epochs=1, batch_size=4), preprocess=preprocess)
    assert len(model.seen) == 3
    for batch in model.seen:  # the look at the outputs, the training step and the validation
        assert torch.equal(batch[0, :, 0, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_a_symmetry_moves_pixels_and_changes_none():
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    draw = torch.Generator().manual_seed(0)
    moved = [random_symmetry(images, draw) for _ in range(100)]
    assert len({tuple(result.flatten().tolist()) for result in moved}) == 8
    assert all(torch.equal(result.flatten(2).sort().values, images.flatten(2)) for result in moved)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"validation": 1.0},
        {"optimizer": "lbfgs"},
        {"schedule": "cosine"},
        {"keep": "first"},
        {"augmentation": "mixup"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidParameter, match=next(iter(settings))):
        Hyperparameters(**settings)


def test_a_diverging_loss_is_an_error_not_a_result():
    images = TensorDataset(torch.full((4, 3, 8, 8), float("nan")), torch.zeros(4, dtype=torch.long))
    with pytest.raises(InvalidParameter, match="loss is nan at step 1 of 1"):
        train(small_net(), images, images, Hyperparameters(epochs=1, batch_size=4))


def test_trained_shapes_can_be_loaded_with_their_facts(tmp_path):
    path = tmp_path / "net.safetensors"
    sets = ShapesDataset(16, size=16, seed=1), ShapesDataset(8, size=16, seed=2)
    report = train_network("shapes-resnet", sets[0], path, sets[1], recipe=Hyperparameters(epochs=1))
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


# The recipes.


def test_every_paper_s_network_has_a_recipe_that_names_its_source():
    assert HYPERPARAMETERS.keys() == PAPER_MODELS.keys()
    assert all(recipe.source for recipe in (*HYPERPARAMETERS.values(), LARGE))
    assert hyperparameters_of("resnet34") is hyperparameters_of("resnet50") is LARGE


def test_the_papers_settings():
    sanity, cifar = HYPERPARAMETERS["sanity-cnn"], HYPERPARAMETERS["cifar-cnn"]
    assert (sanity.optimizer, sanity.learning_rate, sanity.batch_size, sanity.epochs) == ("adam", 1e-4, 50, 50)
    assert (round(60_000 * sanity.validation), sanity.keep, sanity.weight_decay) == (5000, "best", 0)
    assert (cifar.optimizer, cifar.learning_rate, cifar.batch_size, cifar.epochs) == ("adam", 1e-3, 100, 20)
    assert (cifar.shuffle, cifar.augmentation, cifar.schedule, cifar.keep) == (False, "none", "constant", "last")
    preprocess = PAPER_MODELS["cifar-cnn"].preprocess
    values = torch.arange(256).float().view(1, 1, 1, 256).expand(1, 3, 1, 256)
    assert torch.allclose(preprocess.normalize(values / 255), values / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_keeps_the_shape_and_follows_its_generator(name):
    images = torch.rand(6, 3, 16, 16)
    first, again = (AUGMENTATIONS[name](images, torch.Generator().manual_seed(3)) for _ in range(2))
    state = torch.get_rng_state()
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert torch.equal(first, images) == (name == "none")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_shifts_and_mirrors_each_image_for_itself():
    height, width = 16, 8
    images = 1 + torch.arange(40.0 * height * width).view(40, 1, height, width)
    found = AUGMENTATIONS["crop_flip"](images, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images[:, 0], found[:, 0], strict=True):
        padded = torch.nn.functional.pad(before, [2] * 4)
        crops = {
            (y, x, m): padded[y : y + height, x : x + width] for y in range(5) for x in range(5) for m in (0, 1)
        }
        which = [key for key, crop in crops.items() if torch.equal(crop.flip(1) if key[2] else crop, after)]
        assert len(which) == 1
        seen |= set(which)
    assert len(seen) > 20


# What is refused.


def labeled(labels, classes=(), size=8):
    pixels = torch.zeros(len(labels), 3, size, size, dtype=torch.uint8)
    return LabeledImages.of(pixels, torch.tensor(labels), classes)


@pytest.mark.parametrize(
    ("train_labels", "classes", "message"),
    [
        ([0, 1, 2, 1], (), "label 2 is out of range: the network's 2 outputs"),
        ([0, 1, -1, 1], (), "label -1 is out of range"),
        (
            [0, 1, 0, 1],
            ("a", "b", "c"),
            r"3 classes \(a, b, c\) and the network 2 outputs; build it with classes=3",
        ),
        ([0], (), "training set of 1 images"),
    ],
)
def test_labels_that_do_not_fit_the_network(train_labels, classes, message):
    with pytest.raises(InvalidData, match=message):
        train(
            small_net(), labeled(train_labels, classes), labeled([0, 1]), Hyperparameters(epochs=1, batch_size=4)
        )


def test_labels_of_any_data_set_are_checked_as_they_come():
    images = TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 5, 1]))
    with pytest.raises(InvalidData, match="label 5 is out of range"):
        train(small_net(), images, bright_or_dark(4), Hyperparameters(epochs=1, batch_size=4))


def test_validation_labels_are_checked_before_the_first_step():
    seen = []
    with pytest.raises(InvalidData, match="label 3"):
        train(
            small_net(),
            labeled([0, 1]),
            labeled([0, 3]),
            Hyperparameters(epochs=1),
            progress=lambda *step: seen.append(step),
        )
    assert seen == []


def test_an_empty_class_is_said():
    report = train(small_net(), labeled([1, 1, 1, 1]), labeled([0, 1]), Hyperparameters(epochs=1, batch_size=4))
    assert report.empty == (0,)


def test_sorted_images_are_refused_where_they_are_not_shuffled():
    recipe = Hyperparameters(epochs=1, batch_size=2, shuffle=False)
    with pytest.raises(InvalidData, match="sorted by class"):
        train(small_net(), labeled([0, 0, 1, 1]), labeled([0, 1]), recipe)
    train(small_net(), labeled([0, 1, 0, 1]), labeled([0, 0, 1, 1]), recipe)


def test_images_that_the_network_cannot_take():
    with pytest.raises(InvalidData, match=r"cannot take images \(3, 9, 9\)"):
        train(small_net(), labeled([0, 1], size=9), labeled([0, 1], size=9), Hyperparameters(epochs=1))


def test_the_best_weights_need_every_epoch_scored():
    with pytest.raises(InvalidParameter, match="score_each_epoch"):
        train(small_net(), labeled([0, 1]), labeled([0, 1]), Hyperparameters(keep="best"), score_each_epoch=False)


# Decoding once.


def folder_of_images(folder, names=("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"), size=(10, 10)):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), 10 * number, dtype=np.uint8)).save(path)
    return folder


def same(image):
    return image


@pytest.mark.parametrize("memory", [1 << 20, 1])
def test_images_are_decoded_once_in_memory_or_on_disk(tmp_path, memory):
    folder = folder_of_images(tmp_path / "data")
    images = load_images(open_images(folder), same, "here", memory=memory, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (len(images), images.classes, images.labels.tolist()) == (4, ("cat", "dog"), [0, 0, 1, 1])
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert images.pixels.shape == (4, 3, 10, 10)
    assert repr(images) == "4 images of here"
    few = load_images(open_images(folder), same, positions=[3, 0], memory=memory)
    assert few.pixels[:, 0, 0, 0].tolist() == [30, 0]
    assert (images[2][0].unique().tolist(), images[2][1]) == ([20], 1)


def test_a_corrupt_image_in_the_middle_is_left_out_and_named(tmp_path):
    folder = folder_of_images(tmp_path)
    (folder / "cat" / "1.png").write_bytes((folder / "cat" / "1.png").read_bytes()[:40])
    images = load_images(open_images(folder), same)
    assert images.labels.tolist() == [0, 1, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 20, 30]
    [message] = images.skipped
    assert "cat/1.png" in message


def test_images_that_cannot_be_learnt_from(tmp_path):
    with pytest.raises(InvalidData, match=r"a.png has no label"):
        load_images(open_images(folder_of_images(tmp_path / "a", ("a.png",))), same)
    mixed = folder_of_images(folder_of_images(tmp_path / "b"), ("dog/2.png",), (9, 9))
    with pytest.raises(InvalidData, match=r"dog/2.png is \(3, 9, 9\) beside"):
        load_images(open_images(mixed), same)
    (tmp_path / "c" / "cat").mkdir(parents=True)
    (tmp_path / "c" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(InvalidData, match="none of the 1 images can be read"):
        load_images(open_images(tmp_path / "c"), same)
    with pytest.raises(InvalidData, match="give bytes"):
        LabeledImages.of(torch.rand(2, 3, 4, 4), torch.zeros(2))


def test_a_split_has_every_image_once_and_follows_the_seed():
    images = labeled(list(range(12)))
    train_set, held_out = images.split(0.25, seed=3)
    assert (len(train_set), len(held_out)) == (9, 3)
    assert sorted([*train_set.labels.tolist(), *held_out.labels.tolist()]) == list(range(12))
    assert images.split(0.25, seed=3)[1].labels.tolist() == held_out.labels.tolist()
    assert images.split(0.25, seed=4)[1].labels.tolist() != held_out.labels.tolist()
    assert train_set.pixels.data_ptr() == images.pixels.data_ptr()
    for share in (0.01, 0.99):
        with pytest.raises(InvalidParameter, match="without images"):
            images.split(share)


# Checkpoints.


def test_what_a_training_did_not_write_stays_when_its_checkpoints_go(tmp_path):
    own, mine = tmp_path / "weights.checkpoint", tmp_path / "other.checkpoint" / "mine.txt"
    for folder in (own, mine.parent):
        for part in ("", "network-001"):
            Checkpoints(folder / part, {}).write(1, Checkpoint({"x": torch.zeros(1)}, {}))
    (own / ".epoch-00002.safetensors.0123456789abcdef").write_bytes(b"a draft")
    mine.write_text("the user's own")
    for folder in (own, mine.parent, tmp_path / "none.checkpoint"):
        remove_checkpoints(folder)
    assert not own.exists()
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_files_compose_of_one_mean_is_trained_with_its_networks_channels(tmp_path, channels):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision import transforms as T\n"
        "preprocess = T.Compose([T.ToTensor(), T.Normalize([0.5], [0.25])])\n"
        f"def net():\n    return nn.Sequential(nn.Conv2d({channels}, 2, 3), nn.Flatten(), nn.Linear(8, 2))\n"
    )
    expected = Preprocess(None, None, (0.5,) * channels, (0.25,) * channels, channels)
    assert preprocess_of(f"{tmp_path}/net.py:net") == expected
