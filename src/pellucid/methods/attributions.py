"""``Attributions``: what a method hands out, by layer; in files and notebooks."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidData, InvalidParameter, shortened
from ..files import replace_file, sealed_tensors, unsealed_tensors

_FORMAT, _PARTS = "pellucid attributions 1", ("by_layer", "residuals", "prefixes")
_SHOWN = 4  # images


@dataclass(frozen=True)
class Estimate:
    """An attribution (n, ...) and, where the method promises completeness, what each should sum to (n,)."""

    attribution: Tensor
    expected: Tensor | None = None

    @cached_property
    def size(self) -> Tensor:
        """The sum of magnitudes of each (n,)."""
        size: Tensor = torch.linalg.vector_norm(self.attribution.flatten(1), ord=1, dim=1)
        return size

    @property
    def residual(self) -> Tensor:
        """By how much each misses its sum (n,)."""
        assert self.expected is not None
        return self.attribution.flatten(1).sum(1) - self.expected

    @classmethod
    def joined(cls, parts: Sequence[Estimate]) -> Estimate:
        """That of all parts' rows; without sums where one part has none."""
        expected = [part.expected for part in parts if part.expected is not None]
        sums = _joined(expected) if len(expected) == len(parts) else None
        return cls(_joined([part.attribution for part in parts]), sums)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass(frozen=True, repr=False, eq=False)
class Attributions(Mapping[str, Tensor]):
    """Attributions by layer, each (B, C, h, w), whatever the layer's own layout; (B, C) of a layer without places.

    ``targets`` (B,) are the explained classes, 0 for a function of the output or a difference of classes, which
    ``answer`` names. ``residuals`` holds, for the layers
    of a method that promises completeness, sum(attribution) - (f(x) - f(x')) per image (B,), in logits; prefix
    tokens are in the sum. Where a variant changes what propagates back, no sum is promised: ``unchecked`` then
    says why there are no residuals. ``prefixes`` holds the attributions (B, C, tokens) of tokens that have no
    place, such as a class token. Without ``has_sign`` what is positive does not speak for the class, nor what is
    negative against it, as under Guided Backprop.
    """

    by_layer: dict[str, Tensor]
    targets: Tensor
    residuals: dict[str, Tensor] = field(default_factory=dict)
    prefixes: dict[str, Tensor] = field(default_factory=dict)
    answer: str = ""
    unchecked: str = ""
    has_sign: bool = True

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self.by_layer:
            raise KeyError(f"no layer {layer!r} was explained; there are {shortened(self.by_layer)}")
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer}: {tuple(value.shape)}" for layer, value in self.items())
        explained = f"target {self.answer!r}" if self.answer else f"targets {self.targets.tolist()}"
        return f"Attributions({shapes}; {explained})"

    def _repr_html_(self) -> str:
        """Shapes, and a picture of the first images' maps, in a notebook."""
        shown = {layer: value[:_SHOWN] for layer, value in self.items() if value.dim() == 4}
        few = replace(self, by_layer=dict(list(shown.items())[: 2 * _SHOWN]), targets=self.targets[:_SHOWN])
        text = f"<p><code>{escape(repr(self))}</code></p>"
        if not few:
            return text
        picture = b64encode(few.plot().file("png")).decode()
        style = f"max-width: 100%; width: {8 + 9 * len(few)}em"
        return f'{text}<img alt="" style="{style}" src="data:image/png;base64,{picture}">'

    def plot(self, images: Any = None, **settings: Any) -> Any:
        """Draw the maps beside the images (B, C, H, W), as ``pellucid.show(attributions, images)`` does."""
        import pellucid  # drawing lies above explaining: it is asked as a user would

        return pellucid.show(self, images, **settings)

    def to_numpy(self) -> dict[str, np.ndarray]:
        """The attributions by layer as NumPy arrays, each (B, C, h, w); bfloat16 becomes float32."""
        halves = {layer: value.detach().cpu() for layer, value in self.items()}
        return {
            layer: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            for layer, value in halves.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all to a .safetensors file with a checksum, in one move.

        Raises:
            InvalidParameter: a path of another ending.
            OutputNotWritable: the folder is missing or cannot be written.
        """
        if Path(path).suffix != ".safetensors":
            raise InvalidParameter(
                f"{os.fspath(path)} does not end in .safetensors; to_numpy() gives arrays for numpy.savez"
            )
        parts = {name: getattr(self, name) for name in _PARTS}
        tensors = {f"{part}/{layer}": value for part, layers in parts.items() for layer, value in layers.items()}
        facts: dict[str, Any] = {"format": _FORMAT, "layers": list(self)}
        facts |= {"answer": self.answer, "unchecked": self.unchecked, "has_sign": self.has_sign}
        replace_file(Path(path), sealed_tensors({"targets": self.targets} | tensors, facts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attributions:
        """Read what ``save`` wrote, on the CPU.

        Raises:
            InvalidData: no such file; damaged, or of another kind.
        """
        try:
            tensors, facts = unsealed_tensors(Path(path))
            if facts.get("format") != _FORMAT:
                raise ValueError("it holds something else")
            targets, order = tensors.pop("targets"), facts["layers"]
            found = {
                part: {layer: tensors[f"{part}/{layer}"] for layer in order if f"{part}/{layer}" in tensors}
                for part in _PARTS
            }
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidData(
                f"{os.fspath(path)} cannot be read as attributions: {error}; give a file of Attributions.save "
                "(safetensors.torch.load_file reads the numbers of pellucid explain, a tensor for each name)"
            ) from error
        answer, unchecked = (str(facts.get(name, "")) for name in ("answer", "unchecked"))
        has_sign = facts.get("has_sign", True) is not False
        return cls(targets=targets, **found, answer=answer, unchecked=unchecked, has_sign=has_sign)
