"""Names, selects, captures and replaces a model's activations.

The only file that touches a module: by forward hooks for the time of one call, deaf to every other thread, and
removed wherever the call is interrupted (undo.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_unflatten

from .errors import InvalidLayer, InvalidModel, UnknownName, brief, counted
from .undo import Undo

INPUT = "input"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Kinds = tuple[type[nn.Module], ...]
_CONVOLUTIONS: Kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def layer_names(model: nn.Module) -> list[str]:
    """What ``layers="all"`` means for a model: ``"input"``, then every block, in registration order.

    A block is an outermost module with a convolution inside (or a linear layer, where a network has more of
    these) that is more than a plain container (``nn.Sequential``, ``nn.ModuleList``): a residual or inception
    block, a dense block, a Conv-Norm-ReLU, a transformer's block. One that holds more than half of these layers
    is taken for the model's body, and one that is hardly more than a chain of modules of one class for a stage:
    their own blocks count. The block of the classifier is left out. A model with nearly all convolutions in no
    block (VGG, LeNet) offers them instead. Attributions are of the named module's output. Any other module may be
    named too (``dict(model.named_modules())``).
    """
    model, kinds = unwrapped(model), _CONVOLUTIONS
    if _count(model, (nn.Linear,)) > _count(model, kinds):
        kinds = (*kinds, nn.Linear)
    blocks = list(_blocks(model, "", kinds, _count(model, kinds) / 2))
    *_, last = [name for name, module in model.named_modules() if isinstance(module, (*kinds, nn.Linear))] or [""]
    # The classifier's block gives no map, but a network that is nothing else keeps its only block.
    if len(blocks) > 1 and blocks[-1] == last.split(".")[0]:
        # A head of convolutions, as of a segmentation model, still has places.
        head = model.get_submodule(blocks[-1])
        if isinstance(model.get_submodule(last), nn.Linear) or _count(head, kinds) == 1:
            del blocks[-1]
    # Blocks that hold less than a quarter of the network, as a
    # VGG's, say little of it; so its convolutions are the layers.
    if sum(_count(model.get_submodule(name), kinds) for name in blocks) * 4 < _count(model, kinds):
        blocks = [name for name, module in model.named_modules() if name and isinstance(module, _CONVOLUTIONS)]
    return [INPUT, *blocks]


def _blocks(module: nn.Module, prefix: str, kinds: Kinds, most: float, in_stage: bool = False) -> Iterator[str]:
    """The blocks below a module; none holds more than ``most`` layers of the kinds in blocks of its own."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, kinds) or not (count := _count(child, kinds)):
            continue
        is_stage = not in_stage and _is_stage(child, kinds)
        inside: list[str] = []
        if type(child) in _CONTAINERS or count > most or is_stage:
            inside = list(_blocks(child, f"{path}.", kinds, most, in_stage or (is_stage and count <= most)))
        if type(child) not in _CONTAINERS and not inside:
            inside = [path]
        yield from inside


def _is_stage(module: nn.Module, kinds: Kinds) -> bool:
    """Whether nearly all of a module is a chain of blocks, each of several layers."""
    if type(module) in _CONTAINERS:
        return False
    chains: list[nn.Module] = [p for p in module.children() if isinstance(p, nn.Sequential | nn.ModuleList)]
    if type(module).forward is nn.Sequential.forward:
        chains.append(module)
    for chain in map(_chained, chains):
        counts = [_count(part, kinds) for part in chain]
        if min(counts, default=0) > 1 and not any(type(part) in _CONTAINERS for part in chain):
            return sum(counts) > 0.75 * _count(module, kinds)
    return False


def _chained(chain: nn.Module) -> list[nn.Module]:
    """The parts of a chain, and of the chains that run within it one after another."""
    parts = [[part] if type(part) is not nn.Sequential else _chained(part) for part in chain.children()]
    return [one for part in parts for one in part]


def _count(module: nn.Module, kinds: Kinds) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())


LayerChoice = str | nn.Module | Sequence[str | nn.Module]


def select_layers(model: nn.Module, layers: LayerChoice) -> dict[str, bool]:
    """Resolve ``"all"``, names, globs and modules to module names, each with whether it was named outright.

    A layer that a pattern chose may fail to run (an auxiliary head in eval mode); one named outright must.

    Raises:
        UnknownName: a name or glob that matches no module of the model.
    """
    modules = [INPUT, *(name for name, _ in model.named_modules() if name)]
    selected: dict[str, bool] = {}
    wanted = [layers] if isinstance(layers, str | nn.Module) else layers
    if not (isinstance(wanted, Iterable) and all(isinstance(given, str | nn.Module) for given in wanted)):
        raise InvalidLayer(f"layers={brief(layers)}; give 'all', names, globs or modules")
    for given in wanted:
        pattern = _name_of(given, model) if isinstance(given, nn.Module) else given
        if pattern in modules:
            # To be named outright counts more than to be chosen by a pattern, also by one that came before.
            selected[pattern] = True
            continue
        chosen = layer_names(model) if pattern == "all" else [name for name in modules if fits_glob(name, pattern)]
        if not chosen:
            refusal = UnknownName("layer", pattern, [*modules, "all"], in_order=True)
            refusal.command = f"{refusal} (the blocks of a model: pellucid list layers --model MODEL)"
            raise refusal
        for name in chosen:
            selected.setdefault(name, False)
    if not selected:
        raise InvalidLayer("no layer was named; give 'all', 'input', a module's name or a glob such as 'layer*.0'")
    return selected


def _name_of(module: nn.Module, model: nn.Module) -> str:
    """What a model calls one of its modules; ``InvalidLayer`` for a module of another."""
    for name, part in model.named_modules():
        if part is module and name:
            if name == INPUT:
                raise InvalidLayer(f"a module of the model is called {INPUT!r}, as the image is; rename it")
            return str(name)
    raise InvalidLayer(
        f"the layer {type(module).__name__} given is no part of this model; name one of its modules"
    )


def fits_glob(name: str, pattern: str) -> bool:
    """Whether a glob fits a module's name; ``*`` stays within one level of the module tree, as in a path."""
    return name.count(".") == pattern.count(".") and lies_in(name, pattern)


def lies_in(name: str, pattern: str) -> bool:
    """Whether a glob fits the name of a module, or of one of the modules that hold it."""
    levels, globs = name.split("."), pattern.split(".")
    return len(levels) >= len(globs) and all(map(fnmatchcase, levels, globs))


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Any) -> nn.Module:
    """The module itself: inside ``torch.compile``, DataParallel and DistributedDataParallel, or a ``LoadedModel``.

    Raises:
        InvalidModel: it is no module, or what is taken off has hooks, without which the answer may be another.
    """
    is_compiled = isinstance(model, torch._dynamo.eval_frame.OptimizedModule)
    if is_compiled or isinstance(model, _WRAPPERS):
        if model._forward_hooks or model._forward_pre_hooks:
            raise InvalidModel(
                f"{type(model).__name__} around the model has forward hooks, which would not run; register them "
                "on the model inside"
            )
        return unwrapped(model._orig_mod if is_compiled else model.module)
    if isinstance(model, nn.Module):
        return model
    inside = getattr(model, "model", None)
    if isinstance(inside, nn.Module):
        return unwrapped(inside)
    way_out = f"load it: pl.load_model({model!r})" if isinstance(model, str) else "give a torch.nn.Module"
    raise InvalidModel(f"the model is {type(model).__name__}; {way_out}")


def explainable(model: Any) -> nn.Module:
    """The module to explain (``unwrapped``).

    Raises:
        InvalidModel: its operations are hidden, or its output is random.
    """
    found = unwrapped(model)
    require_shapes(found)
    for name, module in found.named_modules():
        where = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidModel(
                f"{where} is TorchScript, which hides its operations from every backward rule; "
                "load the Python model and its state dict instead"
            )
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            raise InvalidModel(f"{where} is compiled; put the module there that torch.compile was given")
        kept = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if ".quantized." in type(module).__module__ or any(map(_is_quantized, kept)):
            raise InvalidModel(
                f"{where} ({type(module).__name__}) is quantized, so that gradients pass it by or not at all; "
                "explain the model as it was before it was quantized"
            )
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            raise InvalidModel(f"{where} ({type(module).__name__}) is in training mode; call model.eval() first")
    return found


def first_channels(model: nn.Module) -> int | None:
    """The channels that the first convolution takes; None where there is none."""
    return next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), None)


def _is_quantized(tensor: Tensor) -> bool:
    """Whether a tensor keeps real numbers as integers, or in a byte each, by torch or by a class of its own."""
    if not tensor.is_floating_point() or not is_traceable_wrapper_subclass(tensor):
        return tensor.is_quantized
    inside = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return any(not one.is_floating_point() or one.element_size() == 1 or _is_quantized(one) for one in inside)


def require_shapes(model: nn.Module) -> None:
    """Raise ``InvalidModel`` for a layer whose weights come with its first run, as of ``nn.LazyLinear``."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InvalidModel(f"the model's {name!r} has no shape yet (a lazy layer); run the model once first")


# What was found of models, by what it is about, with the state that they were in.
_REMEMBERED: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, dict[Any, Any]]]] = WeakKeyDictionary()


def remembered(model: nn.Module, what: str, with_weights: bool = False) -> dict[Any, Any]:
    """What was found of a model, to be read and added to; empty once the model is seen to be another.

    Seen without a run are its modules, their plain settings, and which tensors they hold; ``with_weights`` also
    whether any of these was overwritten.
    """
    state = seen_of(model, with_weights)
    known = _REMEMBERED.setdefault(model, {})
    if what not in known or known[what][0] != state:
        known[what] = state, {}
    return known[what][1]


def seen_of(model: nn.Module, with_weights: bool) -> list[Any]:
    """What is seen of a model without a run (``remembered``): two that differ are of a model that was changed."""
    state: list[Any] = []
    seen: set[int] = set()  # classes and objects that many modules share, by identity
    for module in model.modules():
        state.append(id(module))
        state += _settings(module, seen)
        state += _of_class(type(module), seen)
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks):
            state += [_code(hook) for hook in hooks.values() if not _is_ours(hook)]
        tensors = [*module._parameters.values(), *module._buffers.values()]
        state += map(id, tensors)
        if with_weights:
            state += [0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]
    return state


def _settings(module: nn.Module, seen: set[int]) -> Iterator[Any]:
    """A module's own settings, of a wrapper also the model's, and a ``forward`` put in another's place."""
    for name, value in vars(module).items():
        if _is_plain(value):
            yield name, value
        elif name in _TORCHS:
            continue
        elif name == "_model" and isinstance(value, nn.Module):
            yield from _settings(value, seen)
        elif not isinstance(value, Tensor | nn.Module) and (found := _switches(value, seen)) is not None:
            yield name, found


_TORCHS = frozenset(vars(nn.Module()))  # what torch keeps of every module


def _of_class(cls: type, seen: set[int]) -> Iterator[Any]:
    """The settings of a module's own class and of those it is made from, and their ``forward``, once for each."""
    for one in cls.__mro__:
        if one.__module__.partition(".")[0] not in ("torch", "builtins") and id(one) not in seen:
            seen.add(id(one))
            yield from ((name, value) for name, value in vars(one).items() if _is_plain(value))
            yield id(vars(one).get("forward"))


_MOST = 256  # entries of what holds settings; what has more holds data


def _switches(value: Any, seen: set[int], depth: int = 3) -> Any:
    """The switches and names in what a setting holds; numbers and tensors there may be what a run leaves."""
    if type(value) in (bool, str):
        return value
    if isinstance(value, nn.Module):
        return id(value), value.training
    if isinstance(value, FunctionType | MethodType):
        return id(value)
    parts = _parts(value)
    if not depth or parts is None or len(parts) > _MOST or id(value) in seen:
        return None
    seen.add(id(value))
    return [(key, found) for key, one in parts if (found := _switches(one, seen, depth - 1)) is not None]


def _parts(value: Any) -> Sequence[tuple[Any, Any]] | None:
    """What lists, dicts and objects hold, by their keys; None of anything else."""
    if type(value) in (list, tuple):
        return list(enumerate(value))
    if type(value) is dict:
        return list(value.items())
    is_object = hasattr(value, "__dict__") and not isinstance(value, Tensor | type | ModuleType)
    return list(vars(value).items()) if is_object else None


def _code(hook: Any) -> Any:
    """What a hook runs, and the plain values that it was made with: one made anew of the same is the same."""
    held = list(getattr(hook, "__defaults__", None) or ())
    for cell in getattr(hook, "__closure__", None) or ():
        with suppress(ValueError):  # a variable that has no value yet
            held.append(cell.cell_contents)
    return getattr(hook, "__code__", None) or id(hook), [value for value in held if _is_plain(value)]


def _is_ours(hook: Any) -> bool:
    """Whether a hook is of this package's own passes."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def sums_of(tensors: Iterable[Tensor]) -> tuple[complex, ...]:
    """The sum of each tensor's values: ``x.data`` and NumPy overwrite them without raising a version."""
    found = []
    for one in tensors:
        with suppress(RuntimeError, NotImplementedError, TypeError):  # weights of few bits may have no sum
            found.append(complex(one.detach().sum(dtype=None if one.is_complex() else torch.float64)))
    return tuple(found)


_PLAIN = {bool, int, float, str, type(None)}


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


class Activations(dict[str, Tensor]):
    """Outputs of the captured layers of one forward pass, and why others could not be captured."""

    refused: dict[str, InvalidLayer]


@contextmanager
def captured(
    model: nn.Module, layers: Sequence[str], replaced: Mapping[str, Tensor] | None = None, strict: bool = True
) -> Iterator[Activations]:
    """Capture the outputs of ``layers`` during one forward pass, replacing those in ``replaced``.

    A layer's output is a tensor, or what holds one and no other, such as (tokens, size). The model goes on with a
    clone, so an in-place operation that follows cannot overwrite what was captured. If a layer's output needs no
    gradient yet, the graph starts there: nothing below the lowest captured layer is differentiated. Unless
    ``strict``, what cannot be captured is left out and told in ``refused``.

    Raises:
        InvalidLayer: during the pass: a layer that gives several tensors or none, or that runs more than once.
    """
    activations = Activations()
    activations.refused = {}
    replaced = replaced or {}
    thread = threading.get_ident()

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, _: Any, result: Any) -> Any:
            # Hooks are the module's and so everybody's: another thread
            # that runs the same model goes on as if there were none.
            if threading.get_ident() != thread:
                return None
            try:
                output, put_back = _single_tensor(name, module, result, activations)
            except InvalidLayer as error:
                if strict:
                    raise
                activations.refused[name] = error
                activations.pop(name, None)
                return None
            output = replaced.get(name, output)
            if torch.is_grad_enabled() and not output.requires_grad:
                output = _beginning(model, output)
            activations[name] = output
            return put_back(output.clone())

        return hook

    with Undo() as undo:
        for name in dict.fromkeys([*layers, *replaced]):
            if name != INPUT:
                _hook(undo, model.get_submodule(name), hook_for(name))
        yield activations


def _beginning(model: nn.Module, output: Tensor) -> Tensor:
    """An output that needs no gradient, as the tensor at which the graph begins.

    It is the output itself, so that who else holds it (a hook that keeps features, an attribute, what an operation
    in place gave back) is part of the graph; what belongs to the model stays as it is.
    """
    is_kept = any(output is one for one in [*model.parameters(), *model.buffers()])
    return (output.detach() if is_kept else output).requires_grad_()


def _hook(
    undo: Undo, module: nn.Module, hook: Callable[..., Any], before: bool = False, always: bool = False
) -> None:
    """Have a module call a hook after it runs, also if that fails (``always``), or ``before`` anything else."""
    undo.later(partial(_unhook, module, hook))
    if before:
        module.register_forward_pre_hook(hook, prepend=True)
    else:
        module.register_forward_hook(hook, always_call=always)


def _unhook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a hook, of which an interrupt may have lost the handle."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, one in hooks.items() if one is hook]:
            # The dict in which a hook is looked for comes last, so that an interrupted removal can be done again.
            module._forward_hooks_always_called.pop(key, None)
            del hooks[key]


@contextmanager
def module_outputs(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """What each module gives in one forward pass, by name, in the order in which they end."""
    found: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found.append((name, output.clone()))

        return hook

    with Undo() as undo:
        for name, module in model.named_modules():
            _hook(undo, module, keep(name))
        yield found


class Running(list[tuple[str, ...]]):
    """The modules that a pass is in, outermost first, each by its names; ``ran`` are all that it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()


@contextmanager
def watched(model: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call a hook with each module, its arguments and its output during a forward pass."""
    with Undo() as undo:
        for module in model.modules():
            _hook(undo, module, hook)
        yield


@contextmanager
def running_modules(model: nn.Module) -> Iterator[Running]:
    """The modules that this thread's forward pass is in at the moment, outermost first, each by its names.

    A module registered in several places has several names; those count that lie where it is called.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    inside = Running()
    thread = threading.get_ident()

    def enter(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            # A module that is registered twice has two names, of
            # which those count that lie in what runs around it.
            around = tuple(f"{name}." for name in inside[-1]) if inside else ("",)
            here = tuple(name for name in names[module] if name.startswith(around))
            inside.append(here or tuple(names[module]))
            inside.ran.update(inside[-1])

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if threading.get_ident() == thread:
            inside.pop()

    with Undo() as undo:
        for module in [module for module in names if module is not model]:
            _hook(undo, module, enter, before=True)
            _hook(undo, module, leave, always=True)  # also after an exception, which the model may catch
        yield inside


def _single_tensor(
    name: str, module: nn.Module, result: Any, activations: Activations
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The one tensor that a module gives, and how what it gave is made with another in its place."""
    parts, structure = tree_flatten(result)
    places = [place for place, part in enumerate(parts) if isinstance(part, Tensor) and part.is_floating_point()]
    kind = type(module).__name__
    if len(places) != 1:
        raise InvalidLayer(
            f"layer {name!r} ({kind}) returns {type(result).__name__} with {counted(len(places), 'tensor')}, not "
            "one; name a module inside it"
        )
    if name in activations or name in activations.refused:
        raise InvalidLayer(
            f"layer {name!r} ({kind}) runs more than once in a forward pass, so its output is ambiguous; "
            "name the block that holds it"
        )
    (place,) = places
    return parts[place], lambda tensor: tree_unflatten([*parts[:place], tensor, *parts[place + 1 :]], structure)
