"""The command line: explain, list, train, demo.

Torch is imported inside the commands, so that a usage error or a help text does not wait for it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from typer.core import TyperGroup

from .errors import (
    CompletenessWarning,
    EmptyMapWarning,
    InvalidData,
    InvalidImage,
    InvalidLayer,
    InvalidParameter,
    InvalidTarget,
    OutputNotWritable,
    PellucidError,
    shortened,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .data.sources import Sample
    from .methods.base import Attributions, Method
    from .models.zoo import LoadedModel
    from .report.figures import Map
    from .report.figures import Photo as FigurePhoto
    from .report.html import Picture, Section

ROWS, COLUMNS = 6, 7  # of the largest figure
CHUNK = 24  # photos of one size that are explained together
DEMO_LAYERS = ("input", "layer1.1", "layer2.1", "layer3.0")
DEMO_METHODS = (
    "gradient",
    "smoothgrad",
    "integrated(gradient, steps=16)",
    "guided_backprop",
    "rectgrad(q=90)",
    "deeplift",
    "lrp_epsilon",
    "gradcam",
)
DEMO_COUNT, DEMO_SHOWN = 8, 3
COMMAND = "pellucid.command"

T = TypeVar("T")
Place = tuple[str, int, Callable[[], "Sample"]]
"""Where a photo is: its source, its place there, and what reads it."""


class Commands(TyperGroup):
    """The commands, with errors of the user's as one line and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed, for run.json."""
        ctx.meta[COMMAND] = shlex.join(["pellucid", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that is not the user's keeps its traceback."""
        try:
            return super().invoke(ctx)
        except PellucidError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
listing = typer.Typer(no_args_is_help=True, help="Show the names of methods, layers, models or variants.")
training = typer.Typer(no_args_is_help=True, help="Train a network of this package.")
app.add_typer(listing, name="list")
app.add_typer(training, name="train")


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pellucid {version('pellucid')}")
        raise typer.Exit


@app.callback()
def _app(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Clear saliency maps of CNN image classifiers, at every layer.

    Start with `pellucid demo`, which needs neither data nor a network connection.
    """


# What the user asked for.


@dataclass(frozen=True)
class Request:
    """A checked call of ``explain``; ``methods`` are by the name their files get, ``texts`` as they were typed."""

    photos: Sequence[str]
    model: str
    weights: str | None
    methods: Mapping[str, Method]
    texts: Mapping[str, str]
    layers: Sequence[str] | None
    variants: Sequence[str]
    target: str | int
    heatmap: Mapping[str, Any]
    seed: int
    max_batch: int
    device: str
    limit: int | None
    label_column: str | None
    overlay: bool
    keep_attributions: bool
    command: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every method with every variant."""
        return [(method, variant) for variant in self.variants for method in self.methods]


@app.command()
def explain(
    ctx: typer.Context,
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO...", help="Image files, folders, .parquet tables, or `shapes:COUNT`."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    model: Annotated[
        str, typer.Option(help="A name of `pellucid list models`, `timm:NAME` or `path/to/file.py:factory`.")
    ] = "resnet50",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .safetensors or .pth file, or `DEFAULT` to download.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Names or text forms, comma-separated; may be repeated.", show_default="gradient"),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="`all`, names or globs, comma-separated; by default each method's own choice."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="`original`, `backward` or `forward`; may be repeated.", show_default="original"),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="auto|label|INT", help="The class to explain; `auto` is the highest logit.")
    ] = "auto",
    channels: Annotated[
        str, typer.Option(help="How channels become one map: mean, sum, abs_sum, abs_max, positive_sum.")
    ] = "mean",
    upsampling: Annotated[str, typer.Option(help="nearest or bilinear.")] = "nearest",
    clip: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Percentiles at which maps are clipped, as 0.5,99.5.")
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the maps over the grey photo.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many photos of each folder or table.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="A table's column of labels, for `--target label`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    max_batch: Annotated[int, typer.Option(help="No forward pass sees more images.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    attributions: Annotated[
        bool, typer.Option(help="Whether to write the raw attributions, which are large.")
    ] = True,
) -> None:
    """Explain photos: pictures, raw attributions, and all that is needed to make them again.

    Examples:

    `pellucid explain cat.jpg --weights DEFAULT -o out`

    `pellucid explain photos/ --model resnet18 --weights resnet18.safetensors
    --methods "gradient,smoothed(gradient, samples=50)" --layers "layer1.*,layer2.*"
    --variant original --variant backward -o out`
    """
    texts = [text for given in methods or ["gradient"] for text in split_outside_brackets(given)]
    by_name = named_methods(texts)
    request = Request(
        photos=photos,
        model=model,
        weights=weights,
        methods=by_name,
        texts=dict(zip(by_name, dict.fromkeys(texts), strict=True)),
        layers=None if layers is None else [name for given in layers for name in split_outside_brackets(given)],
        variants=checked_variants(variant or ["original"]),
        target=checked_target(target),
        heatmap=checked_heatmap(channels, upsampling, clip),
        seed=seed,
        max_batch=checked_count("max_batch", max_batch),
        device=chosen_device(device),
        limit=limit,
        label_column=label_column,
        overlay=overlay,
        keep_attributions=attributions,
        command=ctx.meta[COMMAND],
    )
    with staged(output) as folder:
        run = Run.of(request, folder)
        run.explain_all()
        run.write_facts()
    run.say_what_was_done(output)
    if run.left_out:
        raise typer.Exit(1)


def split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that stand in no bracket: ``a,b(c, d)`` is ``a`` and ``b(c, d)``."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def named_methods(texts: Iterable[str]) -> dict[str, Method]:
    """Build each method once, by a name that a file may have."""
    from .catalog import method

    methods: dict[str, Method] = {}
    for text in dict.fromkeys(texts):
        built = method(text)
        methods[unused(file_name(text), methods)] = built
    if not methods:
        raise InvalidParameter("--methods names no method; see: pellucid list methods")
    return methods


def file_name(text: str) -> str:
    """Make a text fit for a file's name: letters, digits and ``._=-``."""
    return re.sub(r"[^\w.=]+", "-", text).strip("-.") or "unnamed"


def unused(name: str, taken: Iterable[str]) -> str:
    """Number a name that is taken already; file systems may not tell capitals apart."""
    known = {other.lower() for other in taken}
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(known) + 2))
    return next(candidate for candidate in names if candidate.lower() not in known)


def checked_variants(given: Sequence[str]) -> list[str]:
    """Variants that exist, each once."""
    from .rules.variants import variant_rules

    variants = list(dict.fromkeys(name for text in given for name in split_outside_brackets(text)))
    for name in variants:
        variant_rules(name)
    return variants


def checked_target(text: str) -> str | int:
    """``auto``, ``label`` or a class number."""
    if text in ("auto", "label"):
        return text
    if text.isdecimal():
        return int(text)
    raise InvalidTarget(f"--target {text}: give auto, label or a class number from 0")


def checked_heatmap(channels: str, upsampling: str, clip: str | None) -> dict[str, Any]:
    """Settings that ``heatmap`` takes, tried on one pixel."""
    import torch

    from .heatmap import heatmap

    bounds = None
    if clip is not None:
        try:
            low, high = map(float, clip.split(","))
        except ValueError as error:
            raise InvalidParameter(f"--clip {clip}: give two percentiles, such as 0.5,99.5") from error
        bounds = (low, high)
    settings: dict[str, Any] = {"channels": channels, "upsampling": upsampling, "clip": bounds}
    heatmap(torch.zeros(1, 1, 1, 1), **settings)
    return settings


def checked_count(name: str, value: int) -> int:
    """A whole number above 0."""
    from .errors import require_count

    require_count(name, value)
    return value


def chosen_device(name: str) -> str:
    """Take the GPU for ``auto`` if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise InvalidParameter(f"--device {name}: give auto, cpu or cuda")
    return name


# Where it is written.


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A draft folder whose content takes its place in ``folder`` if all goes well, and else is removed.

    An earlier run in ``folder`` is replaced, other files beside it are kept.

    Raises:
        OutputNotWritable: it is a file, holds no earlier run but other files, or cannot be written.
    """
    earlier = files_of_earlier_run(folder)
    # Beside a new folder, but inside one that exists: it may be a mount point, which cannot be moved.
    beside = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not beside.is_dir():
        raise OutputNotWritable(f"cannot write to {folder}: {beside.name} is a file; choose another folder")
    draft = beside / f".pellucid-{os.getpid()}"
    with writable(folder):
        draft.mkdir()
    try:
        yield draft
        with writable(folder):
            take_place(draft, folder, earlier)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say which folder could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputNotWritable(
            f"cannot write to {folder}: {error.strerror}; choose a folder you may write to"
        ) from error


def files_of_earlier_run(folder: Path) -> list[str]:
    """The names that an earlier run left in ``folder``, by its run.json; a folder of anything else is refused."""
    if not folder.is_dir():
        if folder.exists():
            raise OutputNotWritable(f"{folder} is a file; choose a folder")
        return []
    with writable(folder):
        anything = any(folder.iterdir())
    if not anything:
        return []
    try:
        facts = json.loads((folder / "run.json").read_text())
        return [Path(name).name for name in facts["files"] if facts["made_by"] == "pellucid"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputNotWritable(
            f"{folder} holds files but no run of pellucid (no run.json); choose another folder or empty it"
        ) from error


def take_place(draft: Path, folder: Path, earlier: Iterable[str]) -> None:
    """Move a finished draft to where it belongs."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, folder)
        return
    # run.json goes first and comes last: a folder that has it is complete.
    for name in ["run.json", *earlier]:
        old = folder / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for new in sorted(draft.iterdir(), key=lambda path: path.name == "run.json"):
        os.replace(new, folder / new.name)


# The photos.


@dataclass
class Photo:
    """A photo on its way: where it is from, what the model sees, and what was found."""

    key: str
    spec: str
    index: int
    sample: Sample
    pixels: Tensor
    picture: Any
    facts: dict[str, Any] = field(default_factory=dict)
    maps: dict[tuple[str, str, str], Map] = field(default_factory=dict)


def opened(request: Request) -> tuple[list[Place], list[str]]:
    """What can be read, each as its source, place there and a reader; and what was wrong with the rest."""
    from .data.sources import open_images

    readers: list[Place] = []
    wrong = []
    for spec in dict.fromkeys(request.photos):
        try:
            source = open_images(spec, request.label_column)[: request.limit]
        except PellucidError as error:
            wrong.append(str(error))
            continue
        readers += [(spec, index, partial(source.__getitem__, index)) for index in range(len(source))]
    return readers, wrong


def file_hash(spec: str, name: str) -> dict[str, str]:
    """The SHA-256 of a photo's file, or nothing for a row of a table or a drawn image."""
    path = Path(spec, name) if Path(spec).is_dir() else Path(spec)
    if not path.is_file() or path.suffix == ".parquet":
        return {}
    return {"sha256": sha256(path.read_bytes()).hexdigest()}


def pages(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Split evenly into as few parts as can be of at most ``most``: 13 by 7 is 7 and 6, 8 by 7 is 4 and 4."""
    count = -(-len(items) // most)
    bounds = [round(part * len(items) / count) for part in range(count + 1)] if count else []
    return [items[start:end] for start, end in pairwise(bounds)]


# The run.


@dataclass
class Run:
    """One call of ``explain``: photos come in, pictures and facts go out to a draft folder."""

    request: Request
    loaded: LoadedModel
    folder: Path
    layers: Sequence[str]  # explained, in order of appearance
    photos: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    attributions: dict[str, Tensor] = field(default_factory=dict)
    incomplete: dict[tuple[type[Warning], str], list[str]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    many: bool = False  # photos than fit one figure
    probed: bool = False

    @classmethod
    def of(cls, request: Request, folder: Path) -> Run:
        """Load the model and check that it has the layers."""
        from .layers import require_explainable, select_layers
        from .models.zoo import load_model

        loaded = load_model(request.model, request.weights, device=request.device)
        require_explainable(loaded.model)
        if request.layers is not None:
            select_layers(loaded.model, request.layers)
        return cls(request, loaded, folder, [])

    def explain_all(self) -> None:
        """Explain every photo that can be read."""
        readers, self.left_out = opened(self.request)
        self.many = len(readers) > ROWS
        total = len(readers) * len(self.request.pairs)
        with progress() as bar:
            task = bar.add_task("explaining", total=total)
            for chunk in self.chunks(readers):
                self.explain_chunk(chunk, lambda done: bar.advance(task, done))
        if not self.photos:
            count = len(self.left_out)
            only = f"none of {count} photos can be read; the first: " if count > 1 else ""
            raise InvalidImage(only + self.left_out[0] if count else "no photos were given")

    def chunks(self, readers: Iterable[Place]) -> Iterator[list[Photo]]:
        """Photos of one size together, as they are read; what cannot be read is noted."""
        waiting: dict[tuple[int, ...], list[Photo]] = {}
        for spec, index, read in readers:
            try:
                photo = self.prepared(spec, index, read())
            except (InvalidImage, InvalidData) as error:
                self.left_out.append(str(error))
                continue
            alike = waiting.setdefault(tuple(photo.pixels.shape), [])
            alike.append(photo)
            if len(alike) == CHUNK:
                yield waiting.pop(tuple(photo.pixels.shape))
        yield from waiting.values()

    def prepared(self, spec: str, index: int, sample: Sample) -> Photo:
        """A photo as the model sees it."""
        import numpy as np

        preprocess = self.loaded.preprocess
        pixels = preprocess(sample.image)
        if not bool(pixels.isfinite().all()):
            raise InvalidImage(f"{sample.name}: the model's preprocess gave NaN or infinite values")
        if self.request.target == "label" and sample.label is None:
            raise InvalidData(f"{sample.name} has no label to explain; name its column with --label-column")
        key = unused(file_name(str(Path(sample.name).with_suffix(""))), self.keys)
        self.keys.append(key)
        picture = np.asarray(preprocess.display(sample.image).convert("RGB"))
        facts = {"key": key, "source": spec, "index": index, "name": sample.name} | file_hash(spec, sample.name)
        return Photo(key, spec, index, sample, pixels, picture, facts)

    def explain_chunk(self, chunk: list[Photo], advance: Callable[[int], None]) -> None:
        """Classify, explain and draw photos of one size."""
        import torch

        images = torch.stack([photo.pixels for photo in chunk]).to(self.request.device)
        targets = self.classify(chunk, images)
        if not self.probed:
            self.probe(images[:1], targets[:1])
            self.probed = True
        for name, variant in self.request.pairs:
            found = self.attribute(self.request.methods[name], name, variant, images, targets)
            self.keep(chunk, name, variant, found)
            advance(len(chunk))
        self.draw(chunk)
        self.photos += [photo.facts for photo in chunk]

    def classify(self, chunk: list[Photo], images: Tensor) -> Tensor:
        """The classes to explain, from one forward pass."""
        import torch

        from .methods.network import not_finite, require_in_range, require_logits

        with torch.inference_mode():
            # Clones: the model's first operation may be in place.
            parts = images.split(self.request.max_batch)
            logits = torch.cat([require_logits(self.loaded.model(part.clone())) for part in parts])
        if not bool(logits.isfinite().all()):
            raise not_finite(self.loaded.model, "a logit")
        predicted = logits.argmax(1)
        target = self.request.target
        labels = [photo.sample.label for photo in chunk] if target == "label" else target
        targets = (
            predicted if target == "auto" else torch.as_tensor(labels, device=images.device).expand(len(chunk))
        )
        require_in_range(targets, logits.shape[1])
        shares = logits.softmax(1)
        for row, photo in enumerate(chunk):
            for what, number in (("target", int(targets[row])), ("predicted", int(predicted[row]))):
                photo.facts[what] = {
                    "class": number,
                    "name": self.class_name(number),
                    "probability": float(shares[row, number]),
                }
        return targets.clone()

    def class_name(self, number: int) -> str:
        """A class's name, or its number where names are unknown."""
        return self.loaded.classes[number] if self.loaded.classes else f"class {number}"

    def probe(self, image: Tensor, target: Tensor) -> None:
        """Run each method once on one image without its samplings, so that what cannot work fails at once."""
        for name, variant in self.request.pairs:
            method = replace(self.request.methods[name], samplings=())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", (CompletenessWarning))
                warnings.simplefilter("ignore", (EmptyMapWarning))
                found = self.call(method, variant, image, target)
            for layer, attribution in found.items():
                if attribution.dim() != 4:
                    raise InvalidLayer(
                        f"layer {layer!r} gives {name} the shape {tuple(attribution.shape)}, which is no map; "
                        "name layers whose output has a height and a width"
                    )

    def attribute(self, method: Method, name: str, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method, and note its warnings for the end."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self.call(method, variant, images, targets)
        for warning in caught:
            if not issubclass(warning.category, CompletenessWarning | EmptyMapWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
                continue
            layer = str(warning.message).split("'")[1]
            layers = self.incomplete.setdefault((warning.category, self.request.texts[name]), [])
            layers += [layer] if layer not in layers else []
        return found

    def call(self, method: Method, variant: str, images: Tensor, targets: Tensor) -> Attributions:
        """Call a method as the request says."""
        request = self.request
        return method(
            self.loaded.model, images, targets, request.layers,
            variant=variant, seed=request.seed, max_batch=request.max_batch,
        )  # fmt: skip

    def keep(self, chunk: list[Photo], name: str, variant: str, found: Attributions) -> None:
        """Write each photo's maps, and keep what figures and facts need."""
        from .heatmap import heatmap

        self.layers = list(dict.fromkeys([*self.layers, *found]))
        for layer, attribution in found.items():
            size = (chunk[0].picture.shape[0], chunk[0].picture.shape[1])
            maps = heatmap(attribution, size, **self.request.heatmap).float().cpu().numpy()
            for row, photo in enumerate(chunk):
                photo.maps[name, layer, variant] = maps[row]
                self.write_map(photo.key, name, layer, variant, maps[row])
                if self.request.keep_attributions:
                    key = f"{photo.key}/{name}/{layer}/{variant}"
                    self.attributions[key] = attribution[row].detach().float().cpu().clone()
                if layer in found.residuals:
                    residuals = photo.facts.setdefault("residuals", {})
                    residuals[f"{name}/{layer}/{variant}"] = float(found.residuals[layer][row])

    def write_map(self, photo: str, method: str, layer: str, variant: str, values: Map) -> None:
        """Write one map as maps/PHOTO/METHOD/LAYER-VARIANT.png."""
        from .report.figures import map_png

        folder = self.folder / "maps" / photo / method
        with writable(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        map_png(values, folder / f"{layer}-{variant}.png")

    def draw(self, chunk: list[Photo]) -> None:
        """Draw images x methods at each layer, and variants x layers of each image and method."""
        places = list(dict.fromkeys((layer, variant) for photo in chunk for _, layer, variant in photo.maps))
        alone = len(self.request.methods) == 1 and len(chunk) == 1
        if self.request.layers is None:
            for variant in self.request.variants:
                self.draw_methods(chunk, None, variant)
        elif not (alone and len(places) > 1):
            for layer, variant in places:
                self.draw_methods(chunk, layer, variant)
        several_layers = self.request.layers is not None and len(self.layers) > 1
        if several_layers or len(self.request.variants) > 1:
            for photo in chunk:
                for name in self.request.methods:
                    self.draw_layers(photo, name)

    def draw_methods(self, chunk: list[Photo], layer: str | None, variant: str) -> None:
        """Images x methods at one layer; None stands for the layer that each method chose."""
        texts = self.request.texts
        columns = [(name, at) for name, at, of in chunk[0].maps if of == variant and layer in (None, at)]
        place = " at their own layers" if layer is None else f" at {layer}"
        for number, (photos, part) in enumerate(
            ((photos, part) for photos in pages(chunk, ROWS) for part in pages(columns, COLUMNS)),
            start=len(self.photos) // ROWS,
        ):
            titles = [f"{texts[name]}\n({at})" if layer is None else texts[name] for name, at in part]
            cells = [[photo.maps[name, at, variant] for name, at in part] for photo in photos]
            page = f"-{number + 1}" if self.many or len(columns) > COLUMNS else ""
            self.figure(
                f"figure-methods-{layer or 'own'}-{variant}{page}",
                cells, titles, [], photos, f"{self.request.model}{place}, {variant}",
            )  # fmt: skip

    def draw_layers(self, photo: Photo, name: str) -> None:
        """Variants x layers of one image and method."""
        layers = [layer for layer in self.layers if (name, layer, self.request.variants[0]) in photo.maps]
        parts = pages(layers, COLUMNS)
        for number, part in enumerate(parts, start=1):
            cells = [[photo.maps.get((name, layer, of)) for layer in part] for of in self.request.variants]
            self.figure(
                f"figure-layers-{photo.key}-{name}" + (f"-{number}" if len(parts) > 1 else ""),
                cells, part, self.request.variants, [photo], f"{self.request.model}, {self.request.texts[name]}",
            )  # fmt: skip

    def figure(
        self,
        name: str,
        cells: Sequence[Sequence[Map | None]],
        columns: Sequence[str],
        rows: Sequence[str],
        photos: Sequence[Photo],
        title: str,
    ) -> None:
        """Write one figure as .png and .svg."""
        from .report import figures

        shown = [figures.Photo(photo.picture, caption(photo.facts), photo.sample.name) for photo in photos]
        drawn = figures.grid(cells, columns, rows, shown, title, overlay=self.request.overlay)
        for suffix in (".png", ".svg"):
            figures.save(drawn, self.folder / f"{name}{suffix}")

    def write_facts(self) -> None:
        """Write the raw attributions and run.json."""
        import safetensors.torch

        with writable(self.folder):
            if self.attributions:
                safetensors.torch.save_file(self.attributions, self.folder / "attributions.safetensors")
            files = sorted(path.name for path in self.folder.iterdir())
            (self.folder / "run.json").write_text(json.dumps(self.facts() | {"files": files}, indent=2) + "\n")

    def facts(self) -> dict[str, Any]:
        """Everything that is needed to make the run again."""
        request, loaded = self.request, self.loaded
        return origin(request.command) | {
            "python": python_call(request, self.photos),
            "device": request.device,
            "seed": request.seed,
            "max_batch": request.max_batch,
            "model": {"name": loaded.name} | weights_facts(loaded) | {"preprocess": loaded.preprocess.as_dict()},
            "methods": {
                name: {"text": request.texts[name], "parameters": described(method)}
                for name, method in request.methods.items()
            },
            "layers": list(self.layers),
            "variants": list(request.variants),
            "heatmap": dict(request.heatmap),
            "photos": self.photos,
            "left_out": self.left_out,
        }

    def say_what_was_done(self, output: Path) -> None:
        """Show the photos' classes, where everything is, and what was amiss."""
        table = Table("photo", "explained class", Column("probability", justify="right"), box=None, pad_edge=False)
        for facts in self.photos[:20]:
            target = facts["target"]
            table.add_row(escape(facts["name"]), escape(target["name"]), percent(target["probability"]))
        Console().print(table)
        pictures = sorted(output.glob("figure-*.png"))
        typer.echo(
            f"{counted(len(self.photos), 'photo')} explained; {counted(len(pictures), 'figure')} in {output}"
        )
        if self.loaded.weights == "random" and ".py:" not in self.loaded.name:
            typer.echo(f"note: {self.loaded.name} has random weights; give --weights FILE or DEFAULT", err=True)
        for (category, text), layers in self.incomplete.items():
            typer.echo(f"note: {note(category, text, layers)}", err=True)
        if self.left_out:
            typer.echo(f"left out {counted(len(self.left_out), 'photo')}:", err=True)
            for message in self.left_out:
                typer.echo(f"  {message}", err=True)


def note(category: type[Warning], text: str, layers: Sequence[str]) -> str:
    """A warning that many calls gave, once and short."""
    where = f"at {shortened(layers, 3)}"
    if issubclass(category, EmptyMapWarning):
        return f"{text} is zero everywhere {where} for some photos; lower its threshold or choose another layer"
    return (
        f"{text} misses the sum it should have by more than 5 % {where} for some photos; "
        "take more steps, see residuals in run.json"
    )


def progress() -> Progress:
    """A progress bar on a terminal's standard error, which leaves nothing behind."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def caption(facts: Mapping[str, Any]) -> str:
    """The explained class and its probability, and the predicted one if it is another."""
    target, predicted = facts["target"], facts["predicted"]
    text = f"{target['name']} {percent(target['probability'])}"
    if predicted["class"] != target["class"]:
        text += f"\n(predicted: {predicted['name']} {percent(predicted['probability'])})"
    return text


def percent(share: float) -> str:
    """A share in [0, 1] as text, never rounded to a certainty."""
    return f"{min(100 * share, 99.9):.1f} %" if share > 0.0005 else "< 0.1 %"


def whole_percent(share: float) -> str:
    """A share in [0, 1] as text without decimals."""
    return f"{100 * share:.0f} %"


def counted(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Facts for run.json.


def origin(command: str) -> dict[str, Any]:
    """Who made a folder, and with what."""
    packages = ("pellucid", "torch", "torchvision", "numpy")
    versions = {"python": python_version()} | {package: version(package) for package in packages}
    return {"made_by": "pellucid", "command": command, "versions": versions}


def weights_facts(loaded: LoadedModel) -> dict[str, Any]:
    """The weights' name, and the SHA-256 of their file if there is one; random ones are of seed 0."""
    from .models.zoo import BUNDLED

    path = BUNDLED[loaded.name] if loaded.weights == "bundled" else Path(loaded.weights)
    if not path.is_file():
        return {"weights": loaded.weights}
    return {"weights": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}


def described(part: Any) -> Any:
    """A method, rule or sampling as plain values: its class and all parameters."""
    if is_dataclass(part) and not isinstance(part, type):
        values = {entry.name: described(getattr(part, entry.name)) for entry in fields(part) if entry.init}
        return {"class": type(part).__name__} | values
    if isinstance(part, tuple | list):
        return [described(value) for value in part]
    if part is None or isinstance(part, bool | int | float | str):
        return part
    return type(part).__name__ if not vars(part) else {"class": type(part).__name__} | {
        key.lstrip("_"): described(value) for key, value in vars(part).items()
    }  # fmt: skip


def python_call(request: Request, photos: Sequence[Mapping[str, Any]]) -> str:
    """The same run from Python, as a program."""
    places = [(facts["source"], facts["index"]) for facts in photos]
    targets = [facts["target"]["class"] for facts in photos]
    return f"""\
import torch

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.models.zoo import load_model

model, preprocess = load_model({request.model!r}, weights={request.weights!r}, device={request.device!r})
photos = {places!r}
images = torch.stack([preprocess(open_images(source)[index].image) for source, index in photos])
targets = {targets!r}
attributions = {{
    (text, variant): pl.method(text)(
        model, images, targets, layers={request.layers!r},
        variant=variant, seed={request.seed!r}, max_batch={request.max_batch!r},
    )
    for text in {list(request.texts.values())!r}
    for variant in {list(request.variants)!r}
}}
"""


# Lists.


@listing.command("methods")
def list_methods() -> None:
    """Show the attribution methods."""
    from .catalog import COMBINATORS, METHODS

    table = Table("name", "what it is", "source", title="Methods", title_justify="left")
    for name, entry in METHODS.items():
        table.add_row(name, escape(entry.formula or first_sentence(entry.made_of)), escape(entry.source))
    print_whole(table)
    typer.echo(
        f"Wrap any of them: {' and '.join(f'{name}(...)' for name in COMBINATORS)}, "
        "as in smoothed(integrated(guided_backprop, steps=50), samples=15)."
    )


def first_sentence(described_one: Any) -> str:
    """What a docstring says first."""
    return (
        " ".join((described_one.__doc__ or "").split("\n\n")[0].split())
        .split(". ")[0]
        .rstrip(".")
        .replace("``", "")
        + "."
    )


def print_whole(table: Table) -> None:
    """Print a table; into a pipe as wide as it is, so that no name is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)


@listing.command("layers")
def list_layers(
    model: Annotated[str, typer.Option(help="As for `explain`.")] = "resnet50",
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="As for `explain`.")] = None,
) -> None:
    """Show what `--layers all` means for a model."""
    from .layers import INPUT, layer_names
    from .models.zoo import load_model

    network = load_model(model, weights).model
    table = Table("layer", "what it is", title=f"Layers of {escape(model)}", title_justify="left")
    for name in layer_names(network):
        table.add_row(name, "the image" if name == INPUT else type(network.get_submodule(name)).__name__)
    print_whole(table)
    typer.echo("Any other module may be named too, and globs such as 'layer*.0'.")


@listing.command("models")
def list_models() -> None:
    """Show the names that `--model` knows."""
    from .models.papers import PAPER_MODELS
    from .models.zoo import BUNDLED, model_names

    table = Table("name", "source", title="Models", title_justify="left")
    for name in model_names():
        source = PAPER_MODELS[name].source if name in PAPER_MODELS else "torchvision"
        table.add_row(name, escape(source) + (" (weights included)" if name in BUNDLED else ""))
    print_whole(table)
    typer.echo("Also timm:NAME, and path/to/file.py:factory for a network of your own.")


@listing.command("variants")
def list_variants() -> None:
    """Show how strided convolutions may treat the gradient."""
    from .catalog import VARIANTS

    table = Table("name", "strided convolutions", title="Variants", title_justify="left")
    meanings = {
        "original": "as the model has them",
        "backward": "the gradient is smoothed where it passes them; the prediction stays",
        "forward": "they run smoothed, so that the prediction may change a little",
    }
    for name in VARIANTS:
        table.add_row(name, meanings.get(name, ""))
    print_whole(table)


# Training.


@training.command("shapes")
def train_shapes_resnet(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
    ] = Path("shapes-resnet.safetensors"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 12,
    count: Annotated[int, typer.Option(min=16, help="Images to train with.")] = 8000,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
) -> None:
    """Train shapes-resnet on procedural images, as its included weights were.

    Example: `pellucid train shapes --epochs 3 --count 2000 -o mine.safetensors`
    """
    if output.suffix != ".safetensors":
        raise InvalidParameter(f"--output {output} does not end in .safetensors; weights are saved in that format")
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise OutputNotWritable(f"cannot write {output}; choose a folder that exists and that you may write to")
    from .data.shapes import ShapesDataset
    from .models.train import train_shapes

    with progress() as bar:
        task = bar.add_task("drawing images", total=None)

        def advance(done: int, steps: int, loss: float) -> None:
            bar.update(task, completed=done, total=steps, description=f"training, loss {loss:.3f}")

        drawn, held_out = ShapesDataset(count, seed=1), ShapesDataset(max(count // 8, 8), seed=2)
        report = train_shapes(drawn, held_out, output, epochs, seed, advance)
    typer.echo(f"{output}: accuracy {report.accuracy:.1%} on images of another seed, {report.seconds:.0f} s")


# The demonstration.


@app.command()
def demo(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "pellucid-demo"
    ),
) -> None:
    """Explain procedural images with the included network: methods x layers x variants, as one page.

    Needs no data and no network connection. Example: `pellucid demo -o demo`
    """
    with staged(output) as folder:
        Demonstration.of(folder).write(ctx.meta[COMMAND])
    typer.echo(f"open {output / 'report.html'}")


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

        from .catalog import VARIANTS, method
        from .data.sources import open_images
        from .models.zoo import load_model

        loaded = load_model("shapes-resnet")
        samples = list(open_images(f"shapes:{DEMO_COUNT}"))
        images = torch.stack([loaded.preprocess(sample.image) for sample in samples])
        labels = torch.tensor([sample.label for sample in samples])
        masks = torch.cat([pil_to_tensor(sample.mask) for sample in samples]) > 0
        with torch.inference_mode():
            shares = loaded.model(images).softmax(1).gather(1, labels[:, None])[:, 0]
        found = {}
        with progress() as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", CompletenessWarning)
            for text, variant in bar.track(
                [(text, of) for of in VARIANTS for text in DEMO_METHODS], description="explaining"
            ):
                found[text, variant] = method(text)(loaded.model, images, labels, DEMO_LAYERS, variant=variant)
        return cls(folder, loaded, samples, masks, found, shares)

    def write(self, command: str) -> None:
        """Write the figures, the page and run.json."""
        from .report import html

        sections = [self.variants(), self.agreement(), *self.methods()]
        html.save(
            html.page("Saliency maps, layer by layer", self.lead(), sections, self.footer()),
            self.folder / "report.html",
        )
        files = sorted(path.name for path in self.folder.iterdir())
        facts = origin(command) | {
            "model": {"name": self.loaded.name, "weights": self.loaded.weights},
            "methods": list(DEMO_METHODS),
            "layers": list(DEMO_LAYERS),
            "total_variation_drop": {layer: self.drop(layer, "backward") for layer in DEMO_LAYERS},
            "mass_inside_the_object": {text: self.inside(text, "layer2.1", "original") for text in DEMO_METHODS},
            "files": files,
        }
        (self.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")

    def lead(self) -> list[str]:
        """What to see, in two sentences."""
        first, second = self.drop("layer1.1", "backward"), self.drop("layer2.1", "backward")
        shares = [self.inside(text, "layer2.1", "original") for text in DEMO_METHODS]
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
        from .report.html import Bar, Section, Table

        changed = [variant for variant in self.names() if variant != "original"]
        rows: list[list[str | Bar]] = []
        for layer in DEMO_LAYERS:
            drops = [self.drop(layer, variant) for variant in changed]
            rows.append([layer, *(Bar(max(drop, 0), whole_percent(drop)) for drop in drops)])
        caption = f"How far the gradient's total variation falls below the original's, mean of {DEMO_COUNT} images"
        pictures = [
            self.figure(
                f"figure-variants-{sample.name}",
                [[self.map("gradient", of, layer, index) for layer in DEMO_LAYERS] for of in self.names()],
                DEMO_LAYERS, self.names(), [index], "gradient",
            )
            for index, sample in enumerate(self.samples[:DEMO_SHOWN])
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
        from .report.html import Bar, Section, Table

        rows: list[list[str | Bar]] = []
        for text in DEMO_METHODS:
            shares = [self.inside(text, layer, "original") for layer in DEMO_LAYERS]
            rows.append([text, *(Bar(share, whole_percent(share)) for share in shares)])
        rows.append(["a uniform map", *(Bar(self.area(), whole_percent(self.area())) for _ in DEMO_LAYERS)])
        caption = f"Share of the map's magnitude on the object, original network, mean of {DEMO_COUNT} images"
        text = (
            "Every image comes with the exact mask of its object. A map that knew nothing would put as much of "
            "its magnitude on the object as the object has area: the last row."
        )
        return Section("Where the maps lie", [text], [Table(["method", *DEMO_LAYERS], rows, caption)])

    def methods(self) -> list[Section]:
        """Methods x layers for each variant, and images x methods."""
        from .report.html import Section

        by_variant = [
            self.figure(
                f"figure-methods-{variant}",
                [[self.map(text, variant, layer, 0) for text in DEMO_METHODS] for layer in DEMO_LAYERS],
                DEMO_METHODS, DEMO_LAYERS, [0], f"{variant} variant",
            )
            for variant in self.names()
        ]  # fmt: skip
        shown = list(range(DEMO_SHOWN))
        by_image = self.figure(
            "figure-images",
            [[self.map(text, "backward", "layer2.1", index) for text in DEMO_METHODS] for index in shown],
            DEMO_METHODS, [], shown, "backward variant, layer2.1, over the photo", overlay=True,
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
        from .heatmap import heatmap

        maps: Map = heatmap(self.found[text, variant][layer])[index].numpy()
        return maps

    def drop(self, layer: str, variant: str) -> float:
        """Share of the gradient's total variation that a variant takes away, mean over images."""
        from .metrics.noise import total_variation

        before, after = (total_variation(self.found["gradient", of][layer]) for of in ("original", variant))
        return float((1 - after / before).mean())

    def inside(self, text: str, layer: str, variant: str) -> float:
        """Share of a map's magnitude on the object, mean over images."""
        from .heatmap import heatmap

        size = (self.masks.shape[1], self.masks.shape[2])
        magnitude = heatmap(self.found[text, variant][layer], size).abs()
        return float(((magnitude * self.masks).sum((1, 2)) / magnitude.sum((1, 2))).mean())

    def area(self) -> float:
        """Share of an image that its object covers, mean over images."""
        return float(self.masks.float().mean())

    def figure(
        self,
        name: str,
        cells: Sequence[Sequence[Map | None]],
        columns: Sequence[str],
        rows: Sequence[str],
        indices: Sequence[int],
        title: str,
        overlay: bool = False,
    ) -> Picture:
        """Write one figure as .png and .svg, and return it for the page."""
        from .report import figures, html

        photos = [self.photo(index) for index in indices]
        drawn = figures.grid(cells, columns, rows, photos, title, overlay)
        for suffix in (".png", ".svg"):
            figures.save(drawn, self.folder / f"{name}{suffix}")
        words = f"Heatmaps: {', '.join(columns)}" + (f" by {', '.join(rows)}" if rows else "")
        return html.Picture(self.folder / f"{name}.png", words)

    def photo(self, index: int) -> FigurePhoto:
        """An image as figures show it."""
        import numpy as np

        from .report.figures import Photo as FigurePhoto

        sample = self.samples[index]
        assert self.loaded.classes is not None
        assert sample.label is not None
        text = f"{self.loaded.classes[sample.label]} {percent(float(self.probabilities[index]))}"
        return FigurePhoto(np.asarray(sample.image), text, sample.name)

    def footer(self) -> str:
        """What made the page."""
        versions = origin("")["versions"]
        return (
            f"Network: {self.loaded.name}; {DEMO_COUNT} procedural images that it was not trained on. "
            "Made by pellucid demo; " + ", ".join(f"{name} {number}" for name, number in versions.items())
        )
