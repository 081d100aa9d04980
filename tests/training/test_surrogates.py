"""Training a surrogate: what is learnt, that stopping leaves no trace, and what is refused."""

import copy
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.errors import (
    DamagedFileWarning,
    InvalidData,
    InvalidImage,
    InvalidModel,
    InvalidParameter,
    InvalidWeights,
    OutputNotWritable,
)
from pellucid.models.preprocess import CustomPreprocess, Preprocess
from pellucid.models.small import ShapesResNet
from pellucid.seeds import fold_in
from pellucid.training.checkpoints import read
from pellucid.training.surrogates import train_surrogate
from pellucid.variants.paths import BilinearPath
from pellucid.variants.surrogate import load_surrogate
from tests.networks import images, plain, randomise, seeded

SMALL = Preprocess(16, 16, (0.5,) * 3, (0.25,) * 3)


def network(seed=0):
    return randomise(seeded(lambda: ShapesResNet(5, (2, 3, 4)), seed))


def weights(surrogate):
    return [tensor for path in surrogate.paths if path is not None for tensor in path.tensors.values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# What is learnt.


def test_steps_are_those_of_a_loop_written_by_hand():
    model, x = network(), images(6, 12)
    found = train_surrogate(model, x, 2, 1e-2, batch_size=4, seed=3)

    names = ["layer2.0.downsample.0", "layer2.0.conv1", "layer3.0.downsample.0", "layer3.0.conv1"]
    features = {}

    def keep(name):
        return lambda _, inputs, output: features.update({name: (inputs[0], output)})

    kept = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    generator = torch.Generator().manual_seed(3)
    paths = []
    for convolution in found.convolutions[1:]:
        path = BilinearPath.drawn(convolution, generator)
        paths.append([tensor.double().requires_grad_() for tensor in path.tensors.values()])
    optimizer = torch.optim.Adam([tensor for path in paths for tensor in path], lr=1e-2)
    for epoch in (1, 2):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(fold_in(3, epoch)))
        for rows in (order[:4], order[4:]):
            with torch.no_grad():
                model(x[rows])
            loss = 0
            for (weight1, bias1, weight2, bias2), name in zip(paths, names, strict=True):
                inner = F.conv2d(features[name][0], weight1, bias1, padding=1)
                inner = F.interpolate(inner, features[name][1].shape[2:], mode="bilinear", align_corners=False)
                loss = loss + F.l1_loss(F.conv2d(inner, weight2, bias2, padding=1), features[name][1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for handle in kept:
        handle.remove()
    for ours, theirs in zip(weights(found), [tensor for path in paths for tensor in path], strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    assert found.paths[0] is None


def test_a_network_that_downsamples_bilinearly_is_learnt_nearly_exactly():
    """A path can be this convolution exactly; what stays, 1.8 % of the outputs' mean size, is the noise of
    Adam's steps, which are of about lr: at lr = 3e-3 it is 0.8 %.
    """
    strided = nn.Conv2d(4, 6, 2, stride=2)
    model = plain(nn.Conv2d(3, 4, 3, padding=1), strided, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mixing = torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    strided.weight.copy_(mixing.expand(6, 4, 2, 2) / 4)  # 1x1 convolution after 2x2 average pooling
    x = images(64, 8)
    scale = float(strided(model[0](x)).abs().mean())
    surrogate = train_surrogate(model, x, 150, 1e-2, batch_size=8)
    losses = [sum(epoch) for epoch in surrogate.facts["losses"]]
    assert losses[0] > 0.3 * scale
    assert losses[-1] < 0.03 * scale
    x = images(8, 8, seed=1)  # images never seen
    hidden = model[0](x)
    assert F.l1_loss(surrogate.paths[0](hidden, (4, 4)), strided(hidden)) < 0.03 * scale


def test_the_model_runs_once_a_batch_and_stays_as_it_is():
    model, x = network(), images(5, 12)
    before, state, calls = copy.deepcopy(model.state_dict()), torch.get_rng_state(), []
    handle = model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    train_surrogate(model, x, 2, batch_size=2)
    handle.remove()
    assert calls == [1, 2, 2, 1, 2, 2, 1]  # one image to find the convolutions, then each batch once
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_the_convolution_s_own_also_where_they_are_overwritten():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.strided = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)

        def forward(self, x):
            x.mul_(2)
            x = self.stem(x)
            y = self.strided(x).relu_()
            x.zero_()
            return y.mean((2, 3)) + x.sum()

    model, x = seeded(InPlace), images(4, 9)
    given = x.clone()
    surrogate = train_surrogate(model, [x], 1, 1e-3)
    assert torch.equal(x, given)
    hidden = model.stem(2 * x)
    start = BilinearPath.drawn(surrogate.convolutions[0], torch.Generator().manual_seed(0))
    start = start.to(x.device, x.dtype)
    expected = F.l1_loss(start(hidden, (3, 3)), model.strided(hidden))
    assert surrogate.facts["losses"] == [[pytest.approx(float(expected), rel=1e-12)]]


def test_the_first_convolution_is_trained_on_request_and_used_on_another():
    model, x = network(), images(4, 12)
    surrogate = train_surrogate(model, x, 1, include_first=True)
    assert surrogate.paths[0] is not None
    assert len(surrogate.facts["losses"][0]) == 5
    plainly = pl.Gradient()(model, x, 0, variant=surrogate)["input"]
    everything = pl.Gradient()(model, x, 0, variant=replace(surrogate, include_first=True))["input"]
    assert not torch.equal(plainly, everything)
    only_first = plain(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InvalidModel, match="include_first=True"):
        train_surrogate(only_first, x)


# Images.


def test_progress_counts_every_step():
    seen = []
    train_surrogate(network(), images(5, 12), 2, batch_size=3, progress=lambda *step: seen.append(step))
    assert [(done, steps) for done, steps, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(loss > 0 for _, _, loss in seen)


def test_a_source_is_trained_as_the_tensor_of_its_images():
    source = open_images("shapes:7")
    stacked = torch.stack([SMALL(sample.image) for sample in source])
    by_tensor = train_surrogate(network().float(), stacked, 2, batch_size=3)
    by_source = train_surrogate(network().float(), source, 2, batch_size=3, preprocess=SMALL)
    by_function = train_surrogate(network().float(), source, 2, batch_size=3, preprocess=CustomPreprocess(SMALL))
    assert same(by_source, by_function)
    assert same(by_tensor, by_function)
    with pytest.raises(InvalidParameter, match="preprocess is missing"):
        train_surrogate(network(), source)


def test_images_that_cannot_be_read_are_left_out_counted_and_named(tmp_path):
    for number, sample in enumerate(open_images("shapes:5")):
        sample.image.save(tmp_path / f"{number}.png")
    whole = train_surrogate(network().float(), tmp_path, 2, batch_size=2, preprocess=SMALL)
    (tmp_path / "1b.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    (tmp_path / "3b.png").write_bytes(b"")
    surrogate = train_surrogate(network().float(), tmp_path, 2, batch_size=2, preprocess=SMALL)
    assert same(surrogate, whole)
    assert surrogate.facts["images"] == whole.facts["images"]
    assert [message.split(" ")[0].split("/")[-1] for message in surrogate.facts["left_out"]] == [
        "1b.png",
        "3b.png",
    ]
    for file in tmp_path.glob("?.png"):
        file.unlink()
    with pytest.raises(InvalidImage, match=r"none of the 2 images can be read; the first: .*1b\.png"):
        train_surrogate(network().float(), tmp_path, preprocess=SMALL)


def test_a_loader_s_order_is_decided_by_the_seed_alone():
    data = TensorDataset(images(9, 12), torch.zeros(9))
    trained = []
    for seed, generator in (
        (1, None),
        (1, None),
        (2, None),
        (1, torch.Generator().manual_seed(8)),
        (1, torch.Generator()),
    ):
        torch.rand(3)
        loader = DataLoader(data, 4, shuffle=True, generator=generator)
        state = torch.get_rng_state()
        trained.append(train_surrogate(network(), loader, 2, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])
    assert same(trained[3], trained[4])


def test_what_holds_no_images_is_refused():
    model = network()
    with pytest.raises(InvalidData, match="no images"):
        train_surrogate(model, images(2)[:0])
    with pytest.raises(InvalidImage, match=r"\(3, 8, 8\)"):
        train_surrogate(model, images(2)[0])
    with pytest.raises(InvalidImage, match=r"loader gives Tensor \(3,\)"):
        train_surrogate(model, [(torch.zeros(3), 1)])
    sizes = iter([16, 20])
    uneven = CustomPreprocess(lambda _: torch.zeros(3, *[next(sizes)] * 2))
    with pytest.raises(InvalidImage, match=r"is \(3, 20, 20\) beside images of \(3, 16, 16\)"):
        train_surrogate(model, open_images("shapes:2"), preprocess=uneven)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidParameter, match=next(iter(settings))):
        train_surrogate(network(), images(2), **settings)


def test_a_loss_that_is_not_finite_is_an_error():
    x = images(4, 12)
    x[3] = float("nan")
    with pytest.raises(InvalidParameter, match=r"loss is not finite at step [1-4] of epoch 1"):
        train_surrogate(network(), x, batch_size=1)


# Stopping and going on.


def epochs(folder):
    """How many epochs each checkpoint has behind it, the newest first."""
    return [read(file)[1].facts["epoch"] for file in sorted(folder.iterdir(), reverse=True)]


def killed_at(step, checkpoint):
    def stop(done, steps, loss):
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    train_surrogate(network(), images(7, 12), 4, 1e-2, batch_size=2, checkpoint=checkpoint, progress=stop)


@pytest.mark.parametrize("step", [3, 11])  # in the first epoch, and in the third
def test_after_a_kill_the_training_ends_as_if_nothing_had_happened(tmp_path, step):
    checkpoint = tmp_path / "c"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pellucid.training.surrogates"])
    killed = server.Process(target=killed_at, args=(step, checkpoint))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert epochs(checkpoint)[0] == step // 4
    steps = []
    settings = {"epochs": 4, "lr": 1e-2, "batch_size": 2}
    resumed = train_surrogate(
        network(), images(7, 12), checkpoint=checkpoint, progress=lambda done, *_: steps.append(done), **settings
    )
    assert steps[0] == 4 * (step // 4) + 1
    undisturbed = train_surrogate(network(), images(7, 12), **settings)
    assert same(resumed, undisturbed)
    assert epochs(checkpoint) == [4, 3]
    assert resumed.facts["losses"] == undisturbed.facts["losses"]


def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(tmp_path):
    x = images(4, 12)
    undisturbed = train_surrogate(network(), x, 3)
    train_surrogate(network(), x, 3, checkpoint=tmp_path)
    newest, before = sorted(tmp_path.iterdir(), reverse=True)
    assert epochs(tmp_path) == [3, 2]
    steps = []
    for torn, repeated in (((newest,), [3]), ((newest, before), [1, 2, 3])):
        for file in torn:
            file.write_bytes(file.read_bytes()[:-50])
        steps.clear()
        with pytest.warns(DamagedFileWarning, match="is damaged; the one before it is taken"):
            resumed = train_surrogate(
                network(), x, 3, checkpoint=tmp_path, progress=lambda done, *_: steps.append(done)
            )
        assert steps == repeated
        assert same(resumed, undisturbed)


def test_a_finished_training_is_not_repeated_and_may_be_prolonged(tmp_path):
    x = images(4, 12)
    once = train_surrogate(network(), x, 2, checkpoint=tmp_path)
    steps = []
    again = train_surrogate(network(), x, 2, checkpoint=tmp_path, progress=lambda *step: steps.append(step))
    assert same(once, again)
    assert steps == []
    longer = train_surrogate(network(), x, 4, checkpoint=tmp_path)
    assert same(longer, train_surrogate(network(), x, 4))
    with pytest.raises(InvalidParameter, match="4 epochs behind it, not 3"):
        train_surrogate(network(), x, 3, checkpoint=tmp_path)


def test_a_checkpoint_of_another_training_is_refused_and_stands(tmp_path):
    x = images(4, 12)
    train_surrogate(network(), x, 1, checkpoint=tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    wider = randomise(seeded(lambda: ShapesResNet(5, (2, 4, 4)), 0))
    others = [
        (network(), x, {"lr": 1e-2}, "lr is 0.001 there and 0.01 here"),
        (network(), x, {"seed": 1}, "seed is 0 there and 1 here"),
        (network(), x, {"batch_size": 2}, "batch_size is 64 there and 2 here"),
        (network(), x, {"include_first": True}, "include_first is False there and True here"),
        (network(), x, {"preprocess": SMALL}, "preprocess is None there and {.*'resize': 16, .* here"),
        (network(), x + 1, {}, "images.digest: not the same"),
        (network(1), x, {}, "model.weights: not the same"),
        (wider, x, {}, "model.convolutions.005 is '2 -> 3 channels, .* there and '2 -> 4 channels, .* here"),
    ]
    for model, pictures, settings, message in others:
        with pytest.raises(InvalidWeights, match=f"is of another training: {message}"):
            train_surrogate(model, pictures, 2, checkpoint=tmp_path, **settings)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_where_no_checkpoint_can_be_written_is_found_out_before_the_first_step(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    steps = []
    with pytest.raises(OutputNotWritable, match=r"cannot write to .*file"):
        train_surrogate(
            network(), images(4, 12), checkpoint=tmp_path / "file", progress=lambda *step: steps.append(step)
        )
    assert steps == []


def test_the_facts_say_what_it_was_trained_for(tmp_path):
    surrogate = train_surrogate(network(), images(4, 12), 2, about={"model": "small", "data": "noise"})
    surrogate.save(tmp_path / "s.safetensors")
    facts = load_surrogate(tmp_path / "s.safetensors").facts
    assert facts == surrogate.facts
    assert (facts["model"], facts["data"], facts["epochs"], facts["seed"]) == ("small", "noise", 2, 0)
    assert facts["images"]["count"] == 4
    assert [len(epoch) for epoch in facts["losses"]] == [4, 4]
    assert facts["model_digest"] == train_surrogate(network(), images(1, 12), 1).facts["model_digest"]
    assert facts["model_digest"] != train_surrogate(network(1), images(1, 12), 1).facts["model_digest"]


def test_pictures_of_the_bundled_network_are_learnt_and_change_its_maps():
    model, preprocess = pl.load_model("shapes-resnet")
    source = open_images("shapes:16")
    surrogate = train_surrogate(model, source, 3, 3e-3, batch_size=8, preprocess=preprocess)
    losses = [sum(epoch) for epoch in surrogate.facts["losses"]]
    assert losses[2] < 0.8 * losses[0]
    x = torch.stack([preprocess(sample.image) for sample in source[:2]])
    found = pl.Gradient()(model, x, layers="all", variant=surrogate)
    assert all(attribution.isfinite().all() for attribution in found.values())
    original = pl.Gradient()(model, x, layers="all")
    assert not torch.equal(found["layer1.1"], original["layer1.1"])
