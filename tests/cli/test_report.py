"""The command report: where the page goes, and what is said of runs that are none."""

import json

import pyarrow
import pytest
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.experiments.record import RUN
from pellucid.experiments.store import PICTURE_ROWS, ROWS, Store
from tests.tables import plausible

SMALL = {"variants": ("original",), "layers": ("input",), "shown": 1}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """A run of two cells, the second of them missing."""
    results = plausible(**SMALL)
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
    assert "no cell has finished" in refused(folder)


def test_a_page_that_cannot_be_written_is_refused(folder, tmp_path):
    assert "cannot write" in refused(folder, "-o", tmp_path / "missing" / "page.html")
