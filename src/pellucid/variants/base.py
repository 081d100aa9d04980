"""Variants of a model: how its strided convolutions treat the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UnknownName
from ..rules.base import Rule
from ..rules.conv import SmoothedDownsampling


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
VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in (ORIGINAL, BACKWARD, FORWARD)}


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
