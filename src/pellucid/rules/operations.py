"""Recognises every spelling of the operations that rules answer for.

``F.relu``, ``torch.relu_``, ``Tensor.relu``, ``nn.ReLU(inplace=True)``, ``aten.relu``, ``clamp(min=0)``: a
network may write one operation in many ways, and a rule must not miss one (a missed spelling is silently
another method). ``recognise`` turns each of them into the same ``Operation``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Reader = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], "Operation | None"]


@dataclass(slots=True, eq=False)
class Counterpart:
    """What an operation took and gave in the pass over the references: inputs and output, to be read once."""

    operation: str
    values: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()

    def fill(self, *values: Tensor) -> None:
        """Remember the values, and how often they have been overwritten."""
        self.values, self.versions = values, tuple(value._version for value in values)

    def read(self) -> tuple[Tensor, ...]:
        """The values; a RuntimeError, as autograd's own, if the model overwrote one."""
        # They are let go of, so that memory shrinks while the backward pass goes on.
        values, self.values = self.values, ()
        if tuple(value._version for value in values) != self.versions:
            raise RuntimeError(f"what {self.operation} computed of the reference was overwritten in place")
        return values


@dataclass(slots=True, eq=False)
class Operation:
    """One intercepted call with all arguments but its inputs bound.

    ``run(x, *others)`` is the functional form, where ``others`` are the further inputs of a product, or the weight
    of an affine operation, which also runs with other settings, as ``run(x, weight=...)``; ``original(x)`` is the
    call as the model wrote it, so with ``inplace`` it overwrites ``x``. ``settings`` holds the bound arguments by
    name (stride, padding, dim, ...). ``reference`` is the same operation in the pass over the references, if any.
    ``indices(x)`` tells where the maxima of a pooling are, if the call returns them beside its result.
    ``copies`` asks rules to keep copies of what their backward pass needs, since the model overwrites it.
    ``trace`` lists the names of all operations of this forward pass, this one at ``place``.
    Operations on constants alone are not among them: no image has a part in them. ``above`` holds the names of the
    layers between the image and this operation, if known; ``unreached`` the places to which no gradient has come
    back yet.
    ``count`` is the number of rows of the pass, where known.
    ``notes`` collects what a rule has to say if a map is empty.
    ``modules`` names the modules that it runs in, such as ``layer3.0.conv1``, outermost first; only known where
    some rule is confined to modules. ``varies`` tells of each input whether the image has a part in it and a
    gradient is asked for there.
    """

    name: str
    input: Tensor
    run: Callable[..., Tensor]
    original: Callable[[Tensor], Tensor]
    inplace: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    copies: bool = False
    trace: list[str] = field(default_factory=list)
    place: int = 0
    above: frozenset[str] | None = None
    unreached: set[int] = field(default_factory=set)
    count: int | None = None
    notes: set[str] = field(default_factory=set)
    modules: tuple[str, ...] = ()
    varies: tuple[bool, ...] = (True,)
    others: tuple[Tensor, ...] = ()
    reference: Counterpart | None = None
    indices: Callable[[Tensor], Tensor] | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that it computes from."""
        return (self.input, *self.others)

    def is_first_of(self, names: Collection[str]) -> bool:
        """Whether no operation of these names comes between the image and this one.

        Stems side by side, or one stem that sees two halves of an image, are each the first.
        """
        return not any(name in names for name in (self.trace[: self.place] if self.above is None else self.above))

    def is_last_of(self, names: Container[str]) -> bool:
        """Whether no operation of these names comes between this one and what is explained.

        Known in the backward pass, which what ran later has then passed, or never will, as a head that is not
        explained.
        """
        later = enumerate(self.trace[self.place + 1 :], self.place + 1)
        return not any(name in names and place not in self.unreached for place, name in later)


# Operations with a weight and a bias: the layers of LRP's propagation rules.
CONVOLUTIONS = frozenset(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
AFFINE = CONVOLUTIONS | {"linear"}
# Non-linear activations of a hidden layer: where guided, deconvolution and rectified rules apply.
RECTIFIERS = frozenset(
    {"relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    | {"hardswish", "softplus"}
)
# The non-linearities of LRP: activations for which (f(z) - f(0)) / z is bounded; f(0) is 0 but for softplus.
ACTIVATIONS = RECTIFIERS | {"tanh", "hardtanh", "softsign", "tanhshrink", "softshrink", "hardshrink", "atan"}
# Every elementwise non-linearity.
ELEMENTWISE = (
    ACTIVATIONS
    | {"sigmoid", "hardsigmoid", "log_sigmoid", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10"}
    | {"sqrt", "rsqrt", "square", "reciprocal", "abs", "erf", "erfc", "sin", "cos", "tan", "sinh", "cosh"}
    | {"asinh", "asin", "acos", "acosh", "atanh", "logit", "clamp", "pow", "threshold", "sign"}
    | {"round", "floor", "ceil", "trunc", "frac", "sinc", "erfinv", "lgamma", "digamma", "i0", "ndtr", "entr"}
)
# Linear in each of their inputs.
PRODUCTS = frozenset({"mul", "matmul", "einsum"})
# Other names of some.
_ALIASES = {
    "expit": "sigmoid",
    "arctan": "atan",
    "sgn": "sign",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "logsigmoid": "log_sigmoid",
    "absolute": "abs",
}


def owners(name: str) -> Iterator[Callable[..., Any]]:
    """Every public function that computes ``name``, in place or not, down to its ATen overloads."""
    # The same function is another object in each of these places, and a mode is handed the one that was called.
    places = (F, torch, Tensor, torch.Tensor, torch._C._nn, torch.special, torch.linalg)
    for spelling in (name, name + "_"):
        for place in places:
            if callable(function := getattr(place, spelling, None)):
                yield function
        packet = getattr(torch.ops.aten, spelling, None)
        if packet is not None:
            yield packet
            yield from (getattr(packet, overload) for overload in packet.overloads())


_PLACE_OF_INPLACE: dict[Any, int] = {
    # The place is counted without the input, which ``_split`` has taken off by then.
    function: list(inspect.signature(function).parameters).index("inplace") - 1
    for function in vars(F).values()
    if inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters
}


def is_inplace(function: Callable[..., Any]) -> bool:
    """Whether a call of the function overwrites its first argument."""
    # Names of ATen come with an overload, as "relu_.default", and may come with a namespace.
    name = getattr(function, "__name__", "") or str(function)
    name = name.split("::")[-1].split(".")[0]
    return (name.endswith("_") and not name.endswith("__")) or name in (
        "__imul__",
        "__ipow__",
        "__itruediv__",
    )


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any], bool]:
    """Separate the input and the ``inplace`` flag from the other arguments of an elementwise call."""
    rest = dict(kwargs)
    inplace = bool(rest.pop("inplace", False))
    if args:
        return args[0], args[1:], rest, inplace
    return rest.pop("input", rest.pop("self", None)), (), rest, inplace


def _elementwise(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    functional: Callable[..., Tensor] | None = None,
) -> Operation | None:
    """Read a call of one tensor; a ``functional`` form is given where the call computes one under other bounds."""
    x, rest, _, inplace = _split(args, kwargs)
    if not isinstance(x, Tensor):
        return None
    as_written = {key: value for key, value in kwargs.items() if key not in ("input", "self")}
    original: Callable[[Tensor], Tensor] = lambda t: function(t, *rest, **as_written)  # noqa: E731
    inplace = inplace or _is_inplace_by_place(function, rest) or is_inplace(function)
    # The call itself, on a copy where it overwrites: functions of one name may order their arguments otherwise.
    run = (lambda t: original(t.clone())) if inplace else original
    return Operation(name, x, functional or run, original, inplace=inplace)


def _is_inplace_by_place(function: Callable[..., Any], rest: tuple[Any, ...]) -> bool:
    """Whether ``inplace`` was given to a function of torch.nn.functional by place: ``F.elu(x, 0.5, True)``."""
    place = _PLACE_OF_INPLACE.get(function, len(rest))
    return place < len(rest) and bool(rest[place])


def _clamp(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """``clamp(min=0)`` is a ReLU and ``clamp(0, 6)`` a ReLU6, whatever they are called."""
    _, rest, options, _ = _split(args, kwargs)
    bounds = dict(zip(("min", "max"), rest, strict=False)) | options
    # Bounds that are tensors may differ from unit to unit, which no rule of rectifiers is stated for.
    low, high = _number(bounds.get("min")), _number(bounds.get("max"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return _bounded(function, args, kwargs, low, high)


def _number(bound: Any) -> Any:
    """A bound given as a constant of one element, as the number it is."""
    constant = isinstance(bound, Tensor) and bound.numel() == 1 and not bound.requires_grad
    return bound.item() if constant else bound


def _clamp_end(end: str) -> Reader:
    """``clamp_min`` and ``clamp_max``, which have one bound alone."""

    def read(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        _, rest, options, _ = _split(args, kwargs)
        bound = _number(rest[0] if rest else options.get(end))
        low, high = (bound, None) if end == "min" else (None, bound)
        return None if isinstance(bound, Tensor) else _bounded(function, args, kwargs, low, high)

    return read


def _hardtanh(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    _, rest, options, _ = _split(args, kwargs)
    bounds = {"min_val": -1.0, "max_val": 1.0}
    bounds |= dict(zip(bounds, rest, strict=False)) | options
    if (bounds["min_val"], bounds["max_val"]) in ((0, 6), (0, math.inf)):
        return _rectifier(function, args, kwargs, bounds["max_val"])
    return _elementwise("hardtanh", function, args, kwargs)


def _bounded(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    low: float | None,
    high: float | None,
) -> Operation | None:
    if low == 0 and high in (None, 6, math.inf):
        return _rectifier(function, args, kwargs, high)
    return _elementwise("clamp", function, args, kwargs)


def _rectifier(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], high: float | None = None
) -> Operation | None:
    """What is clipped at 0 is a ReLU, and a ReLU6 if at 6, too."""
    name, functional = ("relu6", F.relu6) if high == 6 else ("relu", F.relu)
    return _elementwise(name, function, args, kwargs, functional)


def _threshold(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    _, rest, options, _ = _split(args, kwargs)
    bounds = dict(zip(("threshold", "value"), rest, strict=False)) | options
    if bounds.get("threshold") == 0 and bounds.get("value") == 0:
        return _rectifier(function, args, kwargs)
    return _elementwise("threshold", function, args, kwargs)


def _maximum(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """``maximum(x, 0)`` is a ReLU; any other maximum of two tensors is not a rectifier."""
    x, rest, options, _ = _split(args, kwargs)
    other = rest[0] if rest else options.get("other")
    if _is_zero(x):
        x, other = other, x
    if not isinstance(x, Tensor) or other is None or not _is_zero(other):
        return None
    # A larger tensor of zeros would repeat x, and a ReLU has the shape of its input.
    if x.shape != torch.broadcast_shapes(x.shape, other.shape):
        return None
    return Operation("relu", x, F.relu, F.relu)


def _is_zero(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad and value.numel() > 0 and not bool(value.any())


def _with_signature(name: str, functional: Callable[..., Tensor], *parameters: str, **defaults: Any) -> Any:
    """Read a call with a tensor input and named settings: convolutions and poolings."""
    empty = inspect.Parameter.empty
    signature = inspect.Signature(
        [
            inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(p, empty))
            for p in ("input", *parameters)
        ]
    )

    def read(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        known = {key: value for key, value in kwargs.items() if key not in ("_stacklevel", "return_indices")}
        if "self" in known:
            known["input"] = known.pop("self")
        # What follows the settings by place, such as ``return_indices``, is none of them.
        bound = signature.bind(*args[: len(parameters) + 1], **known)
        bound.apply_defaults()
        settings = dict(bound.arguments)
        x = settings.pop("input")
        # A rule runs the operation with a weight of its own, by place or by name, or with another setting.
        run = lambda t, *weight, **changed: functional(  # noqa: E731
            t, **settings | dict(zip(("weight",), weight, strict=False)) | changed
        )
        others = (settings["weight"],) if name in AFFINE else ()
        return Operation(name, x, run, run, settings=settings, others=others)

    return read


def _max_pool(name: str, *parameters: str, **defaults: Any) -> dict[Any, Reader]:
    """Readers of all spellings of a max-pooling, of which some also return where the maxima are."""
    plain: Reader = _with_signature(name, getattr(F, name), *parameters, **defaults)

    def with_indices(
        function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Operation | None:
        operation = plain(function, args, kwargs)
        if operation is not None:
            _, rest, options, _ = _split(args, kwargs)
            operation.indices = lambda x: function(x, *rest, **options)[1]
        return operation

    def if_asked(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        asked = kwargs.get("return_indices") or any(args[len(parameters) + 1 :])
        return (with_indices if asked else plain)(function, args, kwargs)

    always = name.startswith("adaptive")  # but for torch.nn.functional's
    table = dict.fromkeys(owners(name), with_indices if always else if_asked)
    table |= dict.fromkeys(owners(f"{name}_with_indices"), with_indices)
    return table | dict.fromkeys((getattr(F, name), getattr(F, f"_{name}")), if_asked)


def _mean(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """A mean over height and width is a global average pooling."""
    x, rest, options, _ = _split(args, kwargs)
    if not _are_places(x, rest[0] if rest else options.get("dim")):
        return None
    run = lambda t: function(t, *rest, **options)  # noqa: E731
    return Operation("adaptive_avg_pool2d", x, run, run)


def _are_places(x: Any, dims: Any) -> bool:
    """Whether dimensions are the height and the width of maps (B, C, H, W)."""
    is_map = isinstance(x, Tensor) and x.dim() == 4
    return is_map and isinstance(dims, list | tuple) and {d % 4 for d in dims} == {2, 3}


def _product(name: str, functional: Callable[..., Tensor]) -> Reader:
    """A product of two tensors, such as a squeeze-and-excitation gate, or attention weights times values."""

    def read(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        x, rest, options, _ = _split(args, kwargs)
        found = [*rest, *(options[key] for key in ("other", "mat2", "vec", "vec2", "tensor") if key in options)]
        if not isinstance(x, Tensor) or len(found) != 1 or not isinstance(found[0], Tensor):
            return None
        if name == "mul" and torch.bool in (x.dtype, found[0].dtype):  # x * (x > 0) chooses
            return _chosen(function, x, found[0])
        return Operation(
            name, x, functional, lambda t: function(t, *found), inplace=is_inplace(function), others=(found[0],)
        )

    return read


def _chosen(function: Callable[..., Any], x: Tensor, other: Tensor) -> Operation | None:
    """A product with a condition: a tensor where it holds, 0 elsewhere."""
    x, condition = (other, x) if x.dtype == torch.bool else (x, other)
    if x.dtype == torch.bool or is_inplace(function):
        return None
    # The 0 is the second value of a choice, so that both spellings are one to ``RescaleChoice``.
    nothing = x.new_zeros(())
    run = lambda x, y=nothing, condition=condition: torch.where(condition, x, y)  # noqa: E731
    return Operation("where", x, run, run, others=(nothing, condition))


def _einsum(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """Sums of products, where the equation is given as text."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) < 2:
        return None
    run = lambda *inputs: function(equation, *inputs)  # noqa: E731
    return Operation("einsum", operands[0], run, run, others=tuple(operands[1:]))


def as_linear(operation: Operation, active: tuple[bool, ...]) -> Operation | None:
    """A product of one activation and one constant as the linear layer that it is: ``W @ x``, ``einsum``, ``bmm``.

    ``active`` tells which inputs are activations. A layer whose weight alone is one is that layer of its weight.
    None is a product of two activations to which something is added.
    """
    if operation.name not in ("matmul", "einsum", "linear", "addmm"):
        return operation
    one, other = operation.input, operation.others[0]
    # Rules take the activation for the input: ``W @ x`` becomes the layer of x with weight W.
    if active == (False, True):
        bare = {"bias": None} if operation.name == "linear" else {}
        swapped = lambda t, weight: operation.run(weight, t, **bare)  # noqa: E731
        return _linear_of(other, one, swapped, operation.settings.get("bias"))
    if active == (True, False) and operation.name != "linear":
        product = lambda t, weight: operation.run(t, weight)  # noqa: E731
        return _linear_of(one, other, product, operation.settings.get("bias"))
    return operation if operation.name != "addmm" else None


def _linear_of(
    x: Tensor, weight: Tensor, product: Callable[[Tensor, Tensor], Tensor], bias: Tensor | None
) -> Operation:
    # Rules take weights apart by sign, which sparse ones cannot be; detached, a weight is a constant in the graph.
    weight = weight.detach() if weight.layout is torch.strided else weight.detach().to_dense()

    def run(t: Tensor, weight: Tensor = weight, bias: Tensor | None = bias) -> Tensor:
        return product(t, weight) if bias is None else product(t, weight) + bias

    return Operation("linear", x, run, run, settings={"weight": weight, "bias": bias}, others=(weight,))


def without_bias(operation: Operation) -> tuple[Operation, Tensor]:
    """A layer without its bias, and the bias in a shape in which it is added to the result."""
    bias: Tensor = operation.settings["bias"]
    places = operation.others[0].dim() - 2 if operation.name in CONVOLUTIONS else 0
    operation.settings = {**operation.settings, "bias": None}
    operation.run = operation.original = partial(operation.run, bias=None)
    return operation, bias.view(-1, *[1] * places) if places else bias


def _addmm(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """``addmm(b, x, w)``, neither scaled nor in place, is a linear layer with a bias."""
    if kwargs or len(args) != 3 or args[0].dim() != 1 or is_inplace(function):
        return None
    bias, x, weight = args
    run = lambda x, weight=weight: torch.mm(x, weight)  # noqa: E731
    return Operation("addmm", x, run, run, settings={"bias": bias}, others=(weight,))


def _reciprocal(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """A number over a tensor."""
    x, (number,) = args[0], args[1:]
    if isinstance(number, Tensor):
        return None
    return Operation("reciprocal", x, run := lambda t: number / t, run)


def _where(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """A choice between two values: ``torch.where(condition, x, y)``, or ``x.where(condition, y)``."""
    first, rest, options, _ = _split(args, kwargs)
    given = {"condition": first} | dict(zip(("input", "other"), rest, strict=False)) | options
    if function is Tensor.where and isinstance(first, Tensor):
        given = {"input": first} | dict(zip(("condition", "other"), rest, strict=False)) | options
    if given.keys() < {"condition", "input", "other"}:
        return None
    condition, values = given["condition"], [given["input"], given["other"]]
    dtype = next((x.dtype for x in values if isinstance(x, Tensor)), None)
    x, y = (v if isinstance(v, Tensor) else torch.tensor(v, dtype=dtype, device=condition.device) for v in values)
    run = lambda x, y=y, condition=condition: torch.where(condition, x, y)  # noqa: E731
    return Operation("where", x, run, run, others=(y, condition))


def _slice(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """``x[:, :, ::2, ::2]`` or, channels last, ``x[:, ::2, ::2]`` keeps every second row and column.

    A step along one dimension alone, as rotary embeddings take it, is none of space.
    """
    x, index = args
    if not isinstance(index, tuple) or x.dim() != 4 or not all(isinstance(i, slice) or i is ... for i in index):
        return None
    ellipsis = next((place for place, i in enumerate(index) if i is ...), len(index))
    before, after = index[:ellipsis], index[ellipsis + 1 :]
    # What an ellipsis, or an index that is too short, leaves out is taken whole.
    whole = (slice(None),) * (4 - len(before) - len(after))
    steps = [1 if i.step is None else i.step for i in (*before, *whole, *after)]
    dims = tuple(dim for dim, step in enumerate(steps) if step > 1)
    if dims not in ((1, 2), (2, 3)):
        return None
    run = lambda t: function(t, index)  # noqa: E731
    return Operation("slice", x, run, run, settings={"stride": tuple(steps[dim] for dim in dims), "dims": dims})


def _softmax(name: str) -> Reader:
    """A softmax or its logarithm."""

    def read(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        x, rest, options, _ = _split(args, kwargs)
        dim = rest[0] if rest else options.get("dim")
        if not isinstance(x, Tensor):
            return None
        run = lambda t: function(t, *rest, **options)  # noqa: E731
        dim = dim if dim is not None else int(x.dim() not in (0, 1, 3))  # as torch chooses it
        return Operation(name, x, run, run, settings={"dim": dim})

    return read


def _amax(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """The greatest values along dimensions: along height and width a global max-pooling, with these settings."""
    x, rest, options, _ = _split(args, kwargs)
    given: dict[str, Any] = {"dim": (), "keepdim": False}
    given |= dict(zip(("dim", "keepdim"), rest, strict=False)) | options
    run = lambda t: function(t, *rest, **options)  # noqa: E731
    if not _are_places(x, given["dim"]):
        return Operation("amax", x, run, run)
    settings = {"dim": tuple(given["dim"]), "keepdim": given["keepdim"]}
    return Operation("adaptive_max_pool2d", x, run, run, settings=settings)


def _power(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """A power of a tensor, or a number to the power of one."""
    x, rest, options, _ = _split(args, kwargs)
    exponent = rest[0] if rest else options.get("exponent")
    if isinstance(x, Tensor):
        operation = _elementwise("pow", function, args, kwargs)
        assert operation is not None
        operation.settings = {"exponent": _number(exponent)}
        return operation
    if not isinstance(exponent, Tensor):
        return None
    # The name only tells rules its kind, an exponential without
    # a formula of its own; what runs is the model's call.
    return Operation("exp2", exponent, run := lambda t: torch.pow(x, t), run)


def _reflected_power(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Operation | None:
    """``number ** x``."""
    return _power(torch.pow, args[::-1], kwargs)


_CONV = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
_STATISTICS = {"running_mean": None, "running_var": None, "weight": None, "bias": None}
_NORMS = {
    name: {**_STATISTICS, switch: of_images, "momentum": 0.1, "eps": 1e-5}
    for name, switch, of_images in (("batch_norm", "training", False), ("instance_norm", "use_input_stats", True))
}
_MUL, _MATMUL = _product("mul", torch.mul), _product("matmul", torch.matmul)
_LINEAR: Reader = _with_signature("linear", F.linear, "weight", "bias", bias=None)
_MAX_POOL = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_AVG_POOL = {
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
_SPECIAL: dict[str, Reader] = {
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_end("min"),
    "clamp_max": _clamp_end("max"),
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "_threshold": _threshold,
    "maximum": _maximum,
    "max": _maximum,
    "mean": _mean,
    "pow": _power,
    "__pow__": _power,
    "__rpow__": _reflected_power,
    "__rtruediv__": _reciprocal,
    "__rdiv__": _reciprocal,
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__", "__imul__"), _MUL),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "dot"), _MATMUL),
    "einsum": _einsum,
    **dict.fromkeys(("softmax", "_softmax"), _softmax("softmax")),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _softmax("log_softmax")),
    "amax": _amax,
    "where": _where,
    "linear": _LINEAR,
    "addmm": _addmm,
    **{
        name: _with_signature(name, getattr(F, name), "weight", *given, **given)
        for name in CONVOLUTIONS
        for given in [_TRANSPOSED if "transpose" in name else _CONV]
    },
    "avg_pool2d": _with_signature("avg_pool2d", F.avg_pool2d, "kernel_size", *_AVG_POOL, **_AVG_POOL),
    "__getitem__": _slice,
    "pixel_unshuffle": _with_signature("pixel_unshuffle", F.pixel_unshuffle, "downscale_factor"),
    "adaptive_avg_pool2d": _with_signature("adaptive_avg_pool2d", F.adaptive_avg_pool2d, "output_size"),
}


def _reader(name: str) -> Reader:
    return lambda function, args, kwargs: _elementwise(name, function, args, kwargs)


def _table() -> dict[Any, Reader]:
    table: dict[Any, Reader] = {}
    for name in ELEMENTWISE - _SPECIAL.keys():
        table |= dict.fromkeys(owners(name), _reader(name))
    for alias, name in _ALIASES.items():
        table |= dict.fromkeys(owners(alias), _reader(name))
    # These come after the plain readers, some of which they overrule: ``clamp`` is elementwise, but may be a ReLU.
    for name, reader in _SPECIAL.items():
        table |= dict.fromkeys(owners(name), reader)
    for dims in (1, 2, 3):
        table |= _max_pool(f"max_pool{dims}d", "kernel_size", *_MAX_POOL, **_MAX_POOL)
        table |= _max_pool(f"adaptive_max_pool{dims}d", "output_size")
    for name, given in _NORMS.items():
        # Modules call those of ``functional``, which order their settings otherwise.
        table[getattr(F, name)] = _with_signature(name, getattr(F, name), *given, **given)
        order = ("weight", "bias", "running_mean", "running_var", *list(given)[4:], "cudnn_enabled")
        table[getattr(torch, name)] = _with_signature(name, getattr(torch, name), *order)
    return table


_READERS = _table()


def recognise(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
    """The ``Operation`` that a call of ``function`` performs, or None if no rule could answer for it."""
    reader = _READERS.get(function)
    return reader(function, args, kwargs) if reader is not None else None
