"""What models return: where the logits are, what of them is explained, and what classes are called."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from .errors import (
    InputWarning,
    InvalidData,
    InvalidModel,
    InvalidTarget,
    PellucidError,
    UnknownName,
    brief,
    counted,
    failure,
    near_names,
    shortened,
)
from .files import function_in
from .layers import first_channels, unwrapped
from .passes import is_out_of_memory, placed

Answer = Callable[[Any], Tensor]
Names = Sequence[str] | None

_MOST_DIGITS = 9  # of a class number
_KEYS = ("logits", "out")  # Hugging Face's, and torchvision's segmentation models'


def tensor_in(output: Any) -> Tensor:
    """The tensor that matters in what a model returns.

    In this order: the output itself; what is called ``logits`` in it, then ``out``, by key or attribute; the first
    item of a tuple or list.

    Raises:
        InvalidModel: it is nowhere there, or may be any of several vectors (B, K) of a tuple, of different sizes.
    """
    found = output
    for key in _KEYS:
        if not isinstance(output, Tensor) and (named := _member(output, key)) is not None:
            return tensor_in(named)
    if isinstance(output, tuple | list) and output:
        found = output[0]
        sizes = sorted({part.shape[1] for part in output if isinstance(part, Tensor) and part.dim() == 2})
        if isinstance(found, Tensor) and found.dim() < 2:  # one value, as a loss, beside vectors
            sizes = sorted({1, *sizes})
        # By custom the first item is the logits, but where other
        # vectors differ in size (features, a second head) nobody knows.
        if isinstance(found, Tensor) and found.dim() <= 2 and len(sizes) > 1:
            several = f"the model returns several vectors for an image, of sizes {shortened(map(str, sizes))}; "
            raise _unsure_of_logits(f"{several}say which are the logits", "0", "another index")
    if isinstance(found, Tensor):
        return found
    keys = f" with {shortened(map(str, output))}" if isinstance(output, Mapping) else ""
    nowhere = f"the model returns {type(output).__name__}{keys}, in which no logits are found; say where they are"
    raise _unsure_of_logits(nowhere, "'KEY'", "a function of the output")


def _unsure_of_logits(why: str, place: str, other: str) -> InvalidModel:
    """The error for an output whose logits nobody knows, with what to write in Python, or for a command."""
    error = InvalidModel(f"{why}: pellucid.Classifier(model, output={place}), or {other}")
    error.command = f"{why} by a line in the model's file (--model FILE.py:NAME): output = {place}, or {other}"
    return error


def logits_in(output: Any) -> Tensor:
    """The logits (B, classes) in what a model returns (``tensor_in``); a single output (B,) is (B, 1).

    Raises:
        InvalidModel: they are nowhere there, or of another shape or kind.
    """
    logits = tensor_in(output)
    if logits.dim() < 2:
        logits = logits.reshape(-1, 1)
    if logits.dim() != 2 or not logits.is_floating_point():
        way_out = (
            "; explain a segmentation model through pellucid.Segmentation(model)" if logits.dim() == 4 else ""
        )
        raise InvalidModel(
            f"the model returns {logits.dtype} of shape {tuple(logits.shape)}; explained are logits "
            f"(batch, classes){way_out}"
        )
    return logits


def first_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits (B, K) of images as a model wants them, from the first run of a model of the user's.

    Raises:
        InvalidModel: whatever the model raises, which is named; or as ``logits_in``.
    """
    with failures_named(images, model), torch.no_grad():
        return logits_in(model(placed(images.clone(), model)))  # its first operation may be in place


@contextmanager
def failures_named(images: Tensor, model: nn.Module) -> Iterator[None]:
    """Name whatever a model of the user's raises on images (``InvalidModel``), but for a lack of memory."""
    try:
        yield
    except PellucidError:
        raise
    except Exception as error:  # code of the user's raises anything
        if is_out_of_memory(error):
            raise
        raise InvalidModel(
            f"the model fails on images of shape {tuple(images.shape)}: {failure(error)}; {_remedy(images, model)}"
        ) from error


def _remedy(images: Tensor, model: nn.Module) -> str:
    """What to do where a model fails on images: where its first convolution tells it, which channels it takes."""
    if last := channels_last(images, model):
        return f"they come {last}"
    taken = first_channels(model)
    if taken in (None, images.shape[1]):
        return "mend it, or give it a preprocess that makes what it takes"
    return (
        f"the model takes images of {counted(taken or 0, 'channel')}, by its first convolution, and these have "
        f"{images.shape[1]}: give a preprocess that makes that many"
    )


def channels_last(images: Tensor, model: nn.Module) -> str:
    """That channels of images, or of one, lie last, and what to do; empty where they do not or nobody knows."""
    taken, dimensions = first_channels(model), images.dim()
    if taken is None or dimensions not in (3, 4) or images.shape[-1] != taken or images.shape[-3] == taken:
        return ""
    batch = "image.permute(2, 0, 1)[None]" if dimensions == 3 else "images.permute(0, 3, 1, 2)"
    return (
        f"with their {counted(taken, 'channel')} last; give (batch, channels, height, width): {batch}, in a "
        "preprocess image.permute(2, 0, 1), normalized as the model expects"
    )


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes (B, K); of a single output (B, 1) the sigmoid, since a softmax of one is 1."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def are_shares(logits: Tensor) -> bool:
    """Whether logits (B, K) look like probabilities: none below 0, and each image's sum to 1, or to 100."""
    return bool((logits >= 0).all()) and any(_sum_to(whole, logits) for whole in (1, 100))


def _sum_to(whole: float, logits: Tensor) -> bool:
    return bool(((logits.sum(1) / whole - 1).abs() < 1e-4).all())


def likelihoods(logits: Tensor) -> Tensor:
    """The probabilities that are told of logits (B, K); what are probabilities already, as they are."""
    if logits.shape[1] < 2 or not are_shares(logits):
        return probabilities(logits)
    return logits if _sum_to(1, logits) else logits / 100


def two_answers(output: Any) -> Tensor:
    """The one logit z of a yes-no classifier as two, (-z/2, z/2): class 1 is yes, and its softmax is sigmoid(z).

    Raises:
        InvalidModel: the model has more than one output.
    """
    logit = logits_in(output)
    if logit.shape[1] != 1:
        raise InvalidModel(f"the model has {logit.shape[1]} outputs; two answers are made of one")
    return torch.cat([-logit / 2, logit / 2], 1)


def _member(output: Any, name: str | int) -> Any:
    if isinstance(output, Mapping) or isinstance(name, int):
        try:
            return output[name]
        except (KeyError, IndexError, TypeError):
            return None
    return getattr(output, name, None)


class Sharing(nn.Module):
    """Another way to run a model: it holds the model's own parts under their own names."""

    _model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        # The same dicts: what is moved, loaded or replaced here is so in the model, which is no part itself.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        object.__setattr__(self, "_model", model)
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        """What the model says of itself, such as ``num_classes``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_model"), name)

    def _keep(self, **settings: Any) -> None:
        """Keep settings here alone: a part of the model may have the same name, or a setting be a module."""
        self.__dict__.update(settings)

    @property
    def settings(self) -> str:
        """What tells it from another of the same weights, for digests."""
        return self._model.settings if isinstance(self._model, Sharing) else ""

    def train(self, mode: bool = True) -> Self:
        """Set the mode of both."""
        self._model.train(mode)
        self.training = mode
        return self


class Classifier(Sharing):
    """Any model as a classifier: (B, C, H, W) -> (B, K), read from what the model returns.

    It shares the model's own parts: layers, parameters and state dict are the same.

    Args:
        model: any module.
        output: a key, attribute or index of the output; a function of it that gives (B, K), or (B,) for K = 1,
            such as ``two_answers``; None finds the logits in a documented order (``tensor_in``).

    Raises:
        InvalidModel: when run: the output has no such part, or it is no (B, K).
    """

    _output: str | int | Answer | None

    def __init__(self, model: nn.Module, output: str | int | Answer | None = None) -> None:
        super().__init__(unwrapped(model))
        self._keep(_output=output)

    @property
    def reads(self) -> str | int | Answer | None:
        """What is read from the output, as it was given."""
        return self._output

    @property
    def settings(self) -> str:
        """What is read from the output, as text."""
        named = getattr(self._output, "__name__", None) or str(self._output)
        return f"{super().settings} read {named}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        output = self._model(images)
        if callable(self._output):
            return logits_in(self._output(output))
        if self._output is None:
            return logits_in(output)
        found = _member(output, self._output)
        if found is None:
            known = list(output) if isinstance(output, Mapping) else [n for n in dir(output) if n[0] != "_"]
            raise UnknownName(f"part of the output ({type(output).__name__})", str(self._output), map(str, known))
        return logits_in(found)


# What is explained.


class Answering(Classifier):
    """A model as the classifier whose one logit is what a target function makes of its output, an image each.

    Raises:
        InvalidTarget: when run: the function does not give one value for each image.
    """

    def __init__(self, model: nn.Module, function: Answer) -> None:
        super().__init__(model, function)
        self._keep(function=function)

    def forward(self, images: Tensor) -> Tensor:
        """The function's values (B, 1)."""
        found = self.function(self._model(images))
        if not isinstance(found, Tensor):
            raise InvalidTarget(f"the target function gives {type(found).__name__}, {_ONE_EACH}")
        values = logits_in(found) if found.dim() < 2 else found
        # Rows that enter at a hidden layer pass no images below it.
        rows = len(images) or len(values)
        if values.shape != (rows, 1):
            raise InvalidTarget(
                f"the target function gives a tensor of shape {tuple(found.shape)} for {counted(rows, 'image')}, "
                f"{_ONE_EACH}"
            )
        return logits_in(values)


_ONE_EACH = "not one value for each image (batch,), such as lambda output: output[:, 1]"


@dataclass(frozen=True)
class Difference:
    """Why one class rather than another: output -> z_one - z_other (B,). Its sigmoid is p_one / (p_one + p_other).

    Classes are numbers, or names where the explained model has them.

    Raises:
        InvalidTarget: twice the same class; when asked: a class that the model does not have.
    """

    one: int | str
    other: int | str

    def __post_init__(self) -> None:
        if self.one == self.other:
            raise InvalidTarget(f"the difference of class {self.one!r} with itself is 0; name two classes")

    def numbered(self, classes: Names) -> Difference:
        """The same by numbers, of a model's class names."""
        one, other = (
            class_number(name, classes) if isinstance(name, str) else name for name in (self.one, self.other)
        )
        return Difference(one, other)

    def __call__(self, output: Any) -> Tensor:
        """The difference of the two logits (B,)."""
        logits, one, other = logits_in(output), self.one, self.other
        if isinstance(one, str) or isinstance(other, str):
            raise InvalidTarget(f"the difference of {one!r} and {other!r}: give numbers, or a model with names")
        if not 0 <= min(one, other) <= max(one, other) < logits.shape[1]:
            raise InvalidTarget(
                f"the difference of classes {one} and {other} is out of range; "
                f"the model has classes 0 to {logits.shape[1] - 1}"
            )
        return logits[:, one] - logits[:, other]


def ends_of(text: str) -> str | tuple[str, str]:
    """The two classes of a text that is no class but their difference; the text where it is none."""
    one, minus, other = text.partition(" - ")
    return (one, other) if minus else text


def answer(text: str, classes: Names) -> int | Answer:
    """What a text asks for: a class name or number, ``tabby - tiger cat``, or ``path/to/file.py:function``.

    A number that is a class's name, as of folders, is that class. The function takes what the model returns and
    gives one value for each image (B,).

    Raises:
        InvalidTarget: a name where the model has none; no such file, or it fails.
        UnknownName: no such class or function, with the nearest ones that are there.
    """
    is_name = text in (classes or ())
    if not is_name and re.search(r"\.py(:|$)", text):
        return _function(text)
    # Blanks belong to the minus, since names of classes have hyphens, as "go-kart".
    one, minus, other = text.partition(" - ")
    if minus and not is_name:
        if " - " in other and not _is_named(other, classes):
            raise InvalidTarget(f"target {brief(text)}: a difference names two classes only; leave the others out")
        return Difference(_named_or_numbered(one, classes), _named_or_numbered(other, classes))
    return _named_or_numbered(text, classes)


def _is_named(text: str, classes: Names) -> bool:
    return text.strip().casefold() in [name.casefold() for name in classes or ()]


def _named_or_numbered(text: str, classes: Names) -> int:
    """The number of the class of this name or, where none has it, of this number."""
    if re.fullmatch(r"-\d+", text.strip()) and not _is_named(text, classes):
        there = f"the model has classes 0 to {len(classes) - 1}" if classes else "classes are numbered from 0"
        raise InvalidTarget(f"target {brief(text)} is out of range; {there}")
    if not text.strip().isdecimal() or text.strip() in (classes or ()):
        return class_number(text, classes)
    if len(text.strip()) > _MOST_DIGITS:
        raise InvalidTarget(f"target {brief(text)} is the number of no class")
    return int(text)


def class_of(text: str, classes: Names) -> int:
    """The number of the class that a text asks for; of a model that was made for the text, its one output.

    Raises:
        InvalidTarget, UnknownName: as ``answer``; the text asks for no class.
    """
    found = answer(text, classes)
    if callable(found):
        raise InvalidTarget(f"{text!r} is no class")
    return found


def class_number(name: str, classes: Names) -> int:
    """The number of the class of this name; capitals do not matter, and one of several synonyms will do."""
    if classes is None:
        error = InvalidTarget(
            f"target {name!r}: the model's classes have no names; give a number, or a model that has names: what "
            "load_model gives, whole (not unpacked), or one with model.classes = [...]"
        )
        error.command = (
            f"target {name!r}: the model's classes have no names; give a number, --classes FILE or A,B,C, or "
            "--weights that come with names"
        )
        raise error
    wanted = name.strip().casefold()
    # Readings go from the strictest to the loosest, so that a name that is exactly one class's is never doubtful.
    fits = {number for number, known in enumerate(classes) if name == known}
    fits = fits or {number for number, known in enumerate(classes) if wanted == known.casefold()}
    fits = fits or {
        number
        for number, known in enumerate(classes)
        if wanted in [synonym.strip() for synonym in known.casefold().split(",")]
    }
    if len(fits) == 1:
        return fits.pop()
    if fits:
        same = ", ".join(f"{number} ({classes[number]})" for number in sorted(fits))
        raise InvalidTarget(f"target {name!r} may be any of the classes {same}; give the number")
    _refuse_without_blanks(name, classes)
    raise UnknownName("class", name, classes, in_order=True)


def _refuse_without_blanks(name: str, classes: Sequence[str]) -> None:
    """Raise ``InvalidTarget`` for two classes with a minus between them that has no blanks around it."""
    known = {synonym.strip() for one in classes for synonym in (one.casefold(), *one.casefold().split(","))}
    for minus in re.finditer("-", name):
        one, other = name[: minus.start()].strip(), name[minus.end() :].strip()
        if {one.casefold(), other.casefold()} <= known:
            raise InvalidTarget(
                f"target {name!r} is no class; a difference has blanks around its minus: '{one} - {other}'"
            )


def class_numbers(names: Sequence[str], classes: Names, count: int) -> tuple[int, ...]:
    """The model's number of each class that images name: by name, as ``class_number`` and the other way round.

    Where as many classes are there and none is in another place, those without a common name are taken in order,
    with an ``InputWarning``. Mere numbers, of which none is a name of the model's, mean themselves.

    Args:
        names: of the images' classes, such as folders.
        classes: the model's; None where it names none: then all are taken in order.
        count: how many classes the model has; 0 where that cannot be told.

    Raises:
        InvalidData: a class of the images is none of the model's, or they are not as many.
    """
    names, known = tuple(names), None if classes is None else tuple(classes)
    in_order = tuple(range(len(names)))
    if names == known:
        return in_order
    found = [None if known is None else number_among(name, known) for name in names]
    if all(number is not None for number in found):
        return tuple(number for number in found if number is not None)
    # Folders called 0, 1, 2 mean these classes only where none of them is the name of one.
    strangers = not any(number is not None for number in found)
    if strangers and all(name.isdecimal() for name in names) and max(map(int, names)) < count:
        return tuple(map(int, names))
    as_many = len(names) == (count or len(known or names))
    if as_many and all(number in (None, place) for place, number in enumerate(found)):
        # Of a name that two of the model's classes have neither is found, though it stands at its own place.
        told = zip(names, known or names, found, strict=False)
        if unlike := [(name, other) for name, other, number in told if number is None and name != other]:
            _warn_of_order(unlike)
        return in_order
    raise _no_class(names[found.index(None)], len(names), known, count)


def _warn_of_order(pairs: Sequence[tuple[str, str]]) -> None:
    """Warn of classes of images that were taken for classes of the model by their place alone."""
    own, others = (shortened(map(brief, side), 6) for side in zip(*pairs, strict=True))
    message = (
        f"the images' classes {own} are not called as the model's, and are taken in order for {others}; if that "
        "is wrong, rename the images', or name the model's classes as the images do, in the model's order "
        "(--classes, classes)"
    )
    warnings.warn(InputWarning(message), stacklevel=4)


def _no_class(name: str, among: int, known: tuple[str, ...] | None, count: int) -> InvalidData:
    """Why a class, ``among`` so many of the images', is none of a model of ``count`` classes."""
    if known is None:
        return InvalidData(
            f"the images are of {among} classes, as {brief(name)}, and the model has {count}, whose names are not "
            "known; name them (--classes, classes)"
        )
    near = near_names(name, known)
    hint = f"did you mean {' or '.join(near)}" if near else f"known: {shortened(known, 6)}"
    return InvalidData(
        f"the images' class {brief(name)} is none of the model's {len(known)} classes ({hint}); rename it, or "
        "name the model's classes as the images do (--classes, classes)"
    )


def number_among(name: str, classes: Sequence[str]) -> int | None:
    """The number of the one class that has a name, or shares a synonym with it; None where none does."""
    wanted = _synonyms(name)
    for fits in (
        [number for number, known in enumerate(classes) if known == name],
        [number for number, known in enumerate(classes) if _plain(known) == _plain(name)],
        [number for number, known in enumerate(classes) if wanted & _synonyms(known)],
    ):
        if fits:
            return fits[0] if len(fits) == 1 else None
    return None


def _synonyms(name: str) -> set[str]:
    return {_plain(synonym) for synonym in name.split(",")}


def _plain(name: str) -> str:
    """A name as folders may have it, too: without capitals, and with spaces for underscores."""
    return name.strip().casefold().replace("_", " ")


def _function(text: str) -> Answer:
    path, _, name = text.rpartition(":")
    if not path:
        raise InvalidTarget(f"{text!r} names no function; write it as 'path/to/file.py:function'")
    return function_in(path, name, InvalidTarget, "file of targets")


def class_names(model: Any) -> tuple[str, ...] | None:
    """What a model says its classes are called: a ``LoadedModel``'s names, or Hugging Face's ``id2label``."""
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    named = getattr(model, "classes", None)
    if isinstance(named, tuple | list) and all(isinstance(name, str) for name in named):
        return tuple(named)
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return of_labels(labels) if isinstance(labels, Mapping) else None


def of_labels(labels: Mapping[Any, str]) -> tuple[str, ...] | None:
    """The names of ``id2label`` in order; None where they are mere numbers (``LABEL_0``)."""
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
