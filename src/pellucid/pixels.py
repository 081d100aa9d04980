"""Images that no 8-bit picture can hold: any number of channels, any type of number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import InvalidImage, InvalidParameter
from .kinds import of_kinds

Ends = tuple[float, float]
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


@dataclass(frozen=True, eq=False)
class Pixels:
    """An image (H, W, C) of numbers as its file has them.

    ``scale`` are the values that stand for 0 and 1: the least and greatest of 8 or 16 bits without a sign, a
    DICOM's window, floats as they are; None where nothing tells them. ``name`` is what errors call the image, and
    ``has_alpha`` says that its last channel is transparency.
    """

    values: np.ndarray
    scale: Ends | None = None
    name: str = "the image"
    has_alpha: bool = False

    @classmethod
    @of_kinds
    def of(cls, values: np.ndarray, name: str, scale: Ends | None = None) -> Pixels:
        """Take an array (H, W), (H, W, C) or (C, H, W): of three dimensions the smaller end is the channels'.

        Raises:
            InvalidImage: another shape, or no numbers.
        """
        if values.dtype.kind not in "buif" or values.ndim not in (2, 3) or 0 in values.shape:
            raise InvalidImage(
                f"{name} is {values.dtype} of shape {values.shape}; give numbers (H, W), (H, W, C) or (C, H, W)"
            )
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
        """The share of its scale that an image uses; 1 where it has none, or its values are no whole numbers."""
        if self.scale is None or self.values.dtype.kind not in "ui":
            return 1.0
        return (int(self.values.max()) - int(self.values.min())) / (self.scale[1] - self.scale[0])

    def tobytes(self) -> bytes:
        """The values, for digests."""
        return str(self.values.dtype).encode() + self.values.tobytes()

    def scaled(self, scale: Ends | None = None) -> Tensor:
        """The values (C, H, W) in float32, ``scale`` (or the image's own) moved to 0 and 1.

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
                f"black and white; give the model's Preprocess a scale, such as scale=({low}, {high})"
            )
        moved = (self.values.astype(np.float64) - scale[0]) / (scale[1] - scale[0])
        return torch.from_numpy(np.moveaxis(moved, 2, 0).astype(np.float32))

    def given(self) -> Image.Image | np.ndarray:
        """The values as they are: a Pillow image of one channel where it has such a mode, else (H, W, C)."""
        if self.values.shape[2] == 1 and self.values.dtype in (np.uint16, np.int32, np.float32):
            return Image.fromarray(self.values[..., 0])
        return self.values

    def convert(self, mode: str) -> Image.Image:
        """A picture of the image, as Pillow's ``convert``."""
        return picture(self.scaled(self.scale or (float(self.values.min()), _above(self.values)))).convert(mode)


AnyImage = Image.Image | Pixels


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


def with_channels(image: Pixels, channels: int, scale: Ends | None = None) -> Tensor:
    """``image.scaled(scale)`` as (channels, H, W): gray is repeated, colors are made gray, alpha is dropped.

    Raises:
        InvalidImage: any other number of channels.
    """
    pixels = image.scaled(scale)
    count = len(pixels)
    if image.has_alpha and count != channels:
        pixels, count = pixels[:-1], count - 1
    if count == channels:
        return pixels
    if (count, channels) == (1, 3):
        return pixels.expand(3, -1, -1)
    if (count, channels) == (3, 1):
        return torch.einsum("c,chw->hw", pixels.new_tensor(_GREY), pixels)[None]
    raise InvalidImage(f"{image.name} has {len(pixels)} channels, and the model's preprocess wants {channels}")


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
