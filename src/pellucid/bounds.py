"""Bounds on what one input may cost, checked before work on it begins; an environment variable lifts each."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import InvalidParameter, PellucidError, brief


@dataclass(frozen=True)
class Bound:
    """So many ``units`` at ``most``, or as many as the environment ``variable`` says."""

    variable: str
    units: str
    most: int

    @property
    def value(self) -> int:
        """The bound that holds; ``InvalidParameter`` where the variable holds no whole number."""
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.most
        if not text.isdecimal() or len(text) > 18:
            raise InvalidParameter(f"{self.variable}={brief(text)}: give a whole number of {self.units}")
        return int(text)

    def require(
        self, amount: int, thing: str, error: type[PellucidError] = InvalidParameter, but: int = 0
    ) -> None:
        """Raise ``error`` if the amount is above the bound, and above one that is fine ``but`` for it."""
        if amount > max(self.value, but):
            raise error(
                f"{thing} {amount:,} {self.units}, and {self.value:,} are allowed; if it is to be trusted "
                f"and there is room, set the environment variable {self.variable}={amount}"
            )


PIXELS = Bound("PELLUCID_MAX_PIXELS", "pixels", 89_478_485)  # of one image, as Pillow's own bound
IMAGES = Bound("PELLUCID_MAX_IMAGES", "images", 5_000_000)  # of one source
IMAGE_BYTES = Bound("PELLUCID_MAX_IMAGE_BYTES", "bytes", 1 << 30)  # of one image's file, and unpacked
WEIGHT_BYTES = Bound("PELLUCID_MAX_WEIGHT_BYTES", "bytes", 1 << 28)  # of weights that unpacking makes much larger
GRADIENTS = Bound("PELLUCID_MAX_GRADIENTS", "gradients for each image", 100_000)  # of one method
