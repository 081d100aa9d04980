"""Images whose pixels change in a map's order: what replaces them, the order, and one queue that scores them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidMap, InvalidParameter, brief, require_choice
from ..methods.checks import require_in_range
from ..sampling import reference_images
from .scoring import Scorer

Kind = Literal["insertion", "deletion"]
_Kernel = Literal["rise", "gaussian"]
Fill = Literal["zero", "blur", "gaussian", "mean"] | float
Reference = Fill | Tensor

_SIDE, _SIGMA, _TRUNCATED = 11, 5.0, 4


def blur_kernel(kernel: _Kernel = "rise") -> Tensor:
    """The 11 x 11 kernel (float64, sum 1) that blurs images for insertion, sigma 5.

    ``"rise"``: RISE's, SciPy's Gaussian filter (cut at 4 sigma) of an impulse in an 11 x 11 image, whose edges
    reflect what leaves it, so that it is nearly flat: center 0.00883, corner 0.00774. ``"gaussian"``: the
    Gaussian cut at 11 x 11 and normalized: center 0.01196, corner 0.00440.
    """
    require_choice("kernel", kernel, _Kernel)
    # SciPy cuts its Gaussian at 4 sigma = 20 pixels, which reach beyond the 11 x 11 image on all sides.
    reach = round(_TRUNCATED * _SIGMA) if kernel == "rise" else _SIDE // 2
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offset / _SIGMA).square())
    # Reflection repeats each edge's pixel: places 0..10 10..0 0..10 and so on, with period 22.
    place = (offset.long() + _SIDE // 2) % (2 * _SIDE)
    place = torch.minimum(place, 2 * _SIDE - 1 - place)
    # The filter is separable and so is the reflection, so one line of taps gives both directions.
    line = torch.zeros(_SIDE, dtype=torch.float64).index_add(0, place, taps / taps.sum())
    return torch.outer(line, line)


def blurred(images: Tensor, kernel: _Kernel = "rise") -> Tensor:
    """Images (B, C, H, W) convolved with ``blur_kernel``, channel by channel, beyond their edges zero (RISE).

    Zero is the mean of normalized images; it shows in a frame of 5 pixels (of ones: 0.547 at an edge, 0.299 at
    a corner).
    """
    channels = images.shape[1]
    weight = blur_kernel(kernel).to(images).expand(channels, 1, _SIDE, _SIDE)
    with torch.autocast(images.device.type, enabled=False):
        return F.conv2d(images, weight, padding=_SIDE // 2, groups=channels)


@dataclass(frozen=True, eq=False)
class Perturbation:
    """``insertion`` turns a reference into the image, ``deletion`` the image into a reference, pixel by pixel.

    ``reference``: ``"blur"`` (RISE's near-box kernel), ``"gaussian"`` (the true Gaussian), ``"zero"`` (of
    normalized pixels), ``"mean"`` (each image's own, channel by channel), a number, or a tensor
    (C, H, W) or (B, C, H, W).
    """

    kind: Kind
    reference: Reference

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, Kind)
        given = self.reference
        number = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
        named = isinstance(given, str) and given in ("zero", "blur", "gaussian", "mean")
        if not (isinstance(given, Tensor) or number or named):
            raise InvalidParameter(
                f"{self.kind} with reference {brief(given)}: give 'zero', 'blur', 'gaussian', 'mean', a number "
                "or a tensor"
            )

    def references(self, images: Tensor) -> Tensor:
        """The reference images: (1, C, H, W) if the same for all images, else (B, C, H, W)."""
        match self.reference:
            case "blur":
                return blurred(images)
            case "gaussian":
                return blurred(images, "gaussian")
            case "mean":
                return images.mean((2, 3), keepdim=True).expand_as(images)
            case other:
                references = reference_images(other, images)
        if not bool(references.isfinite().all()):
            raise InvalidParameter(f"{self.kind}'s reference holds NaN or infinite values; give finite pixels")
        return references


# As in RISE: insertion starts from the blurred image, deletion ends at zeros.
RISE: dict[Kind, Perturbation] = {
    "insertion": Perturbation("insertion", "blur"),
    "deletion": Perturbation("deletion", "zero"),
}


def ranks(heatmaps: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel's place (B, H, W), 0 the highest, in the decreasing order of heatmaps (B, h, w).

    Smaller heatmaps are up-sampled to ``size``, nearest. Equal values stand in reading order, row by row.
    """
    if tuple(heatmaps.shape[-2:]) != size:
        heatmaps = F.interpolate(heatmaps[:, None], size)[:, 0]
    # Up-sampled maps have many equal values, whose order would else depend on the device.
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    # This is the inverse of the permutation: the pixel order[k] has rank k.
    place = torch.arange(order.shape[1], device=order.device, dtype=torch.int32)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, place.expand_as(order)).view_as(heatmaps)


def require_heatmaps(heatmaps: Tensor, images: Tensor) -> Tensor:
    """Heatmaps on the images' device; raise ``InvalidMap`` unless they are (B, h, w) and fit the images."""
    if (
        not isinstance(heatmaps, Tensor)
        or heatmaps.dim() != 3
        or heatmaps.is_complex()
        or len(heatmaps) != len(images)
    ):
        shape = tuple(heatmaps.shape) if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise InvalidMap(f"heatmaps are {shape} for {len(images)} images; give a tensor (batch, height, width)")
    height, width = images.shape[-2:]
    if not 1 <= heatmaps.shape[1] <= height or not 1 <= heatmaps.shape[2] <= width:
        raise InvalidMap(
            f"heatmaps of {heatmaps.shape[1]} x {heatmaps.shape[2]} for images of {height} x {width} pixels; "
            "give one value per pixel, or fewer"
        )
    heatmaps = heatmaps.detach().to(images.device)
    heatmaps = heatmaps if heatmaps.is_floating_point() else heatmaps.to(images.dtype)
    broken = (~heatmaps.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise InvalidMap(f"the heatmap of image {broken[0]} holds NaN or infinite values; clean or leave it out")
    return heatmaps


class Queue:
    """Scores of images perturbed in the order of their maps, all in one queue of full batches.

    A *curve* is one perturbation of one image in the order of one map; ``shape`` (P, K, B) counts
    perturbations, maps and images, and curves are numbered through it. Ranks are computed once; what a batch
    shows is a comparison of ranks with counts. The clean images, and the references that curves share, are
    scored once.
    """

    def __init__(
        self,
        scorer: Scorer,
        images: Tensor,
        targets: Tensor,
        maps: Iterable[Tensor],
        perturbations: Sequence[Perturbation],
    ) -> None:
        self._scorer, self._images, self._targets = scorer, images, targets
        height, width = images.shape[-2:]
        self._ranks = torch.stack([ranks(require_heatmaps(each, images), (height, width)) for each in maps])
        self._inserts = torch.tensor([p.kind == "insertion" for p in perturbations], device=images.device)
        self._references, self._row = _reference_rows(perturbations, images)
        self.shape = (len(perturbations), *self._ranks.shape[:2])

    def ends(self) -> tuple[Tensor, Tensor]:
        """Scores (J,) of the curves' first and last images."""
        clean = self._scorer.of(self._images)
        require_in_range(self._targets, clean.shape[1])
        whole = clean.gather(1, self._targets[:, None])[:, 0]
        # A reference that images share, as of zeros, is scored once and read at each image's own class.
        replaced = self._scorer.scores(self._references)[self._row, self._targets]
        inserts = self._inserts[:, None]
        # Insertion runs from the reference to the image, deletion from the image to the reference.
        start, finish = torch.where(inserts, replaced, whole), torch.where(inserts, whole, replaced)
        return start[:, None].expand(self.shape).flatten(), finish[:, None].expand(self.shape).flatten()

    def score(self, curve: Tensor, count: Tensor) -> Tensor:
        """Scores (n,) of curves (n,) after so many pixels (n,)."""
        if len(curve) == 0:
            return self._images.new_empty(0)
        return self._scorer.followed(self._batches(curve, count))

    def _batches(self, curve: Tensor, count: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        most = self._scorer.most
        # Two buffers serve all batches: fresh memory costs more than what is written to it.
        rows = self._images.new_empty(min(most, len(curve)), *self._images.shape[1:])
        images = torch.empty_like(rows)
        for part, pixels in zip(curve.split(most), count.int().split(most), strict=True):
            perturbation, map_, image = torch.unravel_index(part, self.shape)
            reached = self._ranks[map_, image] < pixels[:, None, None]
            # A pixel shows the image where it was reached by an insertion, or not yet reached by a deletion.
            shown = (reached == self._inserts[perturbation][:, None, None]).to(rows)
            batch = rows[: len(part)]
            torch.index_select(self._references, 0, self._row[perturbation, image], out=batch)
            torch.index_select(self._images, 0, image, out=images[: len(part)])
            # With weights 0 and 1 a lerp is exact; torch.where takes five times as long on a CPU.
            yield batch.lerp_(images[: len(part)], shown[:, None]), self._targets[image]


def _reference_rows(perturbations: Sequence[Perturbation], images: Tensor) -> tuple[Tensor, Tensor]:
    """All distinct reference images, and which of them is each perturbation's of each image (P, B)."""
    first: dict[object, tuple[int, int]] = {}
    distinct: list[Tensor] = []
    rows = []
    for perturbation in perturbations:
        given = perturbation.reference
        # Insertion from zeros and deletion to zeros, or to 0, share their references and so their scores.
        key = id(given) if isinstance(given, Tensor) else ("zero" if given == 0 else given)
        if key not in first:
            references = perturbation.references(images)
            first[key] = sum(map(len, distinct)), int(len(references) > 1)
            distinct.append(references)
        start, stride = first[key]
        rows.append(start + stride * torch.arange(len(images), device=images.device))
    return torch.cat(distinct), torch.stack(rows)
