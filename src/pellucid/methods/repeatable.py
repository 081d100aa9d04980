"""Refuses models that cannot be explained image by image: random, changed by running, or mixing a batch's images.

It is tried, not guessed from the types of modules: a dropout that is always active, an LSTM's dropout, a batch
normalization without running statistics or a function of the model's own all show in what the model does.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InputWarning, InvalidModel
from ..layers import module_outputs
from ..layouts import take_over_layouts
from ..outputs import first_logits, logits_in
from ..passes import is_out_of_memory
from .checks import looks_wrong, same_logits

TRIES = 100  # of a model that draws random numbers, until two differ

# Models that were found repeatable, with what they were tried on.
_TRIED: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()


def require_repeatable(
    model: nn.Module, images: Tensor, answering: nn.Module, alone: bool, preprocess: Any = None
) -> None:
    """Raise ``InvalidModel`` unless an image's logits are the same on a second run and beside another image.

    Three passes over the first image, once for a model, the images' shape and the modules' modes; two if images
    are to run ``alone``. Logits are the same if they differ by at most sqrt(eps) of the largest, eps being their
    precision. ``answering`` is the model as the classifier whose logits are explained. What else looks wrong is
    warned of, once for a model.
    """
    modes = tuple(module.training for module in model.modules())
    trial = (images.shape[1:], images.dtype, images.device, modes, alone)
    tried = _TRIED.setdefault(model, set())
    if trial in tried:
        return
    model, image = answering, images[:1]
    with torch.no_grad():
        changed, first = _changed_by_a_run(model, image)
        if changed:
            raise InvalidModel(
                f"the model's {changed!r} changes when the model runs, so its maps would depend on what ran "
                "before; call model.eval(), or switch off what keeps statistics"
            )
        if _is_random(model, image, first):
            raise InvalidModel(
                f"the model is random: it gives an image other logits each time{_where(model, image, image)}; "
                "call model.eval(), or replace what stays random in it"
            )
        both = torch.cat([image, -image.flip(-1)])
        if not alone and not same_logits(first, _first_of(model, both, first)):
            raise InvalidModel(
                f"the logits of an image depend on the images beside it{_where(model, image, both)}, so would its "
                "map; give normalizations running statistics, or a model that treats images one by one"
            )
    for sentence in looks_wrong(images, first, preprocess).values() if not tried else ():
        warnings.warn(InputWarning(sentence), stacklevel=6)
    tried.add(trial)


def take_over(copy: nn.Module, model: nn.Module) -> None:
    """Take what was found by trying a model for true of its copy with other weights: nothing else is another."""
    _TRIED.setdefault(copy, set()).update(_TRIED.get(model, ()))
    take_over_layouts(copy, model)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return logits_in(model(images.clone()))


def _changed_by_a_run(model: nn.Module, image: Tensor) -> tuple[str, Tensor]:
    """The first tensor of the model that a run replaces or overwrites, empty if none, and the run's logits."""

    def versions() -> dict[str, tuple[int, int]]:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        return {name: (id(one), 0 if one.is_inference() else one._version) for name, one in tensors.items()}

    before, logits = versions(), first_logits(model, image)
    return next((name for name, version in versions().items() if before.get(name) != version), ""), logits


def _is_random(model: nn.Module, image: Tensor, first: Tensor) -> bool:
    """Whether runs differ: one, or, if random numbers were drawn for it, as many as show a rare difference."""
    before = _random_state(image.device)
    if not same_logits(first, _logits(model, image)):
        return True
    drawn = not torch.equal(before, _random_state(image.device))
    return drawn and any(not same_logits(first, _logits(model, image)) for _ in range(TRIES))


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _first_of(model: nn.Module, images: Tensor, otherwise: Tensor) -> Tensor:
    """The first image's logits beside the others', or ``otherwise`` of a model for single images."""
    try:
        return _logits(model, images)[:1]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return otherwise


def _where(model: nn.Module, image: Tensor, beside: Tensor) -> str:
    """The first module whose output for the image differs between two runs, as words for a message."""
    with module_outputs(model) as alone:
        model(image.clone())
    for _ in range(TRIES):
        with module_outputs(model) as again:
            model(beside.clone())
        for (name, one), (_, other) in zip(alone, again, strict=False):
            if not same_logits(one, other[: len(one)]):
                return f", first at {name!r} ({type(model.get_submodule(name)).__name__})" if name else ""
    return ""
