"""The images that a surrogate learns from: decoded once and shuffled, or in a loader's own batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ..data.labeled import decode
from ..data.sources import open_images
from ..errors import InvalidData, InvalidImage, InvalidParameter
from ..models.preprocess import CustomPreprocess, Preprocess

AnyPreprocess = Preprocess | CustomPreprocess


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images (N, C, H, W), all at hand; ``finish`` makes a batch of them the model's input.

    ``left_out`` says what was wrong with images that could not be read.
    """

    pixels: Tensor
    batch_size: int
    finish: Callable[[Tensor], Tensor] = lambda batch: batch
    left_out: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with: how many images, and the digest of their pixels."""
        found = sha256()
        for part in self.pixels.split(256):
            found.update(part.detach().cpu().contiguous().numpy())
        return {"count": len(self.pixels), "digest": found.hexdigest()}

    def steps(self) -> int:
        """The batches of an epoch; the last may be smaller."""
        return -(-len(self.pixels) // self.batch_size)

    def batches(self, seed: int, device: torch.device) -> Iterator[Tensor]:
        """An epoch's batches (B, C, H, W), in the order of its seed."""
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(seed))
        for part in order.split(self.batch_size):
            yield self.finish(self.pixels[part.to(self.pixels.device)].to(device))


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """A loader's own batches: tensors (B, C, H, W), or tuples that begin with one."""

    loader: Any
    left_out: tuple[str, ...] = field(default=(), init=False)

    @property
    def facts(self) -> dict[str, Any]:
        """How many batches; what is in them is unknown."""
        return {"batches": self.steps()}

    def steps(self) -> int:
        """The loader's length."""
        return len(self.loader)

    def batches(self, seed: int, device: torch.device) -> Iterator[Tensor]:
        """An epoch's batches; a generator of the loader's own starts from the seed, too."""
        if isinstance(generator := getattr(self.loader, "generator", None), torch.Generator):
            generator.manual_seed(seed)
        for batch in self.loader:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
                raise InvalidImage(
                    f"the loader gives {type(images).__name__} {tuple(getattr(images, 'shape', ()))}; it must "
                    "give float tensors (batch, channels, height, width), or tuples that begin with one"
                )
            yield images.to(device)


TrainingImages = StoredImages | LoadedImages


def training_images(images: Any, preprocess: AnyPreprocess | None, batch_size: int) -> TrainingImages:
    """Whatever holds images, as batches.

    A tensor (N, C, H, W) that the model takes as it is; a ``Source``, or what ``open_images`` opens, which the
    preprocess makes such tensors of, less the images that cannot be read; or batches: a list of them, or a
    ``DataLoader``.

    Raises:
        InvalidImage: a tensor of another shape, no image can be read, or the preprocess leaves sizes that differ.
        InvalidData: nothing that holds images.
        InvalidParameter: a source without a preprocess.
        OutputNotWritable: no room for the decoded images.
    """
    if hasattr(images, "__len__") and len(images) == 0:
        raise InvalidData("there are no images to train with")
    if isinstance(images, Tensor):
        if images.dim() != 4 or not images.is_floating_point():
            raise InvalidImage(
                f"images are {tuple(images.shape)} {images.dtype}; give a float tensor (N, channels, h, w)"
            )
        return StoredImages(images.detach(), batch_size)
    if isinstance(images, list | tuple) or (hasattr(images, "__iter__") and not hasattr(images, "__getitem__")):
        return LoadedImages(images)
    if preprocess is None:
        raise InvalidParameter("preprocess is missing; give the one that load_model returns with the model")
    # Every image is decoded and cropped once, into a nameless temporary file that epochs then read: as bytes,
    # 150 KB an image of 224 x 224, which are normalized when a batch is made.
    kept, finish = _halves(preprocess)
    source = open_images(images)
    pixels, _, left_out = decode(source, range(len(source)), lambda sample: kept(sample.image), memory=0)
    return StoredImages(pixels, batch_size, finish, tuple(left_out))


def _halves(preprocess: AnyPreprocess) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
    """A preprocess in two steps: what is kept of an image, and what makes a batch of that the model's input."""
    if isinstance(preprocess, Preprocess):
        return (
            lambda image: pil_to_tensor(preprocess.display(image)),
            lambda batch: preprocess.normalize(batch.float() / 255),
        )
    return preprocess, lambda batch: batch
