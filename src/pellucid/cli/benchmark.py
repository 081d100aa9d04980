"""The command ``benchmark``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from ..errors import InvalidParameter, counted, shortened
from .options import (
    AS_FOR_EXPLAIN,
    COMMAND,
    DEVICE,
    MAX_BATCH,
    AddressOption,
    CpusOption,
    DisplayOption,
    PreprocessOption,
    RunnerOption,
    ScaleOption,
    checked_bands,
    checked_layouts,
    checked_max_batch,
    checked_scale,
    chosen_runner,
    parted,
)
from .terminal import (
    ALREADY_FINISHED,
    progress,
    say,
    show_going_on,
    show_noticed,
    show_reasons,
    show_whole,
)

if TYPE_CHECKING:
    from ..experiments.cost import Sized
    from ..experiments.runners import Runner
    from ..experiments.store import Results

_TOLD = 10.0  # seconds of a run whose cost is told before it begins


def benchmark_command(
    ctx: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="The folder or fsspec URL of the results.")
    ],
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="A TOML file; the options replace its values.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="As for `explain`; may be repeated, as all lists.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Of each model, in order.")] = None,
    images: Annotated[
        str | None, typer.Option(help="A folder, .parquet table, `shapes:COUNT`, `torchvision:NAME`, `hf:NAME`.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="FILE|a,b,c", help="The class names, as for `explain`.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many images.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Take every n-th image in sorted order.")] = None,
    label_column: Annotated[str | None, typer.Option(help="A table's column of labels.")] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Masks by the images' names, white on the object; tables have columns."
        ),
    ] = None,
    boxes: Annotated[
        str | None, typer.Option(metavar="FILE|FOLDER", help="Boxes: COCO's .json, or a folder of VOC's .xml.")
    ] = None,
    spread: Annotated[
        bool | None,
        typer.Option("--spread", help="Take the --count images from all over the source, so of many classes."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look in about 5 minutes: fewer images, spread.")
    ] = False,
    skip_unusable: Annotated[
        bool | None, typer.Option("--skip-unusable", help="Leave out images that are broken or lack a mask.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Names or text forms, comma-separated.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="`original`, `backward`, `forward` or a surrogate's .safetensors file."),
    ] = None,
    layers: Annotated[list[str] | None, typer.Option(help="`all`, names or globs.")] = None,
    metrics: Annotated[list[str] | None, typer.Option(help="Names of `pellucid list metrics`.")] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="`scored`, `explained`, `label`, or as for `explain`."),
    ] = None,
    layouts: Annotated[list[str] | None, AS_FOR_EXPLAIN] = None,
    scale: ScaleOption = None,
    display: DisplayOption = None,
    preprocess: PreprocessOption = None,
    scored: Annotated[str | None, typer.Option(help="The model that is scored: `original` or `variant`.")] = None,
    score: Annotated[str | None, typer.Option(help="`softmax`, `sigmoid` or `logits`.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the scored model: `full`, or `bfloat16`, faster and less exact.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The method to compare others with.")] = None,
    channels: Annotated[str | None, AS_FOR_EXPLAIN] = None,
    upsampling: Annotated[str | None, AS_FOR_EXPLAIN] = None,
    pictures: Annotated[int | None, typer.Option(min=0, help="Of how many images to keep the maps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all noise.")] = None,
    images_per_cell: Annotated[
        int | None, typer.Option(min=1, help="How many images are computed, and stored, together.")
    ] = None,
    max_batch: Annotated[str | None, MAX_BATCH] = None,
    device: Annotated[str | None, DEVICE] = None,
    runner: RunnerOption = "inline",
    address: AddressOption = None,
    cpus: CpusOption = None,
) -> None:
    """Grade the maps of methods x variants x layers by metrics, image by image.

    A run that was interrupted goes on where it was when the same command is given again; given more methods or
    variants, it computes only these. Before it begins, one image is graded to say what all of them cost.

    Examples:

    `pellucid benchmark examples/shapes.toml -o run`

    `pellucid benchmark --model resnet18 --weights resnet18.safetensors --images photos/
    --methods "gradient,smoothgrad" --metrics total_variation -o run`
    """
    # Lists come from the command line as tuples, an empty one where an option was not given.
    options = {
        name: list(value) or None if isinstance(value, tuple) else value for name, value in ctx.params.items()
    }
    others = ("output", "spec", "quick", "runner", "address", "cpus")
    options = {name: value for name, value in options.items() if name not in others}
    chosen = chosen_runner(runner, address, cpus)
    results, computed = _run(spec, spec_content(options), output, ctx.meta[COMMAND], quick, chosen)
    if not computed:
        say(ALREADY_FINISHED.format(output))
    if results.failed and not len(results.table):
        show_troubles({"": results})  # there are no means to show
        raise typer.Exit(1)
    _show(results, output)
    if results.failed:
        raise typer.Exit(1)


_CHECKED: Mapping[str, Callable[[Any], Any]] = {  # texts of options, and the values that a spec has
    "max_batch": checked_max_batch,
    "layouts": lambda texts: checked_layouts(parted(texts)),
    "scale": lambda text: list(checked_scale(text)),
    "display": lambda text: list(checked_bands(text) or ()) or "mean",
}


def spec_content(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, in the form that a spec has."""
    given = {name: value for name, value in options.items() if value is not None}
    if "variant" in given:
        given["variants"] = given.pop("variant")
    lists = ("methods", "variants", "layers", "metrics", "classes")
    given |= {name: parted(given[name]) for name in lists if name in given}
    given |= {name: checked(given[name]) for name, checked in _CHECKED.items() if name in given}
    names = ("count", "every", "spread", "label_column", "masks", "boxes", "skip_unusable")
    of_images: dict[str, Any] = {name: given.pop(name) for name in names if name in given}
    if "images" in given:
        of_images["source"] = given["images"]
    if of_images:
        given["images"] = of_images
    target = given.get("target", "")
    if target.isdecimal() and target == str(int(target)):  # else a name, such as 01
        given["target"] = int(target)
    if "model" not in given:
        return given
    models, weights = given.pop("model"), given.pop("weights", None)
    if weights is None:
        return given | {"models": models}
    if len(weights) != len(models):
        raise InvalidParameter(f"{counted(len(weights), 'weights file')} for {counted(len(models), 'model')}")
    pairs = zip(models, weights, strict=True)
    return given | {"models": [{"name": name, "weights": file} for name, file in pairs]}


def _run(
    spec: Path | None, options: dict[str, Any], output: str, command: str, quick: bool, runner: Runner
) -> tuple[Results, int]:
    """Read the spec and run it, showing how far it is; the results, and how many cells were computed for them."""
    from ..experiments.cost import sized
    from ..experiments.runners import benchmark
    from ..experiments.spec import read_spec
    from ..passes import counting

    states: list[tuple[int, int]] = []
    with progress() as show:
        asked = read_spec(spec, options)
        show("measuring what one image costs", 0, 0)
        planned = sized(asked, output, quick)
        if planned.passes and planned.seconds >= _TOLD:
            say(_cost(planned), err=True)

        run = 0

        def advance(done: int, total: int) -> None:
            if not states:
                show_going_on(done, total, "cell")
            states.append((done, total))
            tick(0)

        def tick(rows: int) -> None:
            """Show passes, so that something moves within a cell; those of cells done before count as run."""
            nonlocal run
            run += rows
            if not states:
                return
            (first, total), (done, _) = states[0], states[-1]
            if not planned.passes:
                show("grading", done, total)
                return
            passes = run if planned.grows else planned.passes * first // max(total, 1) + run
            passes = planned.passes if done == total else min(passes, planned.passes - 1)
            cells = f"{done} of {counted(total, 'cell')}"
            show(f"grading, {cells}; forward passes", passes, planned.passes, kept=cells)

        with counting(tick):
            results = benchmark(planned.spec, output, runner=runner, advance=advance, command=command)
    return results, states[-1][0] - states[0][0]


def _cost(planned: Sized) -> str:
    """What is computed, in words."""
    minutes = planned.seconds / 60
    time = f"{planned.seconds:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    time = f"{minutes / 60:.1f} hours" if minutes > 100 else time
    images, passes = counted(planned.images, "image"), f"{planned.passes:,} forward passes"
    what = (
        f"what {images} lack of methods and variants: {passes}, about {time} on this machine"
        if planned.grows
        else f"{images}, {passes}, about {time} on this machine if nothing is done yet"
    )
    return f"{what} (measured on one image); stopped at any time, the same command goes on"


def _show(results: Results, output: str) -> None:
    """Show means, where everything is, what was amiss, and what to do next."""
    show_whole(_scores(results), keys=2 + (len(results.record.layers) > 1))
    record = results.record
    cells = len(record.cells)
    say(
        f"{counted(cells - len(results.missing), 'cell')} of {cells} finished, "
        f"{counted(len(record.images), 'image')}, {counted(len(results.table), 'row')} in {output}"
    )
    if skipped := record.skipped:
        say(f"left out {counted(len(skipped), 'image')}, named in run.json as skip", err=True)
    show_troubles({"": results})
    say(f"next: pellucid report {output}")


def show_troubles(runs: Mapping[str, Results]) -> None:
    """Say what was noticed of runs, of methods too, and which cells failed.

    The names of the runs begin each line, one name that is empty none; what is true of several is said once.
    """
    noticed: dict[str, list[str]] = {}
    for name, results in runs.items():
        for sentence in _noticed(results):
            noticed.setdefault(sentence, []).append(name)
    for sentence, names in noticed.items():
        show_noticed([sentence], f"{shortened(names, 3)}: " if any(names) else "")
    for name, results in runs.items():
        if results.failed:
            failed = counted(len(results.failed), "cell")
            say(f"{f'{name}: ' if name else ''}{failed} failed; the same command tries them again:", err=True)
            show_reasons([f"{cell}: {message}" for cell, message in results.failed.items()])


def _noticed(results: Results) -> list[str]:
    """What makes a run's maps say less than they seem to, of its models and of methods."""
    from ..findings.wording import results_notes

    told, several = results.record.noticed, len(results.record.noticed) > 1
    of_models = [f"{f'{model}: ' if several else ''}{one}" for model, some in told.items() for one in some]
    return of_models + results_notes(results)


def _scores(results: Results) -> Table:
    """The mean of each metric by method and variant, each at its own best layer, with its rank."""
    from ..findings.statistics import Statistics
    from ..findings.wording import at_layer
    from ..report.tables import known_text, rank_text

    statistics = Statistics.of(results)
    summary, metrics = statistics.best.summary, results.record.metrics
    several = len(results.record.layers) > 1
    layered = max(map(len, results.record.layers.values()), default=0) > 1
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for (model, variant, method, layer, metric), row in zip(
        summary.index, summary.to_dict("records"), strict=True
    ):
        key = (*([model] if several else []), method or "(the variant)", variant)
        rank = rank_text(row).strip("–")
        at = at_layer(layer) if layered and layer else ""
        parts = f"{row['mean']:.4g}", rank and f"({rank})", at, known_text(row)
        cells.setdefault(key, {})[metric] = " ".join(filter(None, parts)) if row["n"] else "–"
    heads = [f"{escape(text)} {'↑' if metric.higher_is_better else '↓'}" for text, metric in metrics.items()]
    where = ", each at its own best layer by that measure, which is named" if layered else ""
    known = next(filter(None, map(known_text, summary.to_dict("records"))), "")
    table = Table(
        *[*(["model"] if several else []), "method", "variant"],
        *(Column(head, justify="right") for head in heads),
        title=f"Means over {statistics.over}{where}; ↑ higher is better, ↓ lower is better",
        caption="(1) is a rank: 1 + how many methods of the same variant are surely better, told apart image by "
        "image. Methods that are beaten by equally many share one (=), even where their means differ."
        + (f" {known}: so many {statistics.over} have a value." if known else ""),
        title_justify="left",
        caption_justify="left",
    )
    for key, found in cells.items():
        table.add_row(*map(escape, key), *(escape(found.get(text, "")) for text in metrics))
    return table
