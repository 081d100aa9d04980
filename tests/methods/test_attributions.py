"""Attributions kept in files, as arrays and as maps; layers and images in the forms that users have."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import pellucid as pl
from pellucid.catalog import METHODS
from pellucid.errors import (
    InvalidData,
    InvalidImage,
    InvalidLayer,
    InvalidMap,
    InvalidParameter,
    OutputNotWritable,
)
from pellucid.methods.attributions import Attributions
from tests.networks import photos_for_strided, seeded, strided


@pytest.fixture(scope="module")
def model():
    return strided()


@pytest.fixture(scope="module")
def images():
    return photos_for_strided()


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(model, images):
    found = pl.Gradient()(model, images, layers=("input", "0"))
    with pytest.raises(KeyError, match="no layer '1' was explained; there are input, 0"):
        found["1"]
    assert "1" not in found
    assert found.get("1") is None


def test_what_is_saved_is_read_again(model, images, tmp_path):
    found = pl.Gradient().integrated(steps=60)(model, images, layers=("input", "0"))
    assert found.residuals
    found.save(tmp_path / "maps.safetensors")
    read = Attributions.load(tmp_path / "maps.safetensors")
    assert same(found, read)
    assert same(found.residuals, read.residuals)
    assert torch.equal(found.targets, read.targets)
    assert found.answer == read.answer == ""
    values = {"b": torch.ones(1, 2, 3, 3, dtype=torch.float64), "a/c": torch.zeros(1, 2, dtype=torch.bfloat16)}
    odd = Attributions(values, torch.tensor([0]), prefixes={"b": torch.ones(1, 2, 1)})
    odd.save(tmp_path / "odd.safetensors")
    again = Attributions.load(tmp_path / "odd.safetensors")
    assert same(odd, again)
    assert same(odd.prefixes, again.prefixes)
    rather = pl.Gradient()(model, images, "2 - 0")
    rather.save(tmp_path / "rather.safetensors")
    assert Attributions.load(tmp_path / "rather.safetensors").answer == rather.answer == "2 - 0"
    varied = pl.method("deeplift")(model, images, variant=pl.SmoothedDownsampling(include_first=True))
    varied.save(tmp_path / "varied.safetensors")
    assert Attributions.load(tmp_path / "varied.safetensors").unchecked == varied.unchecked
    assert "no sum is promised" in varied.unchecked
    for name in ("guided_backprop", "gradient"):
        found = pl.method(name)(model, images)
        found.save(tmp_path / f"{name}.safetensors")
        assert Attributions.load(tmp_path / f"{name}.safetensors").has_sign == (name == "gradient")


SIGNLESS = ["random", "edges", "guided_backprop", "deconvnet", "rectgrad", "rectgrad_prr"]


@pytest.mark.parametrize("name", METHODS)
def test_which_methods_have_a_sign(model, images, name):
    """Rules that cut what flows back by its sign, and maps blind to the network, leave none; samplings keep it."""
    inner = METHODS[name].formula or name
    has_sign = not any(part in inner for part in SIGNLESS)
    assert pl.method(name).has_sign == has_sign
    assert not pl.method(f"smoothed({name}, samples=2, moment=squared)").has_sign
    assert pl.method(f"smoothed({name}, samples=2)").has_sign == has_sign


def test_magnitudes_have_no_sign(model, images):
    assert not pl.Gradient(absolute=True)(model, images).has_sign
    assert pl.Gradient(multiply=True)(model, images).has_sign


def test_a_confined_rule_leaves_no_sign_either(model, images):
    found = pl.Gradient(rules=(pl.GuidedReLU().at("0"), pl.GuidedReLU().at("1", "2", "3", "4")))
    assert not found.has_sign


def test_any_changed_byte_is_noticed(model, images, tmp_path):
    path = tmp_path / "maps.safetensors"
    pl.Gradient()(model, images[:1]).save(path)
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(InvalidData, match="cannot be read as attributions"):
            Attributions.load(path)
    safetensors.torch.save_file({"input": torch.ones(1)}, path)
    with pytest.raises(
        InvalidData, match="no checksum of pellucid's, as of what another program wrote; give a file"
    ):
        Attributions.load(path)
    path.write_bytes(content[:-7])
    with pytest.raises(InvalidData, match="cannot be read as attributions"):
        Attributions.load(path)


def test_what_cannot_be_saved_or_read_is_told(tmp_path):
    found = Attributions({"input": torch.ones(1, 1, 2, 2)}, torch.tensor([0]))
    with pytest.raises(InvalidParameter, match=r"does not end in .safetensors; to_numpy\(\)"):
        found.save(tmp_path / "maps.pt")
    with pytest.raises(OutputNotWritable):
        found.save(tmp_path / "missing" / "maps.safetensors")
    with pytest.raises(InvalidData, match="No such file"):
        Attributions.load(tmp_path / "none.safetensors")


def test_arrays_have_the_values(model, images):
    found = pl.Gradient()(model, images, layers=("input", "0"))
    arrays = found.to_numpy()
    assert list(arrays) == ["input", "0"]
    np.testing.assert_array_equal(arrays["0"], found["0"].numpy())
    half = Attributions({"input": torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)}, torch.tensor([0]))
    assert half.to_numpy()["input"].dtype == np.float32


@pytest.mark.parametrize("channels", ["mean", "sum", "abs_sum", "abs_max", "positive_sum"])
def test_a_map_that_varies_by_rounding_alone_has_one_value(channels):
    """As below an average over all places, where a kernel adds channels in another order at another place."""
    generator = torch.Generator().manual_seed(0)
    level = torch.randn(3, 2048, 1, 1, generator=generator).expand(-1, -1, 7, 7)
    rounded = level * (1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, level.shape, generator=generator))
    found = pl.heatmap(rounded, channels=channels)
    assert torch.equal(found.flatten(1).amax(1), found.flatten(1).amin(1))
    torch.testing.assert_close(found, pl.heatmap(level, channels=channels))
    varied = level * (1 + 1e-4 * torch.randn(level.shape, generator=generator))
    found = pl.heatmap(varied, channels=channels)
    assert bool((found.flatten(1).amax(1) > found.flatten(1).amin(1)).all())


def test_the_heatmap_of_attributions_is_that_of_their_only_layer(model, images):
    one, two = (pl.Gradient()(model, images, layers=layers) for layers in ("input", ("input", "0")))
    assert torch.equal(pl.heatmap(one), pl.heatmap(one["input"]))
    with pytest.raises(InvalidParameter, match=r"layers 'input', '0'; give those of one, attributions\['LAYER'\]"):
        pl.heatmap(two)


def test_halves_are_reduced_in_single_precision():
    values = torch.tensor([-6e4, 3e4]).expand(1, 3, 1, 2)  # sums beyond 65504, the most of a half
    exact = {"mean": [-6e4, 3e4], "sum": [-18e4, 9e4], "abs_sum": [18e4, 9e4], "positive_sum": [0, 9e4]}
    for channels, expected in exact.items():
        found = pl.heatmap(values.half(), channels=channels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor([[expected]], dtype=torch.float32), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("use", [pl.heatmap, pl.show])
def test_what_is_not_finite_is_no_attribution(use, value):
    broken = torch.ones(2, 3, 4, 4)
    broken[1, 2, 0, 0] = value
    with pytest.raises(InvalidMap, match=r"of image 1 holds NaN or infinite values"):
        use(broken)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("use", [pl.show, pl.normalize, lambda maps: pl.clip_percentiles(maps, 5, 95)])
def test_what_is_not_finite_is_no_map(use, value):
    broken = torch.ones(2, 4, 4)
    broken[1, 0, 0] = value
    with pytest.raises(InvalidMap, match=r"of image 1 holds NaN or infinite values"):
        use(broken)


def test_sums_over_channels_that_overflow_are_no_map():
    large = torch.tensor([2e38, -1e38]).expand(1, 3, 1, 2)
    with pytest.raises(InvalidMap, match=r"sums over channels overflow in torch\.float32"):
        pl.heatmap(large)
    torch.testing.assert_close(pl.heatmap(large.double()), large[:, 0].double())


def test_layers_may_be_the_models_modules(model, images):
    named = pl.Gradient()(model, images, layers=("0", "1"))
    for given in ([model[0], model[1]], [model[0], "1"]):
        assert same(named, pl.Gradient()(model, images, layers=given))
    assert list(pl.Gradient()(model, images, layers=model[0])) == ["0"]
    with pytest.raises(InvalidLayer, match="the layer Conv2d given is no part of this model"):
        pl.Gradient()(model, images, layers=nn.Conv2d(3, 4, 3))


def test_images_with_channels_last_are_told_from_others(model, images):
    with pytest.raises(InvalidImage, match=r"images.permute\(0, 3, 1, 2\)"):
        pl.Gradient()(model, images.permute(0, 2, 3, 1))


def test_a_loaded_model_is_a_model():
    loaded = pl.load_model("shapes-resnet")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = pl.Gradient()(loaded, images)
    assert same(maps, pl.Gradient()(loaded.model, images))
    values = pl.heatmap(maps, (64, 64))
    curves = [pl.insertion(model, images, maps.targets, values, steps=2).auc for model in (loaded, loaded.model)]
    assert torch.equal(*curves)
    assert pl.layer_names(loaded) == pl.layer_names(loaded.model)
    assert next(iter(pl.cascade(loaded)))[0] == next(iter(pl.cascade(loaded.model)))[0]


class HeldBy(nn.Module):
    """A layer ``act`` whose output is also read by another name: from a hook, an attribute, or as what it took."""

    def __init__(self, act, read):
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(3, 4, 3, padding=1), act, nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.read, self.kept = nn.Linear(4, 3), read, {}
        act.register_forward_hook(lambda module, taken, given: self.kept.update(given=given))

    def forward(self, x):
        taken = self.first(x)
        given = self.act(taken)
        return self.end(given, self.read(self, taken))

    def end(self, given, again):
        return self.head((self.last(given).tanh() + again * again).tanh().mean((2, 3)))


HELD = {
    "a hook": (nn.ReLU(), lambda net, taken: net.kept["given"]),
    "in place": (nn.ReLU(inplace=True), lambda net, taken: taken),
    "nothing done": (nn.Dropout(), lambda net, taken: taken),
}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize(("act", "read"), HELD.values(), ids=HELD)
def test_a_layers_output_counts_by_whatever_name_it_is_read(act, read, is_frozen):
    net = seeded(lambda: HeldBy(act, read)).requires_grad_(not is_frozen)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        net(x)
    value = net.kept["given"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(net.end(value, value)[:, 1].sum(), value)
    torch.testing.assert_close(pl.Gradient()(net, x, 1, "act")["act"], expected, rtol=1e-12, atol=1e-15)


class Position(nn.Module):
    """Gives a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, x):
        return self.place


def test_a_frozen_parameter_that_a_layer_gives_stays_frozen():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Adding(), nn.Flatten(), nn.Linear(256, 3)))
    net.requires_grad_(False)
    pl.Gradient()(net, torch.ones(1, 3, 8, 8).double(), 1, "1.position", layouts={"1.position": "channels_first"})
    assert not any(parameter.requires_grad for parameter in net.parameters())


class Adding(nn.Module):
    """Adds the position."""

    def __init__(self):
        super().__init__()
        self.position = Position()

    def forward(self, x):
        return x + self.position(x)
