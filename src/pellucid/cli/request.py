"""What a call of ``explain`` asks for, and the checks of its options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InvalidParameter, InvalidTarget
from ..files import file_name
from .output import unused

if TYPE_CHECKING:
    from ..methods.base import Method
    from ..variants.base import Variant


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
    variants: Mapping[str, Variant]
    variant_texts: Mapping[str, str]
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


def named(texts: Iterable[str]) -> dict[str, str]:
    """The texts of methods, each once, by a name that a file may have."""
    names: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        names[unused(file_name(text), names)] = text
    if not names:
        raise InvalidParameter("--methods names no method; see: pellucid list methods")
    return names


def named_variants(given: Iterable[str]) -> dict[str, str]:
    """The texts of variants, each once, by what figures and files call them."""
    from ..catalog import variant_name

    names: dict[str, str] = {}
    for text in dict.fromkeys(parted(given)):
        other = names.setdefault(variant_name(text), text)
        if other != text:
            raise InvalidParameter(f"--variant {other} and {text} would have one name; rename one of the files")
    return names


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

    from ..heatmap import heatmap

    bounds = None if clip is None else percentiles(clip)
    settings: dict[str, Any] = {"channels": channels, "upsampling": upsampling, "clip": bounds}
    heatmap(torch.zeros(1, 1, 1, 1), **settings)
    return settings


def percentiles(text: str) -> tuple[float, float]:
    """Two numbers with a comma between."""
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise InvalidParameter(f"--clip {text}: give two percentiles, such as 0.5,99.5") from error
    return low, high


def chosen_device(name: str) -> str:
    """Take the GPU for ``auto`` if there is one."""
    from ..models.zoo import place

    if name != "auto" and name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise InvalidParameter(f"--device {name}: give auto, cpu or cuda")
    return place(name)
