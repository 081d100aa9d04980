"""What trainings share, each made once and kept in a file: networks, ranks and results; and their images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.labeled import LabeledImages, load_images, shuffled
from ..data.sources import Source, open_images
from ..errors import InvalidData, InvalidMap, InvalidParameter, OutputNotWritable
from ..files import file_name, replace_file
from ..heatmap import heatmap
from ..methods.base import Attributions
from ..models.preprocess import Preprocess
from ..models.zoo import BUNDLED, LoadedModel, find_architecture, load_model
from ..seeds import fold_in
from ..training.batches import fetch, image_count, prepared
from ..training.checkpoints import Checkpoints
from ..training.classifiers import class_count, save_weights, train
from ..training.degradation import open_ranks, random_ranks, salience_ranks, write_ranks
from ..training.hyperparameters import Hyperparameters, hyperparameters_of
from . import inputs
from .cells import Note, noted
from .spec import Spec, Training

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
BATCH = 256  # images in a forward pass that scores them


def cache_of(key: str) -> Path:
    """Where files are that a remote run cannot hold: ranks and checkpoints are mapped and renamed locally."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pellucid" / key


@dataclass(frozen=True)
class Trainings:
    """The networks, ranks and results of an experiment's trainings, in a folder of their own.

    Each is made by the first that asks and taken from its file by all others, other processes too, so that
    cells may run anywhere and in any order. ``notes`` gathers warnings of methods.
    """

    spec: Spec
    folder: Path
    notes: set[Note] = field(default_factory=set)

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
        changed: dict[str, Any] = {
            "epochs": self.settings.epochs,
            "shuffle": self.settings.shuffle,
            "precision": self.settings.precision,
            "keep": "last",
        }
        return replace(
            hyperparameters_of(network), **{key: value for key, value in changed.items() if value is not None}
        )

    def seed(self, run: int) -> int:
        """The seed of a training: its weights, order and dropout; the same for all that is compared."""
        return fold_in(self.spec.seed, run)

    def images(self, part: Part) -> LabeledImages:
        """The whole images."""
        return train_images(self.spec) if part == "train" else test_images(self.spec)

    def network(self, name: str, seed: int) -> LoadedModel:
        """An untrained network with an output for each class."""
        images = self.images("train")
        return load_model(name, "random", images.classes or class_count(images), inputs.place(self.spec), seed)

    # Files.

    def once(self, done: Path, make: Callable[[], None]) -> None:
        """Make what ``done`` is the last file of, unless it is there; one process at a time.

        Raises:
            OutputNotWritable: the folder cannot be made.
        """
        locks = self.folder / ".locks"
        try:
            for folder in (done.parent, locks):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputNotWritable(f"cannot make {done.parent}: {error.strerror}; choose another") from error
        with FileLock(locks / "-".join(done.relative_to(self.folder).parts)):
            if not done.exists():
                make()

    def checkpoint(self, name: str) -> Path:
        """Where a training's state is kept until its result is."""
        return self.folder / "checkpoints" / name

    def result(self, name: str, compute: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Plain values that ``compute`` trains for, with a folder for its checkpoints."""
        done = self.folder / "results" / f"{name}.json"

        def make() -> None:
            replace_file(done, json.dumps(compute(self.checkpoint(name))).encode())
            Checkpoints(self.checkpoint(name), {}).remove()

        self.once(done, make)
        found: dict[str, Any] = json.loads(done.read_bytes())
        return found

    def trained(
        self, name: str, network: str, train_set: Dataset[Any], test_set: Dataset[Any], seed: int
    ) -> LoadedModel:
        """A trained network."""
        path = self.folder / "networks" / f"{name}.safetensors"
        facts = path.with_suffix(".json")  # written last

        def make() -> None:
            loaded, recipe = self.network(network, seed), self.recipe(network)
            report = train(
                loaded.model, train_set, test_set, recipe, seed, preprocess_of(network), self.checkpoint(name),
                score_each_epoch=False,
            )  # fmt: skip
            known = {"model": network, "classes": list(loaded.classes or ()), "accuracy": report.accuracy}
            known |= {"preprocess": loaded.preprocess.as_dict(), "epochs": recipe.epochs, "seed": seed}
            save_weights(loaded.model, path, known)
            Checkpoints(self.checkpoint(name), {}).remove()

        self.once(facts, make)
        return load_model(network, path, device=inputs.place(self.spec))

    # What is explained.

    @property
    def explained(self) -> LoadedModel:
        """The spec's model, trained first if no weights are given."""
        model = self.spec.models[0]
        if has_weights(self.spec):
            return inputs.model_of(self.spec, model.key)
        seed = fold_in(self.spec.seed, self.settings.seeds)  # no run's
        return self.trained("explained", model.name, self.images("train"), self.images("test"), seed)

    def explanations(
        self, loaded: LoadedModel, images: Dataset[Any], part: Part, variant: str, method: str
    ) -> Iterator[tuple[Tensor, Tensor, Attributions]]:
        """Positions, prepared images and their attributions, batch by batch; each image's noise is its own."""
        spec, like = self.spec, next(loaded.model.parameters())
        explain = inputs.method_of(spec.method_texts[method])
        made = inputs.variant_of(spec.variant_texts[variant])
        key = fold_in(spec.seed, PARTS.index(part))
        for rows in torch.arange(image_count(images)).split(spec.max_batch):
            pixels, labels = fetch(images, rows)
            pixels = prepared(pixels, preprocess_of(loaded), like).contiguous()
            targets: Any = labels if spec.target == "label" else spec.target
            seeds = [fold_in(key, row) for row in rows.tolist()]
            with noted(method, self.notes):
                found = explain(
                    loaded.model, pixels, "auto" if isinstance(targets, str) else targets,
                    variant=made, seed=seeds, max_batch=spec.max_batch,
                )  # fmt: skip
            yield rows, pixels, found

    def ranks(self, part: Part, variant: str, method: str) -> Tensor:
        """The ranks of a method's maps of all images, from their file."""
        digest = blake2b(f"{variant}/{method}".encode(), digest_size=4).hexdigest()
        name = file_name(f"{method}_{variant}")[:60]
        path = self.folder / "ranks" / f"{name}_{digest}" / f"{part}.npy"
        self.once(path, lambda: write_ranks(path, self._ranked(part, variant, method), len(self.images(part))))
        return open_ranks(path)

    def _ranked(self, part: Part, variant: str, method: str) -> Iterator[Tensor]:
        spec = self.spec
        for rows, pixels, found in self.explanations(self.explained, self.images(part), part, variant, method):
            [attribution] = found.values()
            if self.settings.ranking == "pixel":
                height, width = pixels.shape[-2:]
                maps = heatmap(attribution, (height, width), spec.channels, spec.upsampling)
            elif attribution.shape == pixels.shape:
                maps = attribution
            else:
                raise InvalidMap(
                    f"{method} gives maps {tuple(attribution.shape[1:])} of images {tuple(pixels.shape[1:])}, no "
                    "rank for each channel's values; set ranking = 'pixel' in the table [training]"
                )
            yield salience_ranks(maps, rows.tolist(), seed=spec.seed)

    def random_ranks(self, part: Part, run: int) -> Tensor:
        """The ranks of one run's random removal, the same for all its fractions."""
        path = self.folder / "ranks" / f"random-removal-{run}" / f"{part}.npy"
        images = self.images(part)
        shape = images.pixels.shape[2 if self.settings.ranking == "pixel" else 1 :]
        key = fold_in(self.seed(run), PARTS.index(part))
        parts = torch.arange(len(images)).split(BATCH)
        drawn = (random_ranks(shape, rows.tolist(), key) for rows in parts)
        self.once(path, lambda: write_ranks(path, drawn, len(images)))
        return open_ranks(path)


def has_weights(spec: Spec) -> bool:
    """Whether the explained model comes trained: weights are given (``"random"``, too), or it brings its own."""
    model = spec.models[0]
    return model.weights is not None or model.name in BUNDLED or ".py:" in model.name


def preprocess_of(network: str | LoadedModel) -> Preprocess:
    """A network's preprocess.

    Raises:
        InvalidParameter: it is a function, which does not say how to normalise pixels.
    """
    name = network if isinstance(network, str) else network.name
    found = find_architecture(name).preprocess if isinstance(network, str) else network.preprocess
    if not isinstance(found, Preprocess):
        raise InvalidParameter(f"{name} has a preprocess of its own kind; give its file a pellucid Preprocess")
    return found


@torch.inference_mode()
def graded(model: nn.Module, images: Dataset[Any], preprocess: Preprocess) -> tuple[float, float]:
    """Top-1 accuracy, and the mean softmax score of the true class; both in [0, 1]."""
    like, right, score = next(model.parameters()), 0.0, 0.0
    for rows in torch.arange(image_count(images)).split(BATCH):
        pixels, labels = fetch(images, rows)
        shares = model(prepared(pixels, preprocess, like)).softmax(1).double()
        labels = labels.to(shares.device)
        right += float((shares.argmax(1) == labels).sum())
        score += float(shares.gather(1, labels[:, None]).sum())
    return right / image_count(images), score / image_count(images)


# Images.


@lru_cache(maxsize=1)
def train_images(spec: Spec) -> LabeledImages:
    """The training images, as the networks see them before they are normalised.

    Raises:
        InvalidData: fewer than ``count`` of them, or images without labels.
    """
    training = spec.training
    assert training is not None
    source = open_images(training.source, training.label_column, training.split, training.root)
    if training.count is None:
        return _loaded(spec, source, training.source)
    if training.count > len(source):
        raise InvalidData(
            f"{training.source} has {len(source)} images, not {training.count}; lower training.count"
        )
    drawn = shuffled(len(source), spec.seed)[: training.count].sort().values.tolist()
    return _loaded(spec, source, training.source, drawn)


@lru_cache(maxsize=1)
def test_images(spec: Spec) -> LabeledImages:
    """The spec's images, likewise."""
    return _loaded(spec, inputs.chosen(spec.images), spec.images.source)


def _loaded(spec: Spec, source: Source, origin: str, positions: list[int] | None = None) -> LabeledImages:
    assert spec.training is not None
    display = preprocess_of(spec.training.network).display
    return load_images(source, display, origin, positions).to(inputs.place(spec))


def forget() -> None:
    """Let go of the images."""
    train_images.cache_clear()
    test_images.cache_clear()
