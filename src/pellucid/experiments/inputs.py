"""What cells share: models, images with their masks and boxes on the model's pixels, scores of clean images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from .. import catalog
from ..data.sources import Box, Sample, Source, open_images
from ..errors import InvalidData, InvalidImage, UnknownName
from ..methods.base import Method
from ..metrics.localization import box_mask
from ..metrics.randomization import randomized
from ..metrics.scoring import Scorer
from ..models import zoo
from ..models.preprocess import Preprocess
from ..models.segmentation import Segmentation
from ..models.zoo import LoadedModel, load_model
from ..variants.base import Variant
from .spec import Images, Model, Spec

# RectGrad's masks: grey below 200 is background (released code); exact masks are black and white anyway.
OBJECT = 200


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size of one run of images, and what is known about them.

    ``scorers`` holds a ``Scorer`` for each variant asked for, so that clean images are scored once for all
    cells of these images.
    """

    spec: Spec
    loaded: LoadedModel
    names: tuple[str, ...]
    images: Tensor
    labels: Tensor | None
    masks: Tensor | None
    boxes: tuple[tuple[Box, ...], ...] | None
    scorers: dict[Variant, Scorer] = field(default_factory=dict)

    def scorer(self, variant: Variant) -> Scorer:
        """The model under a variant, as it is scored."""
        if variant not in self.scorers:
            self.scorers[variant] = Scorer(
                self.loaded.model, variant, self.spec.score, self.spec.max_batch, self.spec.precision
            )
        return self.scorers[variant]


def batches(spec: Spec, model: str, start: int, stop: int) -> Sequence[Batch]:
    """The images ``start`` to ``stop`` as a model takes them, those of one size together, in order."""
    return _batches(spec, model, start, stop)


@lru_cache(maxsize=1)
def _batches(spec: Spec, model: str, start: int, stop: int) -> Sequence[Batch]:
    loaded = model_of(spec, model)
    samples: dict[tuple[int, ...], list[tuple[Sample, Tensor]]] = {}
    for sample in chosen(spec.images)[start:stop]:
        pixels = loaded.preprocess(sample.image)
        samples.setdefault(tuple(pixels.shape), []).append((sample, pixels))
    return [_batch(spec, loaded, group) for group in samples.values()]


def _batch(spec: Spec, loaded: LoadedModel, group: Sequence[tuple[Sample, Tensor]]) -> Batch:
    device = place(spec)
    samples = [sample for sample, _ in group]
    labels, masks, boxes = (
        _all_or_none(found) for found in zip(*(annotated(sample, loaded) for sample in samples), strict=True)
    )
    return Batch(
        spec,
        loaded,
        tuple(sample.name for sample in samples),
        torch.stack([pixels for _, pixels in group]).to(device),
        None if labels is None else torch.tensor(labels, device=device),
        None if masks is None else torch.stack(masks).to(device),
        None if boxes is None else tuple(boxes),
    )


def _all_or_none(values: Sequence[Any]) -> list[Any] | None:
    return None if any(value is None for value in values) else list(values)


@lru_cache(maxsize=2)
def _loaded(name: str, weights: str | None, device: str) -> LoadedModel:
    return load_model(name, weights, device=device)


@lru_cache(maxsize=2)
def _prepared(model: Model, device: str) -> LoadedModel:
    loaded = _loaded(model.name, model.weights, device)
    if model.randomized is None:
        return loaded
    return replace(loaded, model=randomized(loaded.model, model.randomized, model.way or "moments"))


def model_of(spec: Spec, key: str) -> LoadedModel:
    """The model that tables call ``key``.

    Raises:
        UnknownName: it is to be randomized down to a block that it does not have.
    """
    return _prepared(spec.model(key), place(spec))


@lru_cache(maxsize=256)
def method_of(text: str) -> Method:
    """The method that a text means."""
    return catalog.method(text)


@lru_cache(maxsize=16)
def variant_of(text: str) -> Variant:
    """The variant that a text means."""
    return catalog.variant(text)


def place(spec: Spec) -> str:
    """The device; a GPU for ``auto`` if there is one."""
    return zoo.device_named(spec.device)


def forget() -> None:
    """Let go of everything shared."""
    for cache in (_batches, _loaded, _prepared, method_of, variant_of, chosen):
        cache.cache_clear()


def candidates(images: Images) -> Source:
    """The images to choose from: every n-th, less those to skip.

    Raises:
        UnknownName: an image to skip that is not there.
    """
    source = open_images(images.source, images.label_column, images.split, images.root)[:: images.every]
    names, skip = set(source.names), set(images.skip)
    for name in images.skip:
        if name not in names:
            raise UnknownName("image to skip", name, names)
    kept = [index for index, name in enumerate(source.names) if name not in skip]
    return Source([source.names[index] for index in kept], lambda index: source[kept[index]], source.classes)


@lru_cache(maxsize=2)
def chosen(images: Images) -> Source:
    """The images that a spec chooses.

    Raises:
        InvalidData: there are fewer images than ``count``, or none.
    """
    source = candidates(images)
    wanted = images.count or max(len(source), 1)
    if len(source) < wanted:
        where = f"{images.source} with every={images.every} and {len(images.skip)} skipped"
        raise InvalidData(f"{where} gives {len(source)} images, not {wanted}; lower count or every")
    return source[:wanted]


# What is known about an image, on the pixels that the model sees.


def annotated(sample: Sample, loaded: LoadedModel) -> tuple[int | None, Tensor | None, tuple[Box, ...] | None]:
    """Label, mask (H, W) and boxes of an image as a model's preprocess resizes and crops it.

    A function of the user's own does not say where it moves pixels, so masks and boxes are unknown behind it.
    """
    preprocess = loaded.preprocess
    if not isinstance(preprocess, Preprocess):
        return sample.label, None, None
    mask = None if sample.mask is None else _moved(sample.mask.point(_is_object), preprocess)
    boxes = None if sample.boxes is None else moved_boxes(sample.boxes, sample.image.size, preprocess)
    return sample.label, None if mask is None else transforms.pil_to_tensor(mask)[0] > 0, boxes


def _is_object(grey: int) -> int:
    return 255 * (grey >= OBJECT)


def _moved(mask: Image.Image, preprocess: Preprocess) -> Image.Image:
    """A mask resized (nearest, so it stays exact) and cropped like its image."""
    mask = _resized(mask, preprocess)
    return mask if preprocess.crop is None else transforms.center_crop(mask, [preprocess.crop])


def _resized(mask: Image.Image, preprocess: Preprocess) -> Image.Image:
    if preprocess.resize is None:
        return mask
    size = [preprocess.resize] if isinstance(preprocess.resize, int) else list(preprocess.resize)
    resized: Image.Image = transforms.resize(mask, size, InterpolationMode.NEAREST)
    return resized


def moved_boxes(boxes: Sequence[Box], size: tuple[int, int], preprocess: Preprocess) -> tuple[Box, ...]:
    """Boxes (x0, y0, x1, y1) resized and cropped like their image of ``size`` (width, height).

    A box is cut at the crop's border; one that lies beyond it is left out.
    """
    resized = _resized(Image.new("L", size), preprocess).size
    crop = preprocess.crop
    scales = [new / old for new, old in zip(resized, size, strict=True)]
    offsets = [0 if crop is None else _offset(length, crop) for length in resized]
    ends = [length if crop is None else crop for length in resized]
    moved = []
    for box in boxes:
        x0, x1 = (_along(value, scales[0], offsets[0]) for value in (box[0], box[2]))
        y0, y1 = (_along(value, scales[1], offsets[1]) for value in (box[1], box[3]))
        moved.append((max(x0, 0.0), max(y0, 0.0), min(x1, float(ends[0])), min(y1, float(ends[1]))))
    return tuple(box for box in moved if box[0] < box[2] and box[1] < box[3])


def _along(value: float, scale: float, offset: int) -> float:
    return value * scale - offset


def _offset(length: int, crop: int) -> int:
    """Where torchvision's centre crop begins; below 0 where it pads."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)


def object_problem(sample: Sample, loaded: LoadedModel) -> str:
    """What is wrong with an image's object, by its mask or boxes, on the model's pixels; ``""`` if nothing."""
    try:
        _, mask, boxes = annotated(sample, loaded)
        width, height = sample.image.size
        if sample.mask is not None and sample.mask.size != (width, height):
            return (
                f"the mask of {sample.name} is {sample.mask.size[0]}x{sample.mask.size[1]}, not {width}x{height}"
            )
        if mask is None:
            box_mask(sample.boxes or (), (height, width), repr(sample.name))
            width, height = loaded.preprocess.display(sample.image).size
            mask = box_mask(boxes or (), (height, width))
    except InvalidData as error:
        return str(error)
    share = float(mask.float().mean())
    if share in (0, 1):
        covers = "no pixel" if share == 0 else "every pixel"
        return f"the object of {sample.name} covers {covers} of what {loaded.name} sees"
    return ""


# What makes two runs the same: digests of contents, not of paths.


def digest_of_model(loaded: LoadedModel) -> str:
    """A digest of a model's weights, preprocessing and, of a segmentation model, pooling."""
    known = sha256(repr(sorted(loaded.preprocess.as_dict().items())).encode())
    if isinstance(loaded.model, Segmentation):  # it has the same weights as the network inside
        known.update(f"pooled {loaded.model.pooling}".encode())
    for name, value in loaded.model.state_dict().items():
        known.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        known.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def survey(source: Source, count: int, problem: Callable[[Sample], str]) -> tuple[str, dict[str, str]]:
    """What identifies the first ``count`` images that can be used; and what is wrong with those between them.

    ``problem`` says what is wrong with an image, ``""`` for nothing; one that cannot be read is wrong anyway.
    """
    known = sha256()
    wrong: dict[str, str] = {}
    for index, name in enumerate(source.names):
        if index - len(wrong) == count:
            break
        try:
            sample = source[index]
        except InvalidImage as error:
            wrong[name] = str(error)
            continue
        if found := problem(sample):
            wrong[name] = found
            continue
        known.update(repr((name, sample.image.size, sample.label, sample.boxes)).encode())
        known.update(sample.image.tobytes())
        known.update(b"" if sample.mask is None else sample.mask.tobytes())
    return known.hexdigest(), wrong
