"""Images to explain, from files, folders, Parquet tables and data set libraries, all as one kind of sample."""

from __future__ import annotations

import inspect
import json
import operator
import os
import tarfile
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, overload

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import torchvision
from PIL import Image
from pydantic import Field, Strict
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..bounds import IMAGES, require_unpacked
from ..errors import InputWarning, InvalidData, InvalidImage, UnknownName, brief, counted, shortened
from ..files import no_file, open_regular, require_regular
from ..folders import Folder, files_below
from ..kinds import of_kinds, require_kind
from ..pixels import AnyImage, Pixels, image_of
from .reading import mask_of, read_image
from .shapes import ShapesDataset

Box = tuple[float, float, float, float]
Classes = tuple[str, ...] | None

SUFFIXES = (".bmp", ".dcm", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ARRAYS = (".npy", ".npz")  # of a folder without images
_TABLES = "tables and tars"  # what files of many images are called
SHARDS = (".parquet", ".tar")  # files of many images
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_MOST_DIGITS = 9  # of a label
_SHAPES_COUNT, _SHAPES_SEED = 1000, 2  # the images that the bundled network was validated on


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes:
        name: unique within its source; a file's name or a row's.
        image: upright, fully decoded: RGB or RGBA of 8 bits, or ``Pixels`` of any other kind.
        label: an index into the source's classes; None where unknown.
        mask: gray, of the image's size, white on the object; None where there is none.
        boxes: the objects' (x0, y0, x1, y1) in pixels of the image; None where unknown.
        file: the image's own file; None for what is part of another, drawn, or elsewhere.
    """

    name: str
    image: AnyImage
    label: int | None = None
    mask: Image.Image | None = None
    boxes: tuple[Box, ...] | None = None
    file: Path | None = None


@dataclass(frozen=True, repr=False)
class Source(Sequence[Sample]):
    """A sequence of samples, each read when it is asked for; ``source[:10]`` is a source too.

    A broken image raises :class:`InvalidImage` when it is reached, and the others can still be read.

    Attributes:
        names: the samples' names, known without reading an image.
        read: position -> sample.
        classes: the class names by label; None where unknown.
    """

    names: Sequence[str]
    read: Callable[[int], Sample]
    classes: Classes = None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'image')}: {shortened(self.names, 4)}>"

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Source: ...

    def __getitem__(self, index: int | slice) -> Sample | Source:
        positions = range(len(self.names))[index]
        if isinstance(positions, int):
            return self.read(positions)
        return Source(self.names[index], lambda position: self.read(positions[position]), self.classes)


@of_kinds
def open_images(
    spec: Any,
    label_column: str | None = None,
    split: str = "test",
    root: str | Path = "data",
    download: bool = False,
) -> Source:
    """Open images to explain, wherever they are; each is read when it is asked for.

    ``open_images(place)[0].image`` is the first as a model's ``preprocess`` takes it, whole as its file is.

    Args:
        spec: an image file (``read_image``); a folder, searched recursively in sorted order, whose first-level
            sub-folders are the classes if all images lie in one; a .parquet file in Hugging Face's image layout,
            a .tar as webdataset writes it (``KEY.jpg``, ``KEY.cls``), or a folder of either; a URL that fsspec
            knows, of a folder of images, a .parquet file or a .tar; ``"shapes"`` or ``"shapes:COUNT"`` for
            procedural images with masks; ``"torchvision:NAME"``; ``"hf:NAME"`` (needs the extra ``hf``); or a data
            set object of either library; or a Source.
        label_column: the table's column of labels, such as "imagenet_label"; None takes "label" if it is there.
        split: which part of a named data set; those that know only train and test take "train" or the rest.
        root: the folder of torchvision's data sets.
        download: whether torchvision may download into ``root``.

    Raises:
        InvalidData: nothing is there, no images are in it, or a table lacks a column.
        UnknownName: no such data set.
        InvalidImage: on reading a sample, not here.
    """
    if isinstance(spec, Source):
        return spec
    if not isinstance(spec, str | Path):
        return _from_dataset(spec, type(spec).__name__, label_column)
    if "://" in str(spec):
        return _from_url(str(spec), label_column)
    path = Path(spec)
    if os.path.isdir(path):  # which, unlike the path's own, takes any text
        return _from_folder(path, label_column)
    if os.path.isfile(path):
        return _from_shard(path, label_column) if path.suffix in SHARDS else _from_files([path])
    scheme, _, name = str(spec).partition(":")
    match scheme:
        case "shapes":
            return _from_shapes(name)
        case "torchvision":
            return _from_torchvision(name, split, Path(root), download)
        case "hf":
            return _from_hugging_face(name, split, label_column)
    raise InvalidData(f"{no_file(spec, 'file or folder')}; give {_SOURCES}")


_SOURCES = "an image, a folder, a .parquet table, shapes:COUNT, torchvision:NAME or hf:NAME"


# Files and folders.


def _from_files(paths: Sequence[Path], base: Path | None = None, classes: Classes = None) -> Source:
    """Image files; below ``base`` they are named by their relative paths, and labeled by class folder."""
    places = [path.name if base is None else path.relative_to(base).as_posix() for path in paths]
    # Bytes of a file's name that are no text stand as \xNN, since results are written as text.
    names = [name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in places]

    def read(position: int) -> Sample:
        label = None if classes is None else classes.index(names[position].partition("/")[0])
        return Sample(names[position], read_image(paths[position]), label, file=paths[position])

    return Source(names, read, classes)


def _from_folder(folder: Path, label_column: str | None) -> Source:
    """All images of a folder, or else all its arrays, or its tables and tars."""
    found = files_below(folder, (*SUFFIXES, *_ARRAYS, *SHARDS))
    files = {path.relative_to(folder).as_posix(): path for path in found}
    kind, names = _of_one_kind(list(files), folder)
    paths = [files[name] for name in names]
    images, shards = ([], paths) if kind == _TABLES else (paths, [])
    if images:
        folders = {path.relative_to(folder).parts[0] for path in images}
        # One image beside the folders is enough to tell that these are no classes.
        in_folders = all(path.parent != folder for path in images)
        return _from_files(images, folder, tuple(sorted(folders)) if in_folders else None)
    if shards:
        named = {path.relative_to(folder).with_suffix("").as_posix(): path for path in shards}
        return concatenated({name: _from_shard(path, label_column) for name, path in named.items()})
    raise InvalidData(
        f"{folder} holds no images; looked for {', '.join((*SUFFIXES, *_ARRAYS))}, {' and '.join(SHARDS)}"
    )


def _of_one_kind(names: Sequence[str], place: object) -> tuple[str, list[str]]:
    """A folder's images, or else its arrays, or its tables and tars, and what they are called.

    What lies beside them may be anything that belongs to them, so it is left out, and that is said.
    """
    kinds = {
        "images": [name for name in names if name.lower().endswith(SUFFIXES)],
        "arrays": [name for name in names if name.lower().endswith(_ARRAYS)],
        _TABLES: [name for name in names if name.endswith(SHARDS)],
    }
    (kind, kept), *others = [(kind, some) for kind, some in kinds.items() if some] or [("", [])]
    for other, left_out in others:
        message = (
            f"{place}: {other} beside the {kind} are left out ({len(left_out)}, such as "
            f"{left_out[0].rpartition('/')[2]}); to explain {other}, name them or a folder of them alone"
        )
        warnings.warn(InputWarning(message), stacklevel=5)
    return kind, kept


def _from_shard(path: Path, label_column: str | None) -> Source:
    return _from_tar(path) if path.suffix == ".tar" else _from_parquet(path, label_column)


def _from_url(url: str, label_column: str | None) -> Source:
    """Images below a URL, each read when it is asked for; or one table or tar, fetched whole."""
    folder = Folder(url)
    if url.endswith(SHARDS):
        found = _from_shard(folder.fetch(""), label_column)
        # The fetched file is removed with its ``Folder``, which the reader therefore holds.
        return replace(found, read=partial(_read_fetched, folder, found))
    kind, names = _of_one_kind(list(folder.files()), url)
    if not names or kind == _TABLES:
        raise InvalidData(
            f"{url} holds no images; looked for {', '.join((*SUFFIXES, *_ARRAYS))}; a table or tar is named itself"
        )

    def read(position: int) -> Sample:
        content = folder.read(names[position])
        if content is None:
            raise InvalidImage(f"{url}/{names[position]} is gone")
        return Sample(names[position], read_image(content, names[position]))

    return Source(names, read)


def _read_fetched(folder: Folder, source: Source, position: int) -> Sample:
    """A sample of a file that was fetched, which lives as long as its folder is known."""
    return source.read(position)


def _from_tar(path: Path) -> Source:
    """A tar as webdataset writes it: what a sample is made of follows one another and has one key, up to a dot."""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            # Only places are kept, by which each part is read when it is
            # asked for. A packed tar, which mode "r:" refuses, has none.
            members = [(one.name, one.offset_data, one.size) for one in tar if one.isfile() and not one.issparse()]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InvalidData(f"{path} is no readable tar ({error}); fetch it again") from error
    parts = _parts_by_key(members, path)
    images = {
        key: next(kind for kind in (*SUFFIXES, *_ARRAYS) if kind in kinds)
        for key, kinds in parts.items()
        if not kinds.keys().isdisjoint((*SUFFIXES, *_ARRAYS))
    }
    if not images:
        raise InvalidData(f"{path} holds no images; looked for KEY{', KEY'.join(SUFFIXES)}")
    keys, names = list(images), [f"{key}{kind}" for key, kind in images.items()]

    def content(key: str, kind: str) -> bytes:
        start, size = parts[key][kind]
        try:
            with open_regular(path) as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise InvalidImage(f"{key}{kind} of {path} cannot be read: {error.strerror or error}") from error

    def read(position: int) -> Sample:
        name, key = names[position], keys[position]
        label = content(key, ".cls").decode(errors="replace").strip() if ".cls" in parts[key] else ""
        if label and not (label.isdecimal() and len(label) <= _MOST_DIGITS):
            raise InvalidImage(f"{name}: the label is {brief(label)}; labels must be numbers of classes")
        return Sample(name, read_image(content(key, images[key]), name), int(label) if label else None)

    return Source(names, read)


def _parts_by_key(members: Sequence[tuple[str, int, int]], path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where the parts of each sample lie, by their kinds; of a kind there is one, and one image."""
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    named: dict[tuple[str, str], str] = {}
    for name, start, size in members:
        folder, _, file = name.rpartition("/")
        # A key goes up to the first dot, as webdataset has it: "a.seg.png" is another part of the sample "a".
        key, _, kind = file.partition(".")
        key, kind = f"{folder}/{key}".lstrip("/"), f".{kind.lower()}"
        alike = "image" if kind in SUFFIXES else kind
        if (key, alike) in named:
            raise InvalidData(
                f"{path} holds two files for one part of a sample, {named[key, alike]} and {name}; "
                "leave one out, or rename it up to its first dot"
            )
        named[key, alike] = name
        parts.setdefault(key, {})[kind] = start, size
    return parts


def concatenated(parts: Mapping[str, Source]) -> Source:
    """Put sources one after another; a sample's name begins with its part's, since parts may share names."""
    names = [f"{place}/{name}" for place, part in parts.items() for name in part.names]
    sources = list(parts.values())
    ends = list(accumulate(map(len, sources)))
    classes = _common_classes(parts)

    def read(position: int) -> Sample:
        which = bisect_right(ends, position)
        sample = sources[which][position - ends[which]]
        own, label = sources[which].classes, sample.label
        if own != classes and own is not None and classes is not None and label is not None:
            # The same class may have another number in each part.
            label = classes.index(own[label])
        return replace(sample, name=names[position], label=label)

    return Source(names, read, classes)


def renumbered(source: Source, numbers: Sequence[int] | None, classes: Classes) -> Source:
    """A source whose label k becomes ``numbers[k]``, of ``classes``; None for unknown.

    Where nobody names the classes anew, their names move along.
    """
    names = source.classes or ()
    if classes is None and numbers is not None and sorted(numbers) == list(range(len(names))):
        classes = tuple(names[numbers.index(number)] for number in range(len(names)))

    def read(position: int) -> Sample:
        sample = source[position]
        if sample.label is None or numbers is None:
            return replace(sample, label=None)
        if not 0 <= sample.label < len(numbers):
            raise InvalidData(f"{sample.name}: the label is {sample.label}, and {len(numbers)} classes are named")
        return replace(sample, label=numbers[sample.label])

    return Source(source.names, read, classes)


def _common_classes(parts: Mapping[str, Source]) -> Classes:
    """The classes of all parts: the first's, then others as they come; labels are moved to them by name."""
    named = {place: part.classes for place, part in parts.items()}
    told = [classes for classes in named.values() if classes is not None]
    if not told or all(classes == told[0] for classes in named.values()):
        return told[0] if told else None
    for place, classes in named.items():
        if classes is None:
            raise InvalidData(f"{place} does not name its classes, which others beside it do; open it on its own")
        if len(set(classes)) < len(classes):
            raise InvalidData(f"{place} names a class twice, and others beside it have other classes; rename one")
    return tuple(dict.fromkeys(name for classes in told for name in classes))


# Tables: Parquet files and Hugging Face's data sets, whose rows are alike.


def _from_parquet(path: Path, label_column: str | None) -> Source:
    """A Parquet file in Hugging Face's image layout; two row groups are in memory at a time."""
    try:
        require_regular(path)
        table = pyarrow.parquet.ParquetFile(path)
        columns = table.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidData(f"{path} is no readable Parquet file ({error})") from error
    image_column = _column_among(_IMAGE_COLUMNS, columns, f"{path}: no image column")
    label_column = _label_among(label_column, columns, str(path))
    for column in (image_column, label_column):
        if columns.count(column) > 1:
            raise InvalidData(f"{path}: {columns.count(column)} columns are called {column!r}; rename all but one")
    wanted = [image_column, *(c for c in (label_column, "mask", "boxes") if c is not None and c in columns)]
    ends = list(accumulate(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)))
    names = _row_names(table, image_column, path)
    classes = _class_names(table.schema_arrow.metadata, label_column)

    @lru_cache(maxsize=2)  # of the image read, and of the next ones that are read ahead
    def row_group(group: int) -> pyarrow.Table:
        return _row_group(table, group, wanted, path)

    def read(position: int) -> Sample:
        group = bisect_right(ends, position)
        rows = row_group(group)
        # ``ends`` counts to the end of each row group, so its beginning is that less the group's rows.
        [row] = rows.slice(position - ends[group] + rows.num_rows, 1).to_pylist()
        return _row_sample(names[position], row, image_column, label_column, path.parent, classes)

    return Source(names, read, classes)


def files_named(table: Path) -> list[Path]:
    """The files that a table's column of images names, as far as they are there; none of what is no such table."""
    try:
        found = pyarrow.parquet.ParquetFile(table)
        column = next((name for name in _IMAGE_COLUMNS if name in found.schema_arrow.names), None)
        if column is None or _holds_bytes(kind := found.schema_arrow.field(column).type):
            return []
        is_struct = pyarrow.types.is_struct(kind)
        cells = found.read(columns=[f"{column}.path" if is_struct else column]).column(column).to_pylist()
    except (pyarrow.ArrowException, KeyError, OSError, ValueError):  # told when its images are read
        return []
    paths = [(cell or {}).get("path") if is_struct else cell for cell in cells]
    inside = dict.fromkeys(path for path in paths if isinstance(path, str) and not _leads_out(path))
    return [place for path in inside if "\0" not in path and (place := table.parent / path).is_file()]


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type has encoded images alone."""
    if pyarrow.types.is_struct(kind):
        return "path" not in [one.name for one in kind]
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _row_group(
    table: pyarrow.parquet.ParquetFile, group: int, columns: Sequence[str], path: Path
) -> pyarrow.Table:
    """Columns of a row group, unless they would be far larger than they are packed."""
    about = table.metadata.row_group(group)
    parts = [about.column(index) for index in range(about.num_columns)]
    chosen = [part for part in parts if part.path_in_schema.partition(".")[0] in columns]
    # The footer tells both before anything is unpacked.
    unpacked, packed = sum(p.total_uncompressed_size for p in chosen), sum(p.total_compressed_size for p in chosen)
    require_unpacked(unpacked, packed, f"row group {group} of {path} holds", InvalidData)
    try:
        return table.read_row_group(group, columns=columns)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidImage(f"row group {group} of {path} is broken ({error}); fetch it again") from error


def _numbered(name: str, count: int) -> list[str]:
    """Names with numbers of as many digits as the last one has, so that they sort."""
    IMAGES.require(count, f"{name} has", InvalidData)
    return [f"{name}-{position:0{len(str(count - 1))}d}" for position in range(count)]


def _row_names(table: pyarrow.parquet.ParquetFile, image_column: str, path: Path) -> list[str]:
    """Rows are named by their images' paths where these are given and differ, else by their numbers."""
    numbered = _numbered("row", table.metadata.num_rows)
    kind = table.schema_arrow.field(image_column).type
    if not pyarrow.types.is_struct(kind) or ("path", pyarrow.string()) not in [
        (one.name, one.type) for one in kind
    ]:
        return numbered
    try:
        paths = table.read(columns=[f"{image_column}.path"]).column(image_column).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidData(f"the images' paths in {path} cannot be read ({error}); fetch it again") from error
    given = [(cell or {}).get("path") for cell in paths]
    seen = Counter(given)
    return [path if path and seen[path] == 1 else number for path, number in zip(given, numbered, strict=True)]


def _column_among(candidates: Sequence[str], columns: Sequence[str], problem: str) -> str:
    """The first candidate that the table has."""
    for candidate in candidates:
        if candidate in columns:
            return candidate
    raise InvalidData(f"{problem}; looked for {', '.join(candidates)} among its columns {shortened(columns)}")


def _label_among(label_column: str | None, columns: Sequence[str], place: str) -> str | None:
    """The column of labels: the one asked for must be there, the usual ones may be."""
    if label_column is not None:
        return _column_among([label_column], columns, f"{place}: no label column {label_column!r}")
    return next((column for column in _LABEL_COLUMNS if column in columns), None)


def _class_names(metadata: Mapping[bytes, bytes] | None, label_column: str | None) -> Classes:
    """The class names of a label column, from what Hugging Face writes into the schema."""
    try:
        names: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):  # of another program, or a column without names
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Boxes = Sequence[Annotated[tuple[_Number, _Number, _Number, _Number], Strict(False)]]


def _row_sample(
    name: str,
    row: Mapping[str, Any],
    image_column: str,
    label_column: str | None,
    folder: Path,
    classes: Classes = None,
) -> Sample:
    mask, boxes = row.get("mask"), row.get("boxes")
    label = None if label_column is None else _label(row[label_column], f"{name}: ", label_column, classes)
    return Sample(
        name,
        _cell_image(row[image_column], name, folder),
        label,
        None if mask is None else _mask_of(lambda called: _cell_image(mask, called, folder), name),
        None if boxes is None else tuple(require_kind(_Boxes, boxes, f"{name}: boxes", InvalidData)),
    )


def _mask_of(read: Callable[[str], AnyImage], name: str) -> Image.Image:
    called = f"the mask of {name}"
    return mask_of(read(called), called)


def _label(given: Any, place: str, column: str, classes: Classes) -> int | None:
    """A label of a table, where -1 stands for none, as Hugging Face's data sets have it."""
    if given is None or ((is_number := isinstance(given, int) and not isinstance(given, bool)) and given == -1):
        return None
    if not is_number:
        raise InvalidData(f"{place}the label is {brief(given)} in column {column!r}; labels must be integers")
    most_known = 10**_MOST_DIGITS if classes is None else len(classes)
    if not 0 <= given < most_known:
        most = "" if classes is None and given < 0 else f" to {most_known - 1}"
        raise InvalidData(f"{place}the label is {given} in column {column!r}; classes are numbered from 0{most}")
    return int(given)


def _cell_image(cell: Any, name: str, folder: Path) -> AnyImage:
    """The image of one cell: an image, encoded bytes, or the path of a file beside the table, or below."""
    if isinstance(cell, Image.Image):
        return image_of(cell, name)
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None:
        raise InvalidImage(f"{name}: the table holds neither bytes nor a path")
    if isinstance(cell, bytes):
        return read_image(cell, name)
    if not isinstance(cell, str):
        raise InvalidImage(f"{name}: the table holds {brief(cell)}; an image is bytes or a file's path")
    if _leads_out(cell):
        raise InvalidImage(
            f"{name}: the table's path {brief(cell)} leads out of its folder, where nothing is read"
        )
    file = Path(os.path.realpath(folder / cell)) if "\0" not in cell else folder / cell
    if not file.is_relative_to(os.path.realpath(folder)):  # by a link inside
        raise InvalidImage(
            f"{name}: the table's path {brief(cell)} leads by a link out of its folder, where nothing is read; "
            "copy the file to there"
        )
    return read_image(file, name)


def _leads_out(path: str) -> bool:
    """Whether a table's path leads out of its folder, where nothing is read."""
    return os.path.isabs(path) or ".." in Path(path).parts


# Data set libraries.


def _from_shapes(count: str) -> Source:
    if count and not (count.isdecimal() and len(count) < 18 and int(count)):
        raise InvalidData(f"{brief(f'shapes:{count}')} has no number; write it as shapes:200")
    return _from_dataset(ShapesDataset(int(count or _SHAPES_COUNT), seed=_SHAPES_SEED), "shape")


def _from_torchvision(name: str, split: str, root: Path, download: bool) -> Source:
    factory = getattr(torchvision.datasets, name, None)
    if factory is None or name not in torchvision.datasets.__all__:
        raise UnknownName("torchvision data set", name, torchvision.datasets.__all__)
    known = {"root": str(root), "split": split, "train": split == "train", "download": download}
    settings = {key: known[key] for key in inspect.signature(factory).parameters if key in known}
    try:
        dataset = factory(**settings)
    except (RuntimeError, OSError, ValueError) as error:
        message = f"torchvision:{name} cannot be opened below {root} (split {split!r}): {error}"
        if isinstance(error, RuntimeError) and "download" in settings:
            arguments = ", ".join(f"{key}={value!r}" for key, value in (settings | {"download": True}).items())
            message += f'. To fetch it: python -c "from torchvision.datasets import {name}; {name}({arguments})"'
        raise InvalidData(message) from error
    return _from_dataset(dataset, name)


def _from_hugging_face(name: str, split: str, label_column: str | None) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise InvalidData(f"hf:{name} needs datasets; run: pip install 'pellucid[hf]'") from error
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library's own errors have no common base
        raise InvalidData(f"hf:{name} cannot be opened (split {split!r}): {error}") from error
    return _from_dataset(dataset, name, label_column)


def _from_dataset(dataset: Any, name: str, label_column: str | None = None) -> Source:
    """A data set object: torchvision's of (image, label, mask or nothing), or Hugging Face's of rows."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InvalidData(f"{name} is no data set: it has no length or no items; give a path or a data set")
    names = _numbered(name, len(dataset))
    if hasattr(dataset, "features"):
        return _from_rows(dataset, names, label_column)

    def read(position: int) -> Sample:
        item, here = dataset[position], names[position]
        image, label, mask = (*item, None, None)[:3] if isinstance(item, tuple | list) else (item, None, None)
        return Sample(
            here,
            _picture(image, here),
            None if label is None else _whole(label, here),
            None if mask is None else _mask_of(lambda called: _picture(mask, called), here),
        )

    classes = getattr(dataset, "classes", None)
    return Source(names, read, None if classes is None else tuple(map(str, classes)))


def _whole(label: Any, name: str) -> int:
    """A data set's label, a number or a tensor of one."""
    try:
        return operator.index(label)
    except TypeError as error:
        raise InvalidData(f"{name}: the label is {brief(label)}; labels must be integers") from error


def _from_rows(dataset: Any, names: Sequence[str], label_column: str | None) -> Source:
    columns = list(dataset.features)
    image_column = _column_among(_IMAGE_COLUMNS, columns, "the data set has no image column")
    label_column = _label_among(label_column, columns, "the data set")

    def read(position: int) -> Sample:
        try:
            row = dataset[position]
        except OSError as error:  # it decodes images itself
            raise InvalidImage(f"{names[position]} is broken or cut short ({error})") from error
        return _row_sample(names[position], row, image_column, label_column, Path(), classes)

    told = getattr(dataset.features[label_column], "names", None) if label_column else None
    classes = None if told is None else tuple(map(str, told))
    return Source(names, read, classes)


def _picture(pixels: Any, name: str) -> AnyImage:
    """What a data set gives for an image: a PIL image, or a tensor or array (H, W) or (C, H, W).

    Bytes, booleans (black and white) and floats in [0, 1] of one or three channels are pictures of 8 bits.
    """
    if isinstance(pixels, Image.Image | np.ndarray):
        return image_of(pixels, name)
    if not isinstance(pixels, Tensor):
        raise InvalidImage(f"{name} is {type(pixels).__name__}; a data set must give PIL images or tensors")
    if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InvalidImage(
            f"{name} holds values outside [0, 1] ({pixels.min():.3g} to {pixels.max():.3g}); "
            "leave the normalisation to the model's preprocess"
        )
    if pixels.dtype not in (torch.uint8, torch.bool) and not pixels.is_floating_point():
        return Pixels.of(pixels.numpy(), name)
    if pixels.dim() == 3 and len(pixels) not in (1, 3):
        return Pixels.of(pixels.movedim(0, -1).numpy(), name)
    image: Image.Image = to_pil_image(pixels.float() if pixels.dtype == torch.bool else pixels)
    return image.convert("RGB")
