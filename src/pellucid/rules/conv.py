"""Rules for convolutions: the padding trick, and the smoothing of strided convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..errors import require_choice
from .base import Rule, Run, transform_arriving, transform_gradient
from .operations import Operation

Direction = Literal[1, -1]
Where = Literal["backward", "forward"]


@dataclass(frozen=True)
class PaddingTrick(Rule):
    """Zero the outermost row and column of the gradient at the output of every zero-padded convolution.

    RectGrad, Appendix C.1 and Listing 2: one pixel on all four sides, whatever the kernel and the stride.
    Zeros put around its input just before (``F.pad``, ``nn.ZeroPad2d``) count as its own padding. Unpadded
    convolutions are left alone; ``pointwise=True`` includes 1x1 convolutions, which TensorFlow counts as
    SAME-padded. A map two pixels wide or less passes nothing.
    """

    pointwise: bool = False
    linear: ClassVar[bool] = True
    operations: ClassVar[frozenset[str]] = frozenset({"conv2d"})

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the convolution; mask its output's gradient if it pads."""
        y = run(x)
        if y.requires_grad and (self._is_padded(operation) or _is_framed(x)):
            if min(y.shape[-2:]) <= 2:
                operation.notes.add(
                    f"{self} lets nothing through maps of two pixels or less, which are all border"
                )
            transform_arriving(y, _without_border)
        return y

    def _is_padded(self, operation: Operation) -> bool:
        padding, weight = operation.settings["padding"], operation.settings["weight"]
        # TensorFlow calls a 1x1 convolution SAME or VALID at will,
        # though neither pads it; torch cannot tell them apart.
        pointwise = tuple(weight.shape[2:]) == (1, 1)
        if self.pointwise and pointwise:
            return True
        if isinstance(padding, str):
            return padding == "same" and not pointwise
        return any(pair(padding))


def _is_framed(x: Tensor) -> bool:
    """Whether zeros were put around a tensor by the operation that made it."""
    node: Any = x.grad_fn
    while node is not None and node.name().startswith("CloneBackward"):  # of a layer that is explained
        node = node.next_functions[0][0]
    if node is None or not node.name().startswith("ConstantPadNdBackward"):
        return False
    left, right, top, bottom = (max(side, 0) for side in (*node._saved_pad, 0, 0)[:4])
    height, width = x.shape[-2:]
    frame = x[..., :left], x[..., width - right :], x[..., :top, :], x[..., height - bottom :, :]
    return max(left, right, top, bottom) > 0 and not any(bool(side.any()) for side in frame)


def _without_border(gradient: Tensor) -> Tensor:
    masked = gradient.clone()
    masked[..., 0, :] = masked[..., -1, :] = 0
    masked[..., :, 0] = masked[..., :, -1] = 0
    return masked


POOLS = frozenset({"max_pool2d", "avg_pool2d"})
STEPPING = frozenset({"conv1d", "conv2d", "conv3d"})


@dataclass(frozen=True)
class SmoothedDownsampling(Rule):
    """Remove the checkerboard that a strided convolution prints on the gradient: average s x s rolls.

    With P_d(t) = 1/s^2 sum_{h,w in 0..s-1} roll(t, d (h, w)), circular, over height and width:
    ``where="backward"`` (Smooth Deep Saliency, backward hook) sends P_d(gradient of the input) down;
    ``where="forward"`` (forward hook) convolves P_d(x) instead of x, one convolution for the paper's four by
    linearity. ``direction`` d is +1 in the released code for both, so the forward hook's gradient is the
    backward hook's rolled by (-1, -1); d = -1 in the forward gives exactly the backward hook's gradient.
    A convolution whose ``padding_mode`` is not zeros is given the padded input, so that is what rolls.
    The network's first convolution is skipped unless ``include_first`` (Sec. 3.1; the variants
    ``backward_with_first`` and ``forward_with_first``), since maps of interest lie above it; what it prints stays
    at the input. Strided 1x1 shortcuts count, as in the released code.

    What else takes every s-th pixel prints the same pattern and is treated alike, which goes beyond the paper:
    convolutions of one and of three dimensions, strided slices (``x[:, :, ::2, ::2]``, also of (B, H, W, C)),
    ``pixel_unshuffle``, and pooling whose windows are smaller than its stride. ``pooling=True`` includes all
    pooling with a stride, which the paper leaves alone. A space-to-depth written as reshape and permute cannot
    be told from attention's windows and is left as it is, and so are slices of one dimension at a time, and
    ``interpolate`` to a smaller size: where a pattern stays, a ``PatternWarning`` says so, and the metric
    ``checkerboard`` how much.
    """

    where: Where = "backward"
    direction: Direction = 1
    include_first: bool = False
    pooling: bool = False
    linear: ClassVar[bool] = True
    asks_for_first: ClassVar[bool] = True
    without_it: ClassVar[str] = (
        "Leave out the variant, or this rule: the network has nothing strided to smooth, but for its first "
        "convolution where include_first=True asks for that, too"
    )
    operations: ClassVar[frozenset[str]] = STEPPING | {"slice", "pixel_unshuffle"} | POOLS
    first_stays: ClassVar[str] = (
        "the variant leaves the network's first convolution as it is; take backward_with_first or "
        "forward_with_first, or a hidden layer"
    )
    stays: ClassVar[str] = (
        "something above steps over places in a way that the variant leaves as it is, such as an "
        "index, interpolate, reshape and permute, or a pooling (SmoothedDownsampling(pooling=True)); "
        "write it as x[:, :, ::{period}, ::{period}]"
    )

    def __post_init__(self) -> None:
        require_choice("where", self.where, Where)
        require_choice("direction", self.direction, Direction)

    @property
    def alters_gradient(self) -> bool:
        """Only in the backward form: the forward form is another function, with its own gradient."""
        return self.where == "backward"

    @property
    def leaves_first(self) -> bool:
        """Whether the first convolution prints its lattice at the input."""
        return not self.include_first

    def concerns(self, operation: Operation) -> bool:
        """What reduces the size by a stride, but not the first convolution of the network."""
        stride = stride_of(operation)
        if max(stride) == 1:
            return False
        if operation.name in STEPPING:
            return self.include_first or not operation.is_first_of(STEPPING)
        # Windows as large as the stride cover all places and print no pattern; smaller ones leave some out.
        if operation.name in POOLS:
            window = pair(operation.settings["kernel_size"])
            return self.pooling or any(side < step for side, step in zip(window, stride, strict=True))
        return True

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation with its input, or its input's gradient, averaged over the rolls."""
        stride = stride_of(operation)
        dims = operation.settings.get("dims", tuple(range(-len(stride), 0)))
        if self.where == "forward":
            return run(rolled_mean(x, stride, self.direction, dims))
        # It acts at the input of the operation, not at its output,
        # since the pattern arises in its own backward pass.
        return run(transform_gradient(x, lambda gradient: rolled_mean(gradient, stride, self.direction, dims)))


def stride_of(operation: Operation) -> tuple[int, ...]:
    """By how much an operation of ``SmoothedDownsampling`` steps along its places, height and width last."""
    settings = operation.settings
    if operation.name in STEPPING:
        places, stride = operation.others[0].dim() - 2, settings["stride"]
        steps = (stride,) if isinstance(stride, int) else tuple(stride)
        return steps * places if len(steps) == 1 else steps
    if operation.name == "pixel_unshuffle":
        return pair(settings["downscale_factor"])
    return pair(settings["stride"] or settings["kernel_size"])  # a pooling's stride is its window if left out


def rolled_mean(
    x: Tensor, stride: tuple[int, ...], direction: Direction = 1, dims: tuple[int, ...] = (-2, -1)
) -> Tensor:
    """The mean of x rolled by 0..s-1 pixels, circularly, along each of its dimensions ``dims`` of places."""
    for dim, steps in zip(dims, stride, strict=True):
        if steps > 1:
            # The mean over s x s rolls is one over rows of one over columns: 2 (s - 1) rolls instead of s^2 - 1.
            rolls = [x.roll(direction * shift, dim) for shift in range(1, steps)]
            x = sum(rolls, start=x) / steps
    return x


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """A height-and-width setting as two integers."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]
