"""One run of ``explain``: photos are read, classified and explained, and pictures of the maps are written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..data.sources import Sample
from ..errors import InvalidData, InvalidImage, InvalidLayer, InvalidParameter, LayerWarning
from ..experiments.cells import Note, noted
from ..heatmap import heatmap
from ..layers import explainable, select_layers
from ..methods.base import Attributions, Method
from ..methods.checks import not_finite, require_in_range
from ..models.preprocess import CustomPreprocess, Preprocess
from ..models.zoo import LoadedModel, load_model
from ..outputs import are_shares, class_of, first_logits, probabilities
from ..passes import fitting
from ..pixels import Pixels
from .output import writable
from .photos import Photo, Place, find_photos, prepared_photo
from .pictures import MOST_PHOTOS, Pictures
from .request import Request
from .terminal import progress

_LITTLE = 0.25  # of the values that an image's bits can hold
_TOGETHER = 24  # photos of one size that are explained at once


@dataclass
class ExplainRun:
    """One call of ``explain``: photos come in, pictures and facts go out to a draft folder."""

    request: Request
    loaded: LoadedModel
    folder: Path
    places: Sequence[Place]
    left_out: list[str]  # what was wrong with photos that cannot be read
    pictures: Pictures
    layers: list[str] = field(default_factory=list)  # explained, in order of appearance
    keys: list[str] = field(default_factory=list)  # of the photos read
    photos: list[dict[str, Any]] = field(default_factory=list)  # facts of the photos explained
    attributions: dict[str, Tensor] = field(default_factory=dict)
    is_normalized: bool = False  # whether outputs are probabilities already
    dark: list[tuple[str, int, int]] = field(default_factory=list)  # photos of few values, and which
    notes: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)  # warning, method -> layers

    @classmethod
    def of(cls, request: Request, folder: Path) -> ExplainRun:
        """Load the model, check that it has the layers, and find the photos."""
        loaded = load_model(request.model, request.weights, request.classes, device=request.device)
        explainable(loaded.model)
        loaded = replace(loaded, preprocess=_as_asked(loaded.preprocess, request))
        if request.target not in ("auto", "label"):
            loaded = loaded.asked(request.target)
        if request.layers is not None:
            select_layers(loaded.model, request.layers)
        places, wrong = find_photos(request)
        return cls(request, loaded, folder, places, wrong, Pictures(request, folder, len(places) > MOST_PHOTOS))

    def explain_all(self) -> None:
        """Explain every photo that can be read, and write the raw attributions."""
        done, total = 0, len(self.places) * len(self.request.pairs)
        with progress() as show:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                show("explaining", done, total)

            advance(0)
            for photos in self.groups():
                self.explain_group(photos, advance)
        if not self.photos:
            count = len(self.left_out)
            only = f"none of {count} photos can be read; the first: " if count > 1 else ""
            raise InvalidImage(only + self.left_out[0] if count else "no photos were given")
        if self.attributions:
            with writable(self.folder):
                safetensors.torch.save_file(self.attributions, self.folder / "attributions.safetensors")

    def groups(self) -> Iterator[list[Photo]]:
        """Photos of one size together, as they are read; what cannot be read is noted."""
        waiting: dict[tuple[int, ...], list[Photo]] = {}
        for place in self.places:
            try:
                photo = prepared_photo(place, self.loaded, self.request.target, self.keys)
            except (InvalidImage, InvalidData) as error:
                self.left_out.append(str(error))
                continue
            self.keys.append(photo.key)
            self.note_darkness(photo.sample)
            size = tuple(photo.pixels.shape)
            waiting.setdefault(size, []).append(photo)
            if len(waiting[size]) == _TOGETHER:
                yield waiting.pop(size)
        yield from waiting.values()

    def note_darkness(self, sample: Sample) -> None:
        """Note an image that uses little of the scale by which the model sees it."""
        image, preprocess = sample.image, self.loaded.preprocess
        if not isinstance(image, Pixels) or not isinstance(preprocess, Preprocess) or preprocess.scale is not None:
            return
        if image.used() < _LITTLE:
            self.dark.append((sample.name, int(image.values.min()), int(image.values.max())))

    def explain_group(self, photos: list[Photo], advance: Callable[[int], None]) -> None:
        """Classify, explain and draw photos of one size."""
        images = torch.stack([photo.pixels for photo in photos]).to(self.request.device)
        targets = self.classify(photos, images)
        if not self.photos:
            self.probe(images[:1], targets[:1])
        for name, variant in self.request.pairs:
            self.keep(photos, name, variant, self.attribute(name, variant, images, targets))
            advance(len(photos))
        self.pictures.draw(photos)
        self.photos += [photo.facts for photo in photos]

    def classify(self, photos: Sequence[Photo], images: Tensor) -> Tensor:
        """The classes to explain, from one forward pass."""
        logits = self.logits(images)
        if not bool(logits.isfinite().all()):
            raise not_finite(self.loaded.model, "a logit")
        predicted = logits.argmax(1)
        targets = self.targets(photos, predicted)
        require_in_range(targets, logits.shape[1])
        names = self.loaded.classes
        if names is not None and len(names) != logits.shape[1]:
            raise InvalidParameter(f"{len(names)} classes are named, and {self.loaded.name} has {logits.shape[1]}")
        self.is_normalized |= logits.shape[1] > 1 and are_shares(logits)
        shares = probabilities(logits)
        for row, photo in enumerate(photos):
            for what, classes in (("target", targets), ("predicted", predicted)):
                number = int(classes[row])
                facts = {"class": number, "name": self.loaded.class_name(number)}
                # What has one output need not be a classifier at all.
                value = logits if logits.shape[1] == 1 else shares
                kind = "value" if logits.shape[1] == 1 else "probability"
                photo.facts[what] = facts | {kind: float(value[row, number])}
        return targets

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
            return torch.tensor([photo.sample.label for photo in photos], device=predicted.device)
        return torch.full_like(predicted, class_of(target, self.loaded.classes))

    def probe(self, image: Tensor, target: Tensor) -> None:
        """Run each method once on one image without its samplings, so that what cannot work fails at once."""
        for name, variant in self.request.pairs:
            method = replace(self.request.methods[name], samplings=())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LayerWarning)
                found = self.call(method, variant, image, target)
            for layer, attribution in found.items():
                if attribution.dim() != 4:
                    raise InvalidLayer(
                        f"layer {layer!r} gives {name} the shape {tuple(attribution.shape)}, which is no map; "
                        "name layers whose output has a height and a width"
                    )

    def attribute(self, name: str, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method, and note its warnings for the end."""
        notes: set[Note] = set()
        with noted(self.request.texts[name], notes):
            found = self.call(self.request.methods[name], variant, images, targets)
        for warning, method, layer in sorted(notes):
            self.notes.setdefault((warning, method), {})[layer] = None
        return found

    def call(self, method: Method, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method as the request says."""
        request = self.request
        return method(
            self.loaded.model,
            images,
            targets,
            request.layers,
            variant=request.variants[variant],
            seed=request.seed,
            max_batch=request.max_batch,
            layouts=request.layouts,
        )

    def keep(self, photos: Sequence[Photo], name: str, variant: str, found: Attributions) -> None:
        """Write each photo's maps, and keep what figures and facts need."""
        self.layers += [layer for layer in found if layer not in self.layers]
        for layer, attribution in found.items():
            height, width = photos[0].picture.shape[:2]
            maps = heatmap(attribution, (height, width), **self.request.heatmap).float().cpu().numpy()
            for row, photo in enumerate(photos):
                photo.maps[name, layer, variant] = maps[row]
                self.pictures.write_map(maps[row], photo.key, name, f"{layer}-{variant}")
                if self.request.keep_attributions:
                    key = f"{photo.key}/{name}/{layer}/{variant}"
                    self.attributions[key] = attribution[row].detach().float().cpu().clone()
                if layer in found.residuals:
                    residuals = photo.facts.setdefault("residuals", {})
                    residuals[f"{name}/{layer}/{variant}"] = float(found.residuals[layer][row])


def _as_asked(preprocess: Preprocess | CustomPreprocess, request: Request) -> Preprocess | CustomPreprocess:
    """The model's preprocess with the scale and the bands that were asked for."""
    if request.bands is not None:
        preprocess = replace(preprocess, bands=request.bands)
    if request.scale is None:
        return preprocess
    if isinstance(preprocess, CustomPreprocess):
        raise InvalidParameter(
            "--scale is for a Preprocess; the model's file has a function, which scales by itself"
        )
    return replace(preprocess, scale=request.scale)
