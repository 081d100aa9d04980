"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidParameter, counted
from .terminal import say


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The output of `pellucid benchmark`: a folder or URL.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page to write.", show_default="RUN/report.html"),
    ] = None,
) -> None:
    """Write a benchmark's report: one HTML page, trust card first, that opens offline.

    A run that is still under way can be reported too; the page says how much is missing.

    Example: `pellucid report results -o results.html`
    """
    from ..experiments.store import Results
    from ..files import replace_file
    from ..report.benchmark_page import benchmark_page

    if output is not None and output.suffix not in (".html", ".htm"):
        raise InvalidParameter(
            f"--output {output}: the report is one HTML page; give a file ending in .html, or write tables with: "
            f"pellucid export {run} -o {output.with_suffix('.csv')}"
        )
    results = Results.read(run)
    path = output or page_of(run)
    replace_file(path, benchmark_page(results).encode(errors="replace"))
    missing = len(results.missing)
    if missing:
        say(f"note: the run is unfinished, {counted(missing, 'cell')} missing", err=True)
    say(f"open {path}")


def page_of(run: str) -> Path:
    """Where the report goes by default: into the run's folder; of a run elsewhere, into this one."""
    folder = Path(run).expanduser()
    return folder / "report.html" if folder.is_dir() else Path(f"{run.rstrip('/').rpartition('/')[2]}.html")
