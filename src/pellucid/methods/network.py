"""One explanation under way: the model, its rules, the images and their references; runs every pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidLayer, InvalidModel, PellucidError, SkippedLayerWarning, counted
from ..layers import INPUT, Activations, captured, remembered
from ..layouts import Layout
from ..outputs import logits_in
from ..passes import count_rows, is_out_of_memory
from ..rules.base import ReferenceRules, Rule, Rules
from ..rules.draws import DrawnRules, Draws
from ..rules.graph import require_all_met
from ..rules.operations import Counterpart
from ..sampling import Baseline, reference_images
from ..undo import Guard
from .checks import not_finite, require_in_range, same_logits

_STEP = "takes a step without a gradient, such as a comparison (x > 0) or argmax,"


@dataclass(frozen=True)
class Points:
    """Rows at which something is evaluated: images, or activations of ``layer`` (n, ...).

    ``origin`` (n,) tells which image of the call a row came from, ``keys`` its random seed. With ``draws`` only
    sums over the rows are wanted of their gradients, one for each point that they were drawn from. Activations may
    have come from other images than the call's, as from noisy ones: then ``beneath`` holds these, and for each row
    which of them is its own. A skip that passes the layer by begins at them.
    """

    values: Tensor
    origin: Tensor
    keys: tuple[int, ...]
    layer: str = INPUT
    scores: Tensor | None = None  # their explained logits (n,), where already known
    draws: Draws | None = None
    beneath: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def beneath_of(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """What lies beneath some of the rows."""
        return None if self.beneath is None else (self.beneath[0], self.beneath[1][rows])


@dataclass(frozen=True)
class Passed:
    """What one pass found at each row: activations and gradients by layer, and the explained logit (n,).

    Of points with draws, the gradient at their layer is the sum for each point that they were drawn from.
    ``reference`` is what was found at the references beside them.
    """

    activations: Activations
    gradients: dict[str, Tensor]
    scores: Tensor
    reference: Passed | None = None


@dataclass
class Network:
    """A model under rules, asked about the classes ``targets`` (B,) of ``images`` (B, C, H, W)."""

    model: nn.Module
    rules: tuple[Rule, ...]
    images: Tensor
    targets: Tensor
    max_batch: int
    required: frozenset[str] = frozenset()  # layers named outright, which must run
    layouts: dict[str, Layout] = field(default_factory=dict)  # of layers that are not (B, C, h, w) for certain
    notes: set[str] = field(default_factory=set)  # what rules have to say if a map is empty
    _looked: set[str] = field(default_factory=set)  # layers from which hidden operations were looked for
    _in_range: bool = False
    _finite: Tensor | bool = True
    _copies: bool = False  # whether rules must keep copies
    _baselines: dict[Any, Tensor] = field(default_factory=dict)
    _references: dict[Any, Passed] = field(default_factory=dict)
    _entered: set[str] = field(default_factory=set)  # layers at which rows were seen to enter
    _spanned: set[str] = field(default_factory=set)  # layers that something from below passes by

    def forward(self, points: Points, layers: Sequence[str]) -> Passed:
        """Activations and explained logits at the points, without gradients."""
        activations, logits = self.logits(points, layers)
        return Passed(activations, {}, self._scores(logits, points.origin))

    def logits(self, points: Points, layers: Sequence[str] = ()) -> tuple[Activations, Tensor]:
        """Activations, and logits of all classes (n, classes), at the points, without gradients."""
        with torch.no_grad():
            return self._run(points.values, points, layers)

    def span(self, layer: str) -> None:
        """Have rows that enter at a layer run beside their images, since something from below passes it by."""
        self._entered.discard(layer)
        self._spanned.add(layer)

    def gradients(self, points: Points, layers: Sequence[str], reference: Baseline | None = None) -> Passed:
        """Gradients of the explained logits at all layers, from one forward and one backward pass.

        With a reference a second forward pass runs over the points' references, beside which DeepLIFT's rules
        hold the first.
        """
        try:
            return self._differentiate(points, layers, reference)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # The message is torch's own, whose error has no public class.
            if "heckpoint" in str(error):
                raise InvalidModel(
                    f"gradient checkpointing must be switched off in this model: {error}"
                ) from error
            # Whatever else fails may be an input that was overwritten;
            # only where copies did not help it is the model's own.
            if self._copies:
                said = (str(error).splitlines() or [""])[0]
                raise InvalidModel(f"the model cannot be differentiated: {said}") from error
        # The model overwrites in place what a rule's backward pass needs: once more, with copies.
        self._copies = True
        return self.gradients(points, layers, reference)

    def _differentiate(self, points: Points, layers: Sequence[str], reference: Baseline | None) -> Passed:
        beside: dict[int, Counterpart] | None = None if reference is None else {}
        with torch.enable_grad():
            values = points.values.detach()
            if points.draws is not None:
                # The graph begins at the points that were drawn from, so
                # that gradients arrive there, summed over their draws.
                draws = replace(points.draws, points=points.draws.points.detach().requires_grad_())
                activations, logits = self._run(draws.tied(lambda: values), replace(points, draws=draws), layers)
                activations[points.layer] = draws.points
            else:
                # Nobody asks for the image's gradient where only hidden layers
                # are explained, so nothing below them is differentiated.
                if points.layer in layers:
                    values.requires_grad_()
                activations, logits = self._run(values, points, layers, beside)
            scores = self._scores(logits, points.origin)
            there = None if reference is None else self._beside(points, layers, reference, beside)
            # No image's logits depend on another image (``require_repeatable``),
            # so the gradient of the sum holds each image's own.
            gradients = self._gradients(scores.sum(), activations, layers)
            return Passed(activations, gradients, scores.detach(), there)

    def _beside(
        self, points: Points, layers: Sequence[str], baseline: Baseline, beside: dict[int, Counterpart] | None
    ) -> Passed:
        """The pass over the points' references, which fills in what rules asked for in the points' own."""
        rows = self.reference_at(baseline, points.layer, points).expand_as(points.values).contiguous()
        with torch.no_grad():
            there = replace(points, beneath=self._beneath_references(baseline, points))
            activations, logits = self._run(rows, there, layers, beside, ReferenceRules)
        return Passed(activations, {}, self._scores(logits, points.origin))

    def _beneath_references(self, baseline: Baseline, points: Points) -> tuple[Tensor, Tensor]:
        """The images beneath the points' references."""
        images = self._reference_images(baseline)
        return images, points.origin if len(images) > 1 else torch.zeros_like(points.origin)

    def _gradients(self, score: Tensor, activations: Activations, layers: Sequence[str]) -> dict[str, Tensor]:
        for layer in [layer for layer in layers if layer in activations and not activations[layer].requires_grad]:
            self._refuse(layer, f"layer {layer!r} runs under torch.no_grad or {_STEP} so no gradient reaches it")
        wanted = [layer for layer, value in activations.items() if value.requires_grad]
        if not score.requires_grad:
            raise InvalidModel(
                "the logits carry no gradient: the model detaches them, runs under torch.no_grad or "
                f"torch.inference_mode, or {_STEP} at its end; let it run with gradients, or explain what comes "
                "before that step"
            )
        # One backward pass gives the gradients of all layers, also of those that lie above others.
        found = torch.autograd.grad(score, [activations[layer] for layer in wanted], allow_unused=True)
        gradients = {
            layer: gradient for layer, gradient in zip(wanted, found, strict=True) if gradient is not None
        }
        for layer in [layer for layer in wanted if layer not in gradients]:
            self._refuse(
                layer,
                f"no gradient reaches layer {layer!r}: the explained class does not depend on it, or part of the "
                f"model detaches, runs under torch.no_grad or {_STEP} on the way",
            )
        return gradients

    def _refuse(self, layer: str, why: str) -> None:
        """Raise ``InvalidLayer`` if the layer was named outright; else leave it out, with a warning."""
        if layer in self.required:
            raise InvalidLayer(f"{why}; leave it out")
        warnings.warn(SkippedLayerWarning(f"{why}; it has no map", layer), stacklevel=2)

    def reference_at(self, baseline: Baseline, layer: str, points: Points) -> Tensor:
        """The reference's activation at a layer, a row for each point or one for all."""
        rows = self._reference_images(baseline)
        if layer != INPUT:
            rows = self.reference(baseline, (layer,)).activations[layer]
        # A single reference, as of zeros, stays one row that broadcasts: copies for each point would fill memory.
        return rows[points.origin] if len(rows) > 1 else rows

    def reference_scores(self, baseline: Baseline, points: Points) -> Tensor:
        """The explained logit of each point's reference (n,)."""
        return self.reference(baseline, ()).scores[points.origin]

    def reference(self, baseline: Baseline, layers: Sequence[str]) -> Passed:
        """The references' activations, and their logits of every image's target (B,); computed once."""
        key = id(baseline) if isinstance(baseline, Tensor) else baseline
        known = self._references.get(key)
        if known is not None and all(layer in known.activations for layer in layers):
            return known
        images = self._reference_images(baseline)
        found = Activations({INPUT: images})
        logits = []
        for start in range(0, len(images), self.max_batch):
            rows = torch.arange(start, min(start + self.max_batch, len(images)), device=images.device)
            with torch.no_grad():
                activations, chunk = self._run(images[rows], Points(images[rows], rows, ()), layers)
            logits.append(chunk)
            for layer in [layer for layer in layers if layer in activations]:
                part = activations[layer]
                found[layer] = torch.cat([found[layer], part]) if start else part
        everything = torch.arange(len(self.images), device=images.device)
        # One reference for all images still has another score for each image, that of the image's own target.
        scores = self._scores(torch.cat(logits).expand(len(self.images), -1), everything)
        self._references[key] = Passed(Activations((known.activations if known else {}) | found), {}, scores)
        return self._references[key]

    def _reference_images(self, baseline: Baseline) -> Tensor:
        # A tensor has no hash by value; its method, which lives
        # longer than this call, keeps it and so its identity.
        key = id(baseline) if isinstance(baseline, Tensor) else baseline
        if key not in self._baselines:
            self._baselines[key] = reference_images(baseline, self.images)
        return self._baselines[key]

    @property
    def was_differentiated(self) -> bool:
        """Whether a gradient was asked for."""
        return bool(self._looked)

    def split(self, layer: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's value as the map of its places (B, C, h, w) and its prefix tokens (B, C, prefix)."""
        image = self.images.shape
        return self.layouts.get(layer, Layout()).split(value, (image[-2], image[-1]))

    def join(self, layer: str, maps: Tensor, prefix: Tensor) -> Tensor:
        """The layer's value of which these are the map and the prefix tokens."""
        return self.layouts.get(layer, Layout()).join(maps, prefix)

    def reads_prefix_alone(self, layer: str) -> bool:
        """Whether the model's own gradient at a layer, of the first image, is at prefix tokens and at no place."""
        points = Points(self.images[:1], torch.zeros(1, dtype=torch.long, device=self.images.device), ())
        # The model's own gradient tells it, since a rule or a threshold may empty places for other reasons.
        own = replace(self, rules=(), notes=set(), _looked={layer})
        maps, prefix = self.split(layer, own.gradients(points, (layer,)).gradients[layer])
        return bool(prefix.any()) and not bool(maps.any())

    def require_finite(self, attribution: Tensor, layer: str) -> None:
        """Raise ``InvalidModel`` if a logit met so far, or an attribution, is not finite."""
        if bool(self._finite) and bool(attribution.isfinite().all()):
            return
        if not self._finite:
            raise not_finite(self.model, "a logit")
        # At a reference of zeros a network without biases divides by nearly 0 in each normalization.
        raise not_finite(self.model, f"the attribution at {layer!r}", ", or take another baseline, such as 'blur'")

    @property
    def is_exact(self) -> bool:
        """Whether what propagates back is the gradient of what runs forward."""
        return not any(rule.alters_gradient for rule in self.rules)

    def at(self, points: Points, passed: Passed, layer: str) -> Points:
        """The points' images, as points of a captured layer."""
        beneath = points.values, torch.arange(len(points), device=points.values.device)
        there = replace(
            points, values=passed.activations[layer], layer=layer, scores=passed.scores, beneath=beneath
        )
        self._try_to_enter(there)
        self._require_no_other_reader(layer)
        return there

    def _require_no_other_reader(self, layer: str) -> None:
        """Refuse a layer whose output is read by another way, as by a hook that keeps it: rows do not enter there.

        The model's own gradient at the layer then holds less where the very rows that it gave enter. Tried with
        the first image, once for a layer of a model.
        """
        known = remembered(self.model, "read by one way")
        if layer in known:
            return
        own = replace(self, rules=(), notes=set(), _looked={layer}, _entered=set(self._entered))
        points = Points(self.images[:1], torch.zeros(1, dtype=torch.long, device=self.images.device), ())
        passed = own.gradients(points, (layer,))
        beneath = points.values, points.origin
        there = replace(points, values=passed.activations[layer].detach(), layer=layer, beneath=beneath)
        entered = own.gradients(there, (layer,)).gradients
        if not same_logits(entered.get(layer, torch.zeros(())), passed.gradients[layer]):
            raise InvalidLayer(
                f"what layer {layer!r} gives is read by another way, too, as by a hook or attribute that keeps "
                "it, where points drawn at the layer would not arrive; draw them at the input (space='input')"
            )
        known[layer] = True

    def _try_to_enter(self, points: Points) -> None:
        """Find out whether rows that enter at a layer give the logits that they are known to have.

        Where nothing passes below, what a model does for each image that it saw there is left out: a loop over
        images, rows chosen by an earlier feature. Other images may be chosen than before, so that all are tried.
        """
        if points.layer in self._spanned or points.scores is None:
            return
        # The scores came from the full pass that captured these
        # very rows, so entering with them must give the same again.
        found = self.forward(points, ()).scores
        if points.layer in self._entered and not same_logits(found, points.scores):
            self.span(points.layer)

    def _run(
        self,
        values: Tensor,
        points: Points,
        layers: Sequence[str],
        beside: dict[int, Counterpart] | None = None,
        kind: type[Rules] = Rules,
    ) -> tuple[Activations, Tensor]:
        make = partial(self._rules, kind, points, beside)
        if points.layer == INPUT:
            # A clone: the model's first operation may be in place.
            activations, logits = self._pass(values.clone(), layers, {}, make)
            activations[INPUT] = values
            return activations, logits
        # The rows enter at their layer. An empty batch flows through the network below it, which therefore
        # costs nothing; what it cannot do is pass the layer by, on a skip connection.
        injected = {points.layer: values}
        if points.layer not in self._spanned:
            try:
                activations, logits = self._pass(self.images[:0], layers, injected, make)
                # The first time the logits must also be finite: an empty
                # batch has a mean of NaN, which a skip may bring to the rows.
                if len(logits) == len(values) and (points.layer in self._entered or bool(logits.isfinite().all())):
                    self._entered.add(points.layer)
                    return activations, logits
            except PellucidError:
                raise
            except Exception as error:  # whatever a model makes of an empty batch: the full pass will tell
                if is_out_of_memory(error):
                    raise
            self._spanned.add(points.layer)
        images, row = points.beneath or (self.images, points.origin)
        return self._pass(images[row], layers, injected, make)

    def _rules(
        self, kind: type[Rules], points: Points, beside: dict[int, Counterpart] | None, rows: Tensor
    ) -> Rules:
        given, draws, count = (self.rules, self._copies, self.model), points.draws, len(points.origin)
        if draws is not None:
            return DrawnRules(*given, rows, draws, count)
        if beside is not None and kind is Rules:
            beside.clear()  # of an attempt that failed
        return kind(*given, beside, count)

    def _pass(
        self,
        images: Tensor,
        layers: Sequence[str],
        injected: dict[str, Tensor],
        make: Callable[[Tensor], Rules],
    ) -> tuple[Activations, Tensor]:
        # The pass computes from the rows that enter at a layer, or from the images.
        rules = make(next(iter(injected.values()), images))
        with Guard(), captured(self.model, layers, injected) as activations, rules:
            output = self.model(images)
        rules.require_all_applied()
        self.notes |= rules.notes
        logits = logits_in(output)
        count_rows(len(logits))
        # Once for each start is enough, since all passes of a call run the same operations;
        # the walk through the graph costs as much as a small pass.
        if logits.requires_grad and not self._looked.issuperset(begin := {*injected, *layers}):
            require_all_met(rules, logits, [images, *activations.values()])
            self._looked |= begin
        for layer in layers:
            if layer != INPUT and layer not in activations and layer in self.required:
                raise InvalidLayer(f"layer {layer!r} did not run in the forward pass; choose one that does")
        if len(images):  # none where rows enter above
            self._require_rows(activations, len(images))
        return activations, logits

    def _require_rows(self, activations: Activations, count: int) -> None:
        """Refuse layers that do not give a row for each image."""
        for layer in [layer for layer, value in activations.items() if value.shape[:1] != (count,)]:
            rows = counted(activations.pop(layer).shape[:1].numel(), "row")
            self._refuse(
                layer,
                f"layer {layer!r} gives {rows} for {counted(count, 'image')}, as one that runs for some images "
                "alone, so which row is whose is unknown; name the block that holds it",
            )

    def _scores(self, logits: Tensor, origin: Tensor) -> Tensor:
        if not self._in_range:  # once: on a GPU the comparison waits for the device
            require_in_range(self.targets, logits.shape[1])
            self._in_range = True
        scores = logits.gather(1, self.targets[origin][:, None])[:, 0]
        # Gathered, not asked: asking would make every pass wait for the device.
        self._finite = self._finite & logits.detach().isfinite().all()
        return scores
