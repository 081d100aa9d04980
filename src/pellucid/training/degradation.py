"""Remove and retrain: which pixels a map ranks first, images without them, and the area under the curve.

ROAR and KAR (Hooker et al.; Kim et al., "Why are Saliency Maps Noisy?", Sec. 4.3) retrain a network on images
whose most (ROAR) or all but the most (KAR) salient pixels are replaced. Maps are kept as ranks alone, mapped
from a file, and images are degraded batch by batch: no copy of a data set is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.labeled import IMAGES_AT_ONCE, AlteredImages, LabeledImages
from ..errors import InvalidData, InvalidMap, InvalidParameter, require_choice
from ..files import replaced, require_regular
from ..seeds import fold_in

RemovalKind = Literal["roar", "kar"]
Counting = Literal["percentile", "floor"]
Replacement = Literal["dataset_mean", "image_mean", "random", "mask"]


# Ranks.


def salience_ranks(maps: Tensor, positions: Sequence[int], seed: int = 0) -> Tensor:
    """Rank the values of each map, 0 the most salient: (B, ...) -> (B, ...) int32, each row a permutation.

    Maps (B, H, W) rank pixels (Kim et al.), maps (B, C, H, W) rank channel values (Hooker et al.). Equal values
    would be removed from the top left on if their order decided; they are ordered at random, by ``seed`` and the
    image's position in its data set alone. That is what the N(0, 1e-4) jitter of the RectGrad code is for, but
    leaves maps of small values their order. Maps with NaN or infinite values are refused (``InvalidMap``).
    """
    values = maps.detach().flatten(1)
    finite = values.isfinite().all(1)
    if not bool(finite.all()):
        broken = positions[int((~finite).nonzero()[0])]
        raise InvalidMap(f"the map of image {broken} holds NaN or infinite values; it cannot be ranked")
    # A stable sort of shuffled values leaves ties in the shuffle's order, and all else as it is.
    shuffle = random_ranks(values.shape[1:], positions, seed).long().to(values.device)
    by_value = values.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    order = shuffle.gather(1, by_value)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape).int()


def random_ranks(shape: Sequence[int], positions: Sequence[int], seed: int = 0) -> Tensor:
    """Ranks (B, \\*shape) of a random map: Nielsen et al.'s random removal, and the floor of every comparison."""
    draws = [torch.Generator().manual_seed(fold_in(seed, position)) for position in positions]
    return torch.stack([torch.randperm(math.prod(shape), generator=draw) for draw in draws]).view(-1, *shape).int()


def write_ranks(path: str | Path, parts: Iterable[Tensor], count: int) -> None:
    """Write the ranks of ``count`` images, given in parts (B, ...), as one .npy file of 16-bit integers.

    32-bit ones are taken where a map has more than 65 536 values. The file is moved into its place when it is
    whole, so a broken run leaves none. Parts of other images or shapes are refused (``InvalidData``).
    """
    found, shape = 0, None
    with replaced(Path(path)) as file:
        for part in parts:
            if shape is None:
                shape = tuple(part.shape[1:])
                # Ranks run from 0, so 65 536 values still fit into 16 bits.
                kind = np.dtype("<u2" if math.prod(shape) <= 1 << 16 else "<i4")
                header = {"descr": kind.str, "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if tuple(part.shape[1:]) != shape:
                raise InvalidData(f"ranks {tuple(part.shape[1:])} follow ranks {shape}; all maps need one shape")
            file.write(part.cpu().numpy().astype(kind).tobytes())
            found += len(part)
        if found != count:
            raise InvalidData(f"{path}: ranks of {found} images came, not of {count}; rank every image once")


def open_ranks(path: str | Path) -> Tensor:
    """Map ranks (N, ...) from a file of :func:`write_ranks`; what is not used is not read.

    16-bit ranks come as ``torch.int16`` of the same bits; :class:`DegradedImages` widens each batch. A file that
    is missing, cut short or of another format is refused (``InvalidData``).
    """
    try:
        require_regular(path)
        ranks = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch wants to be able to write
    except (OSError, ValueError) as error:
        raise InvalidData(f"{path} holds no ranks that can be read ({error}); remove it and rank again") from error
    if ranks.dtype.str not in ("<u2", "<i4") or ranks.ndim not in (3, 4):
        raise InvalidData(f"{path} holds {ranks.dtype} {ranks.shape}, no ranks; remove it and rank again")
    # Torch does little with unsigned 16 bits, so the same bits are taken with a sign.
    return torch.from_numpy(ranks.view("<i2") if ranks.dtype.str == "<u2" else ranks)


# Degraded images.


@dataclass(frozen=True)
class Degradation:
    """Which values are replaced, and by what.

    Attributes:
        fraction: p in [0, 1]: the share removed by ROAR, the share *kept* by KAR (as RectGrad's code has it).
        how: ``"roar"`` replaces the most salient values, ``"kar"`` all others.
        replacement: ``"dataset_mean"``, each channel's mean over the training set (Hooker, RectGrad);
            ``"image_mean"``, each channel's mean over the image (Nielsen); ``"random"``, uniform in [0, 1];
            ``"mask"`` shows which pixels are left and nothing of them: 1 where an image is left, 0 where it is
            replaced, the control that tells what places alone give away.
        counting: ``"percentile"``: what lies above (ROAR) or below (KAR) the linearly interpolated percentile
            100 (1 - p) of the map, as RectGrad's code: of N values, N - 1 - floor((1 - p)(N - 1)) are removed or
            ceil((1 - p)(N - 1)) replaced. ``"floor"``: floor(p N) are removed or kept, as Hooker's code.
        seed: of the random replacement; an image's values depend on it and on the image's position alone.
    """

    fraction: float
    how: RemovalKind = "roar"
    replacement: Replacement = "dataset_mean"
    counting: Counting = "percentile"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise InvalidParameter(f"fraction={self.fraction}: give a share in [0, 1]")
        require_choice("how", self.how, RemovalKind)
        require_choice("replacement", self.replacement, Replacement)
        require_choice("counting", self.counting, Counting)

    def replaced(self, count: int) -> int:
        """How many of ``count`` ranked values are replaced."""
        share = Fraction(self.fraction).limit_denominator(10**6)  # 0.1 is a tenth, not the float next to it
        if self.counting == "floor":
            top = math.floor(share * count)
            return top if self.how == "roar" else count - top
        # This is the percentile's place in the ascending order of N values, of which 0 is the first.
        threshold = (1 - share) * (count - 1)
        # Strictly above the place there are N - 1 - floor(place) values, strictly below it ceil(place).
        return count - 1 - math.floor(threshold) if self.how == "roar" else math.ceil(threshold)

    def __call__(
        self, images: Tensor, ranks: Tensor, positions: Sequence[int], mean: Tensor | None = None
    ) -> Tensor:
        """Replace values of images (B, C, H, W) by their ranks (B, H, W) or (B, C, H, W), on the images' device.

        Bytes become floats in [0, 1] first; floats must lie in [0, 1] already and keep their type. The images'
        ``positions`` in their data set are asked for by the random replacement alone, the channels' ``mean`` (C,)
        in [0, 1] by ``"dataset_mean"``.

        Raises:
            InvalidData: ranks that do not fit the images.
            InvalidParameter: the data set's mean is missing.
        """
        if ranks.shape not in (images.shape, images.shape[:1] + images.shape[2:]):
            raise InvalidData(
                f"ranks {tuple(ranks.shape)} do not fit images {tuple(images.shape)}; "
                "give (B, H, W) for pixels or (B, C, H, W) for channel values"
            )
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        ranks = ranks.to(images.device)
        count = ranks[0].numel()
        number = self.replaced(count)
        # Rank 0 is the most salient, which ROAR removes first and KAR last.
        gone = ranks < number if self.how == "roar" else ranks >= count - number
        gone = gone.unsqueeze(1) if gone.dim() == 3 else gone
        left = torch.ones_like(images) if self.replacement == "mask" else images
        return torch.where(gone, self.values(images, positions, mean), left)

    def values(self, images: Tensor, positions: Sequence[int], mean: Tensor | None) -> Tensor:
        """What replaced values become, of a shape that spreads over the images."""
        if self.replacement == "mask":
            return images.new_zeros(())
        if self.replacement == "image_mean":
            return images.mean((2, 3), keepdim=True)
        if self.replacement == "random":
            seeds = [torch.Generator().manual_seed(fold_in(self.seed, position)) for position in positions]
            return torch.stack(
                [torch.rand(images.shape[1:], generator=seed, dtype=torch.float32) for seed in seeds]
            ).to(images)
        if mean is None:
            raise InvalidParameter("replacement='dataset_mean' needs the training set's mean: give mean (C,)")
        return mean.to(images)[:, None, None]


@dataclass(frozen=True, eq=False)
class DegradedImages(AlteredImages):
    """A data set seen through its ranks: an item is ``(image (C, H, W) float in [0, 1], label)``.

    Attributes:
        images: what is degraded; its rows say which of the ranks are whose.
        ranks: one for each of ``images.pixels`` (else ``InvalidData``), by :func:`salience_ranks`,
            :func:`random_ranks` or :func:`open_ranks`.
        degradation: which values are replaced, and by what.
        mean: (C,) in [0, 1]: of the *training* images, for both sets; only ``"dataset_mean"`` asks for it.
    """

    images: LabeledImages
    ranks: Tensor
    degradation: Degradation
    mean: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.images.pixels):
            raise InvalidData(
                f"ranks of {len(self.ranks)} maps for {len(self.images.pixels)} images; rank every image once"
            )

    def __repr__(self) -> str:
        return f"{self.images!r}, {self.degradation!r}"

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Degraded images (B, C, H, W) float32 in [0, 1] and labels (B,) at these indices."""
        pixels, labels = self.images.batch(indices)
        # Rows say where the images lie in the whole data set, which
        # is what ranks and seeds go by, however it was split.
        rows = self.images.rows[indices]
        ranks = self.ranks[rows.to(self.ranks.device)]
        if ranks.dtype == torch.int16:  # written without a sign
            ranks = ranks.int() & 0xFFFF
        return self.degradation(pixels, ranks, rows.tolist(), self.mean), labels

    @cached_property
    def fingerprint(self) -> str:
        """A digest of images, ranks and settings, which tells sets of other content apart."""
        settings = f"{self.images.fingerprint} {self.degradation} {self.mean}"
        digest = blake2b(settings.encode(), digest_size=16)
        for rows in self.images.rows.split(IMAGES_AT_ONCE):
            digest.update(self.ranks[rows.to(self.ranks.device)].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


# The curve.


def removal_auc(
    fractions: Sequence[float], accuracies: Sequence[float], clean: float, chance: float, how: RemovalKind = "roar"
) -> float:
    """The area under accuracy over p in [0, 1] by the trapezoid rule, in [0, 1].

    A ROAR curve starts at the clean accuracy (p = 0) and ends at chance (p = 1), a KAR curve, whose p is kept, the
    other way round. Kim et al. released no formula for their Table 1.

    Raises:
        InvalidParameter: fractions that do not rise within (0, 1), or of another number than the accuracies.
    """
    first, last = (clean, chance) if how == "roar" else (chance, clean)
    x, y = [0.0, *fractions, 1.0], [first, *accuracies, last]
    if len(x) != len(y) or any(b <= a for a, b in pairwise(x)):
        raise InvalidParameter(
            f"removal_auc: fractions {list(fractions)} with {len(accuracies)} accuracies; give fractions that "
            "rise within 0 and 1, and one accuracy each"
        )
    steps = zip(pairwise(x), pairwise(y), strict=True)
    return sum((b - a) * (low + high) / 2 for (a, b), (low, high) in steps)
