"""What the pages of a viewer are told: maps as numbers, photos, colors; and how a page is written."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..errors import brief
from ..report.album import LONGEST_SIDE
from ..report.figures import Map, Overlay, color_bar, colored, shrunk
from ..report.pages import render

_WHOLE = 32767  # the largest 16-bit number: what a map's largest magnitude becomes
_COLORS = 511  # odd, so that 0 has one of its own

Tick = Callable[[str], None]
"""Called with what is being done; raises where nobody waits for the answer any longer."""

Asked = Callable[..., Any]
"""Takes a ``Tick`` and what is asked, as plain values by name; gives plain values."""


class View(Protocol):
    """What a server shows: a page, and what it answers by name."""

    @property
    def answers(self) -> Mapping[str, Asked]:
        """What the page may ask."""

    def html(self) -> str:
        """The page."""


def map_told(values: Map) -> dict[str, Any]:
    """A map (h, w) as 16-bit numbers in base 64, at most 256 pixels a side; ``peak``: its largest magnitude."""
    values = np.nan_to_num(shrunk(values, max(values.shape) / LONGEST_SIDE))
    peak = float(np.abs(values).max()) or 1.0
    whole = np.rint(values / peak * _WHOLE).astype("<i2")
    height, width = whole.shape
    return {"h": height, "w": width, "peak": peak, "values": b64encode(whole.tobytes()).decode()}


def colors_told() -> dict[str, Any]:
    """The colors of maps from left to right, and the hues that lie over a photo, as red, green and blue."""
    bars = {name: colored(np.linspace(-1 if name else 0, 1, _COLORS), name) for name in (False, True)}
    over = {name: color_bar(name, Overlay(1.0))[0] for name in (False, True)}
    return {
        "whole": _WHOLE,
        "signed": bars[True].tolist(),
        "unsigned": bars[False].tolist(),
        "against": over[True][0].tolist(),
        "for": over[True][-1].tolist(),
        "strong": over[False][-1].tolist(),
    }


def explorer(told: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> str:
    """The page on which maps are looked at; with all its answers ``kept`` inside it asks nobody."""
    page = {"whole": True, "kept": kept, "colors": colors_told()} | dict(told)
    return render("view.html", page=page)


def asked_key(what: str, *asked: int) -> str:
    """By what the page finds an answer that it keeps."""
    return "/".join(map(str, (what, *asked)))


def named(names: Any, place: int, what: str) -> Any:
    """One of a list's entries by its place, which a page gives; ``IndexError`` where there is none."""
    if not 0 <= place < len(names):
        raise IndexError(f"there is no {what} {brief(place)}")
    return names[place]
