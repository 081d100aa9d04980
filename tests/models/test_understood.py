"""Functions of torchvision's that are understood, so that masks and boxes go where pixels go; others are not."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, v2

from pellucid.errors import InvalidImage, InvalidParameter, WeightsWarning
from pellucid.models.preprocess import IMAGENET, CustomPreprocess, Preprocess, understood
from pellucid.models.zoo import load_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = T.Normalize(MEAN, STD)
KNOWN = {
    "imagenet": (T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), NORMALIZE]), IMAGENET),
    "preset": (ResNet18_Weights.DEFAULT.transforms(), IMAGENET),
    "squashed": (T.Compose([T.Resize((40, 60)), T.ToTensor()]), Preprocess((40, 60), None, None, None)),
    "tensor": (T.ToTensor(), Preprocess(None, None, None, None)),
    "cropped": (
        T.Compose([T.CenterCrop((64, 64)), T.PILToTensor(), T.ConvertImageDtype(torch.float32)]),
        Preprocess(None, 64, None, None),
    ),
    "bicubic": (
        T.Compose([T.Resize(48, InterpolationMode.BICUBIC), T.ToTensor(), NORMALIZE]),
        Preprocess(48, None, MEAN, STD, interpolation="bicubic"),
    ),
    "gray first": (
        T.Compose([T.Grayscale(), T.Resize(48), T.ToTensor(), T.Normalize([0.5], [0.25])]),
        Preprocess(48, None, (0.5,), (0.25,), 1),
    ),
    "gray without a mean": (T.Compose([v2.Grayscale(1), T.ToTensor()]), Preprocess(None, None, None, None, 1)),
    "new": (
        v2.Compose(
            [
                v2.Resize(48), v2.CenterCrop(40), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        ),
        Preprocess(48, 40, MEAN, STD),
    ),
}  # fmt: skip
UNKNOWN = {
    "gray thrice": T.Compose([T.Grayscale(3), T.ToTensor(), NORMALIZE]),
    "gray later": T.Compose([T.Resize(48), T.Grayscale(), T.ToTensor()]),
    "flipped": T.Compose([T.Resize(48), T.RandomHorizontalFlip(1.0), T.ToTensor()]),
    "cropped first": T.Compose([T.CenterCrop(90), T.Resize(48), T.ToTensor()]),
    "twice": T.Compose([T.Resize(48), T.Resize(40), T.ToTensor()]),
    "oblong": T.Compose([T.CenterCrop((40, 60)), T.ToTensor()]),
    "bounded": T.Compose([T.Resize(40, max_size=41), T.ToTensor()]),
    "bytes": T.Compose([T.Resize(48), T.PILToTensor()]),
    "on tensors": T.Compose([T.ToTensor(), T.Resize(48, antialias=False)]),
    "a function": lambda image: torch.zeros(3, 4, 4),
    "a failing one": lambda image: 1 / 0,
    "no function": 3,
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_understood_gives_the_same_pixels(name):
    function, expected = KNOWN[name]
    assert understood(function) == expected
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (150, 211, 3)).astype(np.uint8))
    theirs = function(image).as_subclass(torch.Tensor)
    torch.testing.assert_close(understood(function)(image), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_normalize_of_one_mean_is_of_the_models_channels(channels):
    """It broadcasts, so that it is the same for a model of three channels, and as natural for gray images."""
    one = T.Compose([T.Resize(48), T.ToTensor(), T.Normalize([0.5], [0.25])])
    found = understood(one, channels)
    assert found == Preprocess(48, None, (0.5,) * channels, (0.25,) * channels, channels)
    if channels == 1:
        assert understood(one) == found
    four = T.Compose([T.ToTensor(), T.Normalize([0.1, 0.2, 0.3, 0.4], [1.0] * 4)])
    assert understood(four, channels) == Preprocess(None, None, (0.1, 0.2, 0.3, 0.4), (1.0,) * 4, 4)


def test_seven_means_are_of_seven_channels():
    to_floats = v2.ToDtype(torch.float32, scale=True)
    function = v2.Compose([v2.ToImage(), v2.Resize(48), to_floats, v2.Normalize([0.5] * 7, [2.0] * 7)])
    expected = Preprocess(48, None, (0.5,) * 7, (2.0,) * 7, 7)
    assert understood(function) == expected
    tile = np.random.default_rng(0).random((60, 70, 7), dtype=np.float32)
    theirs = function(tile).as_subclass(torch.Tensor)
    torch.testing.assert_close(expected(tile), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gray", ["", "T.Grayscale(), "])
def test_a_compose_for_gray_images_takes_those_of_16_bits_and_a_scale(tmp_path, gray):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision import transforms as T\n"
        f"preprocess = T.Compose([{gray}T.ToTensor(), T.Normalize([0.5], [0.5])])\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)).eval()\n"
    )
    loaded = load_model(f"{tmp_path}/net.py:net").seeing(scale=(200, 3821))
    values = np.linspace(200, 3821, 64).astype(np.uint16).reshape(8, 8)
    expected = (torch.from_numpy(values.astype(np.float32) - 200) / 3621 - 0.5) / 0.5
    torch.testing.assert_close(loaded.preprocess(Image.fromarray(values))[0], expected)
    assert loaded.model(loaded.preprocess(Image.new("L", (8, 8), 250))[None]).shape == (1, 2)
    plain = load_model("resnet18").seeing(f"{tmp_path}/net.py:preprocess")
    assert plain.preprocess.channels == (1 if gray else 3)


@pytest.mark.parametrize("name", UNKNOWN)
def test_whatever_else_a_function_does_is_not_taken_for_known(name):
    assert understood(UNKNOWN[name]) is None


def test_random_weights_are_said_unless_they_are_asked_for(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Conv2d(3, 2, 3)\n")
    with pytest.warns(WeightsWarning, match="sanity-cnn has random weights, .* or 'random' if that is meant"):
        load_model("sanity-cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("sanity-cnn", "random")
        load_model("shapes-resnet")
        load_model(f"{tmp_path}/net.py:net")  # which may load its own


def test_a_function_of_gray_images_is_told_of_what_takes_16_bits():
    way_out = r"Preprocess\(mean=\(\.5,\), std=\(\.5,\), channels=1\)"
    steps = [T.ToTensor(), T.Lambda(lambda pixels: pixels), T.Normalize([0.5], [0.5])]
    function = CustomPreprocess(T.Compose(steps))
    with pytest.raises(InvalidImage, match=rf"failed on the image, .* uint16 .*float tensor.*{way_out}"):
        function(np.zeros((8, 8), np.uint16))
    loaded = replace(load_model("resnet18"), preprocess=function)
    with pytest.raises(InvalidParameter, match=rf"--scale is for a Preprocess; .*{way_out}"):
        loaded.seeing(scale=(0, 9))


def test_a_model_files_compose_is_a_preprocess(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision import transforms as T\n"
        "preprocess = T.Compose([T.Resize(40), T.CenterCrop(32), T.ToTensor()])\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2)).eval()\n"
    )
    assert load_model(f"{tmp_path}/net.py:net").preprocess == Preprocess(40, 32, None, None)
