"""The page of ``explain``: what was asked, what to bear in mind, and each photo with its maps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from ..catalog import meaning
from ..errors import counted
from ..files import replace_file
from ..findings.wording import as_sentence, ended
from ..models.preprocess import Preprocess, shown_of
from ..models.zoo import input_channels
from ..report.album import BUDGET, color_key, signs
from ..report.figures import scaling_note
from ..report.pages import MapTable, Page, Section, Table, TableCell, TableColumn, TableRow
from .facts import model_facts
from .lists import VARIANT_MEANINGS
from .noticed import noticed
from .output import origin
from .photos import PhotoFacts
from .pictures import Card
from .run import ExplainRun

_LEAD = (
    "Each map colors the places of a photo, or of a layer inside the network, by how much they matter for the "
    "class named beside it. Maps show what the network's answer hangs on, not whether the answer is right."
)
_LAYERS = (
    "At the layer called input a map has a value for each pixel. At other layers one square stands for one place "
    "of the layer: the deeper the layer, the coarser its map. Its color is {}. A click enlarges a picture."
)
_CHANNELS = {  # what a map makes of a place's channels
    "mean": "the mean of the channels there, in which those of opposite signs may cancel",
    "sum": "the sum of the channels there, in which those of opposite signs may cancel",
    "abs_sum": "the sum of the magnitudes of the channels there, of either sign",
    "abs_max": "the largest magnitude of the channels there, of either sign",
    "positive_sum": "the sum of the channels there that are positive",
}


@dataclass(frozen=True)
class ExplainPage:
    """The page, or pages where photos are many, of a run whose cards lie in its draft folder."""

    run: ExplainRun

    def write(self) -> None:
        """Write report.html, the pages after it, and predictions.csv."""
        folder, parts = self.run.folder, list(self.parts())
        names = ["report.html", *(f"report-{number:03d}.html" for number in range(2, len(parts) + 1))]
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            titles = [f"From {one[0].name}" for one in parts]
            others = [(title, "" if other == name else other) for title, other in zip(titles, names, strict=True)]
            before = [*self.introduction(), *self.overview(names, parts)] if number == 0 else []
            sections = [*before, *(self.photo(facts) for facts in part)]
            lead = [_LEAD, self.asked] if number == 0 else []
            page = Page(self.title, lead, sections, self.footer, others if len(parts) > 1 else [])
            replace_file(folder / name, page.html().encode(errors="replace"))
        replace_file(folder / "predictions.csv", predictions(self.run.found.photos).encode(errors="replace"))

    def parts(self) -> Iterator[list[PhotoFacts]]:
        """The photos of each page, as many as fit into the budget of bytes; at least one."""
        part: list[PhotoFacts] = []
        size = 0
        for facts in self.run.found.photos:
            card = self.card(facts)
            bytes_of = len(card.photo.uri) + sum(len(tile.uri) + len(tile.full) for tile in card.maps.values())
            if part and size + bytes_of > BUDGET:
                yield part
                part, size = [], 0
            part.append(facts)
            size += bytes_of
        yield part

    def card(self, facts: PhotoFacts) -> Card:
        """A photo's card."""
        return Card.read(self.run.folder, facts.key)

    @property
    def title(self) -> str:
        """What was asked for, or what was done."""
        photos = self.run.found.photos
        what = photos[0].name if len(photos) == 1 else counted(len(photos), "photo")
        return self.run.request.title or f"What {self.run.loaded.name} sees in {what}"

    @property
    def asked(self) -> str:
        """What the maps are of, in one sentence."""
        request = self.run.request
        asked = {
            "auto": "the class that it finds most likely",
            "label": "the class that the photo is labeled with",
        }
        between = self.run.found.photos[0].target.between
        if request.target == "auto" and self.run.found.photos[0].target.value is not None:
            return "The question to the network was: what makes its one output larger?"
        what = " rather than for ".join(between) if between else asked.get(request.target, request.target)
        return f"The question to the network was: what speaks for {what}?{self.right}"

    @property
    def right(self) -> str:
        """How many photos are predicted as they are labeled, if any has a label."""
        right = [facts.is_right for facts in self.run.found.photos if facts.is_right is not None]
        return (
            f" It predicts the label of {sum(right)} of {counted(len(right), 'labeled photo')}." if right else ""
        )

    def introduction(self) -> list[Section]:
        """What to bear in mind, and what the maps show."""
        run = self.run
        names = (run.loaded.name, *run.request.texts.values(), *(facts.name for facts in run.found.photos))
        told = [ended(one) if one.startswith(names) else as_sentence(one) for one in noticed(run)]
        told += [ended(f"Left out: {reason}") for reason in run.left_out[:_MOST_TOLD]]
        if len(run.left_out) > _MOST_TOLD:
            told.append(f"And {len(run.left_out) - _MOST_TOLD} more photos were left out.")
        magnitudes = run.request.heatmap["channels"] in ("abs_sum", "abs_max")
        rows = [
            [text, meaning(text, magnitudes) or "See pellucid list methods."]
            for text in run.request.texts.values()
        ]
        tables = [Table.of(["method", "what its maps show"], rows, prose=True)]
        if list(run.request.variants) != ["original"]:
            of = [[name, VARIANT_MEANINGS.get(name, _SURROGATE)] for name in run.request.variants]
            title = "What variants make of the network's strided convolutions"
            tables.append(Table.of(["variant", "strided convolutions"], of, title, prose=True))
        caution = [Section("What to bear in mind", warnings=told)] if told else []
        layers = _LAYERS.format(_CHANNELS[run.request.heatmap["channels"]])
        return [*caution, Section("What the maps show", [layers, *self.stretched()], tables)]

    def overview(self, names: Sequence[str], parts: Sequence[Sequence[PhotoFacts]]) -> Iterator[Section]:
        """Where many photos are: those predicted unlike their label first, then those predicted least surely."""
        photos = self.run.found.photos
        if len(photos) < _MANY or any(facts.predicted.probability is None for facts in photos):
            return
        files = {
            facts.key: "" if place == 0 else names[place] for place, part in enumerate(parts) for facts in part
        }
        known = any(facts.label is not None for facts in photos)
        rows = []
        for facts in sorted(photos, key=lambda one: (one.is_right is not False, one.predicted.amount)):
            cells = [facts.predicted.name, str(facts.predicted)]
            cells += [facts.label.name if facts.label else ""] if known else []
            rows.append(
                TableRow(facts.name, list(map(TableCell, cells)), link=f"{files[facts.key]}#{_anchor(facts)}")
            )
        columns = ["photo", "predicted", "probability", *(["label"] if known else [])]
        first = "those predicted unlike their label, then " if known else ""
        told = (
            f"Listed in this order: {first}those of which the network is least sure. Below, they follow as they "
            "were given. predictions.csv tells more of each."
        )
        yield Section(
            "Photos",
            [told],
            [Table(list(map(TableColumn, columns)), rows, title="Photos")],
            folded=len(photos) > _FOLDED,
        )

    def stretched(self) -> Iterator[str]:
        """Of which photos the pictures are no measure of how bright the model sees them."""
        photos = self.run.found.photos
        count = sum(facts.stretched for facts in photos)
        if count:
            who = "Each photo is" if count == len(photos) else f"{count} of the {len(photos)} photos are each"
            yield f"{who} shown with its least value black and its greatest white, whatever the model sees of it."

    def photo(self, facts: PhotoFacts) -> Section:
        """One photo: what it was taken for, and its maps."""
        run, card, request = self.run, self.card(facts), self.run.request
        paragraphs = list(self.answers(facts))
        speaks, signless = signs(list(request.texts.values()), facts.target.speaks, run.found.below_zero)
        keys = [color_key(request.signed, speaks, request.overlay)]
        note = scaling_note(request.heatmap["clip"], overlay=request.overlay)
        note = note[0].upper() + note[1:] + ": compare where maps are strong, not how strong."
        note += f" {signless[0].upper()}{signless[1:]}." if signless and request.signed else ""
        maps = [self.maps(card)]
        return Section(
            facts.name, paragraphs, photo=card.photo, maps=maps, keys=keys, note=note, anchor=_anchor(facts)
        )

    def answers(self, facts: PhotoFacts) -> Iterator[str]:
        """What the photo was taken for, in lines."""
        target, predicted = facts.target, facts.predicted
        if facts.label is not None:
            other = ", which is not the predicted class" if facts.is_right is False else ""
            yield f"Label: {facts.label.name}{other}"
        if len(facts.likeliest) > 1:
            yield "Predicted: " + ", ".join(f"{one.name} {one}" for one in facts.likeliest)
        if target.between is not None:
            yield f"Explained: {target.name}, a {target.kind}: {target}"
        elif target.value is not None:
            yield f"Value: {target}"
        else:
            also = "" if target.number == predicted.number else ", which is not the predicted class"
            yield f"Explained: {target.name} {target}{also}"
        for name, of in facts.variants.items():
            yield f"Under {name}: {of.target.name} {of.target}, predicted {of.predicted.name}"

    def maps(self, card: Card) -> MapTable:
        """Methods x layers x variants; where methods chose their layers, one column each."""
        request = self.run.request
        variants, texts = list(request.variants), request.texts
        if request.layers is None:
            places = list(dict.fromkeys((method, layer) for method, layer, _ in card.maps))
            rows = [(of, [card.maps.get((*place, of)) for place in places]) for of in variants]
            columns = [f"{texts[method]}\n({layer})" for method, layer in places]
            return MapTable(columns, rows, None if len(variants) == 1 else "variant", card.ratio)
        layers = list(dict.fromkeys(layer for _, layer, _ in card.maps))
        rows = [
            (
                texts[method] if len(variants) == 1 else f"{texts[method]}, {of}",
                [card.maps.get((method, layer, of)) for layer in layers],
            )
            for method in texts
            for of in variants
        ]
        return MapTable(layers, rows, "method" if len(variants) == 1 else "method, variant", card.ratio)

    @cached_property
    def footer(self) -> str:
        """What made the page."""
        run, facts = self.run, origin(self.run.request.command)
        known = model_facts(run)
        kind = next((one for one in ("sha256", "digest") if one in known), "")
        weights = f"weights {known['weights']}" + (f" ({kind} {known[kind][:12]})" if kind else "")
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        preprocess = run.loaded.preprocess
        channels = preprocess.channels if isinstance(preprocess, Preprocess) else input_channels(run.named.model)
        shown = shown_of(preprocess, channels)
        pictures = f" Pictures of them show {shown}." if shown else ""
        return (
            f"Network {run.loaded.name}, {weights}. Photos were {preprocess.in_words}.{pictures} "
            f"Made by: {facts['command']} ({versions})"
        )


def _anchor(facts: PhotoFacts) -> str:
    """Where a photo is on its page, whatever it is called."""
    return f"photo-{sha256(facts.key.encode()).hexdigest()[:12]}"


_MANY, _FOLDED = 4, 12  # photos that are listed, and more than that are where a click unfolds the list
_MOST_TOLD = 20  # photos left out that are named
_SURROGATE = "bilinear paths, trained to take their place, run instead"


def predictions(photos: Sequence[PhotoFacts]) -> str:
    """What each photo was taken for, as CSV."""
    variants, file = list(photos[0].variants), io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    of, kind = ("probability" if one.value is None else "value" for one in (photos[0].predicted, photos[0].target))
    heads = ["photo", "source", "label", "predicted", f"predicted_{of}", "explained", f"explained_{kind}"]
    rows.writerow([*heads, *(f"explained_{kind}_{name}" for name in variants)])
    for facts in photos:
        label = "" if facts.label is None else facts.label.name
        told = [part for one in (facts.predicted, facts.target) for part in (one.name, f"{one.amount:.6g}")]
        moved = [f"{facts.variants[name].target.amount:.6g}" for name in variants]
        rows.writerow([facts.name, facts.source, label, *told, *moved])
    return file.getvalue()
