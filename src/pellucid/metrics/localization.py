"""Where the mass of a map lies: on the object, on the background, inside a fixed patch.

The object is ``Case.masks``, or else the union of ``Case.boxes``. Maps are the case's heatmaps, of the images'
size. A box (x0, y0, x1, y1) is in pixels of the image, x to the right and y down, 0 at the upper left corner; a
pixel belongs to it if its center lies inside: column i if x0 <= i + 1/2 < x1, row j likewise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidData, InvalidParameter, brief, require_choice, require_count
from ..heatmap import Channels
from .base import Axis, Case, MapMetric, Need, ProcessedMapMetric

if TYPE_CHECKING:
    from ..data.sources import Box

Mass = Literal["signed", "absolute", "share"]
RECTGRAD = "Kim et al., Why are Saliency Maps Noisy? (RectGrad)"
# A corner may overshoot the border by as much as rounding moves it; no pixel's center lies there.
_OVERSHOOT = 0.5


def object_masks(case: Case) -> Tensor:
    """The object of each image, (B, H, W) bool: the case's masks, or else the union of its boxes.

    Raises ``InvalidData`` for images without either, or with some that do not fit, and for objects of no pixel.
    """
    return case.once("object masks", lambda: _objects(case))


def _objects(case: Case) -> Tensor:
    count, height, width = len(case.images), *case.images.shape[-2:]
    masks = case.masks
    if masks is None:
        if case.boxes is None:
            raise InvalidData(
                "no masks and no boxes of the objects are known; give either, or leave out this metric"
            )
        if len(case.boxes) != count:
            raise InvalidData(f"boxes of {len(case.boxes)} images for {count} images; give a list for each")
        masks = torch.stack([box_mask(each, (height, width), _name(case, i)) for i, each in enumerate(case.boxes)])
    if masks.shape != (count, height, width) or masks.dtype != torch.bool:
        raise InvalidData(
            f"masks are {masks.dtype} of shape {tuple(masks.shape)}, and the images {count} of {height}x{width} "
            f"(first: {_name(case, 0)}); give bool (batch, height, width), resized and cropped as the images"
        )
    empty = (~masks.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise InvalidData(
            f"the object of {_name(case, empty[0])} covers no pixel: its mask is empty; leave this image out"
        )
    return masks.to(case.images.device)


def box_mask(boxes: Sequence[Box], size: tuple[int, int], name: str = "the image") -> Tensor:
    """The union of boxes as a mask (H, W): the pixels whose centers lie inside one; ``InvalidData`` as above."""
    height, width = size
    # In double, whatever torch's default: a half holds no half of a pixel from 1024 on.
    rows, columns = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    mask = torch.zeros(height, width, dtype=torch.bool)
    try:
        corners = [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes]
        torch.tensor(corners, dtype=torch.float64)  # of numbers alone
    except (TypeError, ValueError) as error:
        raise InvalidData(f"boxes of {name} are {brief(boxes)}; give (x0, y0, x1, y1) for each") from error
    for box in corners:
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            raise InvalidData(f"box {box} of {name} is empty; give (x0, y0, x1, y1), x0 < x1 and y0 < y1")
        if min(x0, y0) < -_OVERSHOOT or x1 > width + _OVERSHOOT or y1 > height + _OVERSHOOT:
            raise InvalidData(
                f"box {box} of {name} leaves the image of {width}x{height} pixels; scale boxes with their "
                "images and cut them at the border"
            )
        mask |= ((rows >= y0) & (rows < y1))[:, None] & (columns >= x0) & (columns < x1)
    return mask


def _name(case: Case, index: int) -> str:
    return repr(case.names[index]) if index < len(case.names) else f"image {index}"


@dataclass(frozen=True, kw_only=True)
class _OnObjects(MapMetric):
    """A metric of each map and its object."""

    axis: ClassVar[Axis] = "localization"
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})

    @abstractmethod
    def located(self, maps: Tensor, objects: Tensor) -> Tensor:
        """One value per image (B,) of maps (B, H, W) and objects (B, H, W) bool."""

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """What is located, NaN for images without background: nothing can miss an object that fills its image."""
        objects = object_masks(case)
        return self.located(maps, objects).masked_fill(objects.flatten(1).all(1), torch.nan)


@dataclass(frozen=True, kw_only=True)
class MassOutside(_OnObjects):
    """Share of the map's absolute mass on the background: sum_outside |m| / sum |m|, 0 to 1.

    A map of chance scores the share of the image that is background. ``top`` leaves of each map the share of its
    pixels with the largest |m| (all that equal the last of them, too), so that maps are compared at one sparsity.
    """

    name = "mass_outside"
    unit = "share"
    ends = (0, 1)
    higher_is_better = False
    paper = f"{RECTGRAD}, Fig. 8a, divided by the whole map's mass"
    undefined = "the map is zero everywhere, or the object fills the image"
    power: ClassVar[int] = 1

    top: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise InvalidParameter(f"top={self.top}: give a share of the pixels above 0 and at most 1")

    def located(self, maps: Tensor, objects: Tensor) -> Tensor:
        """The share of sum |m|^power."""
        # Divided by the largest magnitude first, so that no square underflows.
        mass = (maps / maps.abs().amax((1, 2), keepdim=True)).abs() ** self.power
        if self.top < 1:
            kept = max(round(self.top * mass[0].numel()), 1)
            mass = mass * (mass >= mass.flatten(1).topk(kept).values[:, -1, None, None])
        return (mass * ~objects).sum((1, 2)) / mass.sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class EnergyOutside(MassOutside):
    """Share of the map's energy on the background: sum_outside m^2 / sum m^2, 0 to 1."""

    name = "energy_outside"
    paper = "Wang et al., Score-CAM, Sec. 4.3 (energy-based pointing game), of squares and outside"
    power = 2


@dataclass(frozen=True, kw_only=True)
class PointingGame(_OnObjects):
    """Whether the map's maximum lies on the object: 1 or 0, of several equal maxima the share that does.

    Where several pixels share the maximum, as in up-sampled maps, the value is the share of them that lie on the
    object: what breaking the tie at random gives on average. ``tolerance`` is the distance in pixels (of the
    image explained) within which a miss still counts; 0 asks for the object itself, the paper allows 15 on
    photos of full size. ``absolute`` asks for the maximum of |m|.
    """

    name = "pointing_game"
    unit = "hit"
    ends = (0, 1)
    higher_is_better = True
    paper = "Zhang et al., Top-down Neural Attention by Excitation Backprop, Sec. 4.1"
    undefined = "the map is constant and has no maximum, or the object fills the image"

    tolerance: float = 0
    absolute: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise InvalidParameter(f"tolerance={self.tolerance}: give a distance in pixels, 0 or more")

    def located(self, maps: Tensor, objects: Tensor) -> Tensor:
        """The share of the maxima that hit."""
        maps = maps.abs() if self.absolute else maps
        peaks = maps == maps.amax((1, 2), keepdim=True)
        hits = (peaks & _dilated(objects, self.tolerance)).sum((1, 2)) / peaks.sum((1, 2)).to(maps.dtype)
        return hits.masked_fill(peaks.all(2).all(1), torch.nan)


def _dilated(masks: Tensor, radius: float) -> Tensor:
    """Masks (B, H, W) with every pixel whose center is within ``radius`` pixels of one of theirs."""
    reach = min(int(radius), max(masks.shape[-2:]))
    offsets = torch.arange(-reach, reach + 1, device=masks.device).square()
    # The convolution counts the object's pixels within the disc; one is enough.
    disc = (offsets[:, None] + offsets <= radius**2).float()
    return F.conv2d(masks[:, None].float(), disc[None, None], padding=reach)[:, 0] > 0.5


@dataclass(frozen=True, kw_only=True)
class _RectGrad(ProcessedMapMetric):
    """A sum over maps processed as for RectGrad's baselines, in the attribution's units."""

    axis: ClassVar[Axis] = "localization"
    unit = "sum of attribution"
    higher_is_better = False

    channels: Channels = "sum"
    clip: tuple[float, float] | None = (95.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class BackgroundMass(_RectGrad, _OnObjects):
    """Sum of |map| over the background's pixels, 0 or more, of maps processed as RectGrad does (``PatchMass``)."""

    name = "background_mass"
    ends = (0, None)
    paper = f"{RECTGRAD}, Fig. 8a"
    undefined = "the object fills the image"

    def located(self, maps: Tensor, objects: Tensor) -> Tensor:
        """The sum of |m| outside."""
        return (maps.abs() * ~objects).sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class PatchMass(_RectGrad):
    """What a map attributes to a patch that carries no information: ``size`` x ``size`` pixels at (x0, y0).

    ``mass``: ``"signed"``, the sum of the processed map (the released code; the best value is 0, so it ranks
    methods only where a threshold has removed what is negative); ``"absolute"``, the sum of |map| (the paper's
    text); ``"share"``, that divided by the whole map's, 0 to 1, which compares maps of different scale.
    ``channels`` and ``clip`` process the map: (95, 100) for RectGrad's baselines; for RectGrad's own maps the
    paper thresholds each channel instead, ``channels="positive_sum", clip=None``.
    """

    name = "patch_mass"
    paper = f"{RECTGRAD}, Sec. 5.3, Fig. 7: training-dataset occlusion"
    undefined = "the processed map is zero everywhere and has no shares"

    x0: int = 0
    y0: int = 0
    size: int = 8
    mass: Mass = "signed"

    def __post_init__(self) -> None:
        _RectGrad.__post_init__(self)
        require_count("size", self.size)
        require_choice("mass", self.mass, Mass)
        for name, value in (("x0", self.x0), ("y0", self.y0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidParameter(f"{name}={value!r}: give a whole number of pixels, 0 or more")

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The mass of the patch."""
        height, width = maps.shape[-2:]
        if self.x0 + self.size > width or self.y0 + self.size > height:
            raise InvalidParameter(
                f"the patch of {self.size} pixels at ({self.x0}, {self.y0}) leaves the images of {width}x{height}"
            )
        masses = maps if self.mass == "signed" else maps.abs()
        patch = masses[:, self.y0 : self.y0 + self.size, self.x0 : self.x0 + self.size].sum((1, 2))
        return patch / masses.sum((1, 2)) if self.mass == "share" else patch
