"""Plain values from outside, checked against the kinds that annotations name, before anything else is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import InvalidParameter, PellucidError, brief


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


def require_settings(taker: Callable[..., Any], settings: Mapping[str, Any], place: str) -> None:
    """Raise ``InvalidParameter`` unless every setting is of the kind that the taker's annotation names."""
    kinds = get_type_hints(taker)
    for name, value in settings.items():
        require_kind(kinds[name], value, f"{place}: {name}", InvalidParameter)


def refusal(found: ValidationError, place: str, error: type[PellucidError]) -> PellucidError:
    """The first thing that a validation found wrong, as one line."""
    problem = found.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    said = problem["msg"]
    return error(
        f"{place}{' ' if where else ''}{where} is {brief(problem['input'])}; {said[:1].lower()}{said[1:]}"
    )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    plain = ConfigDict(arbitrary_types_allowed=True, strict=True)
    try:
        return TypeAdapter(kind, config=plain)
    except Exception:  # a model has a configuration of its own
        return TypeAdapter(kind)
