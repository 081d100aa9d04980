"""What leaving one process costs and brings: Ray against one process, and maps in bulk against the bare loop.

    python benchmarks/scale.py --part ray [--runs 3] [--cells 6]
    python benchmarks/scale.py --part bulk --images FOLDER [--weights FILE] [--count 100] [--explain 50]
    python benchmarks/scale.py --part many [--cells 10000]

``ray``: cells of some seconds (ResNet-18, 224 x 224, one thread), in this process, in two that know nothing of
each other, by one Ray worker of one processor and by two, in turns; Ray is connected and its workers have started
before. ``bulk``: photos read, decoded and explained by ``gradient`` and 20 steps of integrated gradients at the
input and 8 blocks, by hand with plain autograd and by ``write_maps``, in turns; and how long ``pellucid explain``
takes for some of them. ``many``: what ten thousand small cells leave in the memory of the driver and in Ray's
object store.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

import pellucid as pl
from attribution import bare_gradient, bare_ig, bare_layer_ig
from pellucid.data.sources import open_images
from pellucid.experiments.cells import Cell
from pellucid.experiments.spec import spec_of

BLOCKS = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
BATCH = 16


def in_turns(works: dict[str, Callable[[], float | None]], runs: int) -> dict[str, float]:
    """The median seconds of each, run in turns; a work may say itself how long it took."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            begun, used = perf_counter(), process_time()
            seconds[name].append(work() or perf_counter() - begun)
            load = f"load {os.getloadavg()[0]:.1f}"
            print(
                f"  {name}: {seconds[name][-1]:.1f} s, of this process {process_time() - used:.1f}, {load}",
                flush=True,
            )
    return {name: statistics.median(found) for name, found in seconds.items()}


def cells_spec(cells: int) -> pl.Spec:
    """Cells of two images and some seconds each."""
    return pl.read_spec(
        None,
        {"models": [{"name": "resnet18", "weights": "random"}], "methods": ["integrated(gradient, steps=20)"]}
        | {"images": f"shapes:{2 * cells}", "metrics": ["total_variation"], "layers": ["input"]}
        | {"images_per_cell": 2, "pictures": 0},
    )


def run_alone(cells: int, folder: str) -> None:
    """Cells in this process, by one thread."""
    torch.set_num_threads(1)
    pl.benchmark(cells_spec(cells), folder)


def ray_part(runs: int, cells: int) -> None:
    """One process, two that know nothing of each other, one worker, two workers."""
    import ray
    from ray.cluster_utils import Cluster

    folder, number = Path(tempfile.mkdtemp()), count()
    clusters = []
    for workers in (1, 2):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False})
        clusters.append(cluster)

    def place() -> str:
        return str(folder / str(next(number)))

    def by(address: str) -> Callable[[], float]:
        def work() -> float:
            """Less the start of workers: from the first cell, which is run before, to the last."""
            ray.init(address, logging_level="ERROR", log_to_driver=False)
            try:
                pl.benchmark(cells_spec(2), place(), runner=pl.on_ray())
                begun = perf_counter()
                pl.benchmark(cells_spec(cells), place(), runner=pl.on_ray())
                return perf_counter() - begun
            finally:
                ray.shutdown()

        return work

    def by_hand() -> float:
        """Half of the cells in each of two processes: what the machine itself makes of two at once."""
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            list(pool.map(run_alone, [1, 1], [place(), place()]))
            begun = perf_counter()
            list(pool.map(run_alone, [cells // 2, cells - cells // 2], [place(), place()]))
            return perf_counter() - begun

    works = {
        "one process": lambda: run_alone(cells, place()),
        "two processes": by_hand,
        "one worker": by(clusters[0].address),
        "two workers": by(clusters[1].address),
    }
    median = in_turns(works, runs)
    for cluster in clusters:
        cluster.shutdown()
    print(f"{cells} cells, {median['one process'] / cells:.1f} s each in one process")
    print(f"one worker / one process: {median['one worker'] / median['one process']:.3f} (to reach: <= 1.05)")
    print(f"one process / two processes: {median['one process'] / median['two processes']:.2f}, the machine's own")
    print(f"one worker / two workers: {median['one worker'] / median['two workers']:.2f} (to reach: >= 1.8)")


def bulk_part(images: str, weights: str | None, number: int, runs: int, explained: int, steps: int) -> None:
    """The bare loop, ``write_maps``, and ``pellucid explain``."""
    from typer.testing import CliRunner

    from pellucid.cli import app

    folder = Path(tempfile.mkdtemp())
    loaded = pl.load_model("resnet18", weights or "random")
    source = open_images(images)[:number]
    for position, sample in enumerate(source):  # decoding is part of the work
        place = folder / ("few" if position < explained else "rest") / f"{position:05d}.png"
        place.parent.mkdir(exist_ok=True)
        sample.image.convert("RGB").save(place.with_suffix(".jpg"), quality=92)
    model, outputs = loaded.model.requires_grad_(False), count()

    def bare() -> None:
        rows = open_images(folder)
        for start in range(0, len(rows), BATCH):
            pixels = torch.stack([loaded.preprocess(sample.image) for sample in rows[start : start + BATCH]])
            with torch.no_grad():
                targets = model(pixels).argmax(1)
            bare_gradient(model, pixels, targets, BLOCKS)
            for few, of in zip(pixels.split(4), targets.split(4), strict=True) if steps else ():
                bare_ig(model, few, of, steps, BATCH)
                bare_layer_ig(model, few[:2], of[:2], BLOCKS, steps)
                bare_layer_ig(model, few[2:], of[2:], BLOCKS, steps) if len(few) > 2 else None

    layers = ["input", *BLOCKS]
    methods = ["gradient", *([f"integrated(gradient, steps={steps})"] if steps else [])]
    wanted: dict[str, Any] = {"models": [{"name": "resnet18", "weights": weights or "random"}], "layers": layers}
    spec = spec_of(pl.MapsSpec, None, wanted | {"images": str(folder), "methods": methods})

    def bulk() -> None:
        pl.write_maps(spec, Path(tempfile.mkdtemp()) / str(next(outputs)))

    median = in_turns({"bare loop": bare, "write_maps": bulk}, runs)
    ratio = median["write_maps"] / median["bare loop"]
    print(f"{number} photos: write_maps / bare loop {ratio:.2f} (to reach: <= 1.1)")
    if explained:
        command = ["explain", str(folder / "few"), "--model", "resnet18", "--weights", weights or "random"]
        command += ["--methods", ",".join(methods), "--layers", ",".join(layers), "-o", str(folder / "explained")]

        def explain() -> None:
            assert CliRunner().invoke(app, command).exit_code == 0

        each, mine = in_turns({"explain": explain}, 1)["explain"] / explained, median["write_maps"] / number
        print(f"a photo: explain {each:.2f} s, write_maps {mine:.2f} s; {each / mine:.2f} times (to reach: >= 3)")


def many_part(cells: int) -> None:
    """Memory of ten thousand small cells."""
    import ray

    from pellucid.experiments.on_ray import _Cluster

    torch.set_num_threads(1)
    wanted = {"models": ["shapes-resnet"], "images": "shapes:1", "methods": ["edges"], "layers": ["input"]}
    spec = pl.read_spec(None, wanted | {"metrics": ["total_variation"]})
    ray.init("local", num_cpus=2, logging_level="ERROR", log_to_driver=False, object_store_memory=80 << 20)
    work = [Cell("shapes-resnet", "original", "edges", 0, 1, "")] * cells
    begun = perf_counter()
    for done, outcome in enumerate(_Cluster(ray, 1, 0).outcomes(spec, work), 1):
        assert outcome.error is None
        if done in (100, 1000) or done % 5000 == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            free = ray.available_resources().get("object_store_memory", 0) / 2**20
            took = f"{done} cells in {perf_counter() - begun:.0f} s"
            print(f"{took}: driver's peak {peak:.0f} MiB, object store free {free:.0f} MiB", flush=True)
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["ray", "bulk", "many"], required=True)
    parser.add_argument("--images", default="shapes:200")
    parser.add_argument("--weights")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--cells", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--explain", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20, help="of integrated gradients; 0 leaves them out")
    given = parser.parse_args()
    if given.part == "ray":
        ray_part(given.runs, given.cells)
    elif given.part == "bulk":
        bulk_part(given.images, given.weights, given.count, given.runs, given.explain, given.steps)
    else:
        many_part(given.cells)


if __name__ == "__main__":
    main()
