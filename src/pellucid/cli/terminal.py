"""What a command shows on the terminal: progress, tables, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ..errors import EmptyMapWarning, counted, shortened
from .pictures import percent

if TYPE_CHECKING:
    from .run import Run

ROWS = 20  # of the table of photos


def progress() -> Progress:
    """A progress bar on a terminal's standard error, which leaves nothing behind."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def show_whole(table: Table) -> None:
    """Print a table; into a pipe as wide as it is, so that no name is cut."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)


def show_run(run: Run, output: Path) -> None:
    """Show the photos' classes, where everything is, and what was amiss."""
    table = Table("photo", "explained class", Column("probability", justify="right"), box=None, pad_edge=False)
    for facts in run.photos[:ROWS]:
        target = facts["target"]
        table.add_row(escape(facts["name"]), escape(target["name"]), percent(target["probability"]))
    Console().print(table)
    figures = list(output.glob("figure-*.png"))
    typer.echo(f"{counted(len(run.photos), 'photo')} explained; {counted(len(figures), 'figure')} in {output}")
    # A network from a file comes with the weights that its factory gave it.
    if run.loaded.weights == "random" and ".py:" not in run.loaded.name:
        typer.echo(f"note: {run.loaded.name} has random weights; give --weights FILE or DEFAULT", err=True)
    for (category, text), layers in run.warned.items():
        typer.echo(f"note: {note(category, text, layers)}", err=True)
    if run.left_out:
        typer.echo(f"left out {counted(len(run.left_out), 'photo')}:", err=True)
        for message in run.left_out:
            typer.echo(f"  {message}", err=True)


def note(category: type[Warning], text: str, layers: Sequence[str]) -> str:
    """A warning that many calls gave, once and short."""
    where = f"at {shortened(layers, 3)}"
    if issubclass(category, EmptyMapWarning):
        return f"{text} is zero everywhere {where} for some photos; lower its threshold or choose another layer"
    return (
        f"{text} misses the sum it should have by more than 5 % {where} for some photos; "
        "take more steps, see residuals in run.json"
    )
