"""The program: its commands, and how errors end it."""

from __future__ import annotations

import io
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import PellucidError, shortened
from .benchmark import benchmark_command
from .demo import demo
from .doctor import doctor
from .explain import explain
from .export import compare_command, export
from .lists import listing
from .maps import maps, show_command
from .options import COMMAND
from .report import report
from .reproduce import reproduce_command
from .surrogate import surrogate
from .terminal import say, visible
from .train import train_command
from .view import view

_HOME = re.compile(r"^((?:--?[\w-]+=)?(?:[\w-]+=)?)~(?=/|$)")  # FILE, --option=FILE, --data=NAME=FILE
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # the base, which typer does not name
_GOES_ON = "the same command goes on"
_AFTER_EPOCH = f"{_GOES_ON} after the last whole epoch"
RESUMED = {  # commands that go on where they were stopped, and from where
    "explain": _GOES_ON,
    "benchmark": _GOES_ON,
    "reproduce": _GOES_ON,
    "maps": f"{_GOES_ON} after the last whole shard",
    "train": _AFTER_EPOCH,
    "surrogate": _AFTER_EPOCH,
}


_ALIKE = (  # options that say the same to different commands
    {"--limit", "--count"},
    {"--images", "--data"},
)


def _called_here(error: Exception) -> str:
    """What the command calls an option that it does not have, or which other commands have it; else nothing."""
    given, context = vars(error).get("option_name"), vars(error).get("ctx")
    known = {name for one in context.command.params for name in one.opts} if context else set()
    names = sorted(name for alike in _ALIKE if given in alike for name in alike & known)
    # What is one letter short of an option here is most likely that one.
    if names or not context or any(name.startswith(str(given)) for name in known):
        return f"; here it is {names[0]}" if names else ""
    commands = getattr(getattr(context.parent, "command", None), "commands", {})
    others = [name for name, one in commands.items() if any(given in option.opts for option in one.params)]
    return f"; of pellucid {shortened(others, 4)}" if others else ""


class Commands(TyperGroup):
    """The commands, with errors of the user's as one line and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed, for run.json; ``~/`` is the home folder in whatever a command is given."""
        ctx.meta[COMMAND] = shlex.join(["pellucid", *args])
        if args[:1] == ["explain"] and "--bulk" in args:  # by its other name
            args = ["maps", *(arg for arg in args[1:] if arg != "--bulk")]
        return super().parse_args(ctx, [_HOME.sub(lambda found: f"{found[1]}{Path.home()}", arg) for arg in args])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that is not the user's keeps its traceback."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
                stream.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings(), _ended_by_signals():
                warnings.showwarning = _shown_once()
                # Of what a user's file does with a picture's pixels, which nobody writes to.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return super().invoke(ctx)
        except _USAGE_ERROR as error:  # of options: what was typed is quoted
            vars(error)["message"] = visible(str(vars(error).get("message", "")) + _called_here(error))
            raise
        except PellucidError as error:
            say(f"error: {' '.join((error.command or str(error)).split())}", err=True)
            raise typer.Exit(2) from error
        except SystemExit as error:  # no command raises it: code of the user's does, or a table into a closed pipe
            if isinstance(error.__context__, BrokenPipeError):  # as head leaves it: nobody reads on
                raise typer.Exit(1) from error
            say(f"error: code of the model, method or target called sys.exit({error.code!r})", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            goes_on = RESUMED.get(ctx.invoked_subcommand or "", "nothing was written")
            place = "".join(f" at {note}" for note in getattr(interrupt, "__notes__", [])[:1])
            say(f"stopped{place}; {goes_on}", err=True)
            raise typer.Exit(128 + number) from interrupt


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, so that drafts are removed and locks are freed."""

    def end(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {getattr(signal, name): signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown_once() -> Callable[..., None]:
    """What shows each warning as one line, once, without the place in the code where it arose."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        library = _library(category, filename)
        line = f"note: {f'{library} warns: ' if library else ''}{' '.join(str(message).split())}"
        if line not in shown:
            say(line, err=True)
        shown.add(line)

    return show


def _library(category: type[Warning], filename: str) -> str:
    """Which other library warns, by the file where it does; empty of what is our own, or of no library."""
    parts = Path(filename).parts
    folders = [at for at, part in enumerate(parts[:-1]) if part in ("site-packages", "dist-packages")]
    is_own = category.__module__.startswith("pellucid.") or not folders
    name = "" if is_own else parts[folders[-1] + 1].removesuffix(".py")
    return "" if name == "pellucid" else name


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(explain)
app.command("benchmark")(benchmark_command)
app.command()(maps)
app.command("show")(show_command)
app.command()(report)
app.command()(export)
app.command("compare")(compare_command)
app.command()(view)
app.command()(demo)
app.command()(doctor)
app.command("train")(train_command)
app.command("reproduce")(reproduce_command)
app.add_typer(surrogate, name="surrogate")
app.add_typer(listing, name="list")


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"pellucid {version('pellucid')}")
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
