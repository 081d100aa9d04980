"""Maps of many images as a Parquet data set: cut into shards, computed by any runner, and read again."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from ..data.sources import SHARDS, SUFFIXES, open_images
from ..errors import (
    DamagedFileWarning,
    InvalidData,
    InvalidParameter,
    OutputNotWritable,
    UnknownName,
    brief,
    first_difference,
)
from ..files import RUN, alone, file_name, require_regular, sealed, unsealed
from ..folders import Folder
from ..kinds import require_kind
from ..layers import explainable, select_layers
from ..outputs import Answering
from . import inputs
from .noticing import added, of_images, of_model, summed
from .planning import NO_RESULT, digests_of_files
from .record import DIGESTED, Change, Note, add_counts, hashed, versions
from .runners import Advance, Runner, inline
from .shards import MAP_ROWS, MAPS, Shard, ShardCell, hearing
from .spec import Images, MapsSpec, is_source_name, with_absolute_paths
from .store import LOCK

MANIFEST = "manifest.json"
_ASKING = 16  # shards whose ends are read at once
_MOST, _LEAST = 64, 4  # images of a shard, and shards, where nothing is said
Told = Callable[[str, int, int], None]
"""Called with what is counted, how many of these are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class MapsRun:
    """A data set of maps, at a folder or URL.

    Attributes:
        shards: by the names of their files in ``maps``, in the order of the images.
        failed: what was wrong with shards that could not be computed; the next call tries them again.
        of_model: what of the model makes its maps mean little.
    """

    url: str
    shards: Mapping[str, Shard]
    failed: Mapping[str, str] = field(default_factory=dict)
    of_model: Sequence[str] = ()

    @property
    def images(self) -> int:
        """How many images were explained."""
        return sum(shard.images for shard in self.shards.values())

    @property
    def maps(self) -> int:
        """How many maps there are."""
        return sum(shard.maps for shard in self.shards.values())

    @property
    def skipped(self) -> dict[str, str]:
        """What was wrong with each image that was left out."""
        return {name: reason for shard in self.shards.values() for name, reason in shard.skipped.items()}

    @property
    def notes(self) -> dict[Note, int]:
        """The warnings that arose while methods explained the images, and of how many each is (0: not known)."""
        found: dict[Note, int] = {}
        for shard in self.shards.values():
            add_counts(found, dict(shard.notes))
        return found

    @property
    def noticed(self) -> list[str]:
        """What makes the maps say less than they seem to: of the model, of its images and of variants."""
        shards = self.shards.values()
        wrong = dict.fromkeys(sentence for shard in shards for sentence in shard.wrong)
        changes = summed({name: Change(*one) for name, one in shard.changes.items()} for shard in shards)
        told = [change.told(name) for name, change in changes.items()]
        return [*self.of_model, *of_images(added(shard.odd for shard in shards)), *wrong, *told]


def write_maps(
    spec: MapsSpec,
    output: str | os.PathLike[str],
    *,
    runner: Runner = inline,
    advance: Advance = lambda done, total: None,
    tell: Told = lambda what, done, total: None,
    command: str = "",
) -> MapsRun:
    """Explain all images of a source, or what is left of them, and write their maps as Parquet shards.

    A shard is of ``images_per_cell`` images, or of one .tar or remote table. It is read ahead while it is
    explained, and written when it is whole. Its rows say of each map which image, layer, method, variant and
    target class it is of, the ``score`` of that class, and the ``shape``; ``data`` is float16 of at most 1 in
    magnitude, which times ``scale`` is the map. ``manifest.json`` names all shards, and what was wrong with images
    and shards that cannot be read, which are left out. A run that was ended in whatever way goes on where it was
    when it is called again.

    Args:
        spec: what to compute; what its ``images`` name may also be a .tar, a folder of them, or a URL.
        output: a folder, or a URL that fsspec knows; it is empty, new, or holds maps by the same settings.
        runner: as ``benchmark`` takes it; machines of a cluster write to ``output`` themselves.
        advance: called with the number of shards done and that of all.
        tell: called with ``"images"``, how many were explained or left out, and how many there are; with
            ``"shards"`` and their numbers where a source does not say how many images it has.
        command: what was typed, for run.json.

    Raises:
        OutputNotWritable: the folder holds something else, another process writes to it, or the disk is full.
        PellucidError: anything in the spec that cannot work.
    """
    folder = Folder(output)
    url = folder.url if folder.local is None else str(folder.local.absolute())
    spec = with_absolute_paths(spec)
    model = spec.models[0]
    try:
        identity = _identity(spec)
        cells = list(_cells(spec, url, hashed(identity)))
        # They are told only now: a shard's key must not depend on how many others there are.
        identity["shards"] = [cell.id for cell in cells]
        with nullcontext() if folder.local is None else alone(folder.local / LOCK, url):
            for place in ("", MAPS):
                folder.clear_drafts(place)
            facts: dict[str, Any] = {"made_by": "pellucid", "command": command, "versions": versions()}
            facts |= {"identity": identity}
            facts["is_class"] = not isinstance(inputs.model_of(spec, model.key).model, Answering)
            _claim(folder, facts | {"spec": spec.model_dump(mode="json")}, cells)
            shards = _finished(folder, cells)
            left = [cell for cell in cells if cell.id not in shards]
            failed: dict[str, str] = {}
            progress = _Progress(cells, set(shards), tell)
            advance(len(shards), len(cells))
            with hearing(progress.image):
                for done, outcome in enumerate(runner(spec, left), len(shards) + 1):
                    if isinstance(outcome.finished, Shard):
                        shards[outcome.cell.id] = outcome.finished
                    else:
                        failed[outcome.cell.id] = outcome.reason
                    progress.end(outcome.cell.id)
                    advance(done, len(cells))
            told = tuple(of_model(inputs.model_of(spec, model.key)))
            run = MapsRun(url, {cell.id: shards[cell.id] for cell in cells if cell.id in shards}, failed, told)
            folder.write(MANIFEST, sealed(_manifest(run)))
    finally:
        inputs.forget()
    return run


class _Progress:
    """How far a run is: by images where all shards say how many they have, else by shards."""

    def __init__(self, cells: Sequence[ShardCell], ended: set[str], tell: Told) -> None:
        self.sizes = {cell.id: None if cell.stop is None else cell.stop - cell.start for cell in cells}
        self.what = "shards" if None in self.sizes.values() else "images"
        if self.what == "shards":
            self.sizes = dict.fromkeys(self.sizes, 1)
        self.ended, self.within, self.tell = ended, 0, tell
        self.told()

    def image(self, count: int) -> None:
        """Count images of the shard that is being explained in this process."""
        self.within += count if self.what == "images" else 0
        self.told()

    def end(self, cell: str) -> None:
        """Count a whole shard."""
        self.ended.add(cell)
        self.within = 0
        self.told()

    def told(self) -> None:
        """Say how far it is."""
        done = sum(self.sizes[cell] or 0 for cell in self.ended)
        self.tell(self.what, done + self.within, sum(size or 0 for size in self.sizes.values()))


def _identity(spec: MapsSpec) -> dict[str, Any]:
    """All that decides the maps of an image, files by their content."""
    loaded = inputs.model_of(spec, spec.models[0].key)
    inputs.parsed(spec)
    explainable(loaded.model)
    select_layers(loaded.model, spec.layers)
    others = {"images", "models", "metrics", "pictures", "upsampling"}
    content = spec.model_dump(mode="json", exclude={*NO_RESULT, *others})
    shown = {"methods": list(spec.method_texts), "variants": list(spec.variant_texts)}
    texts = (*spec.methods, *spec.models[0].code, spec.asked)
    surrogates = {name: text for name, text in spec.variant_texts.items() if name != text}
    files = digests_of_files(texts, surrogates)
    if spec.target == "label" and loaded.classes:  # by which labels are matched
        content["classes"] = list(loaded.classes)
    return content | shown | {"model": inputs.digest_of_model(loaded), "files": files}


def _cells(spec: MapsSpec, output: str, key: str) -> Iterator[ShardCell]:
    """The shards, numbered in the order of the images."""
    for number, (place, start, stop, state) in enumerate(_stretches(spec.images, spec.images_per_cell)):
        name = f"{number:06d}_{file_name(place.rpartition('/')[2])[:60]}"
        digest = sha256(repr((key, start, stop, state)).encode()).hexdigest()[:16]
        yield ShardCell(name if stop is None else f"{name}_{start}", place, start, stop, digest, output)


def _stretches(images: Images, size: int | None) -> Iterator[tuple[str, int, int | None, str]]:
    """Places, from where to where, and what tells their content from another."""
    files = {} if is_source_name(images.source) else Folder(images.source).files()
    shards = {name: state for name, state in files.items() if f"{images.source}{name}".endswith(SHARDS)}
    # A folder of photos that also holds an archive is one of photos.
    if not shards or any(name.lower().endswith(SUFFIXES) for name in files):
        names = open_images(images.source, images.label_column, images.split, images.root).names
        for start, stop in _cut(len(names[: images.count]), size):
            # Names come with sizes and times, so that an image that was replaced is explained again.
            content = [(name, files.get(name, "")) for name in names[start:stop]]
            yield images.source, start, stop, hashed(content)
        return
    left = images.count
    for name, state in shards.items():
        place = f"{images.source.rstrip('/')}/{name}".rstrip("/")
        rows = _rows(place)
        if left:
            if rows is None:
                raise InvalidParameter(
                    f"--limit {images.count}: how many images {place} holds is not known before it is read; "
                    "name a smaller one, or leave out --limit"
                )
            rows = min(rows, left)
            left -= rows
        elif left == 0:
            return
        for start, stop in _cut(rows, size):
            yield place, start, stop, state


def _cut(count: int | None, size: int | None) -> Iterator[tuple[int, int | None]]:
    """From where to where shards of a size go; of what has no known count there is one.

    By default there are at least four where images are as many, so that an interruption loses little. Sizes are
    powers of two, since images that are added must not cut all others anew.
    """
    if count is None:
        yield 0, None
    else:
        # This is the greatest power of two of which there are four at least.
        size = size or min(_MOST, 1 << max((count // _LEAST).bit_length() - 1, 0))
        yield from pairwise([*range(0, count, size), count])


def _rows(place: str) -> int | None:
    """How many rows a local table has; what is read whole, or cannot be read, has none to tell."""
    if place.endswith(".tar") or "://" in place:
        return None
    try:
        require_regular(place)
        return int(pyarrow.parquet.read_metadata(place).num_rows)
    except (pyarrow.ArrowException, OSError, ValueError):
        return None


def _claim(folder: Folder, facts: Mapping[str, Any], cells: Sequence[ShardCell]) -> None:
    """Write run.json, unless it says the same already; anything else in the folder is refused.

    Without it, or where it is damaged, shards tell themselves whether they are of this run.
    """
    told = folder.read(RUN)
    others = sorted(name for name in folder.names() - {RUN, MAPS, MANIFEST} if not name.startswith("."))
    if told is None:
        if others := others or _strangers(folder, cells):
            raise OutputNotWritable(
                f"{folder.url} holds {others[0]} but no maps of this run; choose another folder"
            )
        if folder.local is not None:
            folder.write(RUN, sealed(facts))
        else:
            folder.create(RUN, sealed(facts))
        told = folder.read(RUN) or b""
    try:
        found = unsealed(told)
    except ValueError as error:
        if others := others or _strangers(folder, cells):
            message = f"{folder.url}/{RUN} is damaged ({error}), and {others[0]} is not of this run"
            raise OutputNotWritable(f"{message}; choose another folder") from error
        message = f"{folder.url}/{RUN} cannot be used: {error}: it is written anew"
        warnings.warn(DamagedFileWarning(message), stacklevel=3)
        folder.write(RUN, sealed(facts))
        return
    if "shards" not in found.get("identity", ()):
        raise OutputNotWritable(f"{folder.url} holds a run of another command; choose another folder")
    if found["identity"] != facts["identity"]:
        first = first_difference(_called(found["identity"]), _called(facts["identity"]))
        raise OutputNotWritable(f"{folder.url} holds other maps: {first}; choose another folder")


def _called(identity: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the maps, by what a reader calls it."""
    return {DIGESTED: identity.get("model"), **{name: one for name, one in identity.items() if name != "model"}}


def _strangers(folder: Folder, cells: Sequence[ShardCell]) -> list[str]:
    """The shards that are not of these cells as they are now: they would be read with the others."""
    keys = {f"{cell.id}.parquet": cell.key for cell in cells}
    names = sorted(name for name in folder.names(MAPS) if not name.startswith("."))
    return [
        f"{MAPS}/{name}"
        for name in names
        if name not in keys or ((shard := Shard.read(folder, f"{MAPS}/{name}")) and shard.key != keys[name])
    ]


def _finished(folder: Folder, cells: list[ShardCell]) -> dict[str, Shard]:
    """The shards that are there, whole and of what their places hold now."""
    there = folder.names(MAPS)
    named = [cell for cell in cells if f"{cell.id}.parquet" in there]
    # At a store each answer is waited for, so several are asked for at once.
    with ThreadPoolExecutor(_ASKING) as pool:
        found = pool.map(lambda cell: Shard.read(folder, f"{MAPS}/{cell.id}.parquet"), named)
        return {
            cell.id: shard
            for cell, shard in zip(named, found, strict=True)
            if shard is not None and shard.key == cell.key
        }


def _manifest(run: MapsRun) -> dict[str, Any]:
    """What manifest.json says: nothing that is not in the shards, but in one place."""
    shards = [
        {"file": f"{MAPS}/{name}.parquet", "source": shard.source, "start": shard.start}
        | {"images": shard.images, "maps": shard.maps}
        for name, shard in run.shards.items()
    ]
    return {
        "made_by": "pellucid",
        "images": run.images,
        "maps": run.maps,
        "shards": shards,
        "skipped": run.skipped,
        "noticed": run.noticed,
        "failed": dict(run.failed),
    }


def shards_told(folder: Folder) -> Sequence[str] | None:
    """The names of the shards of a data set, computed or not; None where there is none that can be read."""
    try:
        names = unsealed(folder.read(RUN) or b"{}").get("identity", {})["shards"]
        return [f"{name}.parquet" for name in names]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_maps(url: str | os.PathLike[str], **where: str | list[str]) -> pandas.DataFrame:
    """The maps of a data set that ``write_maps`` wrote, a row for each, as far as it is finished.

    ``where`` takes rows of one image, layer, method, variant or target, or of several, such as
    ``image=["a.jpg", "b.jpg"]``. The column ``map`` holds arrays (h, w) of float32; ``source`` and ``position``
    say where the image is: ``open_images(source)[position]``. ``show(rows)`` draws them.

    Raises:
        InvalidData: no maps are there, or a shard is damaged.
        UnknownName: no such column, or no such name in it, as far as the data set is finished.
    """
    folder = Folder(url)
    texts = [entry.name for entry in MAP_ROWS if entry.type in (pyarrow.string(), MAP_ROWS.field("layer").type)]
    for name in where:
        if name not in texts:
            raise UnknownName("column of the maps", name, texts)
    names = sorted(name for name in folder.names(MAPS) if name.endswith(".parquet") and not name.startswith("."))
    if not names and (told := shards_told(folder)) is not None:
        raise InvalidData(
            f"no shard of {folder.url} is finished yet, of {len(told)}; the same command of pellucid maps goes on"
        )
    if not names:
        raise InvalidData(f"there are no maps in {folder.url}; give the output folder of: pellucid maps")
    chosen = [(name, "in", [value] if isinstance(value, str) else list(value)) for name, value in where.items()]
    tables = [read_shard(folder, f"{MAPS}/{name}", chosen or None) for name in names]
    frame: pandas.DataFrame = pyarrow.concat_tables(tables).unify_dictionaries().to_pandas()
    for column, _, wanted in chosen:
        _require_there(url, column, [name for name in wanted if name not in set(frame[column])])
    columns = (frame.pop(name) for name in ("data", "shape", "scale"))
    frame["map"] = [
        np.frombuffer(data, "<f2").reshape(shape).astype(np.float32) * np.float32(scale)
        for data, shape, scale in zip(*columns, strict=True)
    ]
    return frame


def _require_there(url: str | os.PathLike[str], column: str, names: Sequence[str]) -> None:
    """Raise ``UnknownName`` where a data set has none of these names, each of which its chosen rows lack."""
    known = values_of(url, column) if names else []
    for name in names:
        if name not in known:
            raise UnknownName(column, name, [one for one in known if one is not None])


def values_of(url: str | os.PathLike[str], column: str) -> list[str]:
    """What a column of a data set's maps holds, each value once, without reading any map."""
    folder, found = Folder(url), dict[str, None]()
    for name in sorted(name for name in folder.names(MAPS) if name.endswith(".parquet") and name[0] != "."):
        with folder.reading(f"{MAPS}/{name}") as file:
            try:
                table = pyarrow.parquet.read_table(file, columns=[column])
            except (pyarrow.ArrowException, OSError, ValueError):  # told where its maps are read
                continue
        found |= dict.fromkeys(table[column].unique().to_pylist())
    return list(found)


def score_of(url: str | os.PathLike[str]) -> str:
    """What the scores of a data set's maps are: ``probability``, or ``value`` of what is no class."""
    told, spec = _told(url)
    return "probability" if spec.score == "softmax" and _is_class(told, spec) else "value"


def class_explained(url: str | os.PathLike[str]) -> bool:
    """Whether a data set's maps explain classes; else a difference of two, or what a function makes."""
    return _is_class(*_told(url))


def _told(url: str | os.PathLike[str]) -> tuple[dict[str, Any], MapsSpec]:
    """What a data set's run.json says, and the spec in it."""
    told = unsealed(Folder(url).read(RUN) or b"{}")
    return told, require_kind(MapsSpec, told.get("spec"), f"{url}/{RUN}: spec", InvalidData)


def _is_class(told: Mapping[str, Any], spec: MapsSpec) -> bool:
    """By what the model's names made of the target; earlier versions did not tell, so its text does."""
    return bool(told.get("is_class", not re.search(r" - |\.py(:|$)", spec.asked)))


def photo_of(url: str | os.PathLike[str], source: str, position: int) -> NDArray[np.uint8]:
    """The photo (H, W, 3) of a map as the model saw it, read anew from where it was.

    Raises:
        PellucidError: it, or the model, is no longer there.
    """
    _, spec = _told(url)
    images = spec.images
    sample = open_images(source, images.label_column, images.split, images.root)[position]
    preprocess = inputs.model_of(spec, spec.models[0].key).preprocess
    return np.asarray(preprocess.display(sample.image).convert("RGB"))


def read_shard(folder: Folder, name: str, chosen: Any = None) -> pyarrow.Table:
    """The rows of a shard, or those ``chosen`` of it.

    Raises:
        InvalidData: it is damaged, by the checksums of its pages.
    """
    with folder.reading(name) as file:
        try:
            table = pyarrow.parquet.read_table(file, filters=chosen, page_checksum_verification=True)
            return table.replace_schema_metadata().cast(MAP_ROWS)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InvalidData(
                f"{folder.url}/{name} is damaged ({brief(str(error))}); remove it and run the same command again"
            ) from error
