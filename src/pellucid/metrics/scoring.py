"""The model that is scored: its probabilities of many images, in full batches, every pass counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import require_choice
from ..layers import explainable, remembered, seen_of, sums_of
from ..methods.checks import not_finite, require_images, same_logits
from ..methods.repeatable import require_scorable
from ..outputs import failures_named, logits_in, probabilities
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, count_rows, fitting, is_out_of_memory, most_rows
from ..rules.base import Rule, Rules
from ..undo import Guard
from ..variants.base import ORIGINAL, AnyVariant, as_variant

Output = Literal["softmax", "sigmoid", "logits"]
Precision = Literal["full", "bfloat16"]


@dataclass(eq=False)
class Scorer:
    """A model under a variant, asked for the scores of images without gradients.

    ``rows`` counts the images that went through the model, ``passes`` its forward passes; none sees more than
    ``max_batch`` images (``passes.fitting``). Clean images asked for again are not run again (``of``).
    ``precision="bfloat16"`` runs convolutions and products under autocast: faster where the processor has bfloat16
    units, and less exact (benchmarks/grading.py --part steps prints by how much).

    Raises:
        InvalidModel: a model in training mode or TorchScript; later, an output without finite logits (B, classes).
    """

    model: nn.Module
    variant: AnyVariant = ORIGINAL
    output: Output = "softmax"
    max_batch: MaxBatch = DEFAULT_MAX_BATCH
    precision: Precision = "full"
    rules: tuple[Rule, ...] = field(init=False, repr=False)  # of the variant
    rows: int = 0
    passes: int = 0
    _channels_last: bool = field(default=True, repr=False)
    _known: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, repr=False)

    def __post_init__(self) -> None:
        self.variant = as_variant(self.variant)
        self.rules = self.variant.rules
        self.model = explainable(self.model)
        require_choice("output", self.output, Output)
        require_choice("precision", self.precision, Precision)
        most_rows(self.max_batch)

    @property
    def most(self) -> int:
        """The rows of the largest batch that it takes."""
        return most_rows(self.max_batch)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        require_images(images)
        with Guard() as guard, guard.inference(True):
            # A clone, since the model's first operation may be in place.
            logits = torch.cat([self._forward(part.clone()) for part in images.split(self.most)])
        self._require(logits.isfinite().all())
        return logits

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, classes): ``probabilities`` (softmax), sigmoids, or logits as they are."""
        return self._scored(self.logits(images))

    def of(self, images: Tensor) -> Tensor:
        """Scores of images that several ask about: run once for each tensor, until it or the model changes."""
        return self._scored(self.logits_of(images))

    def logits_of(self, images: Tensor) -> Tensor:
        """Logits of such images."""
        if images.is_inference():  # which tells nobody that it was overwritten
            return self.logits(images)
        held = [images, *self.model.parameters(), *self.model.buffers()]
        state = images._version, seen_of(self.model, with_weights=True), sums_of(held)
        if images not in self._known or self._known[images][0] != state:
            self._known[images] = state, self.logits(images)
        logits: Tensor = self._known[images][1]
        return logits

    def followed(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """The score (n,) of one class for each row of batches (rows, classes), each made when its turn comes.

        A batch holds at most ``most`` rows and may be overwritten; nothing waits for a device before the
        last has run.
        """
        followed, sound = [], []
        with Guard() as guard, guard.inference(True):
            for rows, classes in batches:
                logits = self._forward(rows)
                # They are kept as tensors: to ask for a value would make the next batch wait for this one.
                sound.append(logits.isfinite().all())
                followed.append(self._scored(logits).gather(1, classes[:, None])[:, 0])
            self._require(torch.stack(sound).all())
        return torch.cat(followed)

    def count(self, rows: int) -> None:
        """Count a forward pass of so many rows."""
        self.passes, self.rows = self.passes + 1, self.rows + rows
        count_rows(rows)

    def _forward(self, rows: Tensor) -> Tensor:
        assert len(rows) <= self.most

        def parts(most: int) -> Tensor:
            require_scorable(explainable(self.model), rows[:1], most)  # it may be another since it was given
            return torch.cat([self._pass(part) for part in rows.split(most)])

        return fitting(self.model, rows, self.max_batch, parts)

    def _pass(self, rows: Tensor) -> Tensor:
        self.count(len(rows))
        if self._channels_last and rows.device.type == "cpu" and takes_channels_last(self.model, rows[:1]):
            # Convolutions without gradients run faster so. Larger batches may have other strides.
            try:
                return self._run(rows.clone(memory_format=torch.channels_last))
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._channels_last = False
        with failures_named(rows, self.model):
            return self._run(rows.clone(memory_format=torch.contiguous_format))

    def _run(self, rows: Tensor) -> Tensor:
        """Logits of rows that are the model's own, since its first operation may be in place.

        Batch norms run as they are: without gradients that is the fastest.
        """
        half = torch.autocast(rows.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with Guard(), half, Rules(self.rules, model=self.model) as running:
            logits = logits_in(self.model(rows)).to(rows.dtype)
        running.require_all_applied()
        return logits

    def _scored(self, logits: Tensor) -> Tensor:
        match self.output:
            case "softmax":
                return probabilities(logits)
            case "sigmoid":
                return logits.sigmoid()
            case _:
                return logits

    def _require(self, finite: Tensor) -> None:
        if not bool(finite):
            raise not_finite(self.model, "a logit")


def takes_channels_last(model: nn.Module, image: Tensor) -> bool:
    """Whether a model answers the same where an image's (1, C, H, W) channels lie last in memory; tried once.

    One that takes strides for granted fails (``view``) or reads other pixels (``as_strided``, kernels of its own).
    """
    known, trial = remembered(model, "channels last"), (image.shape, image.dtype)
    if trial not in known:
        known[trial] = _answers_alike(model, image)
    return bool(known[trial])


def _answers_alike(model: nn.Module, image: Tensor) -> bool:
    forms = (torch.channels_last, torch.contiguous_format)
    try:
        with Guard() as guard, guard.inference(True):
            last, first = (logits_in(model(image.clone(memory_format=form))) for form in forms)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    return same_logits(last, first)
