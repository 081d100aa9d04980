"""Installs rules: intercepts operations during one forward pass, on one thread.

A rule changes how ONE operation runs or propagates back. It is found by operation, not by module, so
functional, shared, in-place and skip-fed activations are all seen, and the user's model is never touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import InvalidParameter, RuleNotApplied
from .operations import Operation, recognise

Run = Callable[[Tensor], Tensor]


class Rule(ABC):
    """How one kind of operation runs and propagates back.

    ``operations`` names the kinds (rules/operations.py). ``apply`` gets the operation, its input and
    ``run``, which computes it with any further rules applied; what it returns takes the place of the result.
    Rules hold no state, so one instance serves many threads. A rule of an affine operation may say that it is
    ``linear``: that it keeps the operation affine, and propagates back by a linear map that does not depend on
    the input.
    """

    operations: ClassVar[frozenset[str]]
    replaces_backward: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    required: ClassVar[bool] = True  # whether meeting no operation of its kind is an error

    @property
    def alters_gradient(self) -> bool:
        """Whether what propagates back is no longer the gradient of what ran forward."""
        return True

    def concerns(self, operation: Operation) -> bool:
        """Whether this operation, of one of the right names, is of the rule's kind."""
        return True

    @abstractmethod
    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation on ``x`` so that it propagates back as the rule says."""


class BackwardRule(Rule):
    """A rule that runs the operation unchanged and replaces its backward pass by a formula."""

    replaces_backward: ClassVar[bool] = True
    needs_input: ClassVar[bool] = False

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation; its backward pass is ``propagate``."""
        result: Tensor = _Replaced.apply(x, self, operation)
        return result

    @abstractmethod
    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """The formula: the gradient at the input, from input ``x``, output ``y`` and the output's gradient.

        ``x`` is empty unless ``needs_input`` is set.
        """


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: BackwardRule, operation: Operation) -> Tensor:
        kept = x if rule.needs_input else x.new_empty(0)
        if operation.inplace or operation.copies:
            kept = kept.clone()
        if operation.inplace:
            y = operation.original(x)
            ctx.mark_dirty(x)
        else:
            y = operation.run(x)
        ctx.save_for_backward(kept, y.clone() if operation.copies else y)
        ctx.propagate = partial(rule.propagate, operation)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        return ctx.propagate(x, y, gradient), None, None


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, transform: Run) -> Tensor:
        ctx.transform = transform
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.transform(gradient), None


def transform_gradient(x: Tensor, transform: Run) -> Tensor:
    """``x`` unchanged, to be read only; the gradient that arrives here goes on as ``transform(gradient)``."""
    result: Tensor = _Identity.apply(x, transform)
    return result


class Rules(TorchFunctionMode):
    """Applies rules to every matching operation while active.

    Several rules may concern one operation: the first is outermost. Only one of them may replace its
    backward pass. With ``copies`` rules keep copies of what they need later (see ``Operation``).
    """

    def __init__(self, rules: Sequence[Rule], copies: bool = False) -> None:
        super().__init__()
        self.copies = copies
        self.rules = tuple(dict.fromkeys(rules))
        self.met: set[Rule] = set()
        self.trace: list[str] = []
        self._by_name: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for name in rule.operations:
                self._by_name.setdefault(name, []).append(rule)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, under the rules that concern it."""
        kwargs = kwargs or {}
        operation = recognise(func, args, kwargs)
        if operation is None:
            return func(*args, **kwargs)
        operation.trace, operation.place, operation.copies = self.trace, len(self.trace), self.copies
        self.trace.append(operation.name)
        rules = [rule for rule in self._by_name.get(operation.name, ()) if rule.concerns(operation)]
        if not rules:
            return func(*args, **kwargs)
        if sum(rule.replaces_backward for rule in rules) > 1:
            raise InvalidParameter(
                f"rules {rules} each replace the backward pass of {operation.name}; give only one of them"
            )
        return self._apply(rules, operation)

    def _apply(self, rules: list[Rule], operation: Operation) -> Tensor:
        run = operation.run
        for rule in reversed(rules):
            run = partial(_applied, rule, operation, run)
        self.met.update(rules)
        x = operation.input
        # What propagates back keeps the operation. Were its input kept too, and overwritten by the model (an
        # in-place ReLU's is its output), the graph would hold itself and never be freed.
        operation.input = x.new_empty(0)
        return run(x)

    def require_all_applied(self) -> None:
        """Raise ``RuleNotApplied`` if the forward pass met no operation of some rule's kind."""
        for rule in self.rules:
            if rule.required and rule not in self.met:
                ran = ", ".join(f"{name} x{count}" for name, count in sorted(Counter(self.trace).items()))
                raise RuleNotApplied(
                    f"{rule} met no operation of its kind ({', '.join(sorted(rule.operations))}), so it would "
                    f"silently change nothing; of the operations that rules know, the model runs: "
                    f"{ran or 'none'}. Leave this rule out, or choose a method without it"
                )


def _applied(rule: Rule, operation: Operation, run: Run, x: Tensor) -> Tensor:
    return rule.apply(operation, x, run)
