"""Functions of torchvision's that are understood, so that masks and boxes go where pixels go; others are not."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, v2

from pellucid.models.preprocess import IMAGENET, Preprocess, understood
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


@pytest.mark.parametrize("name", UNKNOWN)
def test_whatever_else_a_function_does_is_not_taken_for_known(name):
    assert understood(UNKNOWN[name]) is None


def test_a_model_files_compose_is_a_preprocess(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision import transforms as T\n"
        "preprocess = T.Compose([T.Resize(40), T.CenterCrop(32), T.ToTensor()])\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2)).eval()\n"
    )
    assert load_model(f"{tmp_path}/net.py:net").preprocess == Preprocess(40, 32, None, None)
