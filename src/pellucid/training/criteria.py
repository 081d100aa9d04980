"""Metrics whose every value is a training: ROAR, KAR, random removal, training-set occlusion.

What is trained, and how often, is said by the ``[training]`` table of ``pellucid benchmark``; the value of one
training is one value of the statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..data.labeled import AlteredImages, LabeledImages
from ..errors import InvalidData, InvalidParameter, require_count
from ..heatmap import Channels
from ..metrics.base import Axis, Criterion, Need
from ..metrics.localization import RECTGRAD, Mass, PatchMass
from .degradation import RemovalKind, Replacement, removal_auc

TENTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
TWENTIETHS = tuple(part / 20 for part in range(1, 20))  # the shares of images whose quantiles are kept


@dataclass(frozen=True, kw_only=True)
class Retraining(Criterion):
    """A criterion that no case alone can measure: networks are trained for it."""

    by_training: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})


# Removed pixels.


@dataclass(frozen=True, kw_only=True)
class Removal(Retraining):
    """What a network still knows when pixels are gone: a curve over fractions p of them, and its area.

    Attributes:
        how: which pixels the fraction counts (``Degradation``).
        replacement: what removed pixels become unless the spec says otherwise.
        fractions: p unless the spec says otherwise.
    """

    axis: ClassVar[Axis] = "faithfulness"
    ends = (0, 1)
    how: ClassVar[RemovalKind]
    replacement: ClassVar[Replacement]
    fractions: ClassVar[tuple[float, ...]] = TENTHS

    def area(self, fractions: Sequence[float], values: Sequence[float], clean: float, chance: float) -> float:
        """The value of a curve, in [0, 1]; ``clean`` is what the network reaches on whole images."""
        under = removal_auc(fractions, values, clean, chance, self.how)
        return 1 - under if self.how == "kar" else under


@dataclass(frozen=True, kw_only=True)
class _Hooker(Removal):
    """Networks are trained anew on images that are degraded by a method's maps."""

    higher_is_better = False
    paper = f"{RECTGRAD}, Sec. 5.3, Table 1, Fig. 18; Hooker et al., A Benchmark for Interpretability Methods"
    replacement = "dataset_mean"


@dataclass(frozen=True, kw_only=True)
class Roar(_Hooker):
    """Remove and retrain: AUC of test accuracy over p, the share of pixels removed, the most salient first.

    For each p a new network is trained on the degraded training images and tested on the degraded test images.
    The area lies in [0, 1], with the clean accuracy at p = 0 and chance, 1 / classes, at 1 (``removal_auc``).
    """

    name = "roar"
    unit = "AUC of test accuracy"
    how = "roar"


@dataclass(frozen=True, kw_only=True)
class Kar(_Hooker):
    """Keep and retrain: AOC of test accuracy over p, the share of pixels kept, the most salient first.

    AOC = 1 - AUC, in [0, 1], with chance, 1 / classes, at p = 0 and the clean accuracy at 1 (``removal_auc``).
    """

    name = "kar"
    unit = "AOC of test accuracy"
    how = "kar"


@dataclass(frozen=True, kw_only=True)
class RandomRemoval(Removal):
    """AUC over p of the true class's mean softmax score, by networks that were trained with random gaps.

    For each p one network is trained on images that lost a share p of their pixels at random; it scores test
    images that lost their p most salient ones. So no network sees a map in training, and one serves all
    methods. The area (``removal_auc``) begins with the clean network's score; the paper shows curves alone.
    """

    name = "random_removal"
    unit = "AUC of the true class's score"
    higher_is_better = False
    paper = "Nielsen et al., Performance Evaluation of Combination Methods, Sec. III, Fig. 2 to 4"
    how = "roar"
    replacement = "image_mean"
    fractions = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


# A patch on every image.


@dataclass(frozen=True, kw_only=True)
class TrainingOcclusion(Retraining):
    """What maps attribute to a patch that every training and test image has, and that so tells nothing.

    A square of ``patch`` random pixels is pasted into the upper left corner of all images and a network trained
    on them. The value is the mean over test images of ``PatchMass`` in the corner's ``size`` pixels, which are
    fewer so that no convolution's window reaches beyond the patch; the curve holds its quantiles at 5 %, 10 %,
    ..., 95 % of the test images (linear between images). With the final threshold ``clip=(95.0, 100.0)``; without
    one ``clip=None``. ``mass``, ``channels`` and ``clip`` are ``PatchMass``'s; its default, the signed sum of the
    released code, is best at 0.
    """

    name = "training_occlusion"
    unit = "sum of attribution"
    higher_is_better = False
    paper = f"{RECTGRAD}, Sec. 3.1 and 5.3, Fig. 2 and 7: training-dataset occlusion"
    undefined = "every processed map is zero everywhere and has no shares"
    axis: ClassVar[Axis] = "localization"

    patch: int = 10
    size: int = 8
    mass: Mass = "signed"
    channels: Channels = "sum"
    clip: tuple[float, float] | None = (95.0, 100.0)

    def __post_init__(self) -> None:
        require_count("patch", self.patch)
        if self.size > self.patch:
            raise InvalidParameter(f"size={self.size} measures more than the patch of {self.patch}; give less")
        self.within()

    def within(self) -> PatchMass:
        """The mass of one map in the patch."""
        return PatchMass(size=self.size, mass=self.mass, channels=self.channels, clip=self.clip)


def random_patch(channels: int, size: int) -> Tensor:
    """The patch (channels, size, size) of bytes of the released code: NumPy's seed 100, whole numbers to 254."""
    # This is NumPy's old generator, by which the released code drew it; its upper end is left out.
    pixels = np.random.RandomState(100).randint(0, 255, (size, size, channels))
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class PatchedImages(AlteredImages):
    """A data set whose every image has the same square of pixels, which must fit, in its upper left corner."""

    images: LabeledImages
    patch: Tensor  # (C, size, size) uint8

    def __post_init__(self) -> None:
        if self.patch.shape[-1] > min(self.images.pixels.shape[-2:]):
            height, width = self.images.pixels.shape[-2:]
            raise InvalidData(f"a patch of {self.patch.shape[-1]} pixels does not fit images of {width}x{height}")

    def __repr__(self) -> str:
        return f"{self.images!r}, patched"

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Patched images (B, C, H, W) uint8 and labels (B,) at these indices."""
        pixels, labels = self.images.batch(indices)
        # The images' own pixels stay, which other trainings share.
        pixels = pixels.clone()
        pixels[:, :, : self.patch.shape[1], : self.patch.shape[2]] = self.patch.to(pixels.device)
        return pixels, labels

    @cached_property
    def fingerprint(self) -> str:
        """A digest of images and patch, which tells sets of other content apart."""
        digest = blake2b(self.images.fingerprint.encode(), digest_size=16)
        digest.update(self.patch.contiguous().numpy().tobytes())
        return digest.hexdigest()
