"""A report as one page that needs nothing else: all that it shows is inside it, it makes no requests."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..files import replace_file


@dataclass(frozen=True)
class Picture:
    """A .png or .svg file to embed, what it shows in words, and the line below it."""

    path: Path
    description: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The file's content as a data URI."""
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[self.path.suffix]
        return f"data:{kind};base64,{b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Bar:
    """A table's number that is also drawn: ``share`` in [0, 1] is the length of its bar."""

    share: float
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text, the first of each its heading, and numbers with bars; ``prose``: the text is sentences."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    caption: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, tables and pictures."""

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def page(title: str, lead: Sequence[str], sections: Sequence[Section], footer: str = "") -> str:
    """Write a report as HTML; all text is escaped."""
    return render("report.html", title=title, lead=lead, sections=sections, footer=footer)


def render(template: str, **content: Any) -> str:
    """Fill one of the templates; all text is escaped."""
    return _templates().get_template(template).render(content)


def save(text: str, path: str | Path) -> None:
    """Write a page in one move.

    Raises:
        OutputNotWritable: the file cannot be written.
    """
    replace_file(Path(path), text.encode())


def breakable(name: str) -> Markup:
    """A name that a narrow column may break at its joints: smoothed( | guided_ | backprop, | samples= | 5)."""
    return Markup(re.sub(r"(?<=[_.,/=])|(?<=\w\()", "<wbr>", str(escape(name))))


@lru_cache(maxsize=1)
def _templates() -> Environment:
    loader = PackageLoader("pellucid.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["bar"] = lambda value: isinstance(value, Bar)
    environment.filters["breakable"] = breakable
    return environment
