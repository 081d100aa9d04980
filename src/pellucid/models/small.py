"""The small CNNs of the papers, and a small strided ResNet for the procedural shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .preprocess import Preprocess
from .segmentation import Segmentation


def _sequence(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _mnist_cnn(num_classes: int, side: int, hidden: int, activation: str, dropout: float = 0.0) -> nn.Sequential:
    """Two convolutions of 32 and 64 channels, each activated and pooled by 2, then two linear layers."""
    named = activation.lower()
    activated: type[nn.Module] = getattr(nn, activation)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 32, side, padding=side // 2),
        f"{named}1": activated(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(32, 64, side, padding=side // 2),
        f"{named}2": activated(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(64 * 7 * 7, hidden),
        f"{named}3": activated(),
    }
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return _sequence(**layers, linear2=nn.Linear(hidden, num_classes))


def sanity_cnn(num_classes: int = 10) -> nn.Sequential:
    """Build the MNIST CNN of the sanity-check report: (B, 1, 28, 28) -> (B, num_classes) logits.

    Two 5x5 convolutions of 32 and 64 channels, each with ReLU and 2x2 max-pooling, then 3136-1024-10.
    """
    return _mnist_cnn(num_classes, 5, 1024, "ReLU")


def selu_cnn(num_classes: int = 10) -> nn.Sequential:
    """Build the MNIST net of Nielsen et al.: (B, 1, 28, 28) -> (B, num_classes) logits.

    Two 3x3 convolutions of 32 and 64 channels, each with SELU and 2x2 max-pooling, then 3136-128-10 with
    dropout 0.5. It has no ReLU, so the ReLU rules do not apply to it. The paper's last softmax is left
    out: maps explain logits.
    """
    return _mnist_cnn(num_classes, 3, 128, "SELU", dropout=0.5)


def lenet5(num_classes: int = 10) -> nn.Sequential:
    """Build an MNIST CNN that is trained plainly and robustly: (B, 1, 28, 28) -> (B, num_classes) logits.

    Two 3x3 convolutions of 32 and 64 channels, each with ReLU and 2x2 max-pooling, then 3136-200-10.
    """
    return _mnist_cnn(num_classes, 3, 200, "ReLU")


def cifar_cnn(num_classes: int = 10) -> nn.Sequential:
    """Build the CIFAR-10 CNN of Rectified Gradient: (B, 3, 32, 32) -> (B, num_classes) logits.

    3x3 convolutions of 32, 32, 64 and 64 channels, max-pooling after each pair, then 4096-256-10. Weights
    start Glorot-uniform and biases at zero, as TensorFlow's do.
    """
    model = _sequence(
        conv1=nn.Conv2d(3, 32, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 32, 3, padding=1),
        relu2=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv3=nn.Conv2d(32, 64, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(64, 64, 3, padding=1),
        relu4=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        linear1=nn.Linear(64 * 8 * 8, 256),
        relu5=nn.ReLU(),
        linear2=nn.Linear(256, num_classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def cifar_resnet18(num_classes: int = 10) -> nn.Module:
    """Build ResNet-18 for small images: (B, 3, H, W) -> (B, num_classes) logits, such as 32 x 32.

    The stem is a 3x3 convolution of stride 1 without max-pooling; the rest is torchvision's ResNet-18, and
    the stem starts as its other convolutions do (He et al., normal by the fan-out).
    """
    model: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as torchvision's BasicBlock.

    (B, channels, H, W) -> (B, out_channels, H / stride, W / stride). Where the stride or the channels
    change, the shortcut is a strided 1x1 convolution.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the branch and the shortcut."""
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        rectified: Tensor = self.relu2(x + shortcut)
        return rectified


class ShapesResNet(nn.Module):
    """A small ResNet whose every reduction is a strided convolution: (B, 3, H, W) -> (B, classes) logits.

    A 5x5 stem of stride 2, then three stages of two blocks; the second and third stage open with stride 2.
    At 64x64 the stages work at 32, 16 and 8 pixels, with 24, 48 and 96 channels. Having no pooling but the
    last mean, it shows the checkerboard of strided convolutions as the large ResNets do.
    """

    def __init__(self, num_classes: int = 8, widths: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(first, first), Block(first, first))
        self.layer2 = nn.Sequential(Block(first, second, stride=2), Block(second, second))
        self.layer3 = nn.Sequential(Block(second, third, stride=2), Block(third, third))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class SlicedBlock(nn.Module):
    """He et al.'s block with shortcut A: (B, channels, H, W) -> (B, out_channels, H / stride, W / stride).

    Where the size changes, the shortcut takes every second pixel by slicing and adds channels of zeros on both
    sides; it has no weights.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.more = stride, (out_channels - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the branch and the shortcut."""
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.more, self.more)) if self.more else shortcut
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class CifarResNet(nn.Module):
    """He et al.'s ResNet of 6 n + 2 layers for CIFAR-10: (B, 3, 32, 32) -> (B, num_classes) logits.

    A 3x3 convolution to 16 channels and three stages of n blocks at 32, 16 and 8 pixels with 16, 32, 64 channels.
    """

    def __init__(self, num_classes: int = 10, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(SlicedBlock, 16, 16, 1, blocks)
        self.layer2 = _stage(SlicedBlock, 16, 32, 2, blocks)
        self.layer3 = _stage(SlicedBlock, 32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class UnnormalizedBlock(nn.Module):
    """Two 3x3 convolutions with biases beside a shortcut, without normalization; sizes as of ``Block``."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = stride == 1 and channels == out_channels
        self.shortcut = nn.Sequential(*([] if same else [nn.Conv2d(channels, out_channels, 1, stride=stride)]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the branch and the shortcut."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class UnnormalizedResNet(nn.Module):
    """The small ResNets that robust training is verified on: (B, 3, 32, 32) -> (B, num_classes) logits.

    A 3x3 stem of stride 2, stages of two blocks that open with stride 2, and two linear layers.
    """

    def __init__(self, num_classes: int = 10, stem: int = 8, width: int = 16, stages: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, stride=2, padding=1)
        self.stages = [f"layer{number + 1}" for number in range(stages)]
        for number, name in enumerate(self.stages):
            self.add_module(name, _stage(UnnormalizedBlock, width if number else stem, width, 2, 2))
        self.linear1 = nn.Linear(width * (16 >> stages) ** 2, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.relu(self.conv1(x))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1))))
        return logits


def _double(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Two 3x3 convolutions, each normalized and rectified; the first has the stride."""
    layers: list[nn.Module] = []
    for inside, step in ((channels, stride), (out_channels, 1)):
        convolution = nn.Conv2d(inside, out_channels, 3, stride=step, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A small U-Net whose encoder reduces by strided convolutions: (B, 3, H, W) -> (B, num_classes, H, W) logits.

    A 3x3 stem of stride 2, stages ``layer1`` to ``layer4`` of 16, 32, 64 and 128 channels, of which the last three
    open with stride 2; the decoder doubles bilinearly and joins the stage of that size. So its maps show the
    checkerboard of strided convolutions as those of a U-Net on a ResNet do.
    """

    def __init__(self, num_classes: int = 2, widths: tuple[int, int, int, int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _double(first, first)
        self.layer2 = _double(first, second, stride=2)
        self.layer3 = _double(second, third, stride=2)
        self.layer4 = _double(third, fourth, stride=2)
        self.up3 = _double(fourth + third, third)
        self.up2 = _double(third + second, second)
        self.up1 = _double(second + first, first)
        self.head = nn.Conv2d(first, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        first = self.layer1(self.relu(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        third = self.layer3(second)
        up = self.up3(torch.cat([_resized(self.layer4(third), third), third], 1))
        up = self.up2(torch.cat([_resized(up, second), second], 1))
        up = self.up1(torch.cat([_resized(up, first), first], 1))
        return _resized(self.head(up), x)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """The values bilinearly at another's height and width."""
    return F.interpolate(x, (like.shape[-2], like.shape[-1]), mode="bilinear", align_corners=False)


def unet(num_classes: int = 2) -> Segmentation:
    """Build a small U-Net, explained by a class's mean logit over the pixels: (B, 3, H, W) -> (B, num_classes)."""
    return Segmentation(UNet(num_classes).eval())


def _stage(
    block: Callable[..., nn.Module], channels: int, out_channels: int, stride: int, count: int
) -> nn.Sequential:
    """As many blocks; the first changes size and channels."""
    others = [block(out_channels, out_channels) for _ in range(count - 1)]
    return nn.Sequential(block(channels, out_channels, stride), *others)


class PaperModel(NamedTuple):
    """A network of a paper: how to build it, how it wants its images, and where it is described."""

    factory: Callable[..., nn.Module]
    preprocess: Preprocess
    source: str


def _small_images(size: int, mean: float, std: float, channels: int = 3) -> Preprocess:
    """For images whose channels share one mean and one standard deviation, without cropping."""
    return Preprocess(size, size, (mean,) * channels, (std,) * channels, channels)


_CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)

PAPER_MODELS: dict[str, PaperModel] = {
    "sanity-cnn": PaperModel(
        sanity_cnn,
        _small_images(28, 0.1307, 0.3081, channels=1),
        "Wienecke and Hinrichs, Sanity Checks for Saliency Maps, section 2.1 (MNIST)",
    ),
    "selu-cnn": PaperModel(
        selu_cnn,
        _small_images(28, 0.1307, 0.3081, channels=1),
        "Nielsen et al., Performance Evaluation of Combination Methods, figure 1 (MNIST)",
    ),
    "cifar-cnn": PaperModel(
        cifar_cnn,
        _small_images(32, 0.5, 0.5),
        "Kim et al., Why are Saliency Maps Noisy?, appendix F.2 (CIFAR-10)",
    ),
    "cifar-resnet18": PaperModel(
        cifar_resnet18,
        _small_images(32, 0.5, 0.5),
        "He et al., Deep Residual Learning, with a stem for 32x32 images; used by Nielsen et al. (CIFAR-10)",
    ),
    "tiny-resnet18": PaperModel(
        partial(cifar_resnet18, num_classes=200),
        _small_images(64, 0.5, 0.5),
        "the same with 200 classes of 64x64 images; used by Nielsen et al. (Tiny ImageNet)",
    ),
    "cifar-resnet20": PaperModel(
        CifarResNet,
        Preprocess(32, 32),
        "He et al., Deep Residual Learning, section 4.2 (CIFAR-10): 6 n + 2 layers, n = 3",
    ),
    "cifar-resnet56": PaperModel(partial(CifarResNet, blocks=9), Preprocess(32, 32), "the same with n = 9"),
    "cifar-resnet2b": PaperModel(
        UnnormalizedResNet,
        Preprocess(32, 32, *_CIFAR),
        "the ResNet 2B of the neural network verification competition of 2021 (CIFAR-10)",
    ),
    "cifar-resnet4b": PaperModel(
        partial(UnnormalizedResNet, stem=16, width=32, stages=2),
        Preprocess(32, 32, *_CIFAR),
        "the same, ResNet 4B",
    ),
    "mnist-lenet5": PaperModel(
        lenet5,
        _small_images(28, 0.0, 1.0, channels=1),
        "the LeNet5 of AdverTorch (Ding et al.), for plain and robust training (MNIST)",
    ),
    "shapes-resnet": PaperModel(
        ShapesResNet,
        _small_images(64, 0.5, 0.25),
        "this project, for the procedural shapes; after He et al., Deep Residual Learning",
    ),
    "unet": PaperModel(
        unet,
        _small_images(256, 0.5, 0.25),
        "this project, for cell nuclei; after Ronneberger et al., U-Net, with strided convolutions for pooling",
    ),
}
"""The papers' networks by name. The MNIST mean and std of ``selu-cnn`` are the sanity-check report's: its own
paper gives none."""
