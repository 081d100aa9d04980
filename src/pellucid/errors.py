"""Every error that a user can cause; each message names the thing, the place and the way out."""

from __future__ import annotations

import os
import re
import reprlib
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

_MOST_QUOTED = 100  # characters of an input in a message
_MOST_SAID = 200  # of a line of what code of the user's raised
_REASONS = 4  # lines, where the first announces the others
_BYTES = re.compile(r"(\\x[0-9a-f]{2}.*?){4}")  # such as a key that is an image
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _MOST_QUOTED
_LONGEST_WORD, _LONGEST_MESSAGE = 400, 1600  # whoever quotes it; paths and commands have room


def brief(value: object) -> str:
    """What is quoted of an input: its ``repr``, or where that is long its beginning."""
    # Of a long text only the beginning is looked at; of what nests deeply only the outside.
    text = repr(value[: _MOST_QUOTED + 1]) if isinstance(value, str | bytes) else _REPR.repr(value)
    return text if len(text) <= _MOST_QUOTED else f"{text[: _MOST_QUOTED - 3]}..."


def failure(error: BaseException, path: str | os.PathLike[str] = "") -> str:
    """What code of the user's raised, within a message of one line: its kind, and how its text begins.

    Where a first line announces others, some of these follow; bytes are left out. ``path`` is the user's file, of
    which the line is named that raised, or from which what raised was called.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[: _REASONS if lines and lines[0].endswith(":") else 1]
    said = [line if len(line) <= _MOST_SAID else f"{line[: _MOST_SAID - 3]}..." for line in said]
    text = "" if _BYTES.search(" ".join(said)) else " ".join(said)
    frames = traceback.walk_tb(error.__traceback__)
    places = [line for frame, line in frames if _is_of(frame.f_code.co_filename, path)] if path else []
    where = f" (line {places[-1]})" if places else ""
    return f"{type(error).__name__}{text and f': {text}'}{where}"


def _is_of(file: str, path: str | os.PathLike[str]) -> bool:
    return os.path.realpath(file) == os.path.realpath(path)


def _cut(text: str, most: int) -> str:
    """A text without its middle, if it is longer: the thing stands first, the way out last."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


class PellucidError(Exception):
    """Base of all errors raised for something the caller can put right.

    ``command`` is what a command says instead, where the way out is another there than in Python.
    """

    command: str = ""

    def __init__(self, message: str = "") -> None:
        words = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: _cut(word[0], _LONGEST_WORD), str(message))
        super().__init__(_cut(words, _LONGEST_MESSAGE))

    def __reduce__(self) -> tuple[Any, ...]:
        """How it reaches another process: as it is, whatever its class takes to make one."""
        return _as_it_was, (type(self), self.args), self.__dict__


def _as_it_was(kind: type[PellucidError], arguments: tuple[Any, ...]) -> PellucidError:
    error = kind.__new__(kind)
    error.args = arguments
    return error


class UnknownName(PellucidError, LookupError):
    """A model, method, layer, variant or parameter name that does not exist; ``way_out`` needs no name.

    Those that are known are told as they are sorted, or ``in_order``.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], way_out: str = "", in_order: bool = False
    ) -> None:
        names = list(dict.fromkeys(known if in_order else sorted(known)))
        near = near_names(name[:_MOST_QUOTED], names) if isinstance(name, str) else []
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {shortened(names)}"
        super().__init__(f"unknown {kind} {brief(name)}; {hint}{way_out and f' ({way_out})'}")


def near_names(name: str, names: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """At most three names that begin with this one, or of whose letters the share ``cutoff`` is the same.

    Capitals, dashes and the like do not count: Grad-CAM is gradcam.
    """
    known: dict[str, list[str]] = {}
    for one in names:
        known.setdefault(_folded(one), []).append(one)
    begun = [folded for folded in known if len(name) > 2 and folded.startswith(_folded(name))]
    near = dict.fromkeys([*begun, *get_close_matches(_folded(name), known, n=3, cutoff=cutoff)])
    return [one for folded in near for one in known[folded]][:3]


def _folded(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold()) or name


class InvalidParameter(PellucidError, ValueError):
    """A method's or metric's parameter is out of its range."""


class InvalidTarget(PellucidError, ValueError):
    """A target class does not fit the model's outputs."""


class InvalidImage(PellucidError, ValueError):
    """An image cannot be read, or holds values that cannot be explained."""


class InvalidModel(PellucidError, ValueError):
    """A model cannot be explained as it is: TorchScript, training mode, NaN weights, no logits."""


class NotFinite(InvalidModel):
    """A model's logits, or an attribution of it, hold NaN or infinity, as where weights are too large."""


class InvalidWeights(PellucidError, ValueError):
    """A weights file cannot be read safely, or does not fit the model."""


class InvalidData(PellucidError, ValueError):
    """A folder or table of images does not hold what was asked for."""


class InvalidLayer(PellucidError, ValueError):
    """A layer's output cannot be captured: it did not run, ran several times, or is no tensor."""


class InvalidMap(PellucidError, ValueError):
    """A map made elsewhere cannot be used: its function failed, or gave the wrong shape, NaN or infinity."""


class OutOfMemory(PellucidError, MemoryError):
    """A pass does not fit into the device's memory; fewer rows, or smaller images, may."""


class RuleNotApplied(PellucidError):
    """A backward rule met no operation of its kind, so the map would silently be another method's."""


class InvalidCluster(PellucidError, RuntimeError):
    """A Ray cluster does not answer, or its workers cannot compute what is asked."""


class OutputNotWritable(PellucidError, OSError):
    """The output folder or file cannot be written."""


class LayerWarning(UserWarning):
    """Something to know about the attribution at one layer, of so many of the call's images; None: of all."""

    def __init__(self, message: str, layer: str, images: int | None = None) -> None:
        super().__init__(message)
        self.layer, self.images = layer, images


class SkippedLayerWarning(LayerWarning):
    """A layer that a pattern chose has no map: where its dimensions look cannot be told."""


class InputWarning(UserWarning):
    """Images or outputs look like a mistake: images that are not normalized, probabilities instead of logits.

    Or images and the model have as many classes, and other names for them.
    """


class PrecisionWarning(UserWarning):
    """A model computes in half precision, whose gradients differ much from the exact ones."""


class GradientWarning(UserWarning):
    """A model's answer changes otherwise than its gradient tells: part of it hides from gradients."""


class RuleWarning(UserWarning):
    """Something to know about a backward rule: what may have passed it by."""


class DamagedFileWarning(UserWarning):
    """A stored file was found damaged; what it held is computed anew, or its predecessor is taken."""


class OutdatedWarning(UserWarning):
    """A method's file has changed since a run was begun; what was computed with it is computed anew."""


class CompletenessWarning(LayerWarning):
    """An attribution that should sum to a difference of logits misses it by more than the tolerance."""


class EmptyMapWarning(LayerWarning):
    """An attribution is zero everywhere: a threshold or a padding trick let nothing through."""


class FlatMapWarning(LayerWarning):
    """An attribution has one value at all places, as where only an average over them comes after the layer."""


class CanceledMapWarning(FlatMapWarning):
    """An attribution's channels cancel at all places, as below a layer norm: their signed sum, a map, is zero."""


class ImageMapWarning(LayerWarning):
    """A method for hidden layers was asked at the input, where its map is the image in other colors."""


class TokenWarning(FlatMapWarning, EmptyMapWarning):
    """An attribution is zero at all places: only the class token is read after the layer."""


class DisplacedMapWarning(LayerWarning):
    """A hidden layer's map lies elsewhere than in the image: the model cuts, pads or moves what it sees before."""


class PatternWarning(LayerWarning):
    """Under a variant that takes the checkerboard away, a map still has one: something else prints it."""


class WeightsWarning(UserWarning):
    """What was done to the names of weights so that they fit, or which weights stay as they are."""


def shortened(names: Iterable[str], most: int = 12) -> str:
    """Join at most ``most`` names for an error message, and count the rest."""
    listed = list(names)
    rest = f", ... ({len(listed) - most} more)" if len(listed) > most else ""
    return (", ".join(listed[:most]) or "none") + rest


def percent(share: float) -> str:
    """A share in [0, 1] as text, never rounded to a certainty."""
    if share <= 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.9995 else "> 99.9 %"


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_difference(there: Any, here: Any) -> str:
    """Name the first place in which two different things of plain values differ, for an error message."""
    return next(differing(there, here))


def differing(there: Any, here: Any, name: str = "", places: tuple[str, str] = ("there", "here")) -> Iterator[str]:
    """Name every place in which two things of plain values differ; digests of files differ without being told.

    Of lists of names it is said which one alone has, wherever it stands.
    """
    if there == here:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            yield from differing(there.get(key), here.get(key), f"{name}.{key}" if name else key, places)
    elif _are_names(there) and _are_names(here):
        alone = [[one for one in ours if one not in theirs] for ours, theirs in ((there, here), (here, there))]
        told = [f"{shortened(some)} {place} alone" for some, place in zip(alone, places, strict=True) if some]
        yield f"{name}: {'; '.join(told) or 'in another order'}"
    elif isinstance(there, list) and isinstance(here, list):
        for index, (one, other) in enumerate(zip(there, here, strict=False)):
            yield from differing(one, other, f"{name}[{index}]", places)
        for alone, place in ((there[len(here) :], places[0]), (here[len(there) :], places[1])):
            yield from (f"{name} has {brief(one)} {place} alone" for one in alone)
    elif _is_digest(there) and _is_digest(here):
        yield f"{name}: not the same"
    else:
        yield f"{name} is {brief(there)} {places[0]} and {brief(here)} {places[1]}"


def _are_names(value: Any) -> bool:
    """Whether a value lists different texts."""
    is_text = isinstance(value, list) and all(isinstance(one, str) and not _is_digest(one) for one in value)
    return is_text and len(set(value)) == len(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", value) is not None


def require_count(name: str, value: int, least: int = 1) -> None:
    """Raise ``InvalidParameter`` unless value is a whole number of at least ``least`` that a tensor can count."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InvalidParameter(f"{name}={brief(value)}: give a whole number of at least {least}, below 2^63")


def require_choice(name: str, value: object, choices: object) -> None:
    """Raise ``InvalidParameter`` unless value is one of a Literal's choices."""
    if not isinstance(value, str | int | None) or value not in get_args(choices):
        raise InvalidParameter(f"{name}={brief(value)}: give one of {', '.join(map(repr, get_args(choices)))}")
