"""Where the objects are: masks in a folder, boxes in COCO's or VOC's files, by the images' names."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps

from ..bounds import ANNOTATIONS, TEXT_FILE
from ..errors import InputWarning, InvalidData, InvalidImage
from ..files import no_file, open_regular, read_regular
from ..folders import files_below
from ..pixels import Pixels
from .reading import mask_of, read_image, turn_of
from .sources import Box, Sample, Source

_VOID = 255  # the index of a palette's mask that belongs to nothing, as VOC has it
_T = TypeVar("_T")


class _Boxes(NamedTuple):
    """The boxes of an image, and the width and height that it had, as far as its file of boxes tells."""

    boxes: tuple[Box, ...]
    size: tuple[int, int] | None


def annotated_with(source: Source, masks: str | Path | None = None, boxes: str | Path | None = None) -> Source:
    """The images with masks or boxes from files of the same names, instead of their own.

    A name fits that is the same, else one that is no other image's and the same without its ending, in the same
    sub-folder, or alone if no other has it.

    Args:
        source: the images.
        masks: a folder of images. The object is white, where there are two values it is the one that is not 0,
            and of a palette (as VOC's masks) every index but 0 and 255.
        boxes: a COCO file (.json), or a folder of VOC's .xml files.

    Raises:
        InvalidData: no such place, or nothing in it has the name of an image; two names that fit one image alike;
            a file that cannot be read.
    """
    if masks is not None:
        of_images = _by_image(source, _files(Path(masks)), masks)
        source = _changed(source, lambda sample: _masked(sample, of_images.get(sample.name)))
    if boxes is not None:
        place = Path(boxes)
        known = _coco(place) if place.is_file() else _voc(place)
        found = _by_image(source, known, boxes)
        source = _changed(source, lambda sample: _boxed(sample, found.get(sample.name), place))
    return source


def _masked(sample: Sample, path: Path | None) -> Sample:
    """The sample with its mask; warns where it is not known which way up this lies."""
    mask = _mask(path)
    if path is not None and sample.file is not None and mask is not None and mask.size == sample.image.size:
        turned = turn_of(sample.file)
        # By a quarter of a photo that is no square the sizes tell.
        keeps_size = turned in (2, 3, 4) or mask.width == mask.height
        if turned != 1 and keeps_size and turn_of(path) == 1:
            message = (
                f"EXIF turns {sample.name} or mirrors it, and its mask has no such tag: it is taken for that of "
                "the photo as it is seen; where it was drawn on the stored pixels, save the photo upright"
            )
            warnings.warn(InputWarning(message), stacklevel=2)
    return replace(sample, mask=mask)


def _boxed(sample: Sample, known: _Boxes | None, place: Path) -> Sample:
    """The sample with its boxes, which must be of an image of its size."""
    if known is not None and known.size not in (None, sample.image.size):
        there, here = ("x".join(map(str, size or ())) for size in (known.size, sample.image.size))
        raise InvalidData(
            f"{place}: the boxes of {sample.name} are of an image of {there} pixels, and it has {here}; give the "
            "image that was annotated, upright, or scale its boxes and their width and height with it"
        )
    return replace(sample, boxes=None if known is None else known.boxes)


def _changed(source: Source, change: Callable[[Sample], Sample]) -> Source:
    return Source(source.names, lambda index: change(source[index]), source.classes)


def _by_image(source: Source, known: Mapping[str, _T], place: object) -> dict[str, _T]:
    """What is known by the names of files, by the names of the images that these fit."""
    images, places = set(source.names), {_stem(name) for name in source.names}
    stems, alone = dict[str, list[str]](), dict[str, list[str]]()
    for name in known:
        if name not in images:
            stems.setdefault(_stem(name), []).append(name)
        if _stem(name) not in places:  # else it is the image's there
            alone.setdefault(PurePath(_stem(name)).name, []).append(name)
    found = {}
    for name in source.names:
        fitting = [name] if name in known else stems.get(_stem(name), [])
        if len(fitting) > 1:
            raise InvalidData(f"{place}: {fitting[0]} and {fitting[1]} both fit the image {name}; leave one out")
        fitting = fitting or alone.get(PurePath(_stem(name)).name, [])
        if len(fitting) == 1:
            found[name] = known[fitting[0]]
    if not found:
        first, other = next(iter(source.names), "none"), next(iter(known), "nothing")
        raise InvalidData(
            f"{place} has nothing of the name of an image (the first image is {first!r}, and there is {other!r}); "
            "name them alike"
        )
    return found


def _stem(name: str) -> str:
    return PurePath(name).with_suffix("").as_posix()


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names below it."""
    if not folder.is_dir():
        raise InvalidData(f"there is no folder {folder} of masks; name one with an image for each image")
    return {path.relative_to(folder).as_posix(): path for path in files_below(folder)}


def _mask(path: Path | None) -> Image.Image | None:
    """A mask as black and white (``L``); None where an image has none."""
    if path is None:
        return None
    try:
        content = read_regular(path)
    except OSError as error:
        raise InvalidImage(f"the mask {path} cannot be read: {error.strerror or error}") from error
    image = read_image(content, f"the mask {path}")
    if not isinstance(image, Pixels) and not _is_gray(image):  # reading makes colors of a palette's indices
        with Image.open(io.BytesIO(content)) as file:
            if file.mode == "P":
                indices = np.asarray(ImageOps.exif_transpose(file))
                return _white((indices != 0) & (indices != _VOID))
    return _white(np.asarray(mask_of(image, f"the mask {path}")) > 127)


def _is_gray(image: Image.Image) -> bool:
    """Whether all colors are gray; a palette of them numbers no classes, and white may come first in it."""
    red, green, blue = (np.asarray(band) for band in image.convert("RGB").split())
    return np.array_equal(red, green) and np.array_equal(green, blue)


def _white(found: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(found, 255, 0).astype(np.uint8))


def _coco(path: Path) -> dict[str, _Boxes]:
    """The boxes (x, y, width, height) of a COCO file by the images' file names, as (x0, y0, x1, y1)."""
    try:
        with open_regular(path) as file:
            told = json.loads(ANNOTATIONS.read(file, str(path), InvalidData))
        names = {image["id"]: str(image["file_name"]) for image in told["images"]}
        if not all(PurePath(name).name for name in names.values()):
            raise ValueError("an image has no name")
        sizes = {names[image["id"]]: _size(image.get("width"), image.get("height")) for image in told["images"]}
        found: dict[str, list[Box]] = {name: [] for name in names.values()}
        for one in told["annotations"]:
            x, y, width, height = map(float, one["bbox"])
            found[names[one["image_id"]]].append((x, y, x + width, y + height))
    except InvalidData:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidData(
            f"{path} is no COCO file of boxes ({type(error).__name__}: {error}); it needs images with id and "
            "file_name, and annotations with image_id and bbox"
        ) from error
    return {name: _Boxes(tuple(boxes), sizes[name]) for name, boxes in found.items()}


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """The size of an image; None where it is not told, as by some by zeros."""
    size = int(float(width or 0)), int(float(height or 0))
    return size if min(size) > 0 else None


def _voc(folder: Path) -> dict[str, _Boxes]:
    """The boxes of a folder of VOC's .xml files, whose pixels count from 1 and whose ends are inside."""
    if not folder.is_dir():
        raise InvalidData(f"{no_file(folder, 'COCO file or folder of boxes')}; name one")
    return {path.name: _voc_boxes(path) for path in files_below(folder, (".xml",))}


def _voc_boxes(path: Path) -> _Boxes:
    try:
        with open_regular(path) as file:
            content = TEXT_FILE.read(file, str(path), InvalidData)
        # Comments begin so, too, and do no harm.
        if b"<!" in content.replace(b"<!--", b""):
            raise ValueError("it declares entities")  # which may be of any size
        told = ElementTree.fromstring(content)
        ends = [one.find("bndbox") for one in told.iter("object")]
        boxes = tuple(
            # Pixel 1 of VOC lies from 0 to 1 here, so the first end
            # moves by one and the last, which is inside, stays.
            (_end(box, "xmin") - 1, _end(box, "ymin") - 1, _end(box, "xmax"), _end(box, "ymax"))
            for box in ends
        )
        return _Boxes(boxes, _size(told.findtext("size/width"), told.findtext("size/height")))
    except InvalidData:
        raise
    except (OSError, ValueError, TypeError, LookupError, OverflowError, ElementTree.ParseError) as error:
        raise InvalidData(
            f"{path} is no VOC file of boxes ({error}); it needs object/bndbox with xmin, ymin, xmax, ymax"
        ) from error


def _end(box: Any, name: str) -> float:
    if box is None or box.findtext(name) is None:
        raise ValueError(f"an object has no {name}")
    return float(box.findtext(name))
