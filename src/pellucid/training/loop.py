"""The one training loop: seeded epochs, a checkpoint after each, and taken up again where it was ended."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from ..errors import InvalidParameter
from .checkpoints import Checkpoint, Checkpoints

Progress = Callable[[int, int, float], None]
"""Called with the steps done, the steps in all and the loss."""

GPU_LOOK = 20  # steps between two looks at the loss on a GPU, which has to wait for each


class Learner(ABC):
    """What :func:`fit` trains: how an epoch goes, and the state that the next one follows from.

    Attributes:
        steps: the steps of one epoch.
        device: where it is trained.
        draws: whether a step draws from the global random state, which then starts each epoch from ``key``.
    """

    steps: int
    device: torch.device
    draws: bool

    @abstractmethod
    def key(self, epoch: int) -> int:
        """The seed that the global random state starts an epoch with."""

    @abstractmethod
    def learn(self, epoch: int) -> Iterator[Tensor]:
        """Take the steps of an epoch; give the losses of each, whose sum is told."""

    @abstractmethod
    def close(self, epoch: int, seconds: float) -> None:
        """Do what ends an epoch, such as scoring it; it took so many seconds."""

    @abstractmethod
    def state(self) -> Checkpoint:
        """All that the next epoch follows from."""

    @abstractmethod
    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a state of :meth:`state`."""

    @abstractmethod
    def divergence(self, loss: float, epoch: int, step: int) -> str:
        """What to say of a loss that is not finite, at this step of the epoch, counted from 1."""


def fit(learner: Learner, epochs: int, checkpoints: Checkpoints | None, progress: Progress | None) -> None:
    """Train to the last epoch, from the newest checkpoint or from the start.

    The state before the first epoch is written, too: whether it can be is found out before the work begins.

    Raises:
        InvalidParameter: a loss that is no longer finite, or a checkpoint of more epochs.
        InvalidWeights, OutputNotWritable: a checkpoint of another training, or one that cannot be written.
    """
    # Each epoch starts its random numbers from its own seed, so a training
    # that was taken up goes on exactly as one that was never ended.
    for epoch in range(_resume(learner, epochs, checkpoints), epochs):
        start = time.perf_counter()
        with seeded(learner.key(epoch), learner.device) if learner.draws else nullcontext():
            for step, losses in enumerate(learner.learn(epoch), 1):
                done = epoch * learner.steps + step
                # Reading a loss waits for the GPU.
                if losses.is_cuda and step < learner.steps and done % GPU_LOOK:
                    continue
                loss = sum(losses.flatten().tolist())
                if not math.isfinite(loss):
                    raise InvalidParameter(learner.divergence(loss, epoch, step))
                if progress is not None:
                    progress(done, epochs * learner.steps, loss)
        learner.close(epoch, time.perf_counter() - start)
        if checkpoints is not None:
            # It is written after ``close``, so that what this found out about the epoch is part of the state.
            checkpoints.write(epoch + 1, learner.state())


def _resume(learner: Learner, epochs: int, checkpoints: Checkpoints | None) -> int:
    """Take up the newest checkpoint and return how many epochs it had done."""
    if checkpoints is None:
        return 0
    found = checkpoints.newest()
    if found is None:
        checkpoints.write(0, learner.state())
        return 0
    if found.facts["epoch"] > epochs:
        raise InvalidParameter(
            f"checkpoint {checkpoints.folder} has {found.facts['epoch']} epochs behind it, not {epochs}; "
            "ask for as many or more, or name another checkpoint"
        )
    learner.load(found)
    return int(found.facts["epoch"])


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
