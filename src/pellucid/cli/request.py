"""What a call of ``explain`` asks for, and the checks of its options."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ..catalog import may_be_negative, variant_name
from ..data.sources import files_named
from ..errors import InvalidParameter
from ..experiments.spec import shown
from ..files import file_name, source_digest
from ..folders import files_below
from ..heatmap import SIGNED, heatmap
from ..methods.base import Method
from ..models.weights import facts_beside, is_file
from ..passes import MaxBatch
from ..pixels import ScaleEnds
from ..report.figures import Overlay
from ..variants.base import Variant
from .options import checked_pair, parted
from .output import origin, unused

_READ = 1 << 28  # bytes of a file up to which its content is compared
_LISTED = 1000  # photos up to which each is compared by name


@dataclass(frozen=True)
class Request:
    """A checked call of ``explain``.

    ``methods`` and ``variants`` are by the name their files get; ``texts`` and ``variant_texts`` are what was
    typed.
    """

    photos: Sequence[str]
    model: str
    weights: str | None
    methods: Mapping[str, Method]
    texts: Mapping[str, str]
    layers: Sequence[str] | None
    classes: Sequence[str] | None
    layouts: Mapping[str, str]
    variants: Mapping[str, Variant]
    variant_texts: Mapping[str, str]
    target: str
    heatmap: Mapping[str, Any]
    seed: int
    max_batch: MaxBatch
    device: str
    limit: int | None
    label_column: str | None
    scale: ScaleEnds | None
    bands: tuple[int, ...] | None
    preprocess: str | None
    overlay: Overlay | None
    pictures: Sequence[str] | None
    keep_attributions: bool | None
    title: str | None
    command: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every method with every variant."""
        return [(method, variant) for variant in self.variants for method in self.methods]

    @property
    def signed(self) -> bool:
        """Whether colors have two sides, by what the methods are: so all photos and figures have one scale."""
        return self.heatmap["channels"] in SIGNED and any(map(may_be_negative, self.texts.values()))

    @cached_property
    def asked(self) -> dict[str, Any]:
        """All that results depend on, settings and the states of files, as plain values.

        What a model loads by itself is told by the model alone (``require_same_model``).
        """
        # Files are compared by their content, which their states tell, and not by the way to them.
        settings = {entry.name: _called(getattr(self, entry.name)) for entry in fields(self)}
        for name in ("methods", "variants", "title", "command"):
            settings.pop(name)
        settings["photos"] = self.photos
        settings["methods"] = list(settings.pop("texts").values())
        settings["variants"] = list(settings.pop("variant_texts").values())
        named = [self.model, self.weights, *self.variant_texts.values(), self.target]
        named += [*self.texts.values(), *(self.classes or ()), self.preprocess]
        paths = [Path(re.sub(r"\.py:.*", ".py", text)) for text in named if text]
        paths += [facts_beside(Path(self.weights))] if self.weights and is_file(self.weights) else []
        photos = [path for place in self.photos for path in _files(Path(place))]
        photos += [path for table in photos if table.suffix == ".parquet" for path in files_named(table)]
        states = _states(paths)
        of_photos = {str(path): _state(path) for path in photos}
        states |= of_photos if len(photos) <= _LISTED else {"all photos": _digest(of_photos)}
        plain = json.loads(json.dumps(settings, default=repr))
        plain = {name: "not given" if value is None else value for name, value in plain.items()}
        return {**plain, **origin(""), "files": states}

    def digest(self) -> str:
        """16 hexadecimal digits that differ where anything differs that results depend on."""
        return _digest(self.asked)[:16]


def _files(place: Path) -> list[Path]:
    """A file, or all files of a folder but hidden ones and what Python keeps; nothing of what is neither."""
    try:
        if place.is_dir():
            return [path for path in files_below(place) if path.parent.name != "__pycache__"]
        return [place] if place.is_file() else []
    except OSError:  # a text that cannot be a path
        return []


def _called(value: Any) -> Any:
    """A setting with the files and folders in it called by their own names."""
    if isinstance(value, Mapping):
        return {key: _called(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_called(one) for one in value]
    if not isinstance(value, str):
        return value
    return Path(os.path.abspath(value)).name if os.path.exists(value) else shown(value)


def _states(places: Iterable[Path]) -> dict[str, str]:
    """The states of files, and of those in folders, by their names from the place on."""
    found: dict[str, str] = {}
    for place in places:
        above = Path(os.path.abspath(place)).parent
        for path in _files(place):
            name, state = Path(os.path.abspath(path)).relative_to(above).as_posix(), _state(path)
            while found.get(name, state) != state:  # another file of the same name
                name = f"{name} too"
            found[name] = state
    return found


def _state(path: Path) -> str:
    """What tells a file's content from another: its digest, but of a large one its size and date."""
    found = path.stat()
    return source_digest(path) if found.st_size <= _READ else _digest([found.st_size, found.st_mtime_ns])


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checked_pictures(text: str) -> list[str]:
    """The formats of pictures beside the page."""
    formats = [part.strip() for part in text.split(",") if part.strip()]
    for one in formats:
        if one not in ("png", "svg"):
            raise InvalidParameter(f"--pictures {text}: give png, svg or both, or --no-pictures")
    return formats


def method_names(texts: Iterable[str]) -> dict[str, str]:
    """The texts of methods, each once, by a name that a file may have."""
    names: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        names[unused(file_name(text), names)] = text
    return _some(names, "method")


def variant_names(given: Iterable[str]) -> dict[str, str]:
    """The texts of variants, each once, by what figures and files call them."""
    names: dict[str, str] = {}
    for text in dict.fromkeys(parted(given)):
        other = names.setdefault(variant_name(text), text)
        if other != text:
            raise InvalidParameter(f"--variant {other} and {text} would have one name; rename one of the files")
    return _some(names, "variant")


def _some(names: dict[str, str], what: str) -> dict[str, str]:
    """Names as they are; there must be one."""
    if not names:
        raise InvalidParameter(f"no {what} is named; see: pellucid list {what}s")
    return names


def checked_heatmap(channels: str, upsampling: str, clip: str | None) -> dict[str, Any]:
    """Settings that ``heatmap`` takes, tried on one pixel."""
    bounds = None if clip is None else checked_pair("--clip", clip, "two percentiles, such as 0.5,99.5")
    settings: dict[str, Any] = {"channels": channels, "upsampling": upsampling, "clip": bounds}
    heatmap(torch.zeros(1, 1, 1, 1), **settings)
    return settings
