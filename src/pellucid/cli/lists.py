"""The commands ``list methods``, ``metrics``, ``layers``, ``models`` and ``variants``."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from .options import ModelOption, WeightsOption
from .terminal import say, show_whole

VARIANT_MEANINGS = {
    "original": "as the model has them",
    "backward": "the gradient is smoothed where it passes them; the prediction stays",
    "forward": "they run smoothed, so that the prediction may change",
    "backward_with_first": "as backward, and the first convolution, too, which prints the lattice at the input",
    "forward_with_first": "as forward, and the first convolution, too",
}

listing = typer.Typer(no_args_is_help=True, help="Show the names of methods, metrics, layers, models or variants.")


@listing.command("methods")
def list_methods() -> None:
    """Show the attribution methods."""
    from ..catalog import COMBINATORS, METHODS

    table = Table("name", "what it is", "source", title="Methods", title_justify="left")
    for name, entry in METHODS.items():
        table.add_row(name, escape(entry.formula or _first_sentence(entry.made_of)), escape(entry.source))
    show_whole(table)
    say(
        f"Wrap any of them: {' and '.join(f'{name}(...)' for name in COMBINATORS)}, "
        "as in smoothed(integrated(guided_backprop, steps=50), samples=15)."
    )


@listing.command("metrics")
def list_metrics() -> None:
    """Show what maps are graded by."""
    from ..catalog import METRICS

    table = Table("name", "axis", "better", "what it is", "source", title="Metrics", title_justify="left")
    for name, metric in METRICS.items():
        better = "higher" if metric.higher_is_better else "lower"
        needs = f" Needs {', '.join(sorted(metric.needs))}." if metric.needs else ""
        table.add_row(name, metric.axis, better, escape(_first_sentence(metric) + needs), escape(metric.paper))
    show_whole(table)
    say("Settings go in brackets, as in 'insertion(steps=56)'.")


@listing.command("layers")
def list_layers(
    model: ModelOption = "resnet50",
    weights: WeightsOption = None,
) -> None:
    """Show what `--layers all` means for a model."""
    from ..layers import INPUT, layer_names
    from ..models.zoo import load_network

    network = load_network(model, weights).model
    table = Table("layer", "what it is", title=f"Layers of {escape(model)}", title_justify="left")
    for name in layer_names(network):
        table.add_row(name, "the image" if name == INPUT else type(network.get_submodule(name)).__name__)
    show_whole(table)
    say("Any other module may be named too, and globs such as 'layer*.0'.")


@listing.command("models")
def list_models() -> None:
    """Show the names that `--model` knows."""
    from ..models.small import PAPER_MODELS
    from ..models.zoo import BUNDLED, model_names

    table = Table("name", "source", title="Models", title_justify="left")
    for name in model_names():
        source = PAPER_MODELS[name].source if name in PAPER_MODELS else "torchvision"
        table.add_row(name, escape(source) + (" (weights included)" if name in BUNDLED else ""))
    show_whole(table)
    say("Also timm:NAME, hf:NAME or hf:FOLDER, and path/to/file.py:function for a network of your own.")


@listing.command("variants")
def list_variants() -> None:
    """Show how strided convolutions may treat the gradient."""
    from ..catalog import VARIANTS

    table = Table("name", "strided convolutions", title="Variants", title_justify="left")
    for name in VARIANTS:
        table.add_row(name, VARIANT_MEANINGS.get(name, ""))
    show_whole(table)
    say("Also a .safetensors file of `pellucid surrogate train`: bilinear paths run in their place.")


def _first_sentence(described: object) -> str:
    """What a docstring says first."""
    paragraph = (described.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(".").replace("``", "") + "."
