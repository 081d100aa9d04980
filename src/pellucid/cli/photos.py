"""The photos of a run: where each is read, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PellucidError

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.sources import Sample, Source
    from ..report.figures import Map
    from .request import Request


@dataclass(frozen=True)
class Place:
    """Where a photo is: its source as it was typed and as it was opened, and its place there."""

    spec: str
    source: Source
    index: int


@dataclass
class Photo:
    """A photo on its way: where it is from, what the model sees, and what was found."""

    key: str  # the name of its files
    sample: Sample
    pixels: Tensor
    picture: Any  # (H, W, 3) uint8, as figures show it
    facts: dict[str, Any]
    maps: dict[tuple[str, str, str], Map] = field(default_factory=dict)  # by method, layer and variant


def opened(request: Request) -> tuple[list[Place], list[str]]:
    """Every photo's place, and what was wrong with the sources that cannot be opened."""
    from ..data.sources import open_images

    places: list[Place] = []
    wrong = []
    for spec in dict.fromkeys(request.photos):
        try:
            source = open_images(spec, request.label_column)[: request.limit]
        except PellucidError as error:
            wrong.append(str(error))
            continue
        places += [Place(spec, source, index) for index in range(len(source))]
    return places, wrong


def file_hash(spec: str, name: str) -> dict[str, str]:
    """The SHA-256 of a photo's file, or nothing for a row of a table or a drawn image."""
    path = Path(spec, name) if Path(spec).is_dir() else Path(spec)
    if not path.is_file() or path.suffix == ".parquet":
        return {}
    return {"sha256": sha256(path.read_bytes()).hexdigest()}
