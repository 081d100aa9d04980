"""Layouts: which dimension of a layer's output is the batch, the channels, height and width, or tokens.

A convolution gives (B, C, h, w), Swin's blocks (B, h, w, C), a vision transformer's (B, N, C), N = prefix + h w +
suffix tokens, of which those of places run row by row. A layout turns each of them into (B, C, h, w), in which
attributions are handed out. It is declared, known (from convolutions, or from what the model says of itself), or
measured; else the layer is refused.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from .errors import InvalidLayer, InvalidParameter, brief
from .layers import INPUT, captured, fits_glob, layer_names, remembered, watched
from .outputs import tensor_in
from .passes import exact
from .undo import Guard

# Names of common layouts, as they may be declared; all others are written as letters, such as "bwhc".
NAMED = {"channels_first": "bchw", "channels_last": "bhwc", "tokens": "bnc", "vector": "bc"}


@dataclass(frozen=True)
class Layout:
    """The dimensions of a layer's output, one letter each: b batch, c channels, h height, w width, n tokens.

    ``prefix`` tokens, such as a class token, come before the h w tokens of places, which run row by row, and
    ``suffix`` after them. ``grid`` is (h, w); None is the factors of their number whose ratio is nearest to the
    image's.
    """

    dims: str = "bchw"
    prefix: int = 0
    grid: tuple[int, int] | None = None
    suffix: int = 0

    def __post_init__(self) -> None:
        if "".join(sorted(self.dims)) not in ("bchw", "bcn", "bc"):
            raise InvalidParameter(
                f"layout {self.dims!r}; write each dimension's letter once: b, c and h, w (such as 'bhwc'), "
                "or b, c and n for tokens (such as 'bnc')"
            )
        if self.dims[0] != "b":
            raise InvalidParameter(f"layout {self.dims!r}: a layer's first dimension must be the batch's")
        if (self.prefix or self.suffix) and "n" not in self.dims:
            raise InvalidParameter(f"layout {self.dims!r} has no tokens, so none can be a prefix or suffix")

    def __str__(self) -> str:
        name = next((name for name, dims in NAMED.items() if dims == self.dims), self.dims)
        settings = [f"prefix={self.prefix}"] if self.prefix else []
        settings += [f"grid={self.grid}"] if self.grid else []
        settings += [f"suffix={self.suffix}"] if self.suffix else []
        return f"{name}({', '.join(settings)})" if settings else name

    @property
    def is_map(self) -> bool:
        """Whether the output has places at all."""
        return len(self.dims) > 2

    def turned(self) -> Layout | None:
        """The layout with height and width exchanged; None of tokens, which always run row by row."""
        return None if "n" in self.dims else Layout(self.dims.translate(str.maketrans("hw", "wh")))

    def split(self, output: Tensor, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """An output as the map of its places (B, C, h, w) and the tokens of none (B, C, prefix + suffix).

        ``image`` is the image's size, whose ratio the grid has if none is given. A vector stays as it is.

        Raises:
            InvalidParameter: the output has other dimensions, or another number of tokens than the grid.
        """
        if output.dim() != len(self.dims):
            raise InvalidParameter(f"layout {self} does not fit an output of shape {tuple(output.shape)}")
        ordered = output.permute(*(self.dims.index(letter) for letter in sorted(self.dims)))  # b, c, then places
        if "n" not in self.dims:
            return ordered, output.new_zeros(*ordered.shape[:2], 0)
        places = ordered.shape[2] - self.prefix - self.suffix
        height, width = self.grid or nearest_grid(places, image)
        if places != height * width:
            wanted = f"{self.prefix} + {height} x {width}" + (f" + {self.suffix}" if self.suffix else "")
            raise InvalidParameter(f"layout {self} does not fit {ordered.shape[2]} tokens: not {wanted}")
        before, maps, after = ordered.split([self.prefix, places, self.suffix], 2)
        return maps.unflatten(2, (height, width)), torch.cat([before, after], 2)

    def join(self, maps: Tensor, others: Tensor) -> Tensor:
        """The output whose ``split`` gives these maps and tokens of no place."""
        before, after = others[..., : self.prefix], others[..., self.prefix :]
        ordered = torch.cat([before, maps.flatten(2), after], 2) if "n" in self.dims else maps
        return ordered.permute(*(sorted(self.dims).index(letter) for letter in self.dims))


def layout(text: str) -> Layout:
    """A layout from text: ``channels_last``, ``tokens(prefix=1)``, ``tokens(grid=(14, 14), suffix=5)``, ``bwhc``.

    Raises:
        InvalidParameter: text that is none of these.
    """
    name, _, rest = text.strip().partition("(")
    try:
        call = ast.parse(f"f({rest.removesuffix(')')})", mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError(rest)
        settings = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if call.args or settings.keys() - {"prefix", "grid", "suffix"}:
            raise ValueError(rest)
        return Layout(NAMED.get(name, name), **settings)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InvalidParameter(
            f"{brief(text)} is no layout; write {', '.join(NAMED)}, letters such as 'bhwc', or tokens(prefix=1)"
        ) from error


def nearest_grid(places: int, image: tuple[int, int]) -> tuple[int, int]:
    """The factors (h, w) of a number of places whose ratio is nearest to that of an image (H, W)."""
    # By the logarithm 1 : 2 is as far from a square as 2 : 1.
    ratio = math.log(image[0] / image[1])
    pairs = [(height, places // height) for height in range(1, places + 1) if places % height == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - ratio))


# Known from how the output was computed.

# Autograd's nodes that keep (B, C, h, w) in its order; what else stands between a convolution and a layer's output
# (a permutation, a reshaping) may not.
_KEEPING = re.compile(
    "Abs|Add|Cat|Celu|Clamp|Clone|Div|Elu|Exp|Gelu|Hardsigmoid|Hardswish|Hardtanh|LeakyRelu|Log|Maximum|Minimum|Mish|"
    "Mul|Neg|Pow|Prelu|Relu|Rrelu|Rsqrt|Selu|Sigmoid|Silu|Softplus|Sqrt|Sub|Tanh|Threshold|Where|NativeBatchNorm|"
    "CudnnBatchNorm|MiopenBatchNorm|NativeGroupNorm|AvgPool2D|MaxPool2D|MkldnnMaxPool2D|AdaptiveAvgPool2D|"
    "AdaptiveMaxPool2D|UpsampleNearest2D|UpsampleBilinear2D|ConstantPadNd|ReflectionPad2D|ReplicationPad2D|"
    "AccumulateGrad"
)


def of_convolutions(output: Tensor) -> bool:
    """Whether an output (B, C, h, w) was computed from convolutions' by nothing that moves dimensions."""
    if output.dim() != 4 or output.grad_fn is None:
        return False
    # All ways back must be known: a sum of a convolution's output and of something permuted may be anything.
    pending, known, reached = [output.grad_fn], set(), False
    while pending:
        node = pending.pop()
        if node in known:
            continue
        known.add(node)
        name = node.name().rpartition("::")[2]  # parameters that are not frozen: torch::autograd::AccumulateGrad
        if name.startswith(("Convolution", "MkldnnConvolution", "CudnnConvolution")):
            reached = True
        elif _KEEPING.match(name):
            pending += [before for before, _ in node.next_functions if before is not None]
        else:
            return False
    return reached


# Nodes behind which height and width may be exchanged or run backwards, as they may behind a node of one's own.
_TURNING = re.compile("Permute|Transpose|T$|Rot90|Flip|Roll|Index|Gather|Take|AsStrided|GridSampler")


def may_turn(output: Tensor) -> bool:
    """Whether something between the image and an output may have exchanged height and width, or mirrored them.

    A shuffle of channels, an exchange of the dimensions 1 and 2 of five, has not.
    """
    pending, known = [output.grad_fn], {None}
    while pending:
        node: Any = pending.pop()
        if node in known:
            continue
        known.add(node)
        name = node.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
        if isinstance(node, BackwardCFunction) or (_TURNING.match(name) and not _shuffles_channels(node, name)):
            return True
        pending += [before for before, _ in node.next_functions]
    return False


# Nodes before the first convolution that leave each place where it is, as a normalization and a resizing do.
_STAYING = re.compile(
    "Abs|Add|Clamp|Clone|Div|Exp|Log|Mul|Neg|Pow|Sqrt|Sub|ToCopy|Unsqueeze|Upsample|NativeBatchNorm|AccumulateGrad"
)
# Nodes of layers, which a first convolution has none of before it.
_MIXING = re.compile("Convolution|Softmax|Attention|Addmm|LayerNorm")


def _may_move(output: Tensor) -> bool:
    """Whether something between the image and the output of the first convolution may have moved or cut the image.

    It has not if the convolution is not the first, behind which places look too widely to tell.
    """
    pending, known = [before for before, _ in output.grad_fn.next_functions] if output.grad_fn else [], {None}
    moves = False
    while pending:
        node: Any = pending.pop()
        if node in known:
            continue
        known.add(node)
        name = node.name().rpartition("::")[2]
        if _MIXING.search(name):
            return False
        of_channels = name.startswith(("Select", "Slice", "Split", "Cat")) and getattr(node, "_saved_dim", 0) == 1
        moves = moves or not (of_channels or _STAYING.match(name))
        pending += [before for before, _ in node.next_functions]
    return moves


def _shuffles_channels(node: Any, name: str) -> bool:
    if name != "Transpose" or len(shape := node._input_metadata[0].shape) != 5:
        return False
    return {dim % len(shape) for dim in (node._saved_dim0, node._saved_dim1)} == {1, 2}


# Measured.

TOKENS = 24  # looked at to find a grid
COPIES = 7  # of the image, at which a pass looks at once; tokens that come before the batch are never so many
_HALVES = 4  # of a map, along both sides
STRIPS = 4  # of a map, along each side, by whose order its displacement is told
DISPLACED = 0.05  # of the image's side, from which on a displacement is said
DRAWS = 4  # of random numbers, over which the centers of halves are averaged
PLACELESS = 16  # most tokens that are tried as having no place, before or after the others, where it is not known
STILL = 1e-5  # of the most that a token changes from image to image; what changes less does not depend on it
MOVED = 4.0  # how many times further than along channels the center must move along height and width
FAR = 0.25  # of the image's side: half of how far the centers of its halves are apart
CORRELATED = 0.8  # of the tokens' centers with the places that a grid gives them
CLEAR = 0.95  # a correlation after which the other dimension need not be looked at


@dataclass(frozen=True, eq=False)
class Probe:
    """An output (R, ...) and the R equal images (R, C, H, W) that it was computed from, with the graph between.

    ``below`` is another output on the way, whose ``layout`` is known: where the output looks is told there then.
    """

    output: Tensor
    images: Tensor
    below: Tensor | None = None
    layout: Layout = Layout()

    def looks(self, chosen: Tensor) -> Tensor:
        """Where each of r selections (r, ...) of the output looks: |d sum / d x|^2, over channels of x, (r, H, W).

        The sum takes each value times a random number of its own, lest channels cancel; x is the image, or what
        lies ``below``.
        """
        generator = torch.Generator().manual_seed(0)
        source = self.images if self.below is None else self.below
        size = (self.images.shape[-2], self.images.shape[-1])
        seen = []
        for part in chosen.split(len(self.images)):
            weights = torch.zeros_like(self.output)
            # One backward pass looks at as many selections as there
            # are copies of the image, one in each copy's row.
            weights[: len(part)] = part * torch.randn(part.shape, generator=generator, dtype=torch.float32).to(
                part
            )
            (gradient,) = torch.autograd.grad(
                self.output, source, weights, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            seen.append(exact(self.layout.split(gradient[: len(part)], size)[0]))
        looked = torch.cat(seen)
        # It is scaled before it is squared, lest a small gradient underflow.
        largest = looked.abs().amax((1, 2, 3), keepdim=True)
        looked = (looked / largest.masked_fill(largest == 0, 1)).square().sum(1)
        return looked / looked.sum((1, 2), keepdim=True).clamp_min(torch.finfo(looked.dtype).tiny)


# Of a dimension, 1 or 2, of so many tokens, which of them have no place; of those missing it is not known.
Placeless = Mapping[tuple[int, int], Tensor]


def measured(probe: Probe, placeless: Placeless | None = None) -> Layout | None:
    """The layout of an output (R, d1, d2[, d3]) by where the indices of each dimension look; None if unclear.

    A step along height moves the center of the gradient at the image down, along width to the right, along
    channels nowhere; tokens step along width first, but for those that are ``placeless``.
    """
    if not probe.output.requires_grad:
        return Layout()  # there is no gradient to look along, and so none for a map either, which will be said
    if len(probe.output) != len(probe.images) or _mixes_rows(probe):  # windows, or tokens before the batch
        return None
    match probe.output.dim():
        case 2:
            return Layout("bc")
        case 3:
            return _of_tokens(probe, placeless or {})
        case 4:
            return _of_places(probe)
        case _:
            return None


def _mixes_rows(probe: Probe) -> bool:
    """Whether the first row of an output looks at other images than the first, as a token of them all does."""
    weights = torch.zeros_like(probe.output)
    # The weights differ, since the plain sum of what a normalization gives is constant and has no gradient.
    weights[0] = probe.output.detach()[0].abs() + 1
    (gradient,) = torch.autograd.grad(
        probe.output, probe.images, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return bool(gradient[1:].any())


def oriented(probe: Probe, layout: Layout = Layout()) -> Layout | None:
    """The layout of a map (R, ...) by which way it looks: the supposed one unless it clearly looks another.

    One that was turned looks along width where its height runs; None is one that was mirrored.
    """
    maps, prefix = layout.split(probe.output.detach(), (probe.images.shape[-2], probe.images.shape[-1]))
    halves = torch.stack([half for dim in (1, 2) for half in _halves(maps.shape[1:], dim)])
    chosen = layout.join(halves.to(maps), prefix.new_zeros(len(halves), *prefix.shape[1:]))
    for draws in (1, DRAWS):
        seen = probe.looks(chosen.repeat(draws, *[1] * (chosen.dim() - 1)))
        if probe.below is not None and not bool(seen.any()):  # nothing passes between the two
            return oriented(Probe(probe.output, probe.images), layout)
        # The rows are (draw, dimension of the map, half); what is
        # left says how far each dimension's two halves look apart.
        found = _centers(seen)
        first, second = found.unflatten(0, (draws, 2, 2)).mean(0).unbind(1)
        straight, across = (second - first).diagonal(), (second - first).flip(1).diagonal()
        if straight.min() > MOVED * across.abs().max():
            return layout
    # Tokens may look everywhere, which moves centers by chance, too, but not so far.
    least = FAR if "n" in layout.dims else 0.0
    if across.abs().min() > max(MOVED / 2 * straight.abs().max(), least):
        return layout.turned() if bool((across > 0).all()) else None
    mirrored = -straight > (MOVED / 2 * across.abs()).clamp_min(least)
    return None if bool(mirrored.any()) else layout


def displacement(probe: Probe) -> float | None:
    """How far a map (R, C, h, w) lies at most from where it looks, as a share of the image's side.

    None is one whose places look in another order, as where the image was rolled or mirrored before.
    """
    sizes, shares = probe.output.shape[2:], (torch.arange(STRIPS) + 0.5) / STRIPS
    far = 0.0
    for axis, size in enumerate(sizes):
        if size < STRIPS:
            return 0.0
        bands = torch.arange(size) * STRIPS // size == torch.arange(STRIPS)[:, None]
        shape = (STRIPS, 1, size, 1) if axis == 0 else (STRIPS, 1, 1, size)
        seen = probe.looks(bands.view(shape).to(probe.output).expand(STRIPS, *probe.output.shape[1:]))
        # What looks at nothing is padding.
        is_seen = seen.sum((1, 2)).cpu() > 0
        centers = _centers(seen)[:, axis].cpu()
        middles = (torch.arange(seen.shape[axis + 1]) + 0.5) / seen.shape[axis + 1]
        spread = (seen.sum(2 - axis).cpu() @ (middles.to(centers)[:, None] - centers).square()).diagonal().sqrt()
        steps = centers[is_seen].diff()
        # A band of what lies in order looks at less than the way to the next one.
        if not bool((steps > spread[is_seen][1:].minimum(spread[is_seen][:-1])).all()):
            return None
        far = max([far, *(centers - shares.to(centers))[is_seen].abs().tolist()])
    return far


def _of_places(probe: Probe) -> Layout | None:
    shape = list(probe.output.shape[1:])
    if shape.count(1) >= 2:  # a single place
        return _lettered(shape.index(max(shape)), *(dim for dim in range(3) if dim != shape.index(max(shape))))
    halves = torch.stack([half for dim in range(3) for half in _halves(shape, dim)]).to(probe.output)
    # One draw is enough where it is clear by far; only else the mean of several, four times as costly, is taken.
    for draws, margin in ((1, 2 * MOVED), (DRAWS, MOVED)):
        found = _centers(probe.looks(halves.repeat(draws, 1, 1, 1))).unflatten(0, (draws, 3, 2)).mean(0)
        signed = found[:, 1] - found[:, 0]  # (dimension of the output, axis of the image)
        moves = signed.abs()
        height, width = (int(axis.argmax()) for axis in moves.T)
        if height == width:
            continue
        # The three dimensions are numbered 0, 1, 2, whose sum is 3.
        channels = 3 - height - width
        upright = bool(signed[height, 0] > 0) and bool(signed[width, 1] > 0)
        own = min(moves[height, 0], moves[width, 1])
        # Steps along both sides of attention move the center along height, more than along width.
        clear = own > max(margin * moves[channels].max(), moves[height, 1], moves[width, 0])
        if clear and upright:
            return _lettered(channels, height, width)
    return None


def _lettered(channels: int, height: int, width: int) -> Layout:
    letters = {channels: "c", height: "h", width: "w"}
    return Layout("b" + "".join(letters[dim] for dim in range(3)))


def _halves(shape: Sequence[int], dim: int) -> tuple[Tensor, Tensor]:
    """The first and the second half of a dimension's indices, as selections of 0 and 1."""
    # Of an odd number both halves hold the middle, so that they are of one size.
    first, second, half = torch.zeros(*shape), torch.zeros(*shape), -(-shape[dim] // 2)
    first.narrow(dim, 0, half).fill_(1)
    second.narrow(dim, shape[dim] - half, half).fill_(1)
    return first, second


def _centers(seen: Tensor) -> Tensor:
    """The centers of mass (r, 2), as shares of height and width, of what selections look at (r, H, W)."""
    rows, columns = ((torch.arange(size, device=seen.device) + 0.5) / size for size in seen.shape[1:])
    total = seen.sum((1, 2)).clamp_min(torch.finfo(seen.dtype).tiny)
    return torch.stack([seen.sum(2) @ rows.to(seen), seen.sum(1) @ columns.to(seen)], 1) / total[:, None]


def _of_tokens(probe: Probe, placeless: Placeless) -> Layout | None:
    # Tokens before channels is by far the more common order, so
    # the other is looked at only where this one is doubtful.
    fit, layout = _fitting(probe, "bnc", placeless)
    if fit < CLEAR:
        fit, layout = max((fit, layout), _fitting(probe, "bcn", placeless), key=lambda one: one[0])
    return layout if fit > CORRELATED else None


def _fitting(probe: Probe, dims: str, placeless: Placeless) -> tuple[float, Layout]:
    """How well a dimension's indices are the tokens of a grid (a correlation), and of which layout."""
    dim = dims.index("n")
    count = probe.output.shape[dim]
    tokens = torch.linspace(0, count - 1, min(TOKENS, count)).long()
    chosen = torch.zeros(len(tokens), *probe.output.shape[1:])
    for row, token in enumerate(tokens.tolist()):
        chosen[row].select(dim - 1, token).fill_(1)
    seen = probe.looks(chosen.to(probe.output))
    # What all tokens look at, through attention, says nothing of where each of them is.
    found = _centers((seen - seen.mean(0)).clamp_min(0)).cpu()
    image = (probe.images.shape[-2], probe.images.shape[-1])
    known = placeless.get((dim, count))
    first, *others = [
        Layout(dims, prefix, nearest_grid(count - prefix - suffix, image), suffix)
        for prefix, suffix in _ends_of_places(known, count)
    ] or [Layout(dims)]
    fit = _fit(first, tokens, found, count)
    # Where it is not known which tokens have no place, those that look as if some came
    # before or after the places may as well have one among them, so that nothing is sure.
    return (fit, first) if all(_fit(other, tokens, found, count) < fit for other in others) else (0.0, first)


def _fit(layout: Layout, tokens: Tensor, centers: Tensor, count: int) -> float:
    """How well the centers at which some of so many tokens look are the places that a layout gives them."""
    if layout.grid is None:
        return 0.0
    inside = (tokens >= layout.prefix) & (tokens < count - layout.suffix)
    place, (height, width) = tokens[inside] - layout.prefix, layout.grid
    expected = torch.stack([(place // width + 0.5) / height, (place % width + 0.5) / width], 1).to(centers)
    return float(torch.corrcoef(torch.stack([expected.T.flatten(), centers[inside].T.flatten()]))[0, 1])


def _ends_of_places(placeless: Tensor | None, count: int) -> list[tuple[int, int]]:
    """How many tokens may come before those of places, and after them; empty if some stand among them."""
    if placeless is None:
        most = min(PLACELESS, count - 2)
        return [(0, 0)] + [ends for some in range(1, most + 1) for ends in ((some, 0), (0, some))]
    placed = (~placeless).nonzero()
    first, last = int(placed[0]), int(placed[-1])
    return [(first, count - 1 - last)] if last - first + 1 == len(placed) else []


# Of a model's layers.

# A layout, None where it cannot be told, or why the layer cannot be explained.
FoundLayout = Layout | InvalidLayer | None
# Found of a model by the layer's name, or its kind, and the image's shape.
_Found = dict[tuple[Any, torch.Size], FoundLayout]
_LAYOUTS, _LAST_MAP, _ROWS, _PLACELESS, _DISPLACED = "layouts", "last map", "rows", "placeless", "displaced"


def layouts_of(
    model: nn.Module, layers: Sequence[str], images: Tensor, declared: Mapping[str, Layout], max_batch: int
) -> dict[str, FoundLayout]:
    """The layouts of a model's layers for images (B, C, H, W); None where a layout cannot be told.

    ``declared`` gives those of layers by name or glob. What is not declared is told by a pass over one random
    image, or measured by a pass over at most ``max_batch`` of it, once per model as it is (``remembered``), size
    of image and kind of layer.
    Layers that do not run are left out, those that cannot be captured have the error for a layout.
    """
    given: dict[str, FoundLayout] = {INPUT: Layout()}
    given |= {name: one for name in layers for pattern, one in declared.items() if fits_glob(name, pattern)}
    found: _Found = remembered(model, _LAYOUTS)
    size = images.shape[1:]
    given |= _refused(model, [name for name in given if name in layers and name != INPUT], found, images)
    unknown = [name for name in layers if name not in given and (name, size) not in found]
    convolutions = (name for name, module in model.named_modules() if name and isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    outputs, refused = _probed(model, [*unknown, first] if first and unknown else unknown, images, 1)
    if first in outputs and not _lies_in_order(model, first, outputs[first].output, images, max_batch):
        found |= {(name, size): None for name in unknown}
        unknown = []
    outputs = {name: outputs[name] for name in unknown if name in outputs}
    found |= {(name, size): error for name, error in refused.items() if name in unknown}
    told = {name: _told(model, name, probe) for name, probe in outputs.items()}
    # The order of dimensions is sure there; only whether height and width were exchanged has to be measured.
    turning = [name for name, one in told.items() if one is None and _is_of_convolutions(outputs[name].output)]
    probes, _ = _probed(model, turning, images, min(_HALVES, max_batch))
    found |= {(name, size): oriented(probe) for name, probe in probes.items()}
    found |= {(name, size): one for name, one in told.items() if one is not None}
    unclear = {name: outputs[name].output for name, one in told.items() if one is None and name not in probes}
    found |= {(name, size): one for name, one in _measured(model, found, unclear, images, max_batch).items()}
    everything = {name: found[name, size] for name in layers if (name, size) in found} | given
    return {name: everything[name] for name in layers if name in everything}


def _lies_in_order(model: nn.Module, first: str, output: Tensor, images: Tensor, max_batch: int) -> bool:
    """Whether a model hands its images to the first convolution in order, or turned, which each layer tells."""
    known: dict[torch.Size, float | None] = remembered(model, _DISPLACED)
    size = images.shape[1:]
    if size not in known:
        known[size] = 0.0
        if output.dim() == 4 and len(output) == 1 and _may_move(output):
            probes, _ = _probed(model, [first], images, min(STRIPS, max_batch))
            way = oriented(probes[first])
            # Whether it was turned is told layer by layer.
            known[size] = displacement(probes[first]) if way == Layout() else 0.0 if way else None
    return known[size] is not None


def displaced(model: nn.Module, images: Tensor) -> float:
    """How far a model's maps lie from their places in images, as a share of the side (``layouts_of``).

    Below ``DISPLACED`` and two pixels it is 0, as of a convolution that pads one side by a pixel more.
    """
    share = remembered(model, _DISPLACED).get(images.shape[1:]) or 0.0
    return share if share > max(DISPLACED, 2 / min(images.shape[-2:])) else 0.0


def _refused(model: nn.Module, declared: Sequence[str], found: _Found, images: Tensor) -> dict[str, InvalidLayer]:
    """Of layers with a declared layout those whose first dimension is not the batch's: one image gives more."""
    size = images.shape[1:]
    new = [name for name in declared if ((_ROWS, name), size) not in found]
    outputs, _ = _probed(model, new, images, 1)
    for name in new:
        rows = len(outputs[name].output) if name in outputs else 1
        error = InvalidLayer(
            f"layer {name!r} gives {rows} rows for one image, so its first dimension is not the batch's, which "
            "its map needs; name another layer"
        )
        found[(_ROWS, name), size] = None if rows == 1 else error
    errors = {name: found[(_ROWS, name), size] for name in declared}
    return {name: error for name, error in errors.items() if isinstance(error, InvalidLayer)}


def take_over_layouts(copy: nn.Module, model: nn.Module) -> None:
    """Take the layouts that were found in a model for those of its copy with other weights."""
    remembered(copy, _LAYOUTS).update(remembered(model, _LAYOUTS))


def _measured(
    model: nn.Module, found: _Found, outputs: Mapping[str, Tensor], images: Tensor, max_batch: int
) -> dict[str, FoundLayout]:
    """The layouts of layers by their outputs for one image: as of their kin, of their kind, or measured.

    A kind is measured at its first and its last layer in the model, and at each where these differ. Of those
    between only the orientation is looked at: the image may be turned there and turned back before the last.
    """
    size, copies = images.shape[1:], min(COPIES, max_batch)
    kin = {name: _of_kin(model, name, output, images, max_batch) for name, output in outputs.items()}
    kinds = {name: _kind(model, name, output) for name, output in outputs.items() if kin[name] is None}
    ends = {kind: _ends(model, name, kind) for name, kind in kinds.items() if (kind, size) not in found}
    probes, _ = _probed(model, list({end for both in ends.values() for end in both}), images, copies)
    placeless = _placeless(model, images) if any(output.dim() == 3 for output in outputs.values()) else {}
    seen = {name: measured(probe, placeless) for name, probe in probes.items()}
    for kind, both in ends.items():
        shapes = {probes[end].output.shape[1:] if end in probes else None for end in both}
        # Both ends must run, give this shape and be measured alike; else nothing is known of those between.
        if shapes == {kind[1][1:]} and len({seen[end] for end in both}) == 1:
            found[kind, size] = seen[both[0]]
    apart = [name for name, kind in kinds.items() if (kind, size) not in found and name not in seen]
    probes, _ = _probed(model, apart, images, copies)
    seen |= {name: measured(probe, placeless) for name, probe in probes.items()}
    alike = {name: kin[name] or found.get((kinds[name], size)) for name in outputs if name not in seen}
    maps = {name: one for name, one in alike.items() if isinstance(one, Layout) and one.is_map}
    return (
        alike
        | seen
        | _oriented(model, maps, {name: seen[name] for name in outputs if name in seen}, images, copies)
    )


def _oriented(
    model: nn.Module, maps: Mapping[str, Layout], known: Mapping[str, FoundLayout], images: Tensor, max_batch: int
) -> dict[str, FoundLayout]:
    """The layouts of maps by which way each looks at the one before it, measured or found here, or at the image.

    One layer away a place looks at its own place most clearly, and the pass is short.
    """
    if not maps:
        return {}
    probes, _ = _probed(model, [*known, *maps], images, min(_HALVES, max_batch))
    order = [name for name, _ in model.named_modules() if name in probes]
    found: dict[str, FoundLayout] = {}
    before: Probe | None = None
    for name in order:
        probe = probes[name]
        if name in maps:
            near = probe if before is None else replace(probe, below=before.output, layout=before.layout)
            found[name] = oriented(near, maps[name])
        told = found.get(name, known.get(name))
        if isinstance(told, Layout) and told.is_map:
            before = replace(probe, layout=told)
    return found


def _ends(model: nn.Module, name: str, kind: tuple[Any, ...]) -> tuple[str, str]:
    """The first and the last layer in a model of a layer's class, with parameters of the same shapes."""
    same, _, shapes = kind
    alike = [
        other
        for other, module in model.named_modules()
        if type(module) is same and tuple(parameter.shape for parameter in module.parameters()) == shapes
    ]
    return (alike[0], alike[-1]) if alike else (name, name)


def _kind(model: nn.Module, name: str, output: Tensor) -> tuple[Any, ...]:
    """Layers of one class, with parameters and outputs of the same shapes, have one layout."""
    module = model.get_submodule(name)
    shapes = tuple(parameter.shape for parameter in module.parameters())
    same = type(module) if shapes and _is_own(module) else name
    return same, output.shape, shapes


def _is_own(module: nn.Module) -> bool:
    """Whether a module is of a class of its model's own: torch's work in any layout."""
    return not type(module).__module__.startswith("torch.")


def _of_kin(model: nn.Module, name: str, output: Tensor, images: Tensor, max_batch: int) -> Layout | None:
    """The layout of tokens as of the model's first layer of the same class, which looks at the smallest places.

    Each token may stand for several of the first's along both dimensions; None if their number does not fit.
    """
    module = model.get_submodule(name)
    kin = next(other for other, one in model.named_modules() if type(one) is type(module))
    if output.dim() != 3 or kin == name or not _is_own(module) or not any(module.children()):
        return None
    told = layouts_of(model, (kin,), images, {}, max_batch).get(kin)
    if not isinstance(told, Layout) or told.grid is None:
        return None
    places = output.shape[told.dims.index("n")] - told.prefix - told.suffix
    # Later stages merge places in steps of 2, 4 and so on, rounding up where the grid is odd.
    for step in range(1, max(told.grid) + 1):
        grid = (-(-told.grid[0] // step), -(-told.grid[1] // step))
        if grid[0] * grid[1] == places:
            return replace(told, grid=grid)
    return None


def _probed(
    model: nn.Module, layers: Sequence[str], images: Tensor, copies: int
) -> tuple[dict[str, Probe], dict[str, InvalidLayer]]:
    """The layers' outputs for copies of one random image of the images' size, with a graph; and what has none."""
    if not layers:
        return {}, {}
    with (
        Guard() as guard,
        guard.inference(False),
        torch.enable_grad(),
        captured(model, layers, strict=False) as outputs,
    ):
        leaf = _random_image(images).expand(copies, -1, -1, -1).clone().requires_grad_()
        model(leaf.clone())
    return {name: Probe(output, leaf) for name, output in outputs.items()}, outputs.refused


def _placeless(model: nn.Module, images: Tensor) -> Placeless:
    """Which tokens have no place in images of this size, such as a class token, prompts or registers.

    They do not depend on the image where a module first gives them, before attention mixes all of them. Left out
    are tokens that are given mixed already: each of them depends on both halves of the image.
    """
    known: dict[torch.Size, dict[tuple[int, int], Tensor]] = remembered(model, _PLACELESS)
    if images.shape[1:] in known:
        return known[images.shape[1:]]
    found: dict[tuple[int, int], Tensor] = known.setdefault(images.shape[1:], {})

    def look(_: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 3 or len(output) != 3:
            return
        for dim in (dim for dim in (1, 2) if (dim, output.shape[dim]) not in found):
            changes = (exact(output[1:]) - exact(output[:1])).abs().amax(3 - dim)
            half, whole = changes <= STILL * changes.amax(1, keepdim=True)
            if not whole.all() and half.any():
                found[dim, output.shape[dim]] = whole.cpu()

    one, other = _random_image(images), _random_image(images, 2)
    half = torch.cat([one[..., : one.shape[-1] // 2], other[..., one.shape[-1] // 2 :]], -1)
    # Three images without a graph take less memory than one with it.
    with Guard() as guard, guard.inference(False), torch.no_grad(), watched(model, look):
        model(torch.cat([one, half, other]))
    return found


def _random_image(images: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *images.shape[1:], generator=generator, dtype=torch.float32).to(images)


def last_map(
    model: nn.Module, images: Tensor, declared: Mapping[str, Layout], max_batch: int
) -> tuple[str, list[str]]:
    """The last block whose output is a map on whose places the logits depend, for images (B, C, H, W).

    It is no classifier's vector, no map of one place, and not the last block of a transformer of which the class
    token alone is read. Also the blocks after it that were passed over since they cannot be told or captured.

    Raises:
        InvalidLayer: the model has no such block.
    """
    trial = (images.shape[1:], tuple(declared.items()))
    known: dict[Any, tuple[str, list[str]]] = remembered(model, _LAST_MAP, with_weights=True)
    if trial not in known:
        passed_over: list[str] = []
        # Blocks are tried from the last one up, without the input, which comes first.
        blocks = layer_names(model)[:0:-1]
        found = (layouts_of(model, (name,), images, declared, max_batch) for name in blocks)
        for name, layout in ((name, layout) for ran in found for name, layout in ran.items()):
            if not isinstance(layout, Layout):
                passed_over.append(name)
            elif layout.is_map and _has_say(model, name, layout, images):
                known[trial] = name, passed_over
                break
        else:
            raise InvalidLayer("no block of the model gives a map that the class depends on; name a layer")
    return known[trial]


def _has_say(model: nn.Module, name: str, layout: Layout, images: Tensor) -> bool:
    """Whether a layer's output has several places, and logits depend on these."""
    with Guard() as guard, guard.inference(False), torch.enable_grad(), captured(model, (name,)) as outputs:
        logits = tensor_in(model(_random_image(images)))
    if not logits.requires_grad:
        return False
    # The weights are random, since the plain sum of outputs may depend on nothing, as that of probabilities does.
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32).to(logits)
    (gradient,) = torch.autograd.grad(logits, outputs[name], weights, materialize_grads=True, allow_unused=True)
    places, _ = layout.split(gradient, (images.shape[-2], images.shape[-1]))
    return places[0, 0].numel() > 1 and bool(places.any())


def _is_of_convolutions(output: Tensor) -> bool:
    return len(output) == 1 and of_convolutions(output)


def _told(model: nn.Module, name: str, probe: Probe) -> Layout | None:
    """A layer's layout where convolutions made its output for one image, or where the model itself tells it.

    The modules that hold the layer are asked, the innermost first, as timm's networks answer: ``output_fmt``,
    ``num_prefix_tokens`` and, for images of the size that the model was made for, ``patch_embed.grid_size``.
    """
    output, size = probe.output, (probe.images.shape[-2], probe.images.shape[-1])
    if len(output) != 1:  # rows that are windows, not images, whatever made them
        return None
    if of_convolutions(output) and not may_turn(output):
        return Layout()
    parts = name.split(".")
    for depth in reversed(range(len(parts))):
        holder = model.get_submodule(".".join(parts[:depth]))
        form = str(getattr(holder, "output_fmt", "")).rpartition(".")[2]
        if output.dim() == 4 and form in ("NHWC", "NCHW"):
            layout = Layout("bhwc" if form == "NHWC" else "bchw")
            # The model speaks of its maps: attention has four dimensions, too, as dropout and softmax hand it on.
            is_map = any(True for _ in model.get_submodule(name).parameters())
            return layout if is_map and _has_ratio(layout.split(output, size)[0], size) else None
        patches = getattr(holder, "patch_embed", None)
        grid, prefix = getattr(patches, "grid_size", None), getattr(holder, "num_prefix_tokens", None)
        # For images of another size, dynamic_img_size=True makes another grid, maybe of as many places.
        if output.dim() == 3 and grid and isinstance(prefix, int) and getattr(patches, "img_size", None) == size:
            places = int(grid[0]) * int(grid[1])
            if output.shape[1] == prefix + places:
                return Layout("bnc", prefix, (int(grid[0]), int(grid[1])))
    return None


def _has_ratio(maps: Tensor, image: tuple[int, int]) -> bool:
    """Whether maps (B, C, h, w) can be an image's (H, W) at steps of equal length, but for a place at the end."""
    height, width = maps.shape[2:]
    return abs(height * image[1] - width * image[0]) <= max(image)
