"""A recipe with every kind of exhibit and claim, and a run of it, made of plausible results."""

from dataclasses import dataclass, field
from functools import lru_cache

from pellucid.findings.statistics import Statistics
from pellucid.papers.recipe import Recipe
from pellucid.papers.running import LearntPart
from tests.tables import plausible

INSERTION = "insertion(steps='auto')"

RECIPE = {
    "title": "Clear maps of <networks>",
    "authors": "A. Author & B. Author, 2020",
    "lead": "Maps at hidden layers of 3 * 3 networks.",
    "sources": {
        "photos": {"path": "photos/few.parquet", "about": "few photos", "fact": "they were squashed."},
    },
    "weights": {
        "net": {"path": "net.pth", "otherwise": "NAMED", "about": "a net", "fact": "it is of other weights."},
    },
    "experiments": [
        {
            "key": "all",
            "spec": {
                "models": ["net"], "images": {"source": "@photos"}, "metrics": ["insertion(steps=28)"],
                "methods": ["smoothgrad(samples=50)", "gradient"], "layers": ["input", "layer1.1", "layer2.1"],
            },
            "cpu": {"images": {"count": 12}, "metrics": ["insertion(steps=7)"], "precision": "bfloat16"},
            "smoke": {"images": {"count": 2}, "methods": ["smoothgrad(samples=5)"], "layers": ["input"]},
            "published": {"class explained": "label"},
        }
    ],
    "first": "figure8",
    "labels": {
        "original": "O", "backward": "B", "forward": "F", "total_variation": "TV", "insertion*": "Insertion",
        "smoothgrad": "SmoothGrad", "gradient": "Gradient", "input": "the image",
    },
    "exhibits": [
        {
            "kind": "table", "key": "table5", "title": "Noise", "experiment": "all", "rows": "method",
            "columns": "variant", "by": 100, "digits": 1, "note": "Read | from left to right.",
            "where": {
                "metric": "total_variation", "method": ["smoothgrad", "gradient"],
                "variant": ["forward", "backward"], "how": "reduction", "against": {"variant": "original"},
            },
            "paper": {"Gradient": {"B": 19.5, "F": 21.8}, "IG": {"B": 12.2}},
        },
        {
            "kind": "curves", "key": "figure5-7", "title": "Insertion by layer", "experiment": "all",
            "panels": "variant", "lines": "method", "across": "layer", "where": {"metric": "insertion*"},
            "x": "layer",
        },
        {
            "kind": "curves", "key": "figure8", "title": "Randomization", "experiment": "all", "panels": "variant",
            "lines": "method", "across": "curve", "y": "SSIM",
            "where": {"metric": "cascade_ssim", "layer": "input", "variant": "original"},
        },
        {
            "kind": "curves", "key": "curves", "title": "Insertion", "place": "in the appendix",
            "experiment": "all", "panels": "layer", "lines": "variant", "across": "curve",
            "x": "share of pixels", "y": "score", "where": {"metric": "insertion*", "method": "gradient"},
        },
        {
            "kind": "boxes", "key": "figure9", "title": "Mass", "place": "Figures 9 and 10",
            "experiment": "all", "panels": "layer", "boxes": "method",
            "where": {"metric": "mass_outside", "variant": "original"},
        },
        {
            "kind": "maps", "key": "figure1", "title": "Maps", "experiment": "all", "rows": "variant",
            "columns": "method", "photos": 2, "where": {"layer": "input"},
        },
        {
            "kind": "table", "key": "table9", "title": "Nothing", "experiment": "all", "rows": "method",
            "columns": "variant", "where": {"metric": "nothing"},
        },
    ],
    "claims": [
        {
            "text": "B and F reduce noise", "place": "Sec. 4", "comment": "As far as made-up results can say.",
            "tests": [
                {"experiment": "all", "metric": "total_variation", "variant": name, "how": "reduction",
                 "against": {"variant": "original"}, "above": 0}
                for name in ("backward", "forward")
            ],
        },
        {
            "text": "SmoothGrad is worse than random", "place": "Sec. 5", "main": True,
            "tests": [{"experiment": "all", "metric": "insertion*", "method": "smoothgrad", "how": "difference",
                       "against": {"method": "random"}, "below": 0}],
        },
        {"text": "People prefer it", "place": "Sec. 6", "because": "it asks people"},
        {
            "text": "The value is just so", "place": "Sec. 7",
            "tests": [{"experiment": "all", "metric": "mass_outside", "method": "nothing", "below": 0}],
        },
    ],
    "not_reproduced": {"table1": "It lists data sets.", "figure2": "It is a drawing."},
    "deviations": ["The images are drawn.", "1. This is no list."],
}  # fmt: skip


TRAINED = {
    "mnist": LearntPart("network", "mnist-cnn", 3, 60_000, 95.0, accuracy=0.98765, held_out=10_000),
    "paths": LearntPart("surrogate", "resnet18", 1, 2500, 500.0, loss=0.012345),
}


@dataclass(frozen=True)
class Example:
    """What a page is made of, as a run has it."""

    recipe: Recipe
    results: dict
    statistics: dict
    scale: str = "cpu"
    trained: dict = field(default_factory=lambda: TRAINED)
    places: dict = field(default_factory=lambda: {"photos": "/data/few.parquet", "net": "NAMED"})
    versions: dict = field(default_factory=lambda: {"pellucid": "0.1", "torch": "2.4"})
    command: str = "pellucid reproduce clear-maps --scale cpu"
    seconds: float = 125.0


@lru_cache
def example():
    results = plausible()
    statistics = Statistics.of(results)
    return Example(Recipe.model_validate(RECIPE), {"all": results}, {"all": statistics})
