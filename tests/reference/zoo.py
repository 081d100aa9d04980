"""The unmodified architectures of the reference tests, and what Captum says of them.

Their code is torchvision's; of the deep ones there are a few blocks of each kind, with few channels: what further
blocks repeat costs time and tests nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from tests.networks import SkipFed, randomise, seeded

TARGETS = [1, 4]
CLASSES = 10


@contextmanager
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# name: (size of the image, hidden layers to compare)
ARCHITECTURES: dict[str, tuple[int, tuple[str, ...]]] = {
    "resnet18": (48, ("layer1.0", "layer2.1", "layer4.1")),
    "resnet50": (48, ("layer1.1", "layer3.0", "layer4.0")),
    "vgg16": (32, ("features.4", "features.16", "features.30")),
    "googlenet": (48, ("inception3a", "inception4c", "inception5b")),
    "densenet121": (48, ("features.denseblock1", "features.transition2", "features.denseblock4")),
    "mobilenet_v2": (48, ("features.3", "features.5", "features.8")),
    "convnext_tiny": (64, ("features.1.0", "features.3.1", "features.7.0")),
    "norm_free": (16, ("stem",)),
}


def vgg16() -> nn.Module:
    """VGG's classifier has nine tenths of all weights: made on no device, then made smaller."""
    family = models.vgg
    widths = [width if width == "M" else int(width) // 4 for width in family.cfgs["D"]]
    with torch.device("meta"):
        model = family.VGG(nn.Sequential(), init_weights=False)
    model.features = family.make_layers(widths)
    sizes = zip((0, 3, 6), (128 * 49, 64, 64), (64, 64, CLASSES), strict=True)
    for place, before, after in sizes:
        model.classifier[place] = nn.Linear(before, after)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model


def convnext() -> nn.Module:
    kind = models.convnext.CNBlockConfig
    return models.ConvNeXt(
        [kind(16, 24, 1), kind(24, 32, 2), kind(32, 48, 1), kind(48, None, 1)], num_classes=CLASSES
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=CLASSES),
    "resnet50": lambda: models.ResNet(models.resnet.Bottleneck, [2, 1, 1, 1], CLASSES, width_per_group=16),
    "vgg16": vgg16,
    "googlenet": lambda: models.GoogLeNet(CLASSES, aux_logits=False, init_weights=False),
    "densenet121": lambda: models.DenseNet(16, (2, 2, 3, 2), 32, num_classes=CLASSES),
    "mobilenet_v2": lambda: models.MobileNetV2(
        CLASSES, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 1, 2]]
    ),
    "convnext_tiny": convnext,
}


@cache
def network(name: str) -> nn.Module:
    if name == "norm_free":
        return seeded(lambda: SkipFed([nn.ReLU() for _ in range(4)], channels=8))
    with torch.random.fork_rng(devices=[]), double_precision():
        torch.manual_seed(0)
        model = MAKERS[name]()
        randomise(model)
        if name == "vgg16":  # its own initialisation leaves all biases 0, and so every method at grad x input
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.normal_(0, 0.1)
        calibrate(model, torch.randn(4, 3, 64, 64))
    return model


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Batch-norm running statistics near those of a batch, so that no activation dies or explodes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.train().momentum = 1.0
    model(x)
    for norm in norms:
        norm.eval().momentum = 0.1
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.5)).add_(1e-3)
        norm.running_mean.add_(torch.empty_like(norm.running_mean).normal_(0, 0.1))


def batch(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    size = ARCHITECTURES[name][0]
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


def quietly(call: Callable[[], Any]) -> Any:
    """What another library answers, without what it warns of (hooks, gradients it set, deprecated calls)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def captum_input(kind: str, model: nn.Module, x: Tensor, **settings: Any) -> Tensor:
    from captum import attr

    targets = torch.tensor(TARGETS)
    explainer = getattr(attr, kind)(model)
    found: Tensor = quietly(lambda: explainer.attribute(x.clone(), target=targets, **settings))
    return found.detach()


def captum_layer(
    kind: str, model: nn.Module, layer: str, x: Tensor, options: Any = None, **settings: Any
) -> Tensor:
    from captum import attr

    targets = torch.tensor(TARGETS)
    explainer = getattr(attr, kind)(model, model.get_submodule(layer), **(options or {}))
    found: Tensor = quietly(lambda: explainer.attribute(x.clone(), target=targets, **settings))
    return found.detach()
