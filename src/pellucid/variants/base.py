"""Variants of a model: how its strided convolutions treat the gradient."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..errors import UnknownName
from ..rules.base import Rule
from ..rules.conv import SmoothedDownsampling

DOWNSAMPLING: dict[str, tuple[Rule, ...]] = {
    "original": (),
    "backward": (SmoothedDownsampling("backward"),),
    "forward": (SmoothedDownsampling("forward"),),
}


@runtime_checkable
class HasRules(Protocol):
    """A variant of one's own: anything with the rules it puts on the model's operations."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules."""


Variant = str | Rule | HasRules


def is_bound(variant: Variant) -> bool:
    """Whether a variant says (``bound``) that it fits one model's own weights, and no copy with others."""
    return bool(getattr(variant, "bound", False))


def variant_rules(variant: Variant) -> tuple[Rule, ...]:
    """The rules of a variant: a name, a single rule, or an object with ``rules``.

    Raises:
        UnknownName: no such variant.
    """
    if isinstance(variant, Rule):
        return (variant,)
    if isinstance(variant, str):
        if variant not in DOWNSAMPLING:
            raise UnknownName("variant", variant, DOWNSAMPLING)
        return DOWNSAMPLING[variant]
    return variant.rules
