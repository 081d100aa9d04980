"""Runs a paper's recipe at a scale: trains its networks, then computes its experiments; goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidParameter, OutputNotWritable, PellucidError
from ..experiments import runners
from ..experiments.record import versions
from ..experiments.spec import Spec, read_spec
from ..experiments.store import Results
from ..findings.statistics import Statistics
from ..models.zoo import device_named
from ..training.from_source import NetworkSettings, SurrogateSettings, train_classifier, train_paths
from ..variants.surrogate import load_surrogate
from .recipe import Experiment, NetworkTraining, Recipe, Scale, SurrogateTraining, references
from .sources import content, filled, located, needed, trainings_of
from .state import State

TRAINED, RUNS = "trained", "runs"

AdvanceStep = Callable[[str, str, int, int], None]
"""Called with the step, what of it is being done, how much of that is done, and how much there is."""

Settings = NetworkSettings | SurrogateSettings


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What a recipe gave.

    Attributes:
        recipe: the paper's, with the chosen exhibits only.
        scale: the scale at which it ran.
        results, statistics: of each experiment, by key; one of which no cell finished has no statistics.
        trained: of each network and surrogate: ``kind``, ``model``, ``epochs``, ``count`` (images), ``seconds``; a
            network's ``accuracy`` in [0, 1] and the images it is ``accuracy_on``, a surrogate's last ``loss``;
            ``facts``, all that stands with its weights.
        places: what each ``@key`` of sources and weights stood for.
        seconds: the wall-clock time of the trainings and experiments, over all calls that they took.
        versions: of the libraries that ran now.
        command: what was typed.
    """

    recipe: Recipe
    scale: Scale
    results: Mapping[str, Results]
    statistics: Mapping[str, Statistics]
    trained: Mapping[str, Mapping[str, Any]]
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

    Raises:
        InvalidData, UnknownName: something that the recipe needs is not there; nothing has been computed then.
        OutputNotWritable: the folder holds something else, another process writes to it, or the disk is full.
        PellucidError: whatever is wrong with the data; what was finished before is kept.
    """
    device = device_named(device)
    keys = needed(recipe, scale)
    trainings = [part for part in trainings_of(recipe) if part.key in keys]
    places = located(recipe, keys, data, weights)
    files = {part.key: str(folder.absolute() / TRAINED / f"{part.key}.safetensors") for part in trainings}
    work = _Work(scale, folder, {**places, **files}, device, advance, command)
    settings = {part.key: work.settings(part) for part in trainings}
    specs = {part.key: work.spec(part) for part in recipe.experiments}
    with State.opened(folder, recipe.title, scale) as state:
        state.note(places)
        trained = {part.key: work.trained(state, part, settings[part.key]) for part in trainings}
        results = {key: work.results(state, key, spec) for key, spec in specs.items()}
    return Reproduction(
        recipe,
        scale,
        results,
        {key: Statistics.of(found) for key, found in results.items() if len(found.table)},
        trained,
        places,
        sum(state.seconds(step) for step in (*map(_training, trainings), *map(_experiment, results))),
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


def _training(part: NetworkTraining | SurrogateTraining) -> str:
    return f"{'network' if isinstance(part, NetworkTraining) else 'surrogate'} {part.key}"


def _experiment(key: str) -> str:
    return f"experiment {key}"


@dataclass(frozen=True)
class _Work:
    """One call's steps."""

    scale: Scale
    folder: Path
    places: Mapping[str, str]
    device: str
    advance: AdvanceStep
    command: str

    def settings(self, part: NetworkTraining | SurrogateTraining) -> Settings:
        """A training's settings, checked."""
        values = filled(part.replaced(part.settings, self.scale), self.places)
        kind = NetworkSettings if isinstance(part, NetworkTraining) else SurrogateSettings
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the settings"
            raise InvalidParameter(f"{_training(part)} at scale {self.scale}: {where}: {first['msg']}") from error

    def spec(self, part: Experiment) -> Spec:
        """An experiment's spec, checked."""
        values = filled(part.replaced(part.spec, self.scale), self.places)
        with _at(f"{_experiment(part.key)} at scale {self.scale}"):
            return read_spec(None, {**values, "device": self.device})

    def trained(
        self, state: State, part: NetworkTraining | SurrogateTraining, settings: Settings
    ) -> dict[str, Any]:
        """Train a network or surrogate, unless that is done, and tell the facts."""
        output, step = Path(self.places[part.key]), _training(part)
        values = part.replaced(part.settings, self.scale)
        identity = filled(values, {key: content(self.places[key]) for key in references(values)})
        if state.is_finished(part.key, identity) and output.is_file():
            return _facts(output, settings) | {"seconds": state.seconds(step)}
        shown = step
        if changed := state.changed(part.key, identity):
            _remove(output)
            state.forget(step)
            shown = f"{step} again ({changed})"
        state.begin(part.key, identity)
        with _at(step), state.timed(step):
            _train(settings, output, self.device, lambda what, *counts: self.advance(shown, what, *counts))
        state.finish(part.key)
        return _facts(output, settings) | {"seconds": state.seconds(step)}

    def results(self, state: State, key: str, spec: Spec) -> Results:
        """Compute an experiment, or what is left of it."""
        step = _experiment(key)
        counts: list[int] = []

        def advance(done: int, total: int) -> None:
            counts.append(done)
            self.advance(step, "grading", done, total)

        with _at(step), state.timed(step, lambda: len(set(counts)) > 1):
            return runners.benchmark(spec, self.folder / RUNS / key, advance=advance, command=self.command)


def _train(
    settings: Settings,
    output: Path,
    device: str,
    advance: Callable[[str, int, int], None],
) -> None:
    """Train into a file."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(f"cannot make {output.parent}: {error.strerror}; choose another folder") from error
    if isinstance(settings, NetworkSettings):
        train_classifier(settings, output, device, advance)
    else:
        train_paths(settings, output, device, advance)


def _facts(output: Path, settings: Settings) -> dict[str, Any]:
    """What is known of a trained network or surrogate from its files."""
    if isinstance(settings, SurrogateSettings):
        facts = dict(load_surrogate(output).facts)
        found = {"kind": "surrogate", "epochs": facts["epochs"], "count": facts["images"]["count"]}
        return found | {"model": settings.model, "loss": sum(facts["losses"][-1]), "facts": facts}
    facts = json.loads(output.with_suffix(".json").read_bytes())
    training, scored = facts["training"], "test" if "test_accuracy" in facts else "validation"
    return {
        "kind": "network",
        "model": settings.name,
        "epochs": training["recipe"]["epochs"],
        "count": training["images"],
        "accuracy": facts.get("test_accuracy", facts["accuracy"]),
        "accuracy_on": f"{facts[f'{scored}_set'].split()[0]} held-out images",
        "facts": facts,
    }


def _remove(output: Path) -> None:
    """Remove a training's files, so that another's may take their place."""
    for path in (output, output.with_suffix(".json")):
        path.unlink(missing_ok=True)
    shutil.rmtree(output.with_suffix(".checkpoint"), ignore_errors=True)
