"""Train classifiers and segmentation models by cross-entropy, and write weights with the facts about them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..errors import InvalidData, InvalidParameter
from ..files import file_digest, replace_file, sealed
from ..models.preprocess import Preprocess
from ..outputs import tensor_in
from ..seeds import fold_in
from .adversarial import attacked
from .batches import check_labels, check_set, fetch, image_count, prepared, slices
from .checkpoints import Checkpoint, Checkpoints, load_optimizer, optimizer_tensors
from .hyperparameters import AUGMENTATIONS, Hyperparameters, in_bfloat16
from .loop import Learner, Progress, fit, seeded
from .networks import Networks

SCORED = 256  # images in one forward pass of the validation


@dataclass(frozen=True)
class TrainingReport:
    """What a training did.

    Attributes:
        accuracies: top-1 validation accuracy in [0, 1] after each epoch that was scored; the last one is.
        kept: the position among them of the weights kept.
        seconds: wall-clock time of this run, without the epochs a run before it had done.
        recipe, seed: the settings, and the seed of order, augmentation and dropout.
        images: how many the network was trained with.
        robust: of an adversarial training, the accuracy on validation images that are moved against it.
        empty: labels within the network's outputs that no training image has.
    """

    accuracies: tuple[float, ...]
    kept: int
    seconds: float
    recipe: Hyperparameters
    seed: int
    images: int
    empty: tuple[int, ...] = ()
    robust: float | None = None

    @property
    def accuracy(self) -> float:
        """The validation accuracy of the weights kept."""
        return self.accuracies[self.kept]


# What is looked at before anything is trained.


def draws(model: nn.Module, images: Tensor) -> bool:
    """Whether a pass in training mode draws random numbers, as dropout does; tried on a copy."""
    device = images.device
    state = partial(torch.cuda.get_rng_state, device) if device.type == "cuda" else torch.get_rng_state
    with torch.no_grad(), seeded(0, device):
        before = state()
        # It is a copy, since a pass in training mode moves the statistics of batch norms.
        copy.deepcopy(model).train()(images)
        return not torch.equal(before, state())


def check_network(model: nn.Module, images: Dataset[Any], preprocess: Preprocess | None) -> tuple[int, bool]:
    """Count a network's outputs by running two images, and tell whether its training draws random numbers."""
    if image_count(images) < 2:
        raise InvalidData(f"train: a training set of {image_count(images)} images; give 2 or more")
    pixels, labels = fetch(images, torch.arange(2))
    pixels = prepared(pixels, preprocess, next(model.parameters()))
    was_training = model.training
    try:
        with torch.no_grad():
            logits, random = tensor_in(model.eval()(pixels)), draws(model, pixels)
    except (RuntimeError, ValueError) as error:
        raise InvalidData(f"train: the network cannot take images {tuple(pixels.shape[1:])}: {error}") from error
    finally:
        model.train(was_training)
    if logits.shape != (2, logits.shape[1], *labels.shape[1:]):
        raise InvalidData(
            f"train: the network returns logits {tuple(logits.shape)} for labels {tuple(labels.shape)}; labels of "
            "images want (batch, classes), those of pixels (batch, classes, height, width) of the images' size"
        )
    return logits.shape[1], random


# The loop.


@torch.no_grad()
def accuracies(
    networks: Networks, sets: Sequence[Dataset[Any]], preprocess: Preprocess | None, batch_size: int = SCORED
) -> list[float]:
    """The share in [0, 1] of right answers of each network on its own set, in the mode it is in."""
    like = next(iter(networks.parameters().values()))
    right, total = torch.zeros(networks.count, dtype=torch.long, device=like.device), 0
    for indices in torch.arange(image_count(sets[0])).split(batch_size):
        pairs = [fetch(images, indices) for images in sets]
        pixels = torch.stack([prepared(pixels, preprocess, like) for pixels, _ in pairs])
        labels = torch.stack([labels for _, labels in pairs]).to(like.device)
        right += (networks.logits(pixels).argmax(2) == labels).flatten(1).sum(1)
        total += labels[0].numel()
    return [int(count) / total for count in right]


def accuracy(
    model: nn.Module, images: Dataset[Any], preprocess: Preprocess | None = None, batch_size: int = SCORED
) -> float:
    """The share in [0, 1] of ``(image, label)`` whose largest logit is the label's; set eval mode before.

    Where pixels are labeled, the share of pixels.
    Bytes or floats in [0, 1], which the ``preprocess`` normalizes; None where they are normalized already.
    """
    with torch.inference_mode():
        [share] = accuracies(Networks(model), [images], preprocess, batch_size)
    return share


class Score(NamedTuple):
    """Top-1 accuracy, and the mean softmax score of the true class; both in [0, 1]."""

    accuracy: float
    score: float


@torch.inference_mode()
def accuracy_and_score(model: nn.Module, images: Dataset[Any], preprocess: Preprocess) -> Score:
    """How well a network knows images."""
    like, right, score = next(model.parameters()), 0.0, 0.0
    for rows in torch.arange(image_count(images)).split(SCORED):
        pixels, labels = fetch(images, rows)
        shares = model(prepared(pixels, preprocess, like)).softmax(1).cpu().double()
        labels = labels.cpu()
        right += float((shares.argmax(1) == labels).sum())
        score += float(shares.gather(1, labels[:, None]).sum())
    return Score(right / image_count(images), score / image_count(images))


@dataclass(frozen=True, eq=False)
class Lessons:
    """What networks that are trained together learn: each from its own set, by its own seed, all by one recipe."""

    train_sets: Sequence[Dataset[Any]]
    validation_sets: Sequence[Dataset[Any]]
    seeds: Sequence[int]
    recipe: Hyperparameters
    preprocess: Preprocess | None = None
    score_each_epoch: bool = True

    def of(self, network: int) -> Lessons:
        """Those of one network alone."""
        train_set, validation_set = self.train_sets[network], self.validation_sets[network]
        return replace(self, train_sets=[train_set], validation_sets=[validation_set], seeds=[self.seeds[network]])

    def check(self) -> None:
        """Refuse settings that exclude each other, sets of differing sizes, and validation sets without images."""
        if self.recipe.keep == "best" and not self.score_each_epoch:
            raise InvalidParameter("train: keep='best' needs every epoch scored; leave score_each_epoch on")
        if self.recipe.adversarial and self.preprocess is None:
            raise InvalidParameter(
                "train: adversarial training moves pixels in [0, 1]; give a preprocess that normalizes them"
            )
        pairs = zip(self.train_sets, self.validation_sets, strict=True)
        sizes = {(image_count(one), image_count(other)) for one, other in pairs}
        if len(sizes) > 1:
            raise InvalidData(
                f"train: sets of differing sizes {sorted(sizes)}; networks trained together need one size"
            )
        if not image_count(self.validation_sets[0]):
            raise InvalidData("train: the validation set has no images")

    def empty(self, outputs: int) -> list[tuple[int, ...]]:
        """Refuse sets that networks of so many outputs cannot learn; the labels that no image of each has."""
        found = [check_set(images, outputs, self.recipe) for images in self.train_sets]
        for images in self.validation_sets:
            check_set(images, outputs, replace(self.recipe, shuffle=True))  # its order does not matter
        return found

    def identity(self, networks: Networks) -> dict[str, Any]:
        """What decides the weights, but the first ones: who takes up another training's checkpoint is told so."""
        sets = (*self.train_sets, *self.validation_sets)
        return {
            "network": {name: list(value.shape) for name, value in networks.state().items()},
            "recipe": asdict(self.recipe),
            "seeds": list(self.seeds),
            "preprocess": None if self.preprocess is None else self.preprocess.as_dict(),
            "images": [getattr(images, "fingerprint", image_count(images)) for images in sets],
        }


@dataclass
class ClassifierLearner(Learner):
    """A training under way: ``networks.count`` networks, each with its own sets and its own seed."""

    networks: Networks
    lessons: Lessons
    outputs: int
    draws: bool
    history: list[list[float]] = field(default_factory=list)  # accuracies: epochs x networks
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = self.lessons.recipe
        self.optimizer = self.recipe.build(self.networks.parameters())
        self.batches = slices(image_count(self.lessons.train_sets[0]), self.recipe.batch_size)
        self.steps = len(self.batches)
        self.like = next(iter(self.networks.parameters().values()))
        self.device = self.like.device

    def key(self, epoch: int) -> int:
        """The first network's; its order and augmentation come from it, too."""
        return fold_in(self.lessons.seeds[0], epoch)

    def learn(self, epoch: int) -> Iterator[Tensor]:
        """One epoch; its order and augmentation follow from each network's seed and the epoch alone."""
        self.networks.base.train()
        sets = self.lessons.train_sets
        # Each network has a generator of its own, so that it learns as it would alone.
        generators = [Generator().manual_seed(fold_in(seed, epoch)) for seed in self.lessons.seeds]
        orders = [self._order(images, draw) for images, draw in zip(sets, generators, strict=True)]
        for number, part in enumerate(self.batches):
            parts = zip(sets, orders, generators, strict=True)
            pairs = [self._batch(images, order[part], draw) for images, order, draw in parts]
            self.recipe.set_rate(self.optimizer, epoch * self.steps + number, self.recipe.epochs * self.steps)
            pixels, labels = (torch.stack(each) for each in zip(*pairs, strict=True))
            if self.recipe.adversarial:
                pixels = self._attacked(pixels, labels, generators)
            yield self._step(self._normalized(pixels), labels)

    def close(self, epoch: int, seconds: float) -> None:
        """Score the networks, and remember each that was never better where the recipe keeps the best."""
        if not self.lessons.score_each_epoch and epoch < self.recipe.epochs - 1:
            return
        self.networks.base.eval()
        found = accuracies(self.networks, self.lessons.validation_sets, self.lessons.preprocess)
        if self.recipe.keep == "best":
            self._keep(found)
        self.history.append(found)

    def state(self) -> Checkpoint:
        """Networks, optimizer, the best weights so far and the accuracies."""
        return Checkpoint.of(
            {"history": self.history},
            network=self.networks.state(),
            optimizer=optimizer_tensors(self.optimizer),
            best=self.best,
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Give them back."""
        self.networks.load(checkpoint.part("network", self.device))
        load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.best = checkpoint.part("best", self.device)
        self.history = [list(epoch) for epoch in checkpoint.facts["history"]]

    def divergence(self, loss: float, epoch: int, step: int) -> str:
        """Name the step among all, and the learning rate."""
        return (
            f"train: the loss is {loss} at step {epoch * self.steps + step} of {self.recipe.epochs * self.steps}; "
            f"lower learning_rate={self.recipe.learning_rate} or look for NaN in the images"
        )

    def finish(self) -> None:
        """Leave every network frozen, with the weights that are kept."""
        if self.best:
            self.networks.load(self.best)
        self.networks.finish()

    def _order(self, images: Dataset[Any], draw: Generator) -> Tensor:
        count = image_count(images)
        return torch.randperm(count, generator=draw) if self.recipe.shuffle else torch.arange(count)

    def _batch(self, images: Dataset[Any], indices: Tensor, draw: Generator) -> tuple[Tensor, Tensor]:
        """Images in [0, 1], augmented, and their labels; those of pixels move as the pixels do."""
        pixels, labels = fetch(images, indices)
        if getattr(images, "labels", None) is None:
            check_labels(labels, self.outputs)
        augmented = AUGMENTATIONS[self.recipe.augmentation]
        pixels, labels = prepared(pixels, None, self.like), labels.to(self.device)
        if labels.dim() == 1:
            return augmented(pixels, draw), labels
        # The labels go along as one more channel, so that whatever turns the pixels turns them alike.
        both = augmented(torch.cat([pixels, labels[:, None].to(pixels)], 1), draw)
        return both[:, :-1], both[:, -1].long()

    def _normalized(self, pixels: Tensor) -> Tensor:
        """Images (networks, B, C, H, W) as the networks want them."""
        return torch.stack([prepared(each, self.lessons.preprocess, self.like) for each in pixels])

    def _attacked(self, pixels: Tensor, labels: Tensor, draws: Sequence[Generator]) -> Tensor:
        """The images moved against the networks, whose statistics stay as they are."""

        def loss(x: Tensor) -> Tensor:
            return self._losses(self._normalized(x), labels).sum()

        start = torch.stack([torch.rand(pixels.shape[1:], generator=draw) for draw in draws]).to(pixels)
        # It is in eval mode, or the attack would feed its own moved images into the statistics of batch norms.
        self.networks.base.eval()
        moved = attacked(pixels, loss, self.recipe.adversarial, self.recipe.attack_steps, start)
        self.networks.base.train()
        return moved

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of every network, each by its own mean cross-entropy; return their mean before it."""
        losses = self._losses(images, labels)
        self.optimizer.zero_grad()
        losses.mean(1).sum().backward()  # summed, so that no network's gradient depends on the others' number
        self.optimizer.step()
        return losses.detach().mean()

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each image (networks, B), the mean over its pixels where these are labeled."""
        half = in_bfloat16(self.recipe.precision, self.like)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = self.networks.logits(images)
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="none")
        losses = losses.view(labels.shape)
        return losses if losses.dim() == 2 else losses.flatten(2).mean(2)

    def _keep(self, found: Sequence[float]) -> None:
        """Copy the weights of each network whose accuracy is above that of every epoch before."""
        state = self.networks.state()
        if not self.history:
            self.best = {name: value.detach().clone() for name, value in state.items()}
        for network, value in enumerate(found):
            # Of equal epochs the first is kept.
            if all(value > epoch[network] for epoch in self.history):
                for name, kept in self.best.items():
                    kept[network] = state[name].detach()[network]


def train(
    model: nn.Module,
    train_set: Dataset[Any],
    validation_set: Dataset[Any],
    recipe: Hyperparameters = Hyperparameters(),  # noqa: B008 - frozen
    seed: int = 0,
    preprocess: Preprocess | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    score_each_epoch: bool = True,
) -> TrainingReport:
    """Train any classifier in place by cross-entropy.

    The model stays on its device and comes back in eval mode with frozen parameters. On one machine and
    number of threads the same seed gives the same weights, also when the training was ended and taken up
    again; the global random state is left as it was. On a GPU the passes run in bfloat16 and channels-last, unless
    the recipe says otherwise.

    Args:
        model: (B, C, H, W) -> (B, classes) logits, or (B, classes, H, W) where pixels are labeled.
        train_set: a torch data set of ``(image, label, ...)``, bytes or floats in [0, 1]; further parts of an
            item are ignored. A label is a class, or a tensor of one for each pixel (H, W). Fastest is
            ``pellucid.data.labeled.LabeledImages``.
        validation_set: likewise; it chooses the weights only where the recipe says ``keep="best"``.
        recipe: the settings; ``pellucid.training.hyperparameters`` has the papers'.
        seed: decides order, dropout and augmentation, not the initial weights.
        preprocess: normalizes each batch on the device; None where images are normalized already.
        checkpoint: a folder of its own; the state after each epoch is kept there, and taken up if it is there.
        progress: called after every step (on a GPU after some) with the steps done, the steps in all and the
            loss.
        score_each_epoch: False scores the last epoch alone.

    Raises:
        InvalidData: no images, images the model cannot take, or labels it has no output for.
        InvalidParameter: a loss that is no longer finite, or settings that exclude each other.
        InvalidWeights: a checkpoint of another training.
        OutputNotWritable: the checkpoint cannot be written.
    """
    lessons = Lessons([train_set], [validation_set], [seed], recipe, preprocess, score_each_epoch)
    [report] = train_networks(Networks(model.requires_grad_(True)), lessons, checkpoint, progress)
    return report


def train_networks(
    networks: Networks, lessons: Lessons, checkpoint: str | Path | None, progress: Progress | None = None
) -> list[TrainingReport]:
    """Check and train networks of one architecture together, as :func:`train`; one report for each."""
    lessons.check()
    start = time.perf_counter()
    count, random = check_network(networks.base, lessons.train_sets[0], lessons.preprocess)
    empty, recipe = lessons.empty(count), lessons.recipe
    checkpoints = None if checkpoint is None else Checkpoints(Path(checkpoint), lessons.identity(networks))
    learner = ClassifierLearner(networks, lessons, count, random)
    fit(learner, recipe.epochs, checkpoints, progress)
    learner.finish()
    seconds, histories = time.perf_counter() - start, zip(*learner.history, strict=True)
    last, reports = len(learner.history) - 1, []
    for found, seed, images, none in zip(histories, lessons.seeds, lessons.train_sets, empty, strict=True):
        kept = found.index(max(found)) if recipe.keep == "best" else last
        reports.append(TrainingReport(found, kept, seconds, recipe, seed, image_count(images), none))
    return reports


# Weights and facts.


def require_safetensors(path: Path) -> None:
    """Refuse a file of another ending."""
    if path.suffix != ".safetensors":
        raise InvalidParameter(f"{path} does not end in .safetensors; weights are saved in that format")


def save_weights(model: nn.Module, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, and beside them the facts as JSON of the same name.

    Each file is written under another name and then moved into its place, so a broken run leaves no half file.
    ``load_model`` reads "classes" and "preprocess" back; the versions of the libraries are added.

    Raises:
        InvalidParameter: a path that does not end in .safetensors.
        OutputNotWritable: the folder is missing or cannot be written.
    """
    path = Path(path)
    require_safetensors(path)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    versions = {package: version(package) for package in ("pellucid", "torch", "torchvision", "numpy")}
    replace_file(path, safetensors.torch.save(tensors))
    told = {**facts, "versions": versions, "files": {path.name: file_digest(path)}}
    replace_file(path.with_suffix(".json"), sealed(told))
