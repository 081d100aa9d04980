"""Images as they are given: pictures of 8 bits, and numbers of any type and any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InvalidImage, InvalidParameter, PellucidError, brief, counted
from .files import open_regular
from .kinds import of_kinds

Ends = tuple[float, float]
ScaleEnds = tuple[float, float, Literal["clip"]] | Ends
"""The values that become 0 and 1; those beyond go on below 0 and above 1, but with "clip" they end there."""
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's
_FRAMES = "pellucid: frames"  # where Pillow's images keep how many their file holds
_TURN = 274  # EXIF's orientation
_MEANING = 262  # TIFF's photometric interpretation, which says what numbers mean
_WHITE_IS_ZERO, _BLACK_IS_ZERO = _GRAY = (0, 1)  # of it
_PLAIN_ALPHA = 2  # of TIFF's tag 338, which says what a channel beyond gray or colors is


@dataclass(frozen=True, eq=False)
class Pixels:
    """An image (H, W, C) of numbers as its file has them.

    ``scale`` are the values that stand for 0 and 1: the least and greatest of 8 or 16 bits without a sign, a
    DICOM's window, which clips, floats as they are; None where nothing tells them. ``name`` is what errors call
    the image, ``has_alpha`` says that its last channel is transparency, ``frames`` how many images its file holds,
    of which this is the first, and ``inverted`` that the least value is white, as a DICOM's MONOCHROME1.
    """

    values: np.ndarray
    scale: ScaleEnds | None = None
    name: str = "the image"
    has_alpha: bool = False
    frames: int = 1
    inverted: bool = False

    @classmethod
    @of_kinds
    def of(cls, values: np.ndarray, name: str, scale: ScaleEnds | None = None) -> Pixels:
        """Take an array (H, W), (H, W, C) or (C, H, W): of three dimensions the smaller end is the channels'.

        Raises:
            InvalidImage: another shape, or no numbers.
        """
        if values.dtype.kind not in "buif" or values.ndim not in (2, 3) or 0 in values.shape:
            raise InvalidImage(
                f"{name} is {values.dtype} of shape {values.shape}; give numbers (H, W), (H, W, C) or (C, H, W)"
            )
        # Torch takes numbers in the machine's own order of bytes alone.
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.ndim == 2:
            values = values[..., None]
        elif values.shape[0] < values.shape[2]:
            values = np.moveaxis(values, 0, 2)
        return cls(np.ascontiguousarray(values), scale or scale_of(values.dtype), name)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow's images have them."""
        return self.values.shape[1], self.values.shape[0]

    def used(self) -> float:
        """The share of its scale that an image uses; 1 where it has none, or floats that stay as they are."""
        is_as_it_is = self.values.dtype.kind in "fb" and self.scale == scale_of(self.values.dtype)
        if self.scale is None or is_as_it_is:
            return 1.0
        low, high = self.ends
        return (high - low) / (self.scale[1] - self.scale[0])

    @property
    def ends(self) -> Ends:
        """The least and the greatest value."""
        return float(self.values.min()), float(self.values.max())

    @property
    def brightness(self) -> np.ndarray:
        """The values with the greatest as white: where the least is, they are inverted within the scale."""
        return sum(self.scale[:2]) - self.values if self.inverted and self.scale else self.values

    def tobytes(self) -> bytes:
        """The values, for digests."""
        return str(self.values.dtype).encode() + self.values.tobytes() + b"inverted" * self.inverted

    def scaled(self, scale: ScaleEnds | None = None) -> Tensor:
        """The values (C, H, W) in float32, ``scale`` (or the image's own) moved to 0 and 1, inverted to 1 and 0.

        Raises:
            InvalidImage: values that are not finite; nothing tells the scale.
        """
        if not np.isfinite(self.values).all():
            raise InvalidImage(f"{self.name} holds NaN or infinite values; clean or leave it out")
        scale = scale or self.scale
        if scale is None:
            low, high = self.values.min(), self.values.max()
            raise InvalidImage(
                f"{self.name} holds {self.values.dtype} from {low} to {high}, and nothing tells which values are "
                f"black and white; say it, such as by this image's own ends, beyond which others may reach: "
                f"--scale={low},{high}, in Python Preprocess(scale=({low}, {high}))"
            )
        black, white = scale[1::-1] if self.inverted else scale[:2]
        # They are doubles, since whole numbers of 32 bits have more digits than a single holds.
        moved = (self.values.astype(np.float64) - black) / (white - black)
        pixels = torch.from_numpy(np.moveaxis(moved, 2, 0).astype(np.float32))
        return pixels.clamp(0, 1) if "clip" in scale else pixels

    def given(self) -> Image.Image | np.ndarray:
        """The values as they are: a Pillow image of one channel where it has such a mode, else (H, W, C)."""
        if self.values.shape[2] == 1 and self.values.dtype in (np.uint16, np.int32, np.float32):
            return Image.fromarray(self.brightness[..., 0])
        return self.brightness

    def convert(self, mode: str) -> Image.Image:
        """A picture of the image, as Pillow's ``convert``."""
        return picture(self.scaled(self.scale or (float(self.values.min()), _above(self.values)))).convert(mode)


AnyImage = Image.Image | Pixels
GivenImage = AnyImage | np.ndarray


def one_of_many(image: AnyImage, frames: int) -> AnyImage:
    """The image with how many pages or frames its file holds, of which it is the first."""
    if isinstance(image, Pixels):
        return replace(image, frames=frames)
    image.info[_FRAMES] = frames
    return image


def frames_of(image: AnyImage) -> int:
    """How many pages or frames the file of an image holds, as far as ``one_of_many`` was told."""
    return image.frames if isinstance(image, Pixels) else int(image.info.get(_FRAMES, 1))


def as_picture(image: AnyImage) -> AnyImage:
    """Gray or colors of 8 bits, as of an array, as the Pillow image of the same pixels; anything else as it is.

    So an array gives a model what a photo does, of which Pillow resizes the 8 bits and not floats.
    """
    if not isinstance(image, Pixels) or image.values.dtype != np.uint8 or image.inverted:
        return image
    if image.values.shape[2] not in (1, 3) or image.scale != scale_of(image.values.dtype):
        return image
    values = image.values[..., 0] if image.values.shape[2] == 1 else image.values
    return one_of_many(Image.fromarray(values), image.frames)


def image_of(given: object, name: str = "the image") -> AnyImage:
    """An image that Python code has opened, as its file would be read (``pellucid.data.reading.read_image``).

    A Pillow image is turned upright, and one of a channel beyond 8 bits keeps its values; an array is what a .npy
    file of it would be.

    Raises:
        InvalidImage: another kind of thing, a broken image, or one of which Pillow has read only a part.
    """
    if isinstance(given, Pixels):
        return given
    if isinstance(given, np.ndarray):
        return Pixels.of(given, name)
    if isinstance(given, list | tuple):
        raise InvalidImage(
            f"{name} is {type(given).__name__} of {len(given)}; give one at a time, such as "
            "torch.stack([preprocess(image) for image in images])"
        )
    if not isinstance(given, Image.Image):
        raise InvalidImage(
            f"{name} is {type(given).__name__}; give a Pillow image, an array (H, W), (H, W, C) or (C, H, W), or "
            "pl.open_images(FILE)[0].image; a tensor of pixels in [0, 1] goes through normalize(tensor)"
        )
    if _is_reduced(given):
        file = getattr(given, "filename", "") or "FILE"
        raise InvalidImage(
            f"{name}: Pillow has read only a part of its {given.format} file, not all bits, numbers, pages; give "
            f"pl.open_images({brief(str(file))})[0].image, or image.copy() if this part is meant"
        )
    try:
        is_done = given.format is None and given.mode in ("RGB", "RGBA") and given.getexif().get(_TURN, 1) == 1
        return given if is_done else upright(given, name)  # large images are not copied for nothing
    except PellucidError:
        raise
    except Exception as error:  # a decoder given arbitrary bytes raises nearly anything
        raise InvalidImage(f"{name} is broken or cut short ({error}); fetch it again") from error


def _is_reduced(image: Image.Image) -> bool:
    """Whether Pillow has read less of a file than is in it, as far as an image still tells."""
    if image.format == "TIFF":
        return not is_whole_tiff(image)
    is_deep = image.format == "PNG" and image.mode[0] != "I" and _is_deep_file(getattr(image, "filename", ""))
    return is_deep or will_be_reduced(image)


def will_be_reduced(image: Image.Image) -> bool:
    """Whether Pillow will reduce colors of 16 bits to 8, told by how an image is to be decoded, until it is."""
    if image.format not in ("PNG", "PPM") or image.mode[0] == "I":
        return False
    tiles: Any = getattr(image, "tile", ())
    for *_, how in tiles:
        greatest = how[-1] if isinstance(how, tuple) else 0  # of a PPM
        if str(how).endswith("16B") or (isinstance(greatest, int) and greatest > 255):
            return True
    return False


def _is_deep_file(path: Any) -> bool:
    """Whether a file is a PNG of several channels of 16 bits."""
    try:
        with open_regular(path) as file:
            return is_deep_png(file.read(26))
    except (OSError, ValueError, TypeError):  # the image is of no file, or of none that is still there
        return False


def is_deep_png(start: bytes) -> bool:
    """Whether a file that starts so is a PNG of several channels of 16 bits, which Pillow reduces to 8."""
    return start[:4] == b"\x89PNG" and start[24:25] == b"\x10" and start[25:26] != b"\0"


def is_whole_tiff(image: Any) -> bool:
    """Whether Pillow reads all numbers of a TIFF that it has opened, and no other page may be a channel of it."""
    tags = ((258, (1,)), (277, 1), (339, (1,)))
    bits, samples, kinds = (image.tag_v2.get(tag, usual) for tag, usual in tags)
    is_unsigned = set(kinds) == {1}
    is_whole = is_unsigned if max(bits) == 8 else samples == 1 and (max(bits) < 32 or not is_unsigned)
    # Pages of gray may be channels of one image; of those whose numbers are colors the first is taken.
    is_gray = image.tag_v2.get(_MEANING) in _GRAY
    is_one = getattr(image, "n_frames", 1) == 1 or image.tag_v2.get(_MEANING) != _BLACK_IS_ZERO
    # Of several channels of gray Pillow gives the first, or none, unless the second is plain alpha beside it.
    has_alpha = image.tag_v2.get(338) == (_PLAIN_ALPHA,) and image.tag_v2.get(284, 1) == 1
    return bool(is_whole and samples <= 4 and is_one and not (is_gray and samples > 1 and not has_alpha))


def upright(image: Image.Image, name: str) -> AnyImage:
    """A decoded image, turned as EXIF says: RGB or RGBA of 8 bits, else ``Pixels``."""
    kind, tags = image.format, getattr(image, "tag_v2", {})  # turning forgets them
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        # Pillow turns the gray of 8 bits alone.
        if kind == "TIFF" and tags.get(_MEANING) == _WHITE_IS_ZERO:
            return Pixels.of(white_from_zero(values, tags.get(258, (1,))[0], name), name)
        # Pillow gives 16-bit gray of PNG and PGM as 32 bits in some versions.
        is_short = image.mode[0] == "I" and kind in ("PNG", "PPM")
        return Pixels.of(values.astype(np.uint16) if is_short else values, name)
    return image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") else "RGB")


def white_from_zero(values: np.ndarray, bits: int, name: str) -> np.ndarray:
    """The values of a TIFF in which 0 is white, with the greatest as white.

    Raises:
        InvalidImage: numbers of a type that does not tell the greatest, which is black.
    """
    if values.dtype.kind != "u":
        raise InvalidImage(
            f"{name}: in this TIFF 0 is white (photometric interpretation WhiteIsZero), and {values.dtype} does "
            "not tell which value is black; save it with 0 as black (BlackIsZero), or its numbers as .npy"
        )
    turned: np.ndarray = values.dtype.type(2**bits - 1) - values
    return turned


def _above(values: np.ndarray) -> float:
    return max(float(values.max()), float(values.min()) + 1e-12)


def require_picture(image: AnyImage, use: str) -> Image.Image:
    """Raise ``InvalidImage`` for an image that is no picture of 8 bits, where a ``use`` takes nothing else."""
    if isinstance(image, Pixels):
        raise InvalidImage(
            f"{image.name} is {image.values.dtype} of shape {image.values.shape}; {use} takes pictures of 8 bits"
        )
    return image


def scale_of(kind: np.dtype) -> Ends | None:
    """What stands for 0 and 1 in numbers of a type; floats stay as they are."""
    if kind.kind in "fb":
        return 0.0, 1.0
    return (0.0, float(np.iinfo(kind).max)) if kind in (np.uint8, np.uint16) else None


def with_channels(image: Pixels, channels: int, scale: ScaleEnds | None = None) -> Tensor:
    """``image.scaled(scale)`` as (channels, H, W): gray is repeated, colors are made gray, alpha is dropped.

    Raises:
        InvalidImage: any other number of channels.
    """
    pixels = image.scaled(scale)
    count = len(pixels)
    # Transparency is no color, unless the model asks for as many channels as the file has.
    if image.has_alpha and count != channels:
        pixels, count = pixels[:-1], count - 1
    if count == channels:
        return pixels
    if (count, channels) == (1, 3):
        return pixels.expand(3, -1, -1)
    if (count, channels) == (3, 1):
        return torch.einsum("c,chw->hw", pixels.new_tensor(_GREY), pixels)[None]
    held = (
        f"; its file holds {image.frames} pages or frames, of which this is the first: save what are channels as "
        "one array (height, width, channels), a .npy or a TIFF of one page (tifffile: planarconfig='contig', "
        "photometric='minisblack')"
    )
    way_out = (
        f"; explain a model of {counted(len(pixels), 'channel')}, in a model file with preprocess = "
        f"Preprocess(channels={len(pixels)}), or give a function of the array (height, width, channels) that "
        f"makes {channels} of them: --preprocess FILE.py:NAME"
    )
    raise InvalidImage(
        f"{image.name} has {counted(len(pixels), 'channel')}, and the model's preprocess wants {channels}"
        + (held if image.frames > 1 else way_out)
    )


@of_kinds
def picture(pixels: Tensor, bands: Sequence[int] | None = None, stretched: bool = False) -> Image.Image:
    """A picture of pixels (C, H, W) in [0, 1]: one channel is gray, three are red, green and blue.

    Of any other number the mean is shown, or the ``bands``, one or three channels numbered from 1; an empty
    sequence is the mean, too. ``stretched`` moves the least and greatest value to black and white.

    Raises:
        InvalidParameter: a band that the image does not have, or neither one nor three.
    """
    if pixels.dim() != 3 or not pixels.is_floating_point() or not pixels.numel():
        raise InvalidParameter(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; give floats (channels, H, W)")
    if bands:
        wrong = [band for band in bands if not 1 <= band <= len(pixels)]
        if wrong or len(bands) not in (1, 3):
            raise InvalidParameter(f"bands {list(bands)}: give one or three of the channels 1 to {len(pixels)}")
        pixels = pixels[[band - 1 for band in bands]]
    elif bands is not None or len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    if stretched:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    values = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values[..., 0] if len(pixels) == 1 else values)
