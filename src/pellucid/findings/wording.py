"""Findings in plain sentences, and numbers with as many digits as they are sure of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .statistics import LEAST, ORIGINAL

if TYPE_CHECKING:
    from .trust import Contender, Ranking, Verdict

# In the order of the card; other axes follow.
QUESTIONS = {
    "faithfulness": "Does the map show what the network uses?",
    "sanity": "Does the map depend on what the network has learned?",
    "localization": "Does the map lie on the object?",
    "sensitivity": "Does the map change when the answer does?",
    "occlusion": "Does the layer look at the object?",
    "noise": "Is the map free of noise?",
    "edges": "Does the map show clear shapes?",
    "fidelity": "Does the changed network still answer as the original does?",
}
FLOORS = {"random": "a random map", "edges": "a plain edge filter"}
NAMED = 4  # names in a sentence; the others are counted
FEW = {"image": 10, "training": 3}  # values below which readers are warned
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finding(lead: Ranking) -> str:
    """What one metric finds, in one sentence."""
    if not lead.contenders:
        return f"Too few {lead.counted}s to say: {lead.name} needs at least {LEAST} on which it is defined."
    if lead.of_variants:
        return _of_variants(lead)
    if lead.same:
        return f"Every method has the same {lead.name}: {_told(lead, lead.contenders[0])}."
    return _beaten(lead) if lead.floors else _ahead(lead)


def _ahead(lead: Ranking) -> str:
    """Who is best, by how much, and where knowing nothing stands."""
    first = lead.best[0]
    behind = tuple(one for one in lead.contenders if one not in lead.best)
    told = f"{lead.name} {_told(lead, first)}"
    if not behind:
        return f"No method stands out among {len(lead.contenders)}; the first, {_name(lead, first)}, has {told}."
    names = named(lead.best, lead.contenders)
    if len(lead.best) == 1:
        text = f"{names} is best: {told}; next is {_name(lead, behind[0])} with {_number(lead, behind[0])}"
    else:
        apart = " and cannot be told apart" if _are(lead.best) == "are" else ""
        text = f"{names} {_are(lead.best)} best{apart}: {told} for the first"
    floors = [one for kind in FLOORS for one in behind if one.floor == kind]
    if not floors or (len(lead.best) == 1 and floors[0] is behind[0]):
        return f"{text}."
    return f"{text}; {FLOORS[floors[0].floor]} has {_number(lead, floors[0])}."


def _beaten(lead: Ranking) -> str:
    """A floor is among the best: which, and what the best method has."""
    floor = next(one for one in lead.best if one.floor == lead.floors[0])
    methods = [one for one in lead.contenders if not one.floor]
    if not methods:
        return f"Only floors were graded, no method: {lead.name} {_told(lead, floor)}."
    than = "chance" if "random" in lead.floors else "an edge filter"
    return (
        f"No method beats {than}: {FLOORS[floor.floor]} has {lead.name} {_told(lead, floor)}, "
        f"the best method, {_name(lead, methods[0])}, {_number(lead, methods[0])}."
    )


def _of_variants(lead: Ranking) -> str:
    """How far each variant's answers are from the original's."""
    original = next((one for one in lead.contenders if one.variant == ORIGINAL), None)
    changed = [one for one in lead.contenders if one is not original]
    if original is None or not changed:
        values = joined([f"{one.variant} {_told(lead, one)}" for one in lead.contenders])
        return f"{_begun(lead.name)}: {values}."
    like = [one.variant for one in changed if one in lead.best]
    unlike = [one.variant for one in changed if one not in lead.best]
    answers = [f"{joined(like)} {'does' if len(like) == 1 else 'do'}"] if like else []
    answers += [f"{joined(unlike)} {'does' if len(unlike) == 1 else 'do'} not"] if unlike else []
    values = joined([f"{_number(lead, one)} ({one.variant})" for one in (original, *changed)])
    return f"By {lead.name}, {joined(answers)}: {values}; {_scale(lead)}."


def agreement(verdict: Verdict) -> str:
    """Whether the axis's other metrics agree with the leading one, and whom it could not grade."""
    if verdict.lead.of_variants:
        return " ".join(finding(other) for other in verdict.others)
    others = [other for other in verdict.others if other.decided and verdict.lead.decided]
    same = [other.name for other in others if other.agrees(verdict.lead)]
    unlike = [
        f"by {other.name}, {named(other.best, other.contenders)} {_are(other.best)} best"
        for other in others
        if not other.agrees(verdict.lead)
    ]
    agreed = [f"{joined(same)} agree{'s' if len(same) == 1 else ''}"] if same else []
    text = "; ".join([*agreed, *unlike])
    parts = [f"{_begun(text)}."] if text else []
    missing = verdict.lead.ungraded if verdict.lead.contenders else ()
    if missing:
        shown = joined(missing if len(missing) <= NAMED else [*missing[:NAMED], f"{len(missing) - NAMED} more"])
        parts.append(f"Not graded, since {verdict.lead.name} is undefined there: {shown}.")
    return " ".join(parts)


def overall(verdicts: Sequence[Verdict]) -> str:
    """The card in one sentence or two: who is best most often, and where nobody beats chance."""
    decided = [verdict for verdict in verdicts if verdict.lead.decided]
    if not decided:
        return "Nothing that was graded tells the maps apart."
    open_ = [verdict for verdict in decided if not verdict.lead.floors]
    chance = [verdict.axis for verdict in decided if verdict.lead.floors]
    lost = f"No method beats a map that knows nothing of the network on {joined(chance)}." if chance else ""
    wins = Counter(one for verdict in open_ for one in _keys(verdict))
    if not wins:
        return lost
    most = max(wins.values())
    first = [key for key, count in wins.items() if count == most]
    names = _named(first, [one for verdict in open_ for one in verdict.lead.contenders])
    are = "is" if len({method for method, _ in first}) == 1 else "are"
    if len(decided) == 1:
        return f"{names} {are} best for {decided[0].axis}, the only question asked."
    axes = [verdict.axis for verdict in open_ if first[0] in _keys(verdict)]
    where = f" ({joined(axes)})" if len(first) == 1 else ""
    return f"{names} {are} among the best on {most} of {len(decided)} questions{where}. {lost}".strip()


def warnings(verdicts: Sequence[Verdict]) -> list[str]:
    """What makes the findings less sure than they look."""
    found = []
    for unit, few in FEW.items():
        most = max((verdict.lead.most for verdict in verdicts if verdict.lead.counted == unit), default=few)
        if most < few:
            were = f"{unit} was" if most == 1 else f"{unit}s were"
            found.append(f"Only {most} {were} graded: take this as a first look.")
    maps = [one for verdict in verdicts for one in verdict.lead.contenders if one.method]
    if maps and not any(one.floor for one in maps):
        found.append("Neither random maps nor edges were graded, so nothing here is compared with chance.")
    return found


def _keys(verdict: Verdict) -> list[tuple[str, str]]:
    return [(one.method, one.variant) for one in verdict.lead.best]


# Names.


def _are(some: Sequence[Contender]) -> str:
    return "is" if len({one.method for one in some}) == 1 else "are"


def _begun(text: str) -> str:
    """As a sentence begins."""
    return text[:1].upper() + text[1:]


def named(some: Sequence[Contender], among: Sequence[Contender]) -> str:
    """Contenders in words: variants are named where only some of a method's are meant."""
    return _named([(one.method, one.variant) for one in some], among)


def _named(some: Sequence[tuple[str, str]], among: Sequence[Contender]) -> str:
    every: dict[str, set[str]] = {}
    for one in among:
        every.setdefault(one.method, set()).add(one.variant)
    found: dict[str, list[str]] = {}
    for method, variant in some:
        found.setdefault(method, []).append(variant)
    several = len(set().union(*every.values())) > 1
    names = []
    for method, variants in found.items():
        all_of_them = set(variants) == every[method]
        note = "any variant" if all_of_them else joined(variants)
        names.append(f"{method} ({note})" if several else method)
    return joined(names if len(names) <= NAMED + 1 else [*names[:NAMED], f"{len(names) - NAMED} more"])


def _name(lead: Ranking, one: Contender) -> str:
    return named([one], lead.contenders)


def joined(names: Sequence[str]) -> str:
    """Names as ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# Numbers.


def decimals(spread: float) -> int:
    """The decimals that show two digits of how unsure a number is, half of its interval: 0 to 6."""
    if not math.isfinite(spread) or spread <= 0:
        return 3
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
        return f"{digits} × 10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", "−")
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def _number(lead: Ranking, one: Contender) -> str:
    return number(one.mean, lead.places)


def _told(lead: Ranking, one: Contender) -> str:
    """A mean with all that is needed to read it."""
    if one.low == one.high:
        return f"{_number(lead, one)} (on every {lead.counted}; {_scale(lead)})"
    ends = " to ".join(number(end, lead.places) for end in (one.low, one.high))
    return f"{_number(lead, one)} (95 % interval {ends}; {_scale(lead)})"


def _scale(lead: Ranking) -> str:
    return f"{lead.unit}, {'higher' if lead.higher_is_better else 'lower'} is better"
