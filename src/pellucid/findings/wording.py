"""Rankings in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import PellucidError, counted, shortened
from ..experiments.record import Note
from .digits import interval_ends, number
from .intervals import LEAST
from .ranking import FLOORS, Contender, Ranking
from .statistics import AT_INPUT, UNCHANGED

if TYPE_CHECKING:
    from ..experiments.store import Results

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
_NOTES = {  # of a warning: what is the matter, and the way out
    "CompletenessWarning": (
        "misses the sum it should have by more than 5 % of it",
        "some of the answer is in no place",  # where the method does not say more
    ),
    "EmptyMapWarning": ("is zero everywhere", "lower its threshold, if it has one, or choose another layer"),
    "TokenWarning": (
        "is zero at all places",
        "only the class token is read after this layer: take the block before",
    ),
    "FlatMapWarning": (
        "has one value at all places, so its map is of one color,",
        "there are no places any more, or only an average over them comes after: take an earlier layer, or "
        "gradcam or input_x_gradient where there are places",
    ),
    "CanceledMapWarning": (
        "has channels that cancel, so their signed mean shows nothing,",
        "below a layer norm a gradient's do: take --channels abs_sum, or another method, such as deeplift",
    ),
    "ImageMapWarning": (
        "weighs the image's own channels, so its map is the image in other colors,",
        "it is made for hidden layers: name those",
    ),
    "DisplacedMapWarning": (
        "lies elsewhere than in the image",
        "the model cuts, pads or moves what it sees before: give it images that need none of it, or explain the "
        "input",
    ),
    "PatternWarning": (
        "still has a lattice",
        "something steps over places there by an index, interpolate, reshape or a pooling, or under a surrogate "
        "by a strided slice, which backward levels",
    ),
    "Lattice": (
        "shows a lattice",
        "strided convolutions print it: --variant original,backward levels it (backward_with_first at the input)",
    ),
    "SkippedLayerWarning": ("has no map", "name another layer, or declare its layout (--layouts)"),
}
_FIRST_PRINTS = (  # the way out of a lattice at the input
    "the first convolution prints it: backward_with_first and forward_with_first take it away, and a surrogate "
    "that was trained and is used with include_first=True"
)
_OF_ALL = {"ImageMapWarning", "SkippedLayerWarning"}  # which lie in a method or a layer, whatever the image
_NAMED = 4  # names in a sentence; the others are counted
FEW = {"image": 10, "training": 3}  # values below which readers are warned


def finding(lead: Ranking, poor: Sequence[str] = ()) -> str:
    """What one metric finds; and which of the best are maps under ``poor`` variants, of another network."""
    caveat = "" if lead.of_variants or lead.floors or lead.same else _of_another([*lead.best], poor)
    return f"{_found(lead)} {caveat}".strip()


def _of_another(best: Sequence[Contender], poor: Sequence[str]) -> str:
    """That maps which are among the best do not explain the original network, if so."""
    names = [name for name in poor if any(one.variant == name and not one.floor for one in best)]
    return (
        f"Under {joined(names)} the network is another, whose maps do not explain the original." if names else ""
    )


def _found(lead: Ranking) -> str:
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
    names = _contenders(lead.best, lead.contenders)
    if len(lead.best) == 1:
        # The bars beside the sentence show each method once, under its best variant.
        runner_up = next((one for one in behind if one.method != first.method), behind[0])
        text = f"{names} is best: {told}; next is {_name(lead, runner_up)} with {_number(lead, runner_up)}"
    else:
        apart = " and cannot be told apart" if _are(lead.best) == "are" else ""
        text = f"{names} {_are(lead.best)} best{apart}: {told} for the first"
    if lead.floor is None:
        return f"{text}."
    floor = f"{FLOORS[lead.floor.floor]} ({_number(lead, lead.floor)})"
    return f"{text}; {floor} is beaten." if len(lead.best) == 1 else f"{text}; {_who_beat(lead, floor)}."


def _who_beat(lead: Ranking, floor: str) -> str:
    """Which of several best methods beat a floor, and where not all do, which others."""
    best = [one for one in lead.best if one in lead.above]
    if len(best) == len(lead.best):
        return f"each beats {floor}"
    told = f"of these only {_contenders(best, lead.contenders)} beat{'s' * (_are(best) == 'is')} {floor}"
    if not best:
        told = f"none of these is told from {floor}"
    others = [one for one in lead.above if one not in best and not one.floor]
    does = "does" if _are(others) == "is" else "do"
    return f"{told}, and so {does} {_contenders(others, lead.contenders)}" if others else told


def _beaten(lead: Ranking) -> str:
    """A floor is among the best: which, and what the best method has."""
    floor = next(one for one in lead.best if one.floor == lead.floors[0])
    methods = [one for one in lead.contenders if not one.floor]
    if not methods:
        return f"Only floors were graded, no method: {lead.name} {_told(lead, floor)}."
    than = "chance" if "random" in lead.floors else "an edge filter"
    few = lead.most < FEW[lead.counted]
    with_few = f"With {counted(lead.most, lead.counted)} no method can be told to be better than"
    shown = with_few if few else "No method beats"
    is_ahead = lead.contenders.index(methods[0]) < lead.contenders.index(floor)
    apart = ", which may be by chance" if is_ahead and not few else ""
    return (
        f"{shown} {than}: {FLOORS[floor.floor]} has {lead.name} {_told(lead, floor)}, "
        f"the best method, {_name(lead, methods[0])}, {_number(lead, methods[0])}{apart}."
    )


def _of_variants(lead: Ranking) -> str:
    """How far each variant's answers are from the original's."""
    original = next((one for one in lead.contenders if one.variant == UNCHANGED), None)
    changed = [one for one in lead.contenders if one is not original]
    if original is None or not changed:
        values = joined([f"{one.variant} {_told(lead, one)}" for one in lead.contenders])
        return f"{begun(lead.name)}: {values}."
    like = [one.variant for one in changed if one in lead.best]
    unlike = [one.variant for one in changed if one not in lead.best]
    answers = [f"{joined(like)} {'does' if len(like) == 1 else 'do'}"] if like else []
    answers += [f"{joined(unlike)} {'differs' if len(unlike) == 1 else 'differ'}"] if unlike else []
    values = joined([f"{_number(lead, one)} ({one.variant})" for one in (original, *changed)])
    return f"By {lead.name}, {joined(answers)}: {values}; {_scale(lead)}."


def agreement(lead: Ranking, others: Sequence[Ranking]) -> str:
    """Whether an axis's other metrics agree with the leading one, and which methods that could not grade."""
    if lead.of_variants:
        return " ".join(map(_found, others))
    # By which all are the best, that tells nothing apart, whatever the leading one says.
    silent = [
        other
        for other in others
        if other.is_silent and lead.decided and (not lead.is_silent or len(other.best) == len(other.contenders))
    ]
    decided = [other for other in others if other.decided and lead.decided and other not in silent]
    same = [_agreeing(lead, other) for other in decided if other.agrees(lead)]
    unlike = [_best_by(other) for other in decided if not other.agrees(lead)]
    agreed = [f"{joined(same)} agree{'s' if len(same) == 1 else ''}"] if same else []
    text = "; ".join([*agreed, *unlike, *map(_silent, silent)])
    parts = [f"{begun(text)}."] if text else []
    if lead.ungraded and lead.contenders:
        parts.append(f"Not graded, since {lead.name} is undefined there: {_few(lead.ungraded, _NAMED)}.")
    if lead.absent:
        parts.append(f"Not graded, since they have maps at other layers alone: {_few(lead.absent, _NAMED)}.")
    return " ".join(parts)


def _best_by(other: Ranking) -> str:
    """Who is best by a measure that disagrees, and where not all of these beat a floor, who does."""
    told = f"by {other.name}, {_contenders(other.best, other.contenders)} {_are(other.best)} best"
    if other.floor is None or other.floors or set(other.best) <= set(other.above):
        return told
    return f"{told}, but {_who_beat(other, FLOORS[other.floor.floor])}"


def _agreeing(lead: Ranking, other: Ranking) -> str:
    """A measure by name, and where more are best by it than by the leading one, how many of all."""
    more = len(other.best) > len(lead.best)
    return f"{other.name} ({len(other.best)} of {len(other.contenders)} are best by it)" if more else other.name


def _silent(other: Ranking) -> str:
    """That a measure finds no method good."""
    floor = next((FLOORS[kind] for kind in other.floors), "")
    return f"{other.name} tells {f'no method from {floor}' if floor else 'nothing apart'}"


def overall(axes: Mapping[str, Sequence[Ranking]], poor: Sequence[str] = ()) -> str:
    """The whole card in a few sentences: who is best most often, where chance wins, where measures disagree.

    Only who is among the best by every measure of a question wins it, but for those by which all are, or a floor
    beside methods: they tell of none, nor do they disagree. It is said of the winners which are maps
    under ``poor`` variants, of another network.
    """
    decided = {axis: rankings for axis, rankings in axes.items() if rankings[0].decided}
    if not decided:
        return "Nothing that was graded tells the maps apart."
    chance = [axis for axis, rankings in decided.items() if all(one.floors for one in rankings if one.decided)]
    unsure = [axis for axis, rankings in decided.items() if rankings[0].is_silent and axis not in chance]
    best = {axis: _best_by_all(decided[axis]) for axis in decided if axis not in [*chance, *unsure]}
    split = [axis for axis, some in best.items() if not some]
    notes = [f"No method beats a map that knows nothing of the network on {joined(chance)}."] if chance else []
    notes += [f"On {joined(unsure)} not all measures tell a method from chance."] if unsure else []
    notes += [f"On {joined(split)} the measures disagree about who is best."] if split else []
    wins = Counter(key for some in best.values() for key in some)
    if not wins:
        return " ".join(notes)
    most = max(wins.values())
    first = [key for key, count in wins.items() if count == most]
    among = [one for axis in best for one in decided[axis][0].contenders]
    names = _named(first, among)
    caveat = _of_another([one for one in among if (one.method, one.variant) in first], poor)
    notes = [caveat, *notes] if caveat else notes
    are = "is" if len({method for method, _ in first}) == 1 else "are"
    if len(decided) == 1:
        return f"{names} {are} best for {next(iter(decided))}, the only question asked. {caveat}".strip()
    won = [axis for axis, some in best.items() if any(key in some for key in first)]
    where = f" ({joined(won)})" if len(won) == most else f" (each of its own: {joined(won)})"
    return " ".join([f"{names} {are} among the best on {most} of {len(decided)} questions{where}.", *notes])


def explained(classes: Mapping[str, int]) -> str:
    """Which classes maps explain, in one sentence; empty where that is not known."""
    if not classes:
        return ""
    if len(classes) == 1:
        return f"The maps explain one class: {next(iter(classes))}."
    names = [f"{name} ({counted(number, 'image')})" for name, number in classes.items()]
    return f"The maps explain {len(classes)} classes: {_few(names, _NAMED + 1)}."


def notes_told(
    notes: Sequence[Note], noun: str = "image", counts: Mapping[Note, int] | None = None, total: int = 0
) -> list[str]:
    """What is to be known about methods: a sentence for each warning, with the methods, layers and variants.

    A model is named where notes are of several, variants where they are not the network as it is. ``counts`` says
    of how many images, of ``total``, each note is, as far as that is known.
    """
    # Three rounds join what is told alike: layers of one method and variant, then variants, then methods.
    layers: dict[tuple[str, ...], dict[str, None]] = {}
    for note in notes:
        key = (note.model, note.warning, note.method, note.text, note.variant)
        layers.setdefault(key, {})[note.layer] = None
    variants: dict[tuple[str, ...], list[str]] = {}
    for (*of, variant), known in layers.items():
        variants.setdefault((*of, *known), []).append(variant)
    several = len({note.model for note in notes}) > 1
    methods: dict[tuple[str, str], list[str]] = {}  # by what is told of them
    for (model, warning, method, text, *names), under in variants.items():
        told = "" if {*under} <= {"", UNCHANGED} else f" under {_few(under, _NAMED)}"
        if text:
            told += f": {text}"
        else:
            numbers = {
                (counts or {}).get(Note(warning, method, layer, variant, model))
                for layer in names
                for variant in under
            }
            some = "" if warning in _OF_ALL else _of_images(numbers, noun, total)
            at = f"{at_layer(shortened(names, 3))}{some}"
            told += f" {_NOTES[warning][0]} {at}; {_way_out(warning, method, names)}"
        methods.setdefault((model if several else "", told), []).append(method)
    return [
        f"{f'{model}: ' if model else ''}{_each(names) if told[0] != ':' else joined(names)}{told}"
        for (model, told), names in methods.items()
    ]


def results_notes(results: Results) -> list[str]:
    """What is to be known about the methods of a benchmark's run (``notes_told``)."""
    return notes_told(results.notes, "image", results.concerned, results.table["image"].nunique())


def _each(names: Sequence[str]) -> str:
    """Names as one subject of a sentence."""
    return names[0] if len(names) == 1 else f"each of {_few(names, 2 * _NAMED)}"


def _of_images(counts: Set[int | None], noun: str, total: int) -> str:
    """Of how many images something is; the only one needs no word."""
    known = [count for count in counts if count]  # 0 is not known, either
    if not known or len(known) < len(counts):
        return f" for some {noun}s"
    if min(known) == total:
        return f" for all {total} {noun}s" if total > 1 else ""
    most = "" if len(known) == 1 else "up to "
    return f" for {most}{max(known)} of {total} {noun}s"


def _way_out(warning: str, method: str, layers: Sequence[str]) -> str:
    """What to do; where a sum is missed a method itself says why, and of a user's function nobody knows."""
    if warning == "PatternWarning" and AT_INPUT in layers:
        return _FIRST_PRINTS + (f"; elsewhere {_NOTES[warning][1]}" if len(layers) > 1 else "")
    if warning == "Lattice" and [*layers] == [AT_INPUT]:
        return "strided convolutions print it: --variant original,backward_with_first levels it"
    if ".py:" in method and warning in ("EmptyMapWarning", "FlatMapWarning"):
        return "its function gives it so"
    if warning == "CompletenessWarning":
        # The catalogue lies below, but needs torch, which whoever only reads results may do without.
        from ..catalog import method as method_of

        with suppress(PellucidError):
            reason = method_of(method).promise[1]
            return reason[:1].lower() + reason[1:]
    return _NOTES[warning][1]


def _best_by_all(rankings: Sequence[Ranking]) -> list[tuple[str, str]]:
    """The methods under variants that every measure which tells maps apart finds among the best."""
    lead, *others = (ranking for ranking in rankings if ranking.decided and not ranking.is_silent)
    found = [(one.method, one.variant) for one in lead.best]
    for other in others:
        best = {(one.method, one.variant) for one in other.best}
        found = [key for key in found if key in best and bool(other.floors) == bool(lead.floors)]
    return found


def warnings(leads: Sequence[Ranking]) -> list[str]:
    """What makes the findings less sure than they look."""
    found = []
    for unit, few in FEW.items():
        most = max((lead.most for lead in leads if lead.counted == unit), default=few)
        if most < few:
            were = f"{unit} was" if most == 1 else f"{unit}s were"
            found.append(f"Only {most} {were} graded: take this as a first look.")
    maps = [one for lead in leads for one in lead.contenders if not one.of_variant]
    if maps and not any(one.floor for one in maps):
        found.append("Neither random maps nor edges were graded, so nothing here is compared with chance.")
    return found


# Names.


def _are(some: Sequence[Contender]) -> str:
    return "is" if len({one.method for one in some}) == 1 else "are"


def begun(text: str) -> str:
    """As a sentence begins."""
    return text[:1].upper() + text[1:]


def as_sentence(text: str) -> str:
    """A text as a sentence of its own; what begins with a file's name or the like keeps its first letter."""
    first = text.split(maxsplit=1)[0]
    return ended(text if set(first) & set("._/:-0123456789") else begun(text))


def ended(text: str) -> str:
    """A sentence with a full stop, unless it has an end of its own, as a question has."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def judged_at(layer: str | None) -> str:
    """At which layer maps are judged."""
    return "each method at its own best layer" if layer is None else at_layer(layer)


def at_layer(name: str) -> str:
    """Where a layer is, or several, joined: a number alone, as in a ``Sequential``, does not say what it is."""
    layer = f"layer{'s' if ' ' in name else ''} " if name[:1].isdigit() else ""
    return f"at {layer}{name}"


def _contenders(some: Sequence[Contender], among: Sequence[Contender]) -> str:
    """Contenders in words: variants are named where some of a method's are meant, layers where they differ."""
    layers: dict[str, dict[str, None]] = {}
    for one in some if len({one.layer for one in among}) > 1 else ():
        layers.setdefault(one.method, {})[one.layer] = None
    return _named([(one.method, one.variant) for one in some], among, layers)


def _named(
    some: Sequence[tuple[str, str]], among: Sequence[Contender], layers: Mapping[str, Iterable[str]] | None = None
) -> str:
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
        where = f" {at_layer(joined(list(layers[method])))}" if layers and method in layers else ""
        names.append((f"{method} ({note})" if several else method) + where)
    return _few(names, _NAMED + 1)


def _few(names: Sequence[str], most: int) -> str:
    """Names, or where there are more than ``most`` the first four and how many others there are."""
    return joined(names if len(names) <= most else [*names[:_NAMED], f"{len(names) - _NAMED} more"])


def _name(lead: Ranking, one: Contender) -> str:
    return _contenders([one], lead.contenders)


def joined_some(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return joined([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def joined(names: Sequence[str]) -> str:
    """Names as ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# Numbers.


def _number(lead: Ranking, one: Contender) -> str:
    return number(one.mean, lead.places)


def _told(lead: Ranking, one: Contender) -> str:
    """A mean with all that is needed to read it."""
    if one.low == one.high:
        return f"{_number(lead, one)} (on each of {counted(one.n, lead.counted)}; {_scale(lead)})"
    ends = " to ".join(interval_ends(one.low, one.high, lead.places))
    return f"{_number(lead, one)} (95 % interval {ends}; {_scale(lead)})"


def _scale(lead: Ranking) -> str:
    return f"{lead.unit}, {'higher' if lead.higher_is_better else 'lower'} is better"
