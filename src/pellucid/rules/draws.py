"""Affine operations on rows that were drawn from a few points: run once per point, not once per row.

A sampling whose fold is a weighted sum asks for sum_t w_t g(x_t) of the gradients g at the draws x_t of each
point x. That is the gradient of a shift of x that shifts all of its draws alike, if w_t of what arrives at draw
t counts. So while only affine operations A were met, one backward pass per point serves all of its draws; and
where they lie on a straight path, one forward pass at either end, since A((1 - a) x' + a x) is
(1 - a) A(x') + a A(x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Rule, Run
from .operations import Operation


@dataclass(frozen=True, eq=False)
class Draws:
    """How the n rows of a pass were drawn from m points: row i from point ``of[i]``, with weight ``weights[i]``.

    Where the rows lie on straight paths, ``path`` makes them from the points and their ``references``, and may
    do so after both were moved by an affine operation; elsewhere both are None.
    """

    points: Tensor
    of: Tensor
    weights: Tensor
    references: Tensor | None = None
    path: Callable[[Tensor, Tensor], Tensor] | None = None

    def tied(self, rows: Callable[[], Tensor]) -> Tensor:
        """The rows, computed without a graph; of the gradients that arrive at them, the points get the sums."""
        result: Tensor = _Tied.apply(self.points, self, rows)
        return result

    def sums(self, gradient: Tensor) -> Tensor:
        """The weighted sums (m, ...) of the rows' gradients (n, ...)."""
        shares = gradient.new_zeros(len(self.points), len(gradient))
        row = torch.arange(len(gradient), device=gradient.device)
        shares[self.of, row] = self.weights.to(gradient.dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            return (shares @ gradient.reshape(len(gradient), -1)).view(-1, *gradient.shape[1:])


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, draws: Draws, make: Callable[[], Tensor]) -> Tensor:
        rows = make()
        ctx.tied = draws, rows._version
        return rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        draws, _ = ctx.tied
        return draws.sums(gradient), None, None


def draws_of(x: Tensor) -> Draws | None:
    """How the rows of ``x`` were drawn; None of a tensor that is anything but such rows or a copy of them.

    The graph tells, and the count of changes in place: rows that were overwritten are not what was drawn.
    """
    node, copied = x.grad_fn, False
    if node is not None and node.name() == "CloneBackward0":
        node, copied = node.next_functions[0][0], True
    draws, version = getattr(node, "tied", (None, 0))
    return draws if x._version == (0 if copied else version) else None


@dataclass(frozen=True)
class AffineOnce(Rule):
    """Run a convolution or a frozen normalisation of drawn rows at the points that they were drawn from.

    The same function and, summed over the draws, the same gradient, with less work (benchmarks/README.md tells how
    much). It stands before the other rules, which must be linear (``Rule.linear``).
    """

    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = frozenset({"conv2d", "batch_norm"})

    @property
    def alters_gradient(self) -> bool:
        """It does not."""
        return False

    def concerns(self, operation: Operation) -> bool:
        """Operations on drawn rows, with constants for weights and statistics."""
        settings = operation.settings
        constant = all(value.grad_fn is None for value in settings.values() if isinstance(value, Tensor))
        return constant and not settings.get("training") and draws_of(operation.input) is not None

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run it at the points and, where the draws lie on paths, at the references instead of at the rows."""
        draws = draws_of(x)
        assert draws is not None
        points, path = run(draws.points), draws.path
        if path is None or draws.references is None:
            return replace(draws, points=points).tied(lambda: run(x.detach()))
        with torch.no_grad():
            references = run(draws.references)
        moved = replace(draws, points=points, references=references)
        return moved.tied(lambda: path(points, references))


def with_draws(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules, with ``AffineOnce`` before them if those of its operations are all linear."""
    met = [rule for rule in rules if rule.operations & AffineOnce.operations]
    return (AffineOnce(), *rules) if all(rule.linear for rule in met) else tuple(rules)
