"""The photos of a run: where each is read, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.sources import Sample, Source, open_images
from ..errors import InvalidData, InvalidImage, PellucidError
from ..files import file_name
from ..models.preprocess import AnyPreprocess, Preprocess
from ..models.zoo import LoadedModel
from ..pixels import Pixels
from ..report.figures import CaptionedPhoto, Map
from .output import unused
from .request import Request
from .terminal import percent

_LITTLE = 0.25  # of the values that an image's bits can hold
_MUCH = 4  # times smaller


@dataclass(frozen=True)
class Place:
    """Where a photo is: its source as it was typed and as it was opened, and its place there."""

    spec: str
    source: Source
    index: int

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from others of the run."""
        return self.spec, self.index


@dataclass
class Photo:
    """A photo on its way: where it is from, what the model sees, and what was found."""

    key: str  # the name of its files
    sample: Sample
    pixels: Tensor
    picture: Any  # (H, W, 3) uint8, as figures show it
    facts: dict[str, Any]
    classes: tuple[str, ...] | None = None  # of its source
    dark: list[tuple[str, int, int]] = field(default_factory=list)  # itself if it uses few values, and which
    shrunk: list[tuple[str, int, int]] = field(default_factory=list)  # itself if it was made much smaller
    maps: dict[tuple[str, str, str], Map] = field(default_factory=dict)  # by method, layer and variant
    attributions: dict[str, Tensor] = field(default_factory=dict)  # by METHOD/LAYER/VARIANT

    def captioned(self) -> CaptionedPhoto:
        """The photo with the explained class and its probability, and the predicted class if it is another."""
        target, predicted = self.facts["target"], self.facts["predicted"]
        text = f"{target['name']} {score(target)}"
        if predicted["class"] != target["class"]:
            text += f"\n(predicted: {predicted['name']} {score(predicted)})"
        return CaptionedPhoto(self.picture, text, self.sample.name)


def score(facts: Mapping[str, Any]) -> str:
    """A class's probability, or the value of what is no class, as text."""
    return percent(facts["probability"]) if "probability" in facts else f"{facts['value']:.4g}"


def find_photos(request: Request) -> tuple[list[Place], list[str]]:
    """Every photo's place, and what was wrong with the sources that cannot be opened."""
    places: list[Place] = []
    wrong = []
    for spec in dict.fromkeys(request.photos):
        try:
            source = open_images(spec, request.label_column)[: request.limit]
        except PellucidError as error:
            wrong.append(str(error))
            continue
        places += [Place(spec, source, index) for index in range(len(source))]
    return places, wrong


def prepared_photo(place: Place, loaded: LoadedModel, target: str, taken: Sequence[str]) -> Photo:
    """A photo as the model sees it, with a key that is not ``taken``.

    Raises:
        InvalidImage: it cannot be read, or the preprocess gives no finite pixels.
        InvalidData: it is to be explained for its label, and has none.
    """
    sample, preprocess = place.source[place.index], loaded.preprocess
    try:
        pixels = preprocess(sample.image)
    except InvalidImage as error:
        raise error if sample.name in str(error) else InvalidImage(f"{sample.name}: {error}") from error
    if not bool(pixels.isfinite().all()):
        raise InvalidImage(f"{sample.name}: the model's preprocess gave NaN or infinite values")
    if target == "label" and sample.label is None:
        raise InvalidData(f"{sample.name} has no label to explain; name its column with --label-column")
    key = unused(file_name(str(Path(sample.name).with_suffix(""))), taken)
    picture = np.asarray(preprocess.display(sample.image).convert("RGB"))
    facts: dict[str, Any] = {"key": key, "source": place.spec, "index": place.index, "name": sample.name}
    names = place.source.classes
    if sample.label is not None:
        name = names[sample.label] if names and sample.label < len(names) else loaded.class_name(sample.label)
        facts["label"] = {"class": sample.label, "name": name}
    facts |= _file_hash(place.spec, sample.name)
    return Photo(
        key, sample, pixels, picture, facts, names, _dark(sample, preprocess), _shrunk(sample, preprocess)
    )


def _dark(sample: Sample, preprocess: AnyPreprocess) -> list[tuple[str, int, int]]:
    """The image if it uses little of the scale by which the model sees it, with its least and greatest value."""
    image = sample.image
    if not isinstance(image, Pixels) or not isinstance(preprocess, Preprocess) or preprocess.scale is not None:
        return []
    ends = int(image.values.min()), int(image.values.max())
    return [(sample.name, *ends)] if image.used() < _LITTLE else []


def _shrunk(sample: Sample, preprocess: AnyPreprocess) -> list[tuple[str, int, int]]:
    """The image if the preprocess made it much smaller, with its width and height."""
    side = preprocess.resize if isinstance(preprocess, Preprocess) else None
    if isinstance(side, int) and min(sample.image.size) >= _MUCH * side:
        return [(sample.name, *sample.image.size)]
    return []


def _file_hash(spec: str, name: str) -> dict[str, str]:
    """The SHA-256 of a photo's file, or nothing for a row of a table or a drawn image."""
    path = Path(spec, name) if Path(spec).is_dir() else Path(spec)
    if not path.is_file() or path.suffix == ".parquet":
        return {}
    return {"sha256": sha256(path.read_bytes()).hexdigest()}
