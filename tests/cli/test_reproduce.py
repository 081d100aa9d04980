"""`pellucid reproduce`: lists, a run with its page and claims, and errors in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.errors import InvalidModel
from pellucid.experiments import runners
from pellucid.experiments.store import Results
from pellucid.papers import recipe as recipes
from pellucid.papers.recipe import Recipe

SPEC = {
    "models": ["shapes-resnet"],
    "images": "@shapes",
    "methods": ["gradient", "random"],
    "layers": ["input"],
    "metrics": ["total_variation"],
    "pictures": 0,
}
TABLE = {"kind": "table", "title": "Noise", "rows": "method", "columns": "metric"}
TEST = {"experiment": "noise", "method": "gradient", "how": "difference", "against": {"method": "random"}}
RECIPE = {
    "title": "Maps [and] nets",
    "authors": "A. Author",
    "lead": "What it says.",
    "sources": {"shapes": {"path": "drawn", "otherwise": "shapes:4", "about": "shapes"}},
    "experiments": [{"key": "noise", "spec": SPEC}, {"key": "other", "spec": SPEC | {"methods": ["gradient"]}}],
    "exhibits": [
        TABLE | {"key": "table1", "experiment": "noise"},
        TABLE | {"key": "table2", "experiment": "other", "title": "Other noise"},
    ],
    "claims": [
        {"text": "smoother than noise", "place": "Section 1", "tests": [TEST | {"below": 0}]},
        {"text": "rougher than noise", "place": "Section 2", "tests": [TEST | {"above": 0}]},
        {"text": "people like it", "place": "Section 3", "because": "nobody was asked"},
    ],
}


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "read_recipe", lambda name: Recipe.model_validate(RECIPE))


def run(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_without_a_paper_the_papers_are_listed():
    result = run()
    assert result.exit_code == 0, result.output
    for name in recipes.PAPERS:
        assert name in result.stdout
    assert result.stdout.count("Maps [and] nets") == len(recipes.PAPERS)


def test_a_papers_exhibits_and_what_they_need_are_listed():
    result = run("sanity-checks", "--list")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if "table2" in line]
    assert "Other noise" in line
    assert "other" in line
    assert "--data shapes: shapes (drawn in the folder)" in result.stdout
    assert list(Path().iterdir()) == []


def test_a_run_writes_the_page_and_says_which_claims_hold():
    result = run("sanity-checks", "--scale", "smoke")
    assert result.exit_code == 0, result.output
    verdicts = {
        text: line for line in result.stdout.splitlines() for text in ("smoother", "rougher") if text in line
    }
    assert "holds" in verdicts["smoother"]
    assert "does not hold" in verdicts["rougher"]
    assert "not tested: nobody was asked" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "open sanity-checks-smoke/index.html, or read sanity-checks-smoke/README.md"
    )
    folder = Path("sanity-checks-smoke")
    page = (folder / "README.md").read_text()
    assert "pellucid reproduce sanity-checks --scale smoke" in page
    assert "Other noise" in page
    assert "experiment noise: grading, 2 of 2" in result.stderr
    assert json.loads((folder / "reproduce.json").read_text())["scale"] == "smoke"
    record = Results.read(folder / "runs" / "noise").record
    assert record.command == "pellucid reproduce sanity-checks --scale smoke"
    report = CliRunner().invoke(app, ["report", str(folder / "runs" / "noise")])
    assert report.exit_code == 0, report.output


def test_options_reach_the_run():
    result = run("sanity-checks", "--only", "table2", "--data", "shapes=shapes:3", "--device", "cpu", "-o", "here")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("here/runs").iterdir()) == ["other"]
    record = Results.read("here/runs/other").record
    assert len(record.images) == 3
    assert record.spec["device"] == "cpu"
    assert json.loads(Path("here/reproduce.json").read_text())["scale"] == "cpu"
    assert "claim" not in result.stdout


def test_failed_cells_are_told_and_the_page_is_written_all_the_same(monkeypatch):
    whole = runners.run_cell

    def run_cell(spec, cell):
        if cell.method == "random":
            raise InvalidModel("no such luck")
        return whole(spec, cell)

    monkeypatch.setattr(runners, "run_cell", run_cell)
    result = run("sanity-checks", "--scale", "smoke", "-o", "here")
    assert result.exit_code == 1
    assert "noise: 1 cell failed; the same command tries them again:" in result.stderr
    assert "no such luck" in result.stderr
    assert "not tested: this run has no such results" in result.stdout
    assert Path("here/README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "cpus"], "error: scale='cpus': give one of 'smoke', 'cpu', 'paper'"),
        (["--only", "table3"], "error: unknown table or figure 'table3'; did you mean"),
        (["--data", "nowhere"], "error: --data nowhere is no folder; give one, or NAME=..., NAME being shapes"),
        (["--weights", "nowhere"], "error: --weights nowhere is no folder"),
        (["--device", "gpu"], "error: --device gpu: give auto, cpu or cuda"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message):
    result = run("sanity-checks", *arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(message)
    assert list(Path().iterdir()) == []


def test_an_unknown_paper_is_named(monkeypatch):
    monkeypatch.undo()
    result = run("sanity-cheks")
    assert result.exit_code == 2
    assert "unknown paper 'sanity-cheks'; did you mean sanity-checks" in result.stderr
