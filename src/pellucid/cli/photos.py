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
from ..models.preprocess import Preprocess
from ..models.zoo import LoadedModel
from ..pixels import Pixels
from ..report.figures import CaptionedPhoto, Map
from .output import unused
from .request import Request
from .terminal import percent

Odd = Mapping[str, tuple[str, str]]
"""What is odd about a photo, and what to do, by kind."""

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
    odd: Odd = field(default_factory=dict)
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
    odd = _oddities(sample, preprocess) if isinstance(preprocess, Preprocess) else {}
    return Photo(key, sample, pixels, picture, facts, names, odd)


def _oddities(sample: Sample, preprocess: Preprocess) -> dict[str, tuple[str, str]]:
    """What the preprocess does to an image that may surprise: to its values, its size and its channels."""
    found, image, side = {}, sample.image, preprocess.resize
    if isinstance(image, Pixels) and preprocess.scale is None and image.used() < _LITTLE:
        ends = f"{int(image.values.min())},{int(image.values.max())}"
        what = "uses little of what its bits can hold, so the model sees it nearly of one grey"
        found["dark"] = (f"{sample.name} {what}", f"give --scale, such as {ends}")
    if isinstance(side, int) and min(image.size) >= _MUCH * side:
        what = f"{sample.name}, {image.size[0]} x {image.size[1]}, is {preprocess.in_words}"
        found["shrunk"] = (f"{what}, so fine structures are lost", "cut it into tiles, or give --preprocess")
    if recolored := preprocess.recolored(image):
        found[recolored] = (f"{sample.name} {recolored}", "")
    return found


def _file_hash(spec: str, name: str) -> dict[str, str]:
    """The SHA-256 of a photo's file, or nothing for a row of a table or a drawn image."""
    path = Path(spec, name) if Path(spec).is_dir() else Path(spec)
    if not path.is_file() or path.suffix == ".parquet":
        return {}
    return {"sha256": sha256(path.read_bytes()).hexdigest()}
