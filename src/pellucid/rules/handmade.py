"""Activations that a model computes by hand, as a product of their input and a gate of it: x sigmoid(x).

A rule meets one operation. What a Mish hides is a softplus, which it would take for the activation. The graph
tells that the product's factors come from one tensor, and the gate's values which activation it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..errors import RuleWarning
from .operations import Operation

Edge = tuple[Any, int]
COMPARED = 4096  # values of a gate that are compared

# The gates of activations with slope 1 for large inputs: f(x) = x gate(x).
_GATES: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sigmoid,
    lambda x: torch.sigmoid(1.702 * x),
    F.hardsigmoid,
    lambda x: torch.tanh(F.softplus(x)),
    lambda x: torch.special.ndtr(x),
)
# Numbers by which a model may have multiplied the gate, and the input before it: 0.5 x (1 + erf(x / sqrt 2)).
_HEIGHTS, _SCALES = (1.0, 2.0, 6.0, 0.5), (1.0, 0.5)

_BENDING = ("Sigmoid", "Hardsigmoid", "Tanh", "Erf", "Hardtanh", "Clamp", "Softplus", "Exp", "Relu", "_Replaced")
_POINTWISE = (
    *_BENDING,
    "Sqrt",
    "Add",
    "Sub",
    "Rsub",
    "Mul",
    "Div",
    "Neg",
    "Pow",
    "Log1p",
    "Log",
    "Reciprocal",
    "Clone",
)
_MULTIPLES = ("MulBackward", "DivBackward", "CloneBackward")
_UNKNOWN = (
    "a product of a tensor and a function of it may be an activation, but is none that is known: a rule may take "
    "what is inside for the activation; write it as one"
)


@dataclass(frozen=True, eq=False)
class Handmade:
    """A product as the activation of slope 1 that it is, and the number by which it is multiplied."""

    activation: Operation
    height: float

    def scaled(self, y: Tensor) -> Tensor:
        """The product, of the activation's output."""
        if self.height == 1:
            return y
        return y.mul_(self.height) if self.activation.inplace else y * self.height


def handmade(operation: Operation, is_known: bool = False) -> Handmade | None:
    """The activation that a product is; None of any other product, which is warned of unless a rule knows it."""
    x, other = operation.input, operation.others[0]
    if x.shape != other.shape or not (x.requires_grad and other.requires_grad):
        return None
    # Either factor may be the input. In place only the first can be: x *= gate(x) overwrites x, its result.
    for source, gate in ((x, other), (other, x)):
        if _is_gate_of(gate, source) and not (operation.inplace and source is other):
            scaled = bool(_below_scales(_edge(source))) and not operation.inplace
            known = _known(gate.detach(), source.detach(), _SCALES if scaled else (1.0,))
            if known is not None:
                height, scale = known
                x = source if scale == 1 else source / scale
                return Handmade(_activation(operation, x, gate.detach() / height), height * scale)
            if not is_known:
                warnings.warn(RuleWarning(_UNKNOWN), stacklevel=2)
            return None
    return None


def _activation(operation: Operation, source: Tensor, gate: Tensor) -> Operation:
    run = lambda x: x * gate  # noqa: E731
    return Operation(
        # Rules of rectifiers treat all of them alike, so any name of theirs with slope 1 for large inputs will do.
        "silu",
        source,
        run,
        lambda x: x.mul_(gate),
        inplace=operation.inplace,
        copies=operation.copies,
        trace=operation.trace,
        place=operation.place,
        unreached=operation.unreached,
        count=operation.count,
        modules=operation.modules,
        notes=operation.notes,
    )


def _is_gate_of(gate: Tensor, source: Tensor) -> bool:
    """Whether the gate is made of the source alone, by functions of each element one of which bends."""
    start = _edge(source)
    ends = {start, *_below_scales(start)}
    begin, between = origins(_edge(gate), ends)
    return begin <= ends and any(map(bends, between))


def origins(edge: Edge, ends: Collection[Edge] = ()) -> tuple[set[Edge], list[Any]]:
    """Where the functions of each element begin that made a tensor, and their nodes."""
    pending, begin = [edge], set[Edge]()
    between: list[Any] = []
    # Gates are made of a few functions; without a limit each product would cost a walk through the whole network.
    while pending and len(between) < 32:
        node, output = pending.pop()
        if (node, output) in ends or not _name(node).startswith(_POINTWISE):
            begin.add((node, output))
            continue
        between.append(node)
        pending += _before(node)
    return begin.union(pending), between


def within_sums(node: Any) -> Iterator[list[Any]]:
    """The nodes between a sum and each tensor of whose elements alone both of its parts are functions."""
    parts = (origins(edge) for edge in _before(node))
    first, second = ({*begin, *((one, 0) for one in between)} for begin, between in parts)
    for edge in first & second:
        begin, between = origins((node, 0), {edge})
        if begin == {edge}:
            yield between


def bends(node: Any) -> bool:
    """Whether a node's function is none of straight lines."""
    return is_root(node) or _name(node).startswith(_BENDING)


def is_root(node: Any) -> bool:
    """Whether a node is a square root, or another power between whole ones."""
    name = _name(node)
    return name.startswith("Sqrt") or (name.startswith("PowBackward0") and node._saved_exponent % 1 != 0)


def _name(node: Any) -> str:
    return str(node.name()).removeprefix("torch::autograd::")


def _edge(x: Tensor) -> Edge:
    """The node of the graph that made a tensor, and which of its outputs it is."""
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


def _before(node: Any) -> list[Edge]:
    return [(before, output) for before, output in node.next_functions if before is not None]


def _below_scales(edge: Edge) -> list[Edge]:
    """What a tensor is a multiple or a copy of: of 0.5 x, x."""
    found: list[Edge] = []
    while edge[0].name().startswith(_MULTIPLES) and len(_before(edge[0])) == 1:
        (edge,) = _before(edge[0])
        found.append(edge)
    return found


def _known(gate: Tensor, source: Tensor, scales: tuple[float, ...]) -> tuple[float, float] | None:
    """The numbers by which a known gate was multiplied, and its activation's input."""
    step = max(gate.numel() // COMPARED, 1)
    values, inputs = (x.flatten()[::step].float() for x in (gate, source))
    for height in _HEIGHTS:
        for scale in scales:
            for known in _GATES:
                # GELU's gates by tanh and by sigmoid(1.702 x) lie within
                # 0.01 of the exact one, which is hence close enough.
                if bool((values - height * known(inputs / scale)).abs().max() < 0.02 * height):
                    return height, scale
    return None
