"""Ratings by eye: a line for each in a run's folder, and rows of its table; needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from ..errors import DamagedFileWarning
from ..files import writable
from ..folders import Folder
from .record import MetricRecord, RunRecord

RATINGS = "ratings.jsonl"  # the file of a run's folder
RATED = "rated_"  # how the metric begins that is a question's ratings; what follows is its computed stand-in
SCALE = ("very low", "low", "medium", "high", "very high")  # 1 to 5

_NIELSEN = "Nielsen et al., Performance Evaluation of Combination Methods, Table"
_ABOUT: dict[str, Any] = {
    "axis": "edges",
    "unit": "rating from 1 to 5",
    "higher_is_better": True,
    "ends": (1, 5),
}
QUESTIONS_OF_RATERS: Mapping[str, MetricRecord] = {
    f"{RATED}{name}": MetricRecord(name=f"{RATED}{name}", paper=f"{_NIELSEN} {table}", **_ABOUT)
    for name, table in (("visual_coherence", "I"), ("edge_differentiation", "II"))
}


class Rating(BaseModel):
    """What one rater answered about one map: ``value`` from 1, very low, to 5, very high."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rater: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]
    question: str
    model: str
    variant: str
    method: str
    layer: str
    image: str
    value: int

    @property
    def place(self) -> tuple[str, ...]:
        """What was rated, and how."""
        return self.question, self.model, self.variant, self.method, self.layer, self.image

    def is_of(self, record: RunRecord) -> bool:
        """Whether a run has the map and the question is known."""
        known = self.layer in record.layers.get(self.model, ()) and self.image in record.images
        return known and self.question in QUESTIONS_OF_RATERS and 1 <= self.value <= len(SCALE)

    def keep(self, folder: Path) -> None:
        """Write it at the end of a run's ratings, on its disk before this returns.

        A line that a crash cuts short is none of the next one's: each stands between two line breaks.
        """
        with writable(folder), (folder / RATINGS).open("ab", buffering=0) as file:
            file.write(b"\n" + self.model_dump_json().encode() + b"\n")


def read_ratings(folder: Folder, record: RunRecord) -> list[Rating]:
    """All ratings of a run's maps as they were given; where a rater rated a map again, the last one.

    Lines that cannot be read are left out with a ``DamagedFileWarning``.
    """
    found: dict[tuple[str, ...], Rating] = {}
    for number, line in enumerate((folder.read(RATINGS) or b"").splitlines(), start=1):
        try:
            rating = Rating.model_validate_json(line) if line.strip() else None
        except ValidationError:
            warnings.warn(DamagedFileWarning(f"{folder.url}/{RATINGS}, line {number}, is no rating"), stacklevel=2)
            continue
        if rating is not None and rating.is_of(record):
            found[rating.rater, *rating.place] = rating
    return list(found.values())


def rating_rows(ratings: Sequence[Rating]) -> Iterator[dict[str, Any]]:
    """Rows of the results table: of each map the raters' mean, and along its curve the rating of each by name."""
    raters = sorted({rating.rater for rating in ratings})
    of: dict[tuple[str, ...], dict[str, int]] = {}
    for rating in ratings:
        of.setdefault(rating.place, {})[rating.rater] = rating.value
    for (question, model, variant, method, layer, image), values in of.items():
        known: dict[str, Any] = {
            "model": model,
            "variant": variant,
            "method": method,
            "layer": layer,
            "image": image,
        }
        known |= {"metric": question, "seed": 0, "versions": ""}
        yield known | {"value": sum(values.values()) / len(values)}
        for rater, value in values.items():
            yield known | {"value": float(value), "at": float(raters.index(rater) + 1), "step": rater}
