"""Numbers with as many digits as they are sure of."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def decimals(spread: float) -> int:
    """The decimals that show two digits of how unsure a number is, half of its interval: 0 to 6."""
    if not math.isfinite(spread) or spread <= 0:
        return 3
    # A spread of 0.023 has its first digit at the second decimal, so three decimals show two digits of it.
    return min(max(1 - math.floor(math.log10(spread)), 0), 6)


def shared_decimals(lows: Iterable[float], highs: Iterable[float]) -> int:
    """The decimals of numbers that stand together: those of their typical interval."""
    halves = [(high - low) / 2 for low, high in zip(lows, highs, strict=True) if high > low]
    return decimals(float(np.median(halves)) if halves else 0.0)


def number(value: float, places: int) -> str:
    """A number with so many decimals; tiny ones as a power of ten, none as a dash."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 0 < abs(value) < 1e-4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits} × 10{str(int(power)).translate(_SUPERSCRIPTS)}".replace("-", "−")
    text = f"{value:,.{places}f}"
    # What rounds to 0 has no sign.
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def interval_ends(low: float, high: float, places: int) -> tuple[str, str]:
    """The ends of an interval with so many decimals; more where one that is not 0 would be shown as 0.

    Whether an interval holds 0 is what readers look for.
    """
    return _end(low, places), _end(high, places)


def _end(value: float, places: int) -> str:
    if math.isfinite(value) and value and round(value, places) == 0:
        places = -math.floor(math.log10(abs(value)))
    return number(value, places)
