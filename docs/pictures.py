"""Draws the pictures of the site anew: python docs/pictures.py [NAME ...]

Networks are the one that comes with pellucid and ResNet-18 with random weights; photos are scikit-image's, in the
public domain (CC0): Chelsea the cat by Stefan van der Walt, the cup of coffee by Rachel Michetti.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor, nn

import pellucid as pl
from pellucid.data.shapes import SHAPE_NAMES, ShapesDataset
from pellucid.models.preprocess import Preprocess
from pellucid.report.album import signs
from pellucid.report.figures import CaptionedPhoto, Drawing, grid, write_figure

IMAGES = Path(__file__).parent / "images"
MOST = 250_000  # bytes of a picture
SQUARE, STAR, CRESCENT, SEED = 1, 3, 6, 2  # shapes that the network was validated on
VARIANTS = ("original", "backward", "forward")


def shape(number: int) -> tuple[nn.Module, Tensor, CaptionedPhoto]:
    """The network that comes along, one of its images, and that image's picture with what is seen in it."""
    model, preprocess = pl.load_model("shapes-resnet")
    pixels, _, _ = ShapesDataset(8, seed=SEED)[number]
    image = preprocess.normalize(pixels[None])
    share, seen = model(image).softmax(1).max(1)
    caption = f"{SHAPE_NAMES[int(seen)]} {100 * float(share):.1f} %"
    return model, image, CaptionedPhoto(pixels.permute(1, 2, 0).mul(255).byte().numpy(), caption)


def untrained(photo: np.ndarray, name: str, seed: int = 0) -> tuple[nn.Module, Tensor, CaptionedPhoto]:
    """A ResNet-18 that has learned nothing, and a photo as it would see it."""
    model, preprocess = pl.load_model("resnet18", weights="random", seed=seed)
    given = Image.fromarray(photo)
    assert isinstance(preprocess, Preprocess)
    return model, preprocess(given)[None], CaptionedPhoto(np.asarray(preprocess.display(given)), name)


def maps(
    method: str | pl.Method, model: nn.Module, image: Tensor, layers: Sequence[str], variant: str = "original"
) -> list[np.ndarray]:
    """One method's map at each layer."""
    built = pl.method(method) if isinstance(method, str) else method
    found = built(model, image, layers=layers, variant=variant)
    return [pl.heatmap(found[layer])[0].numpy() for layer in layers]


# The pictures, each by the name of its file.


def variants() -> Drawing:
    """What the variants do to the gradient, layer by layer."""
    model, image, photo = shape(SQUARE)
    layers = ("input", "layer1.1", "layer2.1", "layer3.0")
    cells = [maps("gradient", model, image, layers, variant) for variant in VARIANTS]
    return grid(cells, layers, VARIANTS, [photo], "gradient")


def untrained_lattice() -> Drawing:
    """The lattice on a network that has learned nothing."""
    model, image, photo = untrained(data.chelsea(), "cat (S. van der Walt, CC0)")
    layers = ("layer1.1", "layer2.1", "layer3.1")
    cells = [maps("gradient", model, image, layers, variant) for variant in VARIANTS]
    return grid(cells, layers, VARIANTS, [photo], "ResNet-18 with random weights, gradient")


def untrained_methods() -> Drawing:
    """What methods draw of a network that has learned nothing."""
    methods = ("gradient", "smoothgrad", "guided_backprop", "input_x_gradient", "edges")
    rows = [
        untrained(data.chelsea(), "cat (S. van der Walt, CC0)"),
        untrained(data.coffee(), "cup (R. Michetti, CC0)"),
    ]
    cells = [
        [pl.heatmap(pl.method(name)(model, image)["input"], channels="abs_sum")[0].numpy() for name in methods]
        for model, image, _ in rows
    ]
    return grid(cells, methods, (), [photo for _, _, photo in rows], "ResNet-18 with random weights")


def methods() -> Drawing:
    """Every method at the input or at the layer of its choice."""
    names = (
        "gradient",
        "smoothgrad",
        "integrated_gradients",
        "deeplift",
        "guided_backprop",
        "rectgrad(q=90)",
        "gradcam",
    )
    rows = [shape(number) for number in (SQUARE, STAR, CRESCENT)]
    cells = []
    for model, image, _ in rows:
        found = [pl.method(name)(model, image) for name in names]
        cells.append([pl.heatmap(next(iter(one.values())))[0].numpy() for one in found])
    told, note = signs(names, "the class")
    photos = [photo for _, _, photo in rows]
    return grid(cells, names, (), photos, "shapes-resnet", explained=told, note=note)


def layers() -> Drawing:
    """Three methods at every layer, under the backward variant."""
    model, image, photo = shape(STAR)
    names = ("gradient", "deeplift", "gradcam")
    where = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")
    cells = [maps(name, model, image, where, "backward") for name in names]
    return grid(cells, where, names, [photo], "backward variant")


def nestings() -> Drawing:
    """Combinators around Guided Backprop, in both orders."""
    model, image, photo = shape(SQUARE)
    texts = (
        "guided_backprop",
        "smoothed(guided_backprop)",
        "integrated(guided_backprop)",
        "smoothed(integrated(guided_backprop, steps=20), samples=8)",
        "integrated(smoothed(guided_backprop, samples=8), steps=20)",
    )
    cells = [maps(text, model, image, ["layer2.1"])[0] for text in texts]
    told, note = signs(texts, "the class")
    return grid([cells], texts, (), [photo], "layer2.1", explained=told, note=note)


def classes() -> Drawing:
    """One image, three classes."""
    model, image, photo = shape(STAR)
    wanted = ("star", "hexagon", "circle")
    cells = []
    for name in ("gradcam", "deeplift"):
        method = pl.method(name)
        found = [method(model, image, SHAPE_NAMES.index(one), layers="layer3.0") for one in wanted]
        cells.append([pl.heatmap(one["layer3.0"])[0].numpy() for one in found])
    return grid(cells, [f"for {one}" for one in wanted], ("gradcam", "deeplift"), [photo], "layer3.0")


def overlay() -> Drawing:
    """Maps over the photo."""
    rows = [shape(number) for number in (SQUARE, STAR)]
    cells = [
        [maps(name, model, image, ["layer2.1"], "backward")[0] for name in ("gradient", "gradcam")]
        for model, image, _ in rows
    ]
    return grid(
        cells, ("gradient", "gradcam"), (), [photo for _, _, photo in rows], "layer2.1, backward", overlay=True
    )


def lattice() -> Figure:
    """How often a pixel is seen by a strided kernel, and the mean over shifts."""
    figure = Figure(figsize=(8.4, 3.2), dpi=110, layout="constrained")
    places = figure.subplots(1, 3)
    seen = [_seen(3), _seen(1)]
    shifted = [seen[0].roll((down, across), (0, 1)) for down in (0, 1) for across in (0, 1)]
    for axes, counts, title in zip(
        places,
        [*seen, torch.stack(shifted).mean(0)],
        ["3 x 3, stride 2", "1 x 1, stride 2", "3 x 3, mean over shifts"],
        strict=True,
    ):
        axes.imshow(counts, cmap="Blues", vmin=0, vmax=4.5)
        for (y, x), count in np.ndenumerate(counts.numpy()):
            axes.text(
                x, y, f"{count:g}", ha="center", va="center", size=7, color="white" if count > 2.5 else "black"
            )
        axes.set(title=title, xticks=[], yticks=[])
    return figure


def _seen(kernel: int, size: int = 8) -> Tensor:
    """How many positions of a strided kernel see each pixel: the gradient of a sum, away from borders."""
    image = torch.zeros(1, 1, 3 * size, 3 * size, requires_grad=True)
    nn.functional.conv2d(image, torch.ones(1, 1, kernel, kernel), stride=2, padding=kernel // 2).sum().backward()
    assert image.grad is not None
    return image.grad[0, 0, size:-size, size:-size]


def deletion() -> Figure:
    """The curves of three maps of one image."""
    model, image, _ = shape(STAR)
    figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, line in (("deeplift", "-"), ("gradient", "--"), ("random", ":")):
        curve = pl.deletion(model, image, "auto", pl.heatmap(pl.method(name)(model, image)["input"]), steps=64)
        axes.plot(curve.fractions, curve.scores[0], line, label=f"{name}, area {float(curve.auc[0]):.2f}")
    axes.set(xlabel="share of pixels deleted", ylabel="probability of the class", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


PICTURES = (
    variants,
    untrained_lattice,
    untrained_methods,
    methods,
    layers,
    nestings,
    classes,
    overlay,
    lattice,
    deletion,
)


def main(names: Sequence[str]) -> None:
    """Draw the pictures named, or all."""
    torch.manual_seed(0)
    IMAGES.mkdir(exist_ok=True)
    for draw in PICTURES:
        name = draw.__name__.replace("_", "-")
        if not names or name in names:
            write_figure(draw(), IMAGES / f"{name}.png", MOST)
            print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
