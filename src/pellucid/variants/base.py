"""Variants of a model: how its strided convolutions treat the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from ..errors import UnknownName
from ..rules.base import Rule
from ..rules.conv import SmoothedDownsampling, Where


@dataclass(frozen=True)
class Variant:
    """A model under ``rules``, whether it is explained or scored.

    ``name`` is what tables call it. A ``bound`` variant fits one model's own weights, and no copy of the model
    with other weights.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    bound: bool = False


AnyVariant = str | Rule | Variant  # what callers may give

ORIGINAL = Variant("original")
BACKWARD = Variant("backward", (SmoothedDownsampling("backward"),))
FORWARD = Variant("forward", (SmoothedDownsampling("forward"),))
# The network's first convolution, too, which the paper leaves as it is: what prints the lattice at the input.
WITH_FIRST = tuple(
    Variant(f"{where}_with_first", (SmoothedDownsampling(where, include_first=True),)) for where in get_args(Where)
)
VARIANTS: Mapping[str, Variant] = {one.name: one for one in (ORIGINAL, BACKWARD, FORWARD, *WITH_FIRST)}


def as_variant(given: AnyVariant) -> Variant:
    """A variant by its name, or of a single rule; a variant as it is.

    Raises:
        UnknownName: no such variant.
    """
    if isinstance(given, Variant):
        return given
    if isinstance(given, Rule):
        return Variant(str(given), (given,))
    if not isinstance(given, str) or given not in VARIANTS:
        raise UnknownName("variant", given, VARIANTS)
    return VARIANTS[given]
