"""Arguments of the Python functions: each of another kind, shape or range in its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pellucid as pl
from pellucid.data.labeled import LabeledImages
from pellucid.data.sources import open_images
from pellucid.errors import InvalidImage
from pellucid.heatmap import clip_percentiles, normalize
from pellucid.metrics.faithfulness import deletion, insertion
from pellucid.metrics.localization import box_mask
from pellucid.metrics.noise import total_variation
from pellucid.metrics.scoring import Scorer
from pellucid.metrics.similarity import hog, hog_similarity, min_max, spearman, ssim
from pellucid.models.preprocess import Preprocess
from pellucid.models.zoo import load_model
from pellucid.pixels import Pixels, picture
from tests.fuzz.trial import PLAIN, answer, tried


class Strict(nn.Sequential):
    """A model that says itself which images it takes: what it raises is its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 3:
            raise InvalidImage(f"images of {tuple(images.shape)}")
        return super().forward(images)


MODEL = Strict(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)).eval()
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
MAPS, LARGE = IMAGES.mean(1), torch.linspace(0, 1, 2 * 48 * 50).view(2, 48, 50).sin()
TENSORS = [
    IMAGES,
    MAPS,
    LARGE,
    torch.zeros(0),
    torch.zeros(()),
    torch.zeros(2, 0, 8),
    torch.zeros(0, 3, 8, 8),
    IMAGES.long(),
    IMAGES.bool(),
    IMAGES.double(),
    IMAGES.half(),
    IMAGES.to(torch.complex64),
    IMAGES / 0,
    MAPS / 0,
    MAPS * float("nan"),
    torch.zeros(2, 3, 9, 7),
    torch.zeros(3, 8, 8),
    torch.zeros(2, 1, 8, 8),
    torch.tensor([0, 9]),
    torch.tensor([0, 1]),
    torch.zeros(2, 8, 8, requires_grad=True),
    IMAGES.numpy(),
    np.zeros(3, object),
    IMAGES.to_sparse(),
    torch.zeros(2, 3, 8, 8, device="meta"),
]
OBJECTS = [
    object(),
    print,
    nn.Linear(2, 2),
    nn.Linear,
    MODEL,
    {"a"},
    b"x",
    range(3),
    1j,
    ["input"],
    ("input", "0"),
    "all",
    "auto",
]
wrong = st.sampled_from([*TENSORS, *PLAIN, *OBJECTS])

method = pl.method("smoothed(gradient, samples=2)")
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "heatmap": (
        pl.heatmap,
        {"attribution": IMAGES, "size": (16, 16), "channels": "sum", "upsampling": "bilinear", "clip": (1, 99)},
    ),
    "clip": (clip_percentiles, {"maps": MAPS, "low": 1, "high": 99}),
    "normalize": (normalize, {"maps": MAPS, "display": "diverging", "percentile": 99.0}),
    "ssim": (ssim, {"a": LARGE, "b": LARGE, "data_range": 1.0}),
    "spearman": (spearman, {"a": MAPS, "b": MAPS, "absolute": True}),
    "hog": (hog, {"maps": LARGE}),
    "hog_similarity": (hog_similarity, {"a": LARGE, "b": LARGE}),
    "min_max": (min_max, {"maps": MAPS}),
    "total_variation": (total_variation, {"attribution": IMAGES, "normalized": True}),
    "deletion": (
        deletion,
        {
            "model": MODEL,
            "images": IMAGES,
            "targets": 1,
            "heatmaps": MAPS,
            "steps": 4,
            "substrate": "zero",
            "tolerance": 0.1,
            "max_batch": 4,
            "output": "logits",
            "variant": "original",
            "precision": "full",
        },
    ),
    "insertion": (
        insertion,
        {"model": MODEL, "images": IMAGES, "targets": [0, 1], "heatmaps": MAPS, "steps": "auto", "start": "blur"},
    ),
    "method": (
        method,
        {
            "model": MODEL,
            "images": IMAGES,
            "targets": 1,
            "layers": "0",
            "variant": "original",
            "seed": 1,
            "max_batch": 4,
            "layouts": {"0": "bchw"},
        },
    ),
    "scorer": (
        lambda images, **settings: Scorer(**settings).scores(images),
        {
            "model": MODEL,
            "images": IMAGES,
            "variant": "original",
            "output": "softmax",
            "max_batch": 4,
            "precision": "full",
        },
    ),
    "noise": (pl.Noise, {"samples": 2, "std": 0.1, "relative": False, "moment": "mean", "space": "input"}),
    "path": (
        lambda **settings: pl.Path(**settings).nodes,
        {"steps": 4, "baseline": "zero", "quadrature": "right", "space": "layer"},
    ),
    "preprocess": (
        lambda **settings: Preprocess(**settings)(Pixels.of(IMAGES[0].numpy(), "p")),
        {
            "resize": 9,
            "crop": 8,
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "channels": 3,
            "interpolation": "bilinear",
            "scale": (0, 1),
            "bands": (1,),
        },
    ),
    "pixels": (Pixels.of, {"values": IMAGES[0].numpy(), "name": "p", "scale": (0.0, 1.0)}),
    "picture": (picture, {"pixels": IMAGES[0], "bands": (1,), "stretched": True}),
    "labeled": (
        LabeledImages.of,
        {"pixels": (IMAGES * 99).byte(), "labels": torch.tensor([0, 1]), "classes": ("a", "b")},
    ),
    "box_mask": (lambda boxes: box_mask(boxes, (8, 8)), {"boxes": [(0, 0, 4, 4)]}),
    "load_model": (
        load_model,
        {"name": "shapes-resnet", "weights": "random", "classes": 4, "device": "cpu", "seed": 0},
    ),
    "open_images": (open_images, {"spec": "shapes:2", "label_column": "label", "split": "test", "root": "data"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_made_wrong_here_is_right_before(name: str) -> None:
    call, arguments = CALLS[name]
    assert answer(lambda: call(**arguments)) is None


@pytest.mark.parametrize("name", CALLS)
@tried
@given(st.data())
def test_arguments(name: str, data: st.DataObject) -> None:
    call, arguments = CALLS[name]
    for key in data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True)):
        arguments = arguments | {key: data.draw(wrong)}
    answer(lambda: call(**arguments))
