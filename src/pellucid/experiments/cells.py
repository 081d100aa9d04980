"""A cell of an experiment: one model, variant, method and run of images, at all layers and by every metric."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow
from torch import Tensor

from .. import catalog
from ..errors import InvalidData, InvalidLayer, LayerWarning, PellucidError
from ..files import file_name
from ..heatmap import heatmap
from ..methods.base import Attributions
from ..methods.checks import require_in_range
from ..methods.gradient import Gradient
from ..metrics.base import Case, Measured, Metric
from ..seeds import image_seed
from ..variants.base import ORIGINAL, Variant
from . import inputs
from .inputs import Batch
from .record import versions
from .spec import Spec
from .store import PICTURE_ROWS, ROWS

Note = tuple[str, str, str]  # warning, method, layer


@dataclass(frozen=True)
class Cell:
    """A method (``""``: none, the variant itself is graded) on the images ``start`` to ``stop``."""

    model: str
    variant: str
    method: str
    start: int
    stop: int
    key: str  # a digest of the experiment's content and this cell

    @property
    def id(self) -> str:
        """A readable name that a file may have, unique by the digest at its end."""
        parts = (self.model, self.variant, self.method or "variant", f"{self.start:05d}-{self.stop - 1:05d}")
        names = [file_name(part)[:60] for part in parts]
        return f"{'_'.join(names)}_{self.key}"


@dataclass(frozen=True, eq=False)
class Finished:
    """What a cell gave: rows of the results table, pictures, and notes on its method."""

    rows: pyarrow.Table
    pictures: pyarrow.Table
    notes: frozenset[Note] = frozenset()


def run_cell(spec: Spec, cell: Cell) -> Finished:
    """Explain the cell's images at all layers, and grade the maps by every metric.

    Models, images and the scores of clean images are kept for the next cell of the same images.

    Raises:
        PellucidError: the method does not work on this model under this variant, or a metric on these images.
    """
    named = {text: catalog.metric(text) for text in spec.metrics}
    metrics = {
        text: metric
        for text, metric in named.items()
        if isinstance(metric, Metric) and metric.of_model == (not cell.method)
    }
    shown_names = set(inputs.chosen(spec.images).names[: spec.pictures])
    notes: set[Note] = set()
    rows, pictures = [], []
    for batch in inputs.batches(spec, cell.model, cell.start, cell.stop):
        case = _case(spec, cell, batch, notes, tuple(metrics.values()))
        pictures += list(_maps(cell, case, "map", case.attributions, shown_names))
        for text, metric in metrics.items():
            found = _measured(case, text, metric)
            rows += list(_rows(spec, cell, case, text, found))
            pictures += list(_compared(cell, case, text, found, shown_names))
    return Finished(table(rows, ROWS), table(pictures, PICTURE_ROWS), frozenset(notes))


def _case(spec: Spec, cell: Cell, batch: Batch, notes: set[Note], metrics: tuple[Metric, ...]) -> Case:
    """The cell's method on a batch, for metrics to grade."""
    variant = inputs.variant_of(spec.variant_texts[cell.variant])
    explained, scored = _targets(spec, variant, batch)
    seeds = tuple(image_seed(spec.seed, name) for name in batch.names)
    method = inputs.method_of(spec.method_texts[cell.method]) if cell.method else Gradient()  # never called
    attributions = Attributions({}, explained)
    if cell.method:
        with noted(cell.method, notes):
            attributions = method(
                batch.loaded.model, batch.images, explained, spec.layers,
                variant=variant, seed=seeds, max_batch=spec.max_batch,
            )  # fmt: skip
    for layer, attribution in attributions.items():
        if attribution.dim() != 4:
            raise InvalidLayer(
                f"layer {layer!r} gives the shape {tuple(attribution.shape)}, which is no map; "
                "name layers whose output has a height and a width"
            )
    return Case(
        method=method,
        explained=batch.loaded.model,
        images=batch.images,
        attributions=attributions,
        scorer=batch.scorer(ORIGINAL if spec.scored == "original" else variant),
        scored=scored,
        variant=variant,
        seed=spec.seed,
        seeds=seeds,
        max_batch=spec.max_batch,
        labels=batch.labels,
        masks=batch.masks,
        boxes=batch.boxes,
        names=batch.names,
        metrics=metrics,
        channels=spec.channels,
        upsampling=spec.upsampling,
    )


def _targets(spec: Spec, variant: Variant, batch: Batch) -> tuple[Tensor, Tensor]:
    """The classes (B,) to explain, and those whose scores are followed."""
    scores = batch.scorer(ORIGINAL if spec.scored == "original" else variant).of(batch.images)
    highest = scores.argmax(1)
    if spec.target == "scored":
        return highest, highest
    if spec.target == "explained":
        return batch.scorer(variant).of(batch.images).argmax(1), highest
    if spec.target != "label":
        given = highest.new_full(highest.shape, spec.target)
    elif batch.labels is None:
        raise InvalidData("target = 'label', and images have no labels")
    else:
        given = batch.labels
    require_in_range(given, scores.shape[1])
    return given, given


@contextmanager
def noted(method: str, notes: set[Note]) -> Iterator[None]:
    """Note a method's warnings about layers, for the end; let others through."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        message = warning.message
        if isinstance(message, LayerWarning):
            notes.add((type(message).__name__, method, message.layer))
        else:
            warnings.warn_explicit(message, warning.category, warning.filename, warning.lineno)


Row = dict[str, Any]


def _measured(case: Case, text: str, metric: Metric) -> Mapping[str, Measured]:
    try:
        with warnings.catch_warnings():
            # What happens when a metric explains anew (a random model, say) is for the metric to say.
            warnings.simplefilter("ignore", LayerWarning)
            return metric.measure(case)
    except PellucidError as error:
        error.add_note(f"while measuring {text}")
        raise


def _rows(spec: Spec, cell: Cell, case: Case, text: str, found: Mapping[str, Measured]) -> Iterator[Row]:
    """A metric's rows at all layers."""
    known = {"model": cell.model, "variant": cell.variant, "method": cell.method, "metric": text}
    for layer, measured in found.items():
        for row in values_of(case.names, measured):
            yield known | {"layer": layer, "seed": spec.seed, "versions": known_versions()} | row


@lru_cache(maxsize=1)
def known_versions() -> str:
    """What a row says its value depends on."""
    found = versions()
    return ", ".join(f"{name} {found[name]}" for name in ("pellucid", "torch"))


def values_of(names: Sequence[str], measured: Measured) -> Iterator[Row]:
    """Each image's value, followed by its curve."""
    values = measured.values.double().tolist()
    curves: list[list[float]] = [[]] * len(values)
    if measured.curve is not None:
        curves = measured.curve.double().tolist()
    for name, value, curve in zip(names, values, curves, strict=True):
        yield {"image": name, "value": value}
        steps: Sequence[str | None] = measured.steps or [None] * len(curve)
        for at, step, point in zip(measured.at, steps, curve, strict=True):
            yield {"image": name, "value": point, "at": float(at), "step": step}


def table(rows: Sequence[Row], schema: pyarrow.Schema) -> pyarrow.Table:
    """Rows as columns; NaN becomes null."""
    columns = [
        pyarrow.array([row.get(entry.name) for row in rows], entry.type, from_pandas=True) for entry in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


# Pictures.


def _compared(cell: Cell, case: Case, text: str, found: Mapping[str, Measured], names: set[str]) -> Iterator[Row]:
    """The maps that a metric compared those of some images with, where it has a value."""
    for layer, measured in found.items():
        if measured.compared is not None:
            known = measured.values.isfinite().tolist()
            valid = {name for name, is_known in zip(case.names, known, strict=True) if is_known}
            yield from _maps(cell, case, text, {layer: measured.compared}, names & valid)


def _maps(cell: Cell, case: Case, kind: str, attributions: Mapping[str, Tensor], names: set[str]) -> Iterator[Row]:
    """The maps of some images at the layers' own sizes, as Results tells."""
    known = {"kind": kind, "model": cell.model, "variant": cell.variant, "method": cell.method}
    rows = [row for row, name in enumerate(case.names) if name in names]
    for layer, attribution in attributions.items():
        if not rows:
            return
        maps = heatmap(attribution[rows], None, case.channels).double()
        maps = maps / maps.abs().amax((1, 2), keepdim=True).clamp_min(np.finfo(np.float64).tiny)
        for row, values in zip(rows, maps.cpu().numpy(), strict=True):
            buffer = io.BytesIO()
            np.save(buffer, values.astype(np.float16))
            yield known | {"image": case.names[row], "layer": layer, "data": buffer.getvalue()}


def photos(spec: Spec) -> pyarrow.Table:
    """The images whose maps are kept, as each model's preprocess shows them."""
    rows = []
    for sample in inputs.chosen(spec.images)[: spec.pictures]:
        for model in spec.models:
            buffer = io.BytesIO()
            picture = inputs.model_of(spec, model.key).preprocess.display(sample.image)
            picture.convert("RGB").save(buffer, "PNG")
            known = {"variant": "", "method": "", "layer": ""}
            rows.append(
                known | {"image": sample.name, "kind": "photo", "model": model.key, "data": buffer.getvalue()}
            )
    return table(rows, PICTURE_ROWS)
