"""What the cells of trainings share: their images, networks, maps and ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.labeled import LabeledImages, load_images, shuffled
from ..data.sources import Source, open_images
from ..errors import InvalidData, InvalidMap
from ..files import file_name
from ..heatmap import heatmap
from ..methods.base import Attributions
from ..models.preprocess import Preprocess
from ..models.zoo import BUNDLED, LoadedModel, load_model
from ..seeds import fold_in
from ..training.artifacts import Artifacts
from ..training.batches import class_count, fetch, image_count, prepared, preprocess_of
from ..training.degradation import random_ranks, salience_ranks
from ..training.hyperparameters import Hyperparameters, hyperparameters_of
from . import inputs
from .cells import Note, noted
from .spec import Spec, Training

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
_DRAWN = 256  # images whose random ranks are drawn at a time


def cache_of(key: str) -> Path:
    """Where files are that a remote run cannot hold: ranks and checkpoints are mapped and renamed locally."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pellucid" / key


@dataclass(frozen=True)
class Trainings:
    """The images, networks, maps and ranks of an experiment's trainings; ``folder`` keeps what they share.

    ``notes`` gathers warnings of methods.
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
    def artifacts(self) -> Artifacts:
        """What is made once and kept in files."""
        return Artifacts(self.folder)

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
        return train_images(self.spec) if part == "train" else test_images(self.spec)

    def network(self, name: str, seed: int) -> LoadedModel:
        """An untrained network with an output for each class."""
        images = self.images("train")
        return load_model(name, "random", images.classes or class_count(images), inputs.place(self.spec), seed)

    def trained(
        self, name: str, network: str, train_set: Dataset[Any], test_set: Dataset[Any], seed: int
    ) -> LoadedModel:
        """A trained network."""
        return self.artifacts.network(
            name, self.network(network, seed), (train_set, test_set), self.recipe(network), seed
        )

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
        self, loaded: LoadedModel, images: Dataset[Any], part: Split, variant: str, method: str
    ) -> Iterator[tuple[Tensor, Tensor, Attributions]]:
        """Positions, prepared images and their attributions, batch by batch; each image's noise is its own."""
        spec, like = self.spec, next(loaded.model.parameters())
        explain = inputs.method_of(spec.method_texts[method])
        made = inputs.variant_of(spec.variant_texts[variant])
        key = fold_in(spec.seed, SPLITS.index(part))
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

    def ranks(self, part: Split, variant: str, method: str) -> Tensor:
        """The ranks of a method's maps of all images, from their file."""
        digest = blake2b(f"{variant}/{method}".encode(), digest_size=4).hexdigest()
        name = file_name(f"{method}_{variant}")[:60]
        ranked = self._ranked(part, variant, method)
        return self.artifacts.ranks(f"{name}_{digest}/{part}", ranked, len(self.images(part)))

    def _ranked(self, part: Split, variant: str, method: str) -> Iterator[Tensor]:
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

    def random_ranks(self, part: Split, run: int) -> Tensor:
        """The ranks of one run's random removal, the same for all its fractions."""
        images = self.images(part)
        shape = images.pixels.shape[2 if self.settings.ranking == "pixel" else 1 :]
        key = fold_in(self.seed(run), SPLITS.index(part))
        parts = torch.arange(len(images)).split(_DRAWN)
        drawn = (random_ranks(shape, rows.tolist(), key) for rows in parts)
        return self.artifacts.ranks(f"random-removal-{run}/{part}", drawn, len(images))


def has_weights(spec: Spec) -> bool:
    """Whether the explained model comes trained: weights are given (``"random"``, too), or it brings its own."""
    model = spec.models[0]
    return model.weights is not None or model.name in BUNDLED or ".py:" in model.name


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


def forget_images() -> None:
    """Let go of the images."""
    train_images.cache_clear()
    test_images.cache_clear()
