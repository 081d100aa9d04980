"""The command ``reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import require_choice
from .benchmark import show_troubles
from .facts import COMMAND
from .request import chosen_device, parted
from .terminal import progress, show_whole

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..papers.quantities import Verdict
    from ..papers.recipe import Recipe, Scale
    from ..papers.running import Run


def reproduce(
    ctx: typer.Context,
    paper: Annotated[
        str | None, typer.Argument(metavar="[PAPER]", help="One of the papers; left out, they are listed.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY,KEY", help="The tables and figures wanted; else all.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="`smoke` (under a minute), `cpu` (under two hours on two cores) or `paper`.")
    ] = "cpu",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER|NAME=SRC", help="Where the images are, or one source; may be repeated."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER|NAME=FILE", help="Where the weights are, or one file; may be repeated."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the tables and figures; run nothing.")] = False,
    photos: Annotated[
        bool, typer.Option(help="Show photos beside their maps; not where they may not be published.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder to write.", show_default="PAPER-SCALE"),
    ] = None,
) -> None:
    """Compute a paper's tables and figures anew, and say which of its claims hold.

    Networks are trained first, then experiments run; the page puts the paper's numbers beside ours. A run that was
    stopped goes on where it was when the same command is given again.

    Example: `pellucid reproduce sanity-checks --scale smoke --data data -o sanity`
    """
    from ..papers import recipe as recipes

    require_choice("scale", scale, recipes.Scale)
    if paper is None:
        show_papers()
        return
    recipe = recipes.read_recipe(paper).only(tuple(parted(only or [])))
    if listed:
        show_exhibits(recipe)
        return
    folder = output or Path(f"{paper}-{scale}")
    found = run(recipe, cast("Scale", scale), folder, data or [], weights or [], device, photos, ctx.meta[COMMAND])
    show(found, folder)
    if any(results.failed for results in found.results.values()):
        raise typer.Exit(1)


def run(
    recipe: Recipe,
    scale: Scale,
    folder: Path,
    data: Sequence[str],
    weights: Sequence[str],
    device: str,
    photos: bool,
    command: str,
) -> Run:
    """Run the recipe and write its page, showing how far it is."""
    from ..papers import running
    from ..papers.page import write_paper_page

    with progress() as bar:
        steps = Steps(bar)
        found = running.reproduce(
            recipe, scale, folder, data, weights, chosen_device(device), steps.advance, command
        )
        steps.advance("page", "drawing", 0, len(recipe.exhibits))
        write_paper_page(found, folder, photos)
    return found


class Steps:
    """What is being done, as a bar on a terminal; of each step that has ended, a line on standard error."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("checking", total=None)
        self.current = self.last = ""

    def advance(self, step: str, what: str, done: int, total: int) -> None:
        """Show how far a step is; the first of another ends it."""
        if step != self.current:
            if self.last:
                self.bar.console.print(self.last, markup=False, highlight=False)
            self.bar.reset(self.task, total=total, completed=done)
        self.current, self.last = step, f"{step}: {what}, {done} of {total}"
        self.bar.update(self.task, description=f"{step}: {what}", completed=done, total=total)


def show(run: Run, folder: Path) -> None:
    """Show which claims hold, what was amiss, and where the page is."""
    from ..papers.page import judged

    if verdicts := judged(run):
        show_whole(claims(verdicts))
    for key, results in run.results.items():
        show_troubles(results, f"{key}: ")
    typer.echo(f"open {folder / 'index.html'}, or read {folder / 'README.md'}")


def claims(verdicts: Sequence[Verdict]) -> Table:
    """A row for each claim."""
    table = Table("", "claim", "place", title="What the paper says", title_justify="left")
    for verdict in verdicts:
        table.add_row(escape(str(verdict)), escape(verdict.claim.text), escape(verdict.claim.place))
    return table


def show_papers() -> None:
    """List the papers."""
    from ..papers import recipe as recipes

    table = Table("name", "paper", "authors", "tables and figures", title="Papers", title_justify="left")
    for name in recipes.PAPERS:
        recipe = recipes.read_recipe(name)
        table.add_row(name, escape(recipe.title), escape(recipe.authors), str(len(recipe.exhibits)))
    show_whole(table)
    typer.echo("`pellucid reproduce NAME --list` shows a paper's tables and figures.")


def show_exhibits(recipe: Recipe) -> None:
    """List a paper's tables and figures, and what the person has to bring."""
    table = Table("name", "what it is", "experiment", title=escape(recipe.title), title_justify="left")
    for exhibit in recipe.exhibits:
        table.add_row(exhibit.key, escape(exhibit.title), exhibit.experiment)
    show_whole(table)
    for option, sources in (("--data", recipe.sources), ("--weights", recipe.weights)):
        for key, source in sources.items():
            typer.echo(f"{option} {key}: {source.about} ({source.path} in the folder)")
