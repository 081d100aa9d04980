"""Maps of many images: a stretch of images is read ahead, explained, and written as one shard of Parquet."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet
from torch import Tensor

from ..data.sources import Sample, Source, open_images
from ..errors import InvalidData, InvalidImage
from ..folders import Folder
from ..heatmap import heatmap
from ..methods.checks import looks_wrong, probabilities_of
from ..metrics.base import Case
from ..models.preprocess import pixels_of
from ..models.zoo import LoadedModel
from ..passes import most_rows
from ..variants.base import ORIGINAL
from . import inputs
from .cells import case_of, noted
from .noticing import Counts, changes_of, count_odd, mendable, oddities, summed
from .record import Change, Note
from .spec import Spec
from .store import TEXT

MAPS = "maps"  # the folder of shards
TOLD = b"pellucid.shard"  # what a shard says of itself
MAP_ROWS = pyarrow.schema(
    [
        ("image", pyarrow.string()),
        *((name, TEXT) for name in ("layer", "method", "variant", "target")),
        ("score", pyarrow.float32()),
        ("shape", pyarrow.list_(pyarrow.int32(), 2)),
        ("scale", pyarrow.float32()),
        ("data", pyarrow.binary()),
        ("source", TEXT),
        ("position", pyarrow.int32()),
    ]
)
_READERS = 2  # threads that read and decode
_T = TypeVar("_T")
_R = TypeVar("_R")


_HEARING: ContextVar[Callable[[int], None]] = ContextVar("hearing", default=lambda count: None)


@contextmanager
def hearing(each: Callable[[int], None]) -> Iterator[None]:
    """Have ``each`` called with how many images were explained, whenever some were in this process."""
    token = _HEARING.set(each)
    try:
        yield
    finally:
        _HEARING.reset(token)


@dataclass(frozen=True)
class ShardCell:
    """The images ``start`` to ``stop`` (None: the last) of a ``place`` that ``open_images`` opens.

    ``key`` is a digest of the run and of what the place holds, ``folder`` the output.
    """

    id: str
    place: str
    start: int
    stop: int | None
    key: str
    folder: str


@dataclass(frozen=True)
class Shard:
    """What a shard says of itself: its cell's key, how many images and maps it holds, and what was left out.

    ``notes`` are counted as ``noted`` does, ``odd`` counts its odd images, ``wrong`` says what looks wrong of
    pixels and outputs, and ``changes`` how variants answer on its first images (points, same, count).
    """

    key: str
    source: str
    start: int
    images: int = 0
    maps: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[tuple[Note, int]] = ()
    odd: Counts = field(default_factory=dict)
    wrong: Sequence[str] = ()
    changes: Mapping[str, tuple[float, int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Folder, name: str) -> Shard | None:
        """What a shard's footer says; None if there is none that can be read."""
        try:
            with folder.reading(name) as file:
                told = json.loads((pyarrow.parquet.read_metadata(file).metadata or {})[TOLD])
            # Earlier versions did not count.
            counted = [one if len(one) == 2 else (one, 0) for one in told["notes"]]
            notes = [(Note(*note), int(count)) for note, count in counted]
            return cls(**{**told, "notes": notes})
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError):
            return None


@lru_cache(maxsize=1)
def _opened(place: str, label_column: str | None, split: str, root: str, key: str) -> Source:
    return open_images(place, label_column, split, root)


def explain_shard(spec: Spec, cell: ShardCell) -> Shard:
    """Explain a stretch of images and write their maps; what cannot be read is left out and told.

    Raises:
        InvalidData: the place cannot be opened at all.
        OutputNotWritable: the shard cannot be written.
        PellucidError: a method does not work on this model.
    """
    images = spec.images
    source = _opened(cell.place, images.label_column, images.split, images.root, cell.key)
    source = inputs.labeled(spec, source, inputs.model_of(spec, spec.models[0].key))
    found, notes = _Written(), dict[Note, int]()
    with (
        Folder(cell.folder).writing(f"{MAPS}/{cell.id}.parquet") as file,
        pyarrow.parquet.ParquetWriter(file, MAP_ROWS, compression="zstd", write_page_checksum=True) as writer,
    ):
        for positions, batch in _batches(spec, source, cell, found):
            if not found.images:
                found.look_at(spec, batch)
            rows = _map_rows(spec, batch, cell.place, positions, notes)
            writer.write_table(rows)
            found.images, found.maps = found.images + len(positions), found.maps + len(rows)
            _HEARING.get()(len(positions))
        shard = Shard(cell.key, cell.place, cell.start, notes=sorted(notes.items()), **vars(found))
        # It stands in the footer, which is written last: a shard without it is not whole.
        writer.add_key_value_metadata({TOLD: json.dumps(asdict(shard))})
    return shard


@dataclass
class _Written:
    """What was written of a shard so far, what was wrong with images left out, and what was noticed."""

    images: int = 0
    maps: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    odd: Counts = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    changes: dict[str, tuple[float, int, int]] = field(default_factory=dict)

    def look_at(self, spec: Spec, batch: inputs.Batch) -> None:
        """Note what looks wrong of a batch's pixels and outputs, and how variants answer on it."""
        logits = batch.scorer(ORIGINAL).logits_of(batch.images)
        loaded = batch.loaded
        self.wrong += looks_wrong(batch.images, logits, loaded.preprocess, True, loaded.model).values()
        before = {name: Change(*one) for name, one in self.changes.items()}
        changes = summed([before, changes_of(inputs.parsed(spec), batch)])
        self.changes = {name: (one.points, one.same, one.count) for name, one in changes.items()}


def _batches(
    spec: Spec, source: Source, cell: ShardCell, found: _Written
) -> Iterator[tuple[list[int], inputs.Batch]]:
    """Images of one size together, and where they are in their source."""
    loaded, most = inputs.model_of(spec, spec.models[0].key), most_rows(spec.max_batch)
    waiting: dict[tuple[int, ...], list[tuple[int, Sample, Tensor]]] = {}

    def batch(group: list[tuple[int, Sample, Tensor]]) -> tuple[list[int], inputs.Batch]:
        positions, samples, pixels = zip(*group, strict=True)
        return list(positions), inputs.batch_of(spec, loaded, list(zip(samples, pixels, strict=True)))

    positions = range(len(source))[cell.start : cell.stop]
    read = _reader(spec, source, loaded)
    for position, (sample, pixels) in zip(positions, read_ahead(read, positions, _READERS, 2 * most), strict=True):
        if sample is None:
            found.skipped[source.names[position]] = pixels
            continue
        count_odd(found.odd, mendable(oddities(sample, loaded.preprocess, loaded.whole_of)))
        group = waiting.setdefault(tuple(pixels.shape), [])
        group.append((position, sample, pixels))
        # Images of other sizes wait for their own kind, so that every batch but the last of a size is full.
        if len(group) == most:
            yield batch(waiting.pop(tuple(pixels.shape)))
    for group in waiting.values():
        yield batch(group)


def _reader(spec: Spec, source: Source, loaded: LoadedModel) -> Callable[[int], tuple[Sample | None, Any]]:
    """What reads an image and its pixels, or says what was wrong with it."""

    def read(position: int) -> tuple[Sample | None, Any]:
        try:
            sample = source[position]
            if spec.target == "label" and sample.label is None:
                raise InvalidData("it has no label to explain")
            pixels = pixels_of(loaded.preprocess, sample.image)
            if not bool(pixels.isfinite().all()):
                raise InvalidImage("the model's preprocess gave NaN or infinite values")
            return sample, pixels
        except (InvalidImage, InvalidData) as error:
            return None, str(error)

    return read


def read_ahead(read: Callable[[_T], _R], items: Iterable[_T], threads: int, ahead: int) -> Iterator[_R]:
    """What ``read`` gives for each item, in order; while one is used, the next ``ahead`` are read by threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_R]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            # The bound keeps decoded images from filling the memory where explaining is slower than reading.
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _map_rows(
    spec: Spec, batch: inputs.Batch, place: str, positions: Sequence[int], notes: dict[Note, int]
) -> pyarrow.Table:
    """The maps of a batch by all methods under all variants, a row for each image and layer."""
    parsed, tables = inputs.parsed(spec), []
    for variant_name, variant in parsed.variants.items():
        for method_name, method in parsed.methods.items():
            with noted(method_name, notes, spec.channels, variant_name, images=len(batch.names)):
                case = case_of(batch, variant, method)
            known = {"method": method_name, "variant": variant_name, "source": place}
            tables += [
                _layer_rows(spec, case, layer, known, positions, batch.loaded) for layer in case.attributions
            ]
    return pyarrow.concat_tables(tables).unify_dictionaries()


def _layer_rows(
    spec: Spec, case: Case, layer: str, known: Mapping[str, str], positions: Sequence[int], loaded: LoadedModel
) -> pyarrow.Table:
    """The maps of one layer: float16 of at most 1 in magnitude, which times ``scale`` is the map."""
    # Scaled as doubles: of the smallest numbers a single has too few digits to divide by.
    maps = heatmap(case.attributions[layer], None, spec.channels).cpu().double()
    scales = maps.abs().amax((1, 2)).float()
    values = (maps / scales.masked_fill(scales == 0, 1)[:, None, None]).half().numpy()
    targets = case.attributions.targets
    is_softmax, scorer = spec.score == "softmax", case.scorer
    told = scorer.of(case.images)
    if is_softmax:
        told = probabilities_of(loaded.model, case.images, scorer.logits_of(case.images))
    scores = told.gather(1, targets[:, None])[:, 0]
    columns: dict[str, Any] = {
        "image": case.names,
        "layer": [layer] * len(values),
        "target": [loaded.class_name(number) for number in targets.tolist()],
        "score": scores.float().cpu().numpy(),
        "shape": [values.shape[1:]] * len(values),
        "scale": scales.numpy(),
        "data": [one.astype("<f2").tobytes() for one in values],
        "position": np.array(positions, np.int32),
        **{name: [text] * len(values) for name, text in known.items()},
    }
    return pyarrow.Table.from_arrays(
        [pyarrow.array(columns[entry.name], entry.type) for entry in MAP_ROWS], schema=MAP_ROWS
    )
