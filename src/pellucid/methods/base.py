"""``Method``: rules x samplings x a readout; the checked call, and the recursion through the samplings."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, SupportsIndex, final

import torch
from torch import Tensor, nn

from ..bounds import GRADIENTS
from ..errors import DisplacedMapWarning, InvalidLayer, InvalidParameter, SkippedLayerWarning, brief
from ..kinds import require_kind
from ..layers import INPUT, LayerChoice, explainable, select_layers
from ..layouts import Layout, displaced, layout, layouts_of
from ..outputs import Names, class_names
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, fitting, placed, rows_per_pass
from ..rules.base import Rule
from ..rules.draws import Draws
from ..rules.norm import FrozenBatchNorm
from ..sampling import Noise, Path, Sampling
from ..seeds import fold_in
from ..undo import Guard
from ..variants.base import ORIGINAL, AnyVariant, as_variant
from .attributions import Attributions, Estimate
from .caveats import warn_if_half, warn_if_incomplete, warn_of_image, warn_of_map
from .checks import are_named, asked, predicted, require_images, require_names, require_targets
from .differences import warn_of_missed
from .network import Network, Points
from .places import astray
from .repeatable import require_repeatable, require_the_same, unexplainable

_TRIED = 4  # images whose sums are compared without a variant


@dataclass(frozen=True, eq=False)
class _Asking:
    """A checked call: ``answering`` is the model as the classifier whose logits are explained."""

    model: nn.Module
    answering: nn.Module
    rules: tuple[Rule, ...]
    images: Tensor
    targets: Any
    layers: LayerChoice | None
    layouts: Mapping[str, Layout]
    keys: tuple[int, ...]
    answer: str  # what is asked of the model if that is no class
    names: Names  # of the model's classes, where targets are given by them
    preprocess: Any  # what images should have gone through, where the model tells it


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An attribution method. ``samplings`` are nested, the outermost first.

    A subclass gives ``leaf``, the attribution at single points; ``Method`` does the rest: checks, chunks,
    samplings, completeness.
    """

    samplings: tuple[Sampling, ...] = ()
    gives_maps: ClassVar[bool] = False  # whether the leaf's attributions are maps, whatever the layer's layout
    is_for_hidden: ClassVar[bool] = False  # whether at the input it would only show the image itself

    @abstractmethod
    def leaf(self, network: Network, points: Points, layers: Sequence[str]) -> dict[str, Estimate]:
        """The attribution at each point, for all layers from as few passes as can be."""

    @property
    def promise(self) -> tuple[str, str]:
        """What a complete attribution sums to, and what to do where it does not."""
        if self.samplings:
            return "logits' difference", "Take more steps, another baseline, or a layer that no skip passes by"
        return "logits' difference", (
            "Some operation has no rule of this method; or name a layer that no skip passes by"
        )

    def promises(self, rules: Sequence[Rule]) -> bool:
        """Whether, under these rules, the leaf's attribution at a point should have a known sum."""
        return False

    @property
    def is_gradient(self) -> bool:
        """Whether the leaf is the gradient as it stands, of which a path integral is complete."""
        return False

    @property
    def backward_rules(self) -> tuple[Rule, ...]:
        """The rules under which the model runs."""
        return ()

    @property
    def has_sign(self) -> bool:
        """Whether what is positive speaks for the class, and what is negative against it.

        A weighted sum over draws keeps that, their squares do not.
        """
        summed = all(sampling.weights is not None for sampling in self.samplings)
        return summed and all(rule.keeps_sign for rule in self.backward_rules)

    @property
    def goes_below_zero(self) -> bool:
        """Whether values may be negative, on whatever image."""
        below = self.reads_below_zero
        for sampling in reversed(self.samplings):
            below = sampling.goes_below_zero(below)
        return below

    @property
    def reads_below_zero(self) -> bool:
        """Whether the attribution at a single point may have negative values."""
        return True

    @property
    def maker(self) -> str:
        """The user's function that gives the maps; empty where they are of the network's own passes."""
        return ""

    def default_layers(
        self, model: nn.Module, images: Tensor, declared: Mapping[str, Layout], max_batch: int
    ) -> tuple[str, ...]:
        """The layers explained if none are named, of a model for images (B, C, H, W) and layouts by layer."""
        return (INPUT,)

    def sampled(self, sampling: Sampling) -> Self:
        """This method at the points that a sampling draws, folded as the sampling says.

        ``InvalidParameter`` for more gradients than a ``Bound`` allows.
        """
        samplings = (sampling, *self.samplings)
        GRADIENTS.require(math.prod(one.draws for one in samplings), "this method takes")
        return replace(self, samplings=samplings)

    def smoothed(self, samples: int = 15, std: float = 0.15, **settings: Any) -> Self:
        """This method averaged over noisy copies of the image: settings of ``Noise``."""
        return self.sampled(Noise(samples, std, **settings))

    def integrated(self, steps: int = 50, **settings: Any) -> Self:
        """This method integrated along a path from a baseline: settings of ``Path``."""
        return self.sampled(Path(steps, **settings))

    @final
    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Any = "auto",
        layers: LayerChoice | None = None,
        *,
        variant: AnyVariant = ORIGINAL,
        seed: int | Sequence[int] = 0,
        max_batch: MaxBatch = DEFAULT_MAX_BATCH,
        layouts: Mapping[str, str | Layout] | None = None,
    ) -> Attributions:
        """Explain each image's target class at the named layers.

        Args:
            model: any module that maps images (B, C, H, W) to logits (B, classes), in eval mode; unchanged after.
                It may return them inside a tuple, mapping or object (``Classifier``), be a ``LoadedModel``,
                compiled, or in DataParallel. In half precision or under autocast gradients are rough, which is
                warned of.
            images: (B, C, H, W), normalised as the model expects.
            targets: classes (B,) or one for all, by number, or by name where the model has names; ``"auto"`` is
                the highest logit; ``"tabby - tiger cat"`` the difference of two (``Difference``); or any function
                of what the model returns, which gives a value for each image (B,).
            layers: ``"all"``, names, or globs of modules, or the model's modules themselves; None is the method's
                own choice (the input, for Grad-CAM the last block).
            variant: how strided convolutions treat the gradient: ``"original"``, ``"backward"``, ``"forward"``,
                a ``Surrogate``, any ``Variant``, or a single rule.
            seed: of all noise; one for all images, so each sees the same noise, or one per image.
            max_batch: no forward pass sees more rows than this (``passes.rows_per_pass``); ``"auto"`` is 64, and
                half of it as often as memory runs out.
            layouts: of layers by name or glob, where they cannot be told: ``{"blocks.*": "tokens(prefix=1)"}``,
                ``"channels_last"``, or letters such as ``"bwhc"``.

        Raises:
            InvalidModel, InvalidImage, InvalidTarget, InvalidLayer, InvalidParameter, UnknownName,
            RuleNotApplied, OutOfMemory: as their names say; the model is unchanged then, too.
        """
        # The names are read before the model is unwrapped: what
        # loads models knows them, the module inside does not.
        names, preprocess, model = class_names(model), getattr(model, "preprocess", None), explainable(model)
        require_images(images, model)
        told = require_kind(Mapping[str, str | Layout] | None, layouts, "layouts", InvalidParameter) or {}
        # The frozen batch norm comes last, and so innermost: it
        # computes the operation by itself and leaves none to others.
        rules = (*self.backward_rules, *as_variant(variant).rules, FrozenBatchNorm())
        # What torch computes under inference mode can never be
        # differentiated, so a caller's is switched off inside.
        with Guard() as guard, guard.inference(False):
            images = placed(images.clone() if images.is_inference() else images.detach(), model)
            warn_if_half(images)
            text = targets if isinstance(targets, str) else getattr(targets, "__name__", None) or brief(targets)
            given, (answering, targets) = targets, asked(model, targets, names)
            answer = "" if answering is model else text
            declared = {name: layout(one) if isinstance(one, str) else one for name, one in told.items()}
            asking = _Asking(
                model, answering, rules, images, targets, layers, declared, _keys(seed, images), answer,
                names if are_named(given) else None, preprocess,
            )  # fmt: skip
            return fitting(model, images, max_batch, partial(self._explain, asking))

    def _network(self, asking: _Asking, max_batch: int) -> tuple[Network, tuple[str, ...]]:
        """The network that is asked, whose passes see at most ``max_batch`` rows, and the layers to explain."""
        model, images, targets, layers = asking.model, asking.images, asking.targets, asking.layers
        rows = rows_per_pass(max_batch, images)
        require_repeatable(model, images, asking.answering, rows, asking.preprocess)
        require_the_same(model, asking.answering, asking.rules, images[:1])
        if asking.names is not None:
            require_names(asking.names, model, images[:1])
        if layers is None:
            layers = self.default_layers(asking.answering, images, asking.layouts, max_batch)
        chosen = select_layers(model, layers)
        whys = unexplainable(model, asking.answering, tuple(chosen), images[:1], rows)
        for layer, why in whys.items():
            _refuse_or_skip(layer, chosen.pop(layer), why, 5)
        if targets is None or (isinstance(targets, str) and targets == "auto"):
            targets = predicted(model, images, max_batch)
        found = {} if self.gives_maps else _layouts(model, chosen, images, asking.layouts, max_batch)
        network = Network(
            asking.answering,
            asking.rules,
            images,
            require_targets(targets, images),
            rows,
            frozenset(name for name, outright in chosen.items() if outright),
            {name: one for name, one in found.items() if one is not None},
        )
        return network, tuple(name for name in chosen if found.get(name, name) is not None)

    def _explain(self, asking: _Asking, max_batch: int) -> Attributions:
        # It is made anew for each bound that ``fitting`` tries, so that nothing of a failed attempt lives on.
        network, layers = self._network(asking, max_batch)
        parts = [
            self._evaluate(network, self.samplings, points, layers)
            for points in _parted(network.images, asking.keys, network.max_batch)
        ]
        found = Attributions({}, network.targets, answer=asking.answer, has_sign=self.has_sign)
        for layer in _whole(layers, parts):
            self._hand_out(network, layer, Estimate.joined([part[layer] for part in parts]), found)
        if network.was_differentiated:
            warn_of_missed(asking.model, asking.answering, network.images[:1], network.max_batch)
        if self.is_for_hidden and INPUT in layers:
            warn_of_image(type(self).__name__)
        return found if found.residuals else replace(found, unchecked=self._unchecked(network, [*found], asking))

    def _hand_out(self, network: Network, layer: str, estimate: Estimate, found: Attributions) -> None:
        """Put a layer's attribution into what is handed out, and warn of what is wrong with it."""
        network.require_finite(estimate.size, layer)
        # What was found in half precision may be reduced and compared in no less than single.
        exact = torch.promote_types(network.images.dtype, torch.float32)
        maps, prefix = network.split(layer, estimate.attribution.to(exact))
        maps = maps.contiguous()
        # Layers between which nothing is computed may have one gradient, which nobody shall change for both.
        shared = {one.untyped_storage().data_ptr() for one in found.by_layer.values()}
        found.by_layer[layer] = maps.clone() if maps.untyped_storage().data_ptr() in shared else maps
        if prefix.numel():
            found.prefixes[layer] = prefix.contiguous()
        if estimate.expected is not None:
            found.residuals[layer] = estimate.residual
            warn_if_incomplete(layer, estimate, self.promise)
        thresholded = any(rule.alters_gradient for rule in self.backward_rules)
        remedies = ["lower a threshold such as q"] if thresholded else []
        warn_of_map(network, layer, maps, prefix, estimate.size, remedies, self.maker)

    def _unchecked(self, network: Network, layers: Sequence[str], asking: _Asking) -> str:
        """Why no sum is promised of a method that by itself would promise one.

        What its rules miss is then looked for where the sums of a few images show it: without the rules that
        change them.
        """
        # A variant such as a backward hook gives no gradient of any
        # function, so its sums say nothing of missed operations.
        foreign = [rule for rule in asking.rules if rule.alters_gradient and rule not in self.backward_rules]
        path = self.samplings and isinstance(self.samplings[-1], Path) and self.is_gradient
        own = self.backward_rules
        integrates = path and not any(rule.alters_gradient for rule in own)
        if not foreign or not (integrates or self.promises(own)):
            return ""
        without = ", ".join(map(str, foreign))
        if self.promises(own):
            rules = tuple(rule for rule in network.rules if rule not in foreign)
            few = replace(
                network,
                rules=rules,
                images=network.images[:_TRIED],
                targets=network.targets[:_TRIED],
                _references={},
            )
            points = next(_parted(few.images, asking.keys, few.max_batch))
            for layer, estimate in self.leaf(few, points, layers).items():
                warn_if_incomplete(layer, estimate, self.promise, f"without {without} ")
        return f"{without} changes what propagates back, so that no sum is promised"

    def _evaluate(
        self, network: Network, samplings: tuple[Sampling, ...], points: Points, layers: Sequence[str]
    ) -> dict[str, Estimate]:
        """The attribution at each point (at most ``max_batch``) under the samplings that remain."""
        if not samplings:
            return self.leaf(network, points, layers)
        hidden = any(layer != points.layer for layer in layers)
        if samplings[0].space == "input" or not hidden:
            return self._sample(network, samplings, points, layers)
        # From here on everything lies at the layer explained: each layer gets its own points, all captured in
        # one pass over the network below.
        passed = network.forward(points, layers)
        # One pass gives all layers' references, ahead of the loop that would ask for them one by one.
        if isinstance(samplings[0], Path):
            network.reference(samplings[0].baseline, tuple(passed.activations))
        estimates: dict[str, Estimate] = {}
        for layer in [layer for layer in layers if layer in passed.activations]:
            estimates |= self._sample(network, samplings, network.at(points, passed, layer), (layer,))
        return estimates

    def _sample(
        self, network: Network, samplings: tuple[Sampling, ...], points: Points, layers: Sequence[str]
    ) -> dict[str, Estimate]:
        """Draw all points of the outermost sampling, evaluate them in full batches, fold the results."""
        sampling, inner = samplings[0], samplings[1:]
        folded = _Fold(sampling, len(points))
        # Of gradients where the draws lie only the weighted sum is wanted, one for each point.
        tied = self.is_gradient and not inner and sampling.weights is not None and set(layers) == {points.layer}
        for row, draw in _chunks(sampling, len(points), network.max_batch, points.values.device, tied):
            drawn = _drawn(network, sampling, points, row, draw, tied)
            estimates = self._evaluate(network, inner, drawn, layers)
            folded.add(estimates, row, draw, summed=drawn.draws is not None)
        if isinstance(sampling, Path):
            return self._integrated(network, sampling, inner, points, folded)
        return {layer: Estimate(folded.value(layer), folded.expected(layer)) for layer in folded.layers}

    def _integrated(
        self, network: Network, path: Path, inner: tuple[Sampling, ...], points: Points, folded: _Fold
    ) -> dict[str, Estimate]:
        """Multiply each integral by its layer's difference, and say what it should sum to."""
        hidden = any(layer != points.layer for layer in folded.layers)
        complete = not inner and self.is_gradient and network.is_exact
        here = network.forward(points, folded.layers) if hidden else None
        scores = points.scores if here is None else here.scores
        expected = None
        if complete:
            scores = network.forward(points, ()).scores if scores is None else scores
            # Completeness (Sundararajan et al. 2017, Prop. 1) holds of
            # the gradient alone, along a path of what is explained.
            expected = scores - network.reference_scores(path.baseline, points)
        estimates = {}
        for layer in folded.layers:
            value = points.values if here is None else here.activations[layer]
            difference = value - network.reference_at(path.baseline, layer, points)
            # A path of images sums to the logits' difference at the images, not at what they cause elsewhere.
            attribution = folded.value(layer, difference)
            estimates[layer] = Estimate(attribution, expected if layer == points.layer else None)
        return estimates


class _Fold:
    """Running sums of a sampling's terms, by layer and row."""

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self._sampling, self._rows = sampling, rows
        self._sums: dict[str, tuple[Tensor, ...]] = {}
        self._expected: dict[str, Tensor] = {}
        self._added: Counter[str] = Counter()  # how often something was added, by layer

    @property
    def layers(self) -> list[str]:
        """Those of which no draw is missing, as one would be where a layer runs for some draws alone."""
        most = max(self._added.values(), default=0)
        return [layer for layer in self._sums if self._added[layer] == most]

    def add(self, estimates: dict[str, Estimate], row: Tensor, draw: Tensor, summed: bool) -> None:
        """Add what the draws of the rows gave, or, if ``summed``, their weighted sums for each distinct row."""
        # Sums come in the order of ``row.unique``, which is that of the points in ``_drawn``.
        into = row.unique() if summed else row
        self._added.update(estimates.keys())
        for layer, estimate in estimates.items():
            found = estimate.attribution
            terms = (found,) if summed else self._sampling.terms(found, draw)
            if layer not in self._sums:
                self._sums[layer] = tuple(term.new_zeros(self._rows, *term.shape[1:]) for term in terms)
            for total, term in zip(self._sums[layer], terms, strict=True):
                # A chunk may hold several draws of one row, which
                # plain indexing would overwrite instead of adding.
                total.index_add_(0, into, term)
            if estimate.expected is not None and self._sampling.keeps_sum:
                total = self._expected.setdefault(layer, estimate.expected.new_zeros(self._rows))
                # The mean over noisy images sums to the mean of what each of them sums to.
                total.index_add_(0, row, estimate.expected / self._sampling.draws)

    def value(self, layer: str, difference: Tensor | None = None) -> Tensor:
        return self._sampling.fold(self._sums[layer], difference)

    def expected(self, layer: str) -> Tensor | None:
        return self._expected.get(layer)


def _chunks(
    sampling: Sampling, rows: int, size: int, device: torch.device, tied: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every draw of every row, at most ``size`` at a time, as numbers of rows and of draws."""
    total = rows * sampling.draws
    for start in range(0, total, size):
        # Draws of all rows are numbered through, so that every chunk but the last is full, whatever divides what.
        index = torch.arange(start, min(start + size, total), device=device)
        if tied or sampling.needs_reference:  # point by point, so that the draws of a chunk share few points
            yield index // sampling.draws, index % sampling.draws
        else:  # draw by draw: rows with one seed share the noise of a draw
            yield index % rows, index // rows


def _drawn(network: Network, sampling: Sampling, points: Points, row: Tensor, draw: Tensor, tied: bool) -> Points:
    """The points of the given draws of the given rows, tied to these rows if that saves anything."""
    # These are the rows of this chunk alone, so that points and references of others are not copied with it.
    which, of = row.unique(return_inverse=True)
    chosen = Points(points.values[which], points.origin[which], ())
    references = (
        network.reference_at(sampling.baseline, points.layer, chosen) if isinstance(sampling, Path) else None
    )
    draws, keys = draw.tolist(), [points.keys[r] for r in row.tolist()]
    move = partial(sampling.points, of=of, draw=draws, keys=keys)
    values = move(chosen.values, references)
    # Each draw has a seed of its own, made of its point's: nested noise is independent, whatever the chunks.
    drawn_keys, beneath = tuple(map(fold_in, keys, draws)), points.beneath_of(row)
    drawn = Points(values, points.origin[row], drawn_keys, points.layer, beneath=beneath)
    # Where each point has one row in this chunk, tying saves no
    # backward pass; along a path it still saves the forward ones.
    if not tied or (references is None and len(chosen) == len(drawn)):
        return drawn
    weights, path = sampling.weights_of(draw, values), None if references is None else move
    return replace(drawn, draws=Draws(chosen.values, of, weights, references, path))


def _layouts(
    model: nn.Module,
    chosen: Mapping[str, bool],
    images: Tensor,
    declared: Mapping[str, Layout],
    max_batch: int,
) -> dict[str, Layout | None]:
    """The layouts of the chosen layers.

    None is one that cannot be told, or of a layer that cannot be captured; it is warned of, or refused if the
    layer was named outright.
    """
    found = layouts_of(model, tuple(chosen), images, declared, max_batch)
    for name, one in found.items():
        if isinstance(one, Layout):
            continue
        unclear = (
            f"where the dimensions of layer {name!r} look cannot be told, so it has no map; declare its layout, "
            f"such as layouts={{{name!r}: 'tokens(prefix=1)'}} or 'channels_last', or name another layer"
        )
        _refuse_or_skip(name, chosen[name], unclear if one is None else str(one), 7)
    told = {name: one if isinstance(one, Layout) else None for name, one in found.items()}
    _warn_of_displaced(model, told, images, max_batch)
    return told


def _warn_of_displaced(
    model: nn.Module, layouts: Mapping[str, Layout | None], images: Tensor, max_batch: int
) -> None:
    """Warn of maps that lie elsewhere than in the image."""
    maps = {name: one for name, one in layouts.items() if name != INPUT and one and one.is_map}
    far, why = astray(model, maps, images, max_batch), "moves what it sees on the way; choose a layer before that"
    if cut := displaced(model, images):  # of all layers, which the trial of each may find, too
        far = dict.fromkeys(maps, cut)
        why = "cuts or pads images before its first convolution; give it images that need neither"
    for name, share in far.items():
        message = (
            f"the map at {name!r} lies up to {share:.0%} of the image's side or more from where it belongs: "
            f"the model {why}, or explain the input"
        )
        warnings.warn(DisplacedMapWarning(message, name), stacklevel=7)


def _refuse_or_skip(layer: str, is_named: bool, why: str, level: int) -> None:
    """Raise ``InvalidLayer`` if the layer was named outright; else warn that it has no map."""
    if is_named:
        raise InvalidLayer(why)
    warnings.warn(SkippedLayerWarning(why, layer), stacklevel=level)


def _parted(images: Tensor, keys: Sequence[int], size: int) -> Iterator[Points]:
    """The images as points, at most ``size`` at a time."""
    for origin in torch.arange(len(images), device=images.device).split(size):
        yield Points(images[origin], origin, tuple(keys[row] for row in origin.tolist()))


def _keys(seed: int | Sequence[int], images: Tensor) -> tuple[int, ...]:
    if isinstance(seed, int):
        return (seed,) * len(images)
    if not (isinstance(seed, Sequence) and all(isinstance(one, SupportsIndex) for one in seed)):
        raise InvalidParameter(f"seed={brief(seed)}; give a whole number, or one for each image")
    if len(seed) != len(images):
        raise InvalidParameter(f"{len(seed)} seeds for {len(images)} images; give one for all or one per image")
    return tuple(int(value) for value in seed)


def _whole(layers: Sequence[str], parts: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """The layers that ran for all parts of the images; those that ran for some are warned of."""
    ran = [layer for layer in layers if any(layer in part for part in parts)]
    whole = [layer for layer in ran if all(layer in part for part in parts)]
    for layer in [layer for layer in ran if layer not in whole]:
        why = f"layer {layer!r} runs for some images alone; it has no map"
        warnings.warn(SkippedLayerWarning(why, layer), stacklevel=5)
    return whole
