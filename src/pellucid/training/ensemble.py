"""Many small trainings of one architecture: stacked into one network on a GPU, side by side on processors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from ..errors import InvalidData, InvalidParameter, require_choice
from ..models.preprocess import Preprocess
from .classifiers import Lessons, TrainingReport, check_network, train_networks
from .hyperparameters import Hyperparameters
from .networks import Networks, Stacked

Arrangement = Literal["stacked", "threads", "one_by_one"]


def train_ensemble(
    models: Sequence[nn.Module],
    train_sets: Sequence[Dataset[Any]],
    validation_sets: Sequence[Dataset[Any]],
    recipe: Hyperparameters,
    seeds: Sequence[int],
    preprocess: Preprocess | None = None,
    checkpoint: str | Path | None = None,
    score_each_epoch: bool = True,
    way: Arrangement | None = None,
) -> list[TrainingReport]:
    """Train networks of one architecture, each with its own data and seed, as :func:`train` would one by one.

    Args:
        models: trained in place, on one device.
        train_sets, validation_sets, seeds: one of each for every network; the sets all of one size.
        recipe, preprocess, score_each_epoch: of all, as :func:`pellucid.training.classifiers.train`.
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
    require_choice("way", way, Arrangement)
    if way == "threads" and random:
        raise InvalidParameter(
            "way='threads': these networks draw random numbers, which threads share; leave way out"
        )
    lessons = Lessons(train_sets, validation_sets, seeds, recipe, preprocess, score_each_epoch)
    if way == "stacked":
        return train_networks(Stacked(models), lessons, checkpoint)

    def train_one(number: int) -> TrainingReport:
        network = Networks(models[number].requires_grad_(True))
        folder = None if checkpoint is None else Path(checkpoint) / f"network-{number:03d}"
        [report] = train_networks(network, lessons.of(number), folder)
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
    """How many processors this program may use: of a cluster's machine, those of its place."""
    # What the process may use, as in a container, is often less than what the machine has.
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, max(int(told), 1)) if told.isdecimal() else there


def side_by_side(work: Callable[[int], TrainingReport], count: int, workers: int) -> list[TrainingReport]:
    """Do ``work`` for 0 to count - 1, as many at a time as there are workers, each then on one thread."""
    if workers == 1:
        return [work(number) for number in range(count)]
    threads = torch.get_num_threads()
    try:
        # Each pool thread would else start as many threads for its products as there are processors.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, range(count)))
    finally:
        torch.set_num_threads(threads)
