"""One image read from a file or its bytes: whole, upright, and as exact as the file has it."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..bounds import PIXELS, read_unpacked, require_unpacked_archive
from ..errors import InvalidImage, PellucidError, counted, shortened
from ..files import open_regular, read_regular
from ..pixels import (
    AnyImage,
    Pixels,
    ScaleEnds,
    is_deep_png,
    is_whole_tiff,
    one_of_many,
    scale_of,
    upright,
    white_from_zero,
    will_be_reduced,
)

# Pillow knows more, some of which start other programs or are rarely looked after.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_WHITISH = 0.9  # of white: what the greatest value of a mask with soft edges is at least
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PALETTE, _SEPARATED, _YCBCR, _WHITE_IS_ZERO = 3, 5, 6, 0  # of TIFF's tag 262, which says what numbers mean
_NO_COLORS = {
    _PALETTE: "palette",
    _SEPARATED: "separated (CMYK)",
    _YCBCR: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32844: "LogL",
    32845: "LogLuv",
}
_JPEG = (6, 7)  # of TIFF's tag 259: compressions whose YCbCr is decoded to colors
_DEFLATED, _HEADER, _GROUP = (
    b"1.2.840.10008.1.2.1.99",
    4096,
    144,
)  # of a DICOM: where its first group's length ends
_TURNS: dict[int, Callable[[Any], np.ndarray]] = {  # EXIF's orientations
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: lambda values: np.swapaxes(values, 0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(np.swapaxes(values, 0, 1), 2),
    8: np.rot90,
}


def read_image(source: str | Path | bytes, name: str | None = None) -> AnyImage:
    """Read one image, upright by its EXIF orientation and decoded to its last pixel.

    8-bit images are RGB, or RGBA where they have an alpha channel (which models of three channels do not see); all
    others are ``Pixels`` with the file's own numbers: 16 and 32 bits, floats, other numbers of channels (TIFF by
    tifffile, .npy, .npz with one array), and DICOM by pydicom. Of pages and frames the first is taken, and
    ``frames_of`` tells how many there are.

    Args:
        source: a file or its bytes.
        name: what an error calls the image; None takes the file's path.

    Raises:
        InvalidImage: missing, empty, truncated, too large to decode safely, or no image at all; or a package that
            reads its format is not installed.
    """
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    try:
        content = source if isinstance(source, bytes) else read_regular(source)
    except OSError as error:
        raise InvalidImage(f"{name} cannot be read: {error.strerror or error}") from error
    if not content:
        raise InvalidImage(f"{name} is empty (0 bytes); fetch it again")
    try:
        return _reader(content)(content, name)
    except UnidentifiedImageError as error:
        start = content[:12]
        raise InvalidImage(f"{name} is no image that can be read; its file starts with {start!r}") from error
    except Image.DecompressionBombError as error:
        raise InvalidImage(
            f"{name} is too large to decode safely ({error}); if it is to be trusted, set {PIXELS.variable}"
        ) from error
    except PellucidError:
        raise
    except Exception as error:  # a decoder given arbitrary bytes raises nearly anything
        raise InvalidImage(f"{name} is broken or cut short ({error}); fetch it again") from error


def turn_of(path: Path) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1, upright, where none is told."""
    with suppress(Exception), warnings.catch_warnings(), open_regular(path) as file:
        warnings.simplefilter("ignore")
        told = Image.open(file, formats=_FORMATS).getexif().get(274, 1)
        return int(told) if told in range(1, 9) else 1
    return 1


def mask_of(image: AnyImage, name: str) -> Image.Image:
    """A mask as gray of 8 bits, white on the object.

    Of two values the object has the one that is not 0, whatever it is, or the light one beside a dark one. Of
    more, as of soft edges, the greatest must be about white, and some must be on edges alone; else they may number
    several things.

    Raises:
        InvalidImage: it cannot be told which values are the object.
    """
    if isinstance(image, Pixels):
        values, white = image.brightness[..., 0], 0.0 if image.scale is None else image.scale[1]
    else:
        values, white = np.asarray(image.convert("L")), 255.0
    found = np.unique(values)
    low, high = found[0], found[-1]
    if np.isfinite(found).all() and low >= 0:
        # Of 0 and any other value, as of labels 0 and 1, the other is the object, however dark it looks.
        if len(found) == 1 or (len(found) == 2 and (low == 0 or low <= white / 2 < high)):
            return Image.fromarray(np.where((values == high) & (values != 0), 255, 0).astype(np.uint8))
        # Soft edges are lines; where every value also fills a square, it numbers a thing.
        if _WHITISH * white <= high <= white and not _has_areas_of_all(values, len(found)):
            return Image.fromarray((255 * (values / white)).round().astype(np.uint8))
    told = [f"{value:g}" for value in found.tolist()]
    raise InvalidImage(
        f"{name} holds {counted(len(told), 'value')} ({shortened(told, 6)}), and nothing tells which are the "
        "object; save it with two: 0 outside and 255 on the object"
    )


def _has_areas_of_all(values: np.ndarray, count: int) -> bool:
    """Whether each of the values (H, W), as many as ``count``, is that of four pixels in a square."""
    corner = values[:-1, :-1]
    is_level = (corner == values[1:, :-1]) & (corner == values[:-1, 1:]) & (corner == values[1:, 1:])
    return len(np.unique(corner[is_level])) == count


def _reader(content: bytes) -> Callable[[bytes, str], AnyImage]:
    """Who reads an image, by how its file starts."""
    # Who reads is told by what is inside, since names of files may lie, and bytes have none.
    if content[:6] == b"\x93NUMPY" or content[:4] == b"PK\x03\x04":
        return _from_numpy
    if content[128:132] == b"DICM":
        return _from_dicom
    if is_deep_png(content):
        return _from_deep_png
    return _from_tiff if content[:4] in _TIFF else _from_pillow


def _from_pillow(content: bytes, name: str) -> AnyImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which do no harm, and of size
        if PIXELS.value > PIXELS.most:
            Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound, which else ends what is lifted here
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        _require_size(image.size, name)
        if will_be_reduced(image):
            raise InvalidImage(f"{name} holds colors of 16 bits as {image.format}; save it as PNG, TIFF or .npy")
        image.load()
        found = upright(image, name)
        # A photo's second picture, as phones add one, is no page of it; what follows a first may be cut short.
        frames = 1
        with suppress(EOFError, OSError, SyntaxError, ValueError):
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        return found if frames == 1 else one_of_many(found, frames)


def _require_size(size: Sequence[int], name: str) -> None:
    """Refuse an image of too many pixels, before they are decoded."""
    PIXELS.require(math.prod(size), f"{name} of {' x '.join(map(str, size))} has", InvalidImage)


def _from_deep_png(content: bytes, name: str) -> Pixels:
    told = Image.open(io.BytesIO(content), formats=["PNG"])
    _require_size(told.size, name)
    upright_of = told.getexif().get(274, 1)
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError as error:  # later versions leave decoding to others
        raise InvalidImage(f"{name}: a PNG of several channels of 16 bits; save it as TIFF or .npy") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    values = np.ascontiguousarray(_turned(pixels.permute(1, 2, 0).numpy(), upright_of))
    return Pixels(values, scale_of(values.dtype), name, has_alpha=values.shape[2] in (2, 4))


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    return _TURNS[orientation](values) if orientation in _TURNS else values


def _from_tiff(content: bytes, name: str) -> AnyImage:
    """By Pillow what it reads whole, by tifffile the rest, as several channels of 16 bits, or more than four."""
    # What Pillow opens it need not decode, so that who reads a file is told before it is tried.
    with suppress(UnidentifiedImageError), _without_complaints("PIL.TiffImagePlugin"):
        told: Any = Image.open(io.BytesIO(content), formats=["TIFF"])
        if is_whole_tiff(told):
            return _from_pillow(content, name)
    try:
        import tifffile
    except ImportError as error:
        raise InvalidImage(f"{name}: this TIFF needs tifffile; run: pip install 'pellucid[tiff]'") from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        _require_size(series.shape, name)
        first: Any = file.pages[0]
        meaning = _meaning(first, name)
        try:
            values, axes = np.asarray(series.asarray()), series.axes
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            way = "run: pip install imagecodecs, or save it without compression"
            raise InvalidImage(f"{name}: this TIFF's compression needs imagecodecs; {way}") from error
        orientation, extra = first.tags.get(274), first.tags.get(338)
    frames = 1
    for axis in re.sub("[YXSC]", "", axes):  # depth, time and pages: the first of each
        frames *= values.shape[axes.index(axis)]
        values, axes = values.take(0, axes.index(axis)), axes.replace(axis, "", 1)
    order = [axes.index(axis) for axis in axes if axis in "YX"] + [
        axes.index(axis) for axis in "SC" if axis in axes
    ]
    # Rows and columns come first, then samples and channels, whichever of them the file has.
    values = values.transpose(order)
    values = values.reshape(*values.shape[:2], -1)
    turned = _turned(values, int(orientation.value) if orientation else 1)
    # ExtraSamples of TIFF: 1 is premultiplied and 2 is plain alpha; 0 is a channel of whatever kind.
    alpha = tuple(np.atleast_1d(extra.value)) if extra is not None else ()
    if meaning == _WHITE_IS_ZERO:
        turned = white_from_zero(turned, int(first.bitspersample), name)
    elif alpha == (1,):
        turned = _divided_by_alpha(turned, name)
    return Pixels(np.ascontiguousarray(turned), scale_of(values.dtype), name, alpha in ((1,), (2,)), frames)


def _meaning(page: Any, name: str) -> int | None:
    """A TIFF's photometric interpretation, where its numbers are gray, colors or channels of any kind."""
    tag = page.tags.get(262)
    meaning = None if tag is None else int(tag.value)
    is_decoded = meaning == _YCBCR and int(page.compression) in _JPEG
    if meaning in _NO_COLORS and not is_decoded:
        raise InvalidImage(
            f"{name}: this TIFF of {page.bitspersample} bits has the photometric interpretation "
            f"{_NO_COLORS[meaning]}, which is read of 8 bits alone; save it as RGB or gray, or its numbers as .npy"
        )
    if meaning == _WHITE_IS_ZERO and page.samplesperpixel > 1:
        raise InvalidImage(
            f"{name}: in this TIFF 0 is white (photometric interpretation WhiteIsZero), and nothing tells in "
            f"which of its {page.samplesperpixel} channels; save it with 0 as black (BlackIsZero), or as .npy"
        )
    return meaning


def _divided_by_alpha(values: np.ndarray, name: str) -> np.ndarray:
    """Colors that were multiplied by the alpha behind them, as they were before; as Pillow does for 8 bits."""
    ends = scale_of(values.dtype)
    if values.dtype.kind != "u" or ends is None:
        raise InvalidImage(
            f"{name}: this TIFF's colors of {values.dtype} are multiplied by its alpha (ExtraSamples 1); save it "
            "with plain alpha (ExtraSamples 2) or without"
        )
    colors, alpha = values[..., :-1].astype(np.float64), values[..., -1:]
    # Where nothing is seen, any color is as right; 0 stays 0.
    plain = (colors * ends[1] / np.maximum(alpha, 1)).round().clip(0, ends[1])
    return np.concatenate([plain.astype(values.dtype), alpha], axis=2)


@contextmanager
def _without_complaints(logger: str) -> Iterator[None]:
    """Without what a library logs on this thread: what it cannot read is read by another."""
    here, told = get_ident(), logging.getLogger(logger)

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != here

    told.addFilter(is_of_others)
    try:
        yield
    finally:
        told.removeFilter(is_of_others)


def _from_numpy(content: bytes, name: str) -> Pixels:
    if content[:2] == b"PK":
        require_unpacked_archive(io.BytesIO(content), name, InvalidImage)
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(found, np.ndarray):
        return Pixels.of(found, name)
    if len(found.files) != 1:
        raise InvalidImage(f"{name} holds {len(found.files)} arrays; an image is one array (H, W), (H, W, C)")
    return Pixels.of(found[found.files[0]], name)


def _from_dicom(content: bytes, name: str) -> Pixels:
    """The first frame in the units of its rescaling or modality's table, of MONOCHROME1 inverted.

    The window, where the file has one, stands for 0 and 1; else all values that its bits can hold.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut
    except ImportError as error:
        raise InvalidImage(f"{name}: DICOM needs pydicom; run: pip install 'pellucid[dicom]'") from error
    file = pydicom.dcmread(io.BytesIO(_undeflated(content, name)))
    frames = int(file.get("NumberOfFrames", None) or 1)
    _require_size((int(file.Columns), int(file.Rows), int(file.SamplesPerPixel), frames), name)
    values = file.pixel_array
    if frames != 1:
        values = values[0]
    if file.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, file)
    if values.ndim > 2:
        return replace(Pixels.of(values, name), frames=frames)
    _gather_of_first_frame(file)
    _require_line(file, name)
    if file.get("ModalityLUTSequence"):
        # A table's first index may be negative or beyond what the type of the values holds.
        values = values.astype(np.int64)
    values = apply_modality_lut(values, file)
    scale = low, high, *_ = _window(file)
    if not low < high:
        raise InvalidImage(f"{name}: its window ends at {high}, before it begins at {low}; mend WindowWidth")
    # Both say that the least value is white, and files of MONOCHROME1 say it twice.
    told = (file.PhotometricInterpretation, file.get("PresentationLUTShape"))
    is_inverted = told[0] == "MONOCHROME1" or told[1] == "INVERSE"
    gray = Pixels.of(values.astype(np.float32), name, scale)
    return replace(gray, frames=frames, inverted=is_inverted)


def _gather_of_first_frame(file: Any) -> None:
    """Put the first frame's rescaling and window where other files have them; enhanced ones group them."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (file.get(groups) or [])[:1]:
            for kind in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for told in (group.get(kind) or [])[:1]:
                    file.update(told)
    # pydicom rescales by both or not at all.
    file.setdefault("RescaleSlope", 1)
    file.setdefault("RescaleIntercept", 0)


def _require_line(file: Any, name: str) -> None:
    """Refuse a DICOM that is shown along a curve, which the ends of a window cannot tell."""
    way = "save what a viewer shows of it as PNG, or its values as .npy"
    has_window = file.get("WindowCenter") is not None and file.get("WindowWidth") is not None
    # Beside a window a table is another view, of which either may be taken (PS3.3, C.11.2.1.2).
    if file.get("VOILUTSequence") and not has_window:
        raise InvalidImage(f"{name}: its VOILUTSequence shows values by a table, which is not applied; {way}")
    curve = str(file.get("VOILUTFunction") or "LINEAR")
    if has_window and curve not in ("LINEAR", "LINEAR_EXACT"):
        raise InvalidImage(f"{name}: its VOILUTFunction is {curve}, a curve that is not applied; {way}")


def _undeflated(content: bytes, name: str) -> bytes:
    """A DICOM's content as it is, after it was tried that it does not inflate to more than is allowed."""
    if _DEFLATED in content[:_HEADER]:
        # What follows the first group is deflated as a whole, without a header (RFC 1951).
        start = _GROUP + int.from_bytes(content[_GROUP - 4 : _GROUP], "little")
        read = partial(zlib.decompressobj(-zlib.MAX_WBITS).decompress, content[start:])
        read_unpacked(read, len(content), name, InvalidImage)
    return content


def _window(file: Any) -> ScaleEnds:
    """The least and greatest value of a DICOM's window, else of its modality's table or its rescaled bits.

    What lies beyond a window is black or white (PS3.3, C.11.2.1.2).
    """
    center, width = file.get("WindowCenter"), file.get("WindowWidth")
    if center is not None and width is not None:
        first = [float(value[0] if hasattr(value, "__len__") else value) for value in (center, width)]
        return first[0] - first[1] / 2, first[0] + first[1] / 2, "clip"
    if file.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** int(file.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, is_signed = int(file.BitsStored), int(file.PixelRepresentation)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    # A negative slope turns the ends around.
    slope, intercept = float(file.RescaleSlope), float(file.RescaleIntercept)
    low, high = sorted(slope * end + intercept for end in ends)
    return low, high
