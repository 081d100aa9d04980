"""What a run of ``explain`` noticed, as sentences: told once on the terminal, and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..experiments.noticing import mislabeled, of_images, of_model
from ..experiments.record import Change, Note
from ..findings.wording import notes_told
from ..models.zoo import outputs
from .photos import PhotoFacts, is_tabular
from .run import ExplainRun


def noticed(run: ExplainRun) -> list[str]:
    """All that whoever looks at the maps should know."""
    parts = (
        run.cut,
        _of_model(run),
        of_images(run.found.odd, "photo"),
        _of_variants(run),
        _of_methods(run),
    )
    return [sentence for part in parts for sentence in part]


def _of_model(run: ExplainRun) -> Iterator[str]:
    loaded = run.loaded
    yield from of_model(loaded)
    # Of a last sigmoid two names are refused, and that it is one is told.
    is_value = run.request.target == "auto" and run.found.photos[0].target.value is not None
    if is_value and "sigmoid" not in run.found.wrong:
        yield "one output is explained as a value; name a classifier's two answers: --classes no,yes"
    yield from run.found.wrong.values()
    if loaded.classes is None and run.found.photos[0].target.value is None:
        yield "classes are told by number, since nothing says their names; give --classes FILE or A,B,C"
    labeled = [one for one in run.found.photos if one.label is not None]
    if not (loaded.weights == "random" and ".py:" not in loaded.name):
        of_folders = not any(is_tabular(one.source) for one in labeled)
        numbers = [one.label.number for one in labeled if one.label is not None]
        predicted = [one.predicted.number for one in labeled]
        noun = "folder" if of_folders else "label"
        given = dict.fromkeys(name for place in run.places for name in place.source.classes or ())
        classes = run.named.classes
        count = max(
            outputs(run.named.model), len(classes or ())
        )  # one output has two answers where they have names
        yield from mislabeled(numbers, predicted, count, "photo", noun, classes, list(given))
    if run.named_by_folders:
        count = len(run.named.classes or ())
        what = "labels" if is_tabular(run.found.photos[0].source) else "folders"
        yield f"the model's {count} classes are called as the photos' {what}, in their order"


def _of_variants(run: ExplainRun) -> Iterator[str]:
    photos = run.found.photos
    for name in photos[0].variants if photos[0].target.value is None else ():
        moved = 100 * sum(abs(one.target.amount - one.variants[name].target.amount) for one in photos)
        same = sum(one.predicted.number == one.variants[name].predicted.number for one in photos)
        yield Change(moved, same, len(photos)).told(name, "photo")


def _of_methods(run: ExplainRun) -> Iterator[str]:
    notes: dict[tuple[str, str], list[Note]] = {}
    counts = dict(zip(run.found.notes, run.found.concerned, strict=True))
    for note in run.found.notes:
        by_method = note.warning == "CompletenessWarning"  # by how much it is missed is told of each
        notes.setdefault((note.warning, note.method if by_method else ""), []).append(note)
    for (warning, method), some in notes.items():
        *others, told = notes_told(some, "photo", counts, len(run.found.photos))
        yield from others
        if warning == "CompletenessWarning":
            names = [name for name, text in run.request.texts.items() if text == method]
            residuals = _residuals(run.found.photos, names, [note.layer for note in some])
            if residuals:
                largest = f"the largest is {max(map(abs, residuals)):.3g} logits"
                told += f" ({largest}; run.json has each photo's among its residuals)"
        yield told


def _residuals(photos: Sequence[PhotoFacts], names: Sequence[str], layers: Sequence[str]) -> list[float]:
    """The residuals of a method at some layers, in logits."""
    found = [item for facts in photos for item in facts.residuals.items() if isinstance(item[1], float)]
    return [float(value) for key, value in found if key.split("/")[0] in names and key.split("/")[1] in layers]
