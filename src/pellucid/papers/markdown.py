"""A report's sections as GitHub-flavored Markdown, with the pictures of a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..report.html import Section, Table


def markdown(title: str, lead: Sequence[str], sections: Sequence[Section], footer: str, pictures: str) -> str:
    """Write what ``report.html.page`` writes; ``pictures`` is the folder of the .png files, from the page's own.

    All text is escaped.
    """
    parts = [f"# {escaped(title)}", *map(escaped, lead)]
    for section in sections:
        parts += [f"## {escaped(section.heading)}", *map(escaped, section.paragraphs)]
        for table in section.tables:
            parts += [_table(table), *_caption(table.caption)]
        for picture in section.pictures:
            path = f"{pictures}/{picture.path.with_suffix('.png').name}"
            parts += [f"![{escaped(picture.description)}]({path})", *_caption(picture.caption)]
    return "\n\n".join([*parts, escaped(footer)]) + "\n"


def _table(table: Table) -> str:
    lines = [list(map(escaped, table.columns)), ["---"] * len(table.columns)]
    for row in table.rows:
        texts = [cell if isinstance(cell, str) else cell.text for cell in row]
        lines.append([escaped(text).replace("\n", "<br>") for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _caption(text: str) -> list[str]:
    return [f"*{escaped(text)}*"] if text else []


def escaped(text: str) -> str:
    """Text that means nothing to Markdown but itself."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)
    text = re.sub(r"^([-+])(?=\s)", r"\\\1", text)  # no list
    return re.sub(r"^(\d+)([.)])(?=\s)", r"\1\\\2", text)
