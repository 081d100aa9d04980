"""The command ``reproduce``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import require_choice
from .benchmark import show_troubles
from .options import (
    COMMAND,
    DEVICE,
    AddressOption,
    CpusOption,
    RunnerOption,
    chosen_device,
    chosen_runner,
    parted,
)
from .terminal import progress, say, show_whole

if TYPE_CHECKING:
    from ..papers.quantities import Verdict
    from ..papers.recipe import Recipe, Scale
    from ..papers.running import Reproduction


def reproduce_command(
    ctx: typer.Context,
    paper: Annotated[
        str | None, typer.Argument(metavar="[PAPER]", help="One of the papers; left out, they are listed.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY,KEY", help="The tables and figures wanted; else all.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="`smoke` (under a minute), `cpu` (one to six hours on two cores) or `paper`.")
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
    device: Annotated[str, DEVICE] = "auto",
    runner: RunnerOption = "inline",
    address: AddressOption = None,
    cpus: CpusOption = None,
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
    from ..papers.page import write_paper_page
    from ..papers.running import reproduce

    require_choice("scale", scale, recipes.Scale)
    if paper is None:
        _show_papers()
        return
    recipe = recipes.read_recipe(paper).only(tuple(parted(only or [])))
    if listed:
        _show_exhibits(recipe)
        return
    folder, typed = output or Path(f"{paper}-{scale}"), ctx.meta[COMMAND]
    with progress() as show:
        steps = _Steps(show)
        found = reproduce(
            recipe,
            cast("Scale", scale),
            folder,
            data or [],
            weights or [],
            chosen_device(device),
            steps.advance,
            f"{typed} --scale {scale}" if "--scale" not in typed else typed,
            chosen_runner(runner, address, cpus),
        )
        steps.advance("page", "drawing", 0, len(recipe.exhibits))
        write_paper_page(found, folder, photos)
    _show(found, folder)
    if any(results.failed for results in found.results.values()):
        raise typer.Exit(1)


class _Steps:
    """Shows how far the step is that is being done, and says on standard error what each step came to."""

    def __init__(self, show: Callable[[str, int, int], None]) -> None:
        self.show = show
        self.current = self.last = ""

    def advance(self, step: str, what: str, done: int, total: int) -> None:
        """Show how far a step is; the first call of another one ends it."""
        if self.last and step != self.current:
            say(self.last, err=True)
        self.current, self.last = step, f"{step}: {what}, {done} of {total}"
        self.show(f"{step}: {what}", done, total)


def _show(run: Reproduction, folder: Path) -> None:
    """Show which claims hold, what was amiss, and where the page is."""
    from ..papers.page import judged

    if verdicts := judged(run):
        show_whole(_claims(verdicts))
    show_troubles(run.results)
    say(f"open {folder / 'index.html'}, or read {folder / 'README.md'}")


def _claims(verdicts: Sequence[Verdict]) -> Table:
    """A row for each claim."""
    table = Table("", "claim", "place", title="What the paper says", title_justify="left")
    for verdict in verdicts:
        table.add_row(escape(str(verdict)), escape(verdict.claim.text), escape(verdict.claim.place))
    return table


def _show_papers() -> None:
    """List the papers."""
    from ..papers import recipe as recipes

    table = Table("name", "paper", "authors", "tables and figures", title="Papers", title_justify="left")
    for name in recipes.PAPERS:
        recipe = recipes.read_recipe(name)
        table.add_row(name, escape(recipe.title), escape(recipe.authors), str(len(recipe.exhibits)))
    show_whole(table)
    say("`pellucid reproduce NAME --list` shows a paper's tables and figures.")


def _show_exhibits(recipe: Recipe) -> None:
    """List a paper's tables and figures, and what the person has to bring."""
    table = Table("name", "what it is", "experiment", title=escape(recipe.title), title_justify="left")
    for exhibit in recipe.exhibits:
        table.add_row(exhibit.key, escape(exhibit.title), exhibit.experiment)
    show_whole(table)
    for option, sources in (("--data", recipe.sources), ("--weights", recipe.weights)):
        for key, source in sources.items():
            say(f"{option} {key}: {source.about} ({source.path} in the folder)")
