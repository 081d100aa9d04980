"""``Method``: rules x samplings x a readout; the checked call, and the recursion through the samplings."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path as FilePath
from typing import Any, ClassVar, Self, SupportsIndex, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import GRADIENTS
from ..errors import (
    CanceledMapWarning,
    CompletenessWarning,
    EmptyMapWarning,
    FlatMapWarning,
    ImageMapWarning,
    InvalidData,
    InvalidLayer,
    InvalidParameter,
    PatternWarning,
    PrecisionWarning,
    SkippedLayerWarning,
    TokenWarning,
    brief,
)
from ..files import replace_file, sealed_tensors, unsealed_tensors
from ..heatmap import cancels
from ..kinds import require_kind
from ..layers import INPUT, LayerChoice, explainable, select_layers
from ..layouts import Layout, layout, layouts_of
from ..outputs import Names, class_names
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, fitting, placed, rows_per_pass
from ..rules.base import Rule
from ..rules.conv import SmoothedDownsampling
from ..rules.draws import Draws
from ..rules.norm import FrozenBatchNorm
from ..sampling import Noise, Path, Sampling
from ..seeds import fold_in
from ..undo import Guard
from ..variants.base import ORIGINAL, AnyVariant, as_variant
from .checks import are_named, asked, predicted, require_images, require_names, require_targets
from .network import Network, Points
from .repeatable import require_repeatable, unexplainable

# A complete attribution may miss its sum by this share of it before a warning is due.
TOLERANCE = 0.05

# Attributions in files and notebooks.
_FORMAT, _PARTS = "pellucid attributions 1", ("by_layer", "residuals", "prefixes")
_SHOWN = 4  # images
_TRIED = 4  # images whose sums are compared without a variant
# Of a pattern under a variant: places a side, and how far places differ, in means and in standard errors.
_LEAST_PATTERNED, _UNLEVEL, _SURE = 12, 0.25, 8


@dataclass(frozen=True)
class Estimate:
    """An attribution (n, ...) and, where the method promises completeness, what each should sum to (n,)."""

    attribution: Tensor
    expected: Tensor | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Attributions(Mapping[str, Tensor]):
    """Attributions by layer, each (B, C, h, w), whatever the layer's own layout; (B, C) of a layer without places.

    ``targets`` (B,) are the explained classes, 0 for a function of the output or a difference of classes, which
    ``answer`` names. ``residuals`` holds, for the layers
    of a method that promises completeness, sum(attribution) - (f(x) - f(x')) per image (B,), in logits; prefix
    tokens are in the sum. Where a variant changes what propagates back, no sum is promised: ``unchecked`` then
    says why there are no residuals. ``prefixes`` holds the attributions (B, C, prefix) of tokens that have no
    place, such as a class token.
    """

    by_layer: dict[str, Tensor]
    targets: Tensor
    residuals: dict[str, Tensor] = field(default_factory=dict)
    prefixes: dict[str, Tensor] = field(default_factory=dict)
    answer: str = ""
    unchecked: str = ""

    def __getitem__(self, layer: str) -> Tensor:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer}: {tuple(value.shape)}" for layer, value in self.items())
        explained = f"target {self.answer!r}" if self.answer else f"targets {self.targets.tolist()}"
        return f"Attributions({shapes}; {explained})"

    def _repr_html_(self) -> str:
        """Shapes, and a picture of the first images' maps, in a notebook."""
        shown = {layer: value[:_SHOWN] for layer, value in self.items() if value.dim() == 4}
        few = replace(self, by_layer=dict(list(shown.items())[: 2 * _SHOWN]), targets=self.targets[:_SHOWN])
        text = f"<p><code>{escape(repr(self))}</code></p>"
        if not few:
            return text
        picture = b64encode(few.plot().file("png")).decode()
        style = f"max-width: 100%; width: {8 + 9 * len(few)}em"
        return f'{text}<img alt="" style="{style}" src="data:image/png;base64,{picture}">'

    def plot(self, images: Any = None, **settings: Any) -> Any:
        """Draw the maps beside the images (B, C, H, W), as ``pellucid.show(attributions, images)`` does."""
        import pellucid  # drawing lies above explaining: it is asked as a user would

        return pellucid.show(self, images, **settings)

    def to_numpy(self) -> dict[str, np.ndarray]:
        """The attributions by layer as NumPy arrays, each (B, C, h, w); bfloat16 becomes float32."""
        halves = {layer: value.detach().cpu() for layer, value in self.items()}
        return {
            layer: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            for layer, value in halves.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all to a .safetensors file with a checksum, in one move.

        Raises:
            InvalidParameter: a path of another ending.
            OutputNotWritable: the folder is missing or cannot be written.
        """
        if FilePath(path).suffix != ".safetensors":
            raise InvalidParameter(
                f"{os.fspath(path)} does not end in .safetensors; to_numpy() gives arrays for numpy.savez"
            )
        parts = {name: getattr(self, name) for name in _PARTS}
        tensors = {f"{part}/{layer}": value for part, layers in parts.items() for layer, value in layers.items()}
        facts = {"format": _FORMAT, "layers": list(self), "answer": self.answer, "unchecked": self.unchecked}
        replace_file(FilePath(path), sealed_tensors({"targets": self.targets} | tensors, facts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attributions:
        """Read what ``save`` wrote, on the CPU.

        Raises:
            InvalidData: no such file; damaged, or of another kind.
        """
        try:
            tensors, facts = unsealed_tensors(FilePath(path))
            if facts.get("format") != _FORMAT:
                raise ValueError("it holds something else")
            targets, order = tensors.pop("targets"), facts["layers"]
            found = {
                part: {layer: tensors[f"{part}/{layer}"] for layer in order if f"{part}/{layer}" in tensors}
                for part in _PARTS
            }
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidData(
                f"{os.fspath(path)} cannot be read as attributions: {error}; give a file of Attributions.save"
            ) from error
        answer, unchecked = (str(facts.get(name, "")) for name in ("answer", "unchecked"))
        return cls(targets=targets, **found, answer=answer, unchecked=unchecked)


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
        names, preprocess, model = class_names(model), getattr(model, "preprocess", None), explainable(model)
        require_images(images, model)
        told = require_kind(Mapping[str, str | Layout] | None, layouts, "layouts", InvalidParameter) or {}
        rules = (*self.backward_rules, *as_variant(variant).rules, FrozenBatchNorm())
        with Guard() as guard, guard.inference(False):
            images = placed(images.clone() if images.is_inference() else images.detach(), model)
            _warn_if_half(images)
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
        network, layers = self._network(asking, max_batch)
        keys, parts = asking.keys, []
        for origin in torch.arange(len(network.images), device=network.images.device).split(network.max_batch):
            rows = origin.tolist()
            points = Points(network.images[origin], origin, tuple(keys[row] for row in rows))
            parts.append(self._evaluate(network, self.samplings, points, layers))
        attributions, residuals, prefixes = {}, {}, {}
        for layer in _whole(layers, parts):
            attribution = _joined([part[layer].attribution for part in parts])
            size = torch.linalg.vector_norm(attribution.flatten(1), ord=1, dim=1)
            network.require_finite(size, layer)
            # What was found in half precision may be reduced and compared in no less than single.
            exact = torch.promote_types(network.images.dtype, torch.float32)
            maps, prefix = network.split(layer, attribution.to(exact))
            attributions[layer] = maps.contiguous()
            if prefix.numel():
                prefixes[layer] = prefix.contiguous()
            expected = [part[layer].expected for part in parts]
            if all(value is not None for value in expected):
                wanted = _joined([value for value in expected if value is not None])
                residuals[layer] = attribution.flatten(1).sum(1) - wanted
                _warn_if_incomplete(layer, size, residuals[layer], wanted, self.promise)
            thresholded = any(rule.alters_gradient for rule in self.backward_rules)
            remedies = ["lower a threshold such as q"] if thresholded else []
            if (
                prefix.numel()
                and not bool(maps.any())
                and (bool(prefix.any()) or network.reads_prefix_alone(layer))
            ):
                _warn_of_prefix(layer, len(maps))
            else:
                _warn_if_empty(layer, size, "; ".join([*remedies, "choose another layer", *sorted(network.notes)]))
                _warn_if_flat(layer, attributions[layer], size)
                _warn_if_canceled(layer, attributions[layer])
            _warn_if_patterned(layer, attributions[layer], asking.rules)
        if self.is_for_hidden and INPUT in layers:
            _warn_of_image(type(self).__name__)
        unchecked = "" if residuals else self._unchecked(network, tuple(attributions), asking)
        return Attributions(attributions, network.targets, residuals, prefixes, asking.answer, unchecked)

    def _unchecked(self, network: Network, layers: Sequence[str], asking: _Asking) -> str:
        """Why no sum is promised of a method that by itself would promise one.

        What its rules miss is then looked for where the sums of a few images show it: without the rules that
        change them.
        """
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
            origin = torch.arange(len(few.images), device=few.images.device).split(few.max_batch)[0]
            points = Points(few.images[origin], origin, asking.keys[: len(origin)])
            for layer, estimate in self.leaf(few, points, layers).items():
                found, expected = estimate.attribution.flatten(1), estimate.expected
                assert expected is not None
                size = torch.linalg.vector_norm(found, ord=1, dim=1)
                residual = found.sum(1) - expected
                _warn_if_incomplete(layer, size, residual, expected, self.promise, f"without {without} ")
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
        into = row.unique() if summed else row
        self._added.update(estimates.keys())
        for layer, estimate in estimates.items():
            found = estimate.attribution
            terms = (found,) if summed else self._sampling.terms(found, draw)
            if layer not in self._sums:
                self._sums[layer] = tuple(term.new_zeros(self._rows, *term.shape[1:]) for term in terms)
            for total, term in zip(self._sums[layer], terms, strict=True):
                total.index_add_(0, into, term)
            if estimate.expected is not None and self._sampling.keeps_sum:
                total = self._expected.setdefault(layer, estimate.expected.new_zeros(self._rows))
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
        index = torch.arange(start, min(start + size, total), device=device)
        if tied or sampling.needs_reference:  # point by point, so that the draws of a chunk share few points
            yield index // sampling.draws, index % sampling.draws
        else:  # draw by draw: rows with one seed share the noise of a draw
            yield index % rows, index // rows


def _drawn(network: Network, sampling: Sampling, points: Points, row: Tensor, draw: Tensor, tied: bool) -> Points:
    """The points of the given draws of the given rows, tied to these rows if that saves anything."""
    which, of = row.unique(return_inverse=True)
    chosen = Points(points.values[which], points.origin[which], ())
    references = (
        network.reference_at(sampling.baseline, points.layer, chosen) if isinstance(sampling, Path) else None
    )
    draws, keys = draw.tolist(), [points.keys[r] for r in row.tolist()]
    move = partial(sampling.points, of=of, draw=draws, keys=keys)
    values = move(chosen.values, references)
    drawn = Points(values, points.origin[row], tuple(map(fold_in, keys, draws)), points.layer)
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
    return {name: one if isinstance(one, Layout) else None for name, one in found.items()}


def _refuse_or_skip(layer: str, is_named: bool, why: str, level: int) -> None:
    """Raise ``InvalidLayer`` if the layer was named outright; else warn that it has no map."""
    if is_named:
        raise InvalidLayer(why)
    warnings.warn(SkippedLayerWarning(why, layer), stacklevel=level)


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


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _warn_if_half(images: Tensor) -> None:
    device, dtype = images.device.type, images.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype in (torch.bfloat16, torch.float16):
        message = (
            f"the model computes in {str(dtype).removeprefix('torch.')}, whose gradients are off by about a tenth "
            "of their size, at single pixels by up to half of the largest; for exact maps explain it in float32"
        )
        warnings.warn(PrecisionWarning(message), stacklevel=3)


def _warn_if_incomplete(
    layer: str, size: Tensor, residual: Tensor, expected: Tensor, promise: tuple[str, str], how: str = ""
) -> None:
    # Where logits hardly differ, the residual is held against the size of what cancels.
    share = residual.abs() / torch.maximum(expected.abs(), size / 100).clamp_min(torch.finfo(expected.dtype).tiny)
    worst = int(share.argmax())
    if share[worst] > TOLERANCE:
        cancels = bool(size[worst] / 100 > expected[worst].abs())
        of = "a hundredth of the sum of magnitudes" if cancels else f"this {promise[0].rpartition(' ')[2]}"
        message = (
            f"at {layer!r} {how}the attribution of image {worst} sums to "
            f"{float(expected[worst] + residual[worst]):.4g}, "
            f"not to the {promise[0]} {float(expected[worst]):.4g}: off by {float(residual[worst]):+.3g}, "
            f"{float(share[worst]):.1%} of {of}. {promise[1]}"
        )
        warnings.warn(CompletenessWarning(message, layer), stacklevel=5)


def _warn_of_prefix(layer: str, images: int) -> None:
    """Where a class token alone is read, no place has a gradient, whatever the method."""
    message = (
        f"at {layer!r} the attribution of {images} of {images} images is zero at all places: only the class token "
        "is read after this layer; take the block before"
    )
    warnings.warn(TokenWarning(message, layer), stacklevel=5)


def _warn_if_empty(layer: str, size: Tensor, remedy: str) -> None:
    empty = (size == 0).nonzero()[:, 0].tolist()
    if empty:
        message = (
            f"at {layer!r} the attribution of {len(empty)} of {len(size)} images is zero everywhere "
            f"(first: image {empty[0]}); {remedy}"
        )
        warnings.warn(EmptyMapWarning(message, layer), stacklevel=5)


def _warn_if_flat(layer: str, maps: Tensor, size: Tensor) -> None:
    if maps.dim() != 4 or maps[0, 0].numel() < 2:
        return
    maps = maps[size > 0]
    # Two corners tell most maps apart, so that few are looked at whole.
    if len(maps) and torch.equal(maps[..., 0, 0], maps[..., -1, -1]) and bool((maps == maps[..., :1, :1]).all()):
        message = (
            f"at {layer!r} the attribution has one value at all places of a channel, so its map is of one color: "
            "only an average over places comes after the layer; take gradcam or input_x_gradient there, or an "
            "earlier layer"
        )
        warnings.warn(FlatMapWarning(message, layer), stacklevel=5)


def _warn_of_image(method: str) -> None:
    message = (
        f"at {INPUT!r} a map of {method} is the image's own channels, weighed, whatever the network looks at: "
        "name hidden layers"
    )
    warnings.warn(ImageMapWarning(message, INPUT), stacklevel=5)


def _warn_if_canceled(layer: str, maps: Tensor) -> None:
    # The places of one row tell most maps apart, so that few are looked at whole.
    if maps.dim() != 4 or maps.shape[1] == 1 or not bool(cancels(maps[:, :, maps.shape[2] // 2, None]).any()):
        return
    images = int(cancels(maps).sum())
    if images:
        message = (
            f"at {layer!r} the channels of the attribution cancel everywhere in {images} of {len(maps)} images, "
            "as a gradient's do below a layer norm, so their signed mean or sum shows nothing: take "
            "heatmap(channels='abs_sum'), or another method, such as deeplift"
        )
        warnings.warn(CanceledMapWarning(message, layer), stacklevel=5)


def _warn_if_patterned(layer: str, maps: Tensor, rules: Sequence[Rule]) -> None:
    """Warn where of each 2 x 2 or 3 x 3 places one still gets less than another, though a variant levels them."""
    leaves_first = layer == INPUT and any(rule.leaves_first for rule in rules)
    if not leaves_first and not any(isinstance(rule, SmoothedDownsampling) for rule in rules):
        return
    if maps.dim() != 4 or min(maps.shape[2:]) < _LEAST_PATTERNED:
        return
    magnitude = maps.abs().mean((0, 1))
    for period, other in ((2, "other"), (3, "third")):  # a step of 4 shows at 2
        rows, columns = (side // period * period for side in magnitude.shape)
        tiles = F.pixel_unshuffle(magnitude[None, :rows, :columns], period)
        means, errors = tiles.mean((1, 2)), tiles.flatten(1).std(1) / math.sqrt(tiles[0].numel())
        apart = means.max() - means.min()
        if apart > _UNLEVEL * means.mean() and apart > _SURE * errors.max():
            why = (
                "the variant leaves the network's first convolution as it is; take backward_with_first or "
                "forward_with_first, or a hidden layer"
                if leaves_first
                else "something above steps over places in a way that the variant leaves as it is, such as an "
                "index, interpolate, reshape and permute, or a pooling (SmoothedDownsampling(pooling=True)); "
                f"write it as x[:, :, ::{period}, ::{period}]"
            )
            message = (
                f"at {layer!r} every {other} place still gets {float(means.min() / means.max()):.0%} of what its "
                f"neighbor gets: {why}"
            )
            warnings.warn(PatternWarning(message, layer), stacklevel=5)
            return
