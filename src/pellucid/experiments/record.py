"""``run.json``: what a run tells about itself, checked where it is read; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from platform import python_version
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..errors import InvalidData, counted, differing, first_difference
from ..files import RUN, sealed, unsealed

DIGESTED = "weights and preprocess"  # what a reader calls the digests of models
GROWING = (
    "methods",
    "variants",
)  # of each of these lists a cell has one name, so that more names leave it as it is
_OF_NO_VALUE = (
    "images_per_cell",
    "pictures",
)  # settings that name a run's cells and keep maps, but decide no value
_LOADED = ("weights", "preprocess", "scale", "size", "randomized", "way")  # what of a model's spec decides them


class Note(NamedTuple):
    """A warning that arose while a method explained a cell's images.

    Attributes:
        warning: the name of its class; of what is no fault, such as a lattice of the original, what it is.
        method: the method's text.
        layer: what it is about; empty where it is of no single layer.
        variant: under which the method ran.
        model: the model's key; empty where there is one.
        text: the sentence itself, of a warning that is of no single layer.
    """

    warning: str
    method: str
    layer: str
    variant: str = ""
    model: str = ""
    text: str = ""


def add_counts(notes: dict[Note, int], more: Mapping[Note, int]) -> None:
    """Add of how many images notes are; 0 is not known, and makes the sum not known."""
    for note, count in more.items():
        known = notes.get(note)
        notes[note] = count if known is None else (known + count) * bool(known and count)


class DamagedRun(InvalidData):
    """A run.json cannot be read; the parts beside it tell whose they are."""


class MetricRecord(BaseModel):
    """What a ``Metric`` says about itself; ``by_training`` if its values are of trainings, not of images."""

    model_config = ConfigDict(frozen=True)

    name: str
    axis: str
    unit: str
    higher_is_better: bool
    paper: str
    undefined: str = ""
    of_model: bool = False
    by_training: bool = False
    ends: tuple[float | None, float | None] = (None, None)

    @property
    def direction(self) -> str:
        """The unit and which end of it is good, in words."""
        return f"{self.unit}, {'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def counted(self) -> str:
        """What one value is of: an ``"image"`` or a ``"training"``."""
        return "training" if self.by_training else "image"


class _Skipping(BaseModel):
    skip: tuple[str, ...] = ()


class _Asked(BaseModel):
    """What is read of a spec as it was written, whatever else it says."""

    name: str = ""
    reference: str | None = None
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    images: _Skipping = _Skipping()


class RunRecord(BaseModel):
    """What run.json says.

    Attributes:
        hash: the digest of the ``identity`` that the run began with: all that decides the results, files by their
            content. A run that was given more methods or variants since keeps it, for its cells are named by it.
        versions: of the libraries that the run was begun with.
        spec: the spec as plain values, methods and variants by the names that the table has.
        metrics: by their texts.
        layers: of each model, in the order in which it has them.
        images: the names of the images, in order.
        cells: the names of the parts, in the order of the plan.
        method_files: digests of files that methods are functions of, by method; only its cells depend on them.
        variant_files: the same of surrogates' files that the run was given since it began, by variant.
        command: what was typed.
        noticed: of each model, sentences on what makes its maps say less than they seem to.
        poor: of each model, the variants under which it answers too differently for maps to speak for it; none of
            fewer than 10 images. Known from the parts (``with_answers``).
        hidden: the methods that are made for hidden layers, whose maps at the input are the image's own.
    """

    model_config = ConfigDict(frozen=True)

    made_by: str = "pellucid"
    hash: str
    versions: Mapping[str, str]
    spec: Mapping[str, Any]
    metrics: Mapping[str, MetricRecord]
    layers: Mapping[str, tuple[str, ...]]
    images: tuple[str, ...]
    cells: tuple[str, ...]
    identity: Mapping[str, Any]
    method_files: Mapping[str, Mapping[str, str]] = {}
    variant_files: Mapping[str, Mapping[str, str]] = {}
    command: str = ""
    noticed: Mapping[str, tuple[str, ...]] = {}
    poor: Mapping[str, tuple[str, ...]] = {}
    hidden: tuple[str, ...] = ()

    @field_validator("spec")
    @classmethod
    def _readable(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        _Asked.model_validate(value)
        return value

    @property
    def _asked(self) -> _Asked:
        return _Asked.model_validate(self.spec)

    @property
    def decisive(self) -> dict[str, Any]:
        """All that the results depend on, by what a reader calls it."""
        files = {name: of for part in self.method_files.values() for name, of in part.items()}
        known = _as_called(self.identity)
        return known | {"files": files | known["files"]}

    def given(self, model: str) -> dict[str, Any]:
        """How the spec gives a model, what it leaves to the model as "its own"."""
        known = {one.get("alias") or one["name"].rpartition("/")[2]: one for one in self.spec.get("models", ())}
        found = known.get(model, {})
        return {name: "its own" if found.get(name) is None else found[name] for name in _LOADED}

    @property
    def name(self) -> str:
        """What the spec calls the experiment."""
        return self._asked.name

    @property
    def reference(self) -> str | None:
        """The method that the others are compared with, if any."""
        return self._asked.reference

    @property
    def skipped(self) -> tuple[str, ...]:
        """The images that were left out."""
        return self._asked.images.skip

    @classmethod
    def read(cls, content: bytes, url: str) -> RunRecord:
        """Check the content of the run.json in the folder ``url``; any other than a benchmark's is refused."""
        try:
            told = unsealed(content)
        except ValueError as error:
            raise DamagedRun(
                f"{url}/{RUN} is damaged ({error}); run the same benchmark again, which keeps what is finished"
            ) from error
        if not isinstance(told, dict) or not {"identity", "hash", "cells"} <= told.keys():
            raise InvalidData(f"{url} holds {_another(told, url)}")
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise InvalidData(
                f"{url}/{RUN} is of another layout than this version's: {place}: {problem['msg'].lower()}; "
                "read it with the version that it names, or run the benchmark again in a new folder"
            ) from error

    def content(self) -> bytes:
        """The content of the run.json that says this."""
        return sealed(self.model_dump(mode="json"))


_SHOWN = {  # how runs of other commands are looked at
    "explain": "open {}/report.html",
    "demo": "open {}/report.html",
    "maps": "see pellucid show {} -o pictures",
}


def _another(told: Any, url: str) -> str:
    """Whose run a folder holds that is no benchmark's, by its run.json, and how it is looked at."""
    words = str(told.get("command", "")).split() if isinstance(told, dict) else []
    command = words[1] if len(words) > 1 else ""
    if command not in _SHOWN:
        return "a run of another command; choose another folder"
    shown = _SHOWN[command].format(url)
    return (
        f"a run of pellucid {command} ({shown}); name a run of pellucid benchmark, or another folder to write to"
    )


# What makes two runs the same.


def hashed(value: Any) -> str:
    """The SHA-256 of plain values."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _as_called(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity by what a reader calls its parts, models first and files last."""
    known = dict(identity)
    models, files = known.pop("models", {}), known.pop("files", {})
    return {DIGESTED: models, **known, "files": files}


def obstacle(begun: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """What keeps a run of the identity ``begun`` from going on as ``asked``; None where nothing does.

    More methods and variants do not, with the files of these variants: no cell that is there depends on them.
    """
    there, here = _as_called(begun), _as_called(asked)
    for name in GROWING:
        if set(there.get(name, ())) <= set(here.get(name, ())):
            here[name] = there.get(name)
    here["files"] = {name: of for name, of in here["files"].items() if name in there["files"]}
    return None if there == here else first_difference(there, here)


def cell_digest(
    run: str, model: str, variant: str, method: str, start: int, stop: int, files: Mapping[str, str]
) -> str:
    """How the name of the part ends that holds a method's results on a run's images from ``start`` to ``stop``.

    ``files`` are the digests of the method's own, and of the variant's where the run was given it later: the
    digest of the ``run`` does not tell them.
    """
    return hashed([run, model, variant, method, start, stop, *sorted(files.items())])[:12]


def versions() -> dict[str, str]:
    """What results may depend on."""
    packages = ("pellucid", "torch", "torchvision", "numpy")
    return {"python": python_version()} | {package: version(package) for package in packages}


def apart(one: RunRecord, other: RunRecord, places: tuple[str, str]) -> Iterator[str]:
    """All in which two runs differ: of models what was given otherwise, and their content where nothing was.

    What belongs to a model, or to a method, that only one has is not told besides.
    """
    ours, theirs = (
        {name: part for name, part in record.decisive.items() if name not in _OF_NO_VALUE}
        for record in (one, other)
    )
    mine, yours = (part.pop(DIGESTED) for part in (ours, theirs))
    if len(mine) == len(yours) == 1 and [*mine] != [*yours]:
        yield f"the model is {next(iter(mine))} {places[0]} and {next(iter(yours))} {places[1]}"
    else:
        yield from differing(sorted(mine), sorted(yours), "models", places)
    for key in (key for key in mine if key in yours and mine[key] != yours[key]):
        given = [record.given(key) for record in (one, other)]
        if given[0] != given[1]:
            yield from differing(given[0], given[1], key, places)
        else:
            yield from differing(mine[key], yours[key], f"{DIGESTED}.{key}", places)
    for part, others in ((ours, theirs), (theirs, ours)):
        part["files"] = {name: of for name, of in part["files"].items() if name in others["files"]}
    yield from differing(ours, theirs, places=places)


# Whether maps of another network speak for the original one.

_POOR, _CLOSE = (15.0, 0.8), (5.0, 0.95)  # of variants: points of probability moved, share of equal predictions
ENOUGH = 10  # images that a verdict on a variant takes


@dataclass(frozen=True)
class Change:
    """How another network answers on ``count`` images.

    Attributes:
        points: by how many points the explained class's probability moves, summed over the images.
        same: for how many the predicted class is the original's.
    """

    points: float = 0.0
    same: int = 0
    count: int = 0

    def __add__(self, other: Change) -> Change:
        return Change(self.points + other.points, self.same + other.same, self.count + other.count)

    @property
    def is_poor(self) -> bool:
        """Whether maps of the other network do not explain the original one, as far as so many images can say."""
        return self.count >= ENOUGH and is_poor(self.points / self.count, self.same / self.count)

    def told(self, name: str, noun: str = "image") -> str:
        """What this says of a variant, in a sentence."""
        mean = self.points / self.count
        return (
            f"under {name} the network is another: it moves the explained class's probability by {mean:.1f} "
            f"points on average and predicts as the original for {self.same} of {counted(self.count, noun)}: "
            f"{verdict_on(mean, self.same / self.count, self.count, noun)}"
        )


def is_poor(points: float, same: float) -> bool:
    """Whether another network that moves probabilities so much and predicts so often the same speaks for none."""
    return points > _POOR[0] or same < _POOR[1]


def verdict_on(points: float, same: float, count: int, noun: str = "image") -> str:
    """Whether maps of another network speak for the original one; a few images may be alike by chance."""
    if count < ENOUGH:
        return f"too few for a verdict, which takes {counted(ENOUGH, noun)}"
    close = f"up to {_CLOSE[0]:g} points and {100 * _CLOSE[1]:g} % as the original"
    if points <= _CLOSE[0] and same >= _CLOSE[1]:
        return f"close to the original, so that its maps speak for it ({close})"
    poor = f"more than {_POOR[0]:g} points or fewer than {100 * _POOR[1]:g} % as the original"
    if is_poor(points, same):
        return f"a poor stand-in, whose maps do not explain the original network ({poor})"
    return f"a fair stand-in; mind the difference (close is {close}; poor is {poor})"


class Answered(BaseModel):
    """How a variant of a model answers on the images of a cell that begin at ``start``: a ``Change``, summed."""

    model_config = ConfigDict(frozen=True)

    model: str
    variant: str
    start: int
    points: float
    same: int
    count: int

    @classmethod
    def of(cls, model: str, variant: str, start: int, change: Change) -> Answered:
        """The answers of a cell."""
        return cls(model=model, variant=variant, start=start, **asdict(change))


def with_answers(record: RunRecord, answers: Iterable[Answered]) -> RunRecord:
    """A record that tells how variants answer on all images that were graded, each image once."""
    # Every method's cell of the same images tells the same answers, which count once.
    alone = {(one.model, one.variant, one.start): Change(one.points, one.same, one.count) for one in answers}
    found: dict[str, dict[str, Change]] = {}
    for (model, variant, _), change in sorted(alone.items(), key=lambda item: item[0][2]):
        of_model = found.setdefault(model, {})
        of_model[variant] = of_model.get(variant, Change()) + change
    told = {model: tuple(one.told(name) for name, one in changes.items()) for model, changes in found.items()}
    poor = {model: tuple(name for name, one in changes.items() if one.is_poor) for model, changes in found.items()}
    noticed = {model: (*record.noticed.get(model, ()), *sentences) for model, sentences in told.items()}
    return record.model_copy(update={"noticed": {**record.noticed, **noticed}, "poor": {**record.poor, **poor}})
