"""``Metric``: a case -> one value per image at each layer; ``Case``, all that a metric may ask about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor

from ..errors import InvalidParameter, InvalidTarget, require_choice
from ..heatmap import Channels, Upsampling, clip_percentiles, heatmap
from ..layouts import Layout
from ..methods.attributions import Attributions
from ..methods.base import Method
from ..passes import DEFAULT_MAX_BATCH, MaxBatch
from ..variants.base import ORIGINAL, Variant
from .scoring import Scorer

if TYPE_CHECKING:
    from ..data.sources import Box

Axis = Literal["noise", "faithfulness", "sanity", "localization", "occlusion", "sensitivity", "fidelity", "edges"]
Need = Literal["masks", "boxes", "labels"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Measured:
    """A metric at one layer: ``values`` (B,), NaN where it is undefined, and the curves they sum up.

    ``curve`` (B, n) holds what was measured at the ``n`` positions ``at``, such as the fractions of pixels
    inserted; ``steps`` names them where they have names, such as the layers randomized. ``compared``
    (B, C, h, w) are the attributions that the case's were compared with, so that both can be drawn.
    """

    values: Tensor
    curve: Tensor | None = None
    at: Sequence[float] = ()
    steps: Sequence[str] = ()
    compared: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A method's attributions of a batch of images, and all that metrics may ask about them.

    Attributes:
        scorer: the model that is scored, which need not be the one that was explained.
        scored: the class (B,) of each image whose score is followed.
        method, explained, variant, seed, layouts: what made the attributions; ``explain`` calls it again. The
            noise of all images is the seed's, or each image's its own of ``seeds``.
        images: (B, C, H, W), as the model takes them.
        attributions: by layer, with the explained ``targets`` (B,).
        labels: true classes (B,), where known.
        masks: (B, H, W), True on the object, where known.
        boxes: each image's objects as (x0, y0, x1, y1) in pixels of ``images``, where known.
        names: of the images, for messages.
        channels, upsampling: how attributions become heatmaps (``pellucid.heatmap``).
        metrics: all that will be measured, so that those which can run together do.
    """

    method: Method | None  # None where the variant alone is graded
    explained: Any  # nn.Module
    images: Tensor
    attributions: Attributions
    scorer: Scorer
    scored: Tensor
    variant: Variant = ORIGINAL
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    max_batch: MaxBatch = DEFAULT_MAX_BATCH
    layouts: Mapping[str, str | Layout] = field(default_factory=dict)
    labels: Tensor | None = None
    masks: Tensor | None = None
    boxes: Sequence[Sequence[Box]] | None = None
    names: Sequence[str] = ()
    channels: Channels = "mean"
    upsampling: Upsampling = "nearest"
    metrics: tuple[Criterion, ...] = ()
    _shared: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def targets(self) -> Tensor:
        """The explained classes (B,).

        Raises:
            InvalidTarget: what was explained is no class, but a difference or a function's value.
        """
        if self.attributions.answer:
            raise InvalidTarget(
                f"these maps explain {self.attributions.answer!r}, which is no class of the model, so that no "
                "other can be explained beside it; explain pellucid.Classifier(model, target) at its one output"
            )
        return self.attributions.targets

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers explained."""
        return tuple(self.attributions)

    @property
    def _noise(self) -> int | tuple[int, ...]:
        return self.seed if self.seeds is None else self.seeds

    def once(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """What several metrics share, computed by the first that asks."""
        if key not in self._shared:
            self._shared[key] = compute()
        return cast(_T, self._shared[key])

    def heatmaps(self, layer: str) -> Tensor:
        """The heatmaps (B, H, W) of a layer, of the images' size."""
        return self.once(("heatmaps", layer), lambda: self.heatmap(self.attributions[layer]))

    def heatmap(
        self, attribution: Tensor, channels: Channels | None = None, clip: tuple[float, float] | None = None
    ) -> Tensor:
        """An attribution as a heatmap of the images' size; ``channels`` None reduces them as the case says."""
        height, width = self.images.shape[-2:]
        return heatmap(attribution, (height, width), channels or self.channels, self.upsampling, clip)

    def explain(
        self,
        model: Any = None,
        images: Tensor | None = None,
        targets: Any = None,
        seeds: Sequence[int] | None = None,
    ) -> Attributions:
        """The method again at the same layers, with another model, other images or other classes.

        Fewer images come with their own ``seeds``. ``InvalidParameter`` where there are maps and no method.
        """
        if self.method is None:
            raise InvalidParameter(
                "this metric explains again, and the case has maps and no method; give "
                "method=pl.External(function), or choose a metric that grades maps alone"
            )
        return self.method(
            self.explained if model is None else model,
            self.images if images is None else images,
            self.targets if targets is None else targets,
            self.layers,
            variant=self.variant,
            seed=self._noise if seeds is None else seeds,
            max_batch=self.max_batch,
            layouts=self.layouts,
        )


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """What maps or models are graded by: the facts of the catalogue, and a dataclass of its settings.

    A value that is undefined is NaN, and ``undefined`` says why that happens; statistics leave such values out
    and count them. ``ends`` are the least and the greatest value there can be, None where there is none:
    intervals end there.
    """

    name: ClassVar[str]
    axis: ClassVar[Axis]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    paper: ClassVar[str]
    undefined: ClassVar[str] = ""
    ends: ClassVar[tuple[float | None, float | None]] = (None, None)
    needs: ClassVar[frozenset[Need]] = frozenset()
    of_model: ClassVar[bool] = False  # grades the variant, not a map: one value per image, at no layer


@dataclass(frozen=True, kw_only=True)
class Metric(Criterion):
    """A criterion that is measured on a case: one value per image at each layer."""

    @abstractmethod
    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One result for each layer of the case."""


@dataclass(frozen=True, kw_only=True)
class VariantMetric(Criterion):
    """A criterion of the variant itself, whatever the map: one value per image, at no layer."""

    of_model = True

    @abstractmethod
    def values(self, case: Case) -> Tensor:
        """One value per image (B,)."""


@dataclass(frozen=True, kw_only=True)
class MapMetric(Metric):
    """A metric that grades the maps of each layer alone."""

    @abstractmethod
    def values(self, maps: Tensor, case: Case) -> Tensor:
        """One value per image (B,) of the maps of one layer; ``case`` tells what else is known of the images."""

    def maps(self, case: Case, layer: str) -> Tensor:
        """The maps that are graded: the layer's heatmaps (B, H, W)."""
        return case.heatmaps(layer)

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image and layer; raises what ``values`` raises."""
        return {layer: Measured(self.values(self.maps(case, layer), case)) for layer in case.layers}


@dataclass(frozen=True, kw_only=True)
class ProcessedMapMetric(MapMetric):
    """A metric of heatmaps that are processed first, as RectGrad does.

    ``channels`` reduces the attribution, None as the case does; ``clip`` gives two percentiles
    (``pellucid.clip_percentiles``), (95, 100) for RectGrad's baselines, or None.
    """

    channels: Channels | None = None
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            require_choice("channels", self.channels, Channels)
        if self.clip is not None:
            clip_percentiles(torch.zeros(1, 1, 1), *self.clip)  # refuses what are no percentiles

    def maps(self, case: Case, layer: str) -> Tensor:
        """The layer's processed maps (B, H, W), of the images' size."""
        return case.heatmap(case.attributions[layer], self.channels, self.clip)


@dataclass(frozen=True, kw_only=True)
class SharedMetric(Metric):
    """A metric whose work is shared: those of a case with an equal ``sharing`` are measured at once."""

    @property
    @abstractmethod
    def sharing(self) -> Hashable:
        """The name of the family, and the settings in which metrics that are measured together agree."""

    @abstractmethod
    def measure_all(self, case: Case, metrics: Sequence[Any]) -> Mapping[Any, Mapping[str, Measured]]:
        """The results of several metrics of the family, this one among them."""

    def measure(self, case: Case) -> Mapping[str, Measured]:
        """One value per image and layer."""
        family = [metric for metric in case.metrics if isinstance(metric, SharedMetric)]
        together = tuple(dict.fromkeys(metric for metric in family if metric.sharing == self.sharing))
        # A metric that no case names, as one that another metric asks for, is measured on its own.
        together = together if self in together else (self,)
        return case.once(("together", *together), lambda: self.measure_all(case, together))[self]
