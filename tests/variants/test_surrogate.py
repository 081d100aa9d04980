"""The surrogate by closed forms: its paths, and equality with a network of replaced modules."""

import copy
import json
import math
import warnings

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import pellucid as pl
from pellucid.errors import InvalidModel, InvalidParameter, InvalidWeights, OutputNotWritable
from pellucid.metrics.scoring import Scorer
from pellucid.models.small import ShapesResNet
from pellucid.rules.base import Rules
from pellucid.variants.paths import BilinearPath, digest, strided_convolutions, surveyed
from pellucid.variants.surrogate import Surrogate, load_surrogate
from tests.networks import attributed, images, plain, randomise, relative_error, seeded

EXACT = 1e-12
# In execution order: this network's shortcuts run before its branches.
STRIDED = ("layer2.0.downsample.0", "layer2.0.conv1", "layer3.0.downsample.0", "layer3.0.conv1")


def untrained(model, x, include_first=False, seed=0):
    """A surrogate with paths as they start."""
    found = strided_convolutions(model, x)
    generator = torch.Generator().manual_seed(seed)
    drawn = [BilinearPath.drawn(convolution, generator) for convolution in found]
    return Surrogate(found, tuple(drawn), {"model": "test"}, include_first)


def by_hand(path, convolution, size):
    """A path as modules that know nothing of pellucid."""
    first = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1, groups=convolution.groups)
    second = nn.Conv2d(convolution.out_channels, convolution.out_channels, 3, padding=1, groups=convolution.groups)
    for module, weight, bias in ((first, path.weight1, path.bias1), (second, path.weight2, path.bias2)):
        module.weight.data.copy_(weight)
        module.bias.data.copy_(bias)
    return nn.Sequential(first, nn.Upsample(size, mode="bilinear", align_corners=False), second).double()


def replaced(model, surrogate, names, sizes):
    """A copy of the model with modules of these names, in execution order, replaced by paths."""
    model = copy.deepcopy(model)
    first = len(surrogate.paths) - len(names)
    paths, convolutions = surrogate.paths[first:], surrogate.convolutions[first:]
    for name, path, convolution, size in zip(names, paths, convolutions, sizes, strict=True):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, by_hand(path, convolution, (size, size)))
    return model.eval().requires_grad_(False)


@pytest.fixture
def network():
    """A small residual network, its surrogate with the stem left alone, and the same network by hand."""
    model = randomise(seeded(lambda: ShapesResNet(5, (4, 6, 8))))
    model.relu = nn.Sequential(model.relu, nn.MaxPool2d(3, stride=1, padding=1))
    x = images(2, 20)
    surrogate = untrained(model, x)
    return model, surrogate, replaced(model, surrogate, STRIDED, [5, 5, 3, 3]), x


# Paths.


@pytest.mark.parametrize("size", [56, 28, 14, 8])
def test_resizing_to_half_an_even_size_is_average_pooling(size):
    identity = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    identity[0, 0, 1, 1] = identity[1, 1, 1, 1] = 1
    nothing = torch.zeros(2, dtype=torch.float64)
    x = images(1, size, channels=2)
    pooled = BilinearPath(identity, nothing, identity, nothing)(x, (size // 2, size // 2))
    assert (pooled - F.avg_pool2d(x, 2)).abs().max() < EXACT


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", [38_720, 221_440, 221_440, 885_248, 885_248, 3_539_968, 3_539_968]),
        ("resnet34", [38_720, 221_440, 221_440, 885_248, 885_248, 3_539_968, 3_539_968]),
        ("resnet50", [38_720, 295_168, 3_539_968, 1_180_160, 14_157_824, 4_719_616, 56_627_200]),
    ],
)
def test_the_strided_convolutions_of_resnets_and_their_paths_sizes(name, sizes):
    model = getattr(torchvision.models, name)(weights=None).eval()
    found = strided_convolutions(model, torch.zeros(1, 3, 32, 32))
    counted = [sum(map(math.prod, BilinearPath.shapes(convolution).values())) for convolution in found]
    assert counted == sizes
    total, used = {"resnet50": (80_558_656, 80_519_936)}.get(name, (9_332_032, 9_293_312))
    assert (sum(counted), sum(counted[1:])) == (total, used)
    assert found[0].place == 0
    assert [c.stride for c in found] == [(2, 2)] * 7


def test_they_come_in_execution_order_not_in_registration_order():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Conv2d(4, 6, 1, stride=2)
            self.first = nn.Conv2d(3, 4, 3, stride=3)
            self.same = nn.Conv2d(6, 6, 3, padding="same")

        def forward(self, x):
            return self.same(self.second(self.first(x))).mean((2, 3))

    found = strided_convolutions(seeded(Late), images(1, 12))
    assert [(c.out_channels, c.stride, c.place) for c in found] == [(4, (3, 3), 0), (6, (2, 2), 1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 5, "stride": 3, "padding": 2},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
        {"kernel_size": 3, "stride": 2, "padding": "valid", "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 4, "stride": 4, "groups": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [12, 13])
def test_any_stride_kernel_and_grouping_gets_a_path_of_its_output_s_size(settings, size):
    strided = nn.Conv2d(4, 8, **settings)
    model = plain(nn.Conv2d(3, 4, 3, padding=1), strided, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(2, size)
    surrogate = untrained(model, x)
    hidden = model[0](x)
    hand = by_hand(surrogate.paths[0], surrogate.convolutions[0], strided(hidden).shape[2:])
    if settings.get("padding_mode") == "reflect":
        hidden = F.pad(hidden, (1, 1, 1, 1), mode="reflect")  # what the convolution itself is given
    with torch.no_grad(), Rules(surrogate.rules):
        found = model(x)
    assert (found - model[2:](hand(hidden))).abs().max() < EXACT


def test_a_path_starts_as_pytorch_starts_its_convolutions():
    found = strided_convolutions(plain(nn.Conv2d(64, 128, 3, stride=2)), images(1, 5, channels=64))
    path = BilinearPath.drawn(found[0], torch.Generator().manual_seed(0))
    for weight, bias, fan_in in ((path.weight1, path.bias1, 576), (path.weight2, path.bias2, 1152)):
        bound = fan_in**-0.5
        for values in (weight, bias):
            assert values.abs().max() <= bound
            assert values.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert weight.abs().max() > 0.999 * bound


# The variant.


def test_the_prediction_and_gradients_are_those_of_a_network_with_replaced_modules(network):
    model, surrogate, hand, x = network
    assert (Scorer(model, surrogate, "logits").logits(x) - hand(x)).abs().max() < EXACT
    layers = ["input", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]
    found = pl.Gradient()(model, x, [1, 2], layers, variant=surrogate)
    expected = attributed(hand, x, [1, 2], layers)
    for layer in layers:
        assert relative_error(found[layer], expected[layer]) < EXACT
    assert relative_error(found["layer1.1"], attributed(model, x, [1, 2], layers)["layer1.1"]) > 0.1


FAST = {"steps": 3, "samples": 2}


@pytest.mark.filterwarnings("ignore::pellucid.errors.CompletenessWarning")  # of so few steps
@pytest.mark.parametrize("name", [name for name in pl.METHODS if name not in ("random", "edges")])
def test_every_method_explains_the_surrogate_as_the_network_by_hand(network, name):
    model, surrogate, hand, x = network
    settings = {
        key: value
        for key, value in FAST.items()
        if f"{key}=" in (pl.METHODS[name].formula or "") or (key == "steps" and "integrated" in name)
    }
    if "rectgrad" in name:
        settings = {"padding_trick": False, "q": 60}  # by hand, the trick would mask inside the paths, too
    layers = ["layer3.1"] if name == "gradcam" else ["input", "layer1.1", "layer2.0", "layer3.0"]
    method = pl.method(name, **settings)
    found = method(model, x, [1, 2], layers, variant=surrogate, max_batch=4)
    expected = method(hand, x, [1, 2], layers, max_batch=4)
    for layer in layers:
        assert relative_error(found[layer], expected[layer]) < 1e-10


def test_the_first_convolution_is_kept_unless_asked_for(network):
    model, _, _, x = network
    everything = untrained(model, x, include_first=True)
    hand = replaced(model, everything, ("conv1", *STRIDED), [10, 5, 5, 3, 3])
    assert (Scorer(model, everything, "logits").logits(x) - hand(x)).abs().max() < EXACT
    without = Surrogate(everything.convolutions, (None, *everything.paths[1:]))
    with pytest.raises(InvalidParameter, match="include_first"):
        Surrogate(without.convolutions, without.paths, include_first=True)


def test_functional_and_shared_convolutions_are_seen_and_others_left_alone():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 3, 3) / 5)
            self.up = nn.ConvTranspose2d(3, 3, 2, stride=2)
            self.one = nn.Conv1d(3, 2, 1, stride=2)

        def forward(self, x):
            x = F.conv2d(x, self.weight, stride=1, padding=1)  # the same weight, but not strided
            x = torch.conv2d(x, self.weight, None, 2, 1)
            x = F.conv2d(self.up(x), self.weight, stride=2, padding=1)  # the second of two runs
            return self.one(x.flatten(2)).mean(2)

    model, x = seeded(Mixed), images(2, 8)
    surrogate = untrained(model, x)
    assert [(c.stride, c.place) for c in surrogate.convolutions] == [((2, 2), 1)]
    hand = by_hand(surrogate.paths[0], surrogate.convolutions[0], (4, 4))
    inner = F.conv2d(x, model.weight, padding=1)
    expected = model.one(hand(model.up(hand(inner))).flatten(2)).mean(2)
    assert (Scorer(model, surrogate, "logits").logits(x) - expected).abs().max() < EXACT


def test_using_it_twice_is_using_it_once_and_the_model_stays_as_it_was(network):
    model, surrogate, _, x = network
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        with Rules((*surrogate.rules, *surrogate.rules)):
            twice = model(x)
        plainly = model(x)
        with Rules(surrogate.rules):
            once = model(x)
        assert torch.equal(once, twice)
        assert not torch.equal(once, plainly)
        assert torch.equal(model(x), plainly)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_may_follow_what_an_inference_placed(network):
    model, surrogate, hand, x = network
    Scorer(model, surrogate).scores(x)
    found = pl.Gradient()(model, x, [1, 2], "layer1.1", variant=surrogate)["layer1.1"]
    assert relative_error(found, attributed(hand, x, [1, 2], ["layer1.1"])["layer1.1"]) < EXACT
    assert not any(tensor.requires_grad for path in surrogate.paths for tensor in path.tensors.values())


def test_the_padding_trick_masks_a_path_s_output_as_it_would_the_convolution_s():
    model = plain(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    x = images(1, 10)
    surrogate = untrained(model, x)
    found = pl.Gradient(rules=(pl.PaddingTrick(),))(model, x, 3, "0", variant=surrogate)["0"]
    hidden = model[0](x).requires_grad_()
    y = by_hand(surrogate.paths[0], surrogate.convolutions[0], (4, 4))(hidden)
    gradient = torch.zeros_like(y)
    gradient[:, 3, 1:3, 1:3] = 1 / 16
    assert relative_error(found, torch.autograd.grad(y, hidden, gradient)[0]) < EXACT


# Which model.


def test_a_copy_and_another_precision_of_the_model_will_do(network):
    model, surrogate, hand, x = network
    single = copy.deepcopy(model).float()
    again = Surrogate(strided_convolutions(single, x.float()), surrogate.paths)
    for other in (single, copy.deepcopy(single), copy.deepcopy(single).double()):
        inputs = x.to(other.fc.weight.dtype)
        error = (Scorer(other, again, "logits").logits(inputs) - hand(x)).abs().max()
        assert error < 1e-5


class Shortcut(nn.Module):
    """A stem, and above it a strided convolution beside a shortcut, such as ResNet-20's strided slice."""

    def __init__(self, shortcut, stem=1):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, stem, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.head, self.shortcut = nn.Linear(6, 4), shortcut

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.head(torch.tanh(self.down(x) + self.shortcut(x)).mean((2, 3)))


SHORTCUTS = {
    "slice": lambda x: 2 * x[:, :, ::2, ::2],
    "max_pool2d": lambda x: 2 * F.max_pool2d(x, 1, 2),
    "index": lambda x: 2 * x[:, :, torch.arange(0, x.shape[2], 2)][..., torch.arange(0, x.shape[3], 2)],
}


@pytest.mark.parametrize("shortcut", SHORTCUTS.values(), ids=SHORTCUTS)
def test_a_lattice_that_a_surrogate_leaves_at_a_hidden_layer_is_warned_of(shortcut):
    model, x = seeded(lambda: Shortcut(shortcut)), images(2, 24)
    surrogate = untrained(model, x)
    with pytest.warns(pl.PatternWarning, match="at 'stem' every other .* replaces strided convolutions alone"):
        left = pl.Gradient()(model, x, [0, 1], ["stem"], variant=surrogate)["stem"]
    model.shortcut = lambda x: 2 * F.avg_pool2d(x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gone = pl.Gradient()(model, x, [0, 1], ["stem", "input"], variant=surrogate)["stem"]
    shares = [pl.checkerboard(maps.abs().sum(1)) for maps in (left, gone)]
    assert (shares[0] > 10 * shares[1]).all()


def test_the_lattice_of_the_first_convolution_names_its_path():
    model, x = seeded(lambda: Shortcut(lambda x: 2 * F.avg_pool2d(x, 2), stem=2)), images(2, 24)
    model.stem.weight.data.fill_(0.1)  # places are seen 1, 2, 2 and 4 times
    with pytest.warns(pl.PatternWarning, match=r"'input' .* include_first=True.*backward_with_first"):
        pl.Gradient()(model, x, [0, 1], ["input"], variant=untrained(model, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Gradient()(model, x, [0, 1], ["input"], variant=untrained(model, x, include_first=True))


def test_what_besides_strided_convolutions_takes_every_second_place_is_counted():
    def reduce(x):
        x = x[:, :, ::2, ::2] + F.pixel_unshuffle(x, 2)[:, :6] + F.max_pool2d(x, 1, 2)
        return x + F.max_pool2d(x, 3, 1, 1) + x[:, :, ::1].relu()  # these step by one place

    model, x = seeded(lambda: Shortcut(reduce)), images(1, 12)
    found, left = surveyed(model, x)
    assert found == strided_convolutions(model, x)
    assert left == {"slice": 1, "pixel_unshuffle": 1, "max_pool2d": 1}
    model.shortcut = lambda x: F.max_pool2d(x, 3, 2, 1)  # its windows overlap
    assert surveyed(model, x)[1] == {}


def test_another_model_is_refused_by_the_first_difference(network):
    model, surrogate, _, x = network
    other = randomise(seeded(lambda: ShapesResNet(5, (4, 6, 8)), seed=1))
    unchanged = other(x)
    with pytest.raises(InvalidModel, match=r"other weights.*convolution 0 of the model is 3 -> 4 .*moved_to"):
        pl.Gradient()(other, x, variant=surrogate)
    assert torch.equal(other(x), unchanged)
    wider = seeded(lambda: ShapesResNet(5, (4, 7, 8)))
    wider.load_state_dict({k: v for k, v in model.state_dict().items() if k == "conv1.weight"}, strict=False)
    with pytest.raises(InvalidModel, match=r"convolution 5 of the model is 4 -> 7 .*in its network 4 -> 6 "):
        pl.Gradient()(wider, x, variant=surrogate)


def test_a_weight_changed_in_place_is_another_weight(network):
    model, surrogate, _, x = network
    Scorer(model, surrogate).scores(x)
    with torch.no_grad():
        model.layer2[0].conv1.weight.mul_(1.5)
    with pytest.raises(InvalidModel, match="convolution 6 of the model"):
        Scorer(model, surrogate).scores(x)


def test_it_moves_to_other_weights_of_the_same_architecture_only(network):
    model, surrogate, _, x = network
    other = randomise(seeded(lambda: ShapesResNet(5, (4, 6, 8)), seed=1))
    moved = surrogate.moved_to(other, x)
    hand = replaced(other, moved, STRIDED, [5, 5, 3, 3])
    assert (Scorer(other, moved, "logits").logits(x) - hand(x)).abs().max() < EXACT
    with pytest.raises(InvalidModel, match=r"strided convolution 2 is 4 -> 6 .* network and 4 -> 7 "):
        surrogate.moved_to(seeded(lambda: ShapesResNet(5, (4, 7, 8))), x)
    deeper = nn.Sequential(*model.children())
    deeper.insert(3, nn.Conv2d(4, 4, 1, dtype=torch.float64))
    deeper.insert(8, nn.Flatten())
    with pytest.raises(
        InvalidModel, match=r"strided convolution 2 is .*convolution 5 to run.*convolution 6 to run"
    ):
        surrogate.moved_to(deeper, x)


def test_a_model_without_strided_convolutions_is_refused_with_what_helps_instead():
    pooled = plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(InvalidModel, match=r"max_pool2d x1.*smoothed\(\)"):
        strided_convolutions(pooled, images())


# Files.


def test_what_was_saved_gives_the_same_maps(network, tmp_path):
    model, surrogate, _, x = network
    surrogate.save(tmp_path / "s.safetensors")
    loaded = load_surrogate(tmp_path / "s.safetensors")
    assert loaded.convolutions == surrogate.convolutions
    assert [c.place for c in loaded.convolutions] == [c.place for c in surrogate.convolutions]
    assert loaded.facts == {"model": "test"}
    for method in (pl.Gradient(), pl.method("deeplift")):
        ours = method(model, x, [1, 2], "all", variant=surrogate)
        theirs = method(model, x, [1, 2], "all", variant=loaded)
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)
    with torch.inference_mode():
        within = load_surrogate(tmp_path / "s.safetensors")
    pl.Gradient()(model, x, variant=within)
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]


def test_files_that_are_no_surrogate_are_refused(network, tmp_path):
    _, surrogate, _, _ = network
    path = tmp_path / "s.safetensors"
    with pytest.raises(InvalidParameter, match="safetensors"):
        surrogate.save(tmp_path / "s.pt")
    with pytest.raises(OutputNotWritable, match="nowhere"):
        surrogate.save(tmp_path / "nowhere" / "s.safetensors")
    with pytest.raises(InvalidWeights, match="there is no surrogate file"):
        load_surrogate(path)
    surrogate.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(InvalidWeights, match="broken or cut short"):
            load_surrogate(path)
    safetensors.torch.save_file({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(InvalidWeights, match=r"no surrogate, but 1 tensors such as conv\.weight"):
        load_surrogate(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, _: tensors.pop("path1.bias2"), "damaged surrogate.*path1.bias2"),
        (lambda tensors, _: tensors.update({"path1.bias2": torch.zeros(3)}), r"path1.bias2 is \(3,\) instead"),
        (lambda tensors, _: tensors["path1.bias2"].fill_(float("nan")), "path1.bias2 holds NaN"),
        (lambda _, header: header["convolutions"][0].pop("stride"), "damaged surrogate.*stride"),
    ],
)
def test_damaged_content_is_refused(network, tmp_path, damage, message):
    _, surrogate, _, _ = network
    path = tmp_path / "s.safetensors"
    surrogate.save(path)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["surrogate"])
    tensors = safetensors.torch.load_file(path)
    for checksum in ("sha256", "digests"):  # as files of earlier versions had none
        del header[checksum]
    damage(tensors, header)
    safetensors.torch.save_file(tensors, path, {"surrogate": json.dumps(header)})
    with pytest.raises(InvalidWeights, match=message):
        load_surrogate(path)


def test_a_weight_that_is_overwritten_without_a_version_has_another_digest():
    weight = torch.arange(6.0)
    before = digest(weight)
    weight.data.neg_()
    assert digest(weight) != before
