"""The command ``demo``: images, methods, layers and variants on one page, and which maps can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import COMMAND, FOLDER
from .output import staged
from .terminal import progress, say

if TYPE_CHECKING:
    from ..experiments.store import Results

_GRADES = "grades"  # the folder of the graded run
_NETWORK = "shapes-resnet"
_METHODS = (
    "gradient",
    "smoothgrad",
    "integrated(gradient, steps=16)",
    "guided_backprop",
    "rectgrad(q=90)",
    "deeplift",
    "lrp_epsilon",
    "gradcam",
)
_COUNT, _SHOWN = 8, 3  # images: measured, and drawn

# What is graded for the trust card.
_GRADED: dict[str, Any] = {
    "name": "the demo",
    "images": "shapes:16",
    "methods": (
        *("random", "edges", "gradient", "smoothed(gradient, samples=8)"),
        *("guided_backprop", "deeplift", "gradcam"),
    ),
    "variants": ["original", "backward"],
    "layers": ["input", "layer1.1", "layer2.1"],
    "metrics": (
        *("insertion(steps=8)", "deletion(steps=8)", "cascade_ssim", "mass_outside"),
        *("pointing_game", "class_change", "total_variation"),
    ),
}


def demo(ctx: typer.Context, output: Annotated[Path, FOLDER] = Path("pellucid-demo")) -> None:
    """Explain procedural images with the included network, and grade the maps: two pages and a trust card.

    Needs no data and no network connection. Example: `pellucid demo -o demo`
    """
    from ..files import replace_file
    from ..findings.trust import trust_card
    from ..report.benchmark_page import benchmark_page
    from .demo_page import DemoPage

    command = ctx.meta[COMMAND]
    with staged(output) as folder:
        graded = _run(_GRADED, folder / _GRADES, "grading", command)
        replace_file(folder / _GRADES / "report.html", benchmark_page(graded).encode())
        card = trust_card(graded, _NETWORK)
        explained = _run(_explained(), folder / "maps", "explaining", command)
        DemoPage(explained, card, folder, f"{_GRADES}/report.html").write(command)
    say(f"\n{card}\n")
    say(f"open {output / 'report.html'} for the maps, {output / _GRADES / 'report.html'} for the grades")


def _explained() -> dict[str, Any]:
    """What is drawn: each image is explained for its own class."""
    return {
        "name": "the demo's maps",
        "images": f"shapes:{_COUNT}",
        "methods": _METHODS,
        "variants": ("original", "backward", "forward"),
        "layers": ("input", "layer1.1", "layer2.1", "layer3.0"),
        "metrics": ("total_variation", "mass_outside"),
        "target": "label",
        "pictures": _SHOWN,
    }


def _run(spec: dict[str, Any], folder: Path, what: str, command: str) -> Results:
    from ..experiments.runners import benchmark
    from ..experiments.spec import Spec

    with progress() as show:
        checked = Spec.model_validate(spec | {"models": _NETWORK})
        return benchmark(checked, folder, advance=lambda *done: show(what, *done), command=command)
