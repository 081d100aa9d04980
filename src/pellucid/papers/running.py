"""Runs a paper's recipe at a scale: trains its networks, then computes its experiments; goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ..errors import InvalidParameter, OutputNotWritable, PellucidError, first_difference
from ..experiments import runners
from ..experiments.record import versions
from ..experiments.spec import Spec, read_spec
from ..experiments.store import Results
from ..files import alone, replace_file, writable
from ..findings.statistics import Statistics
from ..folders import content
from ..models.zoo import device_named
from ..training.checkpoints import remove_checkpoints
from ..training.from_source import NetworkSettings, SurrogateSettings, train_classifier, train_paths
from ..variants.surrogate import load_surrogate
from .recipe import Experiment, NetworkTraining, Recipe, Scale, TrainingPart, references
from .sources import filled, located, needed

TRAINED, RUNS, STATE, _LOCK = "trained", "runs", "reproduce.json", ".lock"

AdvanceStep = Callable[[str, str, int, int], None]
"""Called with the step, what of it is being done, how much of that is done, and how much there is."""

Settings = NetworkSettings | SurrogateSettings


@dataclass(frozen=True)
class LearntPart:
    """A network or surrogate (``kind``) that was trained, in how many seconds of all calls, and how well it does.

    A network has its ``accuracy`` in [0, 1] on ``held_out`` images, a surrogate its last ``loss``.
    """

    kind: str
    model: str
    epochs: int
    images: int
    seconds: float
    accuracy: float | None = None
    held_out: int = 0
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What a recipe gave.

    Attributes:
        recipe: the paper's, with the chosen exhibits only.
        scale: the scale at which it ran.
        results, statistics: of each experiment, by key; one of which no cell finished has no statistics.
        trained: each network and surrogate, by key.
        places: what each ``@key`` of sources and weights stood for.
        seconds: the wall-clock time of the trainings and experiments, over all calls that they took.
        versions: of the libraries that ran now.
        command: what was typed.
    """

    recipe: Recipe
    scale: Scale
    results: Mapping[str, Results]
    statistics: Mapping[str, Statistics]
    trained: Mapping[str, LearntPart]
    places: Mapping[str, str]
    seconds: float
    versions: Mapping[str, str]
    command: str


def reproduce(
    recipe: Recipe,
    scale: Scale,
    folder: Path,
    data: Sequence[str] = (),
    weights: Sequence[str] = (),
    device: str = "auto",
    advance: AdvanceStep = lambda step, what, done, total: None,
    command: str = "",
    runner: runners.Runner = runners.inline,
) -> Reproduction:
    """Run a recipe, or what is left of it.

    Networks and surrogates stand in ``folder/trained`` and are trained again only where their settings or images
    are no longer the same; an experiment's run is ``folder/runs/KEY``, as of ``pellucid benchmark``. A call that
    was ended in whatever way goes on where it was when it is made again. A cell that fails does not end the
    others: ``Results.failed`` says what was wrong.

    Args:
        recipe: of ``read_recipe``; ``Recipe.only`` chooses exhibits.
        scale: whose values are put in.
        folder: new, empty, or of the same paper and scale.
        data, weights: folders that hold what the recipe names, and ``KEY=PLACE`` for what is elsewhere.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        advance: called as it proceeds.
        command: what was typed, for the runs and the page.
        runner: of the experiments, as ``benchmark`` takes it; networks are trained here.

    Raises:
        InvalidData, UnknownName: something that the recipe needs is not there; nothing has been computed then.
        OutputNotWritable: the folder holds something else, another process writes to it, or the disk is full.
        PellucidError: whatever is wrong with the data; what was finished before is kept.
    """
    device = device_named(device)
    keys = needed(recipe, scale)
    trainings = [part for part in recipe.trainings if part.key in keys]
    places = located(recipe, keys, data, weights)
    files = {part.key: str(folder.absolute() / TRAINED / f"{part.key}.safetensors") for part in trainings}
    work = _Work(scale, folder, {**places, **files}, device, advance, command, runner)
    # All are checked before the first is trained, which may take days.
    settings = {part.key: work.settings(part) for part in trainings}
    specs = {part.key: work.spec(part) for part in recipe.experiments}
    with _opened(folder, recipe.title, scale) as state:
        state.places |= places
        state.write()
        trained = {part.key: work.trained(state, part, settings[part.key]) for part in trainings}
        results = {part.key: work.results(state, part, specs[part.key]) for part in recipe.experiments}
    return Reproduction(
        recipe,
        scale,
        results,
        {key: Statistics.of(found) for key, found in results.items() if len(found.table)},
        trained,
        places,
        sum(state.seconds.get(part.step, 0.0) for part in (*trainings, *recipe.experiments)),
        versions(),
        command,
    )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say in an error what was being done."""
    try:
        yield
    except PellucidError as error:
        error.args = (f"{place}: {error}",)
        raise


@dataclass(frozen=True)
class _Work:
    """One call's steps."""

    scale: Scale
    folder: Path
    places: Mapping[str, str]
    device: str
    advance: AdvanceStep
    command: str
    runner: runners.Runner

    def settings(self, part: TrainingPart) -> Settings:
        """A training's settings, checked."""
        kind = NetworkSettings if isinstance(part, NetworkTraining) else SurrogateSettings
        try:
            return kind.model_validate(filled(part.at(self.scale), self.places))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the settings"
            raise InvalidParameter(f"{part.step} at scale {self.scale}: {where}: {first['msg']}") from error

    def spec(self, part: Experiment) -> Spec:
        """An experiment's spec, checked."""
        with _at(f"{part.step} at scale {self.scale}"):
            return read_spec(None, {**filled(part.at(self.scale), self.places), "device": self.device})

    def trained(self, state: State, part: TrainingPart, settings: Settings) -> LearntPart:
        """Train a network or surrogate, unless that is done."""
        output, values = Path(self.places[part.key]), part.at(self.scale)
        identity = filled(values, {key: content(self.places[key]) for key in references(values)})
        known = state.trained.get(part.key)
        if not (known and known.finished and known.identity == identity and output.is_file()):
            step = part.step
            if known and known.identity != identity:
                step = f"{step} again ({first_difference(known.identity, identity)})"
                state.seconds.pop(part.step, None)
            if known and (known.finished or known.identity != identity):  # what is left of it is of no use
                _remove(output)
            # It is written down before it begins, so that the next call knows whose checkpoints lie there.
            state.trained[part.key] = begun = StartedTraining(identity=identity, finished=False)
            state.write()
            with _at(part.step), state.timed(part.step):
                _train(settings, output, self.device, lambda what, *counts: self.advance(step, what, *counts))
                begun.finished = True
        return _learnt(output, settings, state.seconds.get(part.step, 0.0))

    def results(self, state: State, part: Experiment, spec: Spec) -> Results:
        """Compute an experiment, or what is left of it."""
        counts: list[int] = []

        def advance(done: int, total: int) -> None:
            counts.append(done)
            self.advance(part.step, "grading", done, total)

        with _at(part.step), state.timed(part.step, lambda: len(set(counts)) > 1):
            output = self.folder / RUNS / part.key
            return runners.benchmark(spec, output, runner=self.runner, advance=advance, command=self.command)


def _train(settings: Settings, output: Path, device: str, advance: Callable[[str, int, int], None]) -> None:
    """Train into a file."""
    with writable(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(settings, NetworkSettings):
        train_classifier(settings, output, device, advance)
    else:
        train_paths(settings, output, device, advance)


def _learnt(output: Path, settings: Settings, seconds: float) -> LearntPart:
    """What a trained network's or surrogate's files tell."""
    if isinstance(settings, SurrogateSettings):
        facts = dict(load_surrogate(output).facts)
        counts = facts["epochs"], facts["images"]["count"]
        return LearntPart("surrogate", settings.model, *counts, seconds, loss=sum(facts["losses"][-1]))
    facts = json.loads(output.with_suffix(".json").read_bytes())
    counts = facts["training"]["recipe"]["epochs"], facts["training"]["images"]
    scored = "test" if "test_accuracy" in facts else "validation"
    held_out = int(facts[f"{scored}_set"].split()[0])
    accuracy = facts.get("test_accuracy", facts["accuracy"])
    return LearntPart("network", settings.name, *counts, seconds, accuracy, held_out)


def _remove(output: Path) -> None:
    """Remove a training's files, so that another's may take their place."""
    for path in (output, output.with_suffix(".json")):
        path.unlink(missing_ok=True)
    remove_checkpoints(output.with_suffix(".checkpoint"))


# What is known of a folder between calls.


class StartedTraining(BaseModel):
    """A training's settings and the content of its images, and whether it has ended."""

    identity: dict[str, Any]
    finished: bool


class State(BaseModel):
    """``reproduce.json``: a folder's paper and scale, what ``@keys`` stood for, trainings, and steps' seconds."""

    path: Path = Field(exclude=True)
    made_by: str
    paper: str
    scale: str
    places: dict[str, str]
    trained: dict[str, StartedTraining]
    seconds: dict[str, float]

    def write(self) -> None:
        """Write it down, in one move."""
        replace_file(self.path, self.model_dump_json(indent=1).encode() + b"\n")

    @contextmanager
    def timed(self, step: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Add the time that this takes to the step's, however it ends, if it ``counts``; and write that down."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if counts():
                self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 1)
                self.write()


@contextmanager
def _opened(folder: Path, paper: str, scale: str) -> Iterator[State]:
    """The state of a folder, which is this process's alone meanwhile.

    Raises:
        OutputNotWritable: it is another paper's or scale's, holds something else, another process writes there, or
            it cannot be written.
    """
    _state(folder, paper, scale)
    with alone(folder / _LOCK, folder):
        yield _state(folder, paper, scale)


def _state(folder: Path, paper: str, scale: str) -> State:
    """What stands in a folder's file, or a new one's content."""
    path = folder / STATE
    new = State(path=path, made_by="pellucid", paper=paper, scale=scale, places={}, trained={}, seconds={})
    try:
        found = State.model_validate(json.loads(path.read_bytes()) | {"path": path})
    except FileNotFoundError:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        if others := [one.name for one in there if not one.name.startswith(".")]:
            raise OutputNotWritable(
                f"{folder} holds {others[0]} but no {STATE} of pellucid reproduce; choose another folder"
            ) from None
        return new
    except (OSError, ValueError, TypeError) as error:
        raise OutputNotWritable(f"{path} cannot be read; choose another folder ({error})") from error
    for what, wanted in (("paper", paper), ("scale", scale)):
        if getattr(found, what) != wanted:
            raise OutputNotWritable(
                f"{folder} holds the {what} {getattr(found, what)!r}, not {wanted!r}; choose another folder"
            )
    return found
