"""How alike two maps are: SSIM, rank correlation, HOG; pure tensors, one value per image."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, inf

import torch
from torch import Tensor

from ..errors import InvalidParameter
from ..heatmap import require_values
from ..kinds import of_kinds
from ..passes import exact

# The Gaussian window of Wang et al.: sigma 1.5 cut at 3.5 sigma, and their stabilizing constants.
_SIGMA, _RADIUS = 1.5, 5
WINDOW = 2 * _RADIUS + 1
_K1, _K2 = 0.01, 0.03
# Dalal & Triggs as in scikit-image; the cell is that of Adebayo et al.
_ORIENTATIONS, _CELL, _BLOCK = 9, 16, 3
HOG_SIZE = _CELL * _BLOCK
_HYS_CLIP, _HYS_EPSILON = 0.2, 1e-5

_FORMS = dict.fromkeys(range(2, 6), "(batch, ...)")


@of_kinds
def ssim(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of maps (B, H, W) or (B, C, H, W), one value per image (B,) in [-1, 1]; 1 if equal.

    The mean over all whole windows, then over channels, of
    (2 ma mb + C1)(2 cab + C2) / ((ma^2 + mb^2 + C1)(va + vb + C2)), where means m, sample variances v and the
    sample covariance c are weighted by an 11x11 Gaussian window of sigma 1.5, C1 = (0.01 R)^2,
    C2 = (0.03 R)^2, R = ``data_range`` (Wang et al., as scikit-image with ``gaussian_weights=True``).
    ``data_range=2`` is what Adebayo et al. and Wienecke & Hinrichs used, though their maps lie in [0, 1]
    (``min_max``); 1 is that interval's own. A map that holds NaN, as a constant one after ``min_max``, gives NaN.

    Raises:
        InvalidParameter: other shapes, maps smaller than 11x11, a range that is not above 0.
    """
    if not 0 < data_range < inf:
        raise InvalidParameter(f"data_range={data_range}: give the span of the maps' values, above 0")
    a, b = _pair(a, b, WINDOW, "SSIM's window")
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    # The sample covariance, by N / (N - 1) with N = 11 x 11,
    # is scikit-image's also where the window weighs unequally.
    sample = WINDOW**2 / (WINDOW**2 - 1)
    # Variances of centered maps: squares of what is far from 0 would cancel.
    center_a, center_b = (maps.mean((-2, -1), keepdim=True) for maps in (a, b))
    a, b = a - center_a, b - center_b
    mean_a, mean_b = _windowed(a), _windowed(b)
    variances = sample * (_windowed(a * a) + _windowed(b * b) - mean_a**2 - mean_b**2)
    covariance = sample * (_windowed(a * b) - mean_a * mean_b)
    # Only the variances are free of the center; luminance compares the means as they were.
    mean_a, mean_b = mean_a + center_a, mean_b + center_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    # Only whole windows count: scikit-image crops the border, where its filter had to make values up.
    return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)


def _pair(a: Tensor, b: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    """Both maps as (B, C, H, W)."""
    _require_alike(a, b, {3: "(batch, H, W)", 4: "(batch, channels, H, W)"})
    if min(a.shape[-2:]) < least:
        size = " x ".join(map(str, a.shape[-2:]))
        raise InvalidParameter(f"maps of {size} are smaller than {what}, {least} x {least}; up-sample them first")
    return (a, b) if a.dim() == 4 else (a[:, None], b[:, None])


def _require_alike(a: Tensor, b: Tensor, forms: Mapping[int, str]) -> None:
    """Raise ``InvalidParameter`` unless two maps are floats of one shape."""
    require_values(a, "maps", forms)
    require_values(b, "maps", forms)
    if a.shape != b.shape:
        raise InvalidParameter(f"maps of shapes {tuple(a.shape)} and {tuple(b.shape)}; give two of one shape")


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian-weighted mean of every whole window. Not a convolution, which some devices run at low precision."""
    taps = [exp(-0.5 * (i / _SIGMA) ** 2) for i in range(-_RADIUS, _RADIUS + 1)]
    for dim in (-2, -1):
        length = maps.shape[dim] - 2 * _RADIUS
        weighted = torch.zeros_like(maps.narrow(dim, 0, length))
        for start, tap in enumerate(taps):
            weighted.add_(maps.narrow(dim, start, length), alpha=tap / sum(taps))
        maps = weighted
    return maps


@of_kinds
def min_max(maps: Tensor) -> Tensor:
    """Maps (B, ...) scaled to [0, 1], each image's channels together; NaN where a map is constant.

    (m - min m) / (max m - min m), signs kept in order (Adebayo et al., before SSIM and HOG).
    """
    require_values(maps, "maps", _FORMS)
    rows = maps.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return ((rows - low) / (high - low)).view_as(maps)


@of_kinds
def spearman(a: Tensor, b: Tensor, absolute: bool = False) -> Tensor:
    """Rank correlation of maps (B, ...), one value per image (B,) in [-1, 1]; NaN where a map is constant.

    Pearson's correlation of the ranks of all values, ties sharing their mean rank; of the values' magnitudes if
    ``absolute`` (Adebayo et al., Sec. 4, with and without).

    Raises:
        InvalidParameter: tensors of different shapes, or without anything to rank.
    """
    _require_alike(a, b, _FORMS)
    return correlation(*(mid_ranks(maps.abs() if absolute else maps) for maps in (a, b)))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation (B,) of rows (B, n)."""
    x, y = (rows - rows.mean(1, keepdim=True) for rows in (a, b))
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def mid_ranks(maps: Tensor) -> Tensor:
    """Ranks (B, n) from 0 of maps (B, ...), ties sharing their mean rank; in float64, for their squares.

    One sort: equal neighbors are a tie, and a tie of n places from the k-th has the rank k + (n - 1) / 2.
    """
    rows = maps.flatten(1)
    ordered, order = rows.sort(1)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Ties are numbered through all rows at once, since each row's first value begins one.
    tie = begins.flatten().cumsum(0) - 1
    sizes = tie.bincount()
    firsts = sizes.cumsum(0) - sizes  # counted through all rows, of n places each
    before = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    shared = exact((2 * firsts + sizes - 1)[tie].view_as(rows) - 2 * before) / 2
    found = torch.empty_like(shared).scatter_(1, order, shared)
    return found.masked_fill(rows.isnan().any(1, keepdim=True), torch.nan)


@of_kinds
def hog(maps: Tensor) -> Tensor:
    """Histograms of oriented gradients (B, features) of maps (B, H, W) or (B, C, H, W).

    Central differences (0 at the border), of the channel where they are largest; 9 unsigned orientations in
    cells of 16x16; blocks of 3x3 cells normalized by L2-Hys: the defaults of scikit-image with the cell of
    Adebayo et al. Features are ordered (block row, block column, cell row, cell column, orientation).

    Raises:
        InvalidParameter: other shapes, maps smaller than one block of 48x48.
    """
    maps, _ = _pair(maps, maps, HOG_SIZE, "one block of HOG")
    magnitude, orientation = _strongest_gradient(exact(maps))
    rows, columns = maps.shape[-2] // _CELL, maps.shape[-1] // _CELL
    # A cell's histogram holds, for each orientation, the mean magnitude of the pixels that point that way.
    cells = magnitude.new_zeros(len(maps), rows, columns, _ORIENTATIONS)
    for index in range(_ORIENTATIONS):
        chosen = (magnitude * (orientation == index))[:, : rows * _CELL, : columns * _CELL]
        cells[..., index] = chosen.reshape(-1, rows, _CELL, columns, _CELL).mean((2, 4))
    # (B, rows, columns, orientation, block row, block column)
    blocks = cells.unfold(1, _BLOCK, 1).unfold(2, _BLOCK, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)
    # L2-Hys: normalized, cut off at 0.2 so that no single edge outweighs all others, and normalized again.
    return _unit(_unit(blocks).clamp_max(_HYS_CLIP)).flatten(1)


def _strongest_gradient(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude and orientation bin (B, H, W) of the channel with the largest difference."""
    # Twice the central difference, 0 at the border, as scikit-image takes it.
    rows, columns = torch.zeros_like(maps), torch.zeros_like(maps)
    rows[..., 1:-1, :] = maps[..., 2:, :] - maps[..., :-2, :]
    columns[..., 1:-1] = maps[..., 2:] - maps[..., :-2]
    magnitude, channel = torch.hypot(rows, columns).max(1)
    rows, columns = (part.gather(1, channel[:, None])[:, 0] for part in (rows, columns))
    # Unsigned: a gradient and its opposite, 180 degrees apart, are one orientation.
    degrees = torch.rad2deg(torch.atan2(rows, columns)).remainder(180)
    width = 180 / _ORIENTATIONS
    edges = degrees.new_tensor([width * i for i in range(1, _ORIENTATIONS)])
    return magnitude, torch.bucketize(degrees, edges, right=True)


def _unit(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum(-1, keepdim=True) + _HYS_EPSILON**2).sqrt()


@of_kinds
def hog_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of the maps' ``hog`` features (B,) in [-1, 1] (Adebayo et al.); NaN for a constant map.

    Maps must be of one shape, of 48x48 or more: up-sample them first (``InvalidParameter``).
    """
    a, b = _pair(a, b, HOG_SIZE, "one block of HOG")
    return spearman(hog(a), hog(b))


def enlarged(maps: Tensor, least: int) -> Tensor:
    """Maps (..., H, W), every value repeated equally often along both sides, until neither is below ``least``."""
    # Both sides grow by one whole factor, so that no value counts more than another.
    factor = -(-least // min(maps.shape[-2:]))
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1) if factor > 1 else maps
