"""Installs rules: intercepts operations during one forward pass, on one thread.

A rule changes how ONE operation runs or propagates back. It is found by operation, not by module, so
functional, shared, in-place and skip-fed activations are all seen, and the user's model is never touched.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from ..errors import InvalidModel, InvalidParameter, RuleNotApplied, UnknownName, shortened
from ..layers import Running, fits_glob, lies_in, running_modules
from ..undo import Undo
from .compositions import is_quotient, is_recurrent, parts_of
from .handmade import handmade
from .operations import (
    AFFINE,
    RECTIFIERS,
    Counterpart,
    Operation,
    as_linear,
    is_inplace,
    recognise,
    without_bias,
)

Run = Callable[[Tensor], Tensor]


class Rule(ABC):
    """How one kind of operation runs and propagates back.

    ``operations`` names the kinds (rules/operations.py). ``apply`` gets the operation, its input and
    ``run``, which computes it with any further rules applied; what it returns takes the place of the result.
    Rules hold no state, so one instance serves many threads. A rule of an affine operation may say that it is
    ``linear``: that it keeps the operation affine, and propagates back by a linear map that does not depend on
    the input. Under a rule ``of_parts`` operations made of others, such as attention, run part by part
    (rules/compositions.py), and parameters are constants. A rule with ``needs_reference`` finds in
    ``operation.reference`` what the operation computed of the reference, and one with ``asks_for_first`` in
    ``operation.above`` what came between the image and the operation. Under rules that each say ``conserves``
    activation times gradient should sum to the logit. Under one that does not say ``keeps_sign`` positive values
    no longer speak for the class, nor negative ones against it. One ``of_images`` takes an image's units together.
    """

    operations: ClassVar[frozenset[str]]
    replaces_backward: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    asks_for_first: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    of_parts: ClassVar[bool] = False
    conserves: ClassVar[bool] = False
    of_images: ClassVar[bool] = False
    keeps_sign: ClassVar[bool] = True
    required: ClassVar[bool] = True  # whether meeting no operation of its kind is an error
    without_it: ClassVar[str] = "Leave this rule out, or choose a method without it"  # what to do then
    # Where a rule takes the checkerboard away: what of it stays all the same, and the way
    # out; of the network's first convolution, and of what else steps over places by a period.
    first_stays: ClassVar[str] = ""
    stays: ClassVar[str] = ""

    @property
    def alters_gradient(self) -> bool:
        """Whether what propagates back is no longer the gradient of what ran forward."""
        return True

    @property
    def leaves_first(self) -> bool:
        """Whether what it takes away of the other strided convolutions stays of the network's first."""
        return False

    def concerns(self, operation: Operation) -> bool:
        """Whether this operation, of one of the right names, is of the rule's kind."""
        return True

    @abstractmethod
    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation on ``x`` so that it propagates back as the rule says."""

    def at(self, *patterns: str) -> Rule:
        """The rule for operations that run inside certain modules alone, such as ``at("layer[34].*", "stem")``.

        The patterns are module names or globs, as for ``layers``: ``*`` stays within one level. A module counts
        with everything inside it. A pattern that fits no module is an error.
        """
        return ConfinedRule(self, patterns)


class BackwardRule(Rule):
    """A rule that runs the operation unchanged and replaces its backward pass by a formula.

    A formula without ``x`` may say so by ``reads_input = False``: it then gets None for ``x``, and the memory of
    one activation is saved, or the copy of an input that the operation overwrites.
    """

    replaces_backward: ClassVar[bool] = True
    reads_input: ClassVar[bool] = True

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation; its backward pass is ``propagate``."""
        result: Tensor = _Replaced.apply(x, self, operation)
        return result

    @abstractmethod
    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        """The formula: the gradient at the input, from input ``x``, output ``y`` and the output's gradient."""


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: BackwardRule, operation: Operation) -> Tensor:
        # Detached: a graph that keeps what the model then makes of itself, x.mul_(f(x)), would never be freed.
        kept = x.detach() if rule.reads_input else None
        if kept is not None and (operation.inplace or operation.copies):
            kept = kept.clone()
        if operation.inplace:
            y = operation.original(x)
            ctx.mark_dirty(x)
        else:
            y = operation.run(x)
        # It is saved through autograd, which raises if the model
        # overwrites it later; ``Network.gradients`` then asks for copies.
        ctx.save_for_backward(kept, y.clone() if operation.copies else y)
        ctx.propagate, ctx.operation = partial(rule.propagate, operation), operation.name
        ctx.unreached, ctx.place = operation.unreached, operation.place
        # Until the backward pass comes here, the operation counts
        # as one that no gradient reaches (``is_last_of``).
        ctx.unreached.add(operation.place)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        ctx.unreached.discard(ctx.place)
        return ctx.propagate(x, y, gradient), None, None


@dataclass(frozen=True, repr=False)
class ConfinedRule(Rule):
    """A rule for operations inside certain modules alone (``Rule.at``); in all else it is the rule."""

    rule: Rule
    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.patterns:
            raise InvalidParameter(f"{self.rule}.at(): name at least one module, such as 'layer[34].*'")
        # A confined rule is asked wherever the rule itself would be, so it answers with the rule's own properties.
        for name in (
            "operations",
            "replaces_backward",
            "needs_reference",
            "asks_for_first",
            "linear",
            "of_parts",
            "conserves",
            "of_images",
            "keeps_sign",
            "required",
            "without_it",
        ):
            object.__setattr__(self, name, getattr(self.rule, name))

    def __repr__(self) -> str:
        return f"{self.rule}.at({', '.join(map(repr, self.patterns))})"

    @property
    def alters_gradient(self) -> bool:
        """Whether the rule's own is no longer the gradient."""
        return self.rule.alters_gradient

    def concerns(self, operation: Operation) -> bool:
        """Operations of the rule inside the modules."""
        inside = any(lies_in(name, pattern) for name in operation.modules for pattern in self.patterns)
        return inside and self.rule.concerns(operation)

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        """Run the operation under the rule."""
        return self.rule.apply(operation, x, run)


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


def transform_arriving(y: Tensor, transform: Run) -> None:
    """Have the gradient that arrives at an operation's output go on, below it, as ``transform(gradient)``.

    The output itself stays, so that what follows may overwrite it, as a ReLU in place does. The hook is the
    operation's: one of the tensor would also change the gradient that is asked for at the output, but only where
    none is asked for below.
    """
    node, place = y.grad_fn, y.output_nr

    def before(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return *gradients[:place], transform(gradients[place]), *gradients[place + 1 :]

    if node is not None:
        node.register_prehook(before)


class Rules(TorchFunctionMode):
    """Applies rules to every matching operation while active.

    Several rules may concern one operation: the first is outermost, but one that replaces the backward pass,
    of which there may be a single one, is innermost. A rule to which the others leave nothing is refused.
    With ``copies`` rules keep copies of what they need later (see ``Operation``). Rules that are confined to
    modules need the ``model`` that runs. Rules that need a reference ask for it in ``references``, by the
    operation's place; the same model's pass over the references, under ``ReferenceRules``, then fills them
    in.
    ``count`` is the number of images, or of other rows, of the pass, for rules that treat each on its own.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        copies: bool = False,
        model: nn.Module | None = None,
        references: dict[int, Counterpart] | None = None,
        count: int | None = None,
    ) -> None:
        super().__init__()
        self.copies = copies
        self.count = count
        self.references = references
        self.of_parts = any(rule.of_parts for rule in rules)
        self.model = model
        # Rules are values: one that is given twice, as by a method and by a variant, acts once.
        self.rules = tuple(dict.fromkeys(rules))
        self.met: set[Rule] = set()
        self.starts: list[Tensor] = []  # where the graph begins, beside the images and the explained layers
        self.made: set[Any] = set()  # what the graph holds of rules' results
        self.layers: set[Any] = set()  # what the graph holds of convolutions and linear layers that were met
        self.whole: set[str] = set()  # recurrent layers that ran as a whole, though rules ask for their parts
        self.left: list[str] = []  # operations that concerned no rule
        self.without_graph: set[str] = set()  # operations on what depends on the image, run under no_grad
        self.notes: set[str] = set()  # what rules have to say if a map is empty
        self.trace: list[str] = []
        self._unreached: set[int] = set()  # places whose backward pass a rule replaces, until it has run
        self._constants = _Constants(model)
        self.cut = _Cut(self._constants)
        self._layers_above = _LayersAbove(self._constants) if any(rule.asks_for_first for rule in rules) else None
        self._parts: list[_Part] = []  # slices that share no memory with their tensor under a rule
        self._by_name: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for name in rule.operations:
                self._by_name.setdefault(name, []).append(rule)
        # Whether products may be activations by hand: where no reference answers for what they are made of.
        products = self._by_name.get("mul", [])
        compared = any(rule.needs_reference for rule in products)
        self._by_hand = not compared and any(rule.operations >= RECTIFIERS for rule in rules)
        self._is_product_known = bool(products)  # so that one that is no activation needs no warning
        self._undo = Undo()
        # Torch takes a mode off for each call and puts it back
        # after it; after an interrupt that may be when all is over.
        self.is_over = False
        self._modules: AbstractContextManager[Any] | None = None  # what follows the modules that run
        self._inside = Running()  # the modules that run at the moment
        self._is_graded = False  # whether gradients were asked for when it was entered
        self._stored: set[int] | None = None  # the model's parameters and buffers, by identity
        self._homes: list[str] = []  # for each operation of the trace, the module that it ran in

    def __enter__(self) -> Rules:
        """Intercept operations, and follow which modules run if some rule asks."""
        if any(isinstance(rule, ConfinedRule) for rule in self.rules):
            self._modules = running_modules(self._model_of_confined_rules())
        # A mode that an interrupt left on this thread's stack would act again below this one.
        for late in _get_current_function_mode_stack():
            if isinstance(late, Rules) and late.is_over:
                late._leave()
        self.is_over = False
        self._is_graded = torch.is_grad_enabled()
        self._undo.__enter__()
        self._undo.later(self._leave)
        if self._modules is not None:
            self._inside = self._modules.__enter__()
        mode: Any = super()
        mode.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Leave operations and modules alone."""
        self._undo.__exit__()
        self._modules = None

    def _leave(self) -> None:
        """Be no mode of this thread any more, however often an interrupt left this one on the stack."""
        self.is_over = True
        while any(mode is self for mode in _get_current_function_mode_stack()):
            # Torch has no way to take a mode out from below others,
            # so these are taken off and put back in their order.
            others = []
            while (top := _pop_mode()) is not self:
                others.append(top)
            for other in reversed(others):
                _push_mode(other)
        # An interrupt within ``saved_tensors_hooks`` leaves its hooks
        # in force; ours are told by the function that they call.
        while (kept := torch._C._autograd._top_saved_tensors_default_hooks(True)) and kept[0] is _itself:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def _model_of_confined_rules(self) -> nn.Module:
        if self.model is None:
            raise InvalidParameter(f"of {self.rules} some are confined to modules; give Rules their model")
        names = [name for name, _ in self.model.named_modules(remove_duplicate=False) if name]
        for rule in _confined(self.rules):
            for pattern in rule.patterns:
                if not any(lies_in(name, pattern) for name in names):
                    raise RuleNotApplied(f"{rule} would meet nothing: {UnknownName('module', pattern, names)}")
        return self.model

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, under the rules that concern it."""
        kwargs = kwargs or {}
        if self.is_over:
            return func(*args, **kwargs)
        # Gradient checkpointing packs what operations save, to compute it anew in the backward pass, where no rule
        # would hold. What the innermost hooks packed it never sees: for this call it is switched off.
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            return self._run(func, args, kwargs)
        with saved_tensors_hooks(_itself, _itself):
            return self._run(func, args, kwargs)

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(tensors((*args, *kwargs.values())))
        if not all(x in self._constants for x in given):
            # An operation of parts comes here again for each of them:
            # all that the trace gains from here on belongs to this call.
            place = len(self.trace)
            above = None if self._layers_above is None else self._layers_above.of(given)
            result = self._met(func, args, kwargs)
            if self._layers_above is not None and above is not None:
                written = given[:1] if result is None else ()  # x[i] = y gives nothing
                self._layers_above.know((*written, result), above.union(AFFINE.intersection(self.trace[place:])))
            if self._is_graded and (self.cut.names or not torch.is_grad_enabled()):
                self.cut.follow(func, given, result)
            for part in self._parts:
                part.follow(given, result)
            return result
        # No rule concerns what the images have no part in.
        result = self._constant(func, args, kwargs) if given and self.of_parts else func(*args, **kwargs)
        if func is Tensor.requires_grad_:  # a layer that is explained
            self._constants.discard(result)
        else:
            self._constants.add(result)
        return result

    def _constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``func`` on constants without a graph, so that no product takes its result for an activation."""
        with torch.no_grad():
            result = func(*args, **kwargs)
            # A view of a parameter needs a gradient even so.
            is_view = isinstance(result, Tensor) and not isinstance(result, nn.Parameter)
            return result.detach() if is_view and result.requires_grad else result

    def _met(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = recognise(func, args, kwargs)
        if operation is not None:
            operation = self._as_layer(operation)
        if operation is None or (self.of_parts and self._has_parts(operation)):
            # A quotient such as x / (1 + exp(-x)) may be an activation by
            # hand. These are looked for among products, so it runs as one.
            apart = self.of_parts or (self._by_hand and is_quotient(func) and sum(map(_has_graph, args)) > 1)
            parts = parts_of(func, args, kwargs) if apart else None
            if parts is None and self.of_parts and is_recurrent(func):
                self.whole.add(func.__name__)
            return func(*args, **kwargs) if parts is None else self._run_parts(parts, func, args, kwargs)
        operation.trace, operation.place, operation.copies = self.trace, len(self.trace), self.copies
        operation.notes, operation.unreached, operation.count = self.notes, self._unreached, self.count
        if self._layers_above is not None:
            operation.above = self._layers_above.of(operation.inputs)
        operation.modules = tuple(name for names in self._inside for name in names)
        self.trace.append(operation.name)
        x = operation.input
        # Whether it matters is told once the graph is known: the result may go nowhere (``require_all_met``).
        if x.requires_grad and x not in self._constants and not torch.is_grad_enabled():
            self.without_graph.add(operation.name)
        self._homes.append(operation.modules[-1] if operation.modules else "no module of its own")
        if operation.name not in AFFINE:
            return self._perform(operation, lambda: func(*args, **kwargs))
        # The nodes that a layer adds to the graph are remembered,
        # so that in it a layer that no call showed stands out.
        below = {x.grad_fn for x in operation.inputs}
        if self._varies(operation.settings["bias"]):  # a summand as any other
            operation, bias = without_bias(operation)
            result = self._perform(operation, lambda: operation.run(*operation.inputs)) + bias
            below.add(bias.grad_fn)
        else:
            result = self._perform(operation, lambda: func(*args, **kwargs))
        self._follow(result.grad_fn, below)
        return result

    def _as_layer(self, operation: Operation) -> Operation | None:
        """Know in which inputs an image has a part; where it is one of two factors, the other is a weight."""
        varies = tuple(map(self._varies, operation.inputs))
        # A pass over references has no graph; what is no constant
        # is then the activation, so that both passes decide alike.
        active = varies if any(varies) else tuple(x not in self._constants for x in operation.inputs)
        layer = as_linear(operation, active)
        if layer is not None:
            layer.varies = varies if layer is operation else (any(varies), False)
        return layer

    def _varies(self, x: Any) -> bool:
        return _has_graph(x) and x not in self._constants

    def _follow(self, node: Any, below: set[Any]) -> None:
        """Know the nodes that a layer, or what a rule made of it, put between its inputs and its result."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node is not None and node not in below and node not in self.layers:
                self.layers.add(node)
                pending += [before for before, _ in node.next_functions]

    def _has_parts(self, operation: Operation) -> bool:
        """Whether an operation is a normalization by statistics of the image's own."""
        return operation.name == "instance_norm" or (
            operation.name == "batch_norm" and not self._stores(operation)
        )

    def _stores(self, operation: Operation) -> bool:
        """Whether the model itself stores an operation's weights and statistics, so that no image tells them.

        The graph would say so, too, but a pass over references, which has none, must decide alike.
        """
        if self._stored is None:
            stored = () if self.model is None else (*self.model.parameters(), *self.model.buffers())
            self._stored = {id(value) for value in stored}
        values = (value for value in operation.settings.values() if isinstance(value, Tensor))
        return all(id(value) in self._stored for value in values) and not operation.settings["training"]

    def _perform(self, operation: Operation, call: Callable[[], Any]) -> Any:
        """Run an operation, as the model called it if no rule concerns it."""
        by_hand = None
        if self._by_hand and operation.name == "mul":
            by_hand = handmade(operation, self._is_product_known)
        if by_hand is not None and (rules := self._concerned(by_hand.activation)):
            # From here on it counts as an activation, also where another asks whether it is the last one.
            self.trace[operation.place] = by_hand.activation.name
            return by_hand.scaled(self._apply(rules, by_hand.activation))
        rules = self._concerned(operation)
        if not rules:
            self.left.append(operation.name)
            return call()
        if sum(rule.replaces_backward for rule in rules) > 1:
            raise InvalidParameter(
                f"rules {rules} each replace the backward pass of {operation.name}; give only one of them"
            )
        # They are read first, since ``_apply`` lets go of the operation's input.
        x, indices = operation.input, operation.indices
        y = self._apply(rules, operation)
        # A slice that ran as it is shares memory with its tensor;
        # under a smoothing of the input it does not any more.
        if operation.name == "slice" and _root(y) is not _root(x):
            self._parts.append(_Part(rules[0], weakref.ref(_root(x)), weakref.ref(_root(y)), _version(y)))
        return y if indices is None else (y, indices(x.detach()))

    def _concerned(self, operation: Operation) -> list[Rule]:
        """The rules that concern an operation, with what it will compute of the reference if they ask."""
        if operation.input.is_complex():  # rules are stated on numbers that are more or less than 0
            return []
        rules = [rule for rule in self._by_name.get(operation.name, ()) if rule.concerns(operation)]
        if rules and any(map(_is_transformed, operation.inputs)):
            return self._none_of(rules, operation)
        # The two passes run the same operations in the same order,
        # so the place in the trace tells which belong together.
        comparing = [rule for rule in rules if rule.needs_reference]
        if comparing and self.references is not None and any(map(is_differentiated, operation.inputs)):
            operation.reference = self.references[operation.place] = Counterpart(operation.name)
        elif comparing:
            return [rule for rule in rules if not rule.needs_reference]
        return rules

    def _none_of(self, rules: list[Rule], operation: Operation) -> list[Rule]:
        """No rule, where torch goes through rows itself; ``RuleNotApplied`` if one would change the result."""
        for rule in rules:
            if rule.required or rule.alters_gradient:
                raise RuleNotApplied(
                    f"{operation.name} runs within torch.vmap or torch.func, where {rule} cannot act; write the "
                    "model for batches, or in a loop, or choose a method without this rule"
                )
        return []

    def _run_parts(
        self, parts: Callable[..., Any], func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a composed operation as its parts, each of which comes here again."""
        if not any(x.is_floating_point() for x in tensors((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        named = dict(kwargs)
        first = [named.pop(name) for name in ("self", "input") if name in named]
        # Torch switches a mode off while the mode handles a
        # call; without it on, the parts would run under no rule.
        mode: Any = super()
        mode.__enter__()
        try:
            result = parts(*first, *args, **named)
        finally:
            mode.__exit__(None, None, None)
        return args[0].copy_(result) if is_inplace(func) else result

    def _apply(self, rules: list[Rule], operation: Operation) -> Tensor:
        run, others = operation.run, operation.others
        if others:
            run = lambda x: operation.run(x, *others)  # noqa: E731
        # A rule may return without calling ``run``, and then those inside it never act, which is refused below.
        acted: set[Rule] = set()
        # What replaces the backward pass does not ask what runs inside, so it is innermost.
        for rule in sorted(rules, key=_is_inner)[::-1]:
            run = partial(_applied, rule, operation, run, acted)
        x = operation.input
        # What propagates back keeps the operation. Were its input kept too, and overwritten by the model (an
        # in-place ReLU's is its output), the graph would hold itself and never be freed.
        operation.input = x.new_empty(0)
        result = run(x)
        for rule in rules:
            if rule not in acted:
                left = shortened(str(other) for other in rules if other in acted)
                raise RuleNotApplied(
                    f"{rule} cannot act at {operation.name}, of which {left} leaves nothing to it; give only "
                    "one of them, or confine them to modules with rule.at()"
                )
        self.met.update(rules)
        self.made.add(result.grad_fn)
        return result

    def require_all_applied(self) -> None:
        """Raise ``RuleNotApplied`` if the forward pass met no operation of some rule's kind.

        Of LRP's rules for the whole model one that was met is enough: each has its own operations. A pass without
        gradients applies no rule, and cannot tell activations by hand.
        """
        if not torch.is_grad_enabled():
            return
        self._require_confined_rules_hold()
        conserved = any(rule.conserves for rule in self.met)
        for rule in self.rules:
            spared = conserved and rule.conserves and not isinstance(rule, ConfinedRule)
            if rule.required and rule not in self.met and not spared:
                ran = ", ".join(f"{name} x{count}" for name, count in sorted(Counter(self.trace).items()))
                raise RuleNotApplied(
                    f"{rule} met no operation of its kind ({', '.join(sorted(rule.operations))}), so it would "
                    f"silently change nothing; of the operations that rules know, the model runs: "
                    f"{ran or 'none'}{self._elsewhere(rule)}. {rule.without_it}"
                )

    def _require_confined_rules_hold(self) -> None:
        """Refuse a module to which a rule is confined and of which only parts ran, by another of its methods."""
        if self.model is None or not self._inside.ran:
            return
        patterns = [pattern for rule in _confined(self.rules) for pattern in rule.patterns]
        for name, module in self.model.named_modules():
            is_named = any(fits_glob(name, one) for one in patterns)
            if not is_named or name in self._inside.ran or isinstance(module, _CONTAINERS):
                continue
            if any(ran.startswith(f"{name}.") for ran in self._inside.ran):
                raise RuleNotApplied(
                    f"the model runs {name!r} by another of its methods, so that what it computes by itself would "
                    "be passed by; name its parts, or have the model call it"
                )

    def _elsewhere(self, rule: Rule) -> str:
        """Where operations of a confined rule's kind ran instead, for its error message."""
        homes = [home for home, name in zip(self._homes, self.trace, strict=True) if name in rule.operations]
        return f"; those of its kind in {shortened(dict.fromkeys(homes))}" if any(_confined([rule])) else ""


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # which compute nothing by themselves


class ReferenceRules(Rules):
    """The rules of the pass over the references, which fills in what the pass over the images asked for."""

    def _concerned(self, operation: Operation) -> list[Rule]:
        rules = self._by_name.get(operation.name, ())
        # What compares changes the backward pass alone. What changes the forward pass, as a smoothing
        # of the input does, must hold here, too: the differences would be of two functions.
        return [rule for rule in rules if not rule.needs_reference and rule.concerns(operation)]

    def _perform(self, operation: Operation, call: Callable[[], Any]) -> Any:
        reference = (self.references or {}).get(operation.place)
        if reference is None:
            return super()._perform(operation, call)
        inputs = operation.inputs
        if reference.operation != operation.name:
            raise InvalidModel(
                f"the model runs {operation.name} on the reference where it runs {reference.operation} on the "
                "image; DeepLIFT compares the two step by step. Choose another baseline or method"
            )
        copied = operation.inplace or operation.copies
        kept = [x.clone() if copied else x for x in inputs]
        result = super()._perform(operation, call)
        y = result[0] if isinstance(result, tuple) else result  # a pooling's may come with indices
        reference.fill(*kept, y.clone() if operation.copies else y)
        return result


class _Cut:
    """What a model computes of the image under ``torch.no_grad``, and all that comes of it: gradients miss it.

    Steps have no gradient anyway, and what is detached is meant to have none.
    """

    def __init__(self, constants: _Constants) -> None:
        self.names: dict[str, None] = {}  # of what ran without a graph
        self.nodes: set[Any] = set()  # of the graph, at which what came of it is used
        self._constants = constants
        # By identity, with the node that each had: whoever overwrites it in the graph gives it another.
        self._known: dict[int, tuple[weakref.ref[Tensor], Any]] = {}

    def follow(self, func: Callable[..., Any], given: Sequence[Tensor], result: Any) -> None:
        """Follow an operation on what depends on the image."""
        is_cut = not torch.is_grad_enabled()
        name = func.__name__
        if name.strip("_") in _STOPPING or name.endswith("_like") or name.startswith("new_"):
            return
        # Of the second in x.to(y) or x.view_as(y) nothing but its kind or shape is read.
        read = given[:1] if name == "to" or name.endswith("_as") else given
        if not any((is_cut and self._varies(x)) or self._is_known(x) for x in read):
            return
        written = given[:1] if result is None else ()  # x[i] = y gives nothing
        made = [x for x in (*written, *tensors((result,))) if x.is_floating_point() or x.is_complex()]
        if is_cut and made:
            self.names[name.strip("_")] = None
        elif not is_cut:
            self.nodes.update(x.grad_fn for x in made if x.grad_fn is not None)
        # What is written into a part of a tensor is read with the whole.
        into = [x for x in made if any(x is one for one in given)]
        for x in [*made, *(x._base for x in into if x._base is not None)]:
            self._known[id(x)] = weakref.ref(x), x.grad_fn

    def _varies(self, x: Tensor) -> bool:
        return x.requires_grad and x not in self._constants

    def _is_known(self, x: Tensor) -> bool:
        # What a custom function made without a graph has another node afterwards: its own backward pass.
        known, node = self._known.get(id(x), (None, None))
        return known is not None and known() is x and node is x.grad_fn


# Operations through which no gradient passes, whatever the mode: the steps, and those that say so.
_STOPPING = frozenset({"detach", "sign", "round", "floor", "ceil", "trunc", "heaviside", "requires_grad"})


class _Constants:
    """Tensors that no image has a part in: parameters, buffers, and what is computed of these and of numbers.

    Whether a tensor needs a gradient does not tell: a view of a parameter does, an activation below the explained
    layers may not. What is not known, such as what a hidden operation gave, is taken for an activation.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        for buffer in model.buffers() if model is not None else ():
            self.add(buffer)

    def __contains__(self, x: Tensor) -> bool:
        if isinstance(x, nn.Parameter):
            return True
        # An identity may be given again once a tensor is freed, so the weak reference must still
        # lead to this tensor; a later version means that something else was written into it.
        known, version = self._known.get(id(x), (None, 0))
        return known is not None and known() is x and version == _version(x)

    def add(self, values: Any) -> None:
        """Know the tensors that a call gave, until they are overwritten by what is none."""
        for x in tensors(values if isinstance(values, list | tuple) else (values,)):
            self._known[id(x)] = weakref.ref(x), _version(x)

    def discard(self, x: Tensor) -> None:
        """Take a tensor for an activation."""
        self._known.pop(id(x), None)


class _LayersAbove:
    """The names of the layers (``AFFINE``) that lie between the image and each tensor of a pass.

    The image is what the pass computes from first. What came from elsewhere, as from a hidden operation, is
    unknown, and so is what is computed of it.
    """

    def __init__(self, constants: _Constants) -> None:
        self._constants = constants
        self._known: dict[int, tuple[weakref.ref[Tensor], int, frozenset[str]]] = {}

    def of(self, given: Sequence[Tensor]) -> frozenset[str] | None:
        """The layers above any of some tensors; None if they are unknown."""
        activations = [x for x in given if x not in self._constants]
        # What a pass computes from first is the image, above which there are no layers.
        if not self._known:
            self.know(activations, frozenset())
        found = [self._known.get(id(x), (None, 0, frozenset[str]())) for x in activations]
        for x, (known, version, _) in zip(activations, found, strict=True):
            if known is None or known() is not x or version != _version(x):
                return None
        return frozenset[str]().union(*(names for _, _, names in found))

    def know(self, values: Any, above: frozenset[str]) -> None:
        """Know what lies above tensors, until they are overwritten."""
        for x in tensors(values):
            self._known[id(x)] = weakref.ref(x), _version(x), above


@dataclass
class _Part:
    """A slice that is no view of its tensor under a rule: what is written into it never reaches the tensor."""

    rule: Rule
    whole: weakref.ref[Tensor]
    made: weakref.ref[Tensor]
    version: int
    is_written: bool = False

    def follow(self, given: Sequence[Tensor], result: Any) -> None:
        """Notice a write into the slice; ``RuleNotApplied`` where the tensor is used after it."""
        # What is written through a view of the slice counts as well.
        roots = [_root(x) for x in given]
        gives = any(True for _ in tensors(result if isinstance(result, list | tuple) else (result,)))
        if self.is_written and gives and any(root is self.whole() for root in roots):
            raise RuleNotApplied(
                "the model writes into a strided slice, such as x[:, :, ::2, ::2].mul_(2), and then uses x; "
                f"under {self.rule} the slice is averaged, and the write would be lost. Write it without a slice, "
                "as x * mask, or explain the model without this rule"
            )
        self.is_written |= any(root is self.made() and _version(root) != self.version for root in roots)


def _root(x: Tensor) -> Tensor:
    """The tensor whose memory this one is a view of."""
    return x if x._base is None else x._base


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def is_differentiated(x: Tensor) -> bool:
    """Whether a gradient is asked for at ``x``: a parameter is a constant."""
    while _is_transformed(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad and torch.is_grad_enabled() and not isinstance(x, nn.Parameter)


def _is_transformed(x: Tensor) -> bool:
    """Whether a tensor stands for others within ``torch.vmap`` or a derivative of ``torch.func``."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and is_differentiated(value)


def _confined(rules: Sequence[Rule]) -> Iterator[ConfinedRule]:
    """The confined rules, and those that they confine further."""
    for rule in rules:
        while isinstance(rule, ConfinedRule):
            yield rule
            rule = rule.rule


def _itself(x: Tensor) -> Tensor:
    return x


def _is_inner(rule: Rule) -> bool:
    return rule.replaces_backward


def _applied(rule: Rule, operation: Operation, run: Run, acted: set[Rule], x: Tensor) -> Tensor:
    acted.add(rule)
    return rule.apply(operation, x, run)
