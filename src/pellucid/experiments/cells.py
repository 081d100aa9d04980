"""A cell of an experiment: one model, variant, method and run of images, at all layers and by every metric."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow
from torch import Tensor, nn

from ..errors import (
    CanceledMapWarning,
    GradientWarning,
    InputWarning,
    InvalidData,
    InvalidLayer,
    LayerWarning,
    PellucidError,
    PrecisionWarning,
    RuleWarning,
    SkippedLayerWarning,
)
from ..files import file_name
from ..heatmap import SIGNED, heatmap
from ..layers import LayerChoice, select_layers
from ..methods.attributions import Attributions
from ..methods.base import Method
from ..methods.checks import require_in_range
from ..metrics.base import Case, Criterion, Measured, Metric, VariantMetric
from ..metrics.scoring import Scorer
from ..outputs import class_of
from ..seeds import image_seed
from ..variants.base import ORIGINAL, Variant
from . import inputs
from .inputs import Batch
from .noticing import change_under, lattices
from .record import Answered, Change, Note, add_counts, versions
from .spec import Spec
from .store import PICTURE_ROWS, ROWS

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A method on the images ``start`` to ``stop``; without a method the variant itself is graded."""

    model: str
    variant: str
    method: str | None
    start: int
    stop: int
    key: str  # a digest of the experiment's content and this cell
    folder: ClassVar[str] = ""  # it keeps no files

    @property
    def id(self) -> str:
        """A readable name that a file may have, unique by the digest at its end."""
        parts = (self.model, self.variant, self.method or "variant", f"{self.start:05d}-{self.stop - 1:05d}")
        names = [file_name(part)[:60] for part in parts]
        return f"{'_'.join(names)}_{self.key}"

    @property
    def columns(self) -> Row:
        """What its rows say of it."""
        return {"model": self.model, "variant": self.variant, "method": self.method}


@dataclass(frozen=True, eq=False)
class Finished:
    """What a cell gave: rows, pictures, notes on its method as ``noted`` counts them, its variant's answers."""

    rows: pyarrow.Table
    pictures: pyarrow.Table
    notes: Mapping[Note, int] = field(default_factory=dict)
    answers: Answered | None = None


def run_cell(spec: Spec, cell: Cell) -> Finished:
    """Explain the cell's images at all layers, and grade the maps by every metric.

    Models, images and the scores of clean images are kept for the next cell of the same images. Raises a
    ``PellucidError`` where the method does not work on this model, or a metric on these images.
    """
    parsed = inputs.parsed(spec)
    kind = VariantMetric if cell.method is None else Metric
    metrics = {text: metric for text, metric in parsed.metrics.items() if isinstance(metric, kind)}
    shown = set(inputs.chosen(spec.images).names[: spec.pictures])
    notes: dict[Note, int] = {}
    rows: list[Row] = []
    pictures: list[Row] = []
    changes: list[Change | None] = []
    for batch in inputs.batches(spec, cell.model, cell.start, cell.stop):
        name, variant, count = cell.method or cell.variant, parsed.variants[cell.variant], len(batch.names)
        with noted(name, notes, spec.channels, cell.variant, cell.model, count) as found:
            method = None if cell.method is None else parsed.methods[cell.method]
            case = case_of(batch, variant, method, tuple(metrics.values()))
            found |= {Note("Lattice", name, layer) for layer in lattices(case.attributions, [variant])}
        changes.append(change_under(case.variant, batch))
        explained = [batch.loaded.class_name(number) for number in case.targets.tolist()]
        pictures += _maps(cell, case, "map", case.attributions, shown)
        for text, metric in metrics.items():
            for layer, measured in _measured(case, text, metric).items():
                known = cell.columns | {"metric": text, "layer": layer}
                rows += metric_rows(known, spec, batch.names, measured, explained)
                pictures += _compared(cell, case, text, layer, measured, shown)
    change = sum((one for one in changes if one is not None), Change())
    answers = Answered.of(cell.model, cell.variant, cell.start, change) if change.count else None
    return Finished(table(rows, ROWS), table(pictures, PICTURE_ROWS), notes, answers)


def case_of(batch: Batch, variant: Variant, method: Method | None, metrics: tuple[Criterion, ...] = ()) -> Case:
    """A method on a batch, for metrics to grade."""
    spec = batch.spec
    explained, scored = _targets(variant, batch)
    seeds = tuple(image_seed(spec.seed, name) for name in batch.names)
    attributions = Attributions({}, explained)
    if method is not None:
        attributions = method(
            batch.loaded.model, batch.images, explained, spec.layers,
            variant=variant, seed=seeds, max_batch=spec.max_batch, layouts=dict(spec.layouts),
        )  # fmt: skip
        attributions = maps_alone(attributions, batch.loaded.model, spec.layers)
    return Case(
        method, batch.loaded.model, batch.images, attributions, _scorer(variant, batch), scored, variant,
        seed=spec.seed, seeds=seeds, max_batch=spec.max_batch, layouts=dict(spec.layouts),
        labels=batch.labels, masks=batch.masks, boxes=batch.boxes, names=batch.names,
        channels=spec.channels, upsampling=spec.upsampling, metrics=metrics,
    )  # fmt: skip


def maps_alone(
    found: Attributions, model: nn.Module, layers: LayerChoice | None, method: str = ""
) -> Attributions:
    """The attributions that are maps: without those of layers that a pattern chose and that have no places.

    Raises:
        InvalidLayer: a layer without places was named outright, or no other was chosen; it names the ``method``
            where nothing else does.
    """
    flat = {layer: tuple(one.shape) for layer, one in found.items() if one.dim() != 4}
    chosen = select_layers(model, layers) if flat and layers is not None else {}
    for layer, shape in flat.items():
        why = f"layer {layer!r} gives {f'{method} ' * bool(method)}the shape {shape}, which is no map"
        if chosen.get(layer, True) or len(flat) == len(found):
            raise InvalidLayer(f"{why}; name layers whose output has a height and a width")
        warnings.warn(SkippedLayerWarning(why, layer), stacklevel=2)
    parts = (found.by_layer, found.residuals, found.prefixes)
    by_layer, residuals, prefixes = ({key: part[key] for key in part if key not in flat} for part in parts)
    return replace(found, by_layer=by_layer, residuals=residuals, prefixes=prefixes) if flat else found


def _scorer(variant: Variant, batch: Batch) -> Scorer:
    """The model whose scores metrics follow."""
    return batch.scorer(ORIGINAL if batch.spec.scored == "original" else variant)


def _targets(variant: Variant, batch: Batch) -> tuple[Tensor, Tensor]:
    """The classes (B,) to explain, and those whose scores are followed."""
    scores, target = _scorer(variant, batch).of(batch.images), batch.spec.target
    highest = scores.argmax(1)
    if target == "scored":
        return highest, highest
    if target == "explained":
        return batch.scorer(variant).of(batch.images).argmax(1), highest
    if target != "label":
        given = highest.new_full(highest.shape, class_of(batch.spec.asked, batch.loaded.classes))
    elif batch.labels is None:
        raise InvalidData("target = 'label', and images have no labels")
    else:
        given = batch.labels
    require_in_range(given, scores.shape[1])
    return given, given


@contextmanager
def noted(
    method: str,
    notes: dict[Note, int],
    channels: str,
    variant: str = "",
    model: str = "",
    images: int = 0,
) -> Iterator[set[Note]]:
    """Note a method's warnings about layers and rules, for the end; let others through.

    ``notes`` counts the images that each is of, where the call is of so many ``images``; of a count of 0 it is not
    known. What is noticed otherwise may be added to the set, and is of all.

    What looks wrong of images and outputs is told at the end, once for all methods. That channels cancel concerns
    maps of their signed sum alone.
    """
    added: set[Note] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield added
    found = {note._replace(variant=variant, model=model): images for note in added}
    for warning in caught:
        message = warning.message
        if isinstance(message, CanceledMapWarning) and channels not in SIGNED:
            continue
        if isinstance(message, LayerWarning):
            note = Note(type(message).__name__, method, message.layer, variant, model)
            found[note] = (message.images or images) if images else 0
        elif isinstance(message, RuleWarning | PrecisionWarning | GradientWarning):
            found[Note(type(message).__name__, method, "", variant, model, str(message))] = images
        elif not isinstance(message, InputWarning):
            warnings.warn_explicit(message, warning.category, warning.filename, warning.lineno)
    add_counts(notes, found)


def _measured(case: Case, text: str, metric: Metric | VariantMetric) -> Mapping[Any, Measured]:
    """What a metric gives by layer; what grades the variant has none."""
    try:
        with warnings.catch_warnings():
            # What happens when a metric explains anew (a random model, say) is for the metric to say.
            warnings.simplefilter("ignore", LayerWarning)
            if isinstance(metric, VariantMetric):
                return {None: Measured(metric.values(case))}
            return metric.measure(case)
    except PellucidError as error:
        error.add_note(f"while measuring {text}")
        raise


def metric_rows(
    known: Row, spec: Spec, names: Sequence[str | None], measured: Measured, targets: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of a metric: each image's value, followed by its curve."""
    known = known | {"seed": spec.seed, "versions": known_versions()}
    explained: Sequence[str | None] = targets or [None] * len(names)
    values = measured.values.tolist()
    curves = [[]] * len(values) if measured.curve is None else measured.curve.tolist()
    for name, target, value, curve in zip(names, explained, values, curves, strict=True):
        known |= {"image": name, "target": target}
        yield known | {"value": value}
        steps: Sequence[str | None] = measured.steps or [None] * len(curve)
        for at, step, point in zip(measured.at, steps, curve, strict=True):
            yield known | {"value": point, "at": float(at), "step": step}


@lru_cache(maxsize=1)
def known_versions() -> str:
    """What a row says its value depends on."""
    found = versions()
    return ", ".join(f"{name} {found[name]}" for name in ("pellucid", "torch"))


def table(rows: Sequence[Row], schema: pyarrow.Schema) -> pyarrow.Table:
    """Rows as columns; NaN becomes null."""
    columns = [
        pyarrow.array([row.get(entry.name) for row in rows], entry.type, from_pandas=True) for entry in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


# Pictures.


def _compared(cell: Cell, case: Case, text: str, layer: str, measured: Measured, names: set[str]) -> Iterator[Row]:
    """The maps that a metric compared those of some images with, where it has a value."""
    if measured.compared is not None:
        known = measured.values.isfinite().tolist()
        valid = {name for name, is_known in zip(case.names, known, strict=True) if is_known}
        yield from _maps(cell, case, text, {layer: measured.compared}, names & valid)


def _maps(cell: Cell, case: Case, kind: str, attributions: Mapping[str, Tensor], names: set[str]) -> Iterator[Row]:
    """The maps of some images at the layers' own sizes, as Results tells."""
    rows = [row for row, name in enumerate(case.names) if name in names]
    for layer, attribution in attributions.items() if rows else ():
        maps = heatmap(attribution[rows], None, case.channels).cpu().double()
        # Halves end at 65 504 and have few digits near 0, so maps are brought to a largest magnitude of 1.
        maps = maps / maps.abs().amax((1, 2), keepdim=True).clamp_min(np.finfo(np.float64).tiny)
        for row, values in zip(rows, maps.numpy(), strict=True):
            buffer = io.BytesIO()
            np.save(buffer, values.astype(np.float16))
            known = {"image": case.names[row], "kind": kind, "layer": layer}
            yield cell.columns | known | {"data": buffer.getvalue()}


def photos(spec: Spec) -> pyarrow.Table:
    """The images whose maps are kept, as each model's preprocess shows them."""
    rows = []
    for sample in inputs.chosen(spec.images)[: spec.pictures]:
        for model in spec.models:
            buffer = io.BytesIO()
            picture = inputs.model_of(spec, model.key).preprocess.display(sample.image)
            picture.convert("RGB").save(buffer, "PNG")
            known = {"image": sample.name, "kind": "photo", "model": model.key}
            rows.append(known | {"data": buffer.getvalue()})
    return table(rows, PICTURE_ROWS)
