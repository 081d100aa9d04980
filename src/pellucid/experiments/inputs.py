"""What cells share: values for texts, models, images with their masks and boxes, scores of clean images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from .. import catalog
from ..data.annotations import annotated_with
from ..data.sources import Box, Sample, Source, open_images, renumbered
from ..errors import InvalidData, InvalidImage, UnknownName
from ..methods.base import Method
from ..metrics.base import Criterion
from ..metrics.localization import box_mask
from ..metrics.randomization import randomized
from ..metrics.scoring import Scorer
from ..models import zoo
from ..models.preprocess import Preprocess, pixels_of
from ..models.zoo import LoadedModel, load_network
from ..outputs import Sharing
from ..passes import placed
from ..seeds import fold_in
from ..training.criteria import Retraining
from ..variants.base import Variant
from .spec import Images, Model, Spec, shown


@dataclass(frozen=True, eq=False)
class ParsedSpec:
    """A spec whose texts have become values.

    Attributes:
        methods, variants: by what tables call them.
        metrics: by their texts.
    """

    spec: Spec
    methods: Mapping[str, Method]
    variants: Mapping[str, Variant]
    metrics: Mapping[str, Criterion]

    @property
    def entrants(self) -> list[tuple[str, str]]:
        """Every variant and method, by their names."""
        return [(variant, method) for variant in self.variants for method in self.methods]


@lru_cache(maxsize=1)
def parsed(spec: Spec) -> ParsedSpec:
    """The values of a spec's texts, made once for all cells that a process computes.

    Raises ``UnknownName`` and ``InvalidParameter`` as the catalogue does.
    """
    return ParsedSpec(
        spec,
        metrics={text: catalog.metric(text) for text in spec.metrics},
        methods={shown(text): catalog.method(text) for text in spec.methods},
        variants={catalog.variant_name(text): catalog.variant(text) for text in spec.variants},
    )


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
            spec = self.spec
            self.scorers[variant] = Scorer(self.loaded.model, variant, spec.score, spec.max_batch, spec.precision)
        return self.scorers[variant]


# Cells come in the order of their images, so what one run of images needs is kept, and no more.
@lru_cache(maxsize=1)
def batches(spec: Spec, model: str, start: int, stop: int) -> Sequence[Batch]:
    """The images ``start`` to ``stop`` as a model takes them, those of one size together, in order."""
    loaded = model_of(spec, model)
    # Images seen at their own size differ in it, and only those of one size can be stacked.
    samples: dict[tuple[int, ...], list[tuple[Sample, Tensor]]] = {}
    for sample in labeled(spec, chosen(spec.images), loaded)[start:stop]:
        pixels = pixels_of(loaded.preprocess, sample.image)
        samples.setdefault(tuple(pixels.shape), []).append((sample, pixels))
    return [batch_of(spec, loaded, group) for group in samples.values()]


def labeled(spec: Spec, source: Source, loaded: LoadedModel) -> Source:
    """Images with the model's numbers as labels, which must be known if something asks for them."""
    if source.classes is None:
        return source
    return renumbered(source, loaded.numbers_of(source.classes, needs_labels(spec)), loaded.classes)


def needs_labels(spec: Spec) -> bool:
    """Whether something asks for the images' labels: the target, or a metric; trainings check theirs."""
    metrics = [metric for metric in parsed(spec).metrics.values() if not isinstance(metric, Retraining)]
    explained = spec.target == "label" and spec.training is None
    return explained or any("labels" in metric.needs for metric in metrics)


def batch_of(spec: Spec, loaded: LoadedModel, group: Sequence[tuple[Sample, Tensor]]) -> Batch:
    """Samples and their pixels, of one size, with what is known about them."""
    device = place(spec)
    known = zip(*(annotated(sample, loaded) for sample, _ in group), strict=True)
    # What one image lacks is unknown of the whole batch, since a metric takes all images or none.
    labels, masks, boxes = (None if any(value is None for value in values) else values for values in known)
    return Batch(
        spec,
        loaded,
        tuple(sample.name for sample, _ in group),
        placed(torch.stack([pixels for _, pixels in group]), loaded.model),
        None if labels is None else torch.tensor(labels, device=device),
        None if masks is None else torch.stack(masks).to(device),
        boxes,
    )


@lru_cache(maxsize=2)
def _loaded(name: str, weights: str | None, classes: tuple[str, ...], device: str) -> LoadedModel:
    return load_network(name, weights, classes or None, device)


@lru_cache(maxsize=2)
def _prepared(model: Model, device: str, asked: str) -> LoadedModel:
    loaded = _loaded(model.name, model.weights, model.classes, device)
    loaded = loaded.seeing(model.preprocess, model.scale, model.bands)
    if model.size is not None:
        loaded = loaded.at_size(model.size)
    if model.randomized is not None:
        loaded = replace(loaded, model=randomized(loaded.model, model.randomized, model.way or "moments"))
    return loaded.asked(asked) if asked else loaded


def model_of(spec: Spec, key: str) -> LoadedModel:
    """The model that tables call ``key``, asked for the spec's target, of which it must be capable."""
    return _prepared(spec.model(key), place(spec), spec.asked)


def place(spec: Spec) -> str:
    """The device; a GPU for ``auto`` if there is one."""
    return zoo.device_named(spec.device)


def forget() -> None:
    """Let go of everything shared."""
    for cache in (parsed, batches, _loaded, _prepared, chosen):
        cache.cache_clear()


def candidates(images: Images) -> Source:
    """The images to choose from: every n-th, less those to skip, which must be there (``UnknownName``)."""
    source = open_images(images.source, images.label_column, images.split, images.root)[:: images.every]
    source = annotated_with(source, images.masks, images.boxes)
    names, skip = set(source.names), set(images.skip)
    for name in images.skip:
        if name not in names:
            raise UnknownName("image to skip", name, names)
    order = spread_first(len(source), images.count) if images.spread and images.count else range(len(source))
    kept = [index for index in order if source.names[index] not in skip]
    return Source([source.names[index] for index in kept], lambda index: source[kept[index]], source.classes)


def spread_first(length: int, count: int) -> list[int]:
    """All places, ``count`` of them first, in order: one at random of each of so many equal stretches."""
    count = min(count, length)
    edges = [number * length // count for number in range(count + 1)] if count else []
    # They are random within each stretch, since what recurs
    # at even distances, as classes may, would else be missed.
    first = [low + fold_in(low, count) % (high - low) for low, high in pairwise(edges)]
    return first + sorted(set(range(length)) - set(first))


@lru_cache(maxsize=2)
def chosen(images: Images) -> Source:
    """The images that a spec chooses, as many as it says (``InvalidData``)."""
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
    mask = None if sample.mask is None else preprocess.object_mask(sample.mask)
    boxes = None if sample.boxes is None else moved_boxes(sample.boxes, sample.image.size, preprocess)
    return sample.label, mask, boxes


def moved_boxes(boxes: Sequence[Box], size: tuple[int, int], preprocess: Preprocess) -> tuple[Box, ...]:
    """Boxes (x0, y0, x1, y1) resized and cropped like their image of ``size`` (width, height).

    A box is cut at the crop's border; one that lies beyond it is left out.
    """
    crop = preprocess.crop
    # The size is that of an empty mask that really went through the resizing, however it rounds.
    resized = replace(preprocess, crop=None).object_mask(Image.new("L", size)).shape[::-1]
    offsets = [0 if crop is None else _offset(length, crop) for length in resized]
    ends = [length if crop is None else crop for length in resized]

    def along(axis: int, value: float) -> float:
        moved = value * (resized[axis] / size[axis]) - offsets[axis]
        return min(max(moved, 0.0), float(ends[axis]))

    moved = [(along(0, x0), along(1, y0), along(0, x1), along(1, y1)) for x0, y0, x1, y1 in boxes]
    return tuple(box for box in moved if box[0] < box[2] and box[1] < box[3])


def _offset(length: int, crop: int) -> int:
    """Where torchvision's center crop begins; below 0 where it pads."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)


def require_object(sample: Sample, loaded: LoadedModel) -> None:
    """Refuse an image whose object, by its mask or boxes, does not fit it or fills all or nothing of the model's.

    Raises ``InvalidData``, as ``box_mask`` does.
    """
    _, mask, boxes = annotated(sample, loaded)
    width, height = sample.image.size
    if sample.mask is not None and sample.mask.size != (width, height):
        found = f"{sample.mask.size[0]}x{sample.mask.size[1]}"
        raise InvalidData(
            f"the mask of {sample.name} is {found}, not {width}x{height}; give masks of the photos' own size, "
            "since they go through the same resizing and cropping (to resize them: mask.resize(size, NEAREST))"
        )
    if mask is None:
        box_mask(sample.boxes or (), (height, width), repr(sample.name))
        width, height = loaded.preprocess.display(sample.image).size
        mask = box_mask(boxes or (), (height, width))
    share = float(mask.float().mean())
    if share in (0, 1):
        covers = "no pixel" if share == 0 else "every pixel"
        raise InvalidData(f"the object of {sample.name} covers {covers} of what {loaded.name} sees")


# What makes two runs the same: digests of contents, not of paths.


def digest_of_model(loaded: LoadedModel) -> str:
    """A digest of a model's weights, preprocessing and, of a segmentation model, pooling."""
    known = sha256(repr(sorted(loaded.preprocess.as_dict().items())).encode())
    if isinstance(loaded.model, Sharing):  # it has the same weights as the network inside
        known.update(loaded.model.settings.encode())
    for name, value in loaded.model.state_dict().items():
        known.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        known.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def survey(source: Source, count: int, require: Callable[[Sample], object]) -> tuple[str, dict[str, str]]:
    """What identifies the first ``count`` images that can be used; and what is wrong with those between them.

    ``require`` raises ``InvalidImage`` for an image that cannot be used; one that cannot be read cannot anyway.
    """
    known = sha256()
    wrong: dict[str, str] = {}
    for index, name in enumerate(source.names):
        if index - len(wrong) == count:
            break
        try:
            sample = source[index]
            require(sample)
        except InvalidImage as error:
            wrong[name] = str(error)
            continue
        known.update(repr((name, sample.image.size, sample.label, sample.boxes)).encode())
        known.update(sample.image.tobytes())
        known.update(b"" if sample.mask is None else sample.mask.tobytes())
    return known.hexdigest(), wrong
