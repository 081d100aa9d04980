"""A strided convolution as a forward pass ran it, and the bilinear path that stands in for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InvalidModel, require_count
from ..kinds import require_settings
from ..layers import explainable, sums_of
from ..rules.base import Rule, Rules, Run
from ..rules.conv import SmoothedDownsampling, pair
from ..rules.operations import Operation
from ..undo import Guard

CONVOLUTION = frozenset({"conv2d"})
# What else than a strided 2-D convolution takes one place of several, as the backward variant knows it.
_LEVELED = SmoothedDownsampling("backward")
Size = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """A strided convolution: its form, and its weight by the SHA-256 of its values in float32.

    Form and weight tell convolutions apart, whatever module, copy or device runs them; one that runs twice
    is one convolution. ``place`` counts the convolutions, strided or not, that ran before it.
    """

    in_channels: int
    out_channels: int
    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    groups: int
    weight: str
    place: int = field(compare=False)

    @classmethod
    def of(cls, operation: Operation) -> Self:
        """What an intercepted convolution is."""
        settings = operation.settings
        weight, groups = settings["weight"], settings["groups"]
        padding = settings["padding"]  # a strided convolution may say "valid", but not "same"
        return cls(
            weight.shape[1] * groups,
            weight.shape[0],
            pair(tuple(weight.shape[2:])),
            pair(settings["stride"]),
            (0, 0) if isinstance(padding, str) else pair(padding),
            pair(settings["dilation"]),
            groups,
            digest(weight),
            sum(name in CONVOLUTION for name in operation.trace[: operation.place]),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What ``as_dict`` gave, after a trip through JSON."""
        plain: dict[str, Any] = {
            k: tuple(value) if isinstance(value, list) else value for k, value in values.items()
        }
        require_settings(cls, plain, "a convolution")
        require_count("groups", plain["groups"])
        return cls(**plain)

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    @property
    def form(self) -> str:
        """All but the weight, as messages say it."""
        sizes = {"": self.kernel, "stride ": self.stride, "padding ": self.padding, "dilation ": self.dilation}
        text = ", ".join(f"{name}{height}x{width}" for name, (height, width) in sizes.items())
        return f"{self.in_channels} -> {self.out_channels} channels, {text}, groups {self.groups}"

    def output_size(self, x: Tensor) -> Size:
        """Height and width of the convolution's output for inputs (B, C, H, W)."""
        axes = zip(x.shape[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in axes
        ]
        return height, width


# Digests by weight tensor, each with the tensor's version, which counts changes in place.
_DIGESTS = WeakTensorKeyDictionary()


def digest(weight: Tensor) -> str:
    """The SHA-256 of a weight's values in float32; computed once for each tensor, until it changes."""
    # An inference tensor counts no changes, so its digest cannot be trusted a second time.
    version = None if weight.is_inference() else (weight._version, sums_of([weight]))
    known = _DIGESTS.get(weight)
    if known is not None and version is not None and known[0] == version:
        return str(known[1])
    with torch.inference_mode(False):
        values = weight.detach().to("cpu", torch.float32).contiguous()
        found = sha256(values.numpy().tobytes()).hexdigest()
    _DIGESTS[weight] = (version, found)
    return found


@dataclass(frozen=True, eq=False)
class BilinearPath:
    """Stands in for a strided convolution: 3x3 convolution, bilinear resizing, 3x3 convolution.

    Smooth Deep Saliency, Sec. 3.1: the first convolution changes the channels at full resolution, the second
    works at the resolution of the replaced one's output; both have stride 1, one zero of padding and a bias,
    and nothing else comes between. The resizing has ``align_corners=False`` and no antialiasing, so at half
    an even size it is 2x2 average pooling. Where the replaced convolution has groups, both have as many.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    groups: int = 1

    @classmethod
    def drawn(cls, convolution: Convolution, generator: torch.Generator) -> Self:
        """A path with PyTorch's initial values: all uniform in +-1 / sqrt(fan-in)."""

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            # A bias has the bound of its weight: fan-in is input channels of a group times 3 x 3 places.
            bound = (shapes["weight" + name[-1]][1] * 9) ** -0.5
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)

        shapes = cls.shapes(convolution)
        return cls(**{name: draw(name, shape) for name, shape in shapes.items()}, groups=convolution.groups)

    @staticmethod
    def shapes(convolution: Convolution) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters by name."""
        out, groups = convolution.out_channels, convolution.groups
        return {
            "weight1": (out, convolution.in_channels // groups, 3, 3),
            "bias1": (out,),
            "weight2": (out, out // groups, 3, 3),
            "bias2": (out,),
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {name: getattr(self, name) for name in ("weight1", "bias1", "weight2", "bias2")}

    @property
    def size(self) -> int:
        """The number of parameters: 9 C_in C_out / groups + C_out + 9 C_out^2 / groups + C_out."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The path on a device, in a precision; not to be trained."""
        # No inference tensors, though it may be an inference that asks: gradients may go through them later.
        with torch.inference_mode(False), torch.no_grad():
            moved = {name: tensor.detach().to(device, dtype) for name, tensor in self.tensors.items()}
            return type(self)(**moved, groups=self.groups)

    def __call__(self, x: Tensor, size: Size) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, *size)."""
        x = F.conv2d(x, self.weight1, self.bias1, padding=1, groups=self.groups)
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return F.conv2d(x, self.weight2, self.bias2, padding=1, groups=self.groups)


def is_strided(operation: Operation) -> bool:
    """Whether a convolution has a stride above 1 along height or width."""
    return max(pair(operation.settings["stride"])) > 1


@dataclass(frozen=True, eq=False)
class _Listing(Rule):
    """Notes strided convolutions, counts what else the backward variant levels, and changes nothing."""

    found: dict[Convolution, None]
    others: Counter[str]
    operations: ClassVar[frozenset[str]] = CONVOLUTION | _LEVELED.operations
    required: ClassVar[bool] = False
    asks_for_first: ClassVar[bool] = True

    def concerns(self, operation: Operation) -> bool:
        return is_strided(operation) if operation.name in CONVOLUTION else _LEVELED.concerns(operation)

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        if operation.name in CONVOLUTION:
            self.found.setdefault(Convolution.of(operation))
        else:
            self.others[operation.name] += 1
        return run(x)


def strided_convolutions(model: nn.Module, images: Tensor) -> tuple[Convolution, ...]:
    """The strided 2-D convolutions of a model in execution order, found by running the first image.

    Raises:
        InvalidModel: there is none; or the model is in training mode or TorchScript.
    """
    return surveyed(model, images)[0]


def surveyed(model: nn.Module, images: Tensor) -> tuple[tuple[Convolution, ...], dict[str, int]]:
    """A model's strided 2-D convolutions, and how often what else takes one place of several runs, by its name.

    A surrogate leaves the latter, such as strided slices, as they are, so that the lattice that they print on the
    gradient stays. Else as :func:`strided_convolutions`.
    """
    model = explainable(model)
    listing = _Listing({}, Counter())
    with Guard(), torch.no_grad(), Rules((listing,)) as running:
        model(images[:1].clone())
    if not listing.found:
        reducing = ", ".join(_reductions(running.trace)) or "nothing that is known to"
        raise InvalidModel(
            "the model runs no strided convolution, and only these print a checkerboard on the gradient, which "
            f"surrogate, backward and forward variants remove (here {reducing} reduces the resolution). "
            "Explain the original; where maps are noisy, use method.smoothed()"
        )
    return tuple(listing.found), dict(listing.others)


def _reductions(trace: list[str]) -> Iterator[str]:
    for name, count in sorted(Counter(trace).items()):
        if "pool2d" in name:
            yield f"{name} x{count}"
