"""Cells of metrics that are measured by training: what they need and share, their trainings, the rows of each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.labeled import LabeledImages, load_images, shuffled
from ..data.sources import open_images
from ..errors import InvalidData, InvalidMap, InvalidModel, InvalidParameter, PellucidError
from ..files import file_name
from ..heatmap import heatmap
from ..methods.attributions import Attributions
from ..metrics.base import Case, Measured
from ..metrics.scoring import Scorer
from ..models.preprocess import Preprocess
from ..models.zoo import BUNDLED, LoadedModel, load_network, outputs
from ..outputs import class_of
from ..passes import most_rows
from ..seeds import fold_in
from ..training import criteria
from ..training.artifacts import Artifacts
from ..training.batches import check_labels, check_set, class_count, fetch, image_count, prepared, preprocess_of
from ..training.classifiers import Score, accuracy_and_score
from ..training.criteria import RandomRemoval, Removal, Retraining, TrainingOcclusion
from ..training.degradation import Counting, Degradation, DegradedImages, random_ranks, salience_ranks
from ..training.ensemble import train_ensemble
from ..training.hyperparameters import Hyperparameters, hyperparameters_of
from . import inputs
from .cells import Finished, Row, metric_rows, noted, table
from .inputs import ParsedSpec
from .record import Note, hashed
from .spec import Spec, Training
from .store import PICTURE_ROWS, ROWS

LAYER = "input"  # of the rows: maps of the pixels are what is removed
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
Entrant = tuple[str, str]  # variant and method, by their names
Curves = Mapping[tuple[Entrant, str], Measured]  # by entrant and the metric's text
Metrics = Mapping[str, Retraining]
Pairs = Sequence[tuple[Dataset[Any], Dataset[Any]]]  # what networks are trained with and tested on
_DRAWN = 256  # images whose random ranks are drawn at a time


@dataclass(frozen=True)
class TrainingCell:
    """One piece of work: a preparation that gives no rows, or the trainings of metrics' curves.

    ``work`` is ``"explained"``, ``"clean"`` or ``"ranks"``, or the texts of metrics that one walk measures. It is
    done for a ``entrant`` and a ``run``, or, where these are None, for all.
    """

    work: str | tuple[str, ...]
    entrant: Entrant | None = None
    run: int | None = None
    key: str = ""  # a digest of the experiment's content
    folder: str = ""  # of what trainings share

    @property
    def id(self) -> str:
        """A readable name that a file may have, unique by the digest at its end."""
        work = (self.work,) if isinstance(self.work, str) else self.work
        parts = (*work, *(self.entrant or ("", "")), "" if self.run is None else f"run-{self.run}")
        names = [file_name(part)[:60] for part in parts if part]
        return f"{'_'.join(names)}_{hashed([self.key, *parts])[:12]}"


# Planning.


def cache_of(key: str) -> Path:
    """Where files are that a remote run cannot hold: ranks and checkpoints are mapped and renamed locally."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pellucid" / key


def training_cells(parsed: ParsedSpec, metrics: Metrics, key: str, folder: Path) -> Iterator[TrainingCell]:
    """All cells; each makes what it needs if it is not there, so that their order does not matter."""
    spec, entrants = parsed.spec, parsed.entrants
    cell = partial(TrainingCell, key=key, folder=str(folder))
    runs = range(spec.training.seeds if spec.training else 0)
    # These give no rows, but as cells of their own they are shared out to machines ahead of what needs them.
    if any(isinstance(metric, Removal) for metric in metrics.values()):
        if not has_weights(spec):
            yield cell("explained")
        yield from (cell("clean", run=run) for run in runs)
        yield from (cell("ranks", entrant) for entrant in entrants)
    for texts in _walks(metrics):
        shared = isinstance(metrics[texts[0]], RandomRemoval)
        yield from (cell(texts, one, run) for one in ([None] if shared else entrants) for run in runs)


def _walks(metrics: Metrics) -> list[tuple[str, ...]]:
    """The texts of metrics that share a walk through trainings and maps: those of the same patch, the last."""
    # One network trained with a patch serves all metrics of this patch.
    patches: dict[int, tuple[str, ...]] = {}
    for text, metric in metrics.items():
        if isinstance(metric, TrainingOcclusion):
            patches[metric.patch] = (*patches.get(metric.patch, ()), text)
    patched = {text for texts in patches.values() for text in texts}
    return [*((text,) for text in metrics if text not in patched), *patches.values()]


def has_weights(spec: Spec) -> bool:
    """Whether the explained model comes trained: weights are given (``"random"``, too), or it brings its own."""
    model = spec.models[0]
    return model.weights is not None or model.name in BUNDLED or ".py:" in model.name


def require_trainable(parsed: ParsedSpec, metrics: Metrics) -> dict[str, Any]:
    """Check all that trainings need, and return what identifies them.

    Raises a ``PellucidError`` where the table ``[training]`` is missing or asked for by no metric, or where
    networks, training images, test images and the one model explained do not fit each other.
    """
    spec, names = parsed.spec, ", ".join(metrics)
    others = ", ".join(text for text in parsed.metrics if text not in metrics)
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
            f"{spec.models[0].key} has no weights: {names} would train it first and {others} grade it untrained; "
            "give weights"
        )
    # Checking keeps nothing, so the place of artifacts may be any.
    return _fitting(Trainings(parsed, Artifacts(Path())))


def _fitting(trainings: Trainings) -> dict[str, Any]:
    train, test = trainings.images("train"), trainings.images("test")
    if train.classes and test.classes and train.classes != test.classes:
        differing = [pair for pair in zip(train.classes, test.classes, strict=False) if pair[0] != pair[1]]
        found = f"{differing[0][0]!r} there is {differing[0][1]!r} here" if differing else "one has more"
        raise InvalidData(f"the training images' classes are not the test images': {found}; take one data set")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InvalidData(f"training images {tuple(train.pixels.shape[1:])}, test {tuple(test.pixels.shape[1:])}")
    spec, network = trainings.spec, trainings.settings.network
    count = outputs(trainings.network(network, 0).model)
    check_set(train, count, trainings.recipe(network))
    check_labels(test.labels, count)
    explained = spec.models[0].name
    if has_weights(spec) and spec.target == "label" and test.classes:
        trainings.explained.numbers_of(test.classes)
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
    for name in ("resize", "crop", "channels", "interpolation"):
        if getattr(here, name) != getattr(there, name):
            raise InvalidModel(
                f"{explained.name} has {name}={getattr(here, name)} and {network} {getattr(there, name)}; their "
                "images must be cropped alike, so that maps lie on the pixels that are removed"
            )


# What the cells share.


@lru_cache(maxsize=2)
def images_of(spec: Spec, part: Split) -> LabeledImages:
    """The whole labeled images of a part, as the networks see them before they are normalized."""
    training, positions = spec.training, None
    assert training is not None
    if part == "test":
        source, origin = inputs.chosen(spec.images), spec.images.source
    else:
        origin = training.source
        source = open_images(origin, training.label_column, training.split, training.root)
    if part == "train" and training.count is not None:
        if training.count > len(source):
            raise InvalidData(f"{origin} has {len(source)} images, not {training.count}; lower training.count")
        # The part is random, since sources are often sorted by
        # class; and in the source's order, which is read fastest.
        positions = shuffled(len(source), spec.seed)[: training.count].sort().values.tolist()
    display = preprocess_of(training.network).display
    return load_images(source, display, origin, positions).to(inputs.place(spec))


@dataclass(frozen=True)
class Trainings:
    """The images, networks, maps and ranks of an experiment's trainings; ``artifacts`` keeps what they share.

    ``notes`` gathers warnings of methods.
    """

    parsed: ParsedSpec
    artifacts: Artifacts
    notes: dict[Note, int] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """What is asked for."""
        return self.parsed.spec

    @property
    def settings(self) -> Training:
        """The table ``[training]``."""
        assert self.spec.training is not None
        return self.spec.training

    @property
    def preprocess(self) -> Preprocess:
        """What the networks' images go through."""
        return preprocess_of(self.settings.network)

    def recipe(self, network: str) -> Hyperparameters:
        """A network's own settings, as the spec changes them; test images choose no weights."""
        training = self.settings
        return hyperparameters_of(
            network, epochs=training.epochs, shuffle=training.shuffle, precision=training.precision, keep="last"
        )

    def seed(self, run: int) -> int:
        """The seed of a training: its weights, order and dropout; the same for all that is compared."""
        return fold_in(self.spec.seed, run)

    def images(self, part: Split) -> LabeledImages:
        """The whole images."""
        return images_of(self.spec, part)

    # Networks.

    def network(self, name: str, seed: int) -> LoadedModel:
        """An untrained network with an output for each class."""
        images = self.images("train")
        return load_network(name, "random", images.classes or class_count(images), inputs.place(self.spec), seed)

    def trained(self, name: str, network: str, pair: tuple[Dataset[Any], Dataset[Any]], seed: int) -> LoadedModel:
        """A trained network, from its file once that is there."""
        recipe = self.recipe(network)
        path = self.artifacts.network(name, lambda: self.network(network, seed), pair, recipe, seed)
        return load_network(network, path, device=inputs.place(self.spec))

    @property
    def explained(self) -> LoadedModel:
        """The spec's model, trained first if no weights are given."""
        model = self.spec.models[0]
        if has_weights(self.spec):
            return inputs.model_of(self.spec, model.key)
        seed = fold_in(self.spec.seed, self.settings.seeds)  # no run's
        return self.trained("explained", model.name, (self.images("train"), self.images("test")), seed)

    def all_trained(self, pairs: Pairs, run: int, checkpoint: Path) -> list[nn.Module]:
        """A network for each pair of sets, all trained from the same weights."""
        network, seed = self.settings.network, self.seed(run)
        # All start from one seed, so that degraded sets alone make them differ.
        models = [self.network(network, seed).model for _ in pairs]
        train_sets, test_sets = zip(*pairs, strict=True)
        train_ensemble(
            models, train_sets, test_sets, self.recipe(network), [seed] * len(models), self.preprocess, checkpoint,
            score_each_epoch=False,
        )  # fmt: skip
        return models

    def score(self, model: nn.Module, images: Dataset[Any]) -> Score:
        """How well a network knows images."""
        return accuracy_and_score(model, images, self.preprocess)

    def clean(self, run: int) -> Score:
        """The score of a network that was trained on whole images: where every curve begins."""
        train, test = (self.images(part) for part in SPLITS)

        def compute(checkpoint: Path) -> Mapping[str, float]:
            [model] = self.all_trained([(train, test)], run, checkpoint)
            return self.score(model, test)._asdict()

        return Score(**self.artifacts.result(f"clean_run-{run}", compute))

    # Maps and ranks.

    def explanations(
        self, loaded: LoadedModel, images: Dataset[Any], part: Split, entrant: Entrant
    ) -> Iterator[tuple[Tensor, Tensor, Attributions]]:
        """Positions, prepared images and their attributions, batch by batch; each image's noise is its own."""
        spec, like = self.spec, next(loaded.model.parameters())
        variant, method = entrant
        # Noise depends on the image's place in its part alone, not on the batch or on who computes it.
        key = fold_in(spec.seed, SPLITS.index(part))
        for rows in torch.arange(image_count(images)).split(most_rows(spec.max_batch)):
            pixels, labels = fetch(images, rows)
            pixels = prepared(pixels, preprocess_of(loaded), like).contiguous()
            asked = class_of(spec.asked, loaded.classes) if spec.asked else "auto"
            targets: Any = _as_numbered_by(loaded, images, labels) if spec.target == "label" else asked
            seeds = [fold_in(key, row) for row in rows.tolist()]
            with noted(method, self.notes, spec.channels, variant, spec.models[0].key):
                found = self.parsed.methods[method](
                    loaded.model, pixels, targets,
                    variant=self.parsed.variants[variant], seed=seeds, max_batch=spec.max_batch,
                    layouts=dict(spec.layouts),
                )  # fmt: skip
            yield rows, pixels, found

    def ranks(self, part: Split, entrant: Entrant) -> Tensor:
        """The ranks of a method's maps of all images, from their file."""
        variant, method = entrant
        # A file's name may leave out what tells two texts apart, which the digest keeps.
        digest = blake2b(f"{variant}/{method}".encode(), digest_size=4).hexdigest()
        name = file_name(f"{method}_{variant}")[:60]
        ranked = self._ranked(part, entrant)
        return self.artifacts.ranks(f"{name}_{digest}/{part}", ranked, len(self.images(part)))

    def _ranked(self, part: Split, entrant: Entrant) -> Iterator[Tensor]:
        spec = self.spec
        for rows, pixels, found in self.explanations(self.explained, self.images(part), part, entrant):
            [attribution] = found.values()
            if self.settings.ranking == "pixel":
                height, width = pixels.shape[-2:]
                maps = heatmap(attribution, (height, width), spec.channels, spec.upsampling)
            elif attribution.shape == pixels.shape:
                maps = attribution
            else:
                raise InvalidMap(
                    f"{entrant[1]} gives maps {tuple(attribution.shape[1:])} of images {tuple(pixels.shape[1:])}, "
                    "no rank for each channel's values; set ranking = 'pixel' in the table [training]"
                )
            yield salience_ranks(maps, rows.tolist(), seed=spec.seed)

    def random_ranks(self, part: Split, run: int) -> Tensor:
        """The ranks of one run's random removal, the same for all its fractions."""
        images = self.images(part)
        shape = images.pixels.shape[2 if self.settings.ranking == "pixel" else 1 :]
        key = fold_in(self.seed(run), SPLITS.index(part))
        parts = torch.arange(len(images)).split(_DRAWN)
        drawn = (random_ranks(shape, rows.tolist(), key) for rows in parts)
        return self.artifacts.ranks(f"random-removal-{run}/{part}", drawn, len(images))


def _as_numbered_by(loaded: LoadedModel, images: Any, labels: Tensor) -> Tensor:
    """Labels as the classes' numbers of a network, which may have learned them in another order."""
    if not images.classes:
        return labels
    return labels.new_tensor(loaded.numbers_of(images.classes))[labels]


# Working.


def run_training(spec: Spec, cell: TrainingCell) -> Finished:
    """Do a cell's work, or what is left of it."""
    trainings = Trainings(inputs.parsed(spec), Artifacts(Path(cell.folder)))
    curves: Curves = {}
    match cell:
        case TrainingCell("explained"):
            _ = trainings.explained
        case TrainingCell("clean", run=int(run)):
            trainings.clean(run)
        case TrainingCell("ranks", (variant, method)):
            _rank(trainings, (variant, method))
        case _:
            curves = _measured(trainings, cell)
    rows: list[Row] = []
    for ((variant, method), text), measured in curves.items():
        known = {"model": spec.models[0].key, "variant": variant, "method": method, "metric": text, "layer": LAYER}
        rows += metric_rows(known | {"training": cell.run}, spec, [None], measured)
    return Finished(table(rows, ROWS), table([], PICTURE_ROWS), dict(trainings.notes))


def _rank(trainings: Trainings, entrant: Entrant) -> None:
    trainings.ranks("test", entrant)
    retrained = [metric for metric in trainings.parsed.metrics.values() if isinstance(metric, Removal)]
    # Random removal trains on random ranks and asks methods for test images alone.
    if not all(isinstance(metric, RandomRemoval) for metric in retrained):
        trainings.ranks("train", entrant)


def _measured(trainings: Trainings, cell: TrainingCell) -> Curves:
    metrics = {text: trainings.parsed.metrics[text] for text in cell.work}
    try:
        match next(iter(metrics.values())), cell.entrant, cell.run:
            case RandomRemoval() as metric, None, int(run):
                return randomly_removed(trainings, cell, metric, run)
            case Removal() as metric, (variant, method), int(run):
                return retrained(trainings, cell, metric, (variant, method), run)
            case TrainingOcclusion() as metric, (variant, method), int(run):
                return occluded(trainings, metrics, metric.patch, (variant, method), run)
            case unknown:
                raise InvalidParameter(f"{cell.work}: no training is known for {unknown}")
    except PellucidError as error:
        error.add_note(f"while measuring {', '.join(cell.work)}")
        raise


def retrained(trainings: Trainings, cell: TrainingCell, metric: Removal, entrant: Entrant, run: int) -> Curves:
    """ROAR and KAR: for each fraction, a network trained and tested on images degraded by one method's maps."""
    ranks = {part: trainings.ranks(part, entrant) for part in SPLITS}

    def compute(checkpoint: Path) -> Mapping[str, Any]:
        pairs = _degraded(trainings, metric, ranks)
        models = trainings.all_trained(pairs, run, checkpoint)
        scores = [trainings.score(model, test) for model, (_, test) in zip(models, pairs, strict=True)]
        return {"accuracies": [score.accuracy for score in scores]}

    found = trainings.artifacts.result(cell.id, compute)["accuracies"]
    return {(entrant, cell.work[0]): _curve(trainings, metric, found, trainings.clean(run).accuracy)}


def randomly_removed(trainings: Trainings, cell: TrainingCell, metric: Removal, run: int) -> Curves:
    """Nielsen et al.: networks trained with random gaps score what each method's maps leave of test images."""
    entrants = trainings.parsed.entrants

    def graded(models: Sequence[nn.Module], ranks: Tensor) -> list[float]:
        sets = _degraded_part(trainings, metric, "test", ranks)
        return [trainings.score(model, test).score for model, test in zip(models, sets, strict=True)]

    def compute(checkpoint: Path) -> Mapping[str, Any]:
        drawn = _degraded(trainings, metric, {part: trainings.random_ranks(part, run) for part in SPLITS})
        models = trainings.all_trained(drawn, run, checkpoint)
        scores = [graded(models, trainings.ranks("test", entrant)) for entrant in entrants]
        # The file of results has them by fraction and then by entrant.
        return {"scores": list(zip(*scores, strict=True))}

    scores = zip(*trainings.artifacts.result(cell.id, compute)["scores"], strict=True)
    whole = trainings.clean(run).score
    curves = [_curve(trainings, metric, found, whole) for found in scores]
    return {(one, cell.work[0]): curve for one, curve in zip(entrants, curves, strict=True)}


def _degraded(trainings: Trainings, metric: Removal, ranks: Mapping[Split, Tensor]) -> Pairs:
    """Training and test images of each fraction, without the pixels that their ranks and the metric's way say."""
    return list(zip(*(_degraded_part(trainings, metric, part, ranks[part]) for part in SPLITS), strict=True))


def _degraded_part(trainings: Trainings, metric: Removal, part: Split, ranks: Tensor) -> list[DegradedImages]:
    settings, images = trainings.settings, trainings.images(part)
    ranks, mean = ranks.to(images.pixels.device), trainings.images("train").mean
    replacement = settings.replacement or metric.replacement
    counting: Counting = "percentile" if settings.ranking == "pixel" else "floor"  # the papers' own codes
    seed = fold_in(trainings.spec.seed, SPLITS.index(part))
    return [
        DegradedImages(images, ranks, Degradation(fraction, metric.how, replacement, counting, seed), mean)
        for fraction in settings.fractions or metric.fractions
    ]


def _curve(trainings: Trainings, metric: Removal, found: Sequence[float], whole: float) -> Measured:
    """A curve with what whole images give at its end, and its area."""
    fractions = trainings.settings.fractions or metric.fractions
    chance = 1 / outputs(trainings.network(trainings.settings.network, 0).model)
    whole = chance if trainings.settings.replacement == "mask" else whole  # a mask of all pixels tells nothing
    area = metric.area(fractions, found, whole, chance)
    # ROAR removes nothing at 0, KAR keeps everything at 1: there both have the network trained on whole images.
    at, curve = [0.0, *fractions], [whole, *found]
    if metric.how == "kar":
        at, curve = [*fractions, 1.0], [*found, whole]
    return Measured(torch.tensor([area], dtype=torch.float64), torch.tensor([curve], dtype=torch.float64), at)


def occluded(trainings: Trainings, metrics: Mapping[str, Any], size: int, entrant: Entrant, run: int) -> Curves:
    """What a method attributes to a patch that all images have: its mean and quantiles over the test images."""
    patch = criteria.random_patch(trainings.preprocess.channels, size)
    train, test = (criteria.PatchedImages(trainings.images(part), patch) for part in SPLITS)
    network, seed = trainings.settings.network, trainings.seed(run)
    loaded = trainings.trained(f"patched-{size}_run-{run}", network, (train, test), seed)
    masses: dict[str, list[Tensor]] = {text: [] for text in metrics}
    method, scorer = trainings.parsed.methods[entrant[1]], Scorer(loaded.model)
    upsampling = trainings.spec.upsampling
    for _, pixels, found in trainings.explanations(loaded, test, "test", entrant):
        case = Case(method, loaded.model, pixels, found, scorer, found.targets, upsampling=upsampling)
        for text, metric in metrics.items():
            masses[text] += [measured.values.cpu().double() for measured in metric.within().measure(case).values()]
    return {(entrant, text): _spread(torch.cat(found)) for text, found in masses.items()}


def _spread(masses: Tensor) -> Measured:
    known = masses[masses.isfinite()]
    if not len(known):
        return Measured(torch.tensor([math.nan], dtype=torch.float64))
    quantiles = known.quantile(torch.tensor(criteria.TWENTIETHS, dtype=torch.float64))
    return Measured(known.mean()[None], quantiles[None], criteria.TWENTIETHS)
