"""Where commands write: nothing lands elsewhere whatever names say; what cannot be written ends in one line."""

import os
import xml.etree.ElementTree as Tree

import pytest
from typer.testing import CliRunner

from pellucid.cli.program import app
from pellucid.files import file_name, replace_file

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module({name!r}, nn.Conv2d(3, 2, 3))

    def forward(self, x):
        return getattr(self, {name!r})(x).mean((2, 3))

def build():
    return Net()
"""


def run(*arguments):
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


@pytest.mark.parametrize("name", ["/outside", "a/b", "a%2Fb"])
def test_a_modules_name_leads_no_map_elsewhere(tmp_path, name):
    (tmp_path / "net.py").write_text(NET.format(name=name))
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "out"
    ended = run("explain", "shapes:1", "--model", f"{tmp_path}/net.py:build", "--layers", "all", "-o", out)
    assert ended.exit_code == 0, ended.output
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"here", "net.py"}
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]
    maps = list((out / "maps").rglob("*.png"))
    assert len(maps) == 2
    assert all(path.parents[3] == out for path in maps)


@pytest.mark.parametrize("name", ["bell\x07.png", "not-utf-8-\udcff.png", "x" * 240 + ".png", "ü" * 120 + ".png"])
def test_any_name_of_a_photo_is_written_as_valid_files(tmp_path, name):
    source = tmp_path / "photos"
    source.mkdir()
    assert run("explain", "shapes:1", "--model", "shapes-resnet", "-o", tmp_path / "first").exit_code == 0
    picture = next((tmp_path / "first").rglob("maps/**/*.png"))
    (source / name).write_bytes(picture.read_bytes())
    ended = run("explain", source, "--model", "shapes-resnet", "--variant=original", "--variant=backward",
                "--layers=input,layer1.1", "--pictures=png,svg", "-o", tmp_path / "out")  # fmt: skip
    assert ended.exit_code == 0, ended.output
    drawn = list((tmp_path / "out").glob("*.svg"))
    assert drawn
    for path in drawn:
        Tree.parse(path)


def test_the_home_folder_is_the_same_for_all_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("explain", "shapes:1", "--model", "shapes-resnet", "-o", "~/out").exit_code == 0
    grading = ("--images=shapes:1", "--methods=gradient", "--metrics=total_variation")
    assert run("benchmark", "--model", "shapes-resnet", *grading, "--output=~/run").exit_code == 0
    assert run("report", "~/run", "--output=~/page.html").exit_code == 0
    assert run("doctor", "~/run").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "home").glob("[!.]*")) == ["out", "page.html", "run"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.exists("/proc/version"), reason="needs a place without writing"
)
@pytest.mark.parametrize(
    "page", ["/proc/page.html", "missing/page.html", "run/run.json/page.html", "x" * 300 + ".html"]
)
def test_a_report_that_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    grading = ("--images=shapes:1", "--methods=gradient", "--metrics=total_variation")
    assert run("benchmark", "--model", "shapes-resnet", *grading, "-o", "run").exit_code == 0
    ended = run("report", "run", "-o", page)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: cannot write ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["report", "doctor", "benchmark", "explain"])
def test_a_run_json_that_is_a_folder_is_refused_in_one_line(tmp_path, command):
    (tmp_path / "run" / "run.json").mkdir(parents=True)
    (tmp_path / "run" / "run.json" / "mine.txt").write_text("mine")
    given = {
        "benchmark": ("--model=shapes-resnet", "--images=shapes:1", "--methods=gradient",
                      "--metrics=total_variation", "-o", tmp_path / "run"),
        "explain": ("shapes:1", "--model=shapes-resnet", "-o", tmp_path / "run"),
    }.get(command, (tmp_path / "run",))  # fmt: skip
    ended = run(command, *given)
    assert ended.exit_code == (1 if command == "doctor" else 2)
    assert "run.json" in ended.output
    assert (tmp_path / "run" / "run.json" / "mine.txt").read_text() == "mine"


def test_a_name_as_long_as_may_be_is_written(tmp_path):
    replace_file(tmp_path / ("x" * 255), b"content")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]
    assert len(file_name("ü" * 300).encode()) <= 100
