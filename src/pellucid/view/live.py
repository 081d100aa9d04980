"""A model and photos as a page: maps at all layers when they are asked for, each computed once."""

from __future__ import annotations

import warnings
from base64 import b64decode
from binascii import Error as NoBase64
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, from_numpy

from ..bounds import UPLOAD
from ..catalog import METHODS, meaning
from ..catalog import method as method_of
from ..catalog import variant as variant_of
from ..data.reading import read_image
from ..data.sources import Source
from ..errors import CanceledMapWarning, InvalidImage, InvalidParameter, brief, counted, percent
from ..experiments.noticing import change_between, may_answer_otherwise
from ..files import replace_file
from ..findings.wording import begun
from ..heatmap import SIGNED, Channels, heatmap
from ..methods.checks import probabilities_of
from ..metrics.scoring import Scorer
from ..models.zoo import LoadedModel
from ..outputs import class_of
from ..passes import DEFAULT_MAX_BATCH, MaxBatch, counting
from ..report.album import pixels_uri
from ..report.figures import has_negative
from ..variants.base import ORIGINAL
from .page import Asked, Tick, explorer, map_told, named

_KEPT, _PHOTOS, _UPLOADS = 256, 32, 100  # answers, photos as the model sees them, and photos given to the page
_LIKELIEST = 5  # classes told of a photo
_SIDE = 512  # pixels of the photo that is shown
_DABS = 20_000  # of the brush that covers a photo
_T = TypeVar("_T")

Given = int | str
"""A photo: its place among the command's, or the name that ``upload`` gave it."""


@dataclass(frozen=True)
class _Seen:
    """A photo as the model sees it."""

    pixels: Tensor  # (1, C, H, W), on the model's device
    picture: np.ndarray  # (H, W, 3) uint8, the same crop


@dataclass(eq=False)
class LiveView:
    """What a page asks of a model; one question is computed at a time, whoever asks.

    A page names photos, classes, methods of the catalogue and variants by their place. It never names a file:
    what is in files is for the command line.
    """

    loaded: LoadedModel
    sources: Sequence[Source]
    methods: Sequence[str] = tuple(METHODS)
    variants: Sequence[str] = ("original",)
    channels: Channels = "mean"
    max_batch: MaxBatch = DEFAULT_MAX_BATCH
    device: str = "cpu"
    seed: int = 0
    _folder: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="pellucid-view-"))
    _uploads: OrderedDict[str, str] = field(default_factory=OrderedDict)  # names by what tells them apart
    _made: OrderedDict[Any, Any] = field(default_factory=OrderedDict)
    _seen: OrderedDict[Given, _Seen] = field(default_factory=OrderedDict)
    _asked: OrderedDict[str, LoadedModel] = field(default_factory=OrderedDict)  # by difference of classes
    _turn: Lock = field(default_factory=Lock)

    @property
    def answers(self) -> Mapping[str, Asked]:
        """What the page may ask."""
        return {answer.__name__: answer for answer in (self.upload, self.photo, self.maps, self.scores)}

    def close(self) -> None:
        """Remove the photos that the page was given."""
        self._folder.cleanup()

    def html(self) -> str:
        """The page."""
        names = [name for source in self.sources for name in source.names]
        lead = "Move along the layers to see where its answer comes from."
        return explorer(
            {
                "mode": "live",
                "title": f"What {self.loaded.name} sees",
                "lead": lead,
                "models": [self.loaded.name],
                "variants": list(self.variants),
                "methods": list(self.methods),
                "meanings": {name: meaning(name) for name in self.methods},
                "images": names,
                "classes": list(self.loaded.classes or ()),
                "most": UPLOAD.value,
                "metrics": {},
            }
        )

    # What it asks.

    def upload(self, tick: Tick, name: str, content: str) -> dict[str, str]:
        """Keep a photo (base 64) in a temporary folder until the command ends, or a hundred others were given."""
        UPLOAD.require(len(content) * 3 // 4, f"{brief(name)} has", InvalidImage)
        try:
            raw = b64decode(content, validate=True)
        except NoBase64 as error:
            raise InvalidImage(f"{brief(name)} did not arrive whole; give it again") from error
        read_image(raw, brief(name))  # refused before it is kept
        key = sha256(raw).hexdigest()
        replace_file(Path(self._folder.name) / key, raw)
        self._uploads[key] = name
        if len(self._uploads) > _UPLOADS:
            (Path(self._folder.name) / self._uploads.popitem(last=False)[0]).unlink(missing_ok=True)
        return {"image": key}

    def photo(self, tick: Tick, image: Given) -> dict[str, Any]:
        """A photo as the model sees it, and what it is taken for."""
        with self._at_turn(tick):
            seen = self._photo(image)
        uri = pixels_uri(seen.picture, _SIDE)
        return {"uri": uri, "scores": self.scores(tick, image, ())}

    def maps(self, tick: Tick, variant: int, method: str, image: Given, target: str) -> dict[str, Any]:
        """The maps at all layers, from one call of the method, of a class, ``auto`` or a difference."""
        key = "maps", variant, method, image, target
        name = named(self.variants, variant, "variant")
        if method not in self.methods:
            _require_no_file(method)
        _require_no_file(target)
        with self._at_turn(tick):
            return _once(self._made, key, _KEPT, lambda: self._maps(tick, name, method, image, target))

    def scores(
        self, tick: Tick, image: Given, dabs: Sequence[tuple[float, float]], radius: float = 0.05
    ) -> list[dict[str, Any]]:
        """What a photo is taken for, and with disks (in shares of its width) covered by its mean color."""
        if len(dabs) > _DABS:
            raise InvalidParameter(f"{counted(len(dabs), 'dab')} of the brush; cover less at once")
        with self._at_turn(tick):
            seen = self._photo(image)
            logits = self._clean(image)
            covered = self._logits(_covered(seen, dabs, radius)) if dabs else logits
            is_class = logits.shape[1] > 1
            before, after = (
                self._probabilities(seen, one)[0] if is_class else one[0] for one in (logits, covered)
            )
        places = [*before.topk(min(_LIKELIEST, len(before))).indices.tolist(), int(after.argmax())]
        return [
            {
                "name": self.loaded.class_name(place) if is_class else "value",
                "before": float(before[place]),
                "after": float(after[place]),
                "share": is_class,
            }
            for place in dict.fromkeys(places)
        ]

    # How it is computed.

    @contextmanager
    def _at_turn(self, tick: Tick) -> Iterator[None]:
        """Wait for the others' questions."""
        while not self._turn.acquire(timeout=0.2):
            tick("waiting for another question")
        try:
            yield
        finally:
            self._turn.release()

    def _photo(self, image: Given) -> _Seen:
        return _once(self._seen, image, _PHOTOS, lambda: self._prepared(image))

    def _prepared(self, image: Given) -> _Seen:
        if isinstance(image, str):
            if image not in self._uploads:
                raise InvalidImage(f"the photo {brief(image)} is no longer kept; give it again")
            found = read_image((Path(self._folder.name) / image).read_bytes(), self._uploads[image])
        else:
            samples = [(source, place) for source in self.sources for place in range(len(source))]
            source, place = named(samples, image, "photo")
            found = source[place].image
        preprocess = self.loaded.preprocess
        picture = np.asarray(preprocess.display(found).convert("RGB"))
        return _Seen(preprocess(found)[None].to(self.device), picture)

    def _clean(self, image: Given) -> Tensor:
        """The logits of a photo as it is, computed once."""
        seen = self._photo(image)
        logits: Tensor = _once(self._made, ("logits", image), _KEPT, lambda: self._logits(seen.pixels))
        return logits

    def _logits(self, pixels: Tensor) -> Tensor:
        return Scorer(self.loaded.model, max_batch=self.max_batch).logits(pixels)

    def _probabilities(self, seen: _Seen, logits: Tensor) -> Tensor:
        return probabilities_of(self.loaded.model, seen.pixels, logits)

    def _maps(self, tick: Tick, variant: str, method: str, image: Given, target: str) -> dict[str, Any]:
        begun, seen, of = perf_counter(), self._photo(image), self.loaded
        passes = [0]

        def each(rows: int) -> None:
            passes[0] += rows
            tick(f"forward passes: {passes[0]}, {perf_counter() - begun:.0f} s")

        with counting(each), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if target != "auto":
                of = _once(self._asked, target, _KEPT, lambda: self.loaded.asked(target))
            number = int(self._clean(image).argmax()) if target == "auto" else class_of(target, of.classes)
            found = method_of(method)(
                of.model,
                seen.pixels,
                number,
                "all",
                variant=variant_of(variant),
                seed=self.seed,
                max_batch=self.max_batch,
            )
            under = self._under(variant, seen, of, number) if may_answer_otherwise(variant_of(variant)) else ""
        maps = {
            layer: heatmap(attribution, None, self.channels)[0].float().cpu().numpy()
            for layer, attribution in found.items()
            if attribution.dim() == 4
        }
        heard = [
            one.message
            for one in told
            if self.channels in SIGNED or not isinstance(one.message, CanceledMapWarning)
        ]
        notes = dict.fromkeys((getattr(one, "layer", None), str(one)) for one in heard)
        return {
            "layers": list(maps),
            "maps": {layer: map_told(values) for layer, values in maps.items()},
            "signed": has_negative(maps.values()),
            "explained": of.class_name(int(found.targets[0])),
            "under": under,
            "notes": [{"layer": layer, "text": f"{text[:1].upper()}{text[1:]}"} for layer, text in notes],
            "made": f"Forward passes: {passes[0]}, in {perf_counter() - begun:.2f} s",
        }

    def _under(self, name: str, seen: _Seen, of: LoadedModel, number: int) -> str:
        """What a variant that is another network answers for the explained class beside the original."""
        variant, target = variant_of(name), torch.tensor([number], device=seen.pixels.device)
        before, after = (
            Scorer(of.model, one, max_batch=self.max_batch).logits(seen.pixels) for one in (ORIGINAL, variant)
        )
        explained = of.class_name(number)
        if before.shape[1] < 2:
            return f"Under {name}: {explained} {float(after):.4g}, under the original {float(before):.4g}"
        shares = [float(self._probabilities(seen, one)[0, number]) for one in (after, before)]
        told = [percent(share) for share in shares]
        predicted = of.class_name(int(after.argmax()))
        change = begun(change_between(of.model, seen.pixels, before, after, target).told(name, "photo"))
        return f"Under {name}: {explained} {told[0]}, predicted {predicted}; the original: {told[1]}. {change}."


def _require_no_file(text: str) -> None:
    """Refuse the names of files, whose code would be run: whoever sees a page need not be who runs the command."""
    if ".py" in text or ".safetensors" in text:
        raise InvalidParameter(f"{brief(text)} names a file: give it to the command, as pellucid view --methods")


def _once(kept: OrderedDict[Any, _T], key: Any, most: int, make: Callable[[], _T]) -> _T:
    """What was made for a key, or is made now; the oldest of more than ``most`` are forgotten."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return kept[key]


def _covered(seen: _Seen, dabs: Sequence[tuple[float, float]], radius: float) -> Tensor:
    """The pixels (1, C, H, W) with disks in the image's mean color."""
    height, width = seen.pixels.shape[-2:]
    mask = Image.new("L", (width, height))
    pen, reach = ImageDraw.Draw(mask), max(0.5, min(radius, 1.0) * width)
    for x, y in dabs:
        across, down = x * width, y * height
        pen.ellipse((across - reach, down - reach, across + reach, down + reach), fill=1)
    inside = from_numpy(np.asarray(mask).astype(bool)).to(seen.pixels.device)
    return seen.pixels.where(~inside, seen.pixels.mean((2, 3), keepdim=True))
