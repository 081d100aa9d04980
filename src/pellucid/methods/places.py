"""Whether the places of a layer's map are those of the image: where it changes if a part of the image does.

What moves an image before the first convolution is seen in gradients (``layouts``); behind it a model may exchange
halves, shift or cut by any operation, after which a map laid over the image points at something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..layers import captured, remembered
from ..layouts import Layout
from ..passes import exact

ASTRAY = "astray"  # what is remembered of a model

# Cells of 4 x 4 that are changed, one in each row and column, so that what exchanges these shows, too; one of them
# lies inside, where what cuts off all borders leaves it.
_CELLS, _SIDE = ((0, 1), (1, 2), (2, 0), (3, 3)), 4
_APART = (0.2, 0.85)  # of the side: how far centers are apart at least if a map has places at all, and at most
_SMALL, _LARGE = 24, 64  # pixels a side: below nothing is told, and from where on a map may lack no border
_IN_ORDER = 0.8  # correlation of the centers with those of the cells
_AWAY = 0.125  # of the side, that the centers may lie away on the whole: half a cell, or one of a map's places


def astray(model: nn.Module, maps: Mapping[str, Layout], images: Tensor, max_batch: int) -> dict[str, float]:
    """How far maps lie from their places in images (B, C, H, W), as a share of the side, where they do.

    Maps are given by the layouts of their layers. One lies in place if the centers of its changes, for five
    random images of which four have a cell of another, come in the order of the cells, are not shifted and not
    further apart, and each cell changes something. 50 networks of timm, each at all layers, have correlations
    of 0.99 and more, shifts below 0.07, and centers at most 0.8 of the side apart. Where each place looks at
    all of the image there is nothing to tell. Five rows without graph, once for each layer of a model.
    """
    known: dict[tuple[str, torch.Size], float] = remembered(model, ASTRAY)
    size = images.shape[1:]
    new = [name for name in maps if (name, size) not in known]
    if new:
        known |= {(name, size): 0.0 for name in new}
        side = min(size[1:])
        outputs = _outputs(model, new, _changed(images), max_batch) if side >= _SMALL else {}
        for name, output in outputs.items():
            known[name, size] = _away(*_centers(maps[name], output, images), side >= _LARGE)
    return {name: known[name, size] for name in maps if known[name, size]}


def _changed(images: Tensor) -> Tensor:
    """A random image, and four of which each has one cell of another."""
    generator = torch.Generator().manual_seed(3)
    one, other = torch.randn(2, *images.shape[1:], generator=generator, dtype=torch.float32).to(images)
    height, width = images.shape[-2:]
    rows = [one]
    for row, column in _CELLS:
        down = torch.arange(height) * _SIDE // height == row
        right = torch.arange(width) * _SIDE // width == column
        rows.append(torch.where((down[:, None] & right).to(images.device), other, one))
    return torch.stack(rows)


def _outputs(model: nn.Module, layers: Sequence[str], rows: Tensor, max_batch: int) -> dict[str, Tensor]:
    """What layers give for rows, at most ``max_batch`` at a time, where that is a row for each."""
    parts = []
    for part in rows.split(max_batch):
        with torch.no_grad(), captured(model, layers, strict=False) as outputs:
            model(part.clone())
        parts.append({name: one for name, one in outputs.items() if one.shape[:1] == part.shape[:1]})
    whole = [name for name in layers if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in whole}


def _centers(layout: Layout, output: Tensor, images: Tensor) -> tuple[Tensor | None, float]:
    """Where a map changes with each cell (4, 2), in shares of its height and width, NaN where nowhere.

    Also the side of a place in the same shares. None is a map of which nothing can be told: of too few places, or
    of a constant.
    """
    maps, _ = layout.split(output, (images.shape[-2], images.shape[-1]))
    changes = (exact(maps[1:]) - exact(maps[:1])).square().sum(1)
    total = changes.sum((1, 2), keepdim=True)
    if min(changes.shape[1:]) < _SIDE or not bool(total.any()) or not bool(total.isfinite().all()):
        return None, 1.0
    shares = changes / total
    rows, columns = ((torch.arange(side, device=shares.device) + 0.5) / side for side in shares.shape[1:])
    centers = torch.stack([shares.sum(2) @ rows.to(shares), shares.sum(1) @ columns.to(shares)], 1)
    return centers.cpu(), 1 / min(shares.shape[1:])


def _away(centers: Tensor | None, place: float, is_large: bool) -> float:
    """How far centers of changes lie at most from their cells', in shares of the side; 0 if they lie in place.

    Convolutions without padding see less of a small image's borders; a large one's map lacks them if it was cut.
    """
    if centers is None:
        return 0.0
    if bool(centers.isnan().any()):  # a cell that changes nothing
        return 1 / _SIDE if is_large else 0.0
    cells = ((torch.tensor(_CELLS) + 0.5) / _SIDE).to(centers)
    apart = centers.amax(0) - centers.amin(0)
    found, wanted = centers - centers.mean(0), cells - cells.mean(0)
    order = (found * wanted).sum(0) / (found.norm(dim=0) * wanted.norm(dim=0)).clamp_min(1e-12)
    in_place = (order > _IN_ORDER) & ((centers - cells).mean(0).abs() < max(_AWAY, place))
    in_place &= (apart < _APART[1]) | torch.tensor(not is_large)
    return 0.0 if bool((in_place | (apart < _APART[0])).all()) else float((centers - cells).abs().max())
