"""How each network is trained: optimizer, schedule, order, augmentation; data, and the formulas they name."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..errors import InvalidParameter, require_choice, require_count

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "one_cycle"]
Keep = Literal["last", "best"]
TrainingPrecision = Literal["auto", "full", "bfloat16"]


@dataclass(frozen=True)
class Hyperparameters:
    """The settings of one training; plain values, so that they can stand beside the weights.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per step, at least 2 (batch normalization needs them).
        optimizer: ``"adam"``, ``"adamw"`` (decoupled decay) or ``"sgd"`` (momentum 0.9, Nesterov).
        learning_rate: the rate, or the peak of its cycle; above 0.
        schedule: ``"constant"``, or ``"one_cycle"`` (see :func:`one_cycle`).
        weight_decay: AdamW's decay; for the others lambda of an added loss lambda / 2 ||W||^2.
        decayed: which parameters it touches, as glob patterns of their names.
        shuffle: a new order in every epoch, drawn from (seed, epoch); else the order of the data.
        augmentation: one of :data:`AUGMENTATIONS`.
        validation: the share of the training images held out where no other validation set is given.
        adversarial: how far a pixel in [0, 1] is moved against the network before each step (``attacked``), as
            by 8 / 255; 0 trains plainly. ``attack_steps``: by how many gradients it is moved.
        precision: of the passes: ``"full"``; ``"bfloat16"``, under autocast and channels-last, several times
            faster on processors with units for it (weights stay in full precision); ``"auto"``, so on a GPU.
        keep: the weights after the ``"last"`` epoch, or those of the ``"best"`` validation accuracy.
        source: where the settings are from, and which are ours.

    Raises:
        InvalidParameter: a setting out of its range.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    schedule: Schedule = "one_cycle"
    weight_decay: float = 1e-2
    decayed: tuple[str, ...] = ("*",)
    shuffle: bool = True
    augmentation: str = "none"
    validation: float = 0.1
    adversarial: float = 0.0
    attack_steps: int = 7
    precision: TrainingPrecision = "auto"
    keep: Keep = "last"
    source: str = "this project"

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs)
        require_count("batch_size", self.batch_size)
        require_count("attack_steps", self.attack_steps)
        ranges = (
            ("batch_size", self.batch_size >= 2, "2 or more"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a number above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a number of at least 0"),
            ("validation", 0 < self.validation < 1, "a share between 0 and 1"),
            ("adversarial", 0 <= self.adversarial < 1, "a share of the pixels' range, at least 0 and below 1"),
            ("augmentation", self.augmentation in AUGMENTATIONS, f"one of {', '.join(AUGMENTATIONS)}"),
        )
        for name, fits, wanted in ranges:
            if not fits:
                raise InvalidParameter(f"{name}={getattr(self, name)!r}: give {wanted}")
        kinds = {"optimizer": Optimizer, "schedule": Schedule, "keep": Keep, "precision": TrainingPrecision}
        for name, kind in kinds.items():
            require_choice(name, getattr(self, name), kind)

    def build(self, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer of parameters by name."""
        decayed = {name for pattern in self.decayed for name in fnmatch.filter(parameters, pattern)}
        groups = []
        for decays, rate in ((True, self.weight_decay), (False, 0.0)):
            values = [value for name, value in parameters.items() if (name in decayed) == decays]
            groups += [{"params": values, "weight_decay": rate}] if values else []
        match self.optimizer:
            case "adam":
                return torch.optim.Adam(groups, self.learning_rate)
            case "adamw":
                return torch.optim.AdamW(groups, self.learning_rate)
            case _:
                return torch.optim.SGD(groups, self.learning_rate, momentum=0.9, nesterov=True)

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Set the optimizer for step number ``step`` of ``steps``; a function of the step alone."""
        if self.schedule == "constant":
            return
        rate, momentum = one_cycle(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum


def in_bfloat16(precision: TrainingPrecision, like: Tensor) -> bool:
    """Tell whether passes on a tensor's device run in bfloat16."""
    return precision == "bfloat16" or (precision == "auto" and like.is_cuda)


def one_cycle(step: int, steps: int) -> tuple[float, float]:
    """The share of the peak rate, and the momentum (Adam's beta_1), of Smith's one-cycle policy.

    The rate rises along a cosine from 1/25 to 1 in the first 30 % of the steps and falls to 4e-6, while the
    momentum falls from 0.95 to 0.85 and rises again; the numbers are those of torch's ``OneCycleLR``.
    """
    # Torch counts so, too: the peak may lie between two steps.
    peak, last = 0.3 * steps - 1, steps - 1
    if step <= peak:
        rate, momentum, done = (1 / 25, 1.0), (0.95, 0.85), step / peak
    else:
        rate, momentum, done = (1.0, 1 / 25e4), (0.85, 0.95), (step - peak) / (last - peak)

    rise, fall = ((end + (start - end) / 2 * (1 + math.cos(math.pi * done))) for start, end in (rate, momentum))
    return rise, fall


# Augmentations: images (B, C, H, W) and a generator on the CPU -> images of the same shape.


def random_symmetry(images: Tensor, draw: Generator) -> Tensor:
    """Turn and mirror a batch (B, C, N, N) by one of the square's eight symmetries, drawn at random."""
    turns, mirrored = torch.randint(4, (), generator=draw).item(), torch.randint(2, (), generator=draw).item()
    images = torch.rot90(images, int(turns), (2, 3))
    return images.flip(3) if mirrored else images


def random_flip(images: Tensor, draw: Generator) -> Tensor:
    """Mirror each image with probability one half."""
    mirrored = torch.randint(2, (len(images), 1, 1, 1), generator=draw).bool().to(images.device)
    return torch.where(mirrored, images.flip(3), images)


def random_crop_flip(images: Tensor, draw: Generator) -> Tensor:
    """Shift each image by up to an eighth of its side, black moving in, and mirror every other one.

    He et al., "Deep Residual Learning", Sec. 4.2: 4 pixels of padding around 32 x 32.
    """
    height, width = images.shape[2:]
    reach = max(height, width) // 8
    corners = torch.randint(2 * reach + 1, (2, len(images), 1), generator=draw).to(images.device)
    rows = corners[0] + torch.arange(height, device=images.device)
    columns = corners[1] + torch.arange(width, device=images.device)
    # Places come first, so that three indices take each image's own window at once.
    padded = F.pad(images, [reach] * 4).permute(0, 2, 3, 1)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    cropped = padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return random_flip(cropped, draw)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": lambda images, draw: images,
    "symmetry": random_symmetry,
    "flip": random_flip,
    "crop_flip": random_crop_flip,
}


# The papers' settings.

_CONSTANT = Hyperparameters(optimizer="adam", learning_rate=1e-3, schedule="constant", weight_decay=0.0)
_RESNET = Hyperparameters(
    epochs=30, batch_size=128, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, augmentation="crop_flip",
    source="after He et al., Deep Residual Learning, Sec. 4.2; its user, Nielsen et al., gives none; "
    "ours: one cycle",
)  # fmt: skip

_PLAIN = Hyperparameters(
    epochs=20, batch_size=128, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, augmentation="crop_flip",
    source="ours: the released weights came without settings",
)  # fmt: skip

HYPERPARAMETERS: Mapping[str, Hyperparameters] = {
    "sanity-cnn": replace(
        _CONSTANT, epochs=50, batch_size=50, learning_rate=1e-4, validation=1 / 12, keep="best",
        source="Wienecke and Hinrichs, Sanity Checks for Saliency Maps, section 2.1: Adam 1e-4, 5 000 of 60 000 "
        "images held out, the best weights kept",
    ),
    "selu-cnn": replace(_CONSTANT, source="ours: Nielsen et al. give no settings"),
    "cifar-cnn": replace(
        _CONSTANT, epochs=20, batch_size=100, shuffle=False,
        source="Kim et al., Why are Saliency Maps Noisy?, released code: Adam 1e-3, batches of 100 in the order "
        "of the data, no augmentation",
    ),
    "cifar-resnet18": _RESNET,
    "cifar-resnet20": _RESNET,
    "cifar-resnet56": _RESNET,
    "cifar-resnet2b": _PLAIN,
    "cifar-resnet4b": _PLAIN,
    "mnist-lenet5": replace(_CONSTANT, source="ours: the released weights came without settings"),
    "tiny-resnet18": _RESNET,
    "shapes-resnet": Hyperparameters(epochs=12, augmentation="symmetry"),
    "unet": Hyperparameters(epochs=60, batch_size=8, augmentation="symmetry", validation=0.2),
}  # fmt: skip
"""The papers' settings by network. Adebayo et al.'s regularized sanity-check CNN is
``replace(HYPERPARAMETERS["sanity-cnn"], weight_decay=1e-3, decayed=("conv?.weight", "linear1.weight"))``."""

LARGE = Hyperparameters(
    epochs=30, batch_size=64, optimizer="sgd", learning_rate=0.025, weight_decay=1e-4, augmentation="flip",
    source="ours, after torchvision's reference training of ResNets: 0.1 at 256 images; one cycle",
)  # fmt: skip
"""For every other network, such as torchvision's ResNet-34 and ResNet-50."""


def hyperparameters_of(name: str, **changed: Any) -> Hyperparameters:
    """The settings that a network is trained with by default; those ``changed``, unless None, replace them."""
    known = HYPERPARAMETERS.get(name, LARGE)
    given = {key: value for key, value in changed.items() if value is not None}
    return replace(known, **given) if given else known
