"""Options that several commands have, and how their texts become values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InvalidParameter, require_choice
from ..passes import MaxBatch, most_rows

if TYPE_CHECKING:
    from ..experiments.runners import Runner
    from ..pixels import ScaleEnds

COMMAND = "pellucid.command"  # where a command's context keeps what was typed

AS_FOR_EXPLAIN = typer.Option(help="As for `explain`.")
DEVICE = typer.Option(help="auto, cpu or cuda.")
FOLDER = typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
MAX_BATCH = typer.Option(help="No forward pass sees more images; `auto`: as many as fit into memory.")
WEIGHTS_FILE = typer.Option("--output", "-o", metavar="FILE", help="The .safetensors file to write.")
ModelOption = Annotated[str, AS_FOR_EXPLAIN]
RunnerOption = Annotated[
    str,
    typer.Option("--runner", metavar="inline|ray", help="In this process, or by a Ray cluster or all processors."),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="With `--runner ray`: the cluster's head; else one here."),
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus", min=1, help="With `--runner ray`: processors of each piece of work; 1.")
]
ScaleOption = Annotated[str | None, typer.Option(metavar="LOW,HIGH[,clip]", help="As for `explain`.")]
DisplayOption = Annotated[str | None, typer.Option(metavar="mean|BANDS", help="As for `explain`.")]
PreprocessOption = Annotated[str | None, typer.Option(metavar="whole|none|FILE", help="As for `explain`.")]
WeightsOption = Annotated[str | None, typer.Option(metavar="FILE", help="As for `explain`.")]


def parted(given: Iterable[str]) -> list[str]:
    """Split texts at the commas that stand in no bracket: ``a,b(c, d)`` is ``a`` and ``b(c, d)``."""
    parts = []
    for text in given:
        start = depth = 0
        for end, letter in enumerate(text):
            depth += (letter == "(") - (letter == ")")
            if letter == "," and depth == 0:
                parts.append(text[start:end])
                start = end + 1
        parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def checked_max_batch(text: str | int) -> MaxBatch:
    """The bound on the rows of a pass."""
    found: Any = int(text) if re.fullmatch(r"-?\d{1,18}", str(text)) else text
    most_rows(found)
    return found  # type: ignore[no-any-return]


def chosen_device(name: str) -> str:
    """Take the GPU for ``auto`` if there is one."""
    from ..models.zoo import device_named

    if name != "auto" and name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise InvalidParameter(f"--device {name}: give auto, cpu or cuda")
    return device_named(name)


def chosen_runner(name: str, address: str | None, cpus: int | None) -> Runner:
    """What computes cells."""
    from ..experiments.runners import inline

    require_choice("runner", name, Literal["inline", "ray"])
    if name == "inline":
        if address is not None or cpus is not None:
            raise InvalidParameter("--address and --cpus are for --runner ray; add it")
        return inline
    from ..experiments.on_ray import on_ray

    return on_ray(address, cpus or 1)


def checked_layouts(given: Iterable[str]) -> dict[str, str]:
    """Layouts by layer, from texts such as ``blocks.*=tokens(prefix=1)``."""
    from ..layouts import layout

    parts = [text.partition("=") for text in given]
    for name, equals, told in parts:
        if not equals or not name.strip():
            raise InvalidParameter(f"--layouts {name}{equals}{told}: write it as 'blocks.*=tokens(prefix=1)'")
        layout(told)
    return {name.strip(): told.strip() for name, _, told in parts}


def checked_bands(text: str | None) -> tuple[int, ...] | None:
    """The channels that pictures show, numbered from 1; none of them is the mean."""
    if text is None or text == "mean":
        return None if text is None else ()
    try:
        return tuple(int(band) for band in text.split(","))
    except ValueError as error:
        raise InvalidParameter(f"--display {text}: give mean, or one or three channels, such as 3,2,1") from error


def checked_pair(option: str, text: str, what: str) -> tuple[float, float]:
    """Two numbers, of an option that wants ``what``."""
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise InvalidParameter(f"{option} {text}: give {what}") from error
    return low, high


def checked_scale(text: str) -> ScaleEnds:
    """The values of black and white, and whether those beyond are clipped."""
    what = "the values of black and white, as 200,4200, or 200,4200,clip where those beyond are to be clipped"
    ends = text.removesuffix(",clip")
    low, high = checked_pair("--scale", ends, what)
    return (low, high) if ends == text else (low, high, "clip")
