"""Many small trainings of one architecture: stacked into one network on a GPU, side by side on processors."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import Dataset

from ..errors import InvalidData, InvalidParameter
from ..models.preprocess import Preprocess
from .classifiers import TrainingReport, check_network, train_networks
from .hyperparameters import Hyperparameters
from .loop import Progress
from .networks import Networks, One

Arrangement = Literal["stacked", "threads", "one_by_one"]


class Stacked(Networks):
    """Networks of one architecture as one: parameters (networks, ...), every operation once for all of them.

    Convolutions become grouped ones. Optimizers work value by value, so each network learns as if alone;
    dropout draws other numbers than it would alone.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = [model.requires_grad_(True) for model in models]
        self.count = len(models)
        self.base = copy.deepcopy(models[0])
        try:
            self.weights, self.buffers = stack_module_state(self.models)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InvalidData(f"these networks differ and cannot be trained as one: {error}") from error

    def parameters(self) -> dict[str, Tensor]:
        """The stacked ones."""
        return dict(self.weights)

    def logits(self, images: Tensor) -> Tensor:
        """All networks at once, each on its own images."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.base, (weights, buffers), (images,))
            return logits

        logits: Tensor = vmap(one, randomness="different")(self.weights, self.buffers, images)
        return logits

    def state(self) -> dict[str, Tensor]:
        """Weights and buffers, stacked."""
        return {**self.weights, **self.buffers}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy weights and buffers into the stacked ones."""
        with torch.no_grad():
            for name, value in self.state().items():
                value.copy_(state[name])

    def finish(self) -> None:
        """Give every network its own weights back."""
        state = self.state()
        for network, model in enumerate(self.models):
            own = {name: state[name].detach()[network] for name in model.state_dict()}
            model.load_state_dict(own)
            model.eval().requires_grad_(False)


def train_ensemble(
    models: Sequence[nn.Module],
    train_sets: Sequence[Dataset[Any]],
    validation_sets: Sequence[Dataset[Any]],
    recipe: Hyperparameters,
    seeds: Sequence[int],
    preprocess: Preprocess | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    score_each_epoch: bool = True,
    way: Arrangement | None = None,
) -> list[TrainingReport]:
    """Train networks of one architecture, each with its own data and seed, as :func:`train` would one by one.

    Args:
        models: trained in place, on one device.
        train_sets, validation_sets: one of each for every network; all of one size.
        recipe: the settings of all.
        seeds: one for each network.
        preprocess, progress, score_each_epoch: as :func:`pellucid.training.classifiers.train`.
        checkpoint: a folder of its own for all of them; the call takes it up with the same networks alone.
        way: ``"stacked"``: one network of grouped convolutions; ``"threads"``: as many networks at a time as
            there are processors, each on one thread; ``"one_by_one"``; None is what :func:`fastest` says.

    Returns:
        One report for each network; the seconds of those trained together are the seconds of all.

    Raises:
        InvalidParameter: an unknown way, threads for networks that draw random numbers, or as ``train``.
        InvalidData: not one set and seed for each network, networks that differ, or as ``train``.
    """
    if not len(models) == len(train_sets) == len(validation_sets) == len(seeds) or not models:
        raise InvalidData(
            f"train_ensemble: {len(models)} networks, {len(train_sets)} training sets, {len(validation_sets)} "
            f"validation sets and {len(seeds)} seeds; give one of each for every network"
        )
    _, random = check_network(models[0], train_sets[0], preprocess)
    way = fastest(models[0], random) if way is None else way
    if way not in get_args(Arrangement):
        raise InvalidParameter(f"way={way!r}: give one of {', '.join(get_args(Arrangement))}")
    if way == "threads" and random:
        raise InvalidParameter(
            "way='threads': these networks draw random numbers, which threads share; leave way out"
        )

    def train_some(
        networks: Networks, some: slice, folder: str | Path | None, progress: Progress | None
    ) -> list[TrainingReport]:
        sets = train_sets[some], validation_sets[some]
        own = seeds[some]
        return train_networks(networks, *sets, recipe, own, preprocess, folder, progress, score_each_epoch)

    if way == "stacked":
        return train_some(Stacked(models), slice(None), checkpoint, progress)
    count = Counted(progress, len(models))

    def train_one(number: int) -> TrainingReport:
        network = One(models[number].requires_grad_(True))
        folder = None if checkpoint is None else Path(checkpoint) / f"network-{number:03d}"
        [report] = train_some(network, slice(number, number + 1), folder, count.of(number))
        return report

    return side_by_side(train_one, len(models), processors() if way == "threads" else 1)


def fastest(model: nn.Module, random: bool) -> Arrangement:
    """The fastest way on the model's device, by benchmarks/ensembles.py.

    A GPU is idle in a small network's passes and gains from stacking. Processors lose by it (grouped
    convolutions); one network per processor gains instead, but threads share one random state, so networks
    with dropout are trained one by one.
    """
    if next(model.parameters()).is_cuda:
        return "stacked"
    return "one_by_one" if random or processors() == 1 else "threads"


def processors() -> int:
    """How many processors this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(work: Callable[[int], TrainingReport], count: int, workers: int) -> list[TrainingReport]:
    """Do ``work`` for 0 to count - 1, as many at a time as there are workers, each then on one thread."""
    if workers == 1:
        return [work(number) for number in range(count)]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, range(count)))
    finally:
        torch.set_num_threads(threads)


class Counted:
    """One progress made of those of several networks: their steps added up."""

    def __init__(self, progress: Progress | None, networks: int) -> None:
        self.progress = progress
        self.done = [0] * networks

    def of(self, network: int) -> Progress | None:
        """What one network reports to."""
        progress = self.progress
        if progress is None:
            return None

        def advance(done: int, steps: int, loss: float) -> None:
            self.done[network] = done
            progress(sum(self.done), steps * len(self.done), loss)

        return advance
