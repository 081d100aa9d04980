"""What an experiment costs, measured on one image before it begins; and its size where that is to be found."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from time import perf_counter

from ..errors import PellucidError
from ..passes import counting
from . import inputs
from .cells import Cell, run_cell
from .planning import NO_RESULT, dumped, graded_alone, with_usable
from .record import GROWING
from .spec import DEFAULT_CUT, Spec
from .store import Store

LOOK = 300.0  # seconds that a first look takes, about
LONGEST = 120.0  # seconds of a cell, about: what an interruption loses at most
LEAST_IMAGES = 3  # for an interval


@dataclass(frozen=True)
class Cost:
    """The forward passes of one image, and the seconds that it takes, by model and method (None: the variant)."""

    passes: Mapping[tuple[str, str | None], int]
    seconds: Mapping[tuple[str, str | None], float]

    def of(self, spec: Spec, images: int, there: Collection[tuple[str, str]] = ()) -> tuple[int, float]:
        """The passes and seconds of a spec with so many images, its trainings apart.

        Methods under the variants that are ``there``, as pairs of a variant and a method, cost nothing.
        """
        times = {
            (model, method): images * sum((variant, method) not in there for variant in spec.variant_texts)
            for model, method in self.passes
        }
        passes = sum(self.passes[key] * count for key, count in times.items())
        return passes, sum(self.seconds[key] * count for key, count in times.items())


@dataclass(frozen=True)
class Sized:
    """A spec whose images and cells are counted, and what it costs, where that could be measured.

    Where it ``grows``, a finished run is given more methods or variants, and these alone cost.
    """

    spec: Spec
    images: int = 0
    passes: int = 0
    seconds: float = 0.0
    grows: bool = False


def sized(spec: Spec, output: str | os.PathLike[str], is_quick: bool = False) -> Sized:
    """Measure what one image costs, and choose from it what the spec leaves open.

    Cells get as many images as take about two minutes, at most 16. A quick look takes as many images, spread over
    the source, as take about five minutes; at least 3, and no more than the spec says. A run that was begun keeps
    its own sizes. What is wrong with the spec is left for ``benchmark`` to tell.
    """
    try:
        store = Store(output)
        begun = store.record()
        if begun is None and store.others():
            return Sized(spec)
        if is_quick:
            spec = _with_images(spec, spread=True)
        there: set[tuple[str, str]] = set()
        if begun is not None:
            spec = _as_begun(spec, begun.spec, is_quick)
            if _differs(spec, begun.spec):
                return Sized(spec)
            if store.has_all(begun.cells):
                there = set(product(begun.spec["variants"], begun.spec["methods"]))
                if there >= set(product(spec.variant_texts, spec.method_texts)):
                    return Sized(spec)
        cost = image_cost(spec)
        count = len(inputs.chosen(spec.images))
        if is_quick and begun is None:
            times = len(spec.variants) * sum(cost.seconds.values())
            count = min(count, max(int(LOOK / times), LEAST_IMAGES))
            spec = _with_images(spec, count=count)
        if spec.images_per_cell is None:
            fitting = int(LONGEST / max(cost.seconds.values()))
            spec = spec.model_copy(update={"images_per_cell": min(max(fitting, 1), DEFAULT_CUT)})
        return Sized(spec, count, *cost.of(spec, count, there), grows=bool(there))
    except (PellucidError, ZeroDivisionError, ValueError):
        return Sized(spec)


def image_cost(spec: Spec) -> Cost:
    """Grade the first image that can be used by every model and method under the first variant.

    A method that fails costs nothing here: it fails again when it is its turn.
    """
    one = with_usable(_with_images(spec, count=1, spread=False).model_copy(update={"pictures": 0}))
    passes: dict[tuple[str, str | None], int] = {}
    seconds: dict[tuple[str, str | None], float] = {}
    variant = next(iter(inputs.parsed(one).variants))
    for model in one.models:
        [batch] = inputs.batches(one, model.key, 0, 1)
        batch.scorer(inputs.parsed(one).variants[variant]).of(batch.images)  # what only the first pass waits for
        for method in graded_alone(inputs.parsed(one)):
            begun = perf_counter()
            with counting() as rows, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the run itself tells them
                try:
                    run_cell(one, Cell(model.key, variant, method, 0, 1, ""))
                except PellucidError:
                    continue
            passes[model.key, method], seconds[model.key, method] = sum(rows), perf_counter() - begun
    return Cost(passes, seconds)


def _as_begun(spec: Spec, begun: Mapping[str, object], is_quick: bool) -> Spec:
    """The spec with the sizes of the run that was begun."""
    images = begun.get("images")
    if is_quick and isinstance(images, dict):
        spec = _with_images(spec, count=images.get("count"))
    if spec.images_per_cell is None:
        spec = spec.model_copy(update={"images_per_cell": begun.get("images_per_cell")})
    return spec


def _differs(spec: Spec, begun: Mapping[str, object]) -> bool:
    """Whether a run of other settings was begun, which more methods or variants do not make it."""
    there, here = (
        {name: value for name, value in content.items() if name not in {*NO_RESULT, *GROWING, "models", "images"}}
        for content in (begun, dumped(spec))
    )
    return there != here


def _with_images(spec: Spec, **changes: object) -> Spec:
    return spec.model_copy(update={"images": spec.images.model_copy(update=changes)})
