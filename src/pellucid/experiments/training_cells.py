"""Cells of metrics that are measured by training: what they need, their trainings, and the rows of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import catalog
from ..errors import InvalidData, InvalidModel, InvalidParameter, PellucidError
from ..files import file_name
from ..metrics.base import Case, Measured
from ..metrics.scoring import Scorer
from ..models.zoo import LoadedModel, outputs
from ..seeds import fold_in
from ..training.batches import check_labels, check_set, preprocess_of
from ..training.classifiers import accuracy_and_score
from ..training.criteria import (
    TWENTIETHS,
    PatchedImages,
    RandomRemoval,
    Removal,
    Retraining,
    TrainingOcclusion,
    random_patch,
)
from ..training.degradation import Degradation, DegradedImages
from ..training.ensemble import train_ensemble
from . import inputs
from .cells import Finished, known_versions, table, values_of
from .record import hashed
from .spec import Spec
from .store import PICTURE_ROWS, ROWS
from .training_inputs import SPLITS, Split, Trainings, has_weights

LAYER = "input"  # of the rows: maps of the pixels are what is removed
Metrics = Mapping[str, Retraining]


@dataclass(frozen=True)
class TrainingCell:
    """One piece of work: a preparation that gives no rows, or the trainings of metrics' curves.

    ``work`` is ``"explained"``, ``"clean"`` or ``"ranks"``, or the texts of metrics that one walk measures; what
    of ``variant``, ``method`` and ``run`` is left out, it does for all.
    """

    work: str | tuple[str, ...]
    variant: str = ""
    method: str = ""
    run: int | None = None
    key: str = ""  # a digest of the experiment's content
    folder: str = ""  # of what trainings share

    @property
    def id(self) -> str:
        """A readable name that a file may have, unique by the digest at its end."""
        work = (self.work,) if isinstance(self.work, str) else self.work
        parts = (*work, self.variant, self.method, "" if self.run is None else f"run-{self.run}")
        names = [file_name(part)[:60] for part in parts if part]
        return f"{'_'.join(names)}_{hashed([self.key, *parts])[:12]}"


# Planning.


def training_cells(spec: Spec, metrics: Metrics, key: str, folder: Path) -> Iterator[TrainingCell]:
    """All cells; each makes what it needs if it is not there, so that their order does not matter."""
    if not metrics:
        return
    assert spec.training is not None
    contenders = [(variant, method) for variant in spec.variant_texts for method in spec.method_texts]
    runs = range(spec.training.seeds)
    of_removal = any(isinstance(metric, Removal) for metric in metrics.values())
    work: list[TrainingCell] = []
    if of_removal:
        work += [TrainingCell("explained")] if not has_weights(spec) else []
        work += [TrainingCell("clean", run=run) for run in runs]
        work += [TrainingCell("ranks", variant, method) for variant, method in contenders]
    for texts, metric in _walks(metrics):
        if isinstance(metric, RandomRemoval):
            work += [TrainingCell(texts, run=run) for run in runs]
        else:
            work += [TrainingCell(texts, *contender, run) for contender in contenders for run in runs]
    for cell in work:
        yield replace(cell, key=key, folder=str(folder))


def _walks(metrics: Metrics) -> Iterator[tuple[tuple[str, ...], Retraining]]:
    """Metrics that share a walk through trainings and maps, as one: those of the same patch; and one of them."""
    patches: dict[int, list[str]] = {}
    for text, metric in metrics.items():
        if isinstance(metric, TrainingOcclusion):
            patches.setdefault(metric.patch, []).append(text)
        else:
            yield (text,), metric
    for texts in patches.values():
        yield tuple(texts), metrics[texts[0]]


def require_trainable(spec: Spec, metrics: Metrics, others: Sequence[str]) -> dict[str, Any]:
    """Check all that trainings need, and return what identifies them.

    Raises:
        PellucidError: no table ``[training]`` or one that no metric asks for, several models, an unknown network,
            or networks, training images and test images that do not fit each other.
    """
    names = ", ".join(metrics)
    if not metrics and spec.training is not None:
        raise InvalidParameter("the table [training] is for metrics such as roar; name one, or leave it out")
    if not metrics:
        return {}
    if spec.training is None:
        raise InvalidParameter(f"{names}: measured by training; add a table [training] with network and source")
    if len(spec.models) != 1:
        raise InvalidParameter(f"{names}: trainings explain one model, and {len(spec.models)} are named; name one")
    if others and not has_weights(spec):
        raise InvalidParameter(
            f"{spec.models[0].key} has no weights: {names} would train it first and {', '.join(others)} grade it "
            "untrained; give weights"
        )
    return _fitting(spec)


def _fitting(spec: Spec) -> dict[str, Any]:
    trainings = Trainings(spec, Path())
    train, test = trainings.images("train"), trainings.images("test")
    if train.classes and test.classes and train.classes != test.classes:
        differing = [pair for pair in zip(train.classes, test.classes, strict=False) if pair[0] != pair[1]]
        found = f"{differing[0][0]!r} there is {differing[0][1]!r} here" if differing else "one has more"
        raise InvalidData(f"the training images' classes are not the test images': {found}; take one data set")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InvalidData(f"training images {tuple(train.pixels.shape[1:])}, test {tuple(test.pixels.shape[1:])}")
    network = spec.training.network if spec.training else ""
    count = outputs(trainings.network(network, 0).model)
    check_set(train, count, trainings.recipe(network))
    check_labels(test.labels, count)
    explained = spec.models[0].name
    _require_alike(spec, network, count)
    if not has_weights(spec):
        check_set(train, count, trainings.recipe(explained))
    # Runs are identified by this text: those of earlier versions, where the class was called Recipe, go on.
    recipes = [
        f"Recipe{str(trainings.recipe(name)).removeprefix('Hyperparameters')}" for name in (network, explained)
    ]
    return {"train": train.fingerprint, "recipes": recipes}


def _require_alike(spec: Spec, network: str, count: int) -> None:
    """The explained model sees the pixels and knows the classes of the networks that are trained."""
    explained = inputs.model_of(spec, spec.models[0].key)
    if has_weights(spec) and outputs(explained.model) != count:
        raise InvalidModel(
            f"{explained.name} has {outputs(explained.model)} outputs and the images {count} classes; explain a "
            "model of these classes, or give no weights to have it trained first"
        )
    here, there = preprocess_of(explained), preprocess_of(network)
    geometry = ("resize", "crop", "channels", "interpolation")
    for name in geometry:
        if getattr(here, name) != getattr(there, name):
            raise InvalidModel(
                f"{explained.name} has {name}={getattr(here, name)} and {network} {getattr(there, name)}; their "
                "images must be cropped alike, so that maps lie on the pixels that are removed"
            )


# Working.


def run_training(spec: Spec, cell: TrainingCell) -> Finished:
    """Do a cell's work, or what is left of it.

    Raises:
        PellucidError: a method does not work on the model, or a training failed.
    """
    trainings = Trainings(spec, Path(cell.folder))
    found: list[dict[str, Any]] = []
    match cell.work:
        case "explained":
            _ = trainings.explained
        case "clean":
            clean(trainings, cell.run or 0)
        case "ranks":
            _rank(trainings, cell.variant, cell.method)
        case texts:
            try:
                found = list(_rows(cell, spec, _measured(trainings, cell, texts)))
            except PellucidError as error:
                error.add_note(f"while measuring {', '.join(texts)}")
                raise
    return Finished(table(found, ROWS), table([], PICTURE_ROWS), frozenset(trainings.notes))


Curves = Mapping[tuple[str, str, str], Measured]  # by variant, method and the metric's text


def _measured(trainings: Trainings, cell: TrainingCell, texts: Sequence[str]) -> Curves:
    run = cell.run or 0
    metrics = {text: catalog.metric(text) for text in texts}
    match metrics[texts[0]]:
        case RandomRemoval() as metric:
            return randomly_removed(trainings, cell.id, texts[0], metric, run)
        case Removal() as metric:
            return {(cell.variant, cell.method, texts[0]): retrained(trainings, cell, metric, run)}
        case TrainingOcclusion():
            patched = {text: metric for text, metric in metrics.items() if isinstance(metric, TrainingOcclusion)}
            found = occluded(trainings, cell, patched, run)
            return {(cell.variant, cell.method, text): measured for text, measured in found.items()}
        case _:
            raise InvalidParameter(f"{texts[0]}: no training is known for this metric")


def _rows(cell: TrainingCell, spec: Spec, curves: Curves) -> Iterator[dict[str, Any]]:
    """A training stands where an image stands elsewhere: it is what statistics are taken over."""
    for (variant, method, metric), measured in curves.items():
        known = {"model": spec.models[0].key, "variant": variant, "method": method, "metric": metric}
        for row in values_of([f"run {cell.run}"], measured):
            yield known | {"layer": LAYER, "seed": spec.seed, "versions": known_versions()} | row


def clean(trainings: Trainings, run: int) -> Mapping[str, float]:
    """Accuracy and score of a network that was trained on whole images: where every curve begins."""

    def compute(checkpoint: Path) -> Mapping[str, float]:
        [(accuracy, score)] = _trained(trainings, [0.0], run, checkpoint, lambda _, part: trainings.images(part))
        return {"accuracy": accuracy, "score": score}

    return trainings.artifacts.result(f"clean_run-{run}", compute)


def _rank(trainings: Trainings, variant: str, method: str) -> None:
    metrics = [catalog.metric(text) for text in trainings.spec.metrics]
    trainings.ranks("test", variant, method)
    if any(isinstance(metric, Removal) and not isinstance(metric, RandomRemoval) for metric in metrics):
        trainings.ranks("train", variant, method)


def retrained(trainings: Trainings, cell: TrainingCell, metric: Removal, run: int) -> Measured:
    """ROAR and KAR: for each fraction, a network trained and tested on images degraded by one method's maps."""
    ranks = {part: trainings.ranks(part, cell.variant, cell.method) for part in SPLITS}
    fractions = trainings.settings.fractions or metric.fractions

    def images(fraction: float, part: Split) -> DegradedImages:
        return degraded(trainings, metric, fraction, part, ranks[part])

    def compute(checkpoint: Path) -> Mapping[str, Any]:
        found = _trained(trainings, fractions, run, checkpoint, images)
        return {"accuracies": [accuracy for accuracy, _ in found]}

    found = trainings.artifacts.result(cell.id, compute)["accuracies"]
    return _curve(trainings, metric, fractions, found, clean(trainings, run)["accuracy"])


def randomly_removed(trainings: Trainings, name: str, text: str, metric: Removal, run: int) -> Curves:
    """Nielsen et al.: networks trained with random gaps score what each method's maps leave of test images."""
    spec = trainings.spec
    contenders = [(variant, method) for variant in spec.variant_texts for method in spec.method_texts]
    fractions = trainings.settings.fractions or metric.fractions

    def scored(model: torch.nn.Module, fraction: float) -> list[float]:
        sets = (degraded(trainings, metric, fraction, "test", trainings.ranks("test", *one)) for one in contenders)
        return [accuracy_and_score(model, images, trainings.preprocess)[1] for images in sets]

    def compute(checkpoint: Path) -> Mapping[str, Any]:
        ranks = {part: trainings.random_ranks(part, run) for part in SPLITS}

        def images(fraction: float, part: Split) -> DegradedImages:
            return degraded(trainings, metric, fraction, part, ranks[part])

        found = _trained(trainings, fractions, run, checkpoint, images, scored)
        return {"scores": found}

    scores = trainings.artifacts.result(name, compute)["scores"]
    whole = clean(trainings, run)["score"]
    curves = zip(contenders, zip(*scores, strict=True), strict=True)
    return {(*one, text): _curve(trainings, metric, fractions, curve, whole) for one, curve in curves}


def degraded(trainings: Trainings, metric: Removal, fraction: float, part: Split, ranks: Tensor) -> DegradedImages:
    """A set of images without the pixels that their ranks and a metric's way say."""
    settings, spec = trainings.settings, trainings.spec
    images = trainings.images(part)
    degradation = Degradation(
        fraction,
        metric.how,
        settings.replacement or metric.replacement,
        "percentile" if settings.ranking == "pixel" else "floor",  # the papers' own codes
        fold_in(spec.seed, SPLITS.index(part)),
    )
    mean = trainings.images("train").mean
    return DegradedImages(images, ranks.to(images.pixels.device), degradation, mean)


def _trained(
    trainings: Trainings,
    fractions: Sequence[float],
    run: int,
    checkpoint: Path,
    images: Callable[[float, Split], Any],
    grade: Callable[[torch.nn.Module, float], Any] | None = None,
) -> list[Any]:
    """Train a network for each fraction, all from the same weights, and grade each: by default on its test set."""
    network, seed = trainings.settings.network, trainings.seed(run)
    models = [trainings.network(network, seed).model for _ in fractions]
    test_sets = [images(fraction, "test") for fraction in fractions]
    train_ensemble(
        models,
        [images(fraction, "train") for fraction in fractions],
        test_sets,
        trainings.recipe(network),
        [seed] * len(models),
        trainings.preprocess,
        checkpoint,
        score_each_epoch=False,
    )
    if grade is not None:
        return [grade(model, fraction) for model, fraction in zip(models, fractions, strict=True)]
    pairs = zip(models, test_sets, strict=True)
    return [accuracy_and_score(model, test_set, trainings.preprocess) for model, test_set in pairs]


def _curve(
    trainings: Trainings, metric: Removal, fractions: Sequence[float], found: Sequence[float], whole: float
) -> Measured:
    """A curve with what whole images give at its end, and its area."""
    chance = 1 / outputs(trainings.network(trainings.settings.network, 0).model)
    area = metric.area(fractions, found, whole, chance)
    at, curve = (
        ([0.0, *fractions], [whole, *found]) if metric.how == "roar" else ([*fractions, 1.0], [*found, whole])
    )
    return Measured(torch.tensor([area], dtype=torch.float64), torch.tensor([curve], dtype=torch.float64), at)


def occluded(
    trainings: Trainings, cell: TrainingCell, metrics: Mapping[str, TrainingOcclusion], run: int
) -> Mapping[str, Measured]:
    """What a method attributes to a patch that all images have: its mean and quantiles over the test images."""
    [patch_size] = {metric.patch for metric in metrics.values()}
    patch = random_patch(trainings.preprocess.channels, patch_size)
    train, test = (PatchedImages(trainings.images(part), patch) for part in SPLITS)
    name = f"patched-{patch_size}_run-{run}"
    loaded = trainings.trained(name, trainings.settings.network, train, test, trainings.seed(run))
    masses: dict[str, list[Tensor]] = {text: [] for text in metrics}
    for _, pixels, found in trainings.explanations(loaded, test, "test", cell.variant, cell.method):
        case = _case(trainings, loaded, cell, pixels, found)
        for text, metric in metrics.items():
            masses[text] += [measured.values.double().cpu() for measured in metric.within().measure(case).values()]
    return {text: _spread(torch.cat(found)) for text, found in masses.items()}


def _spread(masses: Tensor) -> Measured:
    known = masses[masses.isfinite()]
    if not len(known):
        return Measured(torch.tensor([math.nan], dtype=torch.float64))
    quantiles = known.quantile(torch.tensor(TWENTIETHS, dtype=torch.float64))
    return Measured(known.mean()[None], quantiles[None], TWENTIETHS)


def _case(trainings: Trainings, loaded: LoadedModel, cell: TrainingCell, pixels: Tensor, found: Any) -> Case:
    return Case(
        method=inputs.method_of(trainings.spec.method_texts[cell.method]),
        explained=loaded.model,
        images=pixels,
        attributions=found,
        scorer=Scorer(loaded.model, max_batch=trainings.spec.max_batch),
        scored=found.targets,
        upsampling=trainings.spec.upsampling,
    )
