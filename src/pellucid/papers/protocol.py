"""How a run differs from its paper's protocol, value by value: from the recipe alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from .. import catalog
from ..experiments.spec import Spec, Training
from ..findings.wording import joined
from ..training.from_source import NetworkSettings, SurrogateSettings
from ..training.hyperparameters import hyperparameters_of
from .recipe import NetworkTraining, Recipe, Scale, Scaled, SurrogateTraining, references
from .sources import needed

Value = str | tuple[str, ...]  # several are compared one by one

# What values of a spec, and of trainings, are called.
SPEC = {
    "target": "class explained",
    "scored": "network scored",
    "score": "score",
    "precision": "precision of the network scored",
    "channels": "channels",
    "upsampling": "upsampling",
}
TRAINING = ("seeds", "replacement", "ranking")
_SEVERAL = 4  # names; more are counted


@dataclass(frozen=True)
class ProtocolDifference:
    """What differs, the paper's value, this run's, of which methods or measures, and in which parts."""

    what: str
    paper: str
    here: str
    of: tuple[str, ...]
    parts: tuple[str, ...]


def differences(recipe: Recipe, scale: Scale) -> list[ProtocolDifference]:
    """All values in which a run at this scale differs from the paper: from scale paper, or what was published."""
    keys = needed(recipe, scale)
    found: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for part in (*(one for one in recipe.trainings if one.key in keys), *recipe.experiments):
        for values, of in _differing(part, recipe, scale).items():
            found.setdefault((*values, tuple(of)), []).append(part.key)
    return [ProtocolDifference(*values, tuple(parts)) for values, parts in found.items()]


def _differing(part: Scaled, recipe: Recipe, scale: Scale) -> dict[tuple[str, str, str], list[str]]:
    """What differs in one part, the paper's value and ours, and of which methods or measures."""
    theirs, ours = (dict(protocol_of(part, recipe, of)) for of in ("paper", scale))
    found: dict[tuple[str, str, str], list[str]] = {}
    for what, value in {**theirs, **part.published}.items():
        if what in ours and value != ours[what]:
            of, _, field = what.rpartition(": ")
            found.setdefault((field, *_apart(value, ours[what])), []).extend([of] if of else [])
    return found


def protocol_of(part: Scaled, recipe: Recipe, scale: Scale) -> Iterator[tuple[str, Value]]:
    """The values of a training or an experiment at a scale, by what they are called."""
    values = part.at(scale)
    if isinstance(part, NetworkTraining):
        yield from _network(NetworkSettings.model_validate(values), recipe)
    elif isinstance(part, SurrogateTraining):
        surrogate = SurrogateSettings.model_validate(values)
        yield "network", recipe.label(surrogate.model)
        yield "training images", _count(surrogate.count, ", ".join(surrogate.source), recipe)
        yield "training epochs", str(surrogate.epochs)
        yield "training precision", _precision(surrogate.precision)
    else:
        yield from _experiment(Spec.model_validate(values), recipe)


def _experiment(spec: Spec, recipe: Recipe) -> Iterator[tuple[str, Value]]:
    yield "networks", _unique(recipe.label(model.name) for model in spec.models)
    yield "pixels of a side", _unique(str(model.size or "the network's own") for model in spec.models)
    yield "images", _count(spec.images.count, spec.images.source, recipe)
    for what, texts in (("variants", spec.variants), ("methods", spec.methods), ("measures", spec.metrics)):
        yield what, _unique(recipe.label(text.removeprefix("@")) for text in texts)
    yield "layers", spec.layers
    for key, called in SPEC.items():
        yield called, str(getattr(spec, key))
    for text in spec.methods:
        yield from _settings(recipe.label(text), catalog.method(text))
    for text in spec.metrics:
        yield from _settings(recipe.label(text), catalog.metric(text))
    if spec.training is not None:
        yield from _trainings(spec, spec.training, recipe)


def _trainings(spec: Spec, training: Training, recipe: Recipe) -> Iterator[tuple[str, Value]]:
    """What stands for the trainings that a metric needs."""
    yield from _network(training, recipe)
    for text in spec.metrics:
        if own := getattr(catalog.metric(text), "fractions", ()):
            shares = training.fractions or own
            yield f"{recipe.label(text)}: levels", ", ".join(f"{share:g}" for share in shares)
    for key in TRAINING:
        yield f"training {key}", str(getattr(training, key))


def _network(settings: NetworkSettings | Training, recipe: Recipe) -> Iterator[tuple[str, Value]]:
    name = settings.name if isinstance(settings, NetworkSettings) else settings.network
    own = hyperparameters_of(name, epochs=settings.epochs, precision=settings.precision)
    yield "network trained", recipe.label(name)
    yield "training images", _count(settings.count, settings.source, recipe)
    yield "training epochs", str(own.epochs)
    yield "training precision", _precision(own.precision)


def _precision(name: str) -> str:
    return "full" if name == "auto" else name


def _count(count: int | None, source: str, recipe: Recipe) -> str:
    """How many images of which source."""
    [key] = list(references(source)) or [""]
    return f"{'all' if count is None else f'{count:,}'} of {recipe.sources[key].name if key else source}"


def _settings(label: str, value: Any, place: str = "") -> Iterator[tuple[str, Value]]:
    """The plain fields of a method or metric, and of the samplings and rules inside."""
    for field in fields(value):
        own = getattr(value, field.name)
        inside = own if isinstance(own, tuple) else (own,)
        if any(is_dataclass(one) for one in inside):
            for one in inside:
                yield from _settings(label, one, f"{type(one).__name__.lower()} ")
        elif own is not None and not isinstance(own, Mapping):
            yield f"{label}: {place}{field.name.replace('_', ' ')}", str(own)


def _unique(names: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _apart(paper: Value, here: Value) -> tuple[str, str]:
    """Two values in words; of several names those that the other has not, or how many there are."""
    if isinstance(paper, str) or isinstance(here, str):
        return _told(paper), _told(here)
    alone = [name for name in paper if name not in here], [name for name in here if name not in paper]
    if max(map(len, alone)) > _SEVERAL:
        return f"{len(paper)}", f"{len(here)}"
    return joined(alone[0]) or "–", joined(alone[1]) or "–"


def _told(value: Value) -> str:
    return value if isinstance(value, str) else joined(value)
