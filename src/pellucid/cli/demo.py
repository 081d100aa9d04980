"""The command ``demo``: images, methods, layers and variants on one page, and which maps can be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CompletenessWarning
from .facts import COMMAND, origin, write_facts
from .output import staged
from .pictures import percent, save_figure
from .terminal import progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.sources import Sample
    from ..findings.trust import TrustCard
    from ..methods.base import Attributions
    from ..models.zoo import LoadedModel
    from ..report.figures import CaptionedPhoto, Map
    from ..report.pages import Bar, Picture, Section

GRADES = "grades"  # the folder of the graded run
LAYERS = ("input", "layer1.1", "layer2.1", "layer3.0")
METHODS = (
    "gradient",
    "smoothgrad",
    "integrated(gradient, steps=16)",
    "guided_backprop",
    "rectgrad(q=90)",
    "deeplift",
    "lrp_epsilon",
    "gradcam",
)
COUNT, SHOWN = 8, 3  # images: measured, and drawn

# What is graded for the trust card.
GRADED = {
    "name": "the demo",
    "models": ["shapes-resnet"],
    "images": {"source": "shapes:16"},
    "methods": [
        "random", "edges", "gradient", "smoothed(gradient, samples=8)", "guided_backprop", "deeplift", "gradcam",
    ],
    "variants": ["original", "backward"],
    "layers": ["input", "layer1.1", "layer2.1"],
    "metrics": [
        "insertion(steps=8)", "deletion(steps=8)", "cascade_ssim", "mass_outside", "pointing_game",
        "class_change", "total_variation",
    ],
}  # fmt: skip


def demo(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "pellucid-demo"
    ),
) -> None:
    """Explain procedural images with the included network, and grade the maps: two pages and a trust card.

    Needs no data and no network connection. Example: `pellucid demo -o demo`
    """
    with staged(output) as folder:
        card = graded(folder, ctx.meta[COMMAND])
        Demonstration.of(folder).write(ctx.meta[COMMAND], card)
    typer.echo(f"\n{card}\n")
    typer.echo(f"open {output / 'report.html'} for the maps, {output / GRADES / 'report.html'} for the grades")


def graded(folder: Path, command: str) -> TrustCard:
    """Grade the maps of the included network, with a report of its own, and judge them."""
    from ..experiments.runners import benchmark
    from ..experiments.spec import Spec
    from ..files import replace_file
    from ..findings.trust import trust_card
    from ..report.benchmark_page import benchmark_page

    with progress() as bar:
        task = bar.add_task("grading", total=None)
        results = benchmark(
            Spec.model_validate(GRADED),
            folder / GRADES,
            advance=lambda done, total: bar.update(task, completed=done, total=total),
            command=command,
        )
    replace_file(folder / GRADES / "report.html", benchmark_page(results).encode())
    return trust_card(results, "shapes-resnet")


@dataclass
class Demonstration:
    """Attributions of some images by method and variant, and where the objects are."""

    folder: Path
    loaded: LoadedModel
    samples: Sequence[Sample]
    masks: Tensor  # (B, H, W), True on the object
    found: dict[tuple[str, str], Attributions]
    probabilities: Tensor  # (B,) of the explained classes

    @classmethod
    def of(cls, folder: Path) -> Demonstration:
        """Explain the images, each for its own class."""
        import torch
        from torchvision.transforms.functional import pil_to_tensor

        from ..catalog import VARIANTS, method
        from ..data.sources import open_images
        from ..models.zoo import load_model

        loaded = load_model("shapes-resnet")
        samples = list(open_images(f"shapes:{COUNT}"))
        images = torch.stack([loaded.preprocess(sample.image) for sample in samples])
        labels = torch.tensor([sample.label for sample in samples])
        masks = torch.cat([pil_to_tensor(sample.mask) for sample in samples]) > 0
        with torch.inference_mode():
            shares = loaded.model(images).softmax(1).gather(1, labels[:, None])[:, 0]
        pairs = [(text, variant) for variant in VARIANTS for text in METHODS]
        found = {}
        with progress() as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", CompletenessWarning)
            for text, variant in bar.track(pairs, description="explaining"):
                found[text, variant] = method(text)(loaded.model, images, labels, LAYERS, variant=variant)
        return cls(folder, loaded, samples, masks, found, shares)

    def write(self, command: str, card: TrustCard) -> None:
        """Write the figures, the page and run.json."""
        from ..files import replace_file
        from ..report.pages import Page

        sections = [self.variants(), self.agreement(), *self.methods(), trust(card)]
        page = Page("Saliency maps, layer by layer", self.lead(), sections, self.footer())
        replace_file(self.folder / "report.html", page.html().encode())
        facts = origin(command) | {
            "model": {"name": self.loaded.name, "weights": self.loaded.weights},
            "methods": list(METHODS),
            "layers": list(LAYERS),
            "total_variation_drop": {layer: self.drop(layer, "backward") for layer in LAYERS},
            "mass_inside_the_object": {text: self.inside(text, "layer2.1", "original") for text in METHODS},
        }
        write_facts(self.folder, facts)

    def lead(self) -> list[str]:
        """What to see, in two sentences."""
        first, second = self.drop("layer1.1", "backward"), self.drop("layer2.1", "backward")
        shares = [self.inside(text, "layer2.1", "original") for text in METHODS]
        above = sum(share > self.area() for share in shares)
        return [
            "Strided convolutions print a checkerboard into the maps of hidden layers; the backward variant, "
            "which smooths the gradient where it passes them, removes it: the gradient's total variation falls by "
            f"{whole_percent(first)} at layer1.1 and by {whole_percent(second)} at layer2.1.",
            f"The methods agree on the object: it covers {whole_percent(self.area())} of an image, yet {above} of "
            f"{len(shares)} methods put more than that of their map at layer2.1 on it, "
            f"{whole_percent(min(shares))} to {whole_percent(max(shares))}.",
        ]

    def variants(self) -> Section:
        """The gradient under each variant, and how much smoother it gets."""
        from ..report.pages import Section, Table

        changed = [variant for variant in self.names() if variant != "original"]
        rows = [bars(layer, [self.drop(layer, variant) for variant in changed]) for layer in LAYERS]
        caption = f"How far the gradient's total variation falls below the original's, mean of {COUNT} images"
        pictures = [
            self.figure(
                f"figure-variants-{sample.name}",
                [[self.map("gradient", of, layer, index) for layer in LAYERS] for of in self.names()],
                LAYERS, self.names(), [index], "gradient",
            )
            for index, sample in enumerate(self.samples[:SHOWN])
        ]  # fmt: skip
        text = (
            "One column per layer, one row per variant of the same network. Look at layer1.1 and layer2.1: single "
            "pixels stand out on a regular lattice in the original, and not in the others."
        )
        return Section(
            "The checkerboard, and how it goes", [text], [Table(["layer", *changed], rows, caption)], pictures
        )

    def agreement(self) -> Section:
        """How much of each method's map lies on the object."""
        from ..report.pages import Section, Table

        rows = [bars(text, [self.inside(text, layer, "original") for layer in LAYERS]) for text in METHODS]
        rows.append(bars("a uniform map", [self.area()] * len(LAYERS)))
        caption = f"Share of the map's magnitude on the object, original network, mean of {COUNT} images"
        text = (
            "Every image comes with the exact mask of its object. A map that knew nothing would put as much of "
            "its magnitude on the object as the object has area: the last row."
        )
        return Section("Where the maps lie", [text], [Table(["method", *LAYERS], rows, caption)])

    def methods(self) -> list[Section]:
        """Methods x layers for each variant, and images x methods."""
        from ..report.pages import Section

        by_variant = [
            self.figure(
                f"figure-methods-{variant}",
                [[self.map(text, variant, layer, 0) for text in METHODS] for layer in LAYERS],
                METHODS, LAYERS, [0], f"{variant} variant",
            )
            for variant in self.names()
        ]  # fmt: skip
        shown = list(range(SHOWN))
        by_image = self.figure(
            "figure-images",
            [[self.map(text, "backward", "layer2.1", index) for text in METHODS] for index in shown],
            METHODS, [], shown, "backward variant, layer2.1, over the photo", overlay=True,
        )  # fmt: skip
        return [
            Section("Methods x layers, for each variant", pictures=by_variant),
            Section("Methods x images", pictures=[by_image]),
        ]

    def names(self) -> list[str]:
        """The variants."""
        return list(dict.fromkeys(variant for _, variant in self.found))

    def map(self, text: str, variant: str, layer: str, index: int) -> Map:
        """One image's map at the layer's own size."""
        from ..heatmap import heatmap

        maps: Map = heatmap(self.found[text, variant][layer])[index].numpy()
        return maps

    def drop(self, layer: str, variant: str) -> float:
        """Share of the gradient's total variation that a variant takes away, mean over images."""
        from ..metrics.noise import total_variation

        before, after = (total_variation(self.found["gradient", of][layer]) for of in ("original", variant))
        return float((1 - after / before).mean())

    def inside(self, text: str, layer: str, variant: str) -> float:
        """Share of a map's magnitude on the object, mean over images."""
        from ..heatmap import heatmap

        size = (self.masks.shape[1], self.masks.shape[2])
        magnitude = heatmap(self.found[text, variant][layer], size).abs()
        return float(((magnitude * self.masks).sum((1, 2)) / magnitude.sum((1, 2))).mean())

    def area(self) -> float:
        """Share of an image that its object covers, mean over images."""
        return float(self.masks.float().mean())

    def figure(
        self,
        name: str,
        cells: Sequence[Sequence[Map]],
        columns: Sequence[str],
        rows: Sequence[str],
        indices: Sequence[int],
        title: str,
        overlay: bool = False,
    ) -> Picture:
        """Write one figure as .png and .svg, and return it for the page."""
        from ..report.figures import grid
        from ..report.pages import Picture

        photos = [self.photo(index) for index in indices]
        save_figure(grid(cells, columns, rows, photos, title, overlay), self.folder, name)
        words = f"Heatmaps: {', '.join(columns)}" + (f" by {', '.join(rows)}" if rows else "")
        return Picture(self.folder / f"{name}.png", words)

    def photo(self, index: int) -> CaptionedPhoto:
        """An image as figures show it."""
        import numpy as np

        from ..report.figures import CaptionedPhoto

        sample = self.samples[index]
        assert self.loaded.classes is not None
        assert sample.label is not None
        text = f"{self.loaded.classes[sample.label]} {percent(float(self.probabilities[index]))}"
        return CaptionedPhoto(np.asarray(sample.image), text, sample.name)

    def footer(self) -> str:
        """What made the page."""
        from ..experiments.record import versions

        return (
            f"Network: {self.loaded.name}; {COUNT} procedural images that it was not trained on. "
            "Made by pellucid demo; " + ", ".join(f"{name} {number}" for name, number in versions().items())
        )


def trust(card: TrustCard) -> Section:
    """The trust card, question by question."""
    from ..report.pages import Section, Table

    answers = [[one.question, " ".join(filter(None, (one.sentence, one.agreement)))] for one in card.findings]
    text = f"{GRADES}/report.html, beside this page, has every number, each with its interval, and the curves."
    return Section(
        "Which maps can be trusted",
        [card.sentence, *card.warnings, text],
        [Table(["question", "answer"], answers)],
    )


def bars(title: str, shares: Sequence[float]) -> list[str | Bar]:
    """A table's row of shares, drawn as far as they are above 0."""
    from ..report.pages import Bar

    return [title, *(Bar(max(share, 0), whole_percent(share)) for share in shares)]


def whole_percent(share: float) -> str:
    """A share in [0, 1] as text without decimals."""
    return f"{100 * share:.0f} %"
