"""Train a surrogate's paths together, each on its convolution's own features, from one pass of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from ..data.labeled import decode
from ..data.sources import open_images
from ..errors import InvalidData, InvalidImage, InvalidModel, InvalidParameter, require_choice, require_count
from ..models.preprocess import AnyPreprocess, Preprocess
from ..pixels import require_picture
from ..rules.base import Rule, Rules, Run
from ..rules.operations import Operation
from ..seeds import fold_in
from ..undo import Guard
from ..variants.paths import (
    CONVOLUTION,
    BilinearPath,
    Convolution,
    digest,
    is_strided,
    surveyed,
)
from ..variants.surrogate import Surrogate, named_tensors
from .checkpoints import Checkpoint, Checkpoints, load_optimizer, optimizer_tensors
from .hyperparameters import TrainingPrecision, in_bfloat16
from .loop import Learner, Progress, fit, seeded


def train_surrogate(
    model: nn.Module,
    images: Any,
    epochs: int = 10,
    lr: float = 1e-3,
    *,
    batch_size: int = 64,
    preprocess: AnyPreprocess | None = None,
    include_first: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    precision: TrainingPrecision = "auto",
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
) -> Surrogate:
    """Train bilinear paths in place of a model's strided convolutions (Smooth Deep Saliency, Sec. 3.1).

    Each path learns to give its convolution's output from that convolution's input in the original network,
    never from another path's output: loss = sum over the paths of mean |path(x) - conv(x)|, one Adam for all.
    The model, frozen, runs once for each batch, and every path is trained while its features are at hand, so
    that one path's at a time take memory.

    The same seed gives the same paths on one kind of processor with the same number of threads, also when the
    training was stopped and went on from a checkpoint; a loader must then give its batches in an order that its
    ``generator`` or the global random state decides. That state is left as it was.

    Args:
        model: in eval mode; unchanged after.
        images: a tensor (N, C, H, W) normalized as the model expects; a ``Source`` or anything that
            ``open_images`` opens, decoded once, where images that cannot be read are left out and named in
            ``facts``; or a loader of batches.
        epochs: passes over the images.
        lr: Adam's learning rate, above 0.
        batch_size: images in a step, where no loader decides.
        preprocess: PIL image -> input, as ``load_model`` returns it; for a source only. The paper trained on
            images resized to 224 and evaluates at 256, both cropped to 224.
        include_first: train a path for the network's first convolution, too, as the paper did; it is used
            only by ``dataclasses.replace(surrogate, include_first=True)``, which the paper did not.
        checkpoint: a folder of its own; the state after each epoch is kept there, and taken up if it is there.
            If the last is cut short, the training goes on from the one before.
        seed: decides the paths' initial values and the images' order.
        precision: of the passes: ``"full"``; ``"bfloat16"``, under autocast, several times faster on processors
            with units for it (the paths themselves stay in full precision); ``"auto"``, bfloat16 on a GPU.
        progress: called after every step with the steps done, the steps in all and the loss.
        about: what else the facts should say, such as the names of model and data.

    Raises:
        InvalidModel: the model runs no strided convolution, or only its first.
        InvalidParameter: a setting out of its range, a checkpoint of a longer training, or a loss that is no
            longer finite.
        InvalidImage, InvalidData: no images, or none that can be read.
        InvalidWeights: a checkpoint of another training.
        OutputNotWritable: a checkpoint, or the decoded images, cannot be written.
    """
    require_count("epochs", epochs)
    require_count("batch_size", batch_size)
    require_choice("precision", precision, TrainingPrecision)
    if not (math.isfinite(lr) and lr > 0):
        raise InvalidParameter(f"lr={lr!r}: give a number above 0")
    with torch.inference_mode(False):
        source = training_images(images, preprocess, batch_size)
        settings = PathTraining(batch_size, lr, seed, in_bfloat16(precision, _parameter(model)))
        facts = _facts(model, source, about or {}) | settings.as_dict()
        learner = SurrogateLearner.begun(model, source, include_first, settings, facts)
        checkpoints = None
        if checkpoint is not None:
            checkpoints = Checkpoints(Path(checkpoint), learner.identity(preprocess))
        fit(learner, epochs, checkpoints, progress)
        return learner.surrogate()


# The images that it learns from: decoded once and shuffled, or in a loader's own batches.


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images (N, C, H, W), all at hand; ``finish`` makes a batch of them the model's input.

    ``left_out`` says what was wrong with images that could not be read.
    """

    pixels: Tensor
    batch_size: int
    finish: Callable[[Tensor], Tensor] = lambda batch: batch
    left_out: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must agree with: how many images, and the digest of their pixels."""
        found = sha256()
        for part in self.pixels.split(256):
            found.update(part.detach().cpu().contiguous().numpy())
        return {"count": len(self.pixels), "digest": found.hexdigest()}

    def steps(self) -> int:
        """The batches of an epoch; the last may be smaller."""
        return -(-len(self.pixels) // self.batch_size)

    def batches(self, seed: int, device: torch.device) -> Iterator[Tensor]:
        """An epoch's batches (B, C, H, W), in the order of its seed."""
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(seed))
        for part in order.split(self.batch_size):
            yield self.finish(self.pixels[part.to(self.pixels.device)].to(device))


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """A loader's own batches: tensors (B, C, H, W), or tuples that begin with one."""

    loader: Any
    left_out: tuple[str, ...] = field(default=(), init=False)

    @property
    def facts(self) -> dict[str, Any]:
        """How many batches; what is in them is unknown."""
        return {"batches": self.steps()}

    def steps(self) -> int:
        """The loader's length."""
        return len(self.loader)

    def batches(self, seed: int, device: torch.device) -> Iterator[Tensor]:
        """An epoch's batches; a generator of the loader's own starts from the seed, too."""
        if isinstance(generator := getattr(self.loader, "generator", None), torch.Generator):
            generator.manual_seed(seed)
        for batch in self.loader:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
                raise InvalidImage(
                    f"the loader gives {type(images).__name__} {tuple(getattr(images, 'shape', ()))}; it must "
                    "give float tensors (batch, channels, height, width), or tuples that begin with one"
                )
            yield images.to(device)


TrainingImages = StoredImages | LoadedImages


def training_images(images: Any, preprocess: AnyPreprocess | None, batch_size: int) -> TrainingImages:
    """Whatever holds images, as batches.

    A tensor (N, C, H, W) that the model takes as it is; a ``Source``, or what ``open_images`` opens, which the
    preprocess makes such tensors of, less the images that cannot be read; or batches: a list of them, or a
    ``DataLoader``.

    Raises:
        InvalidImage: a tensor of another shape, no image can be read, or the preprocess leaves sizes that differ.
        InvalidData: nothing that holds images.
        InvalidParameter: a source without a preprocess.
        OutputNotWritable: no room for the decoded images.
    """
    if hasattr(images, "__len__") and len(images) == 0:
        raise InvalidData("there are no images to train with")
    if isinstance(images, Tensor):
        if images.dim() != 4 or not images.is_floating_point():
            raise InvalidImage(
                f"images are {tuple(images.shape)} {images.dtype}; give a float tensor (N, channels, h, w)"
            )
        return StoredImages(images.detach(), batch_size)
    if isinstance(images, list | tuple) or (hasattr(images, "__iter__") and not hasattr(images, "__getitem__")):
        return LoadedImages(images)
    if preprocess is None:
        raise InvalidParameter("preprocess is missing; give the one that load_model returns with the model")
    # Every image is decoded and cropped once, into a nameless temporary file that epochs then read: as bytes,
    # 150 KB an image of 224 x 224, which are normalized when a batch is made.
    kept, finish = _halves(preprocess)
    source = open_images(images)
    pixels, _, left_out = decode(source, range(len(source)), lambda sample: kept(sample.image), memory=0)
    return StoredImages(pixels, batch_size, finish, tuple(left_out))


def _halves(preprocess: AnyPreprocess) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
    """A preprocess in two steps: what is kept of an image, and what makes a batch of that the model's input."""
    if isinstance(preprocess, Preprocess):
        return (
            lambda image: pil_to_tensor(preprocess.display(require_picture(image, "training"))),
            lambda batch: preprocess.normalize(batch.float() / 255),
        )
    return preprocess, lambda batch: batch


# Learning.


@dataclass(frozen=True)
class PathTraining:
    """How the paths are trained."""

    batch_size: int
    lr: float
    seed: int
    in_bfloat16: bool

    def as_dict(self) -> dict[str, Any]:
        """What facts and checkpoints say of it."""
        precision = "bfloat16" if self.in_bfloat16 else "full"
        return {"batch_size": self.batch_size, "lr": self.lr, "seed": self.seed, "precision": precision}


@dataclass(eq=False)
class SurrogateLearner(Learner):
    """A training under way: paths (their tensors are the parameters), optimizer, and what is known so far."""

    model: nn.Module
    images: TrainingImages
    convolutions: tuple[Convolution, ...]
    paths: tuple[BilinearPath | None, ...]
    settings: PathTraining
    facts: dict[str, Any]
    losses: list[list[float]] = field(default_factory=list)  # of each epoch and path
    mean_losses: list[float] = field(default_factory=list)  # of each path in the epoch under way
    seconds: float = 0.0
    draws: bool = field(default=True, init=False)  # a loader may, and a model

    def __post_init__(self) -> None:
        self.steps, self.like = self.images.steps(), _parameter(self.model)
        self.device = self.like.device
        trained = [tensor.requires_grad_() for path in self.paths if path for tensor in path.tensors.values()]
        self.optimizer = torch.optim.Adam(trained, self.settings.lr)

    @classmethod
    def begun(
        cls,
        model: nn.Module,
        images: TrainingImages,
        include_first: bool,
        settings: PathTraining,
        facts: dict[str, Any],
    ) -> SurrogateLearner:
        """A training before its first step."""
        like, key = _parameter(model), fold_in(settings.seed, 0)
        with seeded(key, like.device):
            # A loader may draw from the global random state to give it, hence the seed around.
            first = next(iter(images.batches(key, like.device)))
        found, left = surveyed(model, first.to(like.dtype))
        wanted = [include_first or convolution.place > 0 for convolution in found]
        if not any(wanted):
            raise InvalidModel(
                "the model's only strided convolution is its first, which is kept by default, since maps of "
                "interest lie above it; give include_first=True"
            )
        # The generator is its own, so that initial values depend on no batch and on no model.
        generator = torch.Generator().manual_seed(settings.seed)
        drawn = [BilinearPath.drawn(c, generator) if want else None for c, want in zip(found, wanted, strict=True)]
        paths = tuple(path and path.to(like.device, like.dtype) for path in drawn)
        return cls(model, images, found, paths, settings, facts | {"unreplaced": left})

    def identity(self, preprocess: AnyPreprocess | None) -> dict[str, Any]:
        """What decides the paths: who takes up another training's checkpoint is told what differs."""
        forms = {f"{convolution.place:03}": convolution.form for convolution in self.convolutions}
        return self.settings.as_dict() | {
            "model": {"convolutions": forms, "weights": self.facts["model_digest"]},
            "include_first": self.paths[0] is not None,
            # Normalization comes after the images' digest; what a function of one's own does, before it.
            "preprocess": preprocess.as_dict() if isinstance(preprocess, Preprocess) else None,
            "images": self.images.facts,
        }

    def key(self, epoch: int) -> int:
        """The epoch's order of images comes from it, too; the paths were drawn before, by the 0th."""
        return fold_in(self.settings.seed, epoch + 1)

    def learn(self, epoch: int) -> Iterator[Tensor]:
        """One pass over the images; the losses of each path."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in self.images.batches(self.key(epoch), self.device):
            losses = self.step(batch.to(self.like.dtype)).cpu()
            total, count = total + losses.double(), count + 1
            yield losses
        self.mean_losses = (total / max(count, 1)).tolist()

    def close(self, epoch: int, seconds: float) -> None:
        """Keep each path's mean loss over the epoch's steps."""
        self.losses.append(self.mean_losses)
        self.seconds += seconds

    def state(self) -> Checkpoint:
        """Paths, optimizer, losses and seconds."""
        return Checkpoint.of(
            {"losses": self.losses, "seconds": self.seconds},
            paths=named_tensors(self.paths),
            optimizer=optimizer_tensors(self.optimizer),
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Give them back."""
        self.losses, self.seconds = checkpoint.facts["losses"], checkpoint.facts["seconds"]
        kept = checkpoint.part("paths")
        with torch.no_grad():
            for name, tensor in named_tensors(self.paths).items():
                tensor.copy_(kept[name])
        load_optimizer(self.optimizer, checkpoint.part("optimizer"))

    def divergence(self, loss: float, epoch: int, step: int) -> str:
        """Name the step of the epoch, and the learning rate."""
        return (
            f"the loss is not finite at step {step} of epoch {epoch + 1}; lower lr={self.settings.lr} "
            "or look for NaN in the images"
        )

    def surrogate(self) -> Surrogate:
        """The paths as they are now."""
        frozen = tuple(path and path.to(self.device, self.like.dtype) for path in self.paths)
        done = {"epochs": len(self.losses), "losses": [*self.losses], "seconds": round(self.seconds, 1)}
        return Surrogate(self.convolutions, frozen, self.facts | done)

    def step(self, batch: Tensor) -> Tensor:
        """One pass of the model, one step of every path; each path's loss."""
        learners = dict(zip(self.convolutions, self.paths, strict=True))
        teaching = _Teaching({c: path for c, path in learners.items() if path is not None})
        # Convolutions of many channels run faster so.
        batch = batch.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        mixed = torch.autocast(batch.device.type, torch.bfloat16, enabled=self.settings.in_bfloat16)
        # The model needs no graph at all; each path makes its own within the rule.
        with Guard(), torch.no_grad(), mixed, Rules((teaching,)):
            self.model(batch.clone())  # a clone: its first operation may be in place
        self.optimizer.step()
        return torch.stack([teaching.losses[c] for c in teaching.learners])


@dataclass(frozen=True, eq=False)
class _Teaching(Rule):
    """Runs a pass as it is; beside every convolution with a path, the path's loss goes forward and back."""

    learners: Mapping[Convolution, BilinearPath]
    losses: dict[Convolution, Tensor] = field(default_factory=dict)
    operations: ClassVar[frozenset[str]] = CONVOLUTION

    def concerns(self, operation: Operation) -> bool:
        return is_strided(operation) and Convolution.of(operation) in self.learners

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        convolution, y = Convolution.of(operation), run(x)
        with torch.enable_grad():
            # It is the mean over all values of a path's output; gradients
            # of all paths, added up, are those of the losses' sum.
            loss = F.l1_loss(self.learners[convolution](x, convolution.output_size(x)), y)
            # It runs back at once, so that one path at a time takes
            # memory; and outside of autocast, as torch advises.
            with torch.autocast(x.device.type, enabled=False):
                loss.backward()
        # A convolution that runs twice has one path, which learns both.
        self.losses[convolution] = self.losses.get(convolution, torch.zeros_like(loss)) + loss.detach()
        return y


def _parameter(model: nn.Module) -> Tensor:
    return next(model.parameters(), torch.empty(0))


def digest_of_weights(model: nn.Module) -> str:
    """The ``model_digest`` that a surrogate's facts tell of the model whose paths it learned."""
    state = sha256()
    for name, tensor in model.state_dict().items():
        state.update(f"{name}={digest(tensor)};".encode())
    return state.hexdigest()


def _facts(model: nn.Module, images: TrainingImages, about: Mapping[str, Any]) -> dict[str, Any]:
    versions = {package: version(package) for package in ("pellucid", "torch", "torchvision")}
    return {"model": type(model).__name__, **about} | {
        "model_digest": digest_of_weights(model),
        "images": images.facts,
        "left_out": list(images.left_out),
        "versions": versions,
    }
