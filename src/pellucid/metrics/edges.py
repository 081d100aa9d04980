"""Computed stand-ins for two ratings that Nielsen et al. gave by eye: edge differentiation, visual coherence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidData, InvalidParameter, require_choice
from ..methods.baselines import sobel
from .base import Axis, Case, MapMetric
from .localization import object_masks

_Of = Literal["image", "object"]


def edge_contrast(maps: Tensor, edges: Tensor) -> Tensor:
    """Michelson contrast of maps (B, H, W) between edge pixels (B, H, W; bool) and all others, (B,) in [-1, 1].

    (e - o) / (e + o), with e and o the mean magnitude |map| on and off the edges: 1 if only edges are lit,
    0 if they look like the rest. NaN for a map of zeros, and where no pixel or every pixel is an edge.
    """
    magnitude = maps.abs().flatten(1)
    on = edges.flatten(1)
    # Without an edge this is 0 / 0, the NaN that is promised.
    inside = magnitude.where(on, 0).sum(1) / on.sum(1)
    outside = magnitude.where(~on, 0).sum(1) / (~on).sum(1)
    return (inside - outside) / (inside + outside)


def image_edges(images: Tensor, share: float = 0.1) -> Tensor:
    """The strongest edges (B, H, W) of images (B, C, H, W): where the Sobel magnitude, averaged over channels,
    exceeds that of all but ``share`` of the pixels. Pixels that tie with the first left out are left out.
    """
    strength = sobel(images).mean(1).flatten(1)
    first_out = strength.sort(1, descending=True).values[:, int(share * strength.shape[1])]
    return (strength > first_out[:, None]).view(len(images), *images.shape[-2:])


def outline(masks: Tensor) -> Tensor:
    """Pixels (B, H, W) with the object's mask (B, H, W; bool) and its outside both in their 3x3 neighborhood."""
    solid = masks[:, None].float()
    # These are dilation and erosion; pooling pads by -inf, so the image's border is no outline.
    grown, shrunk = F.max_pool2d(solid, 3, 1, 1), -F.max_pool2d(-solid, 3, 1, 1)
    return (grown > shrunk)[:, 0]


def coherence(maps: Tensor, masks: Tensor | None = None, share: float = 0.1) -> Tensor:
    """How far the brightest pixels of maps (B, H, W) hang together, and lie in the masks; (B,) in [0, 1].

    The mean, over the ``share`` of pixels with the highest |map|, of the fraction of each one's neighbors (up
    to 8) that are among them, too. With ``masks`` (B, H, W) a pixel outside counts as none of them, though it
    still takes its place. A compact n x n square gives 1 - (3n - 1) / (2 n^2), scattered single pixels 0, noise
    ``share``. Pixels that tie for the last places share them. NaN for a constant map.
    """
    bright = _brightest(maps.abs(), share)
    kept = bright if masks is None else bright * masks
    ones = torch.ones_like(kept)
    # The pixel itself is no neighbor of its own, and at the border there are fewer than 8.
    fraction = (_sum3(kept) - kept) / (_sum3(ones) - 1)
    # It is divided by all bright pixels, so that those outside of the masks count against the map.
    value = (kept * fraction).sum((1, 2)) / bright.sum((1, 2))
    rows = maps.flatten(1)
    return value.masked_fill(rows.amax(1) == rows.amin(1), torch.nan)


def _brightest(magnitude: Tensor, share: float) -> Tensor:
    """1 on the ``share`` of pixels with the highest values, 0 on others, a fraction where the last ones tie."""
    rows = magnitude.flatten(1)
    places = share * rows.shape[1]
    last = rows.sort(1, descending=True).values[:, min(int(places), rows.shape[1] - 1), None]
    above, tied = (rows > last).to(rows), (rows == last).to(rows)
    # Ties share what places are left, so that no reading order decides among them.
    rest = (places - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return (above + rest * tied).view_as(magnitude)


def _sum3(maps: Tensor) -> Tensor:
    """Sum over each pixel's 3x3 neighborhood within the image."""
    # The average counts padding as zeros, so 9 times it is the sum within the image.
    return 9 * F.avg_pool2d(maps[:, None], 3, 1, 1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class VisualRating(MapMetric):
    """A stand-in for a rating by eye, ``of`` the whole image or of its object, which must be known then.

    ``share`` is the fraction of pixels that count as edges, or as bright.
    """

    of: _Of = "image"
    share: float = 0.1

    axis: ClassVar[Axis] = "edges"
    higher_is_better = True

    def __post_init__(self) -> None:
        require_choice("of", self.of, _Of)
        if not 0 < self.share < 1:
            raise InvalidParameter(f"share={self.share}: give a fraction of the pixels between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EdgeDifferentiation(VisualRating):
    """How much brighter the heatmap is on edges than elsewhere (``edge_contrast``), in [-1, 1]; chance is 0.

    A computed stand-in for what Nielsen et al. rated by eye, "how visibly contrasted the edges of the object
    are": the edges are the image's strongest (``image_edges``), or those of its mask (``outline``).
    """

    name = "edge_differentiation"
    unit = "contrast"
    ends = (-1, 1)
    paper = "a stand-in for Nielsen et al., Performance Evaluation of Combination Methods, Table II"
    undefined = "the map is zero everywhere, or there is no edge"

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The contrast of the edges."""
        return edge_contrast(maps, case.once(("edges", self.of, self.share), lambda: self._edges(case)))

    def _edges(self, case: Case) -> Tensor:
        if self.of != "object":
            return image_edges(case.images, self.share)
        if case.masks is None:
            raise InvalidData(f"{self.name} of the object needs its mask; a box has no edges: use of='image'")
        return outline(object_masks(case))


@dataclass(frozen=True, kw_only=True)
class VisualCoherence(VisualRating):
    """How far the brightest pixels of the heatmap hang together (``coherence``), in [0, 1]; chance is ``share``.

    A computed stand-in for what Nielsen et al. rated by eye, "how accurately the map highlights the object of
    interest and how much spillover there is": with ``of="object"`` bright pixels off its mask or boxes spill over.
    """

    name = "visual_coherence"
    unit = "fraction of neighbors"
    ends = (0, 1)
    paper = "a stand-in for Nielsen et al., Performance Evaluation of Combination Methods, Table I"
    undefined = "the map is constant"

    def values(self, maps: Tensor, case: Case) -> Tensor:
        """The coherence of the brightest pixels."""
        return coherence(maps, object_masks(case) if self.of == "object" else None, self.share)
