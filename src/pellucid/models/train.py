"""Train a classifier with one seeded loop, and write its weights with the facts about them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..errors import InvalidParameter
from ..files import replace_file
from .papers import PAPER_MODELS
from .preprocess import Preprocess

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all and the loss."""


@dataclass(frozen=True)
class TrainingReport:
    """What a training did: settings, and the top-1 validation accuracy in [0, 1] after each epoch."""

    accuracies: tuple[float, ...]
    seconds: float
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    images: int

    @property
    def accuracy(self) -> float:
        """The validation accuracy of the trained model, which is the one after the last epoch."""
        return self.accuracies[-1]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with this seed and give the global random state back afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every other device too
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def batches(images: Dataset[Any], batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """Load batches in the set's order, or shuffled by a seed.

    A shuffle leaves out a last batch of one image: batch normalisation learns nothing from one alone.
    """
    if seed is None:
        return DataLoader(images, batch_size, generator=torch.Generator())  # else it draws from the global state
    count = len(images)  # type: ignore[arg-type]
    order = torch.Generator().manual_seed(seed)
    return DataLoader(images, batch_size, shuffle=True, generator=order, drop_last=count % batch_size == 1 < count)


def in_memory(images: Dataset[Any]) -> TensorDataset:
    """Load every image and label once, for data sets that are slow to draw or decode anew in each epoch."""
    pixels, labels = zip(*((batch[0], batch[1]) for batch in batches(images, 256)), strict=True)
    return TensorDataset(torch.cat(pixels), torch.cat(labels))


def prepared(images: Tensor, preprocess: Preprocess | None, device: torch.device) -> Tensor:
    """Move a batch to the device and normalise it there; the GPU convolves fastest channels-last."""
    images = images.to(device, non_blocking=True)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    return images if preprocess is None else preprocess.normalize(images)


def random_symmetry(images: Tensor) -> Tensor:
    """Turn and mirror a batch (B, C, N, N) by one of the square's eight symmetries, drawn at random."""
    turns, mirrored = torch.randint(4, ()).item(), torch.randint(2, ()).item()
    images = torch.rot90(images, int(turns), (2, 3))
    return images.flip(3) if mirrored else images


@torch.inference_mode()
def accuracy(
    model: nn.Module, images: Dataset[Any], preprocess: Preprocess | None = None, batch_size: int = 256
) -> float:
    """Return the share in [0, 1] of images whose largest logit is their label's; set eval mode before.

    Args:
        model: (B, C, H, W) -> (B, classes) logits.
        images: a torch data set of ``(image, label, ...)``.
        preprocess: normalises the images; None where they are normalised already.
        batch_size: images in one forward pass.
    """
    device = next(model.parameters()).device
    right = total = 0
    for pixels, labels, *_ in batches(images, batch_size):
        predicted = model(prepared(pixels, preprocess, device)).argmax(1)
        right += int((predicted == labels.to(device)).sum())
        total += len(labels)
    return right / total


def train(
    model: nn.Module,
    train_set: Dataset[Any],
    validation_set: Dataset[Any],
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train any classifier in place by cross-entropy, AdamW and a one-cycle learning rate.

    The model stays on its device and comes back in eval mode with frozen parameters. On one machine and
    number of threads the same seed gives the same weights; the global random state is left as it was. On a
    GPU the passes run in bfloat16 and channels-last.

    Args:
        model: (B, C, H, W) -> (B, classes) logits.
        train_set: a torch data set of ``(image, label, ...)``; further parts of an item are ignored.
        validation_set: likewise; it is scored after each epoch and never chooses the weights.
        epochs: passes over the training set, at least 1.
        batch_size: images per step, at least 2 (batch normalisation needs them).
        learning_rate: the peak of the cycle, above 0; it is reached after 30 % of the steps.
        weight_decay: AdamW's decay.
        seed: decides order, dropout and augmentation, not the initial weights.
        preprocess: normalises each batch on the device; None where images are normalised already.
        augment: changes each training batch (B, C, H, W), such as :func:`random_symmetry`.
        progress: called after every step with the steps done, the steps in all and the loss.

    Raises:
        InvalidParameter: a setting out of its range, or a loss that is no longer finite.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2)):
        if value < least:
            raise InvalidParameter(f"train: {name}={value}; it must be at least {least}")
    if learning_rate <= 0:
        raise InvalidParameter(f"train: learning_rate={learning_rate}; it must be above 0")
    device = next(model.parameters()).device
    loader = batches(train_set, batch_size, seed)
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(
        model.requires_grad_(True).parameters(), learning_rate, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    accuracies, done, start = [], 0, time.perf_counter()
    with seeded(seed, device):
        for _ in range(epochs):
            model.train()
            for pixels, labels, *_ in loader:
                pixels = pixels if augment is None else augment(pixels)
                loss = step(model, prepared(pixels, preprocess, device), labels.to(device), optimizer)
                schedule.step()
                done += 1
                if not math.isfinite(loss):
                    raise InvalidParameter(
                        f"train: the loss is {loss} at step {done} of {steps}; "
                        f"lower learning_rate={learning_rate} or look for NaN in the images"
                    )
                if progress is not None:
                    progress(done, steps, loss)
            accuracies.append(accuracy(model.eval(), validation_set, preprocess))
    model.requires_grad_(False)
    return TrainingReport(
        tuple(accuracies),
        time.perf_counter() - start,
        epochs,
        batch_size,
        learning_rate,
        weight_decay,
        seed,
        images=len(train_set),  # type: ignore[arg-type]
    )


def step(model: nn.Module, pixels: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Take one step of the optimizer and return the loss before it."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        loss = F.cross_entropy(model(pixels), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_shapes(
    train_set: Dataset[Any],
    validation_set: Dataset[Any],
    output: str | Path,
    epochs: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train ``shapes-resnet`` from scratch as the bundled weights were, and write them to ``output``.

    Args:
        train_set: a :class:`pellucid.data.shapes.ShapesDataset`; the bundled weights had 8 000 of seed 1.
        validation_set: images of another seed; the bundled weights had 1 000 of seed 2.
        output: the .safetensors file to write; its facts go beside it as .json.
        epochs: passes over the training set.
        seed: decides the initial weights, the order and the augmentation.
        progress: called after every step with the steps done, the steps in all and the loss.

    Raises:
        InvalidParameter: as :func:`train`.
        OutputNotWritable: the output cannot be written.
    """
    name = "shapes-resnet"
    factory, preprocess, source = PAPER_MODELS[name]
    with seeded(seed, torch.device("cpu")):
        model = factory()
    report = train(
        model,
        in_memory(train_set),
        in_memory(validation_set),
        epochs,
        seed=seed,
        preprocess=preprocess,
        augment=random_symmetry,
        progress=progress,
    )
    facts = {
        "model": name,
        "source": source,
        "classes": list(getattr(train_set, "classes", ())),
        "preprocess": preprocess.as_dict(),
        "train_set": repr(train_set),
        "validation_set": repr(validation_set),
        "accuracy": report.accuracy,
        "training": asdict(report),
    }
    save_weights(model, output, facts)
    return report


def save_weights(model: nn.Module, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, and beside them the facts as JSON of the same name.

    Each file is written under another name and then moved into its place, so a broken run leaves no half
    file. ``load_model`` reads "classes" and "preprocess" back; the versions of the libraries are added.

    Args:
        model: any module.
        path: the file to write, ending in .safetensors.
        facts: what JSON can hold.

    Raises:
        InvalidParameter: a path of another ending.
        OutputNotWritable: the folder is missing or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InvalidParameter(
            f"save_weights: {path} does not end in .safetensors; weights are saved in that format"
        )
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    versions = {package: version(package) for package in ("pellucid", "torch", "torchvision", "numpy")}
    text = json.dumps({**facts, "versions": versions}, indent=2) + "\n"
    replace_file(path, safetensors.torch.save(tensors))
    replace_file(path.with_suffix(".json"), text.encode())
