"""How much of the gradient's total variation the backward variant removes, layer by layer.

    python benchmarks/checkerboard.py IMAGES --model resnet18 --weights FILE [--count 50]

IMAGES is anything that ``pellucid explain`` reads: a folder or a Parquet file. The explained class is the
network's own; a layer's reduction is 1 - mean TV(backward) / mean TV(original) over the images.
"""

from __future__ import annotations

import argparse
import sys

import torch

import pellucid as pl
from pellucid.data.sources import open_images


def reductions(images: str, model_name: str, weights: str, count: int, batch: int = 10) -> dict[str, float]:
    """The relative reduction at every block that has a strided convolution above it."""
    model, preprocess = pl.load_model(model_name, weights=weights)
    source = open_images(images)
    gradient = pl.method("gradient")
    totals: dict[str, list[float]] = {}
    for start in range(0, min(count, len(source)), batch):
        rows = range(start, min(start + batch, count, len(source)))
        inputs = torch.stack([preprocess(source[row].image) for row in rows])
        original = gradient(model, inputs, "auto", "all", max_batch=batch)
        backward = gradient(model, inputs, original.targets, "all", variant="backward", max_batch=batch)
        for layer in original:
            pair = totals.setdefault(layer, [0.0, 0.0])
            pair[0] += pl.total_variation(original[layer]).sum().item()
            pair[1] += pl.total_variation(backward[layer]).sum().item()
        print(f"\r{rows.stop} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    # Above the last stride nothing changes, and below a global average the gradient is constant: no variation.
    return {
        layer: 1 - after / before
        for layer, (before, after) in totals.items()
        if layer != "input" and after != before
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--count", type=int, default=50)
    options = parser.parse_args()
    found = reductions(options.images, options.model, options.weights, options.count)
    print("| layer | reduction |\n| --- | ---: |")
    for layer, value in found.items():
        print(f"| {layer} | {value:.1%} |")
    print(f"| **mean** | **{sum(found.values()) / len(found):.1%}** |")


if __name__ == "__main__":
    main()
