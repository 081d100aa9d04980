"""Two runs compared: what both graded, image by image."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import InputWarning, InvalidData, InvalidParameter, UnknownName, brief, counted
from .intervals import LEAST, Numbers, mean, paired_interval, roundings, told_apart
from .statistics import WHOLE_VARIANT, Statistics
from .wording import joined, joined_some

if TYPE_CHECKING:
    from ..experiments.store import Results

_PARTS = ("model", "variant", "method", "metric")
_KINDS = ("variant", "method", "model")  # of one run's parts that can be compared with each other
_OWN = (None, "scored", "explained")  # targets that are each network's own
_NUMBERED = re.compile(r"class \d+")  # what a class without a name is called
_EXPLAINED = ("model", "variant", "image")  # what tells explained classes apart
_Explained = dict[tuple[str, ...], str]
_WORDS = ("not told apart", "better", "worse")


def compare(
    one: Results, other: Results | None = None, layer: str | None = None, *, against: str | None = None
) -> pd.DataFrame:
    """Values paired over the images: those of two runs, or of one run against one of its own parts.

    With ``other``, a row is a model, variant, method and metric of both runs; where each has a single model, they
    may be called differently; ``left_out`` names the others. Without it, ``against`` is a variant, method or
    model of the run, and each other one of its kind is a row, compared with it; None is the first variant.

    ``layer`` is where maps are compared; None is the best layer of each in its own run. Columns: ``layer`` and
    ``other_layer``; the ``images`` that have both values; the means ``one`` and ``other`` of these; the
    ``difference`` other - one and its 95 % interval, ``low`` to ``high``; and in the ``verdict`` whether the other
    is "better", "worse" or "not told apart", or that too few images have both values to tell.

    Raises:
        InvalidData: the runs have no image, no such row, or not this layer in common; told is what differs.
        InvalidParameter: ``against`` beside a second run, or none where a run has one variant alone.
        UnknownName: the run has no such variant, method or model, or no run such a layer.

    Warns:
        InputWarning: two runs have images of the same names and of other content.
    """
    if other is not None:
        from ..experiments.record import apart

        for line in apart(one.record, other.record, ("in the first", "in the second")):
            if line.startswith("images."):
                warnings.warn(InputWarning(f"the runs have other images of the same names ({line})"), stacklevel=2)
    ours, theirs = _sides(one, other, layer, against)
    images = [name for name in ours.columns if name in set(theirs.columns)]
    places, others = _places(ours, theirs)
    keys = [key for key in places if key in others]
    if not keys:
        raise InvalidData(f"the two runs have nothing to pair: {_apart(list(places), list(others))}")
    if not images:
        raise InvalidData("the two runs have no images in common, so nothing in them is paired")
    rows = pd.DataFrame(
        {
            "layer": [places[key][3] for key in keys],
            "other_layer": [others[key][3] for key in keys],
            **_paired(
                ours.loc[[places[key] for key in keys], images].to_numpy(),
                theirs.loc[[others[key] for key in keys], images].to_numpy(),
            ),
        },
        pd.MultiIndex.from_tuples(keys, names=[*_PARTS]),
    )
    higher = np.array([one.record.metrics[key[-1]].higher_is_better for key in keys])
    signs = rows.pop("sign") * np.where(higher, 1, -1)
    spans = np.array([_span(one.record.metrics[key[-1]].ends) for key in keys])
    # No difference can exceed the span of what the metric's values can be, as 1 of shares.
    rows["low"], rows["high"] = np.maximum(rows["low"], -spans), np.minimum(rows["high"], spans)
    return rows.assign(verdict=[_verdict(*pair) for pair in zip(signs, rows["images"], strict=True)])


def left_out(one: Results, other: Results, layer: str | None = None) -> list[str]:
    """What one run alone graded, so that ``compare`` has no row of it, in a sentence for each run that has any."""
    found = [list(places) for places in _places(*_sides(one, other, layer, None))]
    return [
        f"not compared, since the {which} run alone has {_of_one(rows, others)}: grade the same "
        f"in the {other_run} run, too, or all in one run"
        for which, other_run, rows, others in zip(
            ("first", "second"), ("second", "first"), found, reversed(found), strict=True
        )
        if set(rows) - set(others)
    ]


def part_of(results: Results, against: str | None) -> tuple[str, str]:
    """What the others of a run are compared with: the kind of part (variant, method or model), and its name.

    Raises:
        InvalidParameter: None, where the run has one variant alone.
        UnknownName: the run has no such part.
    """
    names = {kind: list(results.table[kind].dropna().unique()) for kind in _KINDS}
    if against is None:
        if len(names["variant"]) < 2:
            # What there is one of has nothing to be compared with.
            several = [name for kind in _KINDS for name in names[kind] if len(names[kind]) > 1]
            or_else = f", or one of {joined_some(several)} as against (--against)" if several else ""
            raise InvalidParameter(
                f"the run has the variant {names['variant'][0]} alone: give a second run{or_else}"
            )
        against = names["variant"][0]
    kinds = [kind for kind in _KINDS if against in names[kind]]
    if not kinds:
        raise UnknownName(
            "variant, method or model of the run", against, [name for of in _KINDS for name in names[of]]
        )
    if len(names[kinds[0]]) < 2:
        raise InvalidParameter(f"the run has the {kinds[0]} {against} alone, and nothing to compare with it")
    return kinds[0], against


def _sides(
    one: Results, other: Results | None, layer: str | None, against: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of two runs; or of one run those of the part ``against``, once for each other, and the others'."""
    if other is not None:
        if against is not None:
            raise InvalidParameter(
                f"against {against}: this compares parts of one run, and here are two; give one"
            )
        _require_layer(layer, one, other)
        ours = _values(one, layer)
        return ours, _called_alike(ours, _values(other, layer))
    kind, name = part_of(one, against)
    _require_layer(layer, one)
    ours = _values(one, layer)
    names = ours.index.get_level_values(kind)
    others = [part for part in names.unique() if part not in (name, "")]
    if not (others and name in names):
        raise InvalidData(f"the run has no values of {name} and of another {kind} yet; finish it first")
    return pd.concat([ours[names == name].rename(index={name: part}, level=kind) for part in others]), ours


def _require_layer(layer: str | None, *runs: Results) -> None:
    """Refuse a layer that a run has no maps at: what grades whole variants would be left alone without a word."""
    if layer is None:
        return
    layers = [list(run.table["layer"].dropna().unique()) for run in runs]
    has = [layer in graded for graded in layers]
    if not any(has):
        known = [name for graded in layers for name in graded]
        raise UnknownName(f"layer of the run{'s' if len(runs) > 1 else ''}", layer, known)
    if not all(has):
        lacks, other = ("second", "first") if has[0] else ("first", "second")
        raise InvalidData(
            f"the {lacks} run has no maps at {layer}, as the {other} has; name a layer that both graded, or none"
        )


def _of_one(rows: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> str:
    """Which parts of a run's rows no row of the other's has; where each has one, which rows as a whole."""
    parts = {name: [_distinct(run, place) for run in (rows, others)] for place, name in enumerate(_PARTS)}
    alone = {name: [part for part in own if part not in theirs] for name, (own, theirs) in parts.items()}
    told = [f"the {name}{'s' * (len(own) > 1)} {joined_some(own)}" for name, own in alone.items() if own]
    return ", and ".join(told) or joined_some([", ".join(filter(None, row)) for row in rows if row not in others])


def _called_alike(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The other run's rows, whose model is called as the one run's where each has a single one."""
    one, other = (rows.index.get_level_values("model").unique() for rows in (ours, theirs))
    return theirs.rename(index={other[0]: one[0]}, level="model") if len(one) == len(other) == 1 else theirs


def _places(*runs: pd.DataFrame) -> list[dict[tuple[str, ...], tuple[str, ...]]]:
    """By what its rows are of, the layer left out, where in each table they are."""
    return [dict(zip(rows.index.droplevel("layer"), rows.index, strict=True)) for rows in runs]


def _span(ends: tuple[float | None, float | None]) -> float:
    """How far two values between these ends can be apart."""
    least, most = ends
    return math.inf if least is None or most is None else most - least


def _verdict(sign: int, images: int) -> str:
    """What a difference says that is surely better (1), surely worse (-1) or neither."""
    if not images:
        return "not compared: no image in common has both values"
    return _WORDS[sign] if images >= LEAST else f"not compared: fewer than {LEAST} images"


def classes_apart(one: Results, other: Results | None = None, *, against: str | None = None) -> list[str]:
    """In which images of what ``compare`` pairs other classes are explained, in a sentence, if there are any.

    Where both explain the label, or one given class, they are the same, whatever each network calls them.
    """
    asked = [results.record.spec.get("target") for results in (one, other or one)]
    if asked[0] == asked[1] and asked[0] not in _OWN:
        return []
    if other is None:
        kind, name = part_of(one, against)
        others = [part for part in one.table[kind].dropna().unique() if part not in (name, "")]
        them = others[0] if len(others) == 1 else "the others"
        return _unlike(*_explained_within(one, against), f"by {them}", f"by {name}")
    ours, theirs = _explained(one), _explained(other)
    models = [{model for model, _, _ in known} for known in (ours, theirs)]
    if len(models[0]) == len(models[1]) == 1:
        ours, theirs = ({("", *key[1:]): target for key, target in known.items()} for known in (ours, theirs))
    return _unlike(ours, theirs, "in the second", "in the first")


def _unlike(ours: _Explained, theirs: _Explained, there: str, here: str) -> list[str]:
    """In how many images two sides explain other classes, with the first one."""
    shared = [key for key in ours if key in theirs]
    unlike = [key for key in shared if ours[key] != theirs[key]]
    if not unlike:
        return []
    first, images = unlike[0], [len({image for _, _, image in keys}) for keys in (unlike, shared)]
    numbered = [all(_NUMBERED.fullmatch(target) for target in known.values()) for known in (ours, theirs)]
    nameless = "; one run has no names of classes, so they may be the same" if numbered[0] != numbered[1] else ""
    return [
        f"the explained class of {images[0]} of the {counted(images[1], 'image')} in common, such as {first[2]}: "
        f"{brief(ours[first])} {here} and {brief(theirs[first])} {there}{nameless}"
    ]


def _explained_within(results: Results, against: str | None) -> tuple[_Explained, _Explained]:
    """The classes of what the others of one run are compared with, under the names of these, and of these."""
    kind, name = part_of(results, against)
    found = _explained(results)
    if kind == "method":
        return found, found
    place = _EXPLAINED.index(kind)
    others = {key: target for key, target in found.items() if key[place] != name}
    known = {key: found.get((*key[:place], name, *key[place + 1 :])) for key in others}
    return {key: target for key, target in known.items() if target is not None}, others


def _explained(results: Results) -> _Explained:
    """The class that is explained, by model, variant and image."""
    if "target" not in results.table:
        return {}
    columns = [*_EXPLAINED, "target"]
    known = results.table[columns].astype(object).drop_duplicates().dropna()
    return {(model, variant, image): target for model, variant, image, target in known.itertuples(index=False)}


def _apart(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> str:
    """Which parts of two runs' rows are shared and which are not, and what to grade instead."""
    parts = {name: [_distinct(rows, place) for rows in (ours, theirs)] for place, name in enumerate(_PARTS)}
    alone = {name: both for name, both in parts.items() if not set(both[0]) & set(both[1])}
    if not alone:
        return "they share models, variants, methods and metrics, but no row of all four; grade the same in both"
    shared = [f"{name}s" for name in parts if name not in alone]
    told = ", nor ".join(
        f"the {name}: {joined_some(one)} in the first, {joined_some(other)} in the second"
        for name, (one, other) in alone.items()
    )
    has = f"they share {joined(shared)}, but not {told}" if shared else f"they do not share {told}"
    if [*alone] == ["variant"]:
        options = " ".join(f"--variant {name}" for both in alone["variant"] for name in both)
        return f"{has}; grade both variants in one run: {options}"
    return f"{has}; grade the same in both runs"


def _distinct(rows: Sequence[Sequence[str]], place: int) -> list[str]:
    return list(dict.fromkeys(row[place] or "the variant itself" for row in rows))


def _values(results: Results, layer: str | None) -> pd.DataFrame:
    """A row of values for each contender: at its best layer, or at the one that is given."""
    statistics = Statistics.of(results)
    if layer is None:
        return statistics.best.values
    layers = statistics.values.index.get_level_values("layer")
    return statistics.values[np.isin(layers, [layer, WHOLE_VARIANT])]


def _paired(ours: Numbers, theirs: Numbers) -> dict[str, object]:
    """The columns that are numbers: means where both have values, their difference, and its sign if it is sure."""
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    # Means of both are over the same images, or their difference would not be the mean difference.
    ours, theirs = np.where(both, ours, np.nan), np.where(both, theirs, np.nan)
    low, high = paired_interval(theirs, ours)
    above, below = told_apart(theirs, ours, roundings(ours, theirs))
    return {
        "images": both.sum(1),
        "one": mean(ours),
        "other": mean(theirs),
        "difference": mean(theirs - ours),
        "low": low,
        "high": high,
        "sign": above.astype(int) - below.astype(int),
    }
