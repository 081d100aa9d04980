"""Names in a recipe's TOML, so that what is used often is written once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import product
from typing import Any

from ..errors import UnknownName

_BLANK = re.compile(r"\{(\w+)\}")


def expanded(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's content with all names replaced by what its table ``names`` says; the table itself is left out.

    * ``"$name"`` is the named value. A list that stands in a list gives its entries.
    * ``like = "$name"`` in a table is the named value with the table's other keys put in, tables key by key;
      of several (``like = ["$one", "$other"]``) the later goes before the earlier.
    * ``fill = { key = value }`` in a table writes the value for each ``{key}`` in its texts and keys. Where a
      value is a list, there is one entry for each of its values (of several lists, for each combination, the last
      key's values changing first). ``fill`` may be a list of such tables, too.

    Raises:
        UnknownName: a name that the table has not.
        ValueError: a ``{key}`` that nothing fills, or several values where one has to stand.
    """
    rest = {key: value for key, value in content.items() if key != "names"}
    found: dict[str, Any] = _one(rest, content.get("names", {}))
    if unfilled := next(_texts_with_blanks(found), None):
        raise ValueError(f"nothing fills the blank in {unfilled!r}; write fill = {{ ... }} beside it")
    return found


def merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Values with some replaced; tables are merged key by key."""
    found = dict(values)
    for key, value in others.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def _one(value: Any, names: Mapping[str, Any]) -> Any:
    """What stands for a value that stands alone."""
    found = _variants(value, names)
    if len(found) != 1:
        raise ValueError(f"{len(found)} values where one has to stand: {value}")
    return found[0]


def _variants(value: Any, names: Mapping[str, Any]) -> list[Any]:
    """A value with its names replaced, once for each way to fill its blanks."""
    if isinstance(value, str):
        return [_one(_named(value, names), names) if value.startswith("$") else value]
    if isinstance(value, list):
        return [[entry for part in value for entry in _entries(part, names)]]
    if not isinstance(value, Mapping):
        return [value]
    found = {key: _one(part, names) for key, part in value.items() if key not in ("like", "fill")}
    if "like" in value:
        like = value["like"]
        bases = [_one(base, names) for base in (like if isinstance(like, list) else [like])]
        found = reduce(merged, [*bases, found]) if found or len(bases) > 1 else bases[0]
    if "fill" not in value:
        return [found]
    return [_filled(found, blanks) for blanks in _fillings(_one(value["fill"], names))]


def _entries(value: Any, names: Mapping[str, Any]) -> Iterator[Any]:
    """The entries of a list that stand for one that is written."""
    for found in _variants(value, names):
        yield from found if isinstance(found, list) and not isinstance(value, list) else [found]


def _named(text: str, names: Mapping[str, Any]) -> Any:
    if text[1:] not in names:
        raise UnknownName("name of the recipe", text[1:], names)
    return names[text[1:]]


def _fillings(fill: Any) -> Iterator[dict[str, Any]]:
    for table in fill if isinstance(fill, list) else [fill]:
        values = [value if isinstance(value, list) else [value] for value in table.values()]
        for chosen in product(*values):
            yield dict(zip(table, chosen, strict=True))


def _filled(value: Any, blanks: Mapping[str, Any]) -> Any:
    """Plain values with blanks filled; a text that is nothing but a blank becomes the value as it is."""
    if isinstance(value, Mapping):
        return {_filled(key, blanks): _filled(part, blanks) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, blanks) for part in value]
    if not isinstance(value, str):
        return value
    if (whole := _BLANK.fullmatch(value)) and whole[1] in blanks:
        return blanks[whole[1]]
    return _BLANK.sub(lambda blank: str(blanks.get(blank[1], blank[0])), value)


def _texts_with_blanks(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from [value] if _BLANK.search(value) else []
    elif isinstance(value, Mapping | list):
        for part in (*value, *value.values()) if isinstance(value, Mapping) else value:
            yield from _texts_with_blanks(part)
