"""Feature-map occlusion: what the class loses when a layer's background or object units are switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidLayer, InvalidModel, InvalidParameter, require_count
from ..layouts import Layout, layouts_of
from ..methods.checks import not_finite, require_in_range, same_logits
from ..methods.network import Network, Points
from ..passes import fitting
from ..rules.norm import FrozenBatchNorm
from ..sampling import noise_like
from ..seeds import fold_in
from .base import Axis, Case, Measured, Metric, Need
from .localization import object_masks
from .scoring import Scorer


@dataclass(frozen=True, kw_only=True)
class BackgroundOcclusion(Metric):
    """How much of its margin the scored class loses when a layer's background units are switched off.

    Units (channel, row, column) whose cell lies on the background are set to 0 in random orders, at ``levels``
    even fractions from 0 to 1 of them. Logits are averaged over the ``orders`` first; the margin is then the
    class's logit minus the highest other. The value is margin(0) - integral_0^1 margin(t) dt, in logits: the
    mean loss; below 0 where the class gains. The curve holds the margins. It grades a layer of the scored model:
    all methods share it. The paper took 100 levels and 50 orders. Both ends are run once, for their order does
    not matter: (levels - 2) orders + 2 rows per image, through the network above the layer only.
    """

    name = "background_occlusion"
    higher_is_better = False
    axis: ClassVar[Axis] = "occlusion"
    unit = "logits"
    paper = "Kim et al., Why are Saliency Maps Noisy? (RectGrad), Sec. 3, Fig. 3: feature-map occlusion"
    undefined = "no unit of the layer lies there"
    needs: ClassVar[frozenset[Need]] = frozenset({"masks"})
    on_object: ClassVar[bool] = False

    levels: int = 11
    orders: int = 10

    def __post_init__(self) -> None:
        require_count("levels", self.levels)
        require_count("orders", self.orders)
        if self.levels < 2:
            raise InvalidParameter("levels=1: give at least 2, nothing and everything occluded")

    @property
    def fractions(self) -> list[float]:
        """The fractions of units occluded, from 0 to 1."""
        return [level / (self.levels - 1) for level in range(self.levels)]

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value and one curve of margins per image and layer."""
        scorer = case.scorer
        with torch.autocast(case.images.device.type, enabled=False):  # as what is scored runs
            return fitting(scorer.model, case.images, scorer.max_batch, partial(self._bounded, case))

    def _bounded(self, case: Case, max_batch: int) -> Mapping[str, Measured]:
        scorer, rules = case.scorer, (*case.scorer.rules, FrozenBatchNorm())
        network = Network(scorer.model, rules, case.images, case.scored, max_batch)
        objects = object_masks(case)
        activations, clean = case.once(("activations", case.layers), lambda: _activations(case, network))
        require_in_range(case.scored, clean.shape[1])
        return {
            layer: self._measured(network, case, layer, activations[layer], clean, objects)
            for layer in case.layers
        }

    def _measured(
        self, network: Network, case: Case, layer: str, activations: Tensor, clean: Tensor, objects: Tensor
    ) -> Measured:
        """The curve of every image, each its own rows through the network above the layer."""
        units = unit_masks(objects, activations, layer)
        units = units if self.on_object else ~units
        # The orders are the same for all images and methods, so that their values can be compared one by one.
        sequences = _random_sequences(activations[:1], self.orders, case.seed)
        curves = []
        for index, (activation, chosen) in enumerate(zip(activations, units.expand_as(activations), strict=True)):
            above = partial(_logits_above, network, case.scorer, layer, index)
            run = partial(self._mean_logits, activation, chosen, sequences, above, network.max_batch)
            logits = run()
            if not same_logits(logits[:1], clean[index, None]):  # what passes the layer by was left out
                network.span(layer)
                logits = run()
            if not bool(logits.isfinite().all()):
                raise not_finite(case.scorer.model, f"a logit, once units of layer {layer!r} are 0,")
            curves.append(_margins(logits, case.scored[index]))
        curve = torch.stack(curves)
        mean = torch.trapezoid(curve, dx=1 / (self.levels - 1))
        values = (curve[:, 0] - mean).masked_fill(~units.flatten(1).any(1), torch.nan)
        return Measured(values, curve, self.fractions)

    def _mean_logits(
        self,
        activation: Tensor,
        units: Tensor,
        sequences: Tensor,
        above: Callable[[Tensor], Tensor],
        max_batch: int,
    ) -> Tensor:
        """Logits (levels, classes) of one image's occluded activations (C, h, w), averaged over the orders."""
        places = _places(sequences, units)
        fractions = torch.tensor(self.fractions, dtype=torch.float64)
        counts = (fractions * int(units.sum())).round().long().to(activation.device)
        levels, orders = self._rows(activation.device)
        parts = []
        for part in torch.arange(len(levels), device=activation.device).split(max_batch):
            hidden = units & (places[orders[part]] < counts[levels[part]].view(-1, 1, 1, 1))
            parts.append(above(torch.where(hidden, 0, activation)))
        logits = torch.cat(parts)
        mean = logits.new_zeros(self.levels, logits.shape[1]).index_add_(0, levels, logits)
        # The ends were run once and are their own mean.
        mean[1:-1] /= self.orders
        return mean

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Level and order of each row that is run: both ends once, for they are the same in every order."""
        ends = torch.tensor([0, self.levels - 1], device=device)
        inner = torch.arange(1, self.levels - 1, device=device)
        orders = torch.arange(self.orders, device=device).repeat_interleave(len(inner))
        return torch.cat([ends, inner.repeat(self.orders)]), torch.cat([torch.zeros_like(ends), orders])


def unit_masks(objects: Tensor, activations: Tensor, layer: str) -> Tensor:
    """Which units of a layer lie on the object, (B, 1, h, w) bool: those at least half of whose cell it covers."""
    if activations.dim() != 4:
        raise InvalidLayer(
            f"layer {layer!r} gives shape {tuple(activations.shape)}, no maps (batch, channels, h, w) whose units "
            "lie on object or background; leave it out"
        )
    # The mean of the mask over the pixels that a unit's cell covers is the share of it that the object covers.
    share = F.interpolate(objects[:, None].to(activations.dtype), activations.shape[-2:], mode="area")
    return share >= 0.5


def _activations(case: Case, network: Network) -> tuple[dict[str, Tensor], Tensor]:
    """The activations of all layers at the images, and the images' logits, from one pass."""
    parts, logits = [], []
    for origin in torch.arange(len(case.images), device=case.images.device).split(network.max_batch):
        activations, clean = network.logits(Points(case.images[origin], origin, ()), case.layers)
        parts.append(activations)
        logits.append(clean)
        case.scorer.count(len(origin))
    layouts = layouts_of(case.scorer.model, case.layers, case.images, {}, network.max_batch)
    for layer in case.layers:
        if layer not in parts[0]:
            raise InvalidLayer(f"layer {layer!r} did not run in the scored model; leave it out")
        if layouts[layer] not in (Layout(), Layout("bc")):
            raise InvalidLayer(
                f"layer {layer!r} is {layouts[layer] or 'of unknown order'}; units are occluded at layers "
                "(batch, channels, h, w) alone; leave it out"
            )
    return {layer: torch.cat([part[layer] for part in parts]) for layer in case.layers}, torch.cat(logits)


def _logits_above(network: Network, scorer: Scorer, layer: str, image: int, rows: Tensor) -> Tensor:
    """Logits of activations of a layer (n, C, h, w) that stem from one image; the passes are counted."""
    origin = torch.full((len(rows),), image, device=rows.device)
    scorer.count(len(rows))
    return network.logits(Points(rows, origin, (), layer))[1]


def _random_sequences(activation: Tensor, orders: int, seed: int) -> Tensor:
    """All units of a layer in random orders, (orders, units), from the seed alone."""
    # Sorting noise gives a random order that is the same on every device (``noise_like``).
    noise = noise_like(activation.expand(orders, -1, -1, -1), [fold_in(seed, order) for order in range(orders)])
    return noise.expand(orders, *activation.shape[1:]).flatten(1).argsort(dim=1, stable=True)


def _places(sequences: Tensor, units: Tensor) -> Tensor:
    """Each chosen unit's place among the chosen ``units`` (C, h, w) of each sequence, from 0; -1 elsewhere."""
    # One sequence of all units serves every image: restricted to an image's own units it is still a random order.
    chosen = units.flatten().expand_as(sequences)
    counted = chosen.gather(1, sequences).cumsum(1) - 1
    places = torch.empty_like(counted).scatter_(1, sequences, counted)
    return places.masked_fill(~chosen, -1).view(-1, *units.shape)


def _margins(logits: Tensor, target: Tensor) -> Tensor:
    """The class's logit minus the highest other, at each level."""
    if logits.shape[1] < 2:
        raise InvalidModel("the model has one class, so no other to which it could lose")
    others = logits.scatter(1, target.expand(len(logits), 1), -torch.inf)
    return logits.gather(1, target.expand(len(logits), 1))[:, 0] - others.amax(1)


@dataclass(frozen=True, kw_only=True)
class ObjectOcclusion(BackgroundOcclusion):
    """How much of its margin the scored class loses when a layer's object units are switched off.

    As ``BackgroundOcclusion``, of the units on the object: a decision that rests on the object loses much.
    """

    name = "object_occlusion"
    higher_is_better = True
    on_object = True
