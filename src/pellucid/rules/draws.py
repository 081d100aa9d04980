"""Affine operations on rows that were drawn from a few points: run once per point, not once per row.

A sampling whose fold is a weighted sum asks for sum_t w_t g(x_t) of the gradients g at the draws x_t of each
point x. That is the gradient of a shift of x that shifts all of its draws alike, if w_t of what arrives at draw
t counts. So while only affine operations A were met, one backward pass per point serves all of its draws; and
where they lie on a straight path, one forward pass at either end, since A((1 - a) x' + a x) is
(1 - a) A(x') + a A(x).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Rule, Rules, Run, tensors
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
        # As a matrix product the sum has one order of its terms, also on a GPU, where ``index_add_`` has none.
        shares = gradient.new_zeros(len(self.points), len(gradient))
        row = torch.arange(len(gradient), device=gradient.device)
        shares[self.of, row] = self.weights.to(gradient.dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            return (shares @ gradient.reshape(len(gradient), -1)).view(-1, *gradient.shape[1:])


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, draws: Draws, make: Callable[[], Tensor]) -> Tensor:
        ctx.draws = draws
        return make()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.draws.sums(gradient), None, None


_COPIES = frozenset({Tensor.clone, torch.clone})
# Calls that leave a tensor as it is, and hand out nothing through which it could be changed.
_READS = _COPIES | {F.conv2d, F.batch_norm, Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__} | {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad")
}  # fmt: skip


class DrawnRules(Rules):
    """Rules for a pass over drawn ``rows``: while they are known to be what was drawn, ``AffineOnce`` serves them.

    Every call goes through here. What is done to rows by a call that may overwrite them, or that hands out
    another way to them (a view, ``x.data``), ends what is known of them.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        copies: bool,
        model: nn.Module,
        rows: Tensor,
        draws: Draws,
        count: int | None = None,
    ) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Draws]] = {}
        # A rule that is not linear would need the rows' own values,
        # which never come into being if points run instead.
        linear = all(rule.linear for rule in rules if rule.operations & AffineOnce.operations)
        super().__init__((AffineOnce(self), *rules) if linear else rules, copies, model, count=count)
        self.starts.append(draws.points)  # from which the graph leads past the rows, where convolutions share them
        self.know(rows, draws)

    def know(self, rows: Tensor, draws: Draws) -> Tensor:
        """From now on the rows are known to be drawn so."""
        self._known[id(rows)] = weakref.ref(rows), rows._version, draws
        return rows

    def draws_of(self, x: Tensor) -> Draws | None:
        """How the rows of ``x`` were drawn; None of a tensor that is not known to be such rows."""
        rows, version, draws = self._known.get(id(x), (None, 0, None))
        return draws if rows is not None and rows() is x and x._version == version else None

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` under the rules, and follow what becomes of drawn rows."""
        result = super()._run(func, args, kwargs)
        for x in tensors((*args, *kwargs.values())):
            draws = self.draws_of(x)
            # A copy is what it was made of, until one of the two is written into.
            if draws is not None and func in _COPIES:
                self.know(result, draws)
            elif func not in _READS:
                self._known.pop(id(x), None)
        return result


@dataclass(frozen=True, eq=False)
class AffineOnce(Rule):
    """Run a convolution or a frozen normalization of drawn rows at the points that they were drawn from.

    It gives the same function and, summed over the draws, the same gradient with less work (benchmarks/README.md
    tells how much). It stands before the other rules, which must be linear (``Rule.linear``).
    """

    rows: DrawnRules

    required: ClassVar[bool] = False
    operations: ClassVar[frozenset[str]] = frozenset({"conv2d", "batch_norm"})

    @property
    def alters_gradient(self) -> bool:
        """Never: what propagates back is the gradient."""
        return False

    def concerns(self, operation: Operation) -> bool:
        """Operations on drawn rows, with constants for weights and statistics."""
        settings = operation.settings
        constant = all(value.grad_fn is None for value in settings.values() if isinstance(value, Tensor))
        return constant and not settings.get("training") and self.rows.draws_of(operation.input) is not None

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run it at the points and, where the draws lie on paths, at the references instead of at the rows."""
        draws = self.rows.draws_of(x)
        assert draws is not None
        points, path = run(draws.points), draws.path
        # Noise lies on no line, so the rows have to run forward; only the backward pass is one per point.
        if path is None or draws.references is None:
            moved = replace(draws, points=points)
            return self.rows.know(moved.tied(lambda: run(x.detach())), moved)
        with torch.no_grad():
            references = run(draws.references)
        moved = replace(draws, points=points, references=references)
        return self.rows.know(moved.tied(lambda: path(points, references)), moved)
