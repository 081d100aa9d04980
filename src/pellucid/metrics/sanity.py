"""Does a map depend on the model's weights? Similarity and faithfulness of the maps of randomized copies."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import InvalidParameter, LayerWarning, NotFinite, require_choice
from ..heatmap import heatmap
from ..methods.attributions import Attributions
from ..methods.repeatable import take_over
from .base import Axis, Case, Measured, Metric, SharedMetric
from .faithfulness import Deletion, Faithfulness, Insertion, StepCount
from .perturbation import Fill
from .randomization import RandomizationOrder, RandomizationWay, cascade, require_own_modules, require_way
from .similarity import HOG_SIZE, WINDOW, correlation, enlarged, hog, mid_ranks, min_max, ssim

_Target = Literal["same", "argmax"]
_Part = Literal["heatmap", "attribution"]

# Values compared at a time, so that the many channels of a hidden layer do not fill the memory.
_COMPARED = 2**22


@dataclass(frozen=True, kw_only=True)
class Cascade(SharedMetric):
    """What becomes of the maps when the model is randomized layer by layer (``cascade``).

    ``order``, ``way``, ``seed``, ``groups``, ``biases`` and ``drift`` are those of ``cascade``. ``target``: a
    copy explains the ``"same"`` class as the model (Wienecke & Hinrichs), or its own ``"argmax"`` (Adebayo et
    al., Smooth Deep Saliency). Metrics of a case that agree in these settings share the copies' maps.

    ``curve`` is what each step gives, after 0, 1, ... groups; ``steps`` names the group that each adds, or, if
    ``"independent"``, the only one that is random. A step is NaN where the map is constant, or where the copy's
    logits or gradients overflow so that there is none; ``values`` sum up the other steps.
    """

    order: RandomizationOrder = "cascading"
    way: RandomizationWay = "moments"
    target: _Target = "same"
    seed: int = 0
    groups: Sequence[str] | None = None
    biases: bool = False
    drift: bool = False

    axis: ClassVar[Axis] = "sanity"
    undefined = (
        "the map is constant, or the map of every randomised copy is; or the variant is a surrogate, whose paths "
        "were trained for the model's own weights and fit no randomised copy"
    )

    def __post_init__(self) -> None:
        require_way(self.order, self.way, self.biases, self.drift)
        require_choice("target", self.target, _Target)
        if self.groups is not None and not isinstance(self.groups, str):
            object.__setattr__(self, "groups", tuple(self.groups))  # hashable

    @abstractmethod
    def grade(self, case: Case, step: Case) -> Mapping[str, Tensor]:
        """The value (B,) of a copy's maps, or of the model's own, at each layer."""

    @abstractmethod
    def sum_up(self, curve: Tensor) -> Tensor:
        """The metric's value (B,) from those of all steps (B, n); the first is the model's own."""

    @property
    def asks(self) -> tuple[Metric, ...]:
        """Metrics that ``grade`` measures at each step."""
        return ()

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image and layer, from one explanation of every copy for all metrics that share it."""
        if case.variant.bound:
            # This is so at the first steps, too, which randomize only what lies above the
            # paths: a mean over these alone would not compare with the other variants'.
            nowhere = Measured(case.images.new_full((len(case.images),), torch.nan))
            return dict.fromkeys(case.layers, nowhere)
        return SharedMetric.measure(self, case)

    @property
    def sharing(self) -> Hashable:
        """Metrics of equal cascades share the copies' maps."""
        return "cascade", *(getattr(self, setting.name) for setting in fields(Cascade))

    def copies(self, model: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
        """The randomized copies."""
        groups, biases, drift = self.groups, self.biases, self.drift
        return cascade(model, self.order, self.way, self.seed, groups=groups, biases=biases, drift=drift)

    def measure_all(self, case: Case, metrics: Sequence[Cascade]) -> Mapping[Cascade, dict[str, Measured]]:
        """All metrics of equal cascades; only their values outlive a step."""
        names, asked = ["original"], tuple(asked for metric in metrics for asked in metric.asks)
        grades = {metric: [metric.grade(case, case)] for metric in metrics}
        targets = "auto" if self.target == "argmax" else case.targets
        for randomized, copy in self.copies(case.explained):
            if len(names) == 1:
                require_own_modules(copy, case.images[:1])
            names.append(randomized[-1])
            # Whether it is repeatable and which layouts it has does
            # not depend on weights, so that copies are not tried anew.
            take_over(copy, case.explained)
            # What the case shares, such as heatmaps, is of the model's own maps; a step begins with nothing.
            step = replace(case, attributions=_explained(case, copy, targets), metrics=asked, _shared={})
            for metric in metrics:
                grades[metric].append(metric.grade(case, step))
        return {metric: metric._by_layer(grades[metric], names) for metric in metrics}

    def _by_layer(self, grades: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Measured]:
        curves = {layer: torch.stack([grade[layer] for grade in grades], 1) for layer in grades[0]}
        steps = range(len(names)), tuple(names)
        return {layer: Measured(self.sum_up(curve), curve, *steps) for layer, curve in curves.items()}


def _explained(case: Case, model: nn.Module, targets: Any) -> Attributions:
    """A copy's attributions; zero for the images whose logits or gradients overflow in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerWarning)  # a random model's maps may be empty or incomplete
        try:
            return case.explain(model, targets=targets)
        except NotFinite:
            # One image does not spoil the others of its batch.
            rows = [_row(case, model, targets, slice(i, i + 1)) for i in range(len(case.images))]
    joined = {layer: torch.cat([row[layer] for row in rows]) for layer in case.layers}
    return Attributions(joined, torch.cat([row.targets for row in rows]))


def _row(case: Case, model: nn.Module, targets: Any, one: slice) -> Attributions:
    try:
        classes = targets if isinstance(targets, str) else targets[one]
        return case.explain(model, case.images[one], classes, case.seeds and case.seeds[one])
    except NotFinite:
        empty = {layer: torch.zeros_like(value[one]) for layer, value in case.attributions.items()}
        return Attributions(empty, case.targets[one])


@dataclass(frozen=True, kw_only=True)
class Similarity(Cascade):
    """How alike the copies' maps are to the model's: the mean over all steps; high if weights matter little.

    ``part``: ``"heatmap"`` compares what is shown, the channels reduced as the case says, at the layer's own
    size; ``"attribution"`` all channels together, as the papers do at the input.
    """

    part: _Part = "heatmap"

    unit = "similarity"
    ends = (-1, 1)
    higher_is_better = False

    def __post_init__(self) -> None:
        Cascade.__post_init__(self)
        require_choice("part", self.part, _Part)

    @abstractmethod
    def form(self, maps: Tensor) -> Tensor:
        """What of maps (B, C, h, w) is compared; the model's own is computed once for all copies."""

    @abstractmethod
    def compare(self, original: Tensor, randomized: Tensor) -> Tensor:
        """Similarity (B,) of two forms; NaN where a map is constant."""

    def grade(self, case: Case, step: Case) -> Mapping[str, Tensor]:
        """The similarity at each layer."""
        found = {}
        for layer in case.layers:
            maps = [self._part(each, layer) for each in (case, step)]
            # Small maps are enlarged to at least the side of one block of HOG, and that is what takes the memory.
            sides = [max(side, HOG_SIZE) for side in maps[0].shape[2:]]
            rows = max(1, _COMPARED // (maps[0].shape[1] * sides[0] * sides[1]))
            if rows >= len(maps[0]):
                own = case.once((self, layer), partial(self.form, maps[0]))
                found[layer] = self.compare(own, self.form(maps[1]))
            else:
                pairs = zip(*(each.split(rows) for each in maps), strict=True)
                found[layer] = torch.cat([self.compare(*map(self.form, pair)) for pair in pairs])
        return found

    def _part(self, case: Case, layer: str) -> Tensor:
        attribution = case.attributions[layer]
        return attribution if self.part == "attribution" else heatmap(attribution, None, case.channels)[:, None]

    def sum_up(self, curve: Tensor) -> Tensor:
        """The mean over the copies, in the similarity's own range."""
        return curve[:, 1:].nanmean(1)


@dataclass(frozen=True, kw_only=True)
class CascadeSSIM(Similarity):
    """SSIM of the maps, each scaled to [0, 1] with its signs in order (``min_max``, ``ssim``), in [-1, 1].

    Maps smaller than SSIM's window of 11 are enlarged by a whole factor. ``data_range=2`` gives the papers'
    numbers; 1 is the range that the scaled maps have.
    """

    data_range: float = 2.0

    name = "cascade_ssim"
    paper = "Adebayo et al., Sanity Checks for Saliency Maps; Wienecke & Hinrichs, Sec. 4.4, Fig. 8"

    def __post_init__(self) -> None:
        Similarity.__post_init__(self)
        if not self.data_range > 0:
            raise InvalidParameter(f"data_range={self.data_range}: give 2, as the papers used, or 1")

    def form(self, maps: Tensor) -> Tensor:
        """The scaled maps."""
        return enlarged(min_max(maps), WINDOW)

    def compare(self, original: Tensor, randomized: Tensor) -> Tensor:
        """SSIM."""
        return ssim(original, randomized, self.data_range)


@dataclass(frozen=True, kw_only=True)
class CascadeSpearman(Similarity):
    """Rank correlation of the maps' values, or of their magnitudes if ``absolute`` (``spearman``), in [-1, 1]."""

    absolute: bool = False

    name = "cascade_spearman"
    paper = "Adebayo et al., Sanity Checks for Saliency Maps"

    def form(self, maps: Tensor) -> Tensor:
        """Ranks."""
        return mid_ranks(maps.abs() if self.absolute else maps)

    def compare(self, original: Tensor, randomized: Tensor) -> Tensor:
        """Their correlation."""
        return correlation(original, randomized)


@dataclass(frozen=True, kw_only=True)
class CascadeHOG(Similarity):
    """Rank correlation of the scaled maps' histograms of oriented gradients (``hog_similarity``), in [-1, 1].

    Maps smaller than HOG's one block of 48 are enlarged by a whole factor.
    """

    name = "cascade_hog"
    paper = "Adebayo et al., Sanity Checks for Saliency Maps"

    def form(self, maps: Tensor) -> Tensor:
        """Ranks of the features."""
        return mid_ranks(hog(enlarged(min_max(maps), HOG_SIZE)))

    def compare(self, original: Tensor, randomized: Tensor) -> Tensor:
        """Their correlation."""
        return correlation(original, randomized)


@dataclass(frozen=True, kw_only=True)
class CascadeFaithfulness(Cascade):
    """How much worse the copies' maps explain the trained model than its own do: high if weights matter.

    ``curve`` is the area itself at each step, on the case's scored model and class. A map that does not depend on
    the weights loses nothing: 0. ``order`` etc. as in ``Cascade``; the others are those of the area's metric.
    """

    steps: StepCount = 28

    unit = "mean score"
    higher_is_better = True
    paper = "Smooth Deep Saliency, weight randomisation, Fig. 5 and 11 to 13"

    def __post_init__(self) -> None:
        Cascade.__post_init__(self)
        assert self.area  # its settings are checked

    @property
    @abstractmethod
    def area(self) -> Faithfulness:
        """The metric of a single step."""

    @property
    def asks(self) -> tuple[Metric, ...]:
        """The area; those of several metrics run as one queue."""
        return (self.area,)

    def grade(self, case: Case, step: Case) -> Mapping[str, Tensor]:
        """The area under the trained model's scores."""
        return {layer: found.values for layer, found in self.area.measure(step).items()}

    def sum_up(self, curve: Tensor) -> Tensor:
        """The model's own area less the copies' mean, or the reverse where a low area is good; in [-1, 1]."""
        lost = curve[:, 0] - curve[:, 1:].nanmean(1)
        return lost if self.area.higher_is_better else -lost


@dataclass(frozen=True, kw_only=True)
class CascadeInsertion(CascadeFaithfulness):
    """The insertion area that the maps lose (``Insertion``)."""

    start: Fill = "blur"

    name = "cascade_insertion"

    @property
    def area(self) -> Faithfulness:
        """Insertion."""
        return Insertion(steps=self.steps, start=self.start)


@dataclass(frozen=True, kw_only=True)
class CascadeDeletion(CascadeFaithfulness):
    """The deletion area that the maps gain (``Deletion``)."""

    substrate: Fill = "zero"

    name = "cascade_deletion"

    @property
    def area(self) -> Faithfulness:
        """Deletion."""
        return Deletion(steps=self.steps, substrate=self.substrate)
