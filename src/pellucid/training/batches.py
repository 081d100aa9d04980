"""Batches of a training: read from any data set, made ready for the network, and their labels checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..errors import InvalidData, InvalidParameter, shortened
from ..models.preprocess import Preprocess
from ..models.zoo import LoadedModel, find_architecture, load_network
from .hyperparameters import Hyperparameters


def fetch(images: Dataset[Any], indices: Tensor) -> tuple[Tensor, Tensor]:
    """One batch of any data set: images (B, C, H, W) as they are, and labels (B,), or of the pixels (B, H, W).

    A set with a method ``batch(indices)``, such as ``pellucid.data.labeled.LabeledImages``, is asked at once.
    """
    whole = getattr(images, "batch", None)
    if whole is not None:
        pixels, labels = whole(indices)
        return pixels, labels.long()
    if isinstance(images, TensorDataset):
        return images.tensors[0][indices], images.tensors[1][indices].long()
    items = [images[int(index)] for index in indices]
    return torch.stack([item[0] for item in items]), torch.stack([_label(item[1]) for item in items])


def _label(given: Any) -> Tensor:
    """An image's label, or those of its pixels (H, W)."""
    per_pixel = isinstance(given, Tensor) and given.dim() == 2
    return given.long() if per_pixel else torch.tensor(int(given))


def image_count(images: Dataset[Any]) -> int:
    """How many images a set has."""
    return len(images)  # type: ignore[arg-type]


def slices(count: int, batch_size: int) -> list[slice]:
    """The batches of one epoch, without a last one of one image: batch normalization cannot learn from it."""
    starts = [start for start in range(0, count, batch_size) if count - start > 1 or start == 0]
    return [slice(start, min(start + batch_size, count)) for start in starts]


def prepared(images: Tensor, preprocess: Preprocess | None, like: Tensor) -> Tensor:
    """Move a batch to the network's device and type, bytes to [0, 1], and normalize it there.

    Floats come already in [0, 1], or, without ``preprocess``, as the network wants them. The GPU convolves
    fastest channels-last.
    """
    scale = 255 if images.dtype == torch.uint8 else 1
    images = images.to(like.device, non_blocking=True).to(like.dtype)
    images = images / scale if scale > 1 else images
    images = images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images
    return images if preprocess is None else preprocess.normalize(images)


def preprocess_of(network: str | LoadedModel) -> Preprocess:
    """A network's preprocess; a function is refused, for it does not say how to normalize pixels."""
    name = network if isinstance(network, str) else network.name
    if isinstance(network, str):  # what a file's function does is known with its network
        found = load_network(name).preprocess if ".py:" in name else find_architecture(name).preprocess
    else:
        found = network.preprocess
    if not isinstance(found, Preprocess):
        raise InvalidParameter(f"{name} has a preprocess of its own kind; give its file a pellucid Preprocess")
    return found


def check_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels that are no output of the network (``InvalidData``)."""
    wrong = (labels < 0) | (labels >= outputs)
    if bool(wrong.any()):
        raise InvalidData(
            f"train: label {int(labels[wrong][0])} is out of range: the network's {outputs} outputs stand for "
            f"labels 0 to {outputs - 1}; give it one output for each class, or the right column of labels"
        )


def check_set(images: Dataset[Any], outputs: int, recipe: Hyperparameters) -> tuple[int, ...]:
    """Refuse a labeled set that the network cannot learn; return the labels that no image has."""
    classes = getattr(images, "classes", ())
    if classes and len(classes) != outputs:
        raise InvalidData(
            f"train: the data have {len(classes)} classes ({shortened(classes, 3)}) and the network {outputs} "
            f"outputs; build it with classes={len(classes)}"
        )
    labels = getattr(images, "labels", None)
    if labels is None:
        return ()
    check_labels(labels, outputs)
    counts = labels.flatten().bincount(minlength=outputs)
    in_order = labels.dim() == 1 and not recipe.shuffle and bool((labels.diff() >= 0).all())
    if in_order and int((counts > 0).sum()) > 1:
        raise InvalidData(
            "train: the images come sorted by class and this recipe does not shuffle, so each batch would hold "
            "one class; train with shuffle=True (--shuffle)"
        )
    return tuple((counts == 0).nonzero().flatten().tolist())


def class_count(images: Dataset[Any]) -> int | None:
    """How many classes a set without class names has, by its largest label; None where it cannot be known."""
    labels = getattr(images, "labels", None)
    return None if labels is None else max(int(labels.max()) + 1, 2)
