"""How a model wants its images: the crop, the channels and the normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ..errors import InvalidImage, InvalidParameter

_PerChannel = tuple[float, ...]


@dataclass(frozen=True)
class Preprocess:
    """Turn a PIL image into a model's input: resize, center crop, scale to [0, 1], normalize.

    ``(pixels / 255 - mean) / std``, the evaluation transform of torchvision's classifiers.

    Args:
        resize: length of the shorter side in pixels; (height, width) squashes; None leaves the size.
        crop: side of the square cut from the center; None leaves it.
        mean: one value per channel in units of [0, 1]; None where the model normalizes by itself.
        std: one positive value per channel; None likewise.
        channels: 3 for RGB, 1 for gray.
        interpolation: "nearest", "bilinear" or "bicubic", always antialiased.

    Raises:
        InvalidParameter: channels other than 1 or 3, or a mean or std of another length.
    """

    resize: int | tuple[int, int] | None = 256
    crop: int | None = 224
    mean: _PerChannel | None = (0.485, 0.456, 0.406)
    std: _PerChannel | None = (0.229, 0.224, 0.225)
    channels: int = 3
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InvalidParameter(f"Preprocess: channels={self.channels}; images have 1 or 3")
        if (self.mean is None) != (self.std is None):
            raise InvalidParameter("Preprocess: give both mean and std, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise InvalidParameter(
                    f"Preprocess: {name} has {len(values)} values for {self.channels} channels; give one each"
                )
        if self.std is not None and min(self.std) <= 0:
            raise InvalidParameter(f"Preprocess: std={self.std}; every value must be positive")

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the model's input (channels, H, W) float32 of one image."""
        return self.normalize(transforms.to_tensor(self.display(image)))

    def display(self, image: Image.Image) -> Image.Image:
        """Return the same crop as a picture, so that a map of the input can be laid over it."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            image = transforms.resize(image, size, InterpolationMode(self.interpolation))
        if self.crop is not None:
            image = transforms.center_crop(image, [self.crop])
        return image

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels - mean) / std`` of pixels (..., channels, H, W) in [0, 1], on their device."""
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device) for v in (self.mean, self.std))
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for a JSON file; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Build from the settings of :meth:`as_dict`, also after a trip through JSON.

        Raises:
            InvalidParameter: a setting that does not exist.
        """
        unknown = settings.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidParameter(f"Preprocess: unknown setting {sorted(unknown)[0]!r} in {dict(settings)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**values)


IMAGENET = Preprocess()
"""Resize to 256, center crop 224, ImageNet's mean and standard deviation."""


@dataclass(frozen=True)
class CustomPreprocess:
    """A user's own function from a PIL image to a model's input, as a file of a model may bring along."""

    function: Callable[[Image.Image], Tensor]

    mean: _PerChannel | None = None
    std: _PerChannel | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the model's input (channels, H, W) of one image.

        Raises:
            InvalidImage: the function returns anything but such a tensor.
        """
        pixels = self.function(image.convert("RGB"))
        if not isinstance(pixels, Tensor) or pixels.dim() != 3:
            found = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise InvalidImage(
                f"the model file's preprocess returned {found}; it must return a tensor (channels, H, W)"
            )
        return pixels.float()

    def display(self, image: Image.Image) -> Image.Image:
        """Return the input itself as a picture, stretched from its least to its greatest value.

        What the function crops is unknown, so this alone is sure to lie under the map.
        """
        pixels = self(image)
        low, high = pixels.min(), pixels.max()
        picture: Image.Image = transforms.to_pil_image((pixels - low) / (high - low).clamp_min(1e-12))
        return picture.convert("RGB")

    def as_dict(self) -> dict[str, Any]:
        """Return the function's name for a JSON file."""
        return {"function": getattr(self.function, "__qualname__", repr(self.function))}
