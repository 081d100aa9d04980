"""How a model wants its images: the crop, the channels and the normalization."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ..bounds import PIXELS
from ..errors import InputWarning, InvalidImage, InvalidParameter, UnknownName, brief, failure, require_count
from ..files import run_file
from ..kinds import as_plain, require_settings
from ..pixels import (
    AnyImage,
    GivenImage,
    Pixels,
    ScaleEnds,
    as_picture,
    frames_of,
    image_of,
    picture,
    with_channels,
)

_PerChannel = tuple[float, ...]

# RectGrad's masks: gray below 200 is background (released code); exact masks are black and white anyway.
OBJECT = 200

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
_LITTLE = 0.25  # of the values that an image's bits can hold
_BEYOND = 0.05  # of an image's values that lie outside a scale
_LATER = ("scale", "bands")  # settings that files of facts need not have


@dataclass(frozen=True)
class Preprocess:
    """Turn an image into a model's input: resize, center crop, scale to [0, 1], normalize.

    ``((pixels - low) / (high - low) - mean) / std``, for 8 bits ``(pixels / 255 - mean) / std``, the evaluation
    transform of torchvision's classifiers.

    Args:
        resize: length of the shorter side in pixels; (height, width) squashes; None leaves the size.
        crop: side of the square cut from the center; None leaves it.
        mean: one value per channel in units of [0, 1]; None where the model normalizes by itself.
        std: one positive value per channel; None likewise.
        channels: 3 for RGB, 1 for gray, 4 for RGB and alpha, or as many as the images' files have.
        interpolation: "nearest", "bilinear" or "bicubic", always antialiased.
        scale: the values (low, high) that become 0 and 1; those beyond go on below 0 and above 1, unless
            (low, high, "clip") makes them 0 and 1, too. None is what the image's type or file tells: 0 and 255,
            0 and 65535 of 16 bits, a DICOM's window, which clips, floats as they are.
        bands: which channels ``display`` shows (``pellucid.pixels.picture``).

    Raises:
        InvalidParameter: no channel, a mean or std of another length, a scale out of order.
    """

    resize: int | tuple[int, int] | None = 256
    crop: int | None = 224
    mean: _PerChannel | None = (0.485, 0.456, 0.406)
    std: _PerChannel | None = (0.229, 0.224, 0.225)
    channels: int = 3
    interpolation: str = "bilinear"
    scale: ScaleEnds | None = None
    bands: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, as_plain(value))  # lists are taken as tuples
        require_settings(Preprocess, vars(self), "Preprocess")
        require_count("Preprocess: channels", self.channels)
        for side in [self.resize] if isinstance(self.resize, int) else self.resize or ():
            require_count("Preprocess: resize", side)
        if self.crop is not None:
            require_count("Preprocess: crop", self.crop)
            PIXELS.require(self.crop**2, f"Preprocess: crop={self.crop} makes")
        if self.scale is not None and not -math.inf < self.scale[0] < self.scale[1] < math.inf:
            raise InvalidParameter(f"Preprocess: scale={self.scale}; give the lower value first")
        if (self.mean is None) != (self.std is None):
            raise InvalidParameter("Preprocess: give both mean and std, or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise InvalidParameter(
                    f"Preprocess: {name} has {len(values)} values for {self.channels} channels; give one each"
                )
        if self.mean is not None and not all(map(math.isfinite, (*self.mean, *(self.std or ())))):
            raise InvalidParameter(f"Preprocess: mean={self.mean}, std={self.std}; give finite numbers")
        if self.std is not None and not min(self.std) > 0:
            raise InvalidParameter(f"Preprocess: std={self.std}; every value must be positive")

    def at_size(self, side: int) -> Preprocess:
        """The same for squares of ``side`` pixels, cut from the center of the image resized to it."""
        return replace(self, resize=side, crop=side)

    def __call__(self, image: GivenImage) -> Tensor:
        """Return the model's input (channels, H, W) float32 of one image.

        Args:
            image: of a sample of ``open_images``; or one that Pillow has opened, or an array (H, W), (H, W, C) or
                (C, H, W), which mean what their files mean to commands (``pellucid.pixels.image_of``).

        Raises:
            InvalidImage: its channels do not fit, nothing tells its scale, or Pillow has read only a part of it.

        Warns:
            InputWarning: no scale is given, and the image uses little of what its bits can hold; or one is given,
                and much of the image lies outside it.
        """
        image = image_of(image)
        pixels = self._cropped(image)
        if self.is_dark(image):
            warnings.warn(InputWarning(_DARK), stacklevel=2)
        if self._goes_on and self._outside(pixels):
            warnings.warn(InputWarning(_OUTSIDE), stacklevel=2)
        return self.normalize(pixels)

    def quietly(self, image: AnyImage) -> Tensor:
        """The same where whoever asks tells of odd images at the end."""
        return self.normalize(self._cropped(image))

    def is_dark(self, image: AnyImage) -> bool:
        """Whether an image uses so little of what its bits can hold that the model sees it nearly of one gray."""
        return isinstance(image, Pixels) and self.scale is None and image.used() < _LITTLE

    def beyond(self, image: AnyImage) -> float:
        """Which share of an image the model sees below 0 or above 1, outside a given scale; of little it is 0."""
        return self._outside(self._cropped(image)) if self._goes_on else 0.0

    @property
    def _goes_on(self) -> bool:
        """Whether values outside a given scale go on below 0 and above 1."""
        return self.scale is not None and "clip" not in self.scale

    def _outside(self, pixels: Tensor) -> float:
        # Resizing may round, or swing a little beyond sharp edges, which is no reason to speak of it.
        clear, share = (float(((pixels < -by) | (pixels > 1 + by)).float().mean()) for by in (0.01, 1e-6))
        return share if clear > _BEYOND else 0.0

    def display(self, image: GivenImage) -> Image.Image:
        """Return the same crop as a picture, so that a map of the input can be laid over it.

        A given ``scale`` is what is black and white, as is all beyond, which the model sees so only if the scale
        clips; without it what has more than 8 bits is stretched from its least to its greatest value.
        """
        image = as_picture(image_of(image))
        if isinstance(image, Image.Image) and self.bands is None and self.channels in _MODES:
            shown: Image.Image = self._moved(image.convert(_MODES[self.channels]))
            return shown if self.scale is None else shown.point(self._scaled_byte)
        return picture(self._cropped(image), self.bands, self.stretches(image))

    def stretches(self, image: AnyImage) -> bool:
        """Whether ``display`` shows an image with more contrast than the model may see."""
        return isinstance(as_picture(image), Pixels) and self.scale is None

    def _scaled_byte(self, value: int) -> int:
        """A value of 8 bits as a picture shows it under the scale."""
        low, high = self.scale[:2] if self.scale else (0, 255)
        return round(255 * min(1.0, max(0.0, (value - low) / (high - low))))

    def _cropped(self, image: AnyImage) -> Tensor:
        """Pixels (channels, H, W) in units of [0, 1]."""
        image = as_picture(image)
        if isinstance(image, Image.Image) and self.channels in _MODES:
            # As numbers first: to_tensor gives torch's default type, which may be a half.
            whole = transforms.pil_to_tensor(self._moved(image.convert(_MODES[self.channels])))
            pixels: Tensor = whole.contiguous().to(torch.float32) / 255
            if self.scale is None:
                return pixels
            pixels = (pixels * 255 - self.scale[0]) / (self.scale[1] - self.scale[0])
            return pixels.clamp(0, 1) if "clip" in self.scale else pixels
        given = image if isinstance(image, Pixels) else Pixels.of(np.asarray(image), "the image")
        given = replace(given, frames=frames_of(image))
        moved: Tensor = self._moved(with_channels(given, self.channels, self.scale))
        return moved

    def object_mask(self, mask: Image.Image) -> Tensor:
        """Where a gray mask shows the object (H, W), resized (nearest, so it stays exact) and cropped likewise."""
        # It is made black and white before it is resized, so that
        # grays at edges are decided by the mask's own pixels.
        moved = self._moved(mask.point(lambda gray: 255 * (gray >= OBJECT)), "nearest")
        shown: Tensor = transforms.pil_to_tensor(moved)[0] > 0
        return shown

    def _moved(self, image: Any, interpolation: str | None = None) -> Any:
        """A picture, or pixels, resized and cropped."""
        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            # The last two dimensions backwards are (width, height), as Pillow has them.
            self._require_size(image.shape[:-3:-1] if isinstance(image, Tensor) else image.size)
            mode = InterpolationMode(interpolation or self.interpolation)
            image = transforms.resize(image, size, mode, antialias=True)
        return image if self.crop is None else transforms.center_crop(image, [self.crop])

    def _require_size(self, size: Sequence[int]) -> None:
        """Refuse an image (width, height) that resizing would make too large, as a line of pixels."""
        height, width = self.resize if isinstance(self.resize, tuple) else (0, 0)
        if isinstance(self.resize, int):
            height, width = (max(self.resize, self.resize * side // min(size)) for side in size)
        thing = f"an image of {size[0]} x {size[1]}, resized to {self.resize}, has"
        PIXELS.require(height * width, thing, InvalidImage)

    def times_smaller(self, size: tuple[int, int]) -> tuple[float, float]:
        """How many times smaller resizing makes the width and the height of an image of this size."""
        if self.resize is None:
            return 1.0, 1.0
        if isinstance(self.resize, int):
            return (min(size) / self.resize,) * 2
        return size[0] / self.resize[1], size[1] / self.resize[0]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels - mean) / std`` of pixels (..., channels, H, W) in [0, 1], on their device."""
        if self.mean is None or self.std is None:
            return pixels
        mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device) for v in (self.mean, self.std))
        return (pixels - mean[:, None, None]) / std[:, None, None]

    @property
    def in_words(self) -> str:
        """What is done to a photo before the network sees it."""
        steps = [] if self.resize is None else [f"resized to {self.resize}"]
        steps += [] if self.crop is None else [f"cropped to {self.crop}"]
        ends = "" if self.scale is None else f" from [{self.scale[0]:g}, {self.scale[1]:g}]"
        steps += [f"scaled{ends} to [0, 1]"] if ends or not self.mean else []
        steps += ["clipped"] if "clip" in (self.scale or ()) else []
        if self.mean:
            steps.append("normalized as ImageNet's" if self.mean == IMAGENET.mean else "normalized")
        return f"{', '.join(steps[:-1])} and {steps[-1]}" if len(steps) > 1 else steps[0]

    def recolored(self, image: AnyImage) -> str:
        """What becomes of an image's channels, in words; empty if the network sees them as they are."""
        values = image.values if isinstance(image, Pixels) else np.asarray(image.convert("RGBA"))
        is_gray = values.shape[2] < 3 or bool((values[..., :1] == values[..., 1:3]).all())
        if self.channels == 3 and is_gray:
            return "is gray, and the network sees it as RGB, with three equal channels"
        if self.channels == 1 and not is_gray:
            return "has colors, and the network sees it in gray"
        if self.channels == 4 and isinstance(image, Image.Image) and image.mode != "RGBA":
            return "has no fourth channel, and the network sees a constant 1 there, as of an opaque image"
        hides = isinstance(image, Image.Image) and image.mode == "RGBA" and self.channels < 4
        return "has an alpha channel, which the network does not see" if hides else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values for a JSON file; :meth:`from_dict` reads them back."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in _LATER}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Build from the settings of :meth:`as_dict`, also after a trip through JSON.

        Raises:
            InvalidParameter: a setting that does not exist, or of another kind.
        """
        unknown = settings.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidParameter(
                f"Preprocess: unknown setting {sorted(unknown)[0]!r} in {brief(dict(settings))}"
            )
        return cls(**settings)


_DARK = (
    "images use little of what their bits can hold, so the model sees them nearly of one gray: say which values "
    "are black and white, those that it was trained with, by load_model(...).seeing(scale=(low, high)) or "
    "Preprocess(scale=(low, high))"
)

_OUTSIDE = (
    "much of an image lies outside the scale, so the model sees it below 0 or above 1: give the ends that it was "
    "trained with, or, if it learnt from clipped values, have these clipped by load_model(...).seeing(scale=(low, "
    "high, 'clip')) or Preprocess(scale=(low, high, 'clip'))"
)


def shown_of(preprocess: AnyPreprocess, channels: int) -> str:
    """What of the channels of a model's input its pictures show, in words; empty where that is its colors."""
    if preprocess.bands:
        names = [str(band) for band in preprocess.bands]
        return f"channels {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"channel {names[0]}"
    mean = f"the mean of the {channels} channels"
    if preprocess.bands is None and channels == 4:
        return f"the colors of RGBA files, of others {mean}"
    return mean if preprocess.bands is not None or channels not in _MODES else ""


def pixels_of(preprocess: Callable[[Any], Tensor], image: AnyImage) -> Tensor:
    """What a model sees of an image, where whoever asks tells of odd images at the end."""
    if isinstance(preprocess, Preprocess | CustomPreprocess):
        return preprocess.quietly(image)
    return preprocess(image)


IMAGENET = Preprocess()
"""Resize to 256, center crop 224, ImageNet's mean and standard deviation."""


def assumed(channels: int) -> Preprocess:
    """What is done where nobody says: as ImageNet's, of other channels than RGB without normalization."""
    return IMAGENET if channels == 3 else Preprocess(mean=None, std=None, channels=channels)


PREPROCESS_INSTEAD = (
    "a Preprocess takes images of any bits, such as Preprocess(mean=(.5,), std=(.5,), channels=1) of gray ones"
)
_PROBES = ((260, 300), (123, 97))  # heights and widths of pictures on which two functions are compared
_TENSORS = ("ToTensor", "ToImage", "ToDtype", "PILToTensor", "ConvertImageDtype")


def understood(function: Callable[[Any], Any], channels: int | None = None) -> Preprocess | None:
    """What a function of an image does, as a ``Preprocess``; None where it does something else.

    Torchvision's transforms (both versions) are understood: a ``Compose`` of Grayscale, Resize, CenterCrop,
    ToTensor and Normalize in this order, some of which may be missing, and what ``weights.transforms()`` gives. So
    it is known where pixels go, and masks and boxes go with them. It counts only where both give the same pixels.

    Args:
        function: the function.
        channels: of the model's input, which a Normalize of one mean does not tell, for it broadcasts; None where
            they are not known.
    """
    try:
        found = _of_steps(function, channels)
        if found is None:
            return None
        takes = 3 if _starts_gray(function) else found.channels
        return found if agree(found, function, takes=takes) else None
    except Exception:  # what else a function does with its parts and with pictures is its own affair
        return None


def _of_steps(function: Callable[[Any], Any], channels: int | None) -> Preprocess | None:
    kind = type(function).__name__
    if kind == "ImageClassification":
        preset: Any = function
        steps: Sequence[Any] = ()
        resize, crop, mean, std = preset.resize_size, preset.crop_size, preset.mean, preset.std
        interpolation = preset.interpolation
        return Preprocess(_sides(resize), _side(crop), tuple(mean), tuple(std), len(mean), interpolation.value)
    steps = _steps(function)
    by_kind = {type(step).__name__: step for step in steps}
    order = [name for name in by_kind if name not in _TENSORS]
    tensors = [name for name in by_kind if name in _TENSORS]
    expected = [name for name in ("Grayscale", "Resize", "CenterCrop", "Normalize") if name in by_kind]
    # A step twice, one that is unknown or in another order makes it another function.
    unlike = order != expected or len(by_kind) < len(steps) or not tensors
    if unlike or getattr(by_kind.get("Resize"), "max_size", None) is not None:
        return None
    grayed, sized, cropped, normal = (
        by_kind.get(name) for name in ("Grayscale", "Resize", "CenterCrop", "Normalize")
    )
    mean, std = ((), ()) if normal is None else (_per_channel(normal.mean), _per_channel(normal.std))
    count = max(len(mean), len(std))
    if grayed is not None:
        count = grayed.num_output_channels
    elif count < 2:
        count = channels or count or 3
    return Preprocess(
        None if sized is None else _sides(sized.size),
        None if cropped is None else _side(cropped.size),
        None if normal is None else (mean * count if len(mean) == 1 else mean),
        None if normal is None else (std * count if len(std) == 1 else std),
        count,
        "bilinear" if sized is None else InterpolationMode(sized.interpolation).value,
    )


def _steps(function: Callable[[Any], Any]) -> Sequence[Any]:
    steps: Sequence[Any] = getattr(function, "transforms", [function])
    return steps


def _starts_gray(function: Callable[[Any], Any]) -> bool:
    """Whether a function makes its images gray by itself, whatever the model's channels are."""
    return any(type(step).__name__ == "Grayscale" for step in _steps(function))


def _per_channel(values: Any) -> _PerChannel:
    return tuple(map(float, np.atleast_1d(values)))


def _sides(size: Any) -> int | tuple[int, int]:
    """A size as torchvision has it: the shorter side, or (height, width)."""
    sides = [size] if isinstance(size, int) else list(size)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _side(size: Any) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    [side] = sides  # ValueError: it is no square
    return int(side)


def agree(preprocess: Preprocess, function: Callable[[Any], Any], within: float = 1e-5, takes: int = 3) -> bool:
    """Whether both give the same pixels in units of [0, 1], but for how resizing rounds (``within``).

    They are tried on images of as many channels as the function ``takes``.
    """
    # Differences are told in units of pixels, whatever a small standard deviation makes of them.
    std = 1.0 if preprocess.std is None else torch.tensor(preprocess.std)[:, None, None]
    for height, width in _PROBES:
        image = _probe(height, width, takes)
        one, other = preprocess(image), function(image)
        if not isinstance(other, Tensor) or one.shape != other.shape:
            return False
        if float(((one - other) * std).abs().max()) > within:
            return False
    return True


def _probe(height: int, width: int, channels: int) -> Image.Image | np.ndarray:
    """A picture with noise; where Pillow has none of so many channels, an array of floats in [0, 1]."""
    # The slope tells crops and turns apart, the noise how pixels are resized.
    slope = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    noise = np.random.default_rng(0).normal(0, 20, slope.shape)
    values = (slope + noise).clip(0, 255).astype("uint8")
    if channels not in _MODES:
        return values.astype(np.float32) / 255
    return Image.fromarray(values[..., 0] if channels == 1 else values)


@dataclass(frozen=True)
class CustomPreprocess:
    """A user's own function from an image to a model's input, as a file of a model may bring along.

    Images of 8 bits reach it as Pillow's in RGB; 16-bit, 32-bit and float gray as Pillow's of one channel with all
    their values; all else as an array (H, W, C).
    """

    function: Callable[[Any], Tensor]

    mean: _PerChannel | None = None
    std: _PerChannel | None = None
    bands: tuple[int, ...] | None = None
    in_words = "prepared by a function of the user's"

    def __call__(self, image: GivenImage) -> Tensor:
        """Return the model's input (channels, H, W) of one image, which may be given as to a ``Preprocess``.

        Raises:
            InvalidImage: the function fails on what is no picture of 8 bits, or returns no such tensor.

        Warns:
            InputWarning: the function makes an image of more than 8 bits nearly all black or white.
        """
        image = image_of(image)
        pixels = self.quietly(image)
        if clips(image, pixels):
            warnings.warn(InputWarning(_CLIPPED), stacklevel=2)
        return pixels

    def quietly(self, image: AnyImage) -> Tensor:
        """The same where whoever asks tells of odd images at the end."""
        pixels = self._called(image)
        if not isinstance(pixels, Tensor) or pixels.dim() != 3:
            found = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise InvalidImage(
                f"the preprocess function {self._name} returned {found}; it must return a tensor (channels, H, W)"
            )
        return pixels.float()

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def _called(self, image: AnyImage) -> Any:
        given: Any
        if isinstance(image, Image.Image):
            given, what = image.convert("RGB"), f"a picture of {' x '.join(map(str, image.size))}"
        else:  # perhaps the function was written for pictures of 8 bits
            given, kind = image.given(), f"{image.values.dtype} of {image.values.shape}"
            what = f"{image.name}, which it is given unreduced, {kind}"
        try:
            return self.function(given)
        except Exception as error:  # the user's own code
            way_out = f"; {PREPROCESS_INSTEAD}" if isinstance(image, Pixels) else ""
            said = f"the preprocess function {self._name} failed on {what}: {failure(error)}"
            raise InvalidImage(said + way_out) from error

    def display(self, image: GivenImage) -> Image.Image:
        """Return the input itself as a picture, stretched from its least to its greatest value.

        What the function crops is unknown, so this alone is sure to lie under the map.
        """
        return picture(self.quietly(image_of(image)), self.bands, stretched=True).convert("RGB")

    def stretches(self, image: AnyImage) -> bool:
        """Whether ``display`` shows an image with more contrast than the model may see: any."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the function's name for a JSON file."""
        return {"function": getattr(self.function, "__qualname__", repr(self.function))}


def clips(image: AnyImage, pixels: Tensor) -> bool:
    """Whether nearly all values of a Pillow image of more than 8 bits became the least or greatest of its pixels.

    So it is where Pillow's ``convert`` clips 16 bits to 255. Values that are the image's own least or greatest, as
    a black background's, tell nothing.
    """
    if not isinstance(image, Pixels) or not isinstance(image.given(), Image.Image):
        return False
    between = 1 - _share_at_ends(torch.from_numpy(np.moveaxis(image.values, 2, 0).astype(np.float32)))
    return 1 - _share_at_ends(pixels) < _FEW * between


def _share_at_ends(pixels: Tensor) -> float:
    """Which share of pixels (C, H, W) are the least or the greatest of their channel, but for rounding."""
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    rounding = 1e-5 * pixels.abs().amax()
    return float(((pixels - low <= rounding) | (high - pixels <= rounding)).float().mean())


_FEW = 0.1  # of the values between an image's ends that still lie between those of its pixels
_CLIPPED = (
    "the function that prepares images makes one of more than 8 bits nearly all black or white, as Pillow's "
    "convert does, which clips them to 255: scale the values before, or take a Preprocess, such as "
    "Preprocess(mean=(.5,), std=(.5,), channels=1, scale=(low, high))"
)

AnyPreprocess = Preprocess | CustomPreprocess


def preprocess_named(text: str, own: AnyPreprocess, channels: int) -> AnyPreprocess:
    """What images go through in place of a model's ``own``: ``"whole"``, ``"none"`` or ``"path/to/file.py:name"``.

    ``"whole"`` is the model's own without resizing and cropping, ``"none"`` scales to [0, 1] alone; a file's is a
    ``Preprocess`` or a function.

    Raises:
        InvalidParameter: another text; no such file or name, or it is neither; a function that is to be whole.
        UnknownName: the file has no such name.
    """
    if text == "whole":
        if isinstance(own, Preprocess):
            return replace(own, resize=None, crop=None)
        raise InvalidParameter(
            "preprocess 'whole' is for a Preprocess; the model's file has a function of its own"
        )
    if text == "none":
        return Preprocess(resize=None, crop=None, mean=None, std=None, channels=channels)
    path, _, name = text.rpartition(":")
    if not path.endswith(".py"):
        raise InvalidParameter(f"preprocess {text!r}: give whole, none, or path/to/file.py:name")
    module = run_file(Path(path), InvalidParameter, "file of a preprocess", "name")
    if not hasattr(module, name):
        raise UnknownName(f"preprocess in {path}", name, [known for known in vars(module) if known[0] != "_"])
    found = getattr(module, name)
    if not callable(found):
        raise InvalidParameter(f"{text} is {type(found).__name__}; give a Preprocess or a function of an image")
    if isinstance(found, Preprocess | CustomPreprocess):
        return found
    return understood(found, channels) or CustomPreprocess(found)
