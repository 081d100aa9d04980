"""Throughput of many small trainings: one by one, stacked into one network, and side by side in threads.

    python benchmarks/ensembles.py [--networks 8] [--images 500] [--runs 3] [--device cpu|cuda] [--epochs 1]
                                   [--ways one_by_one stacked threads] [--data train.parquet] [--markdown FILE]

CIFAR CNNs by their recipe (Adam, batches of 100, no shuffling), each with its own degraded set; noise images
unless --data gives some. The ways run in turn, so that a busy machine slows all of them; a ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from pellucid.data.labeled import LabeledImages, load_images
from pellucid.data.sources import open_images
from pellucid.models.small import PAPER_MODELS
from pellucid.models.zoo import load_model
from pellucid.training.degradation import Degradation, DegradedImages, random_ranks
from pellucid.training.ensemble import processors, train_ensemble
from pellucid.training.hyperparameters import HYPERPARAMETERS
from timing import machine

NAME = "cifar-cnn"


def images_of(options: argparse.Namespace) -> LabeledImages:
    if options.data:
        source, preprocess = open_images(options.data), PAPER_MODELS[NAME].preprocess
        positions = range(min(options.images, len(source)))
        images = load_images(source, preprocess.display, positions=positions)
    else:
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=draw)
        images = LabeledImages.of(pixels, torch.randint(10, (options.images,), generator=draw))
    return images.to(options.device)


def seconds(way: str, options: argparse.Namespace, images: LabeledImages) -> float:
    count = options.networks
    models = [load_model(NAME, device=options.device, seed=seed).model for seed in range(count)]
    ranks = random_ranks(images.pixels.shape[2:], range(len(images))).to(images.pixels.device)
    fractions = [(network % 9 + 1) / 10 for network in range(count)]
    sets = [DegradedImages(images, ranks, Degradation(p), images.mean) for p in fractions]
    held_out = [images.subset(torch.arange(100))] * count
    recipe = replace(HYPERPARAMETERS[NAME], epochs=options.epochs)
    start = time.perf_counter()
    reports = train_ensemble(
        models,
        sets,
        held_out,
        recipe,
        range(count),
        PAPER_MODELS[NAME].preprocess,
        score_each_epoch=False,
        way=way,
    )
    if options.device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    print(f"{way}: {elapsed:.2f} s, mean accuracy {statistics.mean(r.accuracy for r in reports):.3f}", flush=True)
    return elapsed


def table(options: argparse.Namespace, times: dict[str, list[float]]) -> str:
    first = statistics.median(times[options.ways[0]])
    lines = [f"| way | seconds | images/s | / {options.ways[0]} |", "| :-- | ---: | ---: | ---: |"]
    for way, found in times.items():
        middle = statistics.median(found)
        rate = options.networks * options.images * options.epochs / middle
        lines.append(f"| {way} | {middle:.2f} | {rate:.0f} | {first / middle:.2f} |")
    return "\n".join(
        [
            f"{options.networks} CIFAR CNNs, {options.images} images, {options.epochs} epoch(s), "
            f"{options.runs} runs, on {processors()} processors: {machine()}.",
            "",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", nargs="+", default=["one_by_one", "stacked", "threads"])
    parser.add_argument("--data")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    images = images_of(options)
    times: dict[str, list[float]] = {way: [] for way in options.ways}
    for _ in range(options.runs):
        for way in options.ways:
            times[way].append(seconds(way, options, images))
    text = table(options, times)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
