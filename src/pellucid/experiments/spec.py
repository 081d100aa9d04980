"""What an experiment asks for: TOML and options -> one checked, frozen ``Spec``."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..bounds import TEXT_FILE
from ..catalog import SURROGATE, on_files, variant_name
from ..errors import InvalidData, InvalidParameter, UnknownName, brief
from ..files import open_regular
from ..heatmap import Channels, Upsampling
from ..layouts import layout
from ..metrics.randomization import RandomizationWay
from ..metrics.scoring import Output, Precision
from ..models.weights import is_file
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, most_rows
from ..pixels import ScaleEnds
from ..training.degradation import Replacement
from ..training.from_source import Checked, Count, Number
from ..training.hyperparameters import TrainingPrecision

DEFAULT_CUT = 16  # images of a cell, unless a spec says otherwise

TargetRule = Literal["scored", "explained", "label"]


def _several(value: Any) -> Any:
    """One text stands for a list of one; what is named twice is meant once."""
    texts = [value] if isinstance(value, str) else value
    return tuple(dict.fromkeys(texts)) if isinstance(texts, list | tuple) else texts


Layouts = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(lambda value: tuple(value.items()) if isinstance(value, dict) else value),
]
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]


class Part(Checked):
    """A part of a spec; a plain text stands for its first key."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value


class Model(Part):
    """One model.

    Attributes:
        name, weights, classes: as ``load_model`` takes them; a file of names stands alone.
        alias: what tables call it.
        preprocess: what images go through, if not the model's own: ``"whole"``, ``"none"`` or ``file.py:name``.
        scale: the values that become 0 and 1, of images of 16 bits and others; with ``"clip"`` as a third those
            beyond end there. None is what their type tells.
        display: how images of other channels than RGB are shown, ``"mean"`` or one or three channels from 1.
        size: pixels of a side at which images enter, cut to a square at the center; None is as the model's own.
        randomized: all from the top down to this block is random, as in a ``cascade`` (``randomized``).
        way: how it is made random; None is ``"moments"``.
    """

    name: str
    weights: str | None = None
    classes: Texts = ()
    alias: str = ""
    preprocess: str | None = None
    scale: ScaleEnds | None = None
    display: Literal["mean"] | tuple[Count, ...] | None = None
    size: Count | None = None
    randomized: str | None = None
    way: RandomizationWay | None = None

    @model_validator(mode="after")
    def _random(self) -> Self:
        if self.way is not None and self.randomized is None:
            raise ValueError(
                f"way={self.way!r} is how a model is made random; add `randomized`, down to which block"
            )
        return self

    @property
    def key(self) -> str:
        """What tables call it: unless an alias is given its name, of a file without the folders."""
        return self.alias or shown(self.name)

    @property
    def bands(self) -> tuple[int, ...] | None:
        """The channels that are shown, as a ``Preprocess`` takes them: none of them is the mean."""
        return () if self.display == "mean" else self.display

    @property
    def code(self) -> tuple[str, ...]:
        """The texts that may name files of Python."""
        return (self.name, *(() if self.preprocess is None else (self.preprocess,)))


class Images(Part):
    """Which images: every ``every``-th of a source in its sorted order, less ``skip``, the first ``count``.

    ``spread`` takes them from all over the source instead, one at random of each of ``count`` equal stretches: so
    of a source sorted by class they are of many classes.

    ``masks`` is a folder of masks, ``boxes`` a COCO file or a folder of VOC's, whose names are the images'
    (``annotated_with``); a table's columns ``mask`` and ``boxes`` need no naming.

    An image that cannot be used (broken, or without what a metric needs of it) ends the experiment before it
    begins, unless ``skip_unusable`` adds such images to ``skip``.
    """

    source: str
    count: Count | None = None
    every: Count = 1
    spread: bool = False
    skip: Texts = ()
    skip_unusable: bool = False
    label_column: str | None = None
    masks: str | None = None
    boxes: str | None = None
    split: str = "test"
    root: str = "data"


class Training(Checked):
    """The trainings of metrics that are measured by training, such as ROAR.

    Attributes:
        network: what is trained, a name that ``load_model`` knows.
        source, label_column, split, root, count: the training images, as ``Images`` has the test images; of
            ``count`` images, drawn at random.
        epochs, shuffle, precision: instead of the network's own recipe.
        fractions: p, rising between 0 and 1; empty is each metric's own.
        seeds: how often each network is trained.
        replacement: what removed pixels become; None is each metric's own.
        ranking: what is removed: a whole ``"pixel"`` (Kim et al.) or a channel's single ``"value"`` (Hooker et
            al.).
    """

    network: str
    source: str
    label_column: str | None = None
    split: str = "train"
    root: str = "data"
    count: Annotated[int, Field(strict=True, ge=2)] | None = None
    epochs: Count | None = None
    shuffle: bool | None = None
    precision: TrainingPrecision | None = None
    fractions: tuple[float, ...] = ()
    seeds: Count = 3
    replacement: Replacement | None = None
    ranking: Literal["pixel", "value"] = "pixel"

    @field_validator("fractions")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        ends = (0.0, *value, 1.0)
        if any(not low < high for low, high in pairwise(ends)):
            raise ValueError("give rising fractions between 0 and 1")
        return value


class Spec(Checked):
    """An experiment: models x variants x methods x layers x metrics x images.

    Attributes:
        name: what the report calls it.
        models, images: as ``Model`` and ``Images``; a plain text stands for its name or source.
        methods, variants, layers, metrics: texts of the catalogue; layers as ``Method`` takes them.
            A surrogate is named by its file.
        layouts: of layers by name or glob, where they cannot be told, as ``Method`` takes them.
        scored: the model whose scores metrics follow: the ``"original"`` one or the one under its ``"variant"``.
        target: the class explained: ``"scored"``, the highest score of the scored model on the clean image;
            ``"explained"``, that of the model under its variant, while metrics follow the scored model's own
            class, as Smooth Deep Saliency's code does; ``"label"``; a class number or name; a difference of two
            classes; or a function, ``path/to/file.py:function`` (``pellucid.outputs.answer``).
        score: what a score is: ``"softmax"``, ``"sigmoid"`` or ``"logits"``.
        precision: of the scored model: ``"full"``, or ``"bfloat16"``, faster and less exact (``Scorer``).
        reference: the method that others are compared with, if any.
        channels, upsampling: how attributions become heatmaps.
        pictures: of how many images photos and maps are kept.
        seed: of all noise.
        images_per_cell, max_batch, device: how much is computed at once, and where; cells of None have 16 images,
            and ``max_batch = "auto"`` is as much as fits into memory.
        training: what is trained for metrics that are measured by training.
    """

    name: str = "benchmark"
    models: tuple[Model, ...] = Field(min_length=1)
    images: Images
    methods: Texts = ()
    variants: Texts = Field(("original",), min_length=1)
    layers: Texts = Field(("all",), min_length=1)
    metrics: Texts = Field(min_length=1)
    target: int | str = "scored"
    layouts: Layouts = ()
    scored: Literal["original", "variant"] = "original"
    score: Output = "softmax"
    precision: Precision = "full"
    reference: str | None = None
    channels: Channels = "mean"
    upsampling: Upsampling = "nearest"
    pictures: Number = 3
    seed: Number = 0
    images_per_cell: Count | None = None
    max_batch: MaxBatch = DEFAULT_MAX_BATCH
    device: str = "auto"
    training: Training | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _one_model(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_validator("target", mode="before")
    @classmethod
    def _known_target(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
        if not is_number and not (isinstance(value, str) and value.strip()):
            raise ValueError("give 'scored', 'explained', 'label', a class number from 0 or name, or a function")
        return value

    @field_validator("max_batch", mode="before")
    @classmethod
    def _known_bound(cls, value: Any) -> Any:
        most_rows(value)
        return value

    @field_validator("layouts")
    @classmethod
    def _known_layouts(cls, value: Layouts) -> Layouts:
        for _, text in value:
            layout(text)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        keys = [model.key for model in self.models]
        named = {"models": keys, "methods": list(self.method_texts), "variants": list(self.variant_texts)}
        for what, names in named.items():
            if len(set(names)) < len(getattr(self, what)):
                same = f"two of {what} have the same name ({', '.join(names)})"
                raise ValueError(f"{same}; rename a file, or give models an alias, in a spec's [[models]]")
        if self.reference is not None and shown(self.reference) not in self.method_texts:
            raise ValueError(f"reference {self.reference!r} is none of the methods")
        return self

    @property
    def asked(self) -> str:
        """The target, if it is not a rule: a class by number or name, or what is no class."""
        return "" if self.target in get_args(TargetRule) else str(self.target)

    @property
    def method_texts(self) -> dict[str, str]:
        """The methods' texts by what tables call them."""
        return {shown(text): text for text in self.methods}

    @property
    def variant_texts(self) -> dict[str, str]:
        """The variants' texts by what tables call them."""
        return {variant_name(text): text for text in self.variants}

    def model(self, key: str) -> Model:
        """The model that tables call ``key``."""
        return next(model for model in self.models if model.key == key)


class MapsSpec(Spec):
    """What maps are asked for of many images: a ``Spec`` without metrics, for one model."""

    metrics: Texts = ()
    images_per_cell: Count | None = None

    @model_validator(mode="after")
    def _of_one_model(self) -> Self:
        if len(self.models) != 1 or not self.methods or self.metrics:
            raise ValueError("maps in bulk are of one model, by methods that are named, and without metrics")
        plain = {"source", "count", "label_column", "split", "root"}
        for name, about in Images.model_fields.items():
            if name not in plain and getattr(self.images, name) != about.default:
                raise ValueError(f"maps in bulk are of all images of a source; leave out images.{name}")
        return self


_Kind = TypeVar("_Kind", bound=Spec)
_OF_EACH = ("classes", "preprocess", "scale", "display")  # options that hold for every model


def shown(text: str) -> str:
    """What tables call a method or model: its text, files in it without their folders."""
    return on_files(text, lambda path, name: f"{Path(path).name}:{name}")


def read_spec(path: Path | None = None, options: Mapping[str, Any] | None = None) -> Spec:
    """A spec from a TOML file, from options, or from a file whose values options replace.

    Options have the form of the file's content; those of ``images`` are replaced one by one, ``weights`` are
    those of the models, in order; ``classes``, ``preprocess``, ``scale`` and ``display`` are those of each. In the
    file, paths are relative to its folder; in options, to the current folder. In what is a path, and nowhere else,
    ``~`` and environment variables are put in, so that no secret comes into names and reports.

    Raises:
        InvalidData: no such file, or an environment variable that is not set.
        UnknownName: a key that does not exist, with the nearest one that does.
        InvalidParameter: no TOML, a value of the wrong kind, or one that is missing.
    """
    return spec_of(Spec, path, options)


def spec_of(kind: type[_Kind], path: Path | None = None, options: Mapping[str, Any] | None = None) -> _Kind:
    """A spec of a kind, as ``read_spec`` reads it."""
    content = {} if path is None else _located(_content(path), path.absolute().parent)
    given = _located(dict(options or {}), Path.cwd())
    weights = given.pop("weights", [])
    of_each = {key: given.pop(key) for key in _OF_EACH if given.get(key) is not None}
    if "images" in given and isinstance(content.get("images"), dict):
        given["images"] = content["images"] | given["images"]
    place = "the options" if path is None else str(path)
    content |= given
    if weights:
        content["models"] = _weighted(content.get("models", []), weights)
    if of_each:
        content["models"] = [part | of_each for part in _parts(content.get("models", []))]
    for text in _texts(content):
        if os.path.isabs(text) and "$" in text:  # what is no path is not absolute
            raise InvalidData(f"{place}: {text!r} names an environment variable that is not set; set it first")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _told(error, place) from error


def with_absolute_paths(spec: _Kind) -> _Kind:
    """The spec with paths that hold in any folder: what is relative is so to the current one."""
    return spec.model_validate(_located(spec.model_dump(mode="json"), Path.cwd()))


def paths_of(spec: Spec) -> list[Path]:
    """The files and folders that a spec with absolute paths names, and that are there."""
    content = spec.model_dump(mode="json")
    for part in (content["images"], content["training"] or {}):
        if not part.get("source", "").startswith("torchvision:"):
            part.pop("root", None)
    named = [text.removeprefix("hf:") for text in _texts(content)]

    def noted(path: str, name: str) -> str:
        named.append(path)
        return name

    for text in tuple(named):
        on_files(text, noted)
    return [Path(text) for text in dict.fromkeys(named) if os.path.isabs(text) and os.path.exists(text)]


def is_source_name(text: str) -> bool:
    """Whether images are named, as ``"shapes:12"`` or ``"torchvision:CIFAR10"``, and lie at no place given."""
    return text == "shapes" or text.startswith(("shapes:", "torchvision:", "hf:"))


def _content(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = tomllib.loads(TEXT_FILE.read(file, f"the spec {path}", InvalidData).decode())
    except OSError as error:
        # Lists are given with commas: what follows a blank is taken for the spec.
        several = "" if path.suffix else "; of several methods, layers or metrics write a,b"
        raise InvalidData(f"the spec {path} cannot be read: {error.strerror or error}{several}") from error
    except InvalidData:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"{path} is no TOML: {error}") from error
    images = content.get("images")
    return content | {"images": {"source": images}} if isinstance(images, str) else content


def _weighted(models: Sequence[Any], weights: Sequence[str]) -> list[Any]:
    """The models with other weights."""
    if len(models) != len(weights):
        raise InvalidParameter(f"{len(weights)} weights for {len(models)} models; give one for each, in order")
    return [part | {"weights": text} for part, text in zip(_parts(models), weights, strict=True)]


def _parts(models: str | Sequence[Any]) -> list[Any]:
    """Models as tables."""
    models = [models] if isinstance(models, str) else models
    return [{"name": model} if isinstance(model, str) else model for model in models]


# Paths: whatever the spec says, relative to its folder.


def _located(value: Any, folder: Path, key: str = "") -> Any:
    """What stands under a key, with every path absolute.

    Values of a wrong kind are left for the validation to name.
    """
    if isinstance(value, dict):
        return {name: _located(part, folder, f"{key}.{name}" if key else name) for name, part in value.items()}
    if isinstance(value, list):
        return [_located(part, folder, key) for part in value]
    if not isinstance(value, str):
        return value
    return _PATHS[key](value, folder) if key in _PATHS else value


def _texts(value: Any) -> Iterator[str]:
    """All texts inside plain values."""
    if isinstance(value, str):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _texts(part)


def _absolute(text: str, folder: Path) -> str:
    return os.path.normpath(folder / Path(os.path.expandvars(text)).expanduser())


def _source(text: str, folder: Path) -> str:
    return text if is_source_name(text) or "://" in text else _absolute(text, folder)


def _code(text: str, folder: Path) -> str:
    """A name as it is; of ``path/to/file.py:name``, ``hf:folder`` or a surrogate, the path made absolute."""
    if text.startswith("hf:") and (place := Path(_absolute(text.removeprefix("hf:"), folder))).is_dir():
        return f"hf:{place}"
    if text.endswith(SURROGATE):
        return _absolute(text, folder)
    return on_files(text, lambda path, name: f"{_absolute(path, folder)}:{name}")


def _file(text: str, folder: Path) -> str:
    """A name of weights as it is; the path of a file made absolute."""
    located = _absolute(text, folder)
    return located if is_file(text) or is_file(located) else text


# What the keys hold that hold a path, or may.
_PATHS: Mapping[str, Callable[[str, Path], str]] = {
    "images.source": _source,
    "images.root": _absolute,
    "images.masks": _absolute,
    "images.boxes": _absolute,
    "training.source": _source,
    "training.root": _absolute,
    "training.network": _code,
    "models": _code,
    "models.name": _code,
    "models.weights": _file,
    "models.classes": _file,
    "models.preprocess": _code,
    "target": _code,
    "weights": _file,
    "classes": _file,
    "preprocess": _code,
    "methods": _code,
    "variants": _code,
    "reference": _code,
}


# Errors.


def _told(error: ValidationError, place: str) -> Exception:
    """The first thing that is wrong, as an error that names its place and the way out."""
    # A misspelt key first: what it meant may be missing because of it.
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    *table, key = [part for part in problem["loc"] if not isinstance(part, int)] or [""]
    name = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            return _unknown_key(str(key), [str(part) for part in table], place)
        case "missing":
            return InvalidParameter(f"{place}: {name} is missing; give it")
        case "value_error":
            given = f" is {brief(problem['input'])};" if name and not isinstance(problem["input"], dict) else ""
            return InvalidParameter(f"{place}: {name}{given} {problem['ctx']['error']}")
        case _:
            return InvalidParameter(
                f"{place}: {name} is {brief(problem['input'])}; {problem['msg'][:1].lower()}{problem['msg'][1:]}"
            )


def _unknown_key(key: str, table: Sequence[str], place: str) -> UnknownName | InvalidParameter:
    parts: dict[str, type[Checked]] = {"": Spec, "models": Model, "images": Images, "training": Training}
    here = table[0] if table else ""
    for other, part in parts.items():
        if key in part.model_fields and other != here:
            where = f"in the table {other!r}" if other else "at the top, before the first table"
            table_here = f"the table {here!r}" if here else "the top, before the first table,"
            return InvalidParameter(f"{place}: {table_here} has no key {key!r}; write it {where}")
    kind = f"key of the table {here!r} in {place}" if here else f"key in {place}"
    return UnknownName(kind, key, parts[here].model_fields)
