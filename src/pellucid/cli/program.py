"""The program: its commands, and how errors end it."""

from __future__ import annotations

import shlex
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import PellucidError
from .benchmark import benchmark_command
from .demo import demo
from .explain import explain
from .lists import listing
from .options import COMMAND
from .report import report
from .reproduce import reproduce_command
from .surrogate import surrogate
from .train import train_command


class Commands(TyperGroup):
    """The commands, with errors of the user's as one line and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed, for run.json."""
        ctx.meta[COMMAND] = shlex.join(["pellucid", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that is not the user's keeps its traceback."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except PellucidError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line, without the place in the code where it arose."""
    typer.echo(f"note: {' '.join(str(message).split())}", err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(explain)
app.command("benchmark")(benchmark_command)
app.command()(report)
app.command()(demo)
app.command("train")(train_command)
app.command("reproduce")(reproduce_command)
app.add_typer(surrogate, name="surrogate")
app.add_typer(listing, name="list")


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pellucid {version('pellucid')}")
        raise typer.Exit


@app.callback()
def _app(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Clear saliency maps of CNN image classifiers, at every layer.

    Start with `pellucid demo`, which needs neither data nor a network connection.
    """
