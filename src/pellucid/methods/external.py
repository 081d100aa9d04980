"""Maps made elsewhere: any function (model, images, targets) -> maps is a method like the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidLayer, InvalidMap, InvalidParameter, PellucidError, UnknownName, failure
from ..files import function_in
from ..layers import INPUT
from ..layouts import Layout
from ..rules.base import Rules
from ..rules.norm import FrozenBatchNorm
from .attributions import Estimate
from .base import Method
from .network import Network, Points


@dataclass(frozen=True)
class External(Method):
    """Attributions by ``function(model, images (n, C, H, W), targets (n,))``: a tensor or NumPy array.

    The result is (n, C, h, w) or (n, h, w), one map for each image; it stands for ``layer``, the only one
    explained. Images come at most ``max_batch`` at a time and require gradients: they are leaves, whose ``grad``
    a backward pass fills; a copy of one's own is ``images.detach().clone()``. The function runs under the rules of
    the variant asked for, so that variants and samplings work on it as on any other method; whatever
    it does to the model, but for its training mode, or to the global random state is its own affair.

    Raises:
        InvalidMap: on a call: the function raises, leaves the model in training mode, or gives another shape, NaN
            or infinity.
    """

    function: Callable[[nn.Module, Tensor, Tensor], Any]
    name: str = ""
    layer: str = INPUT
    gives_maps: ClassVar[bool] = True

    def default_layers(
        self, model: nn.Module, images: Tensor, declared: Mapping[str, Layout], max_batch: int
    ) -> tuple[str, ...]:
        """The layer that the maps are of."""
        return (self.layer,)

    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """One call of the function."""
        if self.layer not in layers:
            raise InvalidLayer(f"{self.maker} gives maps at {self.layer!r} alone, not at {', '.join(layers)}")
        return {self.layer: Estimate(self._checked(self._maps(network, points), points))}

    @property
    def maker(self) -> str:
        """What messages call the function."""
        return self.name or getattr(self.function, "__name__", repr(self.function))

    def _maps(self, network: Network, points: Points) -> Any:
        # Only what the variant asks for: other libraries know batch norms as they are.
        rules = [rule for rule in network.rules if not isinstance(rule, FrozenBatchNorm)]
        running = Rules(rules, model=network.model)
        evaluated = [module for module in network.model.modules() if not module.training]
        try:
            with torch.enable_grad(), running if rules else nullcontext():
                # Requiring gradients, since the model's frozen parameters do not and libraries rely on either.
                images = points.values.clone().requires_grad_()
                maps = self.function(network.model, images, network.targets[points.origin])
                running.require_all_applied()
        except PellucidError:
            raise
        except Exception as error:  # whatever a foreign function raises
            path = self.name.rpartition(":")[0]
            raise InvalidMap(f"{self.maker} failed: {failure(error, path)}") from error
        finally:
            # Only what the function switched is switched back: a
            # model may have parts that were in training mode before.
            trained = [module for module in evaluated if module.training]
            for module in trained:
                module.training = False
        if trained:
            raise InvalidMap(
                f"{self.maker} left the model in training mode, which answers otherwise; call model.eval() in it"
            )
        return maps

    def _checked(self, maps: Any, points: Points) -> Tensor:
        try:
            attribution = torch.as_tensor(maps, dtype=points.values.dtype, device=points.values.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidMap(f"{self.maker} gives {type(maps).__name__}; it must return a tensor") from error
        if attribution.dim() == 3:
            attribution = attribution.unsqueeze(1)
        if attribution.dim() != 4 or len(attribution) != len(points):
            raise InvalidMap(
                f"{self.maker} gives shape {tuple(attribution.shape)} for {len(points)} images; "
                "it must return (images, channels, height, width) or (images, height, width)"
            )
        broken = (~attribution.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if broken:
            raise InvalidMap(
                f"{self.maker} gives NaN or infinite values for image {int(points.origin[broken[0]])} of the "
                f"batch ({len(broken)} of {len(points)} images); look for a division by zero in it"
            )
        return attribution


def external(text: str, layer: str | None = None, **settings: Any) -> External:
    """The function that ``path/to/file.py:function`` names, with its settings, as a method.

    ``layer`` says which layer the maps are of: a function with a parameter of that name is given it, and its
    default holds where none is asked for; else it is the input. For any other function it is only a label.

    Raises:
        InvalidMap: no such file, or it fails when it is imported.
        UnknownName: it has no function of that name, or that has no such parameter.
        InvalidParameter: it has a parameter without a default that is not given.
    """
    path, _, name = text.rpartition(":")
    function = function_in(path, name, InvalidMap, "file of methods")
    taken = _parameters(function)
    if "layer" in taken and layer is not None:
        settings["layer"] = layer
    if not any(one.kind is Parameter.VAR_KEYWORD for one in taken.values()):
        label = "" if "layer" in taken else "besides, layer=NAME says which layer its maps are of"
        for setting in settings.keys() - taken.keys():
            raise UnknownName(f"parameter of {text}", setting, list(taken)[3:], label)
    if missing := [name for name in _needed(taken) if name not in settings]:
        given = ", ".join(f"{name}={name.upper()}" for name in missing)
        raise InvalidParameter(f"{text} needs {' and '.join(missing)}: write {text}({given})")
    default = taken["layer"].default if "layer" in taken else None
    layer = layer or (default if isinstance(default, str) else "") or INPUT
    return External(function=partial(function, **settings) if settings else function, name=text, layer=layer)


def _needed(taken: Mapping[str, Parameter]) -> list[str]:
    """The parameters without a default, beside the model, the images and the targets."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    asked = list(taken.items())[3:]
    return [name for name, one in asked if one.default is Parameter.empty and one.kind not in several]


def _parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    try:
        return signature(function).parameters
    except (TypeError, ValueError):  # of what is no Python
        return {"settings": Parameter("settings", Parameter.VAR_KEYWORD)}
