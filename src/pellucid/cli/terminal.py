"""What commands show on the terminal: progress, tables, and what was amiss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ..errors import counted

if TYPE_CHECKING:
    from ..experiments.record import Note

ALREADY_FINISHED = "{} was finished already; nothing was computed"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LOGGED = 60  # seconds from one line of progress in a log to the next
_MOST_TOLD = 20  # images left out, or cells that failed, whose reasons are shown


def visible(text: str, kept: str = "\n") -> str:
    """A text whose control characters, but those ``kept``, stand as escapes such as \\x1b.

    Names of files, classes and layers may hold them, and a terminal would obey: change colors, move, erase lines.
    """

    def escaped(found: re.Match[str]) -> str:
        return found[0] if found[0] in kept else f"\\x{ord(found[0]):02x}"

    return _CONTROLS.sub(escaped, text)


def say(text: str, err: bool = False) -> None:
    """Print a text; the one place, with ``show_whole``, where commands print."""
    typer.echo(visible(text), err=err)


class Show(Protocol):
    """Shows what is being done and how far it is."""

    def __call__(self, what: str, done: float, total: int, kept: str = "") -> None:
        """Show it; ``kept`` is what an interruption leaves of it, where that is not as much."""


@contextmanager
def progress() -> Iterator[Show]:
    """Give a function that shows what is done and how far it is: a bar on a terminal, in a log some lines.

    The time left is told by what is done after the first call, not by what an earlier run had done. An
    interruption is told how far it was, or what of it is kept.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, shown, place = bar.add_task("checking", total=None), (0.0, -1), ""
        told = monotonic()

        def show(what: str, done: float, total: int, kept: str = "") -> None:
            nonlocal shown, place, told
            place = kept or f"{int(done)} of {total}"
            if bar.disable and (now := monotonic()) - told >= _LOGGED:
                say(f"{what}: {int(done)} of {total}", err=True)
                told = now
            if total != shown[1] or done < shown[0]:
                bar.reset(task, total=total, completed=int(done))
            shown = (done, total)
            bar.update(task, description=escape(visible(what, "")), completed=done)

        try:
            yield show
        except KeyboardInterrupt as interrupt:
            if shown[1] > 0:
                interrupt.add_note(place)
            raise


def show_going_on(done: int, total: int, noun: str) -> None:
    """Say of how much that was done before a command goes on."""
    if 0 < done < total:
        say(f"going on at {done} of {counted(total, noun)}", err=True)


def show_whole(table: Table, keys: int = 0) -> None:
    """Print a table; into a pipe as wide as it is, so that no name is cut.

    On a terminal that is too narrow, columns go into further tables, each of which begins with the first ``keys``.
    """
    table = _plain(table)
    console = Console()
    narrow = console.is_terminal
    if not narrow:
        console = Console(width=Console(width=10_000).measure(table).maximum)
    for part in _fitting_parts(console, table, keys) if keys and narrow else [table]:
        console.print(part)


def _plain(table: Table) -> Table:
    """The same table of texts without control characters; a line's end stays in its heads alone."""
    heads = [Column(visible(str(one.header)), justify=one.justify, no_wrap=one.no_wrap) for one in table.columns]
    title, caption = (text and visible(str(text)) for text in (table.title, table.caption))
    found = Table(*heads, title=title, caption=caption, box=table.box, pad_edge=table.pad_edge)
    found.title_justify, found.caption_justify = table.title_justify, table.caption_justify
    for row in zip(*(one.cells for one in table.columns), strict=True):
        found.add_row(*(visible(str(cell), "") for cell in row))
    return found


def _fitting_parts(console: Console, table: Table, keys: int) -> list[Table]:
    """Tables of the first ``keys`` columns and as many of the others as the console has room for."""
    whole, parts, places = list(table.columns), [], list(range(keys))

    def part(places: Sequence[int]) -> Table:
        columns = [Column(whole[place].header, justify=whole[place].justify, no_wrap=True) for place in places]
        found = Table(*columns, box=table.box, pad_edge=table.pad_edge)
        for row in zip(*(whole[place].cells for place in places), strict=True):
            found.add_row(*row)
        return found

    for place in range(keys, len(whole)):
        wider = Console(width=10_000).measure(part([*places, place])).maximum > console.width
        if wider and len(places) > keys:
            parts.append(part(places))
            places = list(range(keys))
        places.append(place)
    parts.append(part(places))
    parts[0].title, parts[0].title_justify = table.title, "left"
    parts[-1].caption, parts[-1].caption_justify = table.caption, "left"
    return parts


def show_left_out(noun: str, reasons: Sequence[str]) -> None:
    """Say how many could not be used, and why."""
    if reasons:
        say(f"left out {counted(len(reasons), noun)}:", err=True)
        show_reasons(reasons)


def show_reasons(reasons: Sequence[str]) -> None:
    """Show what was wrong, as far as it fits a screen."""
    for reason in reasons[:_MOST_TOLD]:
        say(f"  {visible(reason, '')}", err=True)
    if len(reasons) > _MOST_TOLD:
        say(f"  and {len(reasons) - _MOST_TOLD} more", err=True)


def show_noticed(sentences: Iterable[str], place: str = "") -> None:
    """Say what makes maps say less than they seem to; ``place`` begins each line."""
    for sentence in sentences:
        say(f"note: {place}{visible(sentence, '')}", err=True)


def show_notes(notes: Mapping[Note, int], noun: str, total: int) -> None:
    """Say once and short what is to be known about methods (``notes_told``)."""
    from ..findings.wording import notes_told

    show_noticed(notes_told([*notes], noun, notes, total))
