"""Blind ratings of a run's maps as a page: who made a map is not told, and its place is each rater's own."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import InvalidData, InvalidParameter, UnknownName, counted
from ..experiments.ratings import QUESTIONS_OF_RATERS, SCALE, Rating, read_ratings
from ..report.album import read_map
from ..report.figures import has_negative
from ..report.pages import render
from .page import Asked, Tick, colors_told, map_told, named
from .run import RunView

_INPUT = "input"  # layers.INPUT, whose file needs torch
_HELP = {
    "rated_visual_coherence": (
        "Visual coherence",
        "How accurately does the map highlight the object of interest, and how little spills over?",
    ),
    "rated_edge_differentiation": (
        "Edge differentiation",
        "How visibly are the edges of the object contrasted?",
    ),
}


@dataclass(frozen=True, eq=False)
class RatingView:
    """A run whose maps at one layer, under one variant, are rated."""

    run: RunView
    folder: Path
    variant: str
    layer: str | None

    @classmethod
    def open(cls, url: str | os.PathLike[str], variant: str | None = None, layer: str | None = None) -> RatingView:
        """Open a run of maps to rate: under its first variant, at the image or else the first layer.

        Raises:
            InvalidData: no run with pictures is there, or it is not on this machine, where ratings are kept.
            UnknownName: no such variant or layer.
        """
        run = RunView.open(url)
        if run.store.local is None:
            raise InvalidData(
                f"{run.store.url} is elsewhere; ratings are kept in a run's folder: copy it here first"
            )
        names = {name for layers in run.record.layers.values() for name in layers}
        for kind, asked, known in (("variant", variant, run.variants), ("layer", layer, names)):
            if asked is not None and asked not in known:
                raise UnknownName(kind, asked, known)
        return cls(run, run.store.local, variant or run.variants[0], layer)

    @property
    def answers(self) -> Mapping[str, Asked]:
        """What the page may ask."""
        return {answer.__name__: answer for answer in (self.begin, self.item, self.rate)}

    def html(self) -> str:
        """The page."""
        questions = [(question, *_HELP[question]) for question in QUESTIONS_OF_RATERS]
        lead = f"{counted(len(self._items), 'map')}, in an order of your own. What made each is not told."
        page = {"whole": True, "colors": colors_told(), "questions": questions, "scale": SCALE, "lead": lead}
        return render("rate.html", page=page)

    # What it asks.

    def begin(self, tick: Tick, rater: str) -> list[dict[str, int]]:
        """What a rater answered before, in the order of their maps."""
        self._rating(rater, 0, next(iter(QUESTIONS_OF_RATERS)), 1)  # refuses names that are none
        known = {}
        for one in read_ratings(self.run.store.folder, self.run.record):
            if one.rater == rater.strip():
                known[one.place] = one.value
        return [
            {
                question: known[place]
                for question in QUESTIONS_OF_RATERS
                if (place := self._rating(rater, number, question, 1).place) in known
            }
            for number in range(len(self._items))
        ]

    def item(self, tick: Tick, rater: str, place: int) -> dict[str, Any]:
        """A map and its photo, and nothing of where the map is from."""
        model, method, image, layer = self._item(rater, place)
        variant = self.run.variants.index(self.variant)
        values = read_map(self.run.stored_maps(model, variant, method, image)[layer])
        return {"uri": self.run.photo(tick, model, image)["uri"], "map": map_told(values), "signed": self._signed}

    def rate(self, tick: Tick, rater: str, place: int, question: str, value: int) -> None:
        """Keep a rating; a second of the same question takes the place of the first."""
        rating = self._rating(rater, place, question, value)
        if not rating.is_of(self.run.record):
            raise InvalidParameter(f"{value!r} is no rating from 1 to {len(SCALE)}")
        rating.keep(self.folder)

    # The maps.

    @cached_property
    def _items(self) -> Sequence[tuple[int, int, int, str]]:
        """The maps: model, method, image and layer."""
        variant = self.run.variants.index(self.variant)
        models, methods, images = (range(len(of)) for of in (self.run.models, self.run.methods, self.run.images))
        found = []
        for model, image, method in product(models, images, methods):
            maps = self.run.stored_maps(model, variant, method, image)
            layer = self.layer or (_INPUT if _INPUT in maps else next(iter(maps), None))
            if layer in maps:
                found.append((model, method, image, layer))
        if not found:
            raise InvalidData(f"the run kept no maps under {self.variant} at {self.layer or 'any layer'}")
        return found

    @cached_property
    def _signed(self) -> bool:
        """Whether any map has negative values: then all have the same colors, by which none is told."""
        variant = self.run.variants.index(self.variant)
        return has_negative(
            read_map(self.run.stored_maps(model, variant, method, image)[layer])
            for model, method, image, layer in self._items
        )

    def _item(self, rater: str, place: int) -> tuple[int, int, int, str]:
        order = _order(f"{self.run.record.hash}/{rater.strip()}", len(self._items))
        number: int = named(order, place, "map")
        return self._items[number]

    def _rating(self, rater: str, place: int, question: str, value: int) -> Rating:
        if not 0 < len(rater.strip()) <= 60:
            raise InvalidParameter("give a name of at most 60 characters")
        model, method, image, layer = self._item(rater, place)
        return Rating(
            rater=rater,
            question=question,
            model=self.run.models[model],
            variant=self.variant,
            method=self.run.methods[method],
            layer=layer,
            image=self.run.images[image],
            value=value,
        )


@lru_cache(maxsize=64)
def _order(key: str, count: int) -> Sequence[int]:
    """The places of maps in an order that a text draws."""
    return random.Random(key).sample(range(count), count)
