"""Copies of a model whose weights are randomized layer by layer, from the top down."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import getclosurevars
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import (
    InvalidModel,
    InvalidParameter,
    UnknownName,
    WeightsWarning,
    failure,
    require_choice,
    shortened,
)
from ..layers import INPUT, layer_names, unwrapped
from ..seeds import fold_in

RandomizationOrder = Literal["cascading", "independent"]
RandomizationWay = Literal["moments", "initializers", "fresh"]
_Step = tuple[tuple[str, ...], nn.Module]
_Draw = Callable[[str, Tensor, int], Tensor]  # parameter's name, its values, seed -> new values
ALL = "all"
_MUCH = 0.1  # of a model's tables of numbers


def groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The layers that are randomized together, from the top down: name -> names of their parameters.

    A group is a block (``layer_names``), or any other module that has parameters of its own; the order is that
    of registration, reversed. For torchvision's ResNet-18: fc, layer4.1, layer4.0, ..., layer1.0, bn1, conv1
    (Wienecke & Hinrichs). A parameter that two modules share belongs to the one registered first.
    """
    blocks = [name for name in layer_names(model) if name != INPUT]
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0].partition(".parametrizations.")[0]
        block = next((block for block in blocks if _within(owner, block)), owner)
        # A parameter of the model itself, as a class token, has no module and so is a group of its own.
        found.setdefault(block or name, []).append(name)
    return {group: tuple(found[group]) for group in reversed(found)}


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def cascade(
    model: nn.Module,
    order: RandomizationOrder = "cascading",
    way: RandomizationWay = "moments",
    seed: int = 0,
    *,
    groups: Sequence[str] | None = None,
    biases: bool = False,
    drift: bool = False,
    fresh: nn.Module | None = None,
) -> Iterator[_Step]:
    """Randomized copies of a model, one at a time: (layers randomized, copy); the model itself is unchanged.

    Each parameter's random values depend on the seed and its place alone, so that a cascading copy differs
    from the one before in the last layer named only.

    Args:
        model: any module; its copies keep its mode, device and precision.
        order: ``"cascading"``, the first k layers of ``groups(model)`` at step k, from the top down, or
            ``"independent"``, each layer alone (Adebayo et al., Sec. 4.1 and 4.2).
        way: ``"moments"`` draws each weight tensor from N(mean, std) of the trained one; biases and buffers
            stay (Wienecke & Hinrichs). ``"initializers"`` runs each module's own initializer, biases too, while
            buffers, such as batch norm's statistics, stay (Adebayo et al.). ``"fresh"`` is the same, and a
            cascade ends with ``"all"``, a wholly fresh network with its buffers (Smooth Deep Saliency).
        seed: of the random values.
        groups: modules to randomize instead, in this order, such as ("fc", "layer4", "layer3").
        biases: ``"moments"`` draws every parameter, not only those with weight in their name.
        drift: ``"moments"`` redraws the layers above at each step from their already random values, as the
            released code of Wienecke & Hinrichs does.
        fresh: an untrained network of the same architecture, whose values the other two ways take; None
            calls ``reset_parameters`` of every module on a copy.

    Raises:
        InvalidParameter: an unknown order or way, an option of another way, a group without parameters.
        UnknownName: a group that is no module.
        InvalidModel: nothing to randomize; modules without ``reset_parameters`` where no ``fresh`` is given; a
            ``fresh`` of another architecture.
    """
    require_way(order, way, biases, drift)
    if way == "moments" and fresh is not None:
        raise InvalidParameter("fresh is for way='initializers' or 'fresh'; way='moments' draws its own weights")
    model = unwrapped(model)
    _require_own(model)
    chosen = _chosen(model, groups, weights_only=way == "moments" and not biases)
    if groups is None:
        _warn_of_rest(model, {name for held in chosen.values() for name in held})
    if way == "moments":
        return _steps(_normal, model, order, chosen, seed, drift)
    source = _reset(model, seed) if fresh is None else fresh
    values = _fitting(model, dict(source.named_parameters()), dict(model.named_parameters()))
    steps = _steps(lambda name, old, _: values[name].to(old), model, order, chosen, seed, drift=False)
    if way == "initializers" or order == "independent":
        return steps
    return _then_all(steps, model, tuple(chosen), _fitting(model, source.state_dict(), model.state_dict()))


def randomized(model: nn.Module, down_to: str, way: RandomizationWay = "moments", seed: int = 0) -> nn.Module:
    """The copy of a ``cascade`` that is random from the top down to a module, which is included.

    ``down_to``: one of ``groups(model)``; a module that holds some of them, such as ``layer3``; or ``"all"``,
    the cascade's end. Else raises ``UnknownName``.
    """
    require_way("cascading", way, biases=False, drift=False)
    model = unwrapped(model)
    names = list(_chosen(model, None, weights_only=way == "moments"))
    inside = names if down_to == ALL else [name for name in names if _within(name, down_to)]
    if not inside:
        holders = [name for name, _ in model.named_modules() if any(_within(group, name) for group in names)]
        raise UnknownName("block to randomize down to", down_to, [*names, *reversed(holders), ALL])
    last = ALL if down_to == ALL and way == "fresh" else inside[-1]
    return next(copy for so_far, copy in cascade(model, way=way, seed=seed) if so_far[-1] == last)


def require_way(order: RandomizationOrder, way: RandomizationWay, biases: bool, drift: bool) -> None:
    """Raise ``InvalidParameter`` unless ``cascade`` takes these settings together."""
    require_choice("order", order, RandomizationOrder)
    require_choice("way", way, RandomizationWay)
    if way != "moments" and (biases or drift):
        raise InvalidParameter(f"biases and drift are for way='moments'; way={way!r} takes whole layers")


def _chosen(model: nn.Module, names: Sequence[str] | None, weights_only: bool) -> dict[str, tuple[str, ...]]:
    """Each group's parameters that are randomized, each parameter once."""
    candidates = [name for name, _ in model.named_parameters() if not weights_only or _is_weight(name)]
    if not candidates:
        what = "parameter with weight in its name" if weights_only else "parameter"
        raise InvalidModel(f"{type(model).__name__} has no {what}, so there is nothing to randomise")
    if names is None:
        members = {group: [p for p in held if p in candidates] for group, held in groups(model).items()}
        return {group: tuple(held) for group, held in members.items() if held}
    if isinstance(names, str) or not names:
        raise InvalidParameter(f"groups={names!r}: give a sequence of module names, from the top down")
    modules = [name for name, _ in model.named_modules() if name]
    chosen: dict[str, tuple[str, ...]] = {}
    for group in names:
        if group not in modules:
            raise UnknownName("group", group, modules)
        chosen[group] = tuple(name for name in candidates if _within(name, group))
        # What an earlier group holds is random already, as layer4 within a list that also names layer4.1.
        candidates = [name for name in candidates if name not in chosen[group]]
        if not chosen[group]:
            raise InvalidParameter(f"group {group!r} holds no parameter to randomise that no earlier group holds")
    return chosen


def _warn_of_rest(model: nn.Module, randomized: Collection[str]) -> None:
    """Warn where what is not called a weight, and so stays trained, is a large part of what a model learnt."""
    parameters, kept = dict(model.named_parameters()), dict(_kept(model))
    sizes = {name: value.numel() for name, value in (parameters | kept).items() if value.dim() > 1}
    rest = [name for name in sizes if name not in randomized]
    if sum(sizes[name] for name in rest) > _MUCH * sum(sizes.values()):
        are_kept = any(name in kept for name in rest)
        why = (
            "are no parameters; make them nn.Parameter, if they were learned"
            if are_kept
            else "way='moments' draws what is called a weight; biases=True draws every parameter"
        )
        message = f"{shortened(rest, 4)} stay trained in the copies, since {'some of them ' * are_kept}{why}"
        warnings.warn(WeightsWarning(message), stacklevel=4)


def _kept(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The numbers that modules keep otherwise than as parameters: buffers, and tensors as plain attributes.

    Not those of modules with hooks before their forward pass, by which pruning and weight norms compute them.
    """
    for name, module in model.named_modules():
        held = {} if module._forward_pre_hooks else vars(module) | module._buffers
        for own, value in held.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{name}.{own}" if name else own, value


def _require_own(model: nn.Module) -> None:
    """Raise ``InvalidModel`` where a function that a model keeps holds modules of it, which a copy would run."""
    parts = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        for attribute, function in vars(module).items():
            held = getclosurevars(function).nonlocals.values() if isinstance(function, FunctionType) else ()
            if any(id(one) in parts for one in held):
                raise InvalidModel(
                    f"the model's {name + '.' * bool(name) + attribute!r} is a function that holds modules, which "
                    "a copy shares, so that the copy would run trained layers; make it a method"
                )


def require_own_modules(copy: nn.Module, image: Tensor) -> None:
    """Raise ``InvalidModel`` where a copy runs modules that are none of its own, as of a list or a function.

    They are the model's, or copies that nobody randomized: trained in either case.
    """
    own, others = set(copy.modules()), []
    handle = register_module_forward_pre_hook(lambda module, _: None if module in own else others.append(module))
    try:
        with torch.no_grad():
            copy(image.clone())
    finally:
        handle.remove()
    if others:
        raise InvalidModel(
            f"a randomized copy runs a {type(others[0]).__name__} that is none of its modules, as where a list or "
            "function keeps it, so that it stays trained; register it, as in a ModuleList, or make it a method"
        )


def _is_weight(name: str) -> bool:
    """Whether a parameter is a weight, or what one is computed from: ``in_proj_weight``, ``weight_orig``."""
    owner, mark, computed = name.partition("parametrizations.")
    return "weight" in (computed.split(".")[0] if mark else owner.rpartition(".")[2])


def _copy(model: nn.Module) -> nn.Module:
    """A copy that can be differentiated, also where inference asks for it."""
    with torch.inference_mode(False):
        try:
            return deepcopy(model)
        except RuntimeError as error:  # a weight that is computed anew in each pass, and kept as a tensor
            raise InvalidModel(
                f"the model cannot be copied, which randomizing takes ({failure(error)}); call "
                "requires_grad_(False), or make its pruned and weight-normed weights plain ones, by "
                "torch.nn.utils.prune.remove and remove_weight_norm"
            ) from error


def _normal(name: str, old: Tensor, key: int) -> Tensor:
    """Normal values with the mean and standard deviation of the old ones."""
    # Drawn in float32 on the CPU: the same on every device and in every precision.
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float32).to(old)
    # The deviation is the unbiased one, as in the released code of Wienecke & Hinrichs; a single value has none.
    spread = old.std() if old.numel() > 1 else torch.zeros_like(old).sum()
    return old.mean() + spread * noise


def _steps(
    draw: _Draw,
    model: nn.Module,
    order: RandomizationOrder,
    chosen: Mapping[str, tuple[str, ...]],
    seed: int,
    drift: bool,
) -> Iterator[_Step]:
    # Seeds come from a parameter's place in the model, not in
    # the cascade: independent and cascading copies share values.
    places = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    names = tuple(chosen)
    working = _copy(model)
    for step, name in enumerate(names):
        so_far = names[: step + 1] if order == "cascading" else (name,)
        if order == "independent":
            working = _copy(model)
        parameters = dict(working.named_parameters())
        with torch.no_grad():
            # Without drift the working copy still holds the trained
            # values of this group, whose moments are drawn from.
            for member in (member for group in (so_far if drift else (name,)) for member in chosen[group]):
                # With drift a group is drawn again at each later step, which must not repeat the same numbers.
                key = fold_in(fold_in(seed, places[member]), step if drift else 0)
                parameters[member].copy_(draw(member, parameters[member], key))
        # A copy is handed out, so that who keeps or changes it does not change the next step.
        yield so_far, _copy(working)


def _then_all(
    steps: Iterable[_Step], model: nn.Module, names: tuple[str, ...], state: Mapping[str, Tensor]
) -> Iterator[_Step]:
    yield from steps
    last = _copy(model)
    with torch.no_grad():
        # The state's tensors are the copy's own, so they are written
        # in place; buffers go with them, unlike in the steps before.
        for name, old in last.state_dict().items():
            old.copy_(state[name])
    yield (*names, ALL), last


def _reset(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose modules ran their own initializers, each from its own seed; float32 on the CPU."""
    # It runs on the CPU and in float32, so that initial values are the same wherever the model lies.
    fresh = _copy(model).cpu().float()
    with torch.random.fork_rng(devices=[]):
        for place, (name, module) in enumerate(fresh.named_modules()):
            reset = getattr(module, "reset_parameters", None)
            if reset is None and next(module.parameters(recurse=False), None) is not None:
                raise InvalidModel(
                    f"module {name!r} ({type(module).__name__}) has parameters but no reset_parameters to "
                    "initialise them anew; give fresh=, an untrained network, or way='moments'"
                )
            if reset is not None:
                # Not torch.manual_seed, which would seed every accelerator as well.
                torch.default_generator.manual_seed(fold_in(seed, place))
                own = dict(module.named_parameters(recurse=False))
                before = {one: (value._version, value.clone()) for one, value in own.items()}
                reset()
                _require_reset(module, name, before)
    return fresh


def _require_reset(module: nn.Module, name: str, before: Mapping[str, tuple[int, Tensor]]) -> None:
    """Refuse a parameter that its module's initializer left as it was, as what a pruned weight is made of."""
    for parameter, value in module.named_parameters(recurse=False):
        version, old = before[parameter]
        if value._version == version and torch.equal(value, old):
            raise InvalidModel(
                f"reset_parameters of module {name!r} ({type(module).__name__}) leaves {parameter!r} as it was "
                "trained; give fresh=, an untrained network, or way='moments'"
            )


def _fitting(model: nn.Module, values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, old in like.items():
        if name not in values or values[name].shape != old.shape:
            found = tuple(values[name].shape) if name in values else "missing"
            raise InvalidModel(
                f"fresh is no untrained {type(model).__name__}: its {name!r} is {found}, the model's "
                f"{tuple(old.shape)}; build it as the model was built"
            )
    return values
