"""Plain values from outside, checked against the kinds that annotations name, before anything else is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import InvalidParameter, PellucidError, UnknownName, brief

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def require_kind(kind: Any, value: object, place: str, error: type[PellucidError]) -> Any:
    """A plain value as what an annotation names, such as ``tuple[float, ...]`` or a pydantic model.

    Nothing is converted that is not meant: no text to a number, no number to a truth.

    Raises:
        PellucidError: the ``error`` given, of the first value that is wrong, with its ``place``.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as found:
        raise refusal(found, place, error) from found


def of_kinds(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A function that refuses arguments of other kinds than its annotations name (``InvalidParameter``).

    An argument that it does not have is told with those that it has (``UnknownName``). NumPy's numbers count as
    Python's, and lists as tuples.
    """
    given = signature(function)

    @wraps(function)
    def checked(*arguments: _Given.args, **named: _Given.kwargs) -> _Result:
        for name in named:
            if name not in given.parameters:
                known = [own for own in given.parameters if own not in ("self", "cls")]
                raise UnknownName(f"argument of {function.__name__}", name, known)
        settings = given.bind(*arguments, **named).arguments
        require_settings(function, {name: as_plain(value) for name, value in settings.items()}, function.__name__)
        return function(*arguments, **named)

    return checked


def as_plain(value: Any) -> Any:
    """A setting with its lists as tuples and NumPy's numbers as Python's."""
    if isinstance(value, list):
        return tuple(map(as_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def require_settings(taker: Callable[..., Any], settings: Mapping[str, Any], place: str) -> None:
    """Raise ``InvalidParameter`` unless every setting is of the kind that the taker's annotation names."""
    kinds = _hints(taker)
    for name, value in settings.items():
        require_kind(kinds.get(name, Any), value, f"{place}: {name}", InvalidParameter)


def refusal(found: ValidationError, place: str, error: type[PellucidError]) -> PellucidError:
    """The first thing that a validation found wrong, as one line."""
    problem = found.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    said = "give a tuple, such as (1,) or (1, 2)" if problem["type"] == "tuple_type" else problem["msg"]
    return error(
        f"{place}{' ' if where else ''}{where} is {brief(problem['input'])}; {said[:1].lower()}{said[1:]}"
    )


_hints = cache(get_type_hints)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # It is strict, or pydantic would take "1" for a number and 1 for a truth.
    plain = ConfigDict(arbitrary_types_allowed=True, strict=True)
    try:
        return TypeAdapter(kind, config=plain)
    except Exception:  # a model has a configuration of its own
        return TypeAdapter(kind)
