"""The command report: where the page goes, and what is said of runs that are none."""

import json
from dataclasses import replace

import pandas
import pyarrow
import pytest
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.experiments.store import PICTURE_ROWS, ROWS, Results, Store
from pellucid.files import RUN
from pellucid.findings.comparison import compare
from pellucid.findings.statistics import Statistics
from tests.tables import plausible

SMALL = {"variants": ("original",), "layers": ("input",), "shown": 1}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """A run of two cells, the second of them missing."""
    return written(plausible(**SMALL), tmp_path)


def written(results, tmp_path):
    store = Store(tmp_path / "run")
    with store.opened(results.record.model_copy(update={"cells": ("first", "second")})):
        rows, pictures = (
            pyarrow.Table.from_pandas(table, schema, preserve_index=False)
            for table, schema in ((results.table, ROWS), (results.pictures, PICTURE_ROWS))
        )
        store.write("first", rows, pictures)
    return tmp_path / "run"


def test_the_page_is_written_into_the_run(folder):
    result = run("report", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"open {folder / 'report.html'}\n"
    assert "the run is unfinished, 1 cell missing" in result.stderr
    text = (folder / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "1 of 2 cells are missing" in text
    first = text
    assert run("report", folder).exit_code == 0
    assert (folder / "report.html").read_text() == first


def test_the_page_is_written_where_asked(folder, tmp_path):
    result = run("report", folder, "-o", tmp_path / "page.html")
    assert result.stdout == f"open {tmp_path / 'page.html'}\n"
    assert not (folder / "report.html").exists()
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_run_elsewhere_is_reported_here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("report", folder.as_uri())
    assert result.stdout == "open run.html\n"
    assert (tmp_path / "run.html").exists()


def refused(*arguments):
    result = run("report", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    return result.stderr


def test_what_is_no_run_is_refused(folder, tmp_path):
    assert "there is no run of pellucid benchmark in" in refused(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert "there is no run of pellucid benchmark in" in refused(tmp_path / "photos")
    (tmp_path / "photos" / RUN).write_text(json.dumps({"made_by": "pellucid", "files": []}))
    assert "another command" in refused(tmp_path / "photos")


def test_a_run_that_has_just_begun_is_refused(folder):
    (folder / "parts" / "first.parquet").unlink()
    assert "no cell of the run has finished" in refused(folder)


def test_a_page_that_cannot_be_written_is_refused(folder, tmp_path):
    assert "cannot write" in refused(folder, "-o", tmp_path / "missing" / "page.html")


def test_a_report_that_is_no_page_is_refused_with_the_way_out(folder):
    result = run("report", folder, "-o", "scores.csv")
    assert result.exit_code == 2
    assert f"pellucid export {folder} -o scores.csv" in result.stderr


def test_results_are_exported_by_the_files_ending_or_the_option(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, name in [
        (("-o", "a.csv"), "a.csv"),
        (("--parquet", "-o", "b.parquet"), "b.parquet"),
        ((), "run.csv"),
        (("--latex",), "run.tex"),
    ]:
        result = run("export", folder, *arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"wrote {name}\n"
    results = Results.read(folder)
    written = pandas.read_csv("a.csv")
    assert written["value"].to_numpy() == pytest.approx(results.values()["value"].to_numpy(), nan_ok=True)
    assert (written["method"].isna() == results.values()["method"].isna()).all()
    assert len(pandas.read_parquet("b.parquet")) == len(results.table)
    latex = (tmp_path / "run.tex").read_text()
    assert r"guided\_backprop" in latex
    mean = results.pivot(metric="mass_outside").loc[("net", "original", "gradcam", "input"), "mass_outside"]
    assert f"{mean:.2f}" in latex
    assert r"mass outside $\downarrow$" in latex
    assert r"\begin{tabular}{lllr" in latex
    assert r"\label{tab:run}" in latex
    assert f"Means over {len(results.record.images)} images" in latex
    top1 = results.values()[lambda rows: rows["metric"] == "top1"]["value"].mean()
    [row] = [line for line in latex.splitlines() if "(the variant)" in line and "caption" not in line]
    assert f" {top1:.2f}" in row
    assert row.count("–") == latex.count(r"arrow$") - 2  # in the columns of what grades maps
    assert r"top1 $\uparrow$ & prediction difference $\downarrow$" in latex or (
        r"prediction difference $\downarrow$ & top1 $\uparrow$" in latex
    )
    assert "its rank is among variants." in latex
    above = latex[: latex.index(r"\bottomrule")].splitlines()[-1]
    assert above.endswith("\\\\")  # a row, no rule
    statistics = Statistics.of(results).best.summary
    low, high = statistics.loc[("net", "original", "gradcam", "input", "mass_outside"), ["low", "high"]]
    assert run("export", folder, "--latex", "--intervals").exit_code == 0
    latex = (tmp_path / "run.tex").read_text()
    assert f"{mean:.3f} [{low:.3f}, {high:.3f}] (" in latex
    assert r"images, with their 95\,\% intervals, each method" in latex


def test_exports_of_no_kind_or_two_are_refused(folder):
    for arguments, message in [
        (("-o", "table.xlsx"), "give a file ending in .csv, .tex, .parquet"),
        (("--csv", "--latex"), "are two kinds of table; give one"),
        (("--csv", "-o", "table.tex"), "give a file ending in .csv, or one"),
        (("--latex", "--layer", "nowhere"), "no maps were graded at 'nowhere'"),
        (("--csv", "--intervals"), "--intervals is for --latex; a csv file has the values themselves"),
    ]:
        result = run("export", folder, *arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr


def test_two_runs_are_compared(folder, tmp_path):
    result = run("compare", folder, folder, "-o", tmp_path / "differences.csv")
    assert result.exit_code == 0, result.output
    assert "not told apart" in result.stdout
    assert "better" not in result.stdout
    assert "two layers" not in result.stdout
    assert (pandas.read_csv(tmp_path / "differences.csv")["difference"].dropna() == 0).all()


def test_the_methods_of_one_run_are_compared_with_one_of_them(folder):
    result = run("compare", folder, "--against", "random")
    assert result.exit_code == 0, result.output
    assert "Each other method against random, paired over the images that both have" in result.stdout
    assert "this one is" in result.stdout
    assert "two layers" not in result.stdout


def test_that_maps_of_two_layers_are_compared_is_told(tmp_path):
    results = plausible(**SMALL | {"layers": ("input", "deep")})
    table = results.table
    table = table[~((table["method"] == "random") & (table["layer"] == "deep"))]
    folder = written(replace(results, table=table), tmp_path)
    result = run("compare", folder, "--against", "random")
    found = compare(Results.read(folder), against="random")
    rows = int((found["layer"] != found["other_layer"]).sum())
    assert rows > 1
    assert f"note: in {rows} rows maps of two layers are compared, each side's best" in result.stdout
    assert "two layers" not in run("compare", folder, "--against", "random", "--layer", "input").stdout
