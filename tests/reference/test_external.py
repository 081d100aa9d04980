"""Maps from elsewhere: Captum's, pytorch-grad-cam's, and functions that go wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidLayer, InvalidMap, InvalidParameter, UnknownName, failure
from pellucid.experiments.spec import shown

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return pl.load_model("shapes-resnet").model.double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_captum_saliency_is_the_absolute_gradient(network: nn.Module, images: Tensor) -> None:
    theirs = pl.method(f"{EXAMPLES / 'captum_maps.py'}:saliency")(network, images)
    ours = pl.method("gradient", absolute=True)(network, images)
    torch.testing.assert_close(theirs["input"], ours["input"], rtol=1e-9, atol=1e-12)
    assert theirs.targets.tolist() == ours.targets.tolist()


def test_the_backward_variant_reaches_captum(network: nn.Module, images: Tensor) -> None:
    """Captum differentiates the user's model, whose operations run under the variant's rules."""
    theirs = pl.method(f"{EXAMPLES / 'captum_maps.py'}:saliency")(network, images, variant="backward")
    ours = pl.method("gradient", absolute=True)(network, images, variant="backward")
    plain = pl.method("gradient", absolute=True)(network, images)
    torch.testing.assert_close(theirs["input"], ours["input"], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(theirs["input"], plain["input"], rtol=1e-2)


def test_captum_occlusion_by_hand(network: nn.Module, images: Tensor) -> None:
    """A window as large as its stride: each pixel gets its own window's fall of the logit."""
    found = pl.method(f"{EXAMPLES / 'captum_maps.py'}:occlusion", window=32, stride=32)(network, images, 1)
    with torch.no_grad():
        whole = network(images)[:, 1]
        for top, left in ((0, 0), (32, 0), (32, 32)):
            blanked = images.clone()
            blanked[:, :, top : top + 32, left : left + 32] = 0
            fall = whole - network(blanked)[:, 1]
            window = found["input"][:, :, top : top + 32, left : left + 32]
            expected = fall.view(-1, 1, 1, 1).expand_as(window)
            torch.testing.assert_close(window, expected, rtol=1e-6, atol=1e-7)  # Captum sums in float32


@pytest.mark.parametrize("name", ["layercam", "gradcam_plus_plus"])
def test_grad_cam_library(network: nn.Module, images: Tensor, name: str) -> None:
    pytest.importorskip("pytorch_grad_cam")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = pl.method(f"{EXAMPLES / 'gradcam_maps.py'}:{name}")(network, images, 0)["input"]
    assert found.shape == (3, 1, 64, 64)
    assert bool((found.flatten(1).amax(1) > 0.5).all())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_layercam_equals_its_formula(network: nn.Module, images: Tensor) -> None:
    """LayerCAM: relu(sum_c relu(gradient_c) a_c), scaled to [0, 1], bilinear to the image's size."""
    pytest.importorskip("pytorch_grad_cam")
    layer = pl.layer_names(network)[-1]
    theirs = pl.method(f"{EXAMPLES / 'gradcam_maps.py'}:layercam")(network, images, 0)["input"][:, 0]
    gradient = pl.method("gradient")(network, images, 0, layer)[layer]
    activation = pl.method("input_x_gradient")(network, images, 0, layer)[layer] / gradient.where(gradient != 0, 1)
    by_hand = (gradient.clamp_min(0) * activation).sum(1).clamp_min(0)
    by_hand = (by_hand - by_hand.amin((1, 2), keepdim=True)) / by_hand.amax((1, 2), keepdim=True)
    enlarged = pl.heatmap(by_hand[:, None], (64, 64), upsampling="bilinear")
    for theirs_one, ours_one in zip(theirs, enlarged, strict=True):
        together = torch.corrcoef(torch.stack([theirs_one.flatten(), ours_one.flatten()]))[0, 1]
        assert float(together) > 0.999  # they resize by another library


def test_samplings_wrap_a_function(network: nn.Module, images: Tensor) -> None:
    def gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images.requires_grad_()
        return torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0]

    theirs = pl.External(function=gradient).smoothed(samples=4)(network, images, 2, max_batch=5)
    ours = pl.method("smoothgrad", samples=4)(network, images, 2)
    torch.testing.assert_close(theirs["input"], ours["input"], rtol=1e-9, atol=1e-12)


def test_numpy_and_flat_maps(network: nn.Module, images: Tensor) -> None:
    def red(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
        return images[:, 0].detach().numpy()

    found = pl.External(function=red)(network, images, 0, "all", max_batch=2)
    assert list(found) == ["input"]
    assert torch.equal(found["input"][:, 0], images[:, 0])


def broken(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    maps = images.detach().clone()
    maps[-1, 0, 0, 0] = float("nan")
    return maps


def raising(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError("no weights")


BAD = {
    "nan": (broken, "broken gives NaN or infinite values for image 2 of the batch"),
    "raises": (raising, "raising failed: ZeroDivisionError: no weights"),
    "none": (lambda model, images, targets: None, "gives NoneType; it must return a tensor"),
    "one value each": (lambda model, images, targets: targets, "gives shape (3,) for 3 images"),
    "too few": (lambda model, images, targets: images[:1], "gives shape (1, 3, 64, 64) for 3 images"),
}


def test_what_a_function_raises_is_told_in_one_line(network: nn.Module, images: Tensor) -> None:
    def talking(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        raise ValueError("\n" + "x" * 300 + "\nand more")

    with pytest.raises(InvalidMap) as caught:
        pl.External(function=talking, name="talking")(network, images, 0)
    assert str(caught.value) == f"talking failed: ValueError: {'x' * 197}..."
    assert failure(KeyError()) == "KeyError"
    assert failure(RuntimeError("one\ntwo")) == "RuntimeError: one"
    assert failure(RuntimeError("two reasons:\n\tone\n\n\ttwo")) == "RuntimeError: two reasons: one two"
    assert failure(RuntimeError("many:\n" + "x\n" * 99)) == "RuntimeError: many: x x x"


def test_bytes_are_left_out_of_what_a_function_raises_and_its_line_is_named(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """A map that is looked up by the image's pixels, of an image that is not there."""
    path = tmp_path / "stored.py"
    path.write_text("def stored(model, images, targets):\n    return {}[images.detach().numpy().tobytes()]\n")
    with pytest.raises(InvalidMap) as caught:
        pl.method(f"{path}:stored")(network, images, 0)
    assert str(caught.value) == f"{path}:stored failed: KeyError (line 2)"


def test_a_function_that_leaves_the_model_in_training_mode_is_named(network: nn.Module, images: Tensor) -> None:
    def trains(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        return images

    def fails(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        raise ValueError("no weights")

    def trains_a_while(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train().eval()
        return images

    with pytest.raises(InvalidMap, match=r"trains left the model in training mode.*call model.eval"):
        pl.External(function=trains)(network, images, 0)
    assert not any(module.training for module in network.modules())
    with pytest.raises(InvalidMap, match="fails failed: ValueError: no weights"):
        pl.External(function=fails)(network, images, 0)
    assert not any(module.training for module in network.modules())
    pl.External(function=trains_a_while)(network, images, 0)


@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_is_named(network: nn.Module, images: Tensor, name: str) -> None:
    function, message = BAD[name]
    with pytest.raises(InvalidMap, match=re.escape(message)):
        pl.External(function=function)(network, images, 0)


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (1.0, pl.FlatMapWarning, "at 'input' .* so its map is of one color: constant gives it so"),
        (0.0, pl.EmptyMapWarning, r"at 'input' .* is zero everywhere \(first: image 0\); constant gives it so"),
    ],
)
def test_of_a_map_that_shows_nothing_no_cause_is_invented(
    network: nn.Module, images: Tensor, value: float, kind: type[Warning], told: str
) -> None:
    def constant(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(images), 8, 8), value)

    with pytest.warns(kind, match=f"{told}$"):
        pl.External(function=constant)(network, images, 0)


def test_files_and_names(network: nn.Module, images: Tensor) -> None:
    with pytest.raises(InvalidMap, match=r"no file of methods nowhere\.py"):
        pl.method("nowhere.py:maps")
    with pytest.raises(UnknownName, match=r"did you mean .*occlusion"):
        pl.method(f"{EXAMPLES / 'captum_maps.py'}:oclusion")
    with pytest.raises(InvalidLayer, match="gives maps at 'input' alone"):
        pl.External(function=broken)(network, images, 0, "layer1.0")


FUNCTIONS = """
import torch

def plain(model, images, targets, gain=1.0):
    return images.detach() * gain

def at(model, images, targets, layer="layer2.0", way="up"):
    value = {"layer2.0": 1.0, "layer3.0": 2.0}[layer]
    return torch.full((len(images), 1, 2, 2), -value if way == "down" else value)


def needs(model, images, targets, layer, *, gain, way="up", **others):
    return images
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "my maps (2)").mkdir()
    path = tmp_path / "my maps (2)" / "own.py"
    path.write_text(FUNCTIONS)
    return path


def test_functions_in_files_take_settings_layers_and_combinators(
    network: nn.Module, images: Tensor, tmp_path: Path, functions: Path
) -> None:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    file = tmp_path / "own.py"
    for text, layer, value in [
        (f"{file}:at", "layer2.0", 1.0),
        (f"{file}:at(layer=layer3.0)", "layer3.0", 2.0),
        (f"{file}:at( layer = 'layer3.0', way=down )", "layer3.0", -2.0),
        (f"smoothed({file}:at(way='down'), samples=2)", "layer2.0", -1.0),
    ]:
        found = pl.method(text)(network, images, 0)
        assert list(found) == [layer], text
        assert bool((found[layer] == value).all()), text
    assert torch.equal(pl.method(f"{functions}:plain")(network, images, 0)["input"], images)
    assert pl.method(f"{file}:plain(layer=layer3.0)").layer == "layer3.0"
    by_text = pl.method(f"smoothed({file}:plain(gain=2.0), samples=3, std=0.1)")(network, images, 0)["input"]
    by_keyword = pl.method(f"smoothed({file}:plain)", gain=2.0, samples=3, std=0.1)(network, images, 0)["input"]
    plain = pl.method("smoothed(gradient, samples=3, std=0.1)")
    assert torch.equal(by_text, by_keyword)
    assert by_text.std() != 0
    assert not torch.equal(by_text, 2 * images)
    torch.testing.assert_close(by_text, 2 * images, rtol=0, atol=2.0)
    assert plain.samplings == pl.method(f"smoothed({file}:plain, samples=3, std=0.1)").samplings


def test_settings_that_a_function_does_not_take_are_named(functions: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FUNCTIONS)
    with pytest.raises(UnknownName, match="did you mean gain"):
        pl.method(f"{tmp_path}/own.py:plain(gian=2)")
    with pytest.raises(
        UnknownName, match=r"'windw'; known: gain \(besides, layer=NAME says which layer its maps are of\)$"
    ):
        pl.method(f"{tmp_path}/own.py:plain(windw=3)")
    with pytest.raises(UnknownName, match=r"'windw'; known: layer, way$"):
        pl.method(f"{tmp_path}/own.py:at(windw=3)")
    with pytest.raises(
        InvalidParameter, match=r"own.py:needs needs layer and gain: write .*needs\(layer=LAYER, gain="
    ):
        pl.method(f"{tmp_path}/own.py:needs")
    assert str(pl.method(f"{tmp_path}/own.py:needs(layer=conv, gain=2)"))
    with pytest.raises(UnknownName, match="did you mean plain"):
        pl.method(f"smoothed({tmp_path}/own.py:plian)")
    with pytest.raises(InvalidParameter, match="takes no method inside"):
        pl.method(f"{tmp_path}/own.py:plain(gradient)")


def test_tables_call_functions_by_their_files_without_folders() -> None:
    for text, name in {
        "/a b/own.py:at": "own.py:at",
        "smoothed(/a b/own.py:at(layer=layer3.0), samples=3)": "smoothed(own.py:at(layer=layer3.0), samples=3)",
        "smoothed(gradient, samples=3)": "smoothed(gradient, samples=3)",
    }.items():
        assert shown(text) == name


def test_words_in_settings_need_no_quotes() -> None:
    assert pl.method("smoothed(gradient, space=input)") == pl.method("smoothed(gradient, space='input')")
    assert pl.method("gradient(absolute=True)") == pl.method("gradient", absolute=True)
