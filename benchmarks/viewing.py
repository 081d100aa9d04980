"""The viewer: from a click to the maps of all layers against the bare pass, and how soon a large run opens.

    python benchmarks/viewing.py [--part click|open|all] [--runs 5] [--folder DIR]

Click: ResNet-18 with random weights, gradient at the input and 8 blocks of one photo of 224 x 224, asked of the
server and parsed, as a page does; bare is the same pass by plain autograd and hooks. Each run takes a photo that
was not asked for before; contenders run in turn. Open: a run of 1 000 images, 3 methods and 2 layers, written here
with maps of noise, opened in a new process: the page, its first photo and maps, then what takes all
images, in seconds of processor time.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow
import torch
from PIL import Image

from pellucid.data.sources import Sample, Source
from pellucid.experiments.record import MetricRecord, RunRecord, cell_digest
from pellucid.experiments.store import PHOTOS, PICTURE_ROWS, ROWS, Store
from pellucid.layers import layer_names
from pellucid.models.zoo import load_model
from pellucid.view.live import LiveView
from pellucid.view.server import Server

SIZE, IMAGES, CUT, METHODS, LAYERS = 224, 1000, 16, ("random", "gradient", "gradcam"), ("input", "layer4.1")


def bare(model: torch.nn.Module, pixels: torch.Tensor, names: list[str]) -> None:
    """One forward and one backward pass, with the gradient of every block."""
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: kept.update({name: call[-1]}))
        for name in names
        if name != "input"
    ]
    with torch.enable_grad():
        x = pixels.clone().requires_grad_()
        logits = model(x)
        torch.autograd.grad(logits.max(1).values.sum(), [x, *kept.values()])
    for hook in hooks:
        hook.remove()


def ask(url: str, what: str, **asked: object) -> None:
    request = urllib.request.Request(f"{url}ask/{what}", json.dumps(asked).encode(), method="POST")
    with urllib.request.urlopen(request) as answer:
        told = json.loads(answer.read().splitlines()[-1])
    assert "answer" in told, told


def click(runs: int) -> None:
    torch.manual_seed(0)
    loaded = load_model("resnet18", None)
    photos = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), np.uint8))
        for seed in range(runs + 2)
    ]
    names = [str(place) for place in range(len(photos))]
    view = LiveView(loaded, [Source(names, lambda place: Sample(names[place], photos[place]))])
    server = Server(view, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    layers, seconds = layer_names(loaded.model), {"bare": [], "click": []}
    for place, photo in enumerate(photos):
        pixels = loaded.preprocess(photo)[None]
        ask(server.url, "photo", image=place)  # what the page has shown before the click
        start = perf_counter()
        bare(loaded.model, pixels, layers)
        middle = perf_counter()
        ask(server.url, "maps", variant=0, method="gradient", image=place, target="auto")
        seconds["bare"].append(middle - start)
        seconds["click"].append(perf_counter() - middle)
    once = seconds["click"][0]
    one, other = (median(seconds[name][2:]) for name in ("bare", "click"))
    beyond = 1000 * (other - 1.2 * one)
    print(f"click: bare {1000 * one:.0f} ms, maps of {len(layers)} layers {1000 * other:.0f} ms, ", end="")
    print(f"{other / one:.2f} bare, {beyond:+.0f} ms beyond 1.2 bare; the first {1000 * once:.0f} ms")
    server.shutdown()
    view.close()


def write_run(folder: Path) -> None:
    """A finished run whose numbers mean nothing."""
    names = tuple(f"{place:04}.jpg" for place in range(IMAGES))
    starts = range(0, IMAGES, CUT)
    digests = {
        (method, start): cell_digest("0" * 64, "net", "original", method, start, min(start + CUT, IMAGES), {})
        for start in starts
        for method in METHODS
    }
    metric = MetricRecord(name="noise", axis="noise", unit="noise", higher_is_better=False, paper="none")
    spec = {"name": "large", "methods": METHODS, "variants": ["original"], "images_per_cell": CUT}
    record = RunRecord(
        hash="0" * 64, versions={}, spec=spec, metrics={"noise": metric}, layers={"net": LAYERS}, images=names,
        cells=tuple(f"cell_{digest}" for digest in digests.values()), identity={},
    )  # fmt: skip
    store, generator = Store(folder), np.random.default_rng(0)
    known = {"model": "net", "variant": "original"}

    def array(values: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, values.astype(np.float16))
        return buffer.getvalue()

    with store.opened(record):
        photos = []
        for name in names:
            buffer = io.BytesIO()
            Image.effect_noise((SIZE, SIZE), 40).convert("RGB").save(buffer, "PNG", compress_level=1)
            photos.append({"image": name, "kind": "photo", "model": "net", "data": buffer.getvalue()})
        store.write_pictures(PHOTOS, pyarrow.Table.from_pylist(photos, schema=PICTURE_ROWS))
        for (method, start), digest in digests.items():
            some, rows, maps = names[start : start + CUT], [], []
            for name in some:
                for layer, side in zip(LAYERS, (SIZE, 7), strict=True):
                    place = known | {"method": method, "layer": layer, "image": name}
                    rows.append(
                        place | {"metric": "noise", "value": generator.random(), "seed": 0, "versions": ""}
                    )
                    values = generator.normal(size=(side, side))
                    maps.append(place | {"kind": "map", "data": array(values / abs(values).max())})
            tables = (
                pyarrow.Table.from_pylist(some, schema=of) for some, of in ((rows, ROWS), (maps, PICTURE_ROWS))
            )
            store.write(f"cell_{digest}", *tables)


OPENING = """
from time import process_time
start = process_time()
from pellucid.view.run import RunView
from pellucid.view.server import Server
imported = process_time()
view = RunView.open({folder!r})
view.html()
page = process_time()
view.photo(None, 0, 0)
view.maps(None, 0, 0, 1, 0)
maps = process_time()
view.values(None, 0, 0, 1)
values = process_time()
view.disagreement(lambda what: None, 0, 0)
order = process_time()
from pellucid.view.rating import RatingView
rated = RatingView.open({folder!r})
rated.html()
rated.item(lambda what: None, "a rater", 0)
rating = process_time()
print(imported - start, page - imported, maps - page, values - maps, order - values, rating - order)
"""


def opening(runs: int, folder: Path) -> None:
    if not (folder / "run.json").exists():
        write_run(folder)
    found = []
    for _ in range(runs):
        program = [sys.executable, "-c", OPENING.format(folder=str(folder))]
        found.append([float(one) for one in subprocess.check_output(program).split()])
    parts = [median(part) for part in zip(*found, strict=True)]
    names = (
        "imports", "page", "first photo and maps", "values of all images", "order by disagreement",
        "first of all maps to rate",
    )  # fmt: skip
    print(
        f"open, {IMAGES} images: "
        + ", ".join(f"{name} {part:.2f} s" for name, part in zip(names, parts, strict=True))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["click", "open", "all"], default="all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the large run is kept, 340 MB; else it is written anew")
    given = parser.parse_args()
    if given.part != "open":
        click(given.runs)
    if given.part != "click":
        with tempfile.TemporaryDirectory() as scratch:
            opening(given.runs, given.folder or Path(scratch) / "run")


if __name__ == "__main__":
    main()
