"""The commands ``export`` and ``compare``: a benchmark's results as tables, and beside another's."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from ..errors import InputWarning, InvalidParameter, counted, shortened
from .terminal import say, show_whole

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments.store import Results
    from ..report.pages import Table as Part
    from ..report.pages import TableColumn, TableRow

_WHOLE = "(the variant)"  # in place of a method, where a variant is graded
_MOST_LINES = 20  # differences of two runs that are told
_PACKAGES = "% \\usepackage{booktabs, multirow}\n"  # what the table needs
_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_LABEL = re.compile(r"[^A-Za-z0-9]+")  # what a label is without
_LAST_LINE = re.compile(r"(\\cline\{[^}]*\}\s*)+(?=\\bottomrule)")  # a rule directly above the last one
_ENDINGS = {"csv": ".csv", "latex": ".tex", "parquet": ".parquet"}
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The output of `pellucid benchmark`.")]


def export(
    run: RunArgument,
    csv: Annotated[bool, typer.Option("--csv", help="A row for each value.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Means and ranks, for a paper.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="A row for each value, with curves.")] = False,
    layer: Annotated[
        str | None, typer.Option(help="With --latex: the layer, instead of each method's own best one.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="With --latex: the 95 % interval behind each mean.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The file, whose ending may choose.", show_default="RUN.csv"
        ),
    ] = None,
) -> None:
    """Write a benchmark's results as a table: CSV, Parquet or LaTeX.

    Example: `pellucid export results --latex -o table.tex`
    """
    from ..experiments.store import Results
    from ..files import replace_file

    asked = [kind for kind, given in {"csv": csv, "latex": latex, "parquet": parquet}.items() if given]
    if len(asked) > 1:
        raise InvalidParameter(f"--{asked[0]} and --{asked[1]} are two kinds of table; give one")
    ending = output.suffix if output else ""
    fitting = [kind for kind, known in _ENDINGS.items() if known == ending]
    kind = (asked or fitting or ([] if output else ["csv"]) or [""])[0]
    if not kind or (asked and ending and fitting != asked):
        wanted = _ENDINGS[asked[0]] if asked else ", ".join(_ENDINGS.values())
        other = f"--{asked[0]}" if asked else " or ".join(f"--{name}" for name in _ENDINGS)
        raise InvalidParameter(
            f"--output {output}: give a file ending in {wanted}, or one of no ending and {other}"
        )
    results = Results.read(run)
    path = output or Path(f"{run.rstrip('/').rpartition('/')[2]}{_ENDINGS[kind]}")
    if intervals and kind != "latex":
        raise InvalidParameter(f"--intervals is for --latex; a {kind} file has the values themselves")
    replace_file(path, _content(results, kind, layer, intervals, path.stem))
    if missing := len(results.missing):
        say(f"note: the run is unfinished, {counted(missing, 'cell')} missing", err=True)
    say(f"wrote {path}")


def _content(results: Results, kind: str, layer: str | None, intervals: bool, name: str) -> bytes:
    if kind == "parquet":
        return results.table.to_parquet(index=False)  # type: ignore[no-any-return]
    text = results.values().to_csv(index=False) if kind == "csv" else _latex(results, layer, intervals, name)
    return str(text).encode()


def _latex(results: Results, layer: str | None, intervals: bool, name: str) -> str:
    """Means with their ranks as the report's tables have them, a part for each model and variant."""
    import pandas as pd

    from ..findings.statistics import Statistics
    from ..findings.wording import judged_at
    from ..report.tables import overview, variants_overview

    statistics = Statistics.of(results)
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for model, variant in statistics.values.index.droplevel(["method", "layer", "metric"]).unique():
        if (part := overview(statistics, model, variant, layer, intervals)) is not None:
            rows |= {(model, variant, row.title): _cells(part, row) for row in part.rows}
        whole = variants_overview(statistics, model, intervals)
        for row in (row for row in whole.rows if row.title == variant):
            rows[model, variant, _WHOLE] = _cells(whole, row)
    if layer is not None and all(method == _WHOLE for _, _, method in rows):
        raise InvalidParameter(f"no maps were graded at {layer!r}; name a layer of the run, or none")
    index = pd.MultiIndex.from_tuples(list(rows), names=["model", "variant", "method"])
    table = pd.DataFrame(list(rows.values()), index).fillna("–")
    counts = ((noun, results.table[noun].nunique()) for noun in ("image", "training"))
    over = " or ".join(counted(count, noun) for noun, count in counts if count)
    means = r", with their 95\,\% intervals" if intervals else ""
    caption = (
        f"Means over {over}{means}, {judged_at(layer)}. In parentheses the rank among methods of the same "
        "variant (= where several share it)" + (" and the layer." if layer is None else ".")
    )
    if any(method == _WHOLE for _, _, method in rows):
        caption += f" A row {_WHOLE} grades the whole variant, and its rank is among variants."
    text = table.replace({"−": "-"}, regex=True).to_latex(
        escape=True,
        caption=caption,
        label=f"tab:{_LABEL.sub('-', name)}",
        column_format="l" * table.index.nlevels + "r" * table.shape[1],
    )
    for arrow, command in _ARROWS.items():  # put in last: in a table's texts a backslash is escaped
        text = text.replace(arrow, command)
    return _PACKAGES + _LAST_LINE.sub("", text)


def _cells(part: Part, row: TableRow) -> dict[str, str]:
    """A row's means, with what stands in brackets behind them, by metric."""
    return {
        _head(column): f"{cell.text} ({cell.note})" if cell.note else cell.text
        for column, cell in zip(part.columns[1:], row.cells, strict=True)
    }


def _head(column: TableColumn) -> str:
    """A metric's title, with an arrow to what is better."""
    return f"{column.title} {'↑' if column.descending else '↓'}"


def compare_command(
    run: RunArgument,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="Another run, on the same images.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Within one run: the variant, method or model that the others are compared with; else the first "
            "variant, original.",
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Where maps are compared; else each at its best layer.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.csv", help="Also write the table.")
    ] = None,
) -> None:
    """Compare two benchmarks, or the variants or methods of one, image by image.

    Differences are the second run's minus the first's, or each part's minus the one named by --against, with 95 %
    intervals over the images that both have.

    Examples: `pellucid compare before after`, `pellucid compare RUN`, `pellucid compare RUN --against random`
    """
    from ..experiments.store import Results
    from ..files import replace_file
    from ..findings.comparison import compare

    if output is not None and output.suffix != ".csv":
        raise InvalidParameter(f"--output {output}: give a file ending in .csv")
    first = Results.read(run)
    second = None if other is None else Results.read(other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # all in which runs differ is told with the table
        found = compare(first, second, layer, against=against)
    if second is None:
        _say_of_one(found, first, against, layer)
    else:
        _say_of_two(found, first, second, layer)
    if rows := int((found["layer"] != found["other_layer"]).sum()):
        told = (
            f"in {counted(rows, 'row')} maps of two layers are compared, each side's best, as the last column says"
        )
        say(f"note: {told}; --layer NAME compares all at one")
    unlike = (found["verdict"] == "not told apart") & ((found["low"] > 0) | (found["high"] < 0))
    if unlike.any():
        say("values of 0 and 1 are told apart by the exact sign test, also where their interval leaves out 0")
    if output is not None:
        replace_file(output, found.to_csv().encode())
        say(f"wrote {output}")


def _elsewhere(run: Results, layer: str) -> list[str]:
    """The methods without any map at a layer."""
    graded = run.table[run.table["method"].notna()]
    return sorted({*graded["method"].unique()} - {*graded.loc[graded["layer"] == layer, "method"].unique()})


def _say_of_one(found: pd.DataFrame, run: Results, against: str | None, layer: str | None) -> None:
    from ..findings.comparison import classes_apart, part_of

    kind, name = part_of(run, against)
    if run.missing:
        say(f"note: the run is unfinished, {counted(len(run.missing), 'cell')} missing")
    for line in classes_apart(run, against=against):
        say(f"note: {line}")
    if layer is not None and (elsewhere := _elsewhere(run, layer)):
        say(f"not compared at {layer}, since their maps are of other layers: {shortened(elsewhere)}")
    title = f"Each other {kind} against {name}, paired over the images that both have"
    show_whole(_differences(found, run, (name, "this one"), title), keys=3)


def _say_of_two(found: pd.DataFrame, first: Results, second: Results, layer: str | None) -> None:
    from ..experiments.record import apart
    from ..findings.comparison import classes_apart, left_out

    lines = list(apart(first.record, second.record, ("in the first", "in the second")))
    lines += classes_apart(first, second)
    same = first.values().equals(second.values())
    values = "All their values are the same." if same else "Their values are not the same."
    what = "The runs differ in:" if lines else "Both runs are of the same spec, weights, images and files."
    say(what if lines else f"{what} {values}")
    for line in lines[:_MOST_LINES]:
        say(f"  {line}")
    if len(lines) > _MOST_LINES:
        say(f"  and in {len(lines) - _MOST_LINES} more places")
    title = "Paired over the images that both runs have"
    show_whole(_differences(found, first, ("first", "second"), title), keys=3)
    for line in left_out(first, second, layer):
        say(line)


def _differences(found: pd.DataFrame, first: Results, sides: tuple[str, str], title: str) -> Table:
    """A row for each pair; ``sides`` are what the two of it are called."""
    from ..findings.digits import interval_ends, number, shared_decimals

    places = {metric: shared_decimals(rows["low"], rows["high"]) for metric, rows in found.groupby(level="metric")}
    models = found.index.get_level_values("model")
    several = models.nunique() > 1
    table = Table(
        *("metric", "method", "variant", *(["model"] if several else [])),
        *(Column(escape(head), justify="right") for head in (*sides, "difference", "95 % interval", "images")),
        f"{sides[1] if sides[1].startswith('this') else f'the {sides[1]}'} is",
        "layers",
        title=escape(title),
        title_justify="left",
    )
    for (model, variant, method, metric), row in zip(found.index, found.to_dict("records"), strict=True):
        arrow = "↑" if first.record.metrics[metric].higher_is_better else "↓"
        numbers = [number(row[name], places[metric]) for name in ("one", "other", "difference")]
        ends = " to ".join(interval_ends(row["low"], row["high"], places[metric]))
        layers = " | ".join(dict.fromkeys(filter(None, (row["layer"], row["other_layer"]))))
        verdict = row["verdict"] + (" (at two layers)" if row["layer"] != row["other_layer"] else "")
        table.add_row(
            escape(f"{metric} {arrow}"), escape(method or _WHOLE), escape(variant),
            *([escape(model)] if several else []), *numbers, ends, str(row["images"]), verdict,
            escape(layers),
        )  # fmt: skip
    return table
