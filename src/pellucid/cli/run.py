"""One run of ``explain``: photos are read, classified and explained; pictures and facts are written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidData, InvalidImage, InvalidLayer, LayerWarning
from ..files import file_name
from .facts import run_facts, write_facts
from .output import unused, writable
from .photos import Photo, Place, file_hash, opened
from .pictures import ROWS, Pictures
from .terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.base import Attributions, Method
    from ..models.zoo import LoadedModel
    from .request import Request

CHUNK = 24  # photos of one size that are explained together


@dataclass
class Run:
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
    warned: dict[tuple[type[LayerWarning], str], list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request, folder: Path) -> Run:
        """Load the model, check that it has the layers, and find the photos."""
        from ..layers import require_explainable, select_layers
        from ..models.zoo import load_model

        loaded = load_model(request.model, request.weights, device=request.device)
        require_explainable(loaded.model)
        if request.layers is not None:
            select_layers(loaded.model, request.layers)
        places, wrong = opened(request)
        return cls(request, loaded, folder, places, wrong, Pictures(request, folder, len(places) > ROWS))

    def explain_all(self) -> None:
        """Explain every photo that can be read."""
        with progress() as bar:
            task = bar.add_task("explaining", total=len(self.places) * len(self.request.pairs))
            for chunk in self.chunks():
                self.explain_chunk(chunk, lambda done: bar.advance(task, done))
        if not self.photos:
            count = len(self.left_out)
            only = f"none of {count} photos can be read; the first: " if count > 1 else ""
            raise InvalidImage(only + self.left_out[0] if count else "no photos were given")

    def chunks(self) -> Iterator[list[Photo]]:
        """Photos of one size together, as they are read; what cannot be read is noted."""
        waiting: dict[tuple[int, ...], list[Photo]] = {}
        for place in self.places:
            try:
                photo = self.read(place)
            except (InvalidImage, InvalidData) as error:
                self.left_out.append(str(error))
                continue
            size = tuple(photo.pixels.shape)
            waiting.setdefault(size, []).append(photo)
            if len(waiting[size]) == CHUNK:
                yield waiting.pop(size)
        yield from waiting.values()

    def read(self, place: Place) -> Photo:
        """A photo as the model sees it."""
        import numpy as np

        sample, preprocess = place.source[place.index], self.loaded.preprocess
        pixels = preprocess(sample.image)
        if not bool(pixels.isfinite().all()):
            raise InvalidImage(f"{sample.name}: the model's preprocess gave NaN or infinite values")
        if self.request.target == "label" and sample.label is None:
            raise InvalidData(f"{sample.name} has no label to explain; name its column with --label-column")
        key = unused(file_name(str(Path(sample.name).with_suffix(""))), self.keys)
        self.keys.append(key)
        picture = np.asarray(preprocess.display(sample.image).convert("RGB"))
        facts = {"key": key, "source": place.spec, "index": place.index, "name": sample.name}
        return Photo(key, sample, pixels, picture, facts | file_hash(place.spec, sample.name))

    def explain_chunk(self, chunk: list[Photo], advance: Callable[[int], None]) -> None:
        """Classify, explain and draw photos of one size."""
        import torch

        images = torch.stack([photo.pixels for photo in chunk]).to(self.request.device)
        targets = self.classify(chunk, images)
        if not self.photos:
            self.probe(images[:1], targets[:1])
        for name, variant in self.request.pairs:
            found = self.attribute(name, variant, images, targets)
            self.keep(chunk, name, variant, found)
            advance(len(chunk))
        self.pictures.draw(chunk)
        self.photos += [photo.facts for photo in chunk]

    def classify(self, chunk: list[Photo], images: Tensor) -> Tensor:
        """The classes to explain, from one forward pass."""
        from ..methods.checks import not_finite, require_in_range

        logits = self.logits(images)
        if not bool(logits.isfinite().all()):
            raise not_finite(self.loaded.model, "a logit")
        predicted = logits.argmax(1)
        targets = self.targets(chunk, predicted)
        require_in_range(targets, logits.shape[1])
        shares = logits.softmax(1)
        for row, photo in enumerate(chunk):
            for what, classes in (("target", targets), ("predicted", predicted)):
                number = int(classes[row])
                photo.facts[what] = {
                    "class": number,
                    "name": self.class_name(number),
                    "probability": float(shares[row, number]),
                }
        return targets

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits, at most ``max_batch`` images at a time."""
        import torch

        from ..methods.checks import require_logits

        with torch.no_grad():
            # Clones: the model's first operation may be in place.
            parts = images.split(self.request.max_batch)
            return torch.cat([require_logits(self.loaded.model(part.clone())) for part in parts])

    def targets(self, chunk: Sequence[Photo], predicted: Tensor) -> Tensor:
        """The class to explain of each photo."""
        import torch

        target = self.request.target
        if target == "auto":
            return predicted
        if target == "label":
            return torch.tensor([photo.sample.label for photo in chunk], device=predicted.device)
        return torch.full_like(predicted, int(target))

    def class_name(self, number: int) -> str:
        """A class's name, or its number where names are unknown."""
        return self.loaded.classes[number] if self.loaded.classes else f"class {number}"

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
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self.call(self.request.methods[name], variant, images, targets)
        for warning in caught:
            message = warning.message
            if not isinstance(message, LayerWarning):
                warnings.warn_explicit(message, warning.category, warning.filename, warning.lineno)
                continue
            layers = self.warned.setdefault((type(message), self.request.texts[name]), [])
            if message.layer not in layers:
                layers.append(message.layer)
        return found

    def call(self, method: Method, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method as the request says."""
        request = self.request
        return method(
            self.loaded.model, images, targets, request.layers,
            variant=request.variants[variant], seed=request.seed, max_batch=request.max_batch,
        )  # fmt: skip

    def keep(self, chunk: Sequence[Photo], name: str, variant: str, found: Attributions) -> None:
        """Write each photo's maps, and keep what figures and facts need."""
        from ..heatmap import heatmap

        self.layers += [layer for layer in found if layer not in self.layers]
        for layer, attribution in found.items():
            height, width = chunk[0].picture.shape[:2]
            maps = heatmap(attribution, (height, width), **self.request.heatmap).float().cpu().numpy()
            for row, photo in enumerate(chunk):
                photo.maps[name, layer, variant] = maps[row]
                self.pictures.write_map(maps[row], photo.key, name, f"{layer}-{variant}")
                if self.request.keep_attributions:
                    key = f"{photo.key}/{name}/{layer}/{variant}"
                    self.attributions[key] = attribution[row].detach().float().cpu().clone()
                if layer in found.residuals:
                    residuals = photo.facts.setdefault("residuals", {})
                    residuals[f"{name}/{layer}/{variant}"] = float(found.residuals[layer][row])

    def write(self) -> None:
        """Write the raw attributions and run.json."""
        import safetensors.torch

        if self.attributions:
            with writable(self.folder):
                safetensors.torch.save_file(self.attributions, self.folder / "attributions.safetensors")
        write_facts(self.folder, run_facts(self))
