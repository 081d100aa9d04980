"""What autograd's graph of a pass shows of operations that a rule should have met and did not.

A rule meets what the mode intercepts. A ``torch.autograd.Function`` of the model's own and a scripted function
hide what they compute, and a gate may be written so that nobody takes it for an activation: under guided
backpropagation each would pass the plain gradient, and the map would silently be another one. The graph that leads
from the logits back to the explained layers has a node for each of them.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.modules._functions import BackwardHookFunction

from ..errors import InvalidModel, RuleNotApplied, RuleWarning, counted, shortened
from .base import ConfinedRule, Rule, Rules
from .handmade import bends, is_root, within_sums
from .operations import AFFINE, ELEMENTWISE, RECTIFIERS, Operation

# Autograd's nodes of the activations of hidden layers.
_NODES = {
    "relu": "Relu",
    "relu6": "Hardtanh",
    "leaky_relu": "LeakyRelu",
    "rrelu": "LeakyRelu",
    "prelu": "PreluKernel",
    "elu": "Elu",
    "selu": "Elu",
    "celu": "Celu",
    "gelu": "Gelu",
    "silu": "Silu",
    "mish": "Mish",
    "hardswish": "Hardswish",
    "softplus": "Softplus",
}

# Nodes of functions that between layers stand for activations by hand, a softmax by hand, or a maxout.
_PIECES = {"Exp": "exp", "Expm1": "expm1", "Log": "log", "Log1P": "log1p", "Logaddexp": "logaddexp", "Abs": "abs"}
_PIECES |= {"Maximum": "maximum", "Minimum": "minimum", "Fmax": "fmax", "Fmin": "fmin", "Sign": "sign"}
_PIECES |= {"Glu": "glu", "Copysign": "copysign", "Hypot": "hypot"}
# Activations that are none of those that rectifiers' rules are stated for.
_OTHERS = {"Threshold": "threshold", "Softshrink": "softshrink", "Hardshrink": "hardshrink"}
# Nodes of matrix products, with their two factors last.
_MATRIX_PRODUCTS = frozenset(
    {"Mm", "Bmm", "Mv", "Dot", "Addmm", "Addmv", "Addbmm", "Baddbmm", "Linear", "SparseAddmm", "Trilinear"}
    | {"EmbeddingBag"}
)
# Nodes that choose among what is stacked.
_OF_STACKS = (
    "Amax", "Amin", "MaxBackward", "MinBackward", "MaxPool", "Cummax", "Cummin", "Logsumexp", "Softmax", "Sort",
    "Topk", "Kthvalue", "Median", "Gather",
)  # fmt: skip
# Nodes of maxima and of means.
_MAXIMA = ("Amax", "MaxPool", "AdaptiveMaxPool")
_MEANS = ("Mean", "AvgPool", "AdaptiveAvgPool")
_NORMS = ("Norm", "LinalgVectorNorm")  # of single values they are magnitudes
# Nodes that may choose by a condition for each unit of each image, and what they keep of it.
_CHOOSING = ("Where", "Mul", "MaskedFill", "Lerp", "Addcmul", "IndexPut")
_CONDITIONS = ("condition", "mask", "self", "other", "weight", "tensor1", "tensor2")
# Of a scripted function, after its first runs, the one node that stands for all of its operations.
_SCRIPTED = "DifferentiableGraph"
_SAMPLE = 4096  # values by which a mask is first told from other factors


def require_all_met(mode: Rules, logits: Tensor, layers: Iterable[Tensor]) -> None:
    """Raise ``RuleNotApplied`` if between the layers and the logits an operation passed a rule by unseen.

    A gate that may be an activation in another spelling is warned of. A layer of the model that ran on what
    depends on the image, but without a graph, is refused as ``InvalidModel``: no gradient passes it.
    """
    rules = [rule for rule in mode.rules if rule.alters_gradient]
    convolving = any("conv2d" in rule.operations and rule.required for rule in mode.rules)
    if not rules and not convolving and not mode.cut.nodes:
        return
    # Only what lies between the layers and the logits counts; what made a layer's output changes no map of it.
    ends = {get_gradient_edge(start).node for start in [*layers, *mode.starts] if start.requires_grad}
    path = _between(get_gradient_edge(logits).node, ends) - ends
    hiding = sorted({name for node in path if (name := _own_function(node, mode))})
    if mode.cut.nodes & path:
        raise InvalidModel(
            f"part of the model ({shortened(mode.cut.names, 4)}) runs under torch.no_grad, so that no gradient "
            "passes it and the map would leave it out; let it run with gradients, or explain layers above it"
        )
    _require_convolutions_met(mode, path)
    _warn_of_other_layers(mode, path, ends)
    _warn_of_wholes(mode)
    maybe = [name for name in hiding if "conv" in name.lower() or name == _SCRIPTED]
    _warn_of_left_convolutions(mode, path, maybe)
    _warn_of_left_pooling(mode, path)
    for rule in rules:
        if hiding and _hides(rule, mode):
            raise RuleNotApplied(
                f"{shortened(hiding)}: a torch.autograd.Function of the model's own, or a scripted one, hides its "
                f"operations from {rule}, which would silently pass it by; write it with PyTorch's operations, or "
                "choose a method without this rule"
            )
        if rule.replaces_backward and rule.operations >= RECTIFIERS:
            _require_rectifiers_met(rule, mode, path)


def _between(root: Node, ends: Collection[Node]) -> set[Node]:
    """The nodes on the ways from a root back to any of the ends, both included."""
    # One walk goes down from the root to learn who consumes each node, one up from the ends, so that branches
    # that reach no end stay out. Both are loops: a deep network would exceed the depth of Python's recursion.
    consumers: dict[Node, list[Node]] = defaultdict(list)
    pending = [root]
    while pending:
        node = pending.pop()
        for before, _ in node.next_functions:
            if before is not None:
                pending += [] if before in consumers else [before]
                consumers[before].append(node)
    pending = [end for end in ends if end in consumers or end is root]
    found = set(pending)
    while pending:
        new = [node for node in consumers[pending.pop()] if node not in found]
        found.update(new)
        pending += new
    return found


def _own_function(node: Node, mode: Rules) -> str | None:
    """The name of a custom autograd function of the model's own, or of scripted code; None of any other node."""
    if _SCRIPTED in node.name():
        return _SCRIPTED
    # Autograd makes a class for the backward node of each Python function, which names the function so.
    function: Any = getattr(type(node), "_forward_cls", None)
    if not isinstance(node, BackwardCFunction) or function is None or node in mode.made:
        return None
    if function is BackwardHookFunction:  # torch's own, where a module has a backward hook: it computes nothing
        return None
    ours = function.__module__.partition(".")[0] == __name__.partition(".")[0]
    return None if ours else str(function.__qualname__)


def _hides(rule: Rule, mode: Rules) -> bool:
    """Whether what a custom function hides may be of the rule's kind: any activation, or what was seen in it."""
    return bool(rule.operations & ELEMENTWISE or rule.operations & mode.without_graph)


def _require_convolutions_met(mode: Rules, path: Collection[Any]) -> None:
    """Refuse convolutions of a rule's kind that no call showed: scripted, in another thread or spelling."""
    unseen = [_convolution(node, mode) for node in path if _is_convolution(node) and node not in mode.layers]
    for rule in mode.rules if unseen else ():
        # The graph does not tell in which module a convolution ran, so a confined rule is asked as
        # if it were not confined; it may rightly have passed this one by, hence a warning only.
        whole = _whole(rule)
        if not any(one.name in rule.operations and whole.concerns(one) for one in unseen):
            continue
        message = (
            f"a convolution that {rule} may be meant for passed it by, as in a function of torch.jit.script, "
            "another thread or torch.convolution; write it as a module or with torch.nn.functional.conv2d"
        )
        if whole is rule:
            raise RuleNotApplied(message)
        warnings.warn(RuleWarning(message), stacklevel=6)


def _warn_of_other_layers(mode: Rules, path: Collection[Any], ends: Collection[Any]) -> None:
    """Warn where LRP's rules of layers leave a layer plain that no call showed, or that was written out."""
    rules = [
        rule for rule in mode.rules if rule.replaces_backward and rule.conserves and rule.operations == AFFINE
    ]
    others = [node for node in path if node not in mode.layers] if rules else []
    active = {*path, *ends}
    kinds = {_SCRIPTED if _SCRIPTED in node.name() else _layer_of(node, active) for node in others}
    kinds = kinds.union(_summed_product(node, active) for node in others) - {""}
    if kinds:
        message = (
            f"{rules[0]} acts at convolutions and linear layers that it meets; {', '.join(sorted(kinds))} ran "
            "otherwise: hidden, written out, or by several constants, and propagated by the epsilon-0 rule"
        )
        warnings.warn(RuleWarning(message), stacklevel=6)


def _warn_of_left_convolutions(mode: Rules, path: Collection[Any], compiled: Collection[str]) -> None:
    """Warn of convolutions that rules leave alone: compiled ones, and padded ones of other dimensions."""
    for rule in mode.rules:
        if "conv2d" not in rule.operations or not rule.required:
            continue
        left = set(compiled)
        for node in filter(_is_convolution, path):
            name = _layer_of(node, ())
            if name not in rule.operations and any(node._saved_padding):
                left.add(name)
        if left:
            message = (
                f"{', '.join(sorted(left))} may be a convolution that {rule} is meant for, but is none that it "
                "acts at, and ran as it is; write it as torch.nn.functional.conv2d"
            )
            warnings.warn(RuleWarning(message), stacklevel=6)


def _warn_of_left_pooling(mode: Rules, path: Collection[Any]) -> None:
    """Warn of maxima and means that a rule of pooling may be meant for, but leaves alone: those of other forms."""
    names = {node.name().rstrip("0123456789").removesuffix("Backward") for node in path}
    for rule in mode.rules:
        if "max_pool2d" not in rule.operations or not rule.replaces_backward or rule.needs_reference:
            continue
        averages = getattr(rule, "average", False)
        kinds = (*_MAXIMA, *_MEANS) if averages else _MAXIMA
        left = {name for name in names if name == "Max" or name.startswith(kinds)}
        if left and not isinstance(rule, ConfinedRule):
            message = (
                f"{', '.join(sorted(left))} may be a pooling that {rule} is meant for, but is none that it acts "
                "at, and propagated the plain gradient; write it as torch.nn.functional.max_pool2d or avg_pool2d, "
                "or as amax or mean of the dimensions (2, 3)"
            )
            warnings.warn(RuleWarning(message), stacklevel=6)


def _warn_of_wholes(mode: Rules) -> None:
    """Warn of recurrent layers whose parts no rule met."""
    if mode.whole:
        message = (
            f"{', '.join(sorted(mode.whole))} of a packed sequence ran as a whole, so that no rule met its gates "
            "and they propagated the plain gradient; give it the padded sequence"
        )
        warnings.warn(RuleWarning(message), stacklevel=6)


def _layer_of(node: Any, active: Collection[Any]) -> str:
    """What a node computes if that is a layer, a convolution or a product by a constant; else nothing."""
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    if name == "Convolution":
        return f"conv{'_transpose' * node._saved_transposed}{len(node._saved_stride)}d"
    # A product with one factor on the way from the images is a layer; with two it is a product of activations.
    name, factors = name.strip("_"), [before in active for before, _ in node.next_functions[-2:]]
    if name == "Trilinear":
        factors = [before in active for before, _ in node.next_functions]
    return name.lower() if name in _MATRIX_PRODUCTS and sum(factors) == 1 else ""


def _summed_product(node: Any, active: Collection[Any]) -> str:
    """What a node computes if that is the sum of an elementwise product by a constant, as ``vecdot`` is."""
    before = node.next_functions[0][0] if node.name().startswith("SumBackward") else None
    if before is None or not before.name().startswith("MulBackward"):
        return ""
    return "a product that is summed" * (sum(factor in active for factor, _ in before.next_functions) == 1)


def _is_convolution(node: Any) -> bool:
    return node.name().startswith("ConvolutionBackward") and not node._saved_transposed


def _whole(rule: Rule) -> Rule:
    """A rule as it is where it is not confined to modules."""
    while isinstance(rule, ConfinedRule):
        rule = rule.rule
    return rule


def _convolution(node: Any, mode: Rules) -> Operation:
    """The convolution of a node, as one that ran after all others."""
    names = ("weight", "stride", "padding", "dilation", "groups")
    settings = {name: getattr(node, f"_saved_{name}") for name in names} | {"bias": None}
    x, run = node._saved_input, torch.relu  # it is looked at, not run
    others, place = (settings["weight"],), len(mode.trace)
    name = _layer_of(node, ())
    return Operation(name, x, run, run, settings=settings, others=others, trace=mode.trace, place=place)


def _require_rectifiers_met(rule: Rule, mode: Rules, path: Collection[Node]) -> None:
    # A rule puts its own node in the place of autograd's. So native nodes are of activations that
    # were met but concerned no rule (``left``), or that no call showed: the difference tells these.
    names = Counter(node.name().rstrip("0123456789").removesuffix("Backward") for node in path)
    unseen = Counter({name: names[name] for name in _NODES.values()})
    unseen.subtract(_NODES[name] for name in mode.left if name in _NODES)
    confined = isinstance(rule, ConfinedRule)
    # The sign leaves only counts above 0.
    if +unseen:
        what = ", ".join(f"{name.lower()} x{count}" for name, count in sorted((+unseen).items()))
        message = (
            f"{rule} did not see every activation, which would silently pass it by: {what} ran where operations "
            "are hidden, as in a function of torch.jit.script; write them with PyTorch's operations"
        )
        if not confined:
            raise RuleNotApplied(message)
        warnings.warn(RuleWarning(message), stacklevel=6)  # it may lie elsewhere
    if not confined:
        _warn_of_hidden_activations(rule, names, path)


def _warn_of_hidden_activations(rule: Rule, names: Container[str], path: Collection[Node]) -> None:
    """Warn of what may be an activation in another spelling: gates, other bent functions, and pieces of some."""
    gates = sum(_is_gate(node) for node in path)
    if gates and not rule.needs_reference:  # what those of references miss, completeness tells
        message = (
            f"{counted(gates, 'gate')} such as torch.where(x > t, x, 0) or x * (x > t) propagated the plain "
            f"gradient while {rule} applied to the activations; if it is an activation, write it as one"
        )
        warnings.warn(RuleWarning(message), stacklevel=7)
    others = sorted(other for name, other in _OTHERS.items() if name in names)
    if others and rule.operations == RECTIFIERS:
        message = (
            f"{', '.join(others)} between the layers propagated the plain gradient while {rule} applied to other "
            f"activations: it acts at {', '.join(sorted(RECTIFIERS))}; build the model of these, or choose a "
            "method without this rule"
        )
        warnings.warn(RuleWarning(message), stacklevel=7)
    known = {piece for name, piece in _PIECES.items() if name in names}
    pieces = sorted(known | _shifted(path) | _clipped(path) | _summed(path))
    if pieces and not (rule.needs_reference or rule.of_parts):
        message = (
            f"{', '.join(pieces)} between the layers: an activation written by hand, such as a softplus, an ELU "
            f"or a hard sigmoid, may be made of it, to which {rule} did not apply as such; write it as one"
        )
        warnings.warn(RuleWarning(message), stacklevel=7)


def _shifted(path: Collection[Any]) -> set[str]:
    """Whether a ReLU6 of a sum with a constant is scaled: relu6(x + 3) / 6 is a hard sigmoid, no activation.

    It may have been multiplied first by what it gates: y relu6(x + 3) / 6.
    """
    for scaled in path:
        for clamped, _ in scaled.next_functions if scaled.name().startswith(("Mul", "Div")) else ():
            # A replaced node has its operation's name, which ``_Replaced`` keeps for this.
            if getattr(clamped, "operation", "") == "relu6" and _alone(_alone(clamped), ("Add",)) is not None:
                return {"relu6(x + c) / d"}
    return set()


def _summed(path: Collection[Any]) -> set[str]:
    """Whether functions of one tensor's elements are summed of which one sees it mirrored: z + relu(-z) is a ReLU.

    Where none does, as in x + gelu(x), a skip passes an activation by, which is met as it is.
    """
    for node in path:
        if node.name().startswith(("Add", "Sub", "Rsub")) and _branches(node) == 2:
            for between in within_sums(node):
                if any(map(bends, between)) and any(map(_mirrors, between)):
                    return {"f(x) + g(-x)"}
    return set()


def _mirrors(node: Any) -> bool:
    """Whether a node gives numbers of the other sign, or those of both signs the same."""
    factor = getattr(node, "_saved_other", None) if node.name().startswith(("Mul", "Div")) else None
    negative = isinstance(factor, Tensor) and factor.numel() == 1 and bool(factor < 0)
    less = node.name().startswith("Sub") and _branches(node) == 2
    return negative or less or is_root(node) or node.name().startswith(("Neg", "Rsub"))


def _branches(node: Any) -> int:
    return sum(before is not None for before, _ in node.next_functions)


def _alone(node: Any, names: tuple[str, ...] = ("",)) -> Any:
    """The one node before a node of these names; None if there are several, or it has another name."""
    before = [] if node is None else [one for one, _ in node.next_functions if one is not None]
    return before[0] if len(before) == 1 and node.name().startswith(names) else None


def _clipped(path: Collection[Any]) -> set[str]:
    """What is clipped at 0, or at other tensors, maxima of what was stacked for it, and norms of single values."""
    found = set()
    for node in path:
        name = node.name()
        bounds = [getattr(node, f"_saved_{bound}", None) for bound in ("min", "max")]
        clips = name.startswith("Clamp") and any(isinstance(bound, Tensor) or bound == 0 for bound in bounds)
        if clips or name.startswith("ForeachClamp"):
            found.add("clamp")
        stacked = [one for one, _ in node.next_functions if one is not None and one.name().startswith("Stack")]
        if stacked and name.startswith(_OF_STACKS):
            found.add("max, sort or softmax of a stack")
        if name.startswith(_NORMS) and (below := node.next_functions[0][0]) is not None:
            before, after = (one._input_metadata[0].shape for one in (below, node))
            if math.prod(before) == math.prod(after):
                found.add("norm of single values")
    return found


def _is_gate(node: Any) -> bool:
    """Whether a node chooses by a condition for each unit of each image."""
    if not node.name().startswith(_CHOOSING):
        return False
    shape = tuple(node._input_metadata[0].shape)
    saved = [getattr(node, f"_saved_{name}", None) for name in _CONDITIONS]
    return any(_is_condition(one, shape) for one in [*saved, *(getattr(node, "_saved_indices", None) or ())])


def _is_condition(saved: Any, shape: tuple[int, ...]) -> bool:
    """Whether what a node keeps is a mask: true and false, or 0 and 1."""
    if not isinstance(saved, Tensor) or tuple(saved.shape) != shape or saved.requires_grad:
        return False
    if not saved.is_floating_point():
        return not saved.is_complex()
    # Most saved tensors are no masks, and a few values show it without a pass over all of memory.
    sample = saved.flatten()[:: max(saved.numel() // _SAMPLE, 1)]
    return all(bool(((values == 0) | (values == 1)).all()) for values in (sample, saved))
