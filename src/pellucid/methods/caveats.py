"""What is warned of: attributions that miss their sums, and maps that show nothing or what a variant leaves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import (
    CanceledMapWarning,
    CompletenessWarning,
    EmptyMapWarning,
    FlatMapWarning,
    ImageMapWarning,
    PatternWarning,
    PrecisionWarning,
    TokenWarning,
)
from ..heatmap import cancels
from ..layers import INPUT
from ..rules.base import Rule
from .attributions import Estimate
from .network import Network

# A complete attribution may miss its sum by this share of it before a warning is due.
TOLERANCE = 0.05
# Of a pattern under a variant: places a side, and how far places differ, in means and in standard errors.
_LEAST_PATTERNED, _UNLEVEL, _SURE = 12, 0.25, 8


_AVERAGED = (
    "there are no places any more, or only an average over them comes after the layer: take an earlier layer, or "
    "gradcam or input_x_gradient where there are places"
)


def warn_if_half(images: Tensor) -> None:
    """Warn of images in half precision, or under autocast."""
    device, dtype = images.device.type, images.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype in (torch.bfloat16, torch.float16):
        message = (
            f"the model computes in {str(dtype).removeprefix('torch.')}, whose gradients are off by about a tenth "
            "of their size, at single pixels by up to half of the largest; for exact maps explain it in float32"
        )
        warnings.warn(PrecisionWarning(message), stacklevel=3)


def warn_if_incomplete(layer: str, estimate: Estimate, promise: tuple[str, str], how: str = "") -> None:
    """Warn where an attribution misses what it promises to sum to; ``how`` it was found, if not as asked."""
    size, residual, expected = estimate.size, estimate.residual, estimate.expected
    assert expected is not None
    # Where logits hardly differ, the residual is held against the size of what cancels.
    share = residual.abs() / torch.maximum(expected.abs(), size / 100).clamp_min(torch.finfo(expected.dtype).tiny)
    worst = int(share.argmax())
    if share[worst] > TOLERANCE:
        cancels = bool(size[worst] / 100 > expected[worst].abs())
        of = "a hundredth of the sum of magnitudes" if cancels else f"this {promise[0].rpartition(' ')[2]}"
        message = (
            f"at {layer!r} {how}the attribution of image {worst} sums to "
            f"{float(expected[worst] + residual[worst]):.4g}, "
            f"not to the {promise[0]} {float(expected[worst]):.4g}: off by {float(residual[worst]):+.3g}, "
            f"{float(share[worst]):.1%} of {of}. {promise[1]}"
        )
        warnings.warn(CompletenessWarning(message, layer, int((share > TOLERANCE).sum())), stacklevel=6)


def warn_of_map(
    network: Network, layer: str, maps: Tensor, prefix: Tensor, size: Tensor, remedies: Sequence[str], maker: str
) -> None:
    """Warn where the maps (B, C, h, w) of a layer show nothing, or hold a pattern that the variant leaves.

    ``size`` (B,) is the sum of magnitudes, prefix tokens' included; ``remedies`` what may help where it is zero.
    Why a map is as it is can be told of the network's own, not of what a user's function, the ``maker``, gives.
    """
    placeless = bool(prefix.numel()) and not bool(maps.any())
    if placeless and (bool(prefix.any()) or network.reads_prefix_alone(layer)):
        _warn_of_prefix(layer, len(maps))
    else:
        given = f"{maker} gives it so"
        empty = [*remedies, "choose another layer", *sorted(network.notes)]
        _warn_if_empty(layer, size, given if maker else "; ".join(empty))
        _warn_if_flat(layer, maps, size, given if maker else _AVERAGED)
        _warn_if_canceled(layer, maps)
    _warn_if_patterned(layer, maps, network.rules)


def _warn_of_prefix(layer: str, images: int) -> None:
    """Where a class token alone is read, no place has a gradient, whatever the method."""
    message = (
        f"at {layer!r} the attribution of {images} of {images} images is zero at all places: only the class token "
        "is read after this layer; take the block before"
    )
    warnings.warn(TokenWarning(message, layer), stacklevel=7)


def _warn_if_empty(layer: str, size: Tensor, remedy: str) -> None:
    empty = (size == 0).nonzero()[:, 0].tolist()
    if empty:
        message = (
            f"at {layer!r} the attribution of {len(empty)} of {len(size)} images is zero everywhere "
            f"(first: image {empty[0]}); {remedy}"
        )
        warnings.warn(EmptyMapWarning(message, layer, len(empty)), stacklevel=7)


def _warn_if_flat(layer: str, maps: Tensor, size: Tensor, why: str) -> None:
    if maps.dim() != 4:
        return
    # Two corners tell most maps apart, so that few are looked at whole.
    rows = ((size > 0) & (maps[..., 0, 0] == maps[..., -1, -1]).all(1)).nonzero()[:, 0]
    alike = maps[rows]
    flat = int((alike == alike[..., :1, :1]).flatten(1).all(1).sum())
    if flat:
        of = "" if flat == len(maps) else f" of {flat} of {len(maps)} images"
        message = (
            f"at {layer!r} the attribution{of} has one value at all places of a channel, so its map is of one "
            f"color: {why}"
        )
        warnings.warn(FlatMapWarning(message, layer, flat), stacklevel=7)


def warn_of_image(method: str) -> None:
    """Warn of a method made for hidden layers that is asked for the input."""
    message = (
        f"at {INPUT!r} a map of {method} is the image's own channels, weighed, whatever the network looks at: "
        "name hidden layers"
    )
    warnings.warn(ImageMapWarning(message, INPUT), stacklevel=5)


def _warn_if_canceled(layer: str, maps: Tensor) -> None:
    # The places of one row tell most maps apart, so that few are looked at whole.
    if maps.dim() != 4 or maps.shape[1] == 1 or not bool(cancels(maps[:, :, maps.shape[2] // 2, None]).any()):
        return
    images = int(cancels(maps).sum())
    if images:
        message = (
            f"at {layer!r} the channels of the attribution cancel everywhere in {images} of {len(maps)} images, "
            "as a gradient's do below a layer norm, so their signed mean or sum shows nothing: take "
            "heatmap(channels='abs_sum'), or another method, such as deeplift"
        )
        warnings.warn(CanceledMapWarning(message, layer, images), stacklevel=7)


def _warn_if_patterned(layer: str, maps: Tensor, rules: Sequence[Rule]) -> None:
    """Warn where of each 2 x 2 or 3 x 3 places one still gets less than another, though a variant levels them."""
    leveling = next((rule for rule in rules if rule.stays), None)
    if leveling is None or (pattern := pattern_of(maps)) is None:
        return
    period, share = pattern
    why = (
        leveling.first_stays if layer == INPUT and leveling.leaves_first else leveling.stays.format(period=period)
    )
    other = {2: "other", 3: "third"}[period]
    message = f"at {layer!r} every {other} place still gets {share:.0%} of what its neighbor gets: {why}"
    warnings.warn(PatternWarning(message, layer), stacklevel=7)


def pattern_of(maps: Tensor) -> tuple[int, float] | None:
    """The period of 2 or 3 places in which maps (B, C, h, w) repeat, and the least place's share of the greatest.

    None, where places differ by no more than chance, or maps are too small to tell.
    """
    if maps.dim() != 4 or min(maps.shape[2:]) < _LEAST_PATTERNED:
        return None
    magnitude = maps.abs().mean((0, 1))
    for period in (2, 3):  # a step of 4 shows at 2
        rows, columns = (side // period * period for side in magnitude.shape)
        # Each channel now holds the places of one residue, such as
        # (even, odd), which a checkerboard treats unlike the others.
        tiles = F.pixel_unshuffle(magnitude[None, :rows, :columns], period)
        means, errors = tiles.mean((1, 2)), tiles.flatten(1).std(1) / math.sqrt(tiles[0].numel())
        apart = means.max() - means.min()
        # Residues differ by chance, too, by about a standard
        # error, which large maps make small and small maps do not.
        if apart > _UNLEVEL * means.mean() and apart > _SURE * errors.max():
            return period, float(means.min() / means.max())
    return None
