"""Pages and what they are made of: as HTML that needs nothing else, and as Markdown beside its pictures."""

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


@dataclass(frozen=True)
class Picture:
    """A .png or .svg file to embed, what it shows in words, and the line below it."""

    path: Path
    description: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The file's content as a data URI."""
        return data_uri(self.path.read_bytes(), {".png": "png", ".svg": "svg+xml"}[self.path.suffix])


@dataclass(frozen=True)
class Whisker:
    """An interval and its mean as shares of 100 of the width it is drawn in."""

    left: float
    width: float
    at: float


@dataclass(frozen=True)
class TableCell:
    """A table's text, a fainter note behind it, what it is sorted by (None: last), and how it looks.

    ``bar`` in [0, 1] is the length of a bar drawn behind it.
    """

    text: str
    note: str = ""
    by: float | None = None
    best: bool = False
    whisker: Whisker | None = None
    bar: float | None = None


@dataclass(frozen=True)
class TableColumn:
    """A column's title, what it is measured in, and whether a first click sorts the highest to the top."""

    title: str
    note: str = ""
    descending: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row's title, its cells, whether it is a floor (random, edges), and where its title leads, if anywhere."""

    title: str
    cells: Sequence[TableCell]
    floor: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells, and the lines by them; ``prose``: the text is sentences; ``metric``: what it is of."""

    columns: Sequence[TableColumn]
    rows: Sequence[TableRow]
    caption: str = ""
    title: str = ""
    notes: Sequence[str] = ()
    metric: str = ""
    prose: bool = False
    sortable: bool = False

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        rows: Sequence[Sequence[str | TableCell]],
        caption: str = "",
        prose: bool = False,
    ) -> Table:
        """A table of texts, the first of each row its title."""
        cells = [[TableCell(one) if isinstance(one, str) else one for one in row] for row in rows]
        told = [TableRow(first.text, others) for first, *others in cells]
        return cls(list(map(TableColumn, columns)), told, caption, prose=prose)


@dataclass(frozen=True)
class Tile:
    """A small picture as a data URI, or by its place among the page's; ``squares``: its pixels are to be seen.

    ``words`` say what is seen to whoever cannot see it, ``note`` stands below the picture, and
    ``full`` is the picture as large as it may be seen, if that is larger.
    """

    uri: str
    words: str
    squares: bool = False
    place: int | None = None
    note: str = ""
    full: str = ""


BLANK = Tile("", "")  # a place of a table that stays empty


@dataclass(frozen=True)
class MapTable:
    """Small pictures by row and column, None where there is no map.

    Each row has a title; a ``corner`` of None shows none of them. ``ratio`` is the pictures' width by height,
    which is their photo's, whatever a layer's own is.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tile | None]]]
    corner: str | None = ""
    ratio: float = 1.0


@dataclass(frozen=True)
class ColorKey:
    """The colors of maps, as CSS has them, from left to right, and what they mean left, amid and right."""

    colors: Sequence[str]
    meanings: tuple[str, str, str]


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, tables, maps and pictures; ``folded`` shows the heading alone until it is clicked.

    ``photo`` stands beside the paragraphs; ``warnings`` are paragraphs that stand out; ``keys`` say what the
    colors of the maps mean; ``note`` is small print below them; links lead to ``anchor``.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False
    warnings: Sequence[str] = ()
    photo: Tile | None = None
    maps: Sequence[MapTable] = ()
    keys: Sequence[ColorKey] = ()
    note: str = ""
    anchor: str = ""

    def markdown(self, pictures: str) -> list[str]:
        """Its parts, with the .png files of the folder ``pictures`` beside the page."""
        heading = escape_markdown(self.heading)
        parts = ["<details>", f"<summary>{heading}</summary>"] if self.folded else [f"## {heading}"]
        parts += map(escape_markdown, self.paragraphs)
        for table in self.tables:
            parts += [_markdown_table(table), *_markdown_caption(table.caption)]
        for picture in self.pictures:
            path = f"{pictures}/{picture.path.with_suffix('.png').name}"
            parts += [f"![{escape_markdown(picture.description)}]({path})", *_markdown_caption(picture.caption)]
        return [*parts, "</details>"] if self.folded else parts


@dataclass(frozen=True)
class Page:
    """A title, paragraphs that lead to sections, and a line below them; all text is escaped."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    footer: str = ""
    others: Sequence[tuple[str, str]] = ()  # titles and files of the pages that this one is one of; its own: ""

    def html(self) -> str:
        """The page as HTML, with its pictures inside."""
        return render("report.html", page=self)

    def markdown(self, pictures: str) -> str:
        """The page as GitHub-flavored Markdown, with the .png files of the folder ``pictures`` beside it."""
        parts = [f"# {escape_markdown(self.title)}", *map(escape_markdown, self.lead)]
        for section in self.sections:
            parts += section.markdown(pictures)
        return "\n\n".join([*parts, escape_markdown(self.footer)]) + "\n"


def render(template: str, **content: Any) -> str:
    """Fill one of the templates; all text is escaped."""
    return _templates().get_template(template).render(content)


def data_uri(content: bytes, kind: str) -> str:
    """A picture's file as a link that holds it."""
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def escape_markdown(text: str) -> str:
    """Text that means nothing to Markdown but itself."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
    text = re.sub(r"^([-+])(?=\s)", r"\\\1", text)  # no list
    return re.sub(r"^(\d+)([.)])(?=\s)", r"\1\\\2", text)


def _markdown_table(table: Table) -> str:
    lines = [[escape_markdown(column.title) for column in table.columns], ["---"] * len(table.columns)]
    for row in table.rows:
        texts = [row.title, *(cell.text for cell in row.cells)]
        lines.append([escape_markdown(text).replace("\n", "<br>") for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_caption(text: str) -> list[str]:
    return [f"*{escape_markdown(text)}*"] if text else []


def _breakable(name: str) -> Markup:
    """A name that a narrow column may break at its joints: smoothed( | guided_ | backprop, | samples= | 5)."""
    return Markup(re.sub(r"(?<=[_,/=])|(?<=\.)(?!\d+[ .,;)])|(?<=\w\()", "<wbr>", str(escape(name))))


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("pellucid.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment
