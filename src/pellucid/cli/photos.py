"""The photos of a run: where each is read, and what is known of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor

from ..catalog import COMBINATORS, METHODS, VARIANTS
from ..data.sources import SHARDS, Sample, Source, open_images, renumbered
from ..errors import (
    InputWarning,
    InvalidData,
    InvalidImage,
    InvalidParameter,
    PellucidError,
    percent,
    shortened,
)
from ..experiments.noticing import Odd, oddities
from ..files import file_digest, file_name
from ..layers import INPUT
from ..models.preprocess import pixels_of
from ..models.zoo import LoadedModel
from ..outputs import number_among
from ..report.figures import CaptionedPhoto, Map, Speaks
from .output import unused
from .request import Request

NO_CLASS = -1  # the number of a label that names none of the model's classes


@dataclass(frozen=True)
class Place:
    """Where a photo is: its source as it was typed and as it was opened, and its place there.

    Attributes:
        numbers: the model's numbers of the source's labels, as far as they are known; None where they are alike.
        classes: the names of the source's classes in the model's order, if they tell it.
    """

    spec: str
    source: Source
    index: int
    numbers: Mapping[int, int] | None = None
    classes: tuple[str, ...] | None = None
    name: str = ""  # what it is called among the run's photos

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from others of the run."""
        return self.spec, self.index


class Prediction(BaseModel):
    """A class of one photo with its probability, or the value of what is no class; a label has neither."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(validation_alias=AliasChoices("number", "class"), serialization_alias="class")
    name: str
    probability: float | None = None
    value: float | None = None
    between: tuple[str, str] | None = None  # the classes of a difference

    @property
    def speaks(self) -> Speaks:
        """What positive values of its maps speak for; and of a difference, what negative ones do."""
        return self.between or self.name

    @property
    def kind(self) -> str:
        """What the amount is."""
        if self.probability is not None:
            return "probability"
        return "value" if self.between is None else "difference of outputs"

    @property
    def amount(self) -> float:
        """The probability, or the value."""
        return (self.value if self.probability is None else self.probability) or 0.0

    def __str__(self) -> str:
        """The amount as text."""
        return f"{self.amount:.4g}" if self.probability is None else percent(self.probability)


class Answers(BaseModel):
    """What a network makes of a photo: of the class explained, and of the one that it predicts."""

    target: Prediction
    predicted: Prediction


class PhotoFacts(BaseModel):
    """What run.json tells of a photo.

    Attributes:
        key: the name of its files.
        source, index, name: where it is, and what it is called there.
        likeliest: the classes of the highest probabilities.
        variants: what variants make of it that may answer otherwise.
        residuals: of sums that a method promises, in logits, or why there is none, by METHOD/LAYER/VARIANT.
        stretched: whether its picture shows its least value black and its greatest white, whatever the model sees.
    """

    key: str
    source: str
    index: int
    name: str
    label: Prediction | None = None
    sha256: str | None = None
    target: Prediction
    predicted: Prediction
    likeliest: list[Prediction]
    variants: dict[str, Answers] = {}
    residuals: dict[str, float | str] = {}
    stretched: bool = False

    @property
    def place(self) -> tuple[str, int]:
        """What tells it from others of the run."""
        return self.source, self.index

    @property
    def is_right(self) -> bool | None:
        """Whether the label is predicted; None where there is no label of the model's classes, or no class."""
        if self.label is None or self.label.number == NO_CLASS or self.predicted.probability is None:
            return None
        return self.label.number == self.predicted.number

    def plain(self) -> dict[str, Any]:
        """It as plain values, without what is not known."""
        return self.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)


@dataclass
class Photo:
    """A photo on its way: where it is from, what the model sees, and what was found."""

    key: str  # the name of its files
    place: Place
    sample: Sample
    pixels: Tensor
    picture: Any  # (H, W, 3) uint8, as figures show it
    label: Prediction | None = None
    classes: tuple[str, ...] | None = None  # of its source, in the model's order
    odd: Odd = field(default_factory=dict)
    stretched: bool = False  # its picture, as PhotoFacts tells
    facts: PhotoFacts = field(init=False)  # once it is classified
    maps: dict[tuple[str, str, str], Map] = field(default_factory=dict)  # by method, layer and variant
    attributions: dict[str, Tensor] = field(default_factory=dict)  # by METHOD/LAYER/VARIANT

    def answered(self, target: Prediction, predicted: Prediction, likeliest: list[Prediction]) -> None:
        """Note what the network makes of it."""
        source, index = self.place.key
        self.facts = PhotoFacts(
            key=self.key, source=source, index=index, name=self.sample.name, label=self.label,
            sha256=_file_hash(source, self.sample), target=target, predicted=predicted, likeliest=likeliest,
            stretched=self.stretched,
        )  # fmt: skip

    def captioned(self, variant: str = "") -> CaptionedPhoto:
        """The photo with the explained class and its probability, and the predicted class if it is another.

        Of a variant that may answer otherwise they are its own.
        """
        of = self.facts.variants.get(variant, self.facts)
        target, predicted = of.target, of.predicted
        text = f"{target.name} {target}"
        if predicted != target:
            text += f"\n(predicted: {predicted.name} {predicted})"
        return CaptionedPhoto(self.picture, text, self.sample.name)


def find_photos(request: Request, loaded: LoadedModel) -> tuple[list[Place], list[str], list[str]]:
    """Every photo's place, what was wrong with the sources that cannot be opened, and of which some are left out.

    Raises:
        InvalidData: labels are to be explained, and are of no classes of the model.
    """
    places: list[Place] = []
    wrong, cut = [], []
    for spec in dict.fromkeys(request.photos):
        try:
            source = open_images(spec, request.label_column)
        except PellucidError as error:
            _require_no_value(spec, request, loaded)
            wrong.append(str(error))
            continue
        source = _called_as_a_class(source, spec, loaded)
        numbers, classes = _numbers(source, request, loaded)
        if request.limit is not None and request.limit < len(source) and len(source.classes or ()) > 1:
            of = f"the first {request.limit} of {len(source)} photos, perhaps of few of its classes"
            also = "" if loaded.classes else ", and the model's classes by --classes,"
            by_folder = f"name each class's folder{also} to take so many of each"
            more = "a higher --limit takes more" if is_tabular(spec) else by_folder
            cut.append(f"of {spec} {of}, are explained; {more}")
        source = source[: request.limit]
        places += [Place(spec, source, index, numbers, classes) for index in range(len(source))]
    return _told_apart(places), wrong, cut


def _require_no_value(spec: str, request: Request, loaded: LoadedModel) -> None:
    """Refuse a method, layer or variant that stands where photos do, since a blank is before it and no comma."""
    names = {
        "methods": ([*METHODS, *COMBINATORS], request.texts.values()),
        "variant": (VARIANTS, request.variant_texts.values()),
        "layers": (["all", INPUT, *(name for name, _ in loaded.model.named_modules())], request.layers or ()),
    }
    for option, (known, given) in names.items():
        if re.split(r"[(,]", spec)[0] in known:
            raise InvalidParameter(
                f"there is no file or folder {spec}; if it is meant for --{option}, several are given with "
                f"commas: --{option} '{','.join([*given, spec])}'"
            )


def _called_as_a_class(source: Source, spec: str, loaded: LoadedModel) -> Source:
    """Images labeled by the folder in which they lie where it was named itself, not the one above.

    It must be called as one of the model's classes: of other folders nobody knows that they are of a class each.
    """
    folder = Path(spec).absolute().name
    is_known = loaded.classes is not None and number_among(folder, loaded.classes) is not None
    if source.classes is not None or not is_known or not any(_lies_in(spec, name) for name in source.names[:1]):
        return source

    def read(position: int) -> Sample:
        sample = source[position]
        return replace(sample, label=0) if _lies_in(spec, source.names[position]) else sample

    return Source(source.names, read, (folder,))


def _lies_in(folder: str, name: str) -> bool:
    """Whether an image is a file that lies directly in a folder."""
    return "/" not in name and Path(folder).is_dir() and Path(folder, name).is_file()


def _told_apart(places: Sequence[Place]) -> list[Place]:
    """The places with names: where several photos have one name, as much of their paths as tells them apart."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.source.names[place.index], []).append(place)
    names: dict[tuple[str, int], str] = {}
    for name, alike in found.items():
        paths = [Path(one.spec) if Path(one.spec).name == name else Path(one.spec, name) for one in alike]
        longest = max(len(path.parts) for path in paths)
        shown = [name] * len(paths)
        for count in range(len(Path(name).parts), longest + 1):
            if len(set(shown)) == len(shown):
                break
            shown = ["/".join(path.parts[-count:]) for path in paths]
        names |= {one.key: text for one, text in zip(alike, shown, strict=True)}
    return [replace(place, name=names[place.key]) for place in places]


def _numbers(
    source: Source, request: Request, loaded: LoadedModel
) -> tuple[Mapping[int, int] | None, tuple[str, ...] | None]:
    """The model's numbers of a source's labels, if it names them; and the names in the model's order."""
    if source.classes is None:
        return None, None
    with warnings.catch_warnings():
        if request.target != "label":  # then a label is told beside a map, and decides nothing
            warnings.simplefilter("ignore", InputWarning)
        numbers = loaded.numbers_of(source.classes, request.target == "label")
    return dict(enumerate(numbers or ())), renumbered(source, numbers, loaded.classes).classes


def prepared_photo(place: Place, loaded: LoadedModel, target: str, taken: Sequence[str]) -> Photo:
    """A photo as the model sees it, with a key that is not ``taken``.

    Raises:
        InvalidImage: it cannot be read, or the preprocess gives no finite pixels.
        InvalidData: it is to be explained for its label, and has none.
    """
    sample, preprocess = place.source[place.index], loaded.preprocess
    sample = replace(sample, name=place.name or sample.name)
    try:
        pixels = pixels_of(preprocess, sample.image)
    except InvalidImage as error:
        raise error if sample.name in str(error) else InvalidImage(f"{sample.name}: {error}") from error
    if not bool(pixels.isfinite().all()):
        raise InvalidImage(f"{sample.name}: the model's preprocess gave NaN or infinite values")
    if target == "label" and sample.label is None:
        raise InvalidData(f"{sample.name} has no label to explain; {_to_a_label(place, loaded)}")
    key = unused(file_name(str(Path(sample.name).with_suffix(""))), taken)
    picture = np.asarray(preprocess.display(sample.image).convert("RGB"))
    names, label = place.source.classes, None
    if sample.label is not None:
        name = names[sample.label] if names and sample.label < len(names) else loaded.class_name(sample.label)
        number = sample.label if place.numbers is None else place.numbers.get(sample.label, NO_CLASS)
        label = Prediction(number=number, name=name)
    odd, stretched = oddities(sample, preprocess, loaded.whole_of), preprocess.stretches(sample.image)
    return Photo(key, place, sample, pixels, picture, label, place.classes, odd, stretched)


def _to_a_label(place: Place, loaded: LoadedModel) -> str:
    """What to do about a photo without a label."""
    if is_tabular(place.spec):
        return "name its column with --label-column"
    if not _lies_in(place.spec, place.source.names[place.index]):
        return (
            "a photo has one in a folder of its class, where the folder above is named and holds photos in such "
            "folders alone, or in a table: give that, or another --target"
        )
    folder = Path(place.spec).absolute()
    known = f"it is none of the model's: {shortened(loaded.classes, 6)}" if loaded.classes else ""
    known = known or "the model's classes have no names: name them by --classes"
    return (
        f"if {folder.name} is its class, name the folder above, {folder.parent}; a folder that is named itself "
        f"is a label where it is called as a class, and {known}"
    )


def is_tabular(spec: str) -> bool:
    """Whether photos may have a column of labels; those of image files have none."""
    path = Path(spec)
    if path.is_dir():
        return any(one.suffix in SHARDS for one in path.iterdir())
    return not path.is_file() or path.suffix in SHARDS


def _file_hash(spec: str, sample: Sample) -> str | None:
    """The SHA-256 of a photo's file or its tar; nothing for a row of a table or a drawn image.

    What a table calls its rows may look like paths, of which none is followed.
    """
    path = sample.file or (Path(spec) if spec.endswith(".tar") else None)
    return None if path is None or not path.is_file() else file_digest(path)
