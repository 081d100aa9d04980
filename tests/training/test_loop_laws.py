"""Training: what a naive loop does, taken up where it was ended, together as alone, and on real images."""

import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.data.labeled import LabeledImages, load_images
from pellucid.data.sources import open_images
from pellucid.errors import DamagedFileWarning, InvalidData, InvalidParameter, InvalidWeights
from pellucid.models.preprocess import Preprocess
from pellucid.models.small import PAPER_MODELS
from pellucid.models.zoo import load_model
from pellucid.seeds import fold_in
from pellucid.training.classifiers import ClassifierLearner, accuracy, train
from pellucid.training.degradation import Degradation, DegradedImages, random_ranks
from pellucid.training.ensemble import fastest, train_ensemble
from pellucid.training.from_source import NetworkSettings, train_classifier, train_network
from pellucid.training.hyperparameters import AUGMENTATIONS, HYPERPARAMETERS, Hyperparameters, one_cycle
from pellucid.training.networks import Stacked

HALF = Preprocess(None, None, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
QUICK = Hyperparameters(epochs=3, batch_size=4, learning_rate=1e-2)


def images_of(count=22, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    labels[:3] = torch.tensor([2, 0, 1])
    pixels = torch.randint(128, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return LabeledImages.of(pixels + 40 * labels[:, None, None, None].byte(), labels)


def net(seed=0, norm=True, dropout=0.0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            # Before a norm a bias has no gradient but rounding errors, which Adam would blow up.
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=not norm),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(24, 3),
        ).double()


def states(models):
    return [{name: value.clone() for name, value in model.state_dict().items()} for model in models]


def equal(one, other, within=0.0):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=0, atol=within), name


def masks_of(count=14, seed=0):
    """Bright squares on dark ground, and where they are."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 8, 8, dtype=torch.long)
    for mask, corner in zip(labels, torch.randint(5, (count, 2), generator=draw).tolist(), strict=True):
        mask[corner[0] : corner[0] + 4, corner[1] : corner[1] + 3] = 1
    pixels = torch.randint(128, (count, 3, 8, 8), dtype=torch.uint8, generator=draw)
    return LabeledImages.of(pixels + 100 * labels[:, None].byte(), labels)


def dense_net(seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
        ).double()


# The loop.


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (
            replace(QUICK, optimizer="adam", schedule="constant", weight_decay=0.0),
            lambda model: torch.optim.Adam(model.parameters(), 1e-2),
        ),
        (
            replace(QUICK, optimizer="adamw", schedule="constant", weight_decay=0.1),
            lambda model: torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1),
        ),
        (
            replace(QUICK, optimizer="sgd", schedule="constant", weight_decay=1e-2, shuffle=False),
            lambda model: torch.optim.SGD(model.parameters(), 1e-2, 0.9, weight_decay=1e-2, nesterov=True),
        ),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_the_weights_are_those_of_a_loop_written_by_hand(recipe, make):
    images, trained, by_hand = images_of(), net(), net().train()
    train(trained, images, images_of(seed=1), recipe, seed=7, preprocess=HALF)
    optimizer = make(by_hand)
    for epoch in range(3):
        order = torch.randperm(22, generator=torch.Generator().manual_seed(fold_in(7, epoch)))
        order = order if recipe.shuffle else torch.arange(22)
        for start in range(0, 22, 4):
            rows = order[start : start + 4]
            pixels = (images.pixels[rows].double() / 255 - 0.5) / 0.25
            optimizer.zero_grad()
            F.cross_entropy(by_hand(pixels), images.labels[rows]).backward()
            optimizer.step()
    equal(trained.state_dict(), by_hand.state_dict(), within=1e-12)


@pytest.mark.parametrize("augmentation", ["none", "symmetry", "crop_flip"])
def test_labels_of_pixels_are_learnt_and_move_as_the_pixels_do(augmentation):
    recipe = replace(QUICK, optimizer="adam", schedule="constant", weight_decay=0.0, augmentation=augmentation)
    images, held_out, trained, by_hand = masks_of(), masks_of(seed=1), dense_net(), dense_net().train()
    report = train(trained, images, held_out, recipe, seed=7, preprocess=HALF)
    optimizer = torch.optim.Adam(by_hand.parameters(), 1e-2)
    for epoch in range(3):
        draw = torch.Generator().manual_seed(fold_in(7, epoch))
        order = torch.randperm(14, generator=draw)
        for start in range(0, 14, 4):
            rows, state = order[start : start + 4], draw.get_state()
            pixels = AUGMENTATIONS[augmentation](images.pixels[rows].double() / 255, draw)
            masks = AUGMENTATIONS[augmentation](
                images.labels[rows][:, None].double(), torch.Generator().set_state(state)
            )[:, 0].long()
            loss, logits = 0.0, by_hand((pixels - 0.5) / 0.25)
            for row, column in itertools.product(range(8), range(8)):
                loss = loss + F.cross_entropy(logits[:, :, row, column], masks[:, row, column]) / 64
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    equal(trained.state_dict(), by_hand.state_dict(), within=1e-12)
    by_hand.eval()
    right = by_hand((held_out.pixels.double() / 255 - 0.5) / 0.25).argmax(1) == held_out.labels
    assert report.accuracy == accuracy(trained, held_out, HALF) == right.double().mean().item()
    items = [(pixels / 255, mask) for pixels, mask in images]  # any data set of such pairs
    again = dense_net()
    train(again, items, held_out, recipe, seed=7, preprocess=HALF)
    equal(again.state_dict(), trained.state_dict(), within=1e-6)


def test_a_training_on_labels_of_pixels_is_taken_up_where_it_was_ended(tmp_path):
    recipe, sets = replace(QUICK, augmentation="symmetry"), (masks_of(), masks_of(seed=1))
    undisturbed, ended, resumed = dense_net(), dense_net(), dense_net()
    train(undisturbed, *sets, recipe)
    with pytest.raises(Ended):
        train(ended, *sets, recipe, checkpoint=tmp_path, progress=end_at(6))
    train(resumed, *sets, recipe, checkpoint=tmp_path)
    equal(resumed.state_dict(), undisturbed.state_dict())


def test_labels_that_do_not_fit_a_networks_places_are_refused():
    with pytest.raises(InvalidData, match="label 1 is out of range: the network's 1 outputs"):
        train(nn.Conv2d(3, 1, 1), masks_of(), masks_of(), QUICK)
    with pytest.raises(InvalidData, match=r"logits \(2, 2, 4, 4\) for labels \(2, 8, 8\)"):
        train(nn.Conv2d(3, 2, 1, stride=2), masks_of(), masks_of(), QUICK)
    with pytest.raises(InvalidData, match=r"logits \(2, 3\) for labels \(2, 8, 8\)"):
        train(net(), masks_of(), masks_of(), QUICK)
    with pytest.raises(InvalidData, match=r"logits \(2, 2, 8, 8\) for labels \(2,\)"):
        train(dense_net(), images_of(), images_of(), QUICK)


def test_bfloat16_is_autocast_and_the_weights_stay_in_full_precision():
    recipe = Hyperparameters(epochs=2, batch_size=11, schedule="constant", weight_decay=0.0, shuffle=False)
    images, by_hand = images_of(), net().float().train()
    found = {}
    for precision in ("full", "auto", "bfloat16"):
        found[precision] = net().float()
        train(found[precision], images, images, replace(recipe, precision=precision), preprocess=HALF)
    optimizer = torch.optim.AdamW(by_hand.parameters(), 3e-3, weight_decay=0.0)
    for start in (0, 11, 0, 11):
        pixels = (images.pixels[start : start + 11].float() / 255 - 0.5) / 0.25
        with torch.autocast("cpu", torch.bfloat16):
            logits = by_hand(pixels.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, images.labels[start : start + 11])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    equal(found["bfloat16"].state_dict(), by_hand.state_dict(), within=1e-6)
    equal(found["auto"].state_dict(), found["full"].state_dict())
    assert all(value.dtype == torch.float32 for value in found["bfloat16"].parameters())
    assert not torch.equal(found["bfloat16"][0].weight, found["full"][0].weight)
    with pytest.raises(InvalidParameter, match="precision='half'"):
        Hyperparameters(precision="half")


def test_weight_decay_is_half_lambda_of_the_squares_of_the_named_weights():
    """Adebayo et al.: 0.001 / 2 ||W||^2 on some layers, added to the loss."""
    recipe = replace(
        QUICK, optimizer="adam", schedule="constant", weight_decay=0.3, decayed=("0.weight",), shuffle=False
    )
    images, trained, by_hand = images_of(), net(), net().train()
    train(trained, images, images, recipe, preprocess=HALF)
    optimizer = torch.optim.Adam(by_hand.parameters(), 1e-2)
    for _ in range(3):
        for start in range(0, 22, 4):
            pixels = (images.pixels[start : start + 4].double() / 255 - 0.5) / 0.25
            loss = F.cross_entropy(by_hand(pixels), images.labels[start : start + 4])
            optimizer.zero_grad()
            (loss + 0.3 / 2 * by_hand[0].weight.square().sum()).backward()
            optimizer.step()
    equal(trained.state_dict(), by_hand.state_dict(), within=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_cycle_is_torch_s(steps, kind):
    parameter = nn.Parameter(torch.zeros(1))
    settings = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    optimizer = kind([parameter], 1.0, **settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps)
    for step in range(steps):
        rate, momentum = one_cycle(step, steps)
        group = optimizer.param_groups[0]
        assert rate == pytest.approx(group["lr"], abs=1e-14)
        assert momentum == pytest.approx(group["betas"][0] if "betas" in group else group["momentum"], abs=1e-14)
        optimizer.step()
        if step < steps - 1:
            schedule.step()


def test_the_best_weights_are_kept_where_the_recipe_says_so():
    recipe = replace(QUICK, epochs=6, learning_rate=0.1, keep="best", schedule="constant")
    held_out, model = images_of(40, seed=7), net()
    report = train(model, images_of(), held_out, recipe, preprocess=HALF)
    assert report.accuracy == max(report.accuracies) == accuracy(model, held_out, HALF)
    assert report.kept == report.accuracies.index(max(report.accuracies))
    assert report.kept < 5  # else it would not differ from the last
    last = net()
    assert (
        train(last, images_of(), held_out, replace(recipe, keep="last"), preprocess=HALF).accuracy
        < report.accuracy
    )
    ended = net()
    train(ended, images_of(), held_out, replace(recipe, keep="last", epochs=report.kept + 1), preprocess=HALF)
    equal(model.state_dict(), ended.state_dict())


def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone():
    class Spy(LabeledImages):
        seen: list = []  # noqa: RUF012

        def batch(self, indices):
            Spy.seen.append(indices.tolist())
            return LabeledImages.batch(self, indices)

    orders = {}
    for seed in (0, 1):
        Spy.seen = []
        train(net(), Spy.of(images_of().pixels, images_of().labels), images_of(), QUICK, seed=seed)
        batches = Spy.seen[1:]  # the first looks at the outputs
        for epoch in range(3):
            orders[seed, epoch] = [i for batch in batches[6 * epoch : 6 * epoch + 6] for i in batch]
            assert sorted(orders[seed, epoch]) == list(range(22))
    assert len({tuple(order) for order in orders.values()}) == 6


def test_the_last_epoch_alone_may_be_scored():
    each, end = net(), net()
    first = train(each, images_of(), images_of(seed=1), QUICK, preprocess=HALF)
    second = train(end, images_of(), images_of(seed=1), QUICK, preprocess=HALF, score_each_epoch=False)
    assert second.accuracies == first.accuracies[-1:]
    equal(each.state_dict(), end.state_dict())


# Taken up again.


class Ended(Exception):
    pass


def end_at(step):
    def progress(done, steps, loss):
        if done == step:
            raise Ended

    return progress


@pytest.mark.parametrize("step", [3, 6, 7, 17])
@pytest.mark.parametrize("recipe", [
    replace(QUICK, augmentation="crop_flip"), replace(QUICK, optimizer="sgd"), replace(QUICK, keep="best"),
], ids=["adamw", "sgd", "best"])  # fmt: skip
def test_a_training_ended_anywhere_gives_the_weights_of_an_undisturbed_one(tmp_path, step, recipe):
    sets = images_of(), images_of(seed=1)
    undisturbed, resumed = net(dropout=0.5), net(dropout=0.5)
    expected = train(undisturbed, *sets, recipe, preprocess=HALF)
    with pytest.raises(Ended):
        train(net(dropout=0.5), *sets, recipe, preprocess=HALF, checkpoint=tmp_path / "c", progress=end_at(step))
    steps = []
    report = train(
        resumed, *sets, recipe, preprocess=HALF, checkpoint=tmp_path / "c",
        progress=lambda done, *_: steps.append(done),
    )  # fmt: skip
    assert steps == list(range((step - 1) // 6 * 6 + 1, 19))  # no epoch that was done is done again
    assert report.accuracies == expected.accuracies
    equal(undisturbed.state_dict(), resumed.state_dict())


def zeroed(content):
    """With sixteen bytes of a tensor turned to zeros: still a whole file, of other weights."""
    place = len(content) // 2
    return content[:place] + bytes(16) + content[place + 16 :]


@pytest.mark.parametrize("kept", [0, 10, 400, -1, zeroed])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, kept):
    sets = images_of(), images_of(seed=1)
    undisturbed, resumed = net(), net()
    train(undisturbed, *sets, QUICK)
    with pytest.raises(Ended):
        train(net(), *sets, QUICK, checkpoint=tmp_path, progress=end_at(17))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["epoch-00001.safetensors", "epoch-00002.safetensors"]
    content = files[1].read_bytes()
    files[1].write_bytes(kept(content) if callable(kept) else content[:kept])
    steps = []
    with pytest.warns(DamagedFileWarning, match="is damaged; the one before it is taken"):
        train(resumed, *sets, QUICK, checkpoint=tmp_path, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 7
    equal(undisturbed.state_dict(), resumed.state_dict())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"recipe": replace(QUICK, learning_rate=0.5)}, "recipe.learning_rate is 0.01 there and 0.5 here"),
        ({"recipe": replace(QUICK, epochs=4)}, "recipe.epochs is 3 there and 4 here"),
        ({"seed": 1}, r"seeds\[0\] is 0 there and 1 here"),
        ({"model": net(norm=False)}, r"network.1.weight is \[1, 4\] there and None here"),
        ({"train_set": images_of(seed=5)}, r"images\[0\]: not the same"),
        ({"preprocess": HALF}, "preprocess is None there"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_stands(tmp_path, settings, difference):
    base = {"model": net(), "train_set": images_of(), "validation_set": images_of(seed=1), "recipe": QUICK}
    with pytest.raises(Ended):
        train(**base, checkpoint=tmp_path, progress=end_at(8))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InvalidWeights, match=difference):
        train(**base | settings, checkpoint=tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


LONG = replace(QUICK, epochs=6, augmentation="symmetry", keep="best")


def train_long(output):
    torch.set_num_threads(1)
    train_network("shapes-resnet", images_of(), output, images_of(seed=1), recipe=LONG, seed=3)


@pytest.mark.slow
def test_a_killed_training_gives_the_weights_of_an_undisturbed_one(tmp_path):
    output, undisturbed = tmp_path / "killed.safetensors", tmp_path / "undisturbed.safetensors"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pellucid.training.from_source"])
    program = server.Process(target=train_long, args=(output,))
    program.start()
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("killed.checkpoint/epoch-*2.safetensors")):
        assert program.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(program.pid, signal.SIGKILL)
    program.join()
    assert not output.exists()
    begun = max(tmp_path.glob("killed.checkpoint/epoch-*"))
    train_long(output)
    train_long(undisturbed)
    assert begun.stem < f"epoch-{LONG.epochs:05d}"
    assert output.read_bytes() == undisturbed.read_bytes()
    one, other = (json.loads(path.with_suffix(".json").read_text()) for path in (output, undisturbed))
    assert one["training"]["accuracies"] == other["training"]["accuracies"]
    assert not (tmp_path / "killed.checkpoint").exists()


# Together as alone.


@pytest.mark.parametrize("way", ["stacked", "threads", "one_by_one"])
@pytest.mark.parametrize("norm", [False, True])
def test_networks_trained_together_are_those_trained_one_by_one(way, norm):
    """Other weights, orders, data and augmentation for each."""
    recipe = replace(QUICK, augmentation="crop_flip", batch_size=5)
    ranks = random_ranks((8, 8), range(22))
    mean = images_of().mean
    sets = [DegradedImages(images_of(), ranks, Degradation(p), mean) for p in (0.1, 0.5, 0.9)]
    held_out = [images_of(seed=seed) for seed in (1, 2, 3)]
    alone = [net(seed, norm) for seed in range(3)]
    reports = [
        train(model, one, other, recipe, seed, HALF)
        for seed, (model, one, other) in enumerate(zip(alone, sets, held_out, strict=True))
    ]
    together = [net(seed, norm) for seed in range(3)]
    found = train_ensemble(together, sets, held_out, recipe, range(3), HALF, way=way)
    for model, other in zip(states(alone), states(together), strict=True):
        equal(model, other, within=0.0 if way != "stacked" else 1e-12)
    assert [report.accuracies for report in found] == [report.accuracies for report in reports]
    assert [report.seed for report in found] == [0, 1, 2]
    assert not any(parameter.requires_grad for model in together for parameter in model.parameters())
    assert not any(model.training for model in together)


def test_the_best_of_each_network_is_kept():
    recipe = replace(QUICK, epochs=6, learning_rate=0.1, keep="best", schedule="constant")
    sets, held_out = [images_of(), images_of(seed=4)], [images_of(40, seed=1)] * 2
    alone, together = [net(0), net(1)], [net(0), net(1)]
    for seed in range(2):
        train(alone[seed], sets[seed], held_out[seed], recipe, seed, HALF)
    reports = train_ensemble(together, sets, held_out, recipe, [0, 1], HALF, way="stacked")
    assert reports[0].kept != reports[1].kept
    for model, other in zip(states(alone), states(together), strict=True):
        equal(model, other, within=1e-11)


@pytest.mark.parametrize("way", ["stacked", "threads"])
def test_an_ensemble_is_taken_up_where_it_was_ended(tmp_path, way, monkeypatch):
    sets, held_out = [images_of(), images_of(seed=4)], [images_of(seed=1)] * 2
    undisturbed, resumed = [net(0), net(1)], [net(0), net(1)]
    train_ensemble(undisturbed, sets, held_out, QUICK, [0, 1], way=way)
    learn, epochs = ClassifierLearner.learn, []

    def ending(learner, epoch):
        for losses in learn(learner, epoch):
            yield losses
            if epoch == 1:
                raise Ended

    monkeypatch.setattr(ClassifierLearner, "learn", ending)
    with pytest.raises(Ended):
        train_ensemble([net(0), net(1)], sets, held_out, QUICK, [0, 1], checkpoint=tmp_path, way=way)
    monkeypatch.setattr(
        ClassifierLearner, "learn", lambda learner, epoch: epochs.append(epoch) or learn(learner, epoch)
    )
    train_ensemble(resumed, sets, held_out, QUICK, [0, 1], checkpoint=tmp_path, way=way)
    # No epoch that was done is done again; of two threads one may have been ended in its first.
    assert sorted(epochs) in ([[1, 2]] if way == "stacked" else [[1, 1, 2, 2], [0, 1, 1, 2, 2]])
    for model, other in zip(states(undisturbed), states(resumed), strict=True):
        equal(model, other)


def test_an_ensemble_leaves_the_global_state_and_the_threads():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    for way in ("stacked", "threads", "one_by_one"):
        train_ensemble([net(0), net(1)], [images_of()] * 2, [images_of()] * 2, QUICK, [0, 1], way=way)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads


def test_networks_with_dropout_are_not_trained_in_threads():
    sets = [images_of()] * 2
    with pytest.raises(InvalidParameter, match="random"):
        train_ensemble([net(0, dropout=0.5)] * 2, sets, sets, QUICK, [0, 1], way="threads")
    assert fastest(net(dropout=0.5), random=True) == "one_by_one"
    alone, way_left_out = [net(0, dropout=0.5), net(1, dropout=0.5)], [net(0, dropout=0.5), net(1, dropout=0.5)]
    for seed in range(2):
        train(alone[seed], sets[seed], sets[seed], QUICK, seed)
    train_ensemble(way_left_out, sets, sets, QUICK, [0, 1])
    for model, other in zip(states(alone), states(way_left_out), strict=True):
        equal(model, other)


def test_what_cannot_be_trained_together_is_refused():
    sets = [images_of()] * 2
    with pytest.raises(InvalidData, match="2 networks, 2 training sets, 2 validation sets and 1 seeds"):
        train_ensemble([net(), net()], sets, sets, QUICK, [0])
    with pytest.raises(InvalidData, match="differ"):
        Stacked([net(), net(norm=False)])
    with pytest.raises(InvalidData, match="one size"):
        train_ensemble([net(), net()], [images_of(), images_of(9)], sets, QUICK, [0, 1], way="stacked")
    with pytest.raises(InvalidParameter, match="way"):
        train_ensemble([net(), net()], sets, sets, QUICK, [0, 1], way="magic")


def test_the_cifar_cnn_stacks():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=draw)
    images = LabeledImages.of(pixels, torch.arange(20) % 10)
    recipe = replace(HYPERPARAMETERS["cifar-cnn"], epochs=1, batch_size=10)
    preprocess = PAPER_MODELS["cifar-cnn"].preprocess
    alone, together = ([load_model("cifar-cnn", seed=s).model.double() for s in (0, 1)] for _ in range(2))
    for model in alone:
        train(model, images, images, recipe, 0, preprocess)
    train_ensemble(together, [images] * 2, [images] * 2, recipe, [0, 0], preprocess, way="stacked")
    for model, other in zip(states(alone), states(together), strict=True):
        equal(model, other, within=1e-10)


# From data to a file.


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_trains_on_real_digits(real_data, tmp_path):
    """2 000 of MNIST's images, three passes."""
    data, output = real_data / "data" / "mnist", tmp_path / "mnist.safetensors"
    result = run(
        "train", "selu-cnn", "--data", data / "test.parquet", "--count", 2000, "--epochs", 3, "-o", output
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["accuracy"] >= 0.92
    assert facts["training"]["images"] == 1800
    assert facts["training"]["recipe"]["epochs"] == 3
    assert facts["validation_set"].startswith("200 images of ")
    assert len(facts["classes"]) == 10
    loaded = load_model("selu-cnn", output)
    sample = open_images(data / "train.parquet")[0]
    assert int(loaded.model(loaded.preprocess(sample.image)[None]).argmax()) == sample.label
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mnist.json", "mnist.safetensors"]


def colored_folder(folder, per_class=12):
    from PIL import Image

    for number, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            color = [20, 20, 20]
            color[2 - number] = 150 + 5 * index
            Image.new("RGB", (40, 36), tuple(color)).save(folder / name / f"{index:02}.png")
    return folder


def test_the_command_says_how_well_test_images_are_known(tmp_path):
    """Beside the accuracy on the images that chose the weights, where some are held out for that."""
    train, test = colored_folder(tmp_path / "data"), colored_folder(tmp_path / "test", per_class=4)
    output = tmp_path / "net.safetensors"
    result = run("train", "sanity-cnn", "--data", train, "--test", test, "--epochs", 1, "-o", output)
    assert result.exit_code == 0, result.output
    facts = json.loads(output.with_suffix(".json").read_text())
    assert f"test accuracy {facts['test_accuracy']:.1%} on 12 images of {test}" in result.stdout


def test_the_command_says_where_one_class_alone_is_guessed_as_well(tmp_path):
    """A rate of learning of nothing leaves a network that says one class of all."""
    folder, output = colored_folder(tmp_path / "data", per_class=4), tmp_path / "net.safetensors"
    (folder / "red" / "00.png").unlink()
    model = tmp_path / "dull.py"
    model.write_text(
        "from torch import nn\nfrom pellucid import Preprocess\n\n"
        "preprocess = Preprocess(resize=16, crop=16)\n\n\n"
        "class Dull(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.linear = nn.Linear(3, 3)\n\n"
        "    def forward(self, x):\n        return self.linear(0 * x.mean((2, 3)))\n\n\n"
        "def network():\n    return Dull()\n"
    )
    result = run("train", f"{model}:network", "--data", folder, "--test", folder, "--epochs", 1, "-o", output)
    assert result.exit_code == 0, result.output
    assert "always guessing the most frequent class, blue, is right for 36.4%" in result.stderr
    net = tmp_path / "other.safetensors"
    result = run("train", "sanity-cnn", "--data", folder, "--test", folder, "--epochs", 8, "-o", net)
    facts = json.loads(net.with_suffix(".json").read_text())
    assert ("most frequent class" in result.stderr) == (facts["accuracy"] <= 4 / 11)


def test_the_command_reads_folders_says_empty_classes_and_corrupt_images(tmp_path):
    folder, output = colored_folder(tmp_path / "data"), tmp_path / "net.safetensors"
    broken = folder / "green" / "05.png"
    broken.write_bytes(broken.read_bytes()[:50])
    result = run("train", "cifar-cnn", "--data", folder, "--epochs", 2, "--shuffle", "-o", output)
    assert result.exit_code == 0, result.output
    assert "left out 1 image" in result.stderr
    assert "green/05.png" in result.stderr
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["classes"] == ["blue", "green", "red"]
    assert len(facts["left_out"]) == 1
    assert facts["training"]["images"] == 31  # of 35, a tenth held out
    assert len(safetensors.torch.load_file(output)["linear2.bias"]) == 3
    for path in (folder / "red").iterdir():
        path.write_bytes(b"broken")
    result = run(
        "train", "cifar-cnn", "--data", folder, "--epochs", 1, "--shuffle", "-o", tmp_path / "other.safetensors"
    )
    assert "no training image is of red" in result.stderr


def test_the_command_refuses_what_it_cannot_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = colored_folder(tmp_path / "data")
    for arguments, message in (
        (["cifar-cnn"], "cifar-cnn needs images: give --data"),
        (["cifr-cnn", "--data", folder], "did you mean"),
        (["cifar-cnn", "--data", tmp_path / "nowhere"], "there is no file or folder"),
        (["cifar-cnn", "--data", folder], "sorted by class"),
        (["cifar-cnn", "--data", folder, "--device", "abacus"], "give auto, cpu or cuda"),
    ):
        result = run("train", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_images_enter_at_the_size_asked_and_the_weights_know_it(tmp_path):
    folder, output = colored_folder(tmp_path / "data"), tmp_path / "net.safetensors"
    settings = ("--data", folder, "--test", folder, "--epochs", 1, "--size", 16, "-o", output)
    result = run("train", "cifar-resnet20", *settings)
    assert result.exit_code == 0, result.output
    loaded = load_model("cifar-resnet20", output)
    expected = replace(PAPER_MODELS["cifar-resnet20"].preprocess, resize=16, crop=16)
    assert loaded.preprocess == expected
    images = load_images(open_images(folder), loaded.preprocess.display)
    assert images.pixels.shape[2:] == (16, 16)
    facts = json.loads(output.with_suffix(".json").read_text())
    assert facts["accuracy"] == accuracy(loaded.model, images, loaded.preprocess)


def table_of_masks(path, count=20, masks=True, size=(40, 32)):
    """A dark disk on bright ground in each image, at another place, and its mask."""
    rows = []
    for number in range(count):
        y, x = np.ogrid[: size[1], : size[0]]
        disk = (x - 8 - number) ** 2 + (y - 16) ** 2 < 36
        cells = [Image.fromarray(np.where(disk, 60, 200).astype(np.uint8)).convert("RGB")]
        cells += [Image.fromarray(np.where(disk, 255, 0).astype(np.uint8))] if masks else []
        rows.append([{"bytes": png(cell), "path": None} for cell in cells])
    names = ["image", "mask"] if masks else ["image"]
    table = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_segmentation_model_learns_masks_and_every_nth_image_is_held_out(tmp_path):
    table, output = table_of_masks(tmp_path / "masks.parquet"), tmp_path / "unet.safetensors"
    settings = NetworkSettings(name="unet", source=str(table), size=32, held_out=5, epochs=15)
    trained = train_classifier(settings, output, "cpu", lambda *told: None)
    source, preprocess = open_images(table), settings.preprocess
    kept = [number for number in range(20) if number % 5]
    assert trained.train_set.rows.tolist() == list(range(16))
    for images, positions in ((trained.train_set, kept), (trained.validation_set, range(0, 20, 5))):
        for (pixels, mask), position in zip(images, positions, strict=True):
            sample = source[position]
            assert pixels.equal(pil_to_tensor(preprocess.display(sample.image)))
            assert mask.equal(torch.from_numpy(np.asarray(sample.mask)[:, 4:36] // 255))  # the middle
    loaded, facts = load_model("unet", output), json.loads(output.with_suffix(".json").read_text())
    assert loaded.preprocess == preprocess
    assert loaded.classes == ("background", "object")
    held_out = torch.stack([preprocess(source[position].image) for position in range(0, 20, 5)])
    right = loaded.model.dense(held_out).argmax(1) == trained.validation_set.labels
    assert facts["accuracy"] == trained.report.accuracy == pytest.approx(right.double().mean().item(), abs=1e-3)
    assert facts["accuracy"] > 1 - trained.validation_set.labels.double().mean()  # more than the ground's share
    assert train_classifier(settings, output, "cpu", lambda *told: None) is None


def test_images_without_masks_are_refused_by_a_segmentation_model(tmp_path):
    table = table_of_masks(tmp_path / "plain.parquet", masks=False)
    result = run("train", "unet", "--data", table, "-o", tmp_path / "unet.safetensors")
    assert result.exit_code == 2
    assert "row-00 has no mask, which a segmentation model learns from" in " ".join(result.stderr.split())
    with pytest.raises(ValueError, match="held_out is of a source without a test"):
        NetworkSettings(name="unet", source="a", test="b", held_out=5)


def test_a_test_set_is_scored_and_chooses_nothing(tmp_path):
    folder, output = colored_folder(tmp_path / "data"), tmp_path / "net.safetensors"
    test = colored_folder(tmp_path / "test", per_class=4)
    result = run("train", "cifar-cnn", "--data", folder, "--test", test, "--epochs", 2, "--shuffle", "-o", output)
    assert result.exit_code == 0, result.output
    facts = json.loads(output.with_suffix(".json").read_text())
    images = load_images(open_images(test), PAPER_MODELS["cifar-cnn"].preprocess.display)
    loaded = load_model("cifar-cnn", output)
    assert facts["training"]["images"] == 36
    assert facts["accuracy"] == accuracy(loaded.model, images, loaded.preprocess)
    shutil.rmtree(test)
    colored_folder(tmp_path / "test", per_class=4)
    (tmp_path / "test" / "yellow").mkdir()
    os.rename(tmp_path / "test" / "red" / "00.png", tmp_path / "test" / "yellow" / "00.png")
    result = run(
        "train", "cifar-cnn", "--data", folder, "--test", test, "--shuffle", "-o", tmp_path / "other.safetensors"
    )
    assert result.exit_code == 2
    assert "the images' class 'yellow' is none of the model's 3 classes" in result.stderr
