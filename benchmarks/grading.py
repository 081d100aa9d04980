"""Grading: insertion and deletion against the bare passes and Quantus, adaptive steps, and passes that are shared.

    python benchmarks/grading.py [--part speed|steps|counts|all] [--images FILE --weights FILE] [--count 100]
                                 [--device cpu|cuda] [--markdown FILE]

ResNet-18, 224 x 224. With --images (a folder or table of photos) and --weights (ImageNet's) the figures mean
something; without them the network and the images are random. Every row's contenders run in turn, so that a busy
machine slows all of them; a ratio is of medians. Quantus' row needs quantus installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.metrics.adaptive import AREA_TOLERANCE, where_it_bends
from pellucid.metrics.faithfulness import curves
from pellucid.metrics.perturbation import Kind
from pellucid.metrics.randomization import groups
from pellucid.metrics.scoring import Precision, Scorer
from timing import Work, machine, timed

SIZE, STEPS, FINEST = 224, 28, 224
UNIFORM = (7, 14, 28, 56)
TOLERANCES = (0.005, 0.003, 0.002, 0.0015, AREA_TOLERANCE, 0.0007)


class Pooled(nn.Module):
    """A network that costs next to nothing: what is left is the overhead of grading."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 7 * 7, 1000)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 7).flatten(1))
        return pooled


@dataclass
class Setting:
    """The network, photos (or noise), the classes explained and one map of each."""

    model: nn.Module
    images: Tensor
    targets: Tensor
    maps: Tensor


def setting(options: argparse.Namespace) -> Setting:
    device = options.device
    torch.manual_seed(0)
    if options.weights:
        model, preprocess = pl.load_model("resnet18", weights=options.weights)
    else:
        model, preprocess = torchvision.models.resnet18(weights=None).eval().requires_grad_(False), None
    model = model.to(device)
    if options.images and preprocess is not None:
        source = open_images(options.images)
        places = [row * len(source) // options.count for row in range(options.count)]
        images = torch.stack([preprocess(source[place].image) for place in places]).to(device)
    else:
        images = torch.randn(options.count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        targets = torch.cat([model(part).argmax(1) for part in images.split(16)]).clone()
    attribution = pl.method(options.method)(model, images, targets, options.layer, max_batch=16)[options.layer]
    return Setting(model, images, targets, pl.heatmap(attribution, (SIZE, SIZE), options.channels))


# Speed


def bare(model: nn.Module, images: Tensor, rows: int, batch: int) -> None:
    """So many rows through the network, nothing else."""
    full = images[torch.arange(batch) % len(images)]
    with torch.inference_mode():
        for start in range(0, rows, batch):
            model(full[: min(batch, rows - start)])


def quantus_deletion(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, batch: int) -> Work | None:
    """Quantus' PixelFlipping, zeros for a substrate; or None where it is not installed.

    It replaces single channel values, 1 792 a step, so that it takes 84 steps where 28 replace whole pixels; the
    table compares the time per row of the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import quantus
    except ImportError:
        return None
    metric = quantus.PixelFlipping(
        features_in_step=SIZE * SIZE // STEPS, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    arrays = [value.cpu().numpy() for value in (images, targets, maps[:, None].expand_as(images))]

    def work() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return metric(model, *arrays, channel_first=True, softmax=True, device=images.device.type,
                          batch_size=batch)  # fmt: skip

    return work


def rows_of(model: nn.Module, work: Work) -> int:
    """How many rows some work sends through a network."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    work()
    handle.remove()
    return sum(seen)


def contenders(
    of: Setting, model: nn.Module, kinds: tuple[Kind, ...], batch: int, precision: Precision
) -> dict[str, tuple[Work, int]]:
    """Who does it, and how many rows each sends through the network."""

    def ours() -> object:
        scorer = Scorer(model, max_batch=batch, precision=precision)
        return curves(scorer, of.images, of.targets, of.maps[None], kinds, STEPS)

    rows = rows_of(model, ours)
    found = {"bare": (lambda: bare(model, of.images, rows, batch), rows), "ours": (ours, rows)}
    theirs = quantus_deletion(model, of.images, of.targets, of.maps, batch) if kinds == ("deletion",) else None
    if theirs:
        try:
            found["Quantus"] = (theirs, rows_of(model, theirs))
        except Exception as error:  # it fails on NumPy 2 in places
            print(f"  Quantus failed: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def per_row(who: dict[str, tuple[Work, int]], runs: int) -> dict[str, float]:
    """Median seconds per row of the network, the contenders in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in who}
    for run in range(runs + 1):
        for name, (work, _) in who.items():
            taken = timed(work)
            if run:  # the first round warms caches up
                seconds[name].append(taken)
    return {name: statistics.median(seconds[name]) / rows for name, (_, rows) in who.items()}


def speed(of: Setting, batch: int, runs: int) -> str:
    lines = [
        "| what | rows | bare, s | ours / bare | Quantus' rows | Quantus / ours, per row | to reach |",
        "| --- | ---: | ---: | ---: | ---: | ---: | :-- |",
    ]
    light = Pooled().eval().requires_grad_(False).to(of.images.device)
    cases: list[tuple[str, nn.Module, tuple[Kind, ...], Precision, str]] = [
        ("ResNet-18, insertion + deletion", of.model, ("insertion", "deletion"), "full", "<= 1.1 bare"),
        ("ResNet-18, deletion", of.model, ("deletion",), "full", ">= 1.5x Quantus"),
        ("ResNet-18, deletion, bfloat16", of.model, ("deletion",), "bfloat16", ">= 1.5x Quantus"),
        ("a network that costs nothing, deletion", light, ("deletion",), "full", ">= 1.5x Quantus"),
    ]
    for name, model, kinds, precision, target in cases:
        who = contenders(of, model, kinds, batch, precision)
        cost, rows = per_row(who, runs), who["ours"][1]
        quantus = ("", "")
        if "Quantus" in who:
            quantus = (str(who["Quantus"][1]), f"{cost['Quantus'] / cost['ours']:.2f}")
        lines.append(
            f"| {name} | {rows} | {cost['bare'] * rows:.3f} | {cost['ours'] / cost['bare']:.2f} | "
            f"{' | '.join(quantus)} | {target} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def best_batch(of: Setting, sizes: tuple[int, ...]) -> int:
    """The batch size at which the bare passes are fastest."""
    rows = max(sizes)
    return min(sizes, key=lambda size: min(timed(lambda: bare(of.model, of.images, rows, size)) for _ in range(2)))


# What adaptive steps save


def trade_off(of: Setting, batch: int) -> str:
    """Areas by fewer steps against those by 224, and forward passes per curve.

    Every network score stands in the curves of 224 steps: other steps look theirs up there. Adaptive steps of
    the default tolerance also run on the network.
    """
    print(f"  {2 * FINEST * len(of.images)} forward passes of 224 steps ...", file=sys.stderr, flush=True)
    full = curves(Scorer(of.model, max_batch=batch), of.images, of.targets, of.maps[None], steps=FINEST)
    scores, fractions = torch.cat([each.scores[0] for each in full]), full[0].fractions
    wanted = torch.trapezoid(scores, fractions)
    lines = [
        "| steps | passes per curve | fewer than 225 | mean error, insertion | deletion | error, rms | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps in UNIFORM:
        places = slice(None, None, FINEST // steps)
        lines.append(line(f"{steps}", torch.trapezoid(scores[:, places], fractions[places]) - wanted, steps + 1))
    for tolerance in TOLERANCES:
        looked = [2 * len(scores)]

        def score(curve: Tensor, node: Tensor, looked: list[int] = looked) -> Tensor:
            looked.append(len(curve))
            return scores[curve, node]

        found = where_it_bends(score, scores[:, 0], scores[:, -1], fractions, tolerance)
        error = torch.trapezoid(found, fractions) - wanted
        lines.append(line(f"auto, tolerance {tolerance:g}", error, sum(looked) / len(scores)))
    precisions: tuple[Precision, ...] = ("full", "bfloat16")
    for precision in precisions:
        scorer = Scorer(of.model, max_batch=batch, precision=precision)
        run = curves(scorer, of.images, of.targets, of.maps[None], steps="auto")
        error = torch.cat([each.auc[0] for each in run]) - wanted
        name = f"auto, tolerance {AREA_TOLERANCE:g}, run, ends shared, {precision} precision"
        lines.append(line(name, error, scorer.rows / len(scores)))
    return "\n".join(lines)


def line(name: str, error: Tensor, passes: float) -> str:
    inserted, deleted = error.chunk(2)
    return (
        f"| {name} | {passes:.1f} | {(FINEST + 1) / passes:.1f}x | "
        f"{inserted.mean():+.5f} | {deleted.mean():+.5f} | "
        f"{error.square().mean().sqrt():.5f} | {error.abs().max():.5f} |"
    )


# What metrics share

SHARING = (
    ("insertion", "deletion"),
    ("cascade_ssim", "cascade_spearman", "cascade_hog"),
    ("cascade_insertion(steps=7)", "cascade_deletion(steps=7)"),
    ("insertion", "deletion", "cascade_ssim", "class_change", "adversarial_change", "mass_outside"),
)


def counts() -> str:
    """Rows that go through the network for each metric alone and for several together; one method, all layers."""
    model, preprocess = pl.load_model("shapes-resnet")
    samples = list(open_images("shapes:4"))
    images = torch.stack([preprocess(sample.image) for sample in samples])
    method = pl.method("gradient")
    layers = pl.layer_names(model)
    lines = ["| metrics | each alone, rows per image | together |", "| --- | ---: | ---: |"]
    for texts in SHARING:
        metrics = [pl.metric(text) for text in texts]
        alone = [rows_graded(model, images, method, layers, (metric,)) for metric in metrics]
        together = rows_graded(model, images, method, layers, tuple(metrics))
        told = " + ".join(f"{rows / len(images):.0f}" for rows in alone)
        lines.append(
            f"| {', '.join(texts)} | {told} = {sum(alone) / len(images):.0f} | {together / len(images):.0f} |"
        )
    return f"{len(layers)} layers of {len(groups(model))} groups of the bundled network.\n\n" + "\n".join(lines)


def rows_graded(
    model: nn.Module, images: Tensor, method: pl.Method, layers: list[str], metrics: tuple[pl.Metric, ...]
) -> int:
    """Rows that pass the network's first convolution, its copies' and its own, while the metrics are measured."""
    rows = 0

    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(given[0])

    scorer = Scorer(model)
    scored = scorer.of(images).argmax(1)
    half = torch.ones_like(images[:, 0], dtype=torch.bool).triu()
    case = pl.Case(
        method=method, explained=model, images=images, attributions=method(model, images, scored, layers),
        scorer=scorer, scored=scored, metrics=metrics, masks=half,
    )  # fmt: skip
    # A hook on the class reaches the randomised copies, too.
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: count(module, given) if type(module) is type(model) else None
    )
    try:
        for metric in metrics:
            metric.measure(case)
    finally:
        handle.remove()
    return rows


def with_network(options: argparse.Namespace) -> list[str]:
    whole = setting(options)
    few = Setting(whole.model, *(value[: options.timed] for value in (whole.images, whole.targets, whole.maps)))
    batch = best_batch(few, (4, 8, 16, 32) if options.device == "cpu" else (32, 64, 128, 256))
    weights = "ImageNet weights" if options.weights else "random weights"
    parts = [f"{machine()}, ResNet-18 with {weights}"]
    if options.part != "steps":
        parts.append(
            f"{len(few.images)} images of 224 x 224, {STEPS} steps, batches of {batch}, medians of {options.runs} "
            f"runs in turn.\n\n{speed(few, batch, options.runs)}"
        )
    if options.part != "speed":
        what = "photos" if options.images else "images of noise"
        parts.append(
            f"{len(whole.images)} {what}, {options.method} at {options.layer}, against {FINEST} steps:\n\n"
            f"{trade_off(whole, batch)}"
        )
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "steps", "counts", "all"), default="all")
    parser.add_argument("--images", help="photos: a folder, a Parquet file, or another source pellucid opens")
    parser.add_argument("--weights", help="an ImageNet ResNet-18 as a safetensors file")
    parser.add_argument("--count", type=int, default=100, help="photos of the trade-off, evenly from the source")
    parser.add_argument("--timed", type=int, default=8, help="photos of the timings")
    parser.add_argument("--method", default="gradient")
    parser.add_argument("--layer", default="input")
    parser.add_argument("--channels", default="abs_sum")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if bool(options.images) != bool(options.weights):
        parser.error("--images and --weights belong together: one without the other means nothing")
    parts = []
    if options.part in ("speed", "steps", "all"):
        parts += with_network(options)
    if options.part in ("counts", "all"):
        parts.append(counts())
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
