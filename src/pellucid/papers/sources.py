"""What the ``@key`` of a recipe stand for on this machine: the images and weights that a person has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os.path import abspath, expanduser
from pathlib import Path
from typing import Any

from ..errors import InvalidData, UnknownName
from ..experiments.spec import is_source_name
from ..models.weights import is_file
from .recipe import DataSource, Recipe, Scale, references

ZIPPED = ".gz"


def needed(recipe: Recipe, scale: Scale) -> set[str]:
    """The keys that the recipe's experiments refer to, and those that the trainings of these refer to."""
    further = {part.key: references(part.at(scale)) for part in recipe.trainings}
    waiting = list(references([part.at(scale) for part in recipe.experiments]))
    keys: set[str] = set()
    while waiting:
        key = waiting.pop()
        keys.add(key)
        waiting += further.pop(key, ())
    return keys


def located(recipe: Recipe, keys: Collection[str], data: Sequence[str], weights: Sequence[str]) -> dict[str, str]:
    """What each of the keys that is a source or weights stands for: an absolute path, or a name.

    Args:
        recipe: whose ``sources`` and ``weights`` are looked up.
        keys: those that are needed.
        data: folders that hold the sources' paths, and ``KEY=SOURCE``, anything that ``open_images`` opens.
        weights: folders that hold the weights' paths, and ``KEY=FILE``, or a name of weights.

    Raises:
        InvalidData: something needed is not there.
        UnknownName: ``KEY=...`` with a key that the recipe has not.
    """
    return _located("--data", recipe.sources, keys, data) | _located("--weights", recipe.weights, keys, weights)


def _located(
    option: str, sources: Mapping[str, DataSource], keys: Collection[str], given: Sequence[str]
) -> dict[str, str]:
    folders, named = [], {}
    for text in given:
        key, equals, place = text.partition("=")
        if Path(text).expanduser().is_dir():
            folders.append(text)
        elif equals and key not in sources:
            raise UnknownName(f"name in {option} {text}:", key, sources)
        elif equals:
            named[key] = _given(option, key, place)
        else:
            raise InvalidData(f"{option} {text} is no folder; give one, or NAME=..., NAME being {_or(sources)}")
    return {
        key: named[key] if key in named else _inside(option, key, source, folders)
        for key, source in sources.items()
        if key in keys
    }


def _given(option: str, key: str, place: str) -> str:
    """What ``KEY=...`` names; of a path, that it is there."""
    if is_source_name(place) or (option == "--weights" and not is_file(place)):
        return place
    if not Path(place).expanduser().exists():
        raise InvalidData(f"{option} {key}={place}: there is no {place}; give a path that exists")
    return _absolute(place)


def _inside(option: str, key: str, source: DataSource, folders: Sequence[str]) -> str:
    """Where a source is in the first folder that has it, weights zipped or not; or what stands for it."""
    wanted = f"{key} ({source.about})"
    if not folders:
        if source.otherwise:
            return source.otherwise
        raise InvalidData(
            f"{option} is needed for {wanted}: give {option} FOLDER, a folder with {source.path} in it, or "
            f"{option} {key}=PLACE"
        )
    for folder in folders:
        for path in (Path(folder, source.path), Path(folder, source.path.removesuffix(ZIPPED))):
            if path.expanduser().exists():
                return _absolute(path)
    place = f"PLACE, such as {source.otherwise}" if source.otherwise else "PLACE"
    raise InvalidData(
        f"{wanted} is not there: no {' or '.join(str(Path(folder, source.path)) for folder in folders)}; "
        f"put it there, or give {option} {key}={place}"
    )


def _absolute(path: str | Path) -> str:
    return abspath(expanduser(path))


def _or(names: Collection[str]) -> str:
    return " or ".join(names) or "none: this paper needs nothing of the kind"


def filled(value: Any, places: Mapping[str, str]) -> Any:
    """Plain values with every ``@key`` replaced by what it stands for."""
    if isinstance(value, Mapping):
        return {key: filled(part, places) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [filled(part, places) for part in value]
    return places[value[1:]] if isinstance(value, str) and value.startswith("@") else value
