"""Where results are: a folder of Parquet parts at any fsspec URL, one for each cell; needs no torch."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from types import MappingProxyType
from typing import Any, TypeVar

import pandas
import pyarrow
import pyarrow.parquet
from pydantic import TypeAdapter

from ..errors import (
    DamagedFileWarning,
    InvalidData,
    OutdatedWarning,
    OutputNotWritable,
    UnknownName,
    brief,
    counted,
    first_difference,
)
from ..files import RUN, alone, writable
from ..folders import Folder
from .ratings import QUESTIONS_OF_RATERS, rating_rows, read_ratings
from .record import GROWING, Answered, DamagedRun, Note, RunRecord, add_counts, obstacle, with_answers

PARTS, PICTURES, LOCK = "parts", "pictures", ".lock"
PHOTOS = "photos"  # the part of the pictures that is no cell's
CHECKSUM, RUN_HASH = b"pellucid.sha256", b"pellucid.run"  # what a part says of itself
ANSWERED, NOTED = b"pellucid.answered", b"pellucid.noted"  # and of how its variant answers, and its warnings
_TOGETHER = 32  # pictures that are read together, where one is wanted
_T = TypeVar("_T")
_NOTES: TypeAdapter[Any] = TypeAdapter(list[tuple[Note, int]] | list[Note])  # earlier versions did not count
TEXT = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
NUMBER = pyarrow.float64()

ROWS = pyarrow.schema(
    [
        *((name, TEXT) for name in ("model", "variant", "method", "layer", "metric")),
        ("at", NUMBER),
        ("step", TEXT),
        ("image", TEXT),
        ("training", pyarrow.int64()),
        ("target", TEXT),
        ("value", NUMBER),
        ("seed", pyarrow.int64()),
        ("versions", TEXT),
    ]
)
PICTURE_ROWS = pyarrow.schema(
    [
        *((name, TEXT) for name in ("image", "kind", "model", "variant", "method", "layer")),
        ("data", pyarrow.binary()),
    ]
)


# What tells a value from others.
_VALUES = ["model", "variant", "method", "layer", "metric", "image", "training", "target"]


@dataclass(frozen=True, eq=False)
class Results:
    """The results of an experiment, in the order of its plan.

    Attributes:
        table: one row per value: model, variant, method, layer, metric, at, step, image, training, target (the
            class that was explained, by its name), value, seed, versions.
            ``at`` is null for the value itself, else the position on the metric's curve, which ``step`` may name;
            ``value`` is null where the metric is undefined; ``method`` and ``layer`` are where the variant itself
            is graded, ``image`` where the value is of a ``training``, by its number. Texts are categories.
            Ratings by eye (``pellucid view --rate``) are a metric of their own: the raters' mean, and each rater's
            as a point of its curve, which ``step`` names.
        record: what run.json says, and that ratings are there.
        missing: the cells that have not been computed.
        pictures: image, kind ("photo", "map", or the metric that compared the map with this one), model,
            variant, method, layer, data (PNG bytes of photos; of maps .npy bytes of float16 (h, w), scaled to a
            largest magnitude of 1).
        failed: what was wrong with cells that failed in the call that gave these results.
        notes: the warnings that arose while methods explained the images, each once.
        concerned: of how many images each of them is; 0 where that is not known.
    """

    table: pandas.DataFrame
    record: RunRecord
    pictures: pandas.DataFrame
    missing: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    concerned: Mapping[Note, int] = field(default_factory=dict)

    @classmethod
    def read(cls, url: str | os.PathLike[str], pictures: bool = True) -> Results:
        """The results at a path or URL, finished or not; ``InvalidData`` where no benchmark left any.

        Without ``pictures``, which are large, they come sooner.
        """
        store = Store(url)
        record = store.record()
        if record is None:
            raise InvalidData(f"there is no run of pellucid benchmark in {url}; give its output folder")
        store.run = record.hash
        parts = store.whole(PARTS, record.cells, ROWS)
        cells = [PHOTOS, *parts] if pictures else []
        shown = one_table(store.whole(PICTURES, cells, PICTURE_ROWS), PICTURE_ROWS)
        table = _with_trainings(one_table(parts, ROWS), record)
        layers = {layer for names in record.layers.values() for layer in names}
        told = {"model": record.layers, "variant": None, "metric": record.metrics}
        _require_told(table, told, f"the parts in {url}")
        _require_told(table[table["training"].isna()], {"image": None}, f"the parts in {url}")
        of_maps = table[table["method"].notna() | table["layer"].notna()]
        _require_told(of_maps, {"method": None, "layer": layers}, f"the parts in {url}")
        _require_told(shown, dict.fromkeys(("image", "kind", "data")), f"the pictures in {url}")
        missing = [cell for cell in record.cells if cell not in parts]
        record = with_answers(record, filter(None, map(_answers, parts.values())))
        if ratings := read_ratings(store.folder, record):
            rated = pyarrow.Table.from_pylist(list(rating_rows(ratings)), schema=ROWS)
            table = _with_trainings(one_table({**parts, "": rated}, ROWS), record)
            questions = {name: QUESTIONS_OF_RATERS[name] for name in rated["metric"].unique().to_pylist()}
            record = record.model_copy(update={"metrics": questions | dict(record.metrics)})
        notes: dict[Note, int] = {}
        for part in parts.values():
            add_counts(notes, _notes(part))
        if (
            len(record.spec.get("variants", ())) > 1
        ):  # whoever asks for a variant that levels a lattice knows of it
            notes = {note: count for note, count in notes.items() if note.warning != "Lattice"}
        return cls(table, record, shown, missing, notes=tuple(notes), concerned=notes)

    def values(self, **where: str) -> pandas.DataFrame:
        """The values alone, without curves: a row for each model, variant, method, layer, metric and image.

        ``where`` takes rows of one model, variant, method, layer, metric or image, such as ``metric="insertion"``.
        What grades a variant as a whole has neither a method nor a layer (None).

        Raises:
            UnknownName: no such column, or no such name in it.
        """
        table = self.table[self.table["at"].isna()]
        for column, name in where.items():
            if column not in _VALUES:
                raise UnknownName("column of the results", column, _VALUES)
            known = table[column].dropna().unique()
            if name not in known:
                raise UnknownName(column, name, map(str, known))
            table = table[table[column] == name]
        found = table[[*_VALUES, "value"]].astype(dict.fromkeys(_VALUES, object)).reset_index(drop=True)
        found[_VALUES] = found[_VALUES].where(found[_VALUES].notna(), None)
        return found

    def pivot(
        self,
        index: str | Sequence[str] = ("model", "variant", "method", "layer"),
        columns: str | Sequence[str] = "metric",
        how: str = "mean",
        **where: str,
    ) -> pandas.DataFrame:
        """Means over images (or ``how`` pandas calls it) as a table, one column for each metric; as ``values``.

        Layers have rows of their own: a mean over layers that some methods lack compares unlike with unlike.

        Raises:
            UnknownName: no such column, or no such name in it.
        """
        table = self.values(**where)
        index, columns = ([names] if isinstance(names, str) else list(names) for names in (index, columns))
        keys = [*index, *columns]
        for name in keys:
            if name not in _VALUES:
                raise UnknownName("column of the results", name, _VALUES)
        grouped = table.groupby(keys, sort=False, dropna=False)["value"].agg(how)
        return grouped.unstack(columns).sort_index(axis=1)[list(dict.fromkeys(_places(table, columns)))]

    def _repr_html_(self) -> str:
        """How far the run is, and its means, in a notebook."""
        cells = len(self.record.cells)
        done = counted(cells - len(self.missing), "cell")
        told = f"{done} of {cells}, {counted(len(self.record.images), 'image')}; trust_card(results) judges them"
        table = self.pivot()
        table = table[table.index.get_level_values("method").notna()].dropna(axis="columns", how="all")
        html = table.to_html(max_rows=24, float_format="{:.3g}".format, na_rep="", border=0)
        head = f"<p><b>{escape(self.record.name)}</b>: {escape(told)}</p>"
        return f'{head}<div style="overflow-x: auto">{html}</div>'


def _places(table: pandas.DataFrame, columns: Sequence[str]) -> list[Any]:
    """The labels of a pivot's columns in the order of their appearance."""
    rows = list(table[list(columns)].itertuples(index=False, name=None))
    return [row[0] for row in rows] if len(columns) == 1 else rows


def _require_told(table: pandas.DataFrame, known: Mapping[str, Collection[str] | None], place: str) -> None:
    """Refuse rows without what every row has, or of what run.json does not tell of."""
    for column, names in known.items():
        for name in table[column].unique():
            if pandas.isna(name) or (names is not None and name not in names):
                found = "nothing" if pandas.isna(name) else brief(name)
                raise InvalidData(
                    f"{place} have {found} for a {column}, which {RUN} does not tell of; run the benchmark again "
                    "in a new folder"
                )


class Store:
    """A run's folder: ``run.json``, ``parts/CELL.parquet``, ``pictures/CELL.parquet``.

    A file appears in one move, a cell's part last, so that a part that is there is whole: on a local disk by
    renaming, on object stores because a write is one. Each holds a checksum of its values and the hash of its
    run: a part that was damaged since, or is another run's, counts as missing, and its cell is computed again.
    On a local disk a second process is refused. Elsewhere one of another spec is, for ``run.json`` is written only
    where there is none; two of the same spec would compute the same cells and write the same parts.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.folder = Folder(url)
        self.url, self.local = self.folder.url, self.folder.local
        self.run = ""  # the hash of the run whose parts are written and read

    # Writing.

    @contextmanager
    def opened(self, record: RunRecord) -> Iterator[None]:
        """Hold the folder alone while this process writes the run that ``record`` tells of.

        Raises:
            OutputNotWritable: other files or another spec's results, another writer, or no place to write.
        """
        self.run = record.hash
        self._require_same(record)
        with self._alone():
            self._claim(record)
            yield
            if self.local is None:  # where no condition could be put on the claim, the last one stands
                self._require_same(record)

    def _claim(self, record: RunRecord) -> None:
        """Write run.json, unless it says the same already."""
        found = self._require_same(record)
        # Whoever creates the file reads it again: of two that
        # did so at once the store kept one, and both see which.
        if found is None and self.local is None and self.folder.create(RUN, record.content()):
            found = self._require_same(record)
        if found is None:  # damaged, or written by another process meanwhile
            found = self._require_same(record)
        known = found.method_files if found is not None else {}
        changed = [name for name, of in record.method_files.items() if name in known and known[name] != of]
        if found is not None and changed:
            again = counted(len(set(found.cells) - set(record.cells)), "cell")
            have = "has" if len(changed) == 1 else "have"
            message = f"{', '.join(changed)} {have} changed: {again} computed anew, all others are kept"
            warnings.warn(OutdatedWarning(message), stacklevel=4)
        told = [(one.spec, one.cells, one.noticed, one.poor) for one in (found, record) if one is not None]
        if found is None or told[0] != told[1]:
            self.folder.write(RUN, record.content())

    def _require_same(self, record: RunRecord) -> RunRecord | None:
        """What run.json here says, or None if nothing is here; anything but the same experiment is refused."""
        try:
            found = self.record()
        except DamagedRun as error:
            if not self.folder.names(PARTS):
                raise
            # The parts tell themselves whether they are of this run.
            warnings.warn(DamagedFileWarning(f"{error}: it is written anew"), stacklevel=2)
            return None
        if found is None:
            if others := self.others():
                raise OutputNotWritable(
                    f"{self.url} holds {others[0]} but no run of pellucid benchmark; choose another folder"
                )
            return None
        first = obstacle(found.identity, record.identity)
        if first is None and found.hash != record.hash:
            first = first_difference(found.decisive, record.decisive)
        if first is not None:
            less = first.startswith(GROWING) and " there alone" in first
            more = ", or name those too: a run can only be given more" if less else ""
            raise OutputNotWritable(
                f"{self.url} holds the results of another spec: {first}; choose another folder{more}"
            )
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system frees when its process ends in whatever way."""
        if self.local is None:
            yield
            return
        with writable(self.url):
            for folder in (PARTS, PICTURES):
                (self.local / folder).mkdir(parents=True, exist_ok=True)
        with alone(self.local / LOCK, self.url):
            for folder in ("", PARTS, PICTURES):
                self.folder.clear_drafts(folder)
            yield

    def write(
        self,
        cell: str,
        rows: pyarrow.Table,
        pictures: pyarrow.Table,
        answers: Answered | None = None,
        notes: Mapping[Note, int] = MappingProxyType({}),
    ) -> None:
        """Store what a cell gave; from then on it is finished, even if the next finds a full disk."""
        # The pictures come first: a cell is finished by its part, and would else be finished without them.
        self.write_pictures(cell, pictures)
        told = {} if answers is None else {ANSWERED: answers.model_dump_json().encode()}
        told |= {NOTED: json.dumps(sorted(notes.items())).encode()} if notes else {}
        self.folder.write(f"{PARTS}/{cell}.parquet", self._parquet(rows, told=told))

    def write_pictures(self, cell: str, pictures: pyarrow.Table) -> None:
        """Store pictures, if there are any."""
        name = f"{PICTURES}/{cell}.parquet"
        if len(pictures):
            self.folder.write(name, self._parquet(pictures, _TOGETHER))
        else:
            self.folder.remove(name)

    def _parquet(
        self, table: pyarrow.Table, together: int | None = None, told: Mapping[bytes, bytes] | None = None
    ) -> bytes:
        facts = {CHECKSUM: checksum(table, _beside(told or {})), RUN_HASH: self.run, **(told or {})}
        buffer = io.BytesIO()
        table = table.replace_schema_metadata(facts)
        pyarrow.parquet.write_table(table, buffer, compression="zstd", row_group_size=together)
        return buffer.getvalue()

    def has_photos(self) -> bool:
        """Whether whole pictures of the photos are here."""
        return bool(self.whole(PICTURES, [PHOTOS], PICTURE_ROWS))

    # Reading.

    def record(self) -> RunRecord | None:
        """What run.json says; None if there is none."""
        return self._again(self._told)

    def begun(self) -> RunRecord | None:
        """The same, but None where run.json is damaged, which is ``opened``'s to tell."""
        try:
            return self.record()
        except DamagedRun:
            return None

    def _told(self) -> RunRecord | None:
        content = self.folder.read(RUN)
        return None if content is None else RunRecord.read(content, self.url)

    def others(self) -> list[str]:
        """Files here, less hidden ones and empty folders."""
        if self.folder.is_file():
            return ["a file"]
        return sorted(name for name in self.folder.names() - {PARTS, PICTURES} if not name.startswith("."))

    def has_all(self, cells: Sequence[str]) -> bool:
        """Whether there is a part of every cell, whole or not."""
        return set(cells) <= set(self.names(PARTS))

    def finished(self, cells: Sequence[str]) -> set[str]:
        """Those of the cells whose part is there and whole; other files beside them are none of ours."""
        return set(self.whole(PARTS, cells, ROWS))

    def damaged_pictures(self, cells: Sequence[str]) -> set[str]:
        """Those of the cells whose pictures are there, but damaged."""
        there = self.names(PICTURES) & set(cells)
        return there - self.whole(PICTURES, sorted(there), PICTURE_ROWS).keys()

    def strangers(self, folder: str, cells: Sequence[str]) -> list[str]:
        """Files among the parts or pictures that are none of the run's; no drafts."""
        there = {name for name in self.folder.names(folder) if not name.startswith(".")}
        return sorted(there - {f"{cell}.parquet" for cell in cells})

    def names(self, folder: str) -> set[str]:
        """The cells that have a file in a folder."""
        return {name.removesuffix(".parquet") for name in self.folder.names(folder)}

    def _part(self, name: str, schema: pyarrow.Schema) -> pyarrow.Table | None:
        """A part of this run, read whole; None if it is damaged, or another run's."""
        try:
            return self._again(lambda: self._checked(name, schema))
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            # Elsewhere it means that the store did not answer, of which nothing follows about the part.
            if type(error) is InvalidData and self.local is None:
                raise
            warnings.warn(DamagedFileWarning(f"{self.url}/{name} cannot be used: {error}"), stacklevel=2)
            return None

    def _again(self, read: Callable[[], _T]) -> _T:
        """What is read; elsewhere once more if it is damaged: a connection may have cut it short."""
        try:
            return read()
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            if type(error) is InvalidData or self.local is not None:
                raise
            return read()

    def _checked(self, name: str, schema: pyarrow.Schema) -> pyarrow.Table:
        content = self.folder.read(name)
        if content is None:
            raise ValueError("it is gone")
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        told = table.schema.metadata or {}
        # Runs of earlier versions have neither.
        expected, run = told.get(CHECKSUM), told.get(RUN_HASH, self.run.encode())
        found = checksum(table, _beside(told))
        if expected not in (None, found) or not _completed(table, schema).schema.equals(schema):
            raise ValueError("it does not hold what was written")
        if run != self.run.encode():
            raise ValueError("it is of another run")
        _answers(table), _notes(table)
        return _completed(table, schema)

    def photographed(self) -> set[str]:
        """The images whose photos are here, by name: nothing else is read; none where they are damaged."""
        try:
            with self.folder.opened(f"{PICTURES}/{PHOTOS}.parquet") as file:
                return set(pyarrow.parquet.read_table(file, columns=["image"])["image"].to_pylist())
        except (pyarrow.ArrowException, OSError, ValueError, KeyError):
            return set()

    def photos_of(self, image: str) -> pandas.DataFrame:
        """The photos of one image, as each model sees it; only the few that are stored with it are read."""
        try:
            with self.folder.opened(f"{PICTURES}/{PHOTOS}.parquet") as file:
                found = pyarrow.parquet.read_table(file, filters=[("image", "==", image)])
                return one_table({PHOTOS: found}, PICTURE_ROWS)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InvalidData(
                f"the photos in {self.url} are damaged ({error}); run the benchmark again"
            ) from error

    def whole(self, folder: str, cells: Sequence[str], schema: pyarrow.Schema) -> dict[str, pyarrow.Table]:
        """The parts of the cells that have one that is whole, in the order of the cells, each read once."""
        there = self.names(folder)
        found = {cell: self._part(f"{folder}/{cell}.parquet", schema) for cell in cells if cell in there}
        return {cell: part for cell, part in found.items() if part is not None}


def _answers(part: pyarrow.Table) -> Answered | None:
    """What a part tells of how its variant answers, if it does; ``ValueError`` where that cannot be."""
    told = (part.schema.metadata or {}).get(ANSWERED)
    return None if told is None else Answered.model_validate_json(told)


def _notes(part: pyarrow.Table) -> dict[Note, int]:
    """The warnings that a part tells of, counted as ``noted`` does; ``ValueError`` where that cannot be."""
    told = (part.schema.metadata or {}).get(NOTED)
    found = [] if told is None else _NOTES.validate_json(told)
    return dict.fromkeys(found, 0) if found and isinstance(found[0], Note) else dict(found)


def _beside(told: Mapping[bytes, bytes]) -> bytes:
    """What a part tells beside its values, which its checksum is of too."""
    return told.get(ANSWERED, b"") + told.get(NOTED, b"")


def _completed(table: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """A table with the columns of trainings and targets, which parts of earlier versions lack."""
    for place, column in enumerate(schema):
        if column.name in ("training", "target") and column.name not in table.column_names:
            table = table.add_column(place, column, pyarrow.nulls(len(table), column.type))
    return table


def _with_trainings(table: pandas.DataFrame, record: RunRecord) -> pandas.DataFrame:
    """A table whose trainings are told by their number; earlier versions had images called ``run 0`` for them."""
    table["training"] = table["training"].astype("Int64")
    trained = [text for text, metric in record.metrics.items() if metric.by_training]
    older = table["metric"].isin(trained) & table["training"].isna()
    if older.any():
        names = table["image"].astype(object)
        table.loc[older, "training"] = names[older].str.removeprefix("run ").astype("Int64")
        table["image"] = names.mask(older).astype("category")
    return table


def one_table(parts: Mapping[str, pyarrow.Table], schema: pyarrow.Schema) -> pandas.DataFrame:
    """Parts as one table."""
    tables = [schema.empty_table(), *(part.replace_schema_metadata() for part in parts.values())]
    table = pyarrow.concat_tables(tables).unify_dictionaries().to_pandas()
    for name in ("variant", "method", "layer"):
        if "" in table[name].cat.categories:  # earlier versions' null
            table[name] = table[name].cat.remove_categories("")
    return table


def checksum(table: pyarrow.Table, told: bytes = b"") -> bytes:
    """The SHA-256 of a table's values, however they are encoded, and of what else is ``told`` beside them."""
    content = sha256(told)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pyarrow.types.is_dictionary(column.type):
            # Which number a dictionary gives a text depends on
            # how parts were written, so it is encoded anew below.
            column = column.cast(column.type.value_type)
        if pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type):
            content.update(name.encode() + column.to_numpy(zero_copy_only=False).tobytes())
            continue
        values = column.dictionary_encode()
        content.update(name.encode() + values.indices.to_numpy(zero_copy_only=False).tobytes())
        for value in values.dictionary.to_pylist():
            raw = value.encode() if isinstance(value, str) else value
            # Values come with their lengths, or ("ab", "c") and ("a", "bc") would have one checksum.
            content.update(len(raw).to_bytes(8, "little") + raw)
    return content.hexdigest().encode()
