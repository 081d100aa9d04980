"""``Surrogate``: the variant of a model whose strided convolutions are bilinear paths; and its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InvalidModel, InvalidParameter, InvalidWeights
from ..files import no_file, open_regular, replace_file, sealed, unsealed
from ..kinds import require_kind
from ..rules.base import Rule, Run
from ..rules.operations import Operation
from .base import Variant
from .paths import CONVOLUTION, BilinearPath, Convolution, digest, is_strided, strided_convolutions

FORMAT = "pellucid surrogate 1"


@dataclass(frozen=True, eq=False, repr=False)
class BilinearDownsampling(Rule):
    """Run bilinear paths in place of the strided convolutions, which do not run at all.

    To other rules a path is the one convolution it replaces: the padding trick masks its output's gradient.
    ``called`` is what messages call the surrogate that the paths belong to.
    """

    called: str
    convolutions: tuple[Convolution, ...]
    paths: tuple[BilinearPath | None, ...]
    include_first: bool
    _placed: dict[Any, tuple[BilinearPath | None, ...]] = field(default_factory=dict, init=False)
    linear: ClassVar[bool] = True  # a path is two convolutions and a resizing
    operations: ClassVar[frozenset[str]] = CONVOLUTION
    first_stays: ClassVar[str] = (
        "the surrogate leaves the network's first convolution as it is; train it with include_first=True "
        "(--include-first) and use dataclasses.replace(surrogate, include_first=True), or take "
        "backward_with_first, forward_with_first or a hidden layer"
    )
    stays: ClassVar[str] = (
        "a surrogate replaces strided convolutions alone, and something else above steps over places, such as a "
        "strided slice, an index or a pooling, or one of its paths reduces an odd size, or by more than 2; the "
        "backward variant levels strided slices, too"
    )

    def __repr__(self) -> str:
        return f"BilinearDownsampling({self.called})"

    @property
    def alters_gradient(self) -> bool:
        """A surrogate is another function, with its own gradient."""
        return False

    @property
    def leaves_first(self) -> bool:
        """Whether the first convolution prints its lattice at the input."""
        return not self.include_first

    def concerns(self, operation: Operation) -> bool:
        """Strided convolutions that have a path."""
        return is_strided(operation) and self.path_of(operation) is not None

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the path."""
        path = self.path_of(operation)
        assert path is not None
        return path(x, Convolution.of(operation).output_size(x))

    def path_of(self, operation: Operation) -> BilinearPath | None:
        """What stands in for a strided convolution, on its input's device; None where it runs as it is.

        Raises:
            InvalidModel: the convolution is not one of those that the surrogate was trained for.
        """
        # It is known by its form and weight, so that a copy of the model, on any device, finds its own path.
        met = Convolution.of(operation)
        if met not in self.convolutions:
            raise self._refusal(met)
        index = self.convolutions.index(met)
        if self.convolutions[index].place == 0 and not self.include_first:
            return None
        x = operation.input
        # They are moved once for each device and precision; the trained paths themselves stay where they are.
        if (x.device, x.dtype) not in self._placed:
            self._placed[x.device, x.dtype] = tuple(path and path.to(x.device, x.dtype) for path in self.paths)
        return self._placed[x.device, x.dtype][index]

    def _refusal(self, met: Convolution) -> InvalidModel:
        known = next((other for other in self.convolutions if other.place == met.place), None)
        here, way = f"convolution {met.place} of the model is {met.form}", "train a surrogate for this model"
        if known is None:
            return InvalidModel(
                f"{self.called} does not fit: {here}, where its network has none with a stride; {way}"
            )
        if known.form != met.form:
            return InvalidModel(f"{self.called} does not fit: {here}, in its network {known.form}; {way}")
        return InvalidModel(
            f"{self.called} was trained for other weights: {here}, as in its network, but with another weight. "
            f"Load the weights that it was trained for, or {way}; surrogate.moved_to(model, images) takes it "
            "as it is"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Surrogate(Variant):
    """Bilinear paths trained in place of a model's strided convolutions; a variant of that model.

    ``method(model, images, variant=surrogate)`` explains, and ``Scorer(model, surrogate)`` scores, the model
    with each strided convolution replaced by its path (Smooth Deep Saliency, Sec. 3.1). Convolutions are
    known by their weights, so copies of the model on any device will do; a model with a strided convolution
    that is not known raises ``InvalidModel`` when it runs.

    Attributes:
        convolutions: the strided convolutions, in execution order.
        paths: what stands in for each; None where none was trained.
        facts: what the paths were trained for: data, epochs, losses, seed, versions.
        include_first: whether the network's first convolution is replaced too, if it is strided.

    Raises:
        InvalidParameter: ``include_first`` without a path for it.
    """

    convolutions: tuple[Convolution, ...]
    paths: tuple[BilinearPath | None, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    include_first: bool = False
    _: KW_ONLY
    name: str = "surrogate"
    rules: tuple[Rule, ...] = field(init=False)
    bound: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        first = self.convolutions[0].place == 0 and self.paths[0] is None
        if self.include_first and first:
            raise InvalidParameter(
                "include_first=True, but no path was trained for the first convolution; "
                "train with include_first=True"
            )
        rule = BilinearDownsampling(repr(self), self.convolutions, self.paths, self.include_first)
        object.__setattr__(self, "rules", (rule,))  # once: the rule keeps the paths on each device

    def __repr__(self) -> str:
        trained = [path for path in self.paths if path is not None]
        size = sum(path.size for path in trained)
        return f"Surrogate({self.facts.get('model', 'a model')}: {len(trained)} paths of {size:,} parameters)"

    def moved_to(self, model: nn.Module, images: Tensor) -> Surrogate:
        """The same paths for a model of the same architecture with other weights; one image shows its order.

        Raises:
            InvalidModel: the architecture differs; the first difference is named.
        """
        found = strided_convolutions(model, images)
        # The order of execution stands for the architecture; weights are another's and cannot tell.
        for number, (own, other) in enumerate(zip_longest(self.convolutions, found), 1):
            mine, theirs = (_described(convolution) for convolution in (own, other))
            if mine != theirs:
                raise InvalidModel(
                    f"{self} is of another architecture: strided convolution {number} is {mine} in its network "
                    f"and {theirs} in the model; train a surrogate for this model"
                )
        return replace(self, convolutions=found, facts={**self.facts, "moved": True})

    def save(self, path: str | Path) -> None:
        """Write the paths, the convolutions and the facts to a .safetensors file, in one move.

        Raises:
            InvalidParameter: a path of another ending.
            OutputNotWritable: the folder is missing or cannot be written.
        """
        replace_file(checked_path(path), _encoded(self))


def _described(convolution: Convolution | None) -> str:
    return "missing" if convolution is None else f"{convolution.form}, convolution {convolution.place} to run"


def load_surrogate(path: str | Path) -> Surrogate:
    """Read a surrogate that ``Surrogate.save`` wrote; on the CPU.

    Raises:
        InvalidWeights: no such file; broken, cut short, not finite, or no surrogate.
    """
    path = Path(path)
    header, tensors = _read(path)
    try:
        convolutions = [Convolution.from_dict(values) for values in header["convolutions"]]
        paths = tuple(_path(convolution, index, tensors) for index, convolution in enumerate(convolutions))
        facts = require_kind(dict[str, Any], header["facts"], "facts", InvalidWeights)
        first = require_kind(bool, header["include_first"], "include_first", InvalidWeights)
        surrogate = Surrogate(tuple(convolutions), paths, facts, first, name=path.stem)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise InvalidWeights(f"{path} is a damaged surrogate ({error}); train or fetch it again") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InvalidWeights(f"{path}: {name} holds NaN or infinite values; train with a lower lr")
    return surrogate


def checked_path(path: str | Path) -> Path:
    """Raise ``InvalidParameter`` unless a file to write is to be a .safetensors file."""
    if Path(path).suffix != ".safetensors":
        raise InvalidParameter(f"{path} does not end in .safetensors; a surrogate is saved in that format")
    return Path(path)


def named_tensors(paths: Sequence[BilinearPath | None]) -> dict[str, Tensor]:
    """The parameters of all paths by the names that files have for them."""
    return {
        f"path{index}.{name}": tensor
        for index, path in enumerate(paths)
        if path is not None
        for name, tensor in path.tensors.items()
    }


def _encoded(surrogate: Surrogate) -> bytes:
    header = {
        "format": FORMAT,
        "convolutions": [convolution.as_dict() for convolution in surrogate.convolutions],
        "include_first": surrogate.include_first,
        "facts": dict(surrogate.facts),
    }
    tensors = named_tensors(surrogate.paths)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header["digests"] = {name: digest(tensor) for name, tensor in plain.items()}
    return safetensors.torch.save(plain, {"surrogate": sealed(header).decode()})


def is_surrogate(path: Path) -> bool:
    """Whether a safetensors file says that it holds a surrogate."""
    with open_regular(path) as file:
        return b'"surrogate"' in file.read(1 << 12)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InvalidWeights(no_file(path, "surrogate file"))
    try:
        # Ordinary tensors also where inference asks for them: gradients may go through them later.
        with torch.inference_mode(False), safetensors.safe_open(path, framework="pt") as file:
            header = unsealed((file.metadata() or {}).get("surrogate", "{}").encode())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digests = require_kind(dict[str, str], header.get("digests", {}), "digests", InvalidWeights)
        for name, expected in digests.items():  # files of earlier versions have none
            if name not in tensors or digest(tensors[name]) != expected:
                raise ValueError(f"{name} was damaged since it was written")
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InvalidWeights(f"{path} is broken or cut short ({error}); train or fetch it again") from error
    if header.get("format") != FORMAT:
        raise InvalidWeights(f"{path} holds no surrogate, but {_content(tensors)}; give a file of train_surrogate")
    return header, tensors


def _content(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{len(names)} tensors such as {next(iter(names))}" if names else "nothing"


def _path(convolution: Convolution, index: int, tensors: Mapping[str, Tensor]) -> BilinearPath | None:
    if f"path{index}.weight1" not in tensors:
        return None
    shapes = BilinearPath.shapes(convolution)
    own = {name: tensors[f"path{index}.{name}"] for name in shapes}
    for name, shape in shapes.items():
        if tuple(own[name].shape) != shape:
            raise ValueError(f"path{index}.{name} is {tuple(own[name].shape)} instead of {shape}")
    return BilinearPath(**own, groups=convolution.groups)
