"""One run of ``explain``: photos are read, classified and explained, group by group, into a draft folder."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from pydantic import BaseModel, model_validator
from torch import Tensor

from ..errors import (
    InputWarning,
    InvalidData,
    InvalidImage,
    InvalidParameter,
    LayerWarning,
    OutputNotWritable,
    PellucidError,
)
from ..experiments.cells import maps_alone, noted
from ..experiments.inputs import digest_of_model
from ..experiments.noticing import count_odd, lattices, may_answer_otherwise
from ..experiments.record import Note
from ..files import HOLDS, replace_file, sealed, unsealed, writable
from ..heatmap import heatmap
from ..layers import explainable, select_layers
from ..methods.attributions import Attributions
from ..methods.base import Method
from ..methods.checks import looks_wrong, not_finite, require_in_range
from ..metrics.scoring import Scorer
from ..models.zoo import LoadedModel, has_own_weights, load_network
from ..outputs import Difference, answer, class_of, first_logits, likelihoods
from ..passes import counting, fitting
from ..report.figures import has_negative
from ..variants.base import ORIGINAL, Variant
from .output import HOW_FAR, UNFINISHED
from .photos import NO_CLASS, Answers, Photo, PhotoFacts, Place, Prediction, find_photos, prepared_photo
from .pictures import MOST_PHOTOS, Pictures
from .request import Request
from .terminal import Show, say

_TOGETHER = MOST_PHOTOS  # photos of one size that are explained at once: what an interruption may lose
_DOING = "explaining photos"  # beside how many are done
_LIKELIEST = 3  # classes told of each photo
_MANY, _LARGE = (200, 1000), (0.2e9, 2e9)  # maps and bytes: told before; not written unless it is asked


class Explained(BaseModel):
    """What a run has found so far: kept after each group, so that the same command goes on."""

    photos: list[PhotoFacts] = []  # those explained
    methods: list[str] = []  # their texts
    layers: list[str] = []  # explained, in order of appearance
    notes: list[Note] = []  # of warnings
    concerned: list[int] = []  # how many photos each note is of
    drawn: dict[str, int] = {}  # pages of each figure
    below_zero: list[str] = []  # the texts of methods with maps of negative values
    wrong: dict[str, str] = {}  # what looks wrong of images and outputs, by kind
    odd: dict[str, list[Any]] = {}  # of the first odd photo of a kind, and how many
    pictures: list[str] | None = None  # the formats of pictures beside the page, once they are known
    keeps: bool = False  # whether raw attributions are written
    model: str = ""  # a digest of what explained them
    asked: dict[str, Any] = {}  # what the run was made from

    @classmethod
    def read(cls, folder: Path, model: str) -> Explained:
        """What an interrupted run left, or nothing; what is damaged, or of another model, counts for nothing.

        The request's files are known to be the same; what they import, or find beside them, may have changed.
        """
        try:
            found = cls.model_validate(unsealed((folder / UNFINISHED / HOW_FAR).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls(model=model)
        if found.model == model:
            return found
        text = "the model is no longer what it was when this run began; all photos are explained anew"
        warnings.warn(InputWarning(text), stacklevel=2)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return cls(model=model)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        """A draft of an earlier version has notes without counts, and counts for nothing."""
        if len(self.concerned) != len(self.notes):
            raise ValueError("notes without counts")
        return self

    def note(self, counts: Mapping[Note, int]) -> None:
        """Add what was warned of, each of so many photos more."""
        new = [note for note in counts if note not in self.notes]
        self.notes += new
        self.concerned += [0] * len(new)
        for note, count in counts.items():
            self.concerned[self.notes.index(note)] += count

    def write(self, folder: Path) -> None:
        """Keep it in a draft folder."""
        replace_file(folder / UNFINISHED / HOW_FAR, sealed(self.model_dump(by_alias=True)))


def _digest_of(loaded: LoadedModel) -> str:
    """What tells a model from another that the same files gave: its parts, weights, preprocess and classes."""
    parts = re.sub(r"0x[0-9a-f]+", "", str(loaded.model))  # addresses differ from one program to the next
    return sha256(f"{digest_of_model(loaded)} {loaded.classes} {parts}".encode()).hexdigest()


def _loaded(request: Request) -> LoadedModel:
    """The model that is asked for, seeing photos as is asked."""
    loaded = load_network(request.model, request.weights, request.classes, device=request.device)
    explainable(loaded.model)
    return loaded.seeing(request.preprocess, request.scale, request.bands)


def _named_as_photos(loaded: LoadedModel, places: Sequence[Place]) -> LoadedModel:
    """The model with its classes called as the photos' folders or labels, if it names none and they do."""
    names = places[0].classes if places else None
    return loaded if loaded.classes is not None or not names else replace(loaded, classes=names)


def require_same_model(request: Request, told: Mapping[str, Any], folder: Path) -> None:
    """Refuse a finished run, by what its run.json told, of a model that has changed where the request cannot see.

    Raises:
        OutputNotWritable: a file's function, or a folder of Hugging Face's, gives another model than it gave then.
    """
    if not has_own_weights(request.model):
        return
    there, loaded = told["model"], _loaded(request)
    if there.get("identity") == _digest_of(loaded):
        return
    before, now = str(there.get("digest", "unknown")), digest_of_model(loaded)
    what = f"parts or class names of {request.model}, which changed since"
    if before != now:
        what = f"weights or preprocessing of {request.model} (digest {before[:12]} there, {now[:12]} here)"
    raise OutputNotWritable(
        f"{folder} holds a finished run of other {what}; choose another folder, or move this one"
    )


@dataclass
class ExplainRun:
    """One call of ``explain``: photos come in, maps and facts go out to a draft folder."""

    request: Request
    loaded: LoadedModel  # what is explained: the model, or its one answer where no class is asked for
    named: LoadedModel  # the model, whose classes photos are taken for
    folder: Path
    places: Sequence[Place]
    left_out: list[str]  # what was wrong with photos that cannot be read
    cut: list[str]  # of which folders and tables the first photos alone are explained
    found: Explained
    pictures: Pictures
    named_by_folders: bool = False  # whether the classes are called as the photos' folders or labels are
    passes: int = 0  # forward passes so far

    @classmethod
    def of(cls, request: Request, folder: Path) -> ExplainRun:
        """Load the model, check that it has the layers, and find the photos, and what was explained before."""
        given = named = loaded = _loaded(request)
        if request.layers is not None:
            select_layers(loaded.model, request.layers)
        places, wrong, cut = find_photos(request, given)
        if request.target not in ("auto", "label"):
            named = _named_as_photos(given, places)  # whether it has so many classes, the first photos show
            loaded = named.asked(request.target)
        found = Explained.read(folder, _digest_of(given))
        found.methods, found.asked = list(request.texts.values()), request.asked
        count = len(places) * len(request.pairs)
        pictures = Pictures(request, folder, found.drawn, count, below_zero=found.below_zero)
        return cls(request, loaded, named, folder, places, wrong, cut, found, pictures, named is not given)

    def explain_all(self, show: Show) -> None:
        """Explain every photo that can be read and was not explained before."""
        show(_DOING, len(self.found.photos), len(self.places))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # what looks wrong is told at the end, and on the page
            for photos in self.groups():
                self.explain_group(photos, show)
        if not self.found.photos:
            count = len(self.left_out)
            only = f"none of {count} photos can be explained; the first: " if count > 1 else ""
            raise InvalidImage(only + self.left_out[0] if count else "no photos were given")
        order = {place.key: number for number, place in enumerate(self.places)}
        self.found.photos.sort(key=lambda facts: order[facts.place])

    def groups(self) -> Iterator[list[Photo]]:
        """Photos of one size together, as they are read; what cannot be read is noted."""
        keys = [facts.key for facts in self.found.photos]
        known = {facts.place for facts in self.found.photos}
        waiting: dict[tuple[int, ...], list[Photo]] = {}
        for place in self.places:
            if place.key in known:
                continue
            try:
                photo = prepared_photo(place, self.loaded, self.request.target, keys)
            except (InvalidImage, InvalidData) as error:
                self.left_out.append(str(error))
                continue
            keys.append(photo.key)
            size = tuple(photo.pixels.shape)
            waiting.setdefault(size, []).append(photo)
            if len(waiting[size]) == _TOGETHER:
                yield waiting.pop(size)
        yield from waiting.values()

    def explain_group(self, photos: list[Photo], show: Show) -> None:
        """Classify, explain and draw photos of one size, and keep what was found."""
        found = self.found
        images = torch.stack([photo.pixels for photo in photos]).to(self.request.device)
        with self.ticking(show, len(photos)) as advance:
            targets = self.classify(photos, images)
            if not found.photos:
                self.probe(images[:1], targets[:1])
            for name, variant in self.request.pairs:
                self.keep(photos, name, variant, self.attribute(name, variant, images, targets))
                advance()
        self.pictures.kinds = found.pictures or ()
        self.pictures.draw(photos)
        for photo in photos:
            self.pictures.write_card(photo)
            if photo.attributions:
                write_attributions(self.folder, photo)
            count_odd(found.odd, photo.odd)
        found.photos += [photo.facts for photo in photos]
        found.write(self.folder)
        show(_DOING, len(found.photos), len(self.places))

    @contextmanager
    def ticking(self, show: Show, photos: int) -> Iterator[Callable[[], None]]:
        """Show each pass of a group of photos, so that something moves within a method; what it gives ends one."""
        before, total = len(self.found.photos), len(self.places)
        pairs = 0

        def tick(rows: int) -> None:
            self.passes += rows
            done = before + photos * pairs / (len(self.request.pairs) + 1)
            show(f"{_DOING} ({self.passes:,} forward passes)", done, total, kept=f"{before} of {total}")

        def advance() -> None:
            nonlocal pairs
            pairs += 1
            tick(0)

        with counting(tick):
            yield advance

    def classify(self, photos: Sequence[Photo], images: Tensor) -> Tensor:
        """The classes to explain, from one forward pass; and what variants make of them."""
        logits = self.logits(images)
        if not bool(logits.isfinite().all()):
            raise not_finite(self.loaded.model, "a logit")
        classes = self.class_logits(images, logits)
        self.name_classes(photos, classes.shape[1])
        predicted = classes.argmax(1)
        targets = self.targets(photos, predicted)
        require_in_range(targets, logits.shape[1])
        wrong = looks_wrong(images, classes, self.loaded.preprocess, normalized=True, model=self.named.model)
        self.found.wrong = wrong | self.found.wrong
        for row, photo in enumerate(photos):
            likeliest = classes[row].topk(min(_LIKELIEST, classes.shape[1])).indices.tolist()
            target = self.explained(logits[row], int(targets[row]))
            highest, *others = (self.answer(classes[row], number) for number in [int(predicted[row]), *likeliest])
            photo.answered(target, highest, others)
        for name, variant in self.request.variants.items():
            if may_answer_otherwise(variant):
                changed = Scorer(self.loaded.model, variant, max_batch=self.request.max_batch).logits(images)
                of_classes = self.class_logits(images, changed, variant)
                for row, photo in enumerate(photos):
                    target = self.explained(changed[row], int(targets[row]))
                    highest = self.answer(of_classes[row], int(of_classes[row].argmax()))
                    photo.facts.variants[name] = Answers(target=target, predicted=highest)
        return targets

    @property
    def is_asked(self) -> bool:
        """Whether what is explained is no class: a difference, or a function of the output."""
        return self.loaded.model is not self.named.model

    def class_logits(self, images: Tensor, logits: Tensor, variant: Variant = ORIGINAL) -> Tensor:
        """The logits (B, K) of the model's classes; of an output that has none, those explained."""
        if not self.is_asked:
            return logits
        with suppress(PellucidError):
            return Scorer(self.named.model, variant, max_batch=self.request.max_batch).logits(images)
        return logits

    def explained(self, logits: Tensor, number: int) -> Prediction:
        """What is explained of one photo: a class, or the value of what is none."""
        if not self.is_asked:
            return self.answer(logits, number)
        found = Prediction(number=NO_CLASS, name=self.request.target, value=float(logits[number]))
        return found.model_copy(update={"between": self.between})

    @cached_property
    def between(self) -> tuple[str, str] | None:
        """The names of the two classes whose difference is explained."""
        found = answer(self.request.target, self.named.classes)
        if not isinstance(found, Difference):
            return None
        one, other = (self.named.class_name(int(number)) for number in (found.one, found.other))
        return one, other

    def answer(self, logits: Tensor, number: int) -> Prediction:
        """A class of one photo: its number, name and probability; what has one output need be no classifier."""
        name = self.loaded.class_name(number) if len(logits) == 1 else self.named.class_name(number)
        if len(logits) == 1:
            return Prediction(number=number, name=name, value=float(logits[number]))
        # Of a last sigmoid each class's own is a probability, whatever they sum to.
        shares = logits if "sigmoid" in self.found.wrong else likelihoods(logits[None])[0]
        return Prediction(number=number, name=name, probability=float(shares[number]))

    def name_classes(self, photos: Sequence[Photo], count: int) -> None:
        """Call the model's classes as the photos' folders or labels, if none have names and there are as many."""
        names = self.named.classes
        if names is not None and len(names) != count and not (self.is_asked and count == 1):
            file, of_file, _ = self.loaded.name.partition(".py:")
            place = f"by `classes` in {file}.py or beside the weights" if of_file else "beside the weights"
            place = "by --classes" if self.request.classes else place
            place = "by the photos' folders or labels" if self.named_by_folders else place
            raise InvalidParameter(
                f"{len(names)} classes are named {place}, and {self.loaded.name} has {count}; name each of the "
                f"model's classes by --classes, or give a model of {len(names)}"
            )
        if names is None and photos[0].classes is not None and len(photos[0].classes) == count > 1:
            self.named = _named_as_photos(self.named, [photo.place for photo in photos])
            if not self.is_asked:
                self.loaded = self.named
            self.named_by_folders = True

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits, at most ``max_batch`` images at a time."""
        model = self.loaded.model

        def logits(most: int) -> Tensor:
            return torch.cat([first_logits(model, part) for part in images.split(most)])

        return fitting(model, images, self.request.max_batch, logits)

    def targets(self, photos: Sequence[Photo], predicted: Tensor) -> Tensor:
        """The class to explain of each photo."""
        target = self.request.target
        if target == "auto":
            return predicted
        if target == "label":
            return torch.tensor([photo.label.number for photo in photos if photo.label], device=predicted.device)
        return torch.full_like(predicted, class_of(target, self.loaded.classes))

    def probe(self, image: Tensor, target: Tensor) -> None:
        """Run each method once on one image without its samplings, so that what cannot work fails at once.

        What comes out tells how much there is to write.
        """
        maps = size = 0
        for name, variant in self.request.pairs:
            method = replace(self.request.methods[name], samplings=())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LayerWarning)
                found = self.call(method, self.request.texts[name], variant, image, target)
            maps += len(found) * len(self.places)
            size += 4 * sum(one.numel() for one in found.values()) * len(self.places)
        self.settle(maps, size)

    def settle(self, maps: int, size: int) -> None:
        """Choose what is written beside the page where the request does not, and say so where it is much.

        There are so many ``maps``, and their raw attributions take ``size`` bytes.
        """
        found, request = self.found, self.request
        found.pictures = ["png"] if request.pictures is None else list(request.pictures)
        found.keeps = size <= _LARGE[1] if request.keep_attributions is None else request.keep_attributions
        if request.pictures is None and maps > _MANY[1]:
            found.pictures = []
            say(f"{maps:,} maps are on the page only; --pictures png writes them as files", err=True)
        elif "png" in found.pictures and maps > _MANY[0]:
            say(f"writing {maps:,} pictures of maps; --no-pictures writes the page only", err=True)
        if size > _LARGE[not found.keeps]:
            does = "writing" if found.keeps else "not writing"
            way = "--raw no leaves them out" if found.keeps else "--raw yes writes them"
            say(f"{does} {size / 1e9:.1f} GB of raw attributions; {way}", err=True)

    def attribute(self, name: str, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method, and note its warnings for the end."""
        notes: dict[Note, int] = {}
        text, channels = self.request.texts[name], self.request.heatmap["channels"]
        with noted(text, notes, channels, variant, images=len(images)) as more:
            found = self.call(self.request.methods[name], text, variant, images, targets)
            more |= {Note("Lattice", text, layer) for layer in lattices(found, self.request.variants.values())}
        self.found.note(dict(sorted(notes.items())))
        return found

    def call(self, method: Method, text: str, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """The maps of a method, called as the request says."""
        request = self.request
        found = method(
            self.loaded.model,
            images,
            targets,
            request.layers,
            variant=request.variants[variant],
            seed=request.seed,
            max_batch=request.max_batch,
            layouts=request.layouts,
        )
        return maps_alone(found, self.loaded.model, request.layers, text)

    def keep(self, photos: Sequence[Photo], name: str, variant: str, found: Attributions) -> None:
        """Keep each photo's maps, and what facts need of them."""
        self.found.layers += [layer for layer in found if layer not in self.found.layers]
        # Up-sampling to nearest neighbors adds nothing: what draws a map does it where it is needed.
        size = None if self.request.heatmap["upsampling"] == "nearest" else photos[0].picture.shape[:2]
        text = self.request.texts[name]
        for layer, attribution in found.items():
            maps = heatmap(attribution, size, **self.request.heatmap).float().cpu().numpy()
            if text not in self.found.below_zero and has_negative([maps]):
                self.found.below_zero.append(text)
            for row, photo in enumerate(photos):
                photo.maps[name, layer, variant] = maps[row]
                place = f"{name}/{layer}/{variant}"
                if layer in found.residuals:
                    photo.facts.residuals[place] = float(found.residuals[layer][row])
                elif found.unchecked:
                    photo.facts.residuals[place] = found.unchecked
        if self.found.keeps:
            for row, photo in enumerate(photos):
                for layer, attribution in found.items():
                    one = attribution[row].detach().float().cpu().clone()
                    photo.attributions[f"{name}/{layer}/{variant}"] = one


_NUMBERS = "the numbers of pellucid explain, one tensor for each METHOD/LAYER/VARIANT"


def write_attributions(folder: Path, photo: Photo) -> None:
    """Write a photo's raw attributions as attributions/PHOTO.safetensors."""
    with writable(folder):
        (folder / "attributions").mkdir(exist_ok=True)
        content = safetensors.torch.save(photo.attributions, {HOLDS: _NUMBERS})
        (folder / "attributions" / f"{photo.key}.safetensors").write_bytes(content)
