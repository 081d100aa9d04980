"""Labelled images decoded once, as bytes in memory or on disk, for trainings that read them many times."""

from __future__ import annotations

import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from ..errors import InvalidData, InvalidImage, InvalidParameter, OutputNotWritable, PellucidError, brief
from ..kinds import require_kind
from ..pixels import require_picture
from ..seeds import fold_in
from .sources import Sample, Source

MEMORY = 2 << 30  # bytes of pixels kept in memory; more go into a file that the system pages in
OF_MASKS = ("background", "object")  # the classes of pixels
IMAGES_AT_ONCE = 1024  # images worked on at a time where all are gone through


@dataclass(frozen=True, eq=False)
class LabeledImages(Dataset[tuple[Tensor, int | Tensor]]):
    """Images as bytes, with their labels; an item is ``(image (C, H, W) uint8, label)``.

    Attributes:
        pixels: (M, C, H, W) uint8, in memory or mapped from a file.
        all_labels: (M,) int64; or a class for each pixel (M, H, W), whole numbers of any type.
        rows: (N,) which of the M images belong to this set, in its order.
        classes: the class names by label; empty where unknown.
        skipped: why images of the source were left out, one message each.
        origin: what the images are, for the facts written beside weights.
    """

    pixels: Tensor
    all_labels: Tensor
    rows: Tensor
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    origin: str = ""

    @classmethod
    def of(cls, pixels: Tensor, labels: Tensor, classes: Sequence[str] = ()) -> LabeledImages:
        """Take tensors as they are: ``pixels`` (N, C, H, W) uint8 and integer ``labels`` (N,) or (N, H, W).

        Raises:
            InvalidData: other types or shapes, or no images.
        """
        names = require_kind(Sequence[str], classes, "classes", InvalidData)
        if not (isinstance(pixels, Tensor) and isinstance(labels, Tensor)):
            raise InvalidData(f"images {brief(pixels)} with labels {brief(labels)}; give two tensors")
        if (
            labels.is_floating_point()
            or labels.is_complex()
            or pixels.dtype != torch.uint8
            or pixels.dim() != 4
            or labels.shape not in (pixels.shape[:1], (len(pixels), *pixels.shape[2:]))
            or not len(pixels)
        ):
            raise InvalidData(
                f"images of {pixels.dtype} {tuple(pixels.shape)} with labels of {labels.dtype} "
                f"{tuple(labels.shape)}; "
                "give bytes (N, C, H, W), N at least 1, and as many whole numbers as labels, or as many as pixels"
            )
        return cls(pixels, labels.long(), torch.arange(len(pixels)), tuple(names))

    def __repr__(self) -> str:
        return f"{len(self)} images of {self.origin or 'tensors'}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        row = self.rows[index]
        label = self.all_labels[row]
        return self.pixels[row], label if label.dim() else int(label)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and their labels at these indices of the set, on the pixels' device."""
        rows = self.rows[indices].to(self.pixels.device)
        return self.pixels[rows], self.all_labels[rows]

    @property
    def labels(self) -> Tensor:
        """The labels (N,) or (N, H, W) in the set's order."""
        return self.all_labels[self.rows.to(self.all_labels.device)]

    @cached_property
    def mean(self) -> Tensor:
        """The mean (C,) of each channel over all pixels of the set, float64 in [0, 1]."""
        total = torch.zeros(self.pixels.shape[1], dtype=torch.float64, device=self.pixels.device)
        for part in torch.arange(len(self)).split(IMAGES_AT_ONCE):
            total += self.batch(part)[0].double().sum((0, 2, 3))
        return total / (255 * len(self) * self.pixels.shape[-2:].numel())

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every pixel and label, which tells sets of other content apart."""
        digest = blake2b(str((len(self), *self.pixels.shape[1:])).encode(), digest_size=16)
        for part in torch.arange(len(self)).split(IMAGES_AT_ONCE):
            for tensor in self.batch(part):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor) -> LabeledImages:
        """The images at these indices, in this order; the pixels are shared."""
        return replace(self, rows=self.rows[indices])

    def split(self, held_out: float, seed: int = 0) -> tuple[LabeledImages, LabeledImages]:
        """A training and a validation set, the latter of this share in (0, 1), drawn at random.

        Raises:
            InvalidParameter: a share that leaves one of the two without images.
        """
        count = round(held_out * len(self))
        if not 0 < count < len(self):
            raise InvalidParameter(
                f"validation={held_out} of {len(self)} images leaves a set without images; give more or a test set"
            )
        order = shuffled(len(self), seed)
        return self.subset(order[count:].sort().values), self.subset(order[:count].sort().values)

    def to(self, device: torch.device | str) -> LabeledImages:
        """The same set with its pixels on a device."""
        return replace(self, pixels=self.pixels.to(device), all_labels=self.all_labels.to(device))


class AlteredImages(ABC, Dataset[tuple[Tensor, int]]):
    """Labeled ``images`` seen through a change that is made as they are asked for: labels and order stay."""

    images: LabeledImages

    @abstractmethod
    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Changed images (B, C, H, W) and labels (B,) at these indices."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, labels = self.batch(torch.tensor([index]))
        return pixels[0], int(labels[0])

    @property
    def labels(self) -> Tensor:
        """The labels (N,) in the set's order."""
        return self.images.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names by label."""
        return self.images.classes


def shuffled(count: int, seed: int) -> Tensor:
    """A permutation of ``count`` indices, drawn from a seed alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(fold_in(seed, count)))


def _to_a_label(name: str, origin: str) -> str:
    """What to do about an image without a label: of a folder that was named itself, the one above has classes."""
    folder = Path(origin).absolute()
    if folder.is_dir() and (folder / name).parent == folder and (folder / name).is_file():
        return f"if {folder.name} is its class, name the folder above, {folder.parent}"
    return "name the column of labels, or sort images into folders"


def load_images(
    source: Source,
    display: Callable[[Image.Image], Image.Image],
    origin: str = "",
    positions: Sequence[int] | None = None,
    memory: int = MEMORY,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    object_mask: Callable[[Image.Image], Tensor] | None = None,
) -> LabeledImages:
    """Decode every image of a source once; images that cannot be read are left out and named.

    Args:
        source: of ``pellucid.data.sources.open_images``; every sample needs a label.
        display: crops an image as the network wants it, such as ``Preprocess.display``.
        origin: what the images are called in the facts beside the weights.
        positions: which of the source's images, in this order; None is all.
        memory: bytes of pixels that memory may hold; larger sets go into a file without a name in ``folder``,
            which vanishes with the set.
        folder: where that file goes; None is the system's folder for temporary files.
        progress: called after every image with the images done and all images.
        object_mask: crops a sample's mask as ``display`` does its image, such as ``Preprocess.object_mask``; the
            labels are then those of the pixels, 1 on the object, and every sample needs a mask instead.

    Raises:
        OutputNotWritable: the file does not fit into its folder.
        InvalidData: a sample without a label or mask, images of differing sizes, or no image that can be read.
    """

    def cropped(sample: Sample) -> Tensor:
        if sample.label is None and object_mask is None:
            raise InvalidData(f"{sample.name} has no label; {_to_a_label(sample.name, origin)}")
        pixels: Tensor = pil_to_tensor(display(require_picture(sample.image, "training")))
        if object_mask is None:
            return pixels
        return torch.cat([pixels, object_mask(_require_mask(sample))[None].to(pixels.dtype)])

    positions = range(len(source)) if positions is None else positions
    whole, labels, skipped = decode(source, positions, cropped, InvalidData, memory, folder, progress)
    rows = torch.arange(len(whole))
    if object_mask is not None:
        return LabeledImages(whole[:, :-1], whole[:, -1], rows, OF_MASKS, tuple(skipped), origin)
    return LabeledImages(whole, torch.tensor(labels), rows, source.classes or (), tuple(skipped), origin)


def _require_mask(sample: Sample) -> Image.Image:
    """The mask of a sample, which must be there and of the image's size (``InvalidData``)."""
    if sample.mask is None:
        raise InvalidData(
            f"{sample.name} has no mask, which a segmentation model learns from; give a table with the columns "
            "image and mask, or another network"
        )
    if sample.mask.size != sample.image.size:
        sizes = ["x".join(map(str, size)) for size in (sample.mask.size, sample.image.size)]
        raise InvalidData(f"the mask of {sample.name} is {sizes[0]}, not {sizes[1]}, the image's size")
    return sample.mask


def decode(
    source: Source,
    positions: Sequence[int],
    pixels_of: Callable[[Sample], Tensor],
    refusal: type[PellucidError] = InvalidImage,
    memory: int = MEMORY,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, list[int | None], list[str]]:
    """Decode images of a source once: their pixels (N, C, H, W), labels, and what was wrong with those left out.

    Args:
        source, positions, memory, folder, progress: as ``load_images``.
        pixels_of: what is kept of an image: a tensor (C, H, W) of bytes or floats.
        refusal: the error of a source that holds images of differing sizes, or none that can be read.
    """
    pixels: Tensor | None = None
    labels: list[int | None] = []
    skipped: list[str] = []
    for done, position in enumerate(positions, 1):
        try:
            sample = source[position]
            image = pixels_of(sample)
        except InvalidImage as error:
            skipped.append(str(error))
            continue
        if pixels is None:
            # There is room for all before it is known how many can
            # be read: what is left over is cut off at the end.
            pixels = room((len(positions), *image.shape), image.dtype, memory, folder)
        if image.shape != pixels.shape[1:]:
            raise refusal(
                f"{sample.name} is {tuple(image.shape)} beside images of {tuple(pixels.shape[1:])}; "
                "crop all to one size"
            )
        pixels[len(labels)] = image
        labels.append(sample.label)
        if progress is not None:
            progress(done, len(positions))
    if pixels is None:
        first = [*skipped, "no images"][0]
        raise refusal(f"none of the {len(positions)} images can be read; the first: {first}")
    return pixels[: len(labels)], labels, skipped


def room(size: Sequence[int], dtype: torch.dtype, memory: int, folder: Path | None) -> Tensor:
    """An empty tensor of this size, in memory or in a file that vanishes with it."""
    empty = torch.empty(0, dtype=dtype)
    needed = math.prod(size) * empty.element_size()
    if needed <= memory:
        return torch.empty(tuple(size), dtype=dtype)
    try:
        # The file has no name, and what maps it keeps it: it vanishes with the tensor, however the program ends.
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # a full disk is told now, not when a page is written
            return torch.from_numpy(np.memmap(file, empty.numpy().dtype, "r+", shape=tuple(size)))
    except OSError as error:
        raise OutputNotWritable(
            f"{size[0]} images need {needed / 1e9:.1f} GB in {folder or tempfile.gettempdir()}: {error.strerror}; "
            "choose a folder with room (TMPDIR names that of temporary files)"
        ) from error
